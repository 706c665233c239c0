"""What the library needs of a guide.

Any Pyro program that samples the latent sites of a model is a guide, a stock autoguide as well as
a plain function. Guides with the methods below can do more: their weights have moments in closed
form, and they can be pruned and cut to a smaller network. Test with ``isinstance`` whether a guide
has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_bnn.runtime.program import Program

__all__ = ["FactorizedGuide", "Guide", "GuideWithLogAlpha", "GuideWithMoments", "Moments"]


class Moments(NamedTuple):
    """Mean and variance of every element of a weight, two tensors of the shape of the weight."""

    mean: Tensor
    variance: Tensor


class Guide(Program, Protocol):
    """A Pyro program that samples every latent site of a model, called as the model is."""


@runtime_checkable
class GuideWithMoments(Guide, Protocol):
    """A guide that computes mean and variance of every weight in closed form."""

    def moments(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Return mean and variance of every weight, the scales of scale mixtures marginalized."""


@runtime_checkable
class GuideWithLogAlpha(Guide, Protocol):
    r"""A guide that learns a noise-to-signal ratio :math:`\alpha` for weights or their groups."""

    def log_alpha(self) -> Mapping[str, Tensor]:
        r"""Return :math:`\log\alpha` by the name of the weight."""


@runtime_checkable
class FactorizedGuide(Guide, Protocol):
    r"""A guide that factorizes over the sites, :math:`q(w) = \prod_s q_s(w_s)`."""

    def distributions(self) -> Mapping[str, dist.TorchDistribution]:
        """Return the distribution of every site."""

    def families(self) -> Mapping[str, nn.Module]:
        """Return the module that holds the parameters of every site."""
