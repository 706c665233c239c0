"""How good a posterior is: against another inference (:func:`compare`), in ArviZ (:func:`to_arviz`), against the data
(:mod:`.calibration`), and against the prior that it came from (:func:`simulate`).
"""

from .calibration import expected_calibration_error as expected_calibration_error
from .calibration import interval_coverage as interval_coverage
from .comparison import Comparison as Comparison
from .comparison import compare as compare
from .inference_data import save_netcdf as save_netcdf
from .inference_data import summary as summary
from .inference_data import to_arviz as to_arviz
from .simulation import Simulation as Simulation
from .simulation import simulate as simulate
