"""The evidence lower bound, and how the outputs of layers are drawn instead of their weights."""

from .elbo import ELBO as ELBO
from .reparameterization import flipout as flipout
from .reparameterization import local_reparameterization as local_reparameterization
