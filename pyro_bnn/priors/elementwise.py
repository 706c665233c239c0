"""Priors of independent weights: a distribution for each, known, fitted to the data, or improper."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_bnn import distributions

from .sites import group_shape, positive, sample

__all__ = [
    "AutomaticRelevance",
    "Elementwise",
    "GaussianMixture",
    "LearnedNormal",
    "LogUniform",
    "Mixture",
    "Normal",
]


class Elementwise(nn.Module):
    r"""Any distribution over one weight, independently for all, :math:`p(w) = \prod_i p(w_i)`.

    Args:
        distribution: over real numbers, of event shape (); its parameters broadcast against the weight.

    Raises:
        TypeError: what is given is no distribution over single numbers.

    >>> prior = Elementwise(dist.StudentT(3.0, 0.0, 0.1))
    >>> prior("w", torch.Size([2, 3]), 1).shape
    torch.Size([2, 3])
    """

    def __init__(self, distribution: torch.distributions.Distribution) -> None:
        super().__init__()
        if (
            not isinstance(distribution, torch.distributions.Distribution)
            or distribution.event_shape
        ):
            raise TypeError(
                f"Elementwise: expected a distribution over single weights (event shape ()), got {distribution}"
            )
        self.distribution = _as_pyro(distribution)
        for key, value in _parameters(self.distribution).items():
            self.register_buffer(
                key, torch.as_tensor(value)
            )  # they follow the network to its device and dtype

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Sample the weight at the site ``name``."""
        parameters = _parameters(self.distribution)
        if not parameters:
            return sample(name, self.distribution, shape)
        buffers = {key: getattr(self, key) for key in parameters}
        return sample(name, type(self.distribution)(**buffers, validate_args=False), shape)


def _as_pyro(distribution: torch.distributions.Distribution) -> dist.TorchDistribution:
    """Return Pyro's distribution of the same name and parameters for a plain one of torch."""
    if isinstance(distribution, dist.torch_distribution.TorchDistributionMixin):
        return distribution
    kind = getattr(dist, type(distribution).__name__, None)
    parameters = _parameters(distribution)
    if kind is None or not parameters:
        raise TypeError(
            f"Elementwise: expected a distribution of Pyro, or one of torch that its parameters describe, got "
            f"{distribution}; take the class of that name from pyro.distributions"
        )
    return kind(**parameters)


def _parameters(distribution: torch.distributions.Distribution) -> dict[str, Tensor]:
    """Return the constructor's arguments; of two parameterisations (probs and logits) the one that was given."""
    kind, own = type(distribution), distribution.__dict__
    given = [
        key
        for key in distribution.arg_constraints
        if key in own or type(inspect.getattr_static(kind, key, None)) is property
    ]
    return {key: getattr(distribution, key) for key in given}


class Normal(nn.Module):
    r"""Gaussian weights, :math:`p(w) = \mathcal{N}(w; \mu, \sigma^2)`.

    Args:
        scale: :math:`\sigma`, a number or a tensor that broadcasts to the weight.
        loc: :math:`\mu`, likewise. A posterior becomes the next task's prior this way.

    Raises:
        ValueError: a scale that is not positive.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, scale: float | Tensor = 1.0, loc: float | Tensor = 0.0) -> None:
        super().__init__()
        self.register_buffer("scale", positive("Normal", "scale", scale))
        self.register_buffer("loc", torch.as_tensor(loc, dtype=self.scale.dtype))

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Sample the weight at the site ``name``."""
        return sample(name, dist.Normal(self.loc, self.scale, validate_args=False), shape)


class LearnedNormal(nn.Module):
    r"""Gaussian weights whose scale is fitted to the data, :math:`p(w) = \mathcal{N}(w; 0, \sigma^2)` with
    :math:`\sigma` maximising the ELBO.

    Empirical Bayes: every weight tensor has a :math:`\sigma` of its own, an ordinary parameter of the model.

    Args:
        scale: the starting point of :math:`\sigma`.

    Raises:
        ValueError: a scale that is not positive.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(positive("LearnedNormal", "scale", scale).log())

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Sample the weight at the site ``name``."""
        return sample(name, dist.Normal(0.0, self.log_scale.exp(), validate_args=False), shape)


class GaussianMixture(nn.Module):
    r"""A mixture of Gaussians, :math:`p(w) = \sum_k \pi_k\, \mathcal{N}(w; \mu_k, \sigma_k^2)`.

    Two components at zero, one wide and one narrow, are the spike and slab of Bayes by backprop.

    Args:
        scales: :math:`\sigma_k`.
        probs: :math:`\pi_k`, equal by default; normalised here.
        locs: :math:`\mu_k`, zero by default.

    Raises:
        ValueError: scales or probabilities that are not positive, or of different lengths.

    Source: Blundell et al. (2015), equation 7, https://arxiv.org/abs/1505.05424.
    """

    scales: Tensor
    probs: Tensor
    locs: Tensor

    def __init__(
        self,
        scales: Sequence[float],
        probs: Sequence[float] | None = None,
        locs: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        probs, locs = probs or [1.0] * len(scales), locs or [0.0] * len(scales)
        if not len(scales) == len(probs) == len(locs) or not len(scales):
            raise ValueError(
                f"GaussianMixture: got {len(scales)} scales, {len(probs)} probs and {len(locs)} locs; "
                "expected one or more, of each as many"
            )
        dtype = torch.get_default_dtype()
        self.register_buffer(
            "scales", positive("GaussianMixture", "scales", torch.tensor(scales, dtype=dtype))
        )
        self.register_buffer(
            "probs", positive("GaussianMixture", "probs", torch.tensor(probs, dtype=dtype))
        )
        self.register_buffer("locs", torch.tensor(locs, dtype=dtype))

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Sample the weight at the site ``name``."""
        mixture = Mixture(
            dist.Categorical(self.probs, validate_args=False),
            dist.Normal(self.locs, self.scales, validate_args=False),
            validate_args=False,
        )
        return sample(name, mixture, shape)


class Mixture(dist.MixtureSameFamily):
    """A mixture that says outright that it lives on the real line; guides and samplers ask."""

    support = constraints.real


class LogUniform(nn.Module):
    r"""The scale-free prior of variational dropout, :math:`p(w) \propto 1/|w|`.

    It is improper: it has a KL divergence to every Gaussian but no samples, so it serves variational inference alone.

    Args:
        kl: the KL divergence as a function of :math:`\log\alpha`, :func:`~pyro_bnn.distributions.kl_log_uniform`
            (exact, the default) or :func:`~pyro_bnn.distributions.kl_log_uniform_approximate` (as published).

    Source: Kingma, Salimans & Welling (2015), section 3; Molchanov, Ashukha & Vetrov (2017), section 4.1.
    """

    def __init__(self, kl: Callable[[Tensor], Tensor] = distributions.kl_log_uniform) -> None:
        super().__init__()
        self.kl = kl

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Sample the weight at the site ``name``; outside a guide's replay this raises ``ImproperPriorError``."""
        return sample(name, distributions.LogUniform(kl=self.kl), shape)


class AutomaticRelevance(nn.Module):
    r"""Gaussian weights that each have a precision of their own, fitted to the data,
    :math:`p(w_i) = \mathcal{N}(w_i; 0, 1/\tau_i)` with :math:`\tau` maximising the ELBO.

    Empirical Bayes, as :class:`LearnedNormal`, but :math:`\tau` is gone from the start: for a Gaussian posterior the
    best one is known, :math:`1/\tau_i = \theta_i^2 + \sigma_i^2`, which leaves the KL divergence
    :math:`\tfrac12 \log(1 + 1/\alpha_i)`. It prunes as :class:`LogUniform` does, and is proper for every
    :math:`\tau`: a weight of linear regression on orthogonal inputs is dropped where its maximum-likelihood value lies
    within one standard error of zero. It serves variational inference alone, since there is no prior to draw from
    before there is a posterior.

    Args:
        group: one precision per group (a unit with all its weights becomes irrelevant together) instead of per weight.

    Source: Tipping (2001); Kharitonov, Molchanov & Vetrov (2018), section 3, https://arxiv.org/abs/1811.00596.
    """

    def __init__(self, group: bool = False) -> None:
        super().__init__()
        self.group = group

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Sample the weight at the site ``name``; outside a guide's replay this raises ``ImproperPriorError``."""
        groups = group_shape(shape, group_dim) if self.group else None
        return sample(name, distributions.AutomaticRelevance(groups=groups), shape)
