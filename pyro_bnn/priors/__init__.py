r"""Priors over the weights of a network, each a small Pyro program.

A prior is called as ``prior(name, shape, group_dim)``. It draws its sites with :func:`pyro.sample`
and returns the weight. Any function of that signature is a prior; see :class:`Prior`. ``group_dim``
is the axis whose indices a group prior keeps or drops together: the input units of a dense layer or
the output channels of a convolution. Where there is no such axis it is ``None``, and every weight
is a group of its own.

Scale mixtures are written non-centered, :math:`w = \tilde w\, z\, s`. Their sites are ``NAME.unit``
(:math:`\tilde w`, standard normal), ``NAME.scale`` (:math:`z`, one per group) and
``NAME.global_scale`` (:math:`s`); the product is reported as ``NAME``. A posterior that factorizes
over these sites is
:math:`q(z)\,q(w \mid z) = q(z)\,\mathcal{N}(w; z\mu, z^2\sigma^2)`, that of Louizos, Ullrich &
Welling (2017), https://arxiv.org/abs/1705.08665.
"""

from .elementwise import AutomaticRelevance as AutomaticRelevance
from .elementwise import Elementwise as Elementwise
from .elementwise import GaussianMixture as GaussianMixture
from .elementwise import LearnedNormal as LearnedNormal
from .elementwise import LogUniform as LogUniform
from .elementwise import Normal as Normal
from .scale_mixtures import Horseshoe as Horseshoe
from .scale_mixtures import InformationBottleneck as InformationBottleneck
from .scale_mixtures import NormalJeffreys as NormalJeffreys
from .scale_mixtures import TruncatedLogUniform as TruncatedLogUniform
from .sites import Prior as Prior
from .sites import PriorMapping as PriorMapping
