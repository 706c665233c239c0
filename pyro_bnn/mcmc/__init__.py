"""Samplers of the posterior, each in a file of the same shape; many chains in one process."""

from .hamiltonian import hmc as hmc
from .langevin import sgld as sgld
from .no_u_turn import nuts as nuts
from .preconditioned_langevin import psgld as psgld
from .sampler import ConvergenceWarning as ConvergenceWarning
from .sampler import SamplingError as SamplingError
from .schedules import cyclical as cyclical
from .schedules import polynomial_decay as polynomial_decay
from .stochastic_hamiltonian import sghmc as sghmc
from .underdamped_langevin import baoa as baoa
