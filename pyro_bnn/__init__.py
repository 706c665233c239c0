"""PyroBNN: Bayesian deep learning as Pyro programs."""

from . import compression as compression
from . import distributions as distributions
from . import likelihoods as likelihoods
from . import mcmc as mcmc
from . import priors as priors
from .checkpoint import CheckpointError as CheckpointError
from .data import DataError as DataError
from .diagnostics import compare as compare
from .diagnostics import to_arviz as to_arviz
from .elbo import ELBO as ELBO
from .network import BayesianNet as BayesianNet
from .posterior import Posterior as Posterior
from .prediction import Prediction as Prediction
from .reparameterization import flipout as flipout
from .reparameterization import local_reparameterization as local_reparameterization
from .training import NonFiniteError as NonFiniteError
from .training import fit as fit
from .training import linear_warmup as linear_warmup

__version__ = "0.1.0"
