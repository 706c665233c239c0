"""Samplers: one algorithm, one file, all of one shape; many chains in one process."""

from .chains import ConvergenceWarning as ConvergenceWarning
from .chains import SamplingError as SamplingError
from .hamiltonian import hmc as hmc
