"""Variational families: ``MeanField`` for any model, and the methods of the literature, each written out on a page."""

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
