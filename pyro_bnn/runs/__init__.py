"""A run on disk: what it was asked to do, its checkpoints, its results."""

from .run import begin as begin
from .run import claimed as claimed
from .run import data_of as data_of
from .run import finish as finish
from .run import interruption as interruption
from .run import load as load
from .run import require_posterior as require_posterior
from .run import resumed as resumed
from .run import train as train
from .settings import ExecutionConfig as ExecutionConfig
from .settings import Settings as Settings
from .settings import schedules as schedules
