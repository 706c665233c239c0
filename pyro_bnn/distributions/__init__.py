"""Distributions that Bayesian networks need and Pyro lacks, with their KL divergences.

The divergences are registered with torch, so ``torch.distributions.kl_divergence(q, p)`` finds them
for torch's classes, for Pyro's (which subclass them) and through ``Independent``. All are in nats.
"""

from .automatic_relevance import AutomaticRelevance as AutomaticRelevance
from .automatic_relevance import kl_automatic_relevance as kl_automatic_relevance
from .dropout import BernoulliDropout as BernoulliDropout
from .dropout import GaussianDropout as GaussianDropout
from .half_cauchy import half_cauchy_as_product as half_cauchy_as_product
from .improper import ImproperPriorError as ImproperPriorError
from .log_uniform import LogUniform as LogUniform
from .log_uniform_kl import kl_log_uniform as kl_log_uniform
from .log_uniform_kl import kl_log_uniform_approximate as kl_log_uniform_approximate
from .monte_carlo import kl_monte_carlo as kl_monte_carlo
from .multiplicative_noise import MEAN_OFFSET as MEAN_OFFSET
from .multiplicative_noise import log_alpha as log_alpha
from .point import Flat as Flat
from .point import Point as Point
from .quadrature import normal_quadrature as normal_quadrature
from .truncated import TruncatedLogNormal as TruncatedLogNormal
from .truncated import TruncatedLogUniform as TruncatedLogUniform
from .typed import as_event as as_event
