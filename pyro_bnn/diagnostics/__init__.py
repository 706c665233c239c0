"""The quality of a posterior.

It is judged against another inference (:func:`compare`), with the tools of ArviZ
(:func:`to_arviz`), against the data (:func:`expected_calibration_error`,
:func:`interval_coverage`), and against the prior from which data were simulated
(:func:`simulate`).
"""

from pyro_bnn.metrics import expected_calibration_error as expected_calibration_error
from pyro_bnn.metrics import interval_coverage as interval_coverage

from .comparison import Comparison as Comparison
from .comparison import compare as compare
from .inference_data import summary as summary
from .inference_data import to_arviz as to_arviz
from .netcdf import save_netcdf as save_netcdf
from .simulation import Simulation as Simulation
from .simulation import simulate as simulate
