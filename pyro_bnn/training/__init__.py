"""Stochastic variational inference: ``fit``, its loop, its steps, checkpoints and schedules."""

from .callbacks import Callback as Callback
from .callbacks import Progress as Progress
from .fitting import Fit as Fit
from .fitting import fit as fit
from .non_finite import NonFiniteError as NonFiniteError
from .schedules import Schedule as Schedule
from .schedules import linear_warmup as linear_warmup
