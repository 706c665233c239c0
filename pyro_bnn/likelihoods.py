"""Likelihoods: how the outputs of a network become a distribution over the data.

A likelihood is called with the network's outputs and answers with a distribution over ``y``; any function of that kind
will do, ``lambda outputs: dist.Poisson(outputs.exp().squeeze(-1))`` say. A likelihood that has unknowns of its own
draws them in ``sites()``, once for the whole data set, and is then handed what was drawn.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .priors import Elementwise

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Likelihood", "LikelihoodWithSites"]


class Likelihood(Protocol):
    """A function of the outputs of a network that returns a distribution over the data."""

    def __call__(self, outputs: Tensor, /) -> dist.TorchDistribution:
        """Return the distribution over ``y`` for outputs of shape (batch, ...)."""


class LikelihoodWithSites(Protocol):
    """A likelihood that has unknowns of its own, such as a noise scale that is inferred."""

    def sites(self) -> dict[str, Tensor]:
        """Draw the unknowns by ``pyro.sample``, once for the whole data set; return their values."""

    def __call__(self, outputs: Tensor, /, **unknowns: Tensor) -> dist.TorchDistribution:
        """Return the distribution over ``y``, given the outputs and the unknowns."""


def _drop_last(outputs: Tensor) -> Tensor:
    """A network with one output returns (batch, 1); the data are (batch,)."""
    return outputs.squeeze(-1) if outputs.dim() > 1 and outputs.shape[-1] == 1 else outputs


class Categorical(nn.Module):
    r"""Classes, :math:`p(y \mid x, w) = \mathrm{softmax}(f_w(x))_y`.

    Outputs (batch, classes), data (batch,) of integer labels.
    """

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return the categorical distribution with the outputs as logits, batch shape (batch,)."""
        return dist.Categorical(logits=outputs)


class Bernoulli(nn.Module):
    r"""Yes or no, :math:`p(y = 1 \mid x, w) = \sigma(f_w(x))`.

    Outputs (batch,) or (batch, 1) with data (batch,), or outputs and data (batch, labels). The data are 0 and 1, of a
    float dtype.
    """

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return the Bernoulli distribution with the outputs as logits, batch shape (batch,)."""
        logits = _drop_last(outputs)
        return dist.Bernoulli(logits=logits).to_event(logits.dim() - 1)


class Gaussian(nn.Module):
    r"""Real data with noise, :math:`p(y \mid x, w) = \mathcal{N}(y; f_w(x), \sigma^2)`.

    Outputs (batch,) or (batch, 1) with data (batch,), or outputs and data (batch, dimensions).

    Args:
        scale: the standard deviation :math:`\sigma`. A positive number: known. ``None``: a free parameter, learned by
            maximum likelihood. A distribution over positive numbers: inferred, at the site ``"noise"``.

    Raises:
        ValueError: a scale that is not positive.

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
                f"Gaussian: expected a noise scale above zero, got {scale}; leave it out to have it learned"
            )

    def sites(self) -> dict[str, Tensor]:
        """Draw the noise scale where it is inferred; called once, outside the plate over the data."""
        return {} if self.prior is None else {"noise": self.prior("noise", torch.Size())}

    def forward(self, outputs: Tensor, noise: Tensor | None = None) -> dist.TorchDistribution:
        """Return the normal distribution around the outputs, batch shape (batch,)."""
        mean = _drop_last(outputs)
        scale = self._own_scale() if noise is None else noise
        return dist.Normal(mean, scale).to_event(mean.dim() - 1)

    def _own_scale(self) -> Any:
        return self.scale if hasattr(self, "scale") else self.log_scale.exp()
