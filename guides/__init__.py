"""Guides: ``MeanField`` for any model, and the methods of the literature, one on a page.

A guide is built from a model and owns all variational parameters. The pages ``mean_field``,
``gaussian``, ``point``, ``dropout``, ``sparse_dropout``, ``group``, ``horseshoe``,
``structured_pruning`` and ``bottleneck`` each show one method; ``families``, ``factorized``,
``latent`` and ``group_scales`` hold what they share.
"""

from .bottleneck import InformationBottleneck as InformationBottleneck
from .dropout import BernoulliDropout as BernoulliDropout
from .dropout import GaussianDropout as GaussianDropout
from .gaussian import FactorizedGaussian as FactorizedGaussian
from .group import GroupNormalJeffreys as GroupNormalJeffreys
from .horseshoe import GroupHorseshoe as GroupHorseshoe
from .mean_field import MeanField as MeanField
from .point import PointEstimate as PointEstimate
from .sparse_dropout import SparseVariationalDropout as SparseVariationalDropout
from .structured_pruning import StructuredPruning as StructuredPruning
