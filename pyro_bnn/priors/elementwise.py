"""Priors of independent weights: of a known distribution, fitted to the data, or improper."""

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
    r"""Independent weights of any distribution, :math:`p(w) = \prod_i p(w_i)`.

    Args:
        distribution: A distribution over one real number (event shape ``()``). Its parameters
            broadcast against the weight.

    Raises:
        TypeError: If ``distribution`` is not a distribution over single numbers, or cannot be
            rebuilt from its parameters.

    Example:
        >>> prior = Elementwise(dist.StudentT(3.0, 0.0, 0.1))
        >>> prior("w", torch.Size([2, 3]), 1).shape
        torch.Size([2, 3])
    """

    def __init__(self, distribution: torch.distributions.Distribution) -> None:
        super().__init__()
        is_distribution = isinstance(distribution, torch.distributions.Distribution)
        if not is_distribution or distribution.event_shape:
            raise TypeError(
                "Elementwise: expected a distribution over single weights (event shape ()), "
                f"got {distribution}"
            )
        self.distribution = _as_pyro(distribution)
        # as buffers the parameters follow the network to its device and dtype
        for key, value in _parameters(self.distribution).items():
            self.register_buffer(key, torch.as_tensor(value))

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Draw the weight at the site ``name``."""
        keys = _parameters(self.distribution).keys()
        if not keys:
            return sample(name, self.distribution, shape)
        buffers = {key: getattr(self, key) for key in keys}
        return sample(name, type(self.distribution)(**buffers, validate_args=False), shape)


def _as_pyro(distribution: torch.distributions.Distribution) -> dist.TorchDistribution:
    """Return Pyro's version of a distribution of torch: that of the same name and parameters."""
    if isinstance(distribution, dist.torch_distribution.TorchDistributionMixin):
        return distribution
    pyro_class = getattr(dist, type(distribution).__name__, None)
    parameters = _parameters(distribution)
    if pyro_class is None or not parameters:
        raise TypeError(
            "Elementwise: expected a distribution of Pyro, or one of torch that is described by "
            f"its parameters, got {distribution}; take the class of that name from "
            "pyro.distributions"
        )
    converted: dist.TorchDistribution = pyro_class(**parameters)
    return converted


def _parameters(distribution: torch.distributions.Distribution) -> dict[str, Tensor]:
    """Return the parameters that a distribution was made with.

    Of two parameterizations (probs and logits) these are the ones that the caller chose: they are
    in the instance's dictionary. The others are computed lazily, on access.
    """
    parameters = {}
    for key in distribution.arg_constraints:
        is_stored = key in distribution.__dict__
        is_property = type(inspect.getattr_static(type(distribution), key, None)) is property
        if is_stored or is_property:
            parameters[key] = getattr(distribution, key)
    return parameters


class Normal(nn.Module):
    r"""Gaussian weights, :math:`p(w) = \mathcal{N}(w; \mu, \sigma^2)`.

    Args:
        scale: :math:`\sigma`, a number or a tensor that broadcasts to the weight.
        loc: :math:`\mu`, likewise. Tensors of means and scales turn the posterior of one task
            into the prior of the next.

    Raises:
        ValueError: If a scale is not positive.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, scale: float | Tensor = 1.0, loc: float | Tensor = 0.0) -> None:
        super().__init__()
        self.register_buffer("scale", positive("Normal", "scale", scale))
        self.register_buffer("loc", torch.as_tensor(loc, dtype=self.scale.dtype))

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Draw the weight at the site ``name``."""
        return sample(name, dist.Normal(self.loc, self.scale, validate_args=False), shape)


class LearnedNormal(nn.Module):
    r"""Gaussian weights of a scale fitted to the data, :math:`p(w) = \mathcal{N}(w; 0, \sigma^2)`.

    This is empirical Bayes: :math:`\sigma` maximizes the ELBO. Every weight tensor has its own
    :math:`\sigma`, an ordinary parameter of the model.

    Args:
        scale: The initial :math:`\sigma`.

    Raises:
        ValueError: If ``scale`` is not positive.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(positive("LearnedNormal", "scale", scale).log())

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Draw the weight at the site ``name``."""
        return sample(name, dist.Normal(0.0, self.log_scale.exp(), validate_args=False), shape)


class GaussianMixture(nn.Module):
    r"""A mixture of Gaussians, :math:`p(w) = \sum_k \pi_k\, \mathcal{N}(w; \mu_k, \sigma_k^2)`.

    Two components at zero, one wide and one narrow, are the spike and slab of Bayes by backprop.

    Args:
        scales: :math:`\sigma_k`.
        probs: :math:`\pi_k` up to a common factor; equal by default.
        locs: :math:`\mu_k`; zero by default.

    Raises:
        ValueError: If a scale or a probability is not positive, or the lengths differ.

    References:
        Blundell et al. (2015), equation 7, https://arxiv.org/abs/1505.05424.
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
        probs = probs or [1.0] * len(scales)
        locs = locs or [0.0] * len(scales)
        if not scales or not len(scales) == len(probs) == len(locs):
            raise ValueError(
                "GaussianMixture: expected scales, probs and locs of the same length, at least 1; "
                f"got {len(scales)} scales, {len(probs)} probs and {len(locs)} locs"
            )
        dtype = torch.get_default_dtype()
        scale_tensor = torch.tensor(scales, dtype=dtype)
        prob_tensor = torch.tensor(probs, dtype=dtype)
        self.register_buffer("scales", positive("GaussianMixture", "scales", scale_tensor))
        self.register_buffer("probs", positive("GaussianMixture", "probs", prob_tensor))
        self.register_buffer("locs", torch.tensor(locs, dtype=dtype))

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Draw the weight at the site ``name``."""
        mixture = Mixture(
            dist.Categorical(self.probs, validate_args=False),
            dist.Normal(self.locs, self.scales, validate_args=False),
            validate_args=False,
        )
        return sample(name, mixture, shape)


class Mixture(dist.MixtureSameFamily):  # type: ignore[misc]
    """A mixture whose support is declared to be the real line, for guides and samplers."""

    support = constraints.real


class LogUniform(nn.Module):
    r"""The scale-free prior of variational dropout, :math:`p(w) \propto 1/|w|`.

    The prior is improper. It has a KL divergence from every Gaussian but no draws, so it serves
    variational inference alone.

    Args:
        kl: The KL divergence as a function of :math:`\log\alpha`:
            :func:`~pyro_bnn.distributions.kl_log_uniform` (exact, the default) or
            :func:`~pyro_bnn.distributions.kl_log_uniform_approximate` (as published).

    References:
        Kingma, Salimans & Welling (2015), section 3; Molchanov, Ashukha & Vetrov (2017),
        section 4.1.
    """

    def __init__(self, kl: Callable[[Tensor], Tensor] = distributions.kl_log_uniform) -> None:
        super().__init__()
        self.kl = kl

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Draw the weight at the site ``name``; only the value of a guide can answer it.

        Raises:
            ImproperPriorError: If the site is not replayed.
        """
        return sample(name, distributions.LogUniform(kl=self.kl), shape)


class AutomaticRelevance(nn.Module):
    r"""Gaussian weights with fitted precisions, :math:`p(w_i) = \mathcal{N}(w_i; 0, 1/\tau_i)`.

    This is empirical Bayes like :class:`LearnedNormal`, with a precision per weight or per group.
    The precisions need no parameters: for a Gaussian posterior the best one is known,
    :math:`1/\tau_i = \theta_i^2 + \sigma_i^2`, and the KL divergence becomes
    :math:`\tfrac12 \log(1 + 1/\alpha_i)`.

    The prior prunes like :class:`LogUniform` but is proper for every :math:`\tau`. In a linear
    regression on orthogonal inputs it removes a weight whose maximum-likelihood value lies within
    one standard error of zero. It serves variational inference alone, because there are no draws
    before there is a posterior.

    Args:
        group: Use one precision per group, so that a unit with all its weights becomes irrelevant
            as a whole, instead of one per weight.

    References:
        Tipping (2001); Kharitonov, Molchanov & Vetrov (2018), section 3,
        https://arxiv.org/abs/1811.00596.
    """

    def __init__(self, group: bool = False) -> None:
        super().__init__()
        self.group = group

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Draw the weight at the site ``name``; only the value of a guide can answer it.

        Raises:
            ImproperPriorError: If the site is not replayed.
        """
        groups = group_shape(shape, group_dim) if self.group else None
        return sample(name, distributions.AutomaticRelevance(groups=groups), shape)
