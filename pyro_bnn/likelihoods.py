"""Likelihoods: how the outputs of a network become a distribution over the data.

A likelihood is called with the outputs of the network and returns a distribution over ``y``. Any
such function will do, for example ``lambda outputs: dist.Poisson(outputs.exp().squeeze(-1))``. A
likelihood with unknowns of its own draws them in ``sites()``, once for the whole data set, and
receives their values as keyword arguments.
"""

from __future__ import annotations

import math
from typing import Protocol

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .distributions import as_event
from .priors import Elementwise

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Likelihood", "LikelihoodWithSites"]


class Likelihood(Protocol):
    """A function of the outputs of a network that returns a distribution over the data."""

    def __call__(self, outputs: Tensor, /) -> dist.TorchDistribution:
        """Return the distribution over ``y`` for outputs of shape (batch, ...)."""


class LikelihoodWithSites(Protocol):
    """A likelihood that has unknowns of its own, such as a noise scale that is inferred."""

    def sites(self) -> dict[str, Tensor]:
        """Draw the unknowns once for the whole data set and return their values."""

    def __call__(self, outputs: Tensor, /, **unknowns: Tensor) -> dist.TorchDistribution:
        """Return the distribution over ``y``, given the outputs and the unknowns."""


class Categorical(nn.Module):
    r"""Class labels, :math:`p(y \mid x, w) = \mathrm{softmax}(f_w(x))_y`.

    Outputs have shape (batch, classes), data (batch,) with integer labels.
    """

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return the categorical distribution with the outputs as logits, batch shape (batch,)."""
        return dist.Categorical(logits=outputs)


class Bernoulli(nn.Module):
    r"""Binary data, :math:`p(y = 1 \mid x, w) = \sigma(f_w(x))`.

    Outputs have shape (batch,) or (batch, 1) for data of shape (batch,), or outputs and data have
    shape (batch, labels). The data are 0 and 1 of a floating-point dtype.
    """

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return the Bernoulli distribution with the outputs as logits, batch shape (batch,)."""
        logits = drop_last_axis(outputs)
        return _per_example(dist.Bernoulli(logits=logits))


class Gaussian(nn.Module):
    r"""Real numbers with Gaussian noise, :math:`p(y \mid x, w) = \mathcal{N}(y; f_w(x), \sigma^2)`.

    Outputs have shape (batch,) or (batch, 1) for data of shape (batch,), or outputs and data have
    shape (batch, dimensions).

    Args:
        scale: The standard deviation :math:`\sigma` of the noise, in the units of the data. A
            positive number is fixed. ``None`` makes it a free parameter, learned by maximum
            likelihood. A distribution over positive numbers is its prior; then it is inferred, at
            the site ``"noise"``.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> Gaussian(0.3)(torch.zeros(5, 1)).batch_shape
        torch.Size([5])
    """

    def __init__(self, scale: float | dist.TorchDistribution | None = None) -> None:
        super().__init__()
        self.prior: Elementwise | None = None
        if scale is None:
            self.log_scale = nn.Parameter(torch.tensor(math.log(0.5)))
        elif isinstance(scale, torch.distributions.Distribution):
            self.prior = Elementwise(scale)
        elif scale > 0:
            self.register_buffer("scale", torch.tensor(float(scale)))
        else:
            raise ValueError(
                f"Gaussian: expected a noise scale above zero, got {scale}; "
                "leave it out to learn it from the data"
            )

    def sites(self) -> dict[str, Tensor]:
        """Draw the noise scale if it has a prior; called once, outside the plate over the data."""
        if self.prior is None:
            return {}
        return {"noise": self.prior("noise", torch.Size())}

    def forward(self, outputs: Tensor, noise: Tensor | None = None) -> dist.TorchDistribution:
        """Return the normal distribution around the outputs, batch shape (batch,)."""
        mean = drop_last_axis(outputs)
        scale = self._fixed_or_learned_scale() if noise is None else noise
        return _per_example(dist.Normal(mean, scale))

    def _fixed_or_learned_scale(self) -> Tensor:
        if "scale" in self._buffers:
            return self.get_buffer("scale")
        return self.log_scale.exp()


def drop_last_axis(outputs: Tensor) -> Tensor:
    """Return outputs of shape (batch, 1), those of a network with one output, as (batch,)."""
    if outputs.dim() > 1 and outputs.shape[-1] == 1:
        return outputs.squeeze(-1)
    return outputs


def _per_example(distribution: dist.TorchDistribution) -> dist.TorchDistribution:
    """Make everything but the first axis one event."""
    return as_event(distribution, len(distribution.batch_shape) - 1)
