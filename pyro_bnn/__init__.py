"""PyroBNN: Bayesian deep learning as Pyro programs."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from . import datasets as datasets
from . import distributions as distributions
from . import likelihoods as likelihoods
from . import mcmc as mcmc
from . import priors as priors
from .diagnostics import compare as compare
from .diagnostics import to_arviz as to_arviz
from .network import BayesianNet as BayesianNet
from .posterior import Posterior as Posterior
from .posterior import Prediction as Prediction
from .runtime.tensor_files import CheckpointError as CheckpointError
from .runtime.validation import DataError as DataError
from .training import NonFiniteError as NonFiniteError
from .training import fit as fit
from .training import linear_warmup as linear_warmup
from .variational import ELBO as ELBO
from .variational import flipout as flipout
from .variational import local_reparameterization as local_reparameterization

__version__ = "0.2.0"

if TYPE_CHECKING:
    from . import compression as compression


def __getattr__(name: str) -> ModuleType:
    """Import ``pyro_bnn.compression`` on first use: it takes a third of the time of the import."""
    if name == "compression":
        return importlib.import_module("pyro_bnn.compression")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
