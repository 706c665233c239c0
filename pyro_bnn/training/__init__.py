"""Stochastic variational inference: ``fit``, its loop, its steps, its schedules."""

from .fitting import Fit as Fit
from .fitting import fit as fit
from .loop import NonFiniteError as NonFiniteError
from .loop import Progress as Progress
from .schedules import linear_warmup as linear_warmup
