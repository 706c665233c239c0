"""Priors over the weights of a network, each a small Pyro program.

A prior is called as ``prior(name, shape, group_dim)``; it draws its sites with :func:`pyro.sample` and returns the
weight. Any function of that signature is a prior. ``group_dim`` is the axis whose indices a group prior keeps or drops
together: the input units of a dense layer, the output channels of a convolution, ``None`` where there is no such axis
(then every weight is a group of its own).

Scale mixtures are written non-centred, :math:`w = \\tilde w\\, z\\, s`, with the sites ``NAME.unit``
(:math:`\\tilde w`, standard normal), ``NAME.scale`` (:math:`z`, one per group) and ``NAME.global_scale`` (:math:`s`),
the product being reported as ``NAME``. A posterior that factorises over these sites is
:math:`q(z)\\,q(w \\mid z) = q(z)\\,\\mathcal{N}(w; z\\mu, z^2\\sigma^2)`, that of Louizos, Ullrich & Welling (2017),
https://arxiv.org/abs/1705.08665.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from . import distributions

__all__ = [
    "AutomaticRelevance",
    "Elementwise",
    "GaussianMixture",
    "Horseshoe",
    "InformationBottleneck",
    "LearnedNormal",
    "LogUniform",
    "Normal",
    "NormalJeffreys",
    "Prior",
    "TruncatedLogUniform",
]

Prior = Callable[[str, torch.Size, int | None], Tensor]


def _positive(owner: str, argument: str, value: float | Tensor) -> Tensor:
    """Return the value as a tensor, refusing what is not above zero."""
    tensor = torch.as_tensor(value, dtype=torch.get_default_dtype()) if not isinstance(value, Tensor) else value
    if not tensor.is_meta and not bool((tensor > 0).all()):
        raise ValueError(f"{owner}: expected {argument} above zero, got {value}")
    return tensor


def _sample(name: str, distribution: dist.TorchDistribution, shape: Sequence[int]) -> Tensor:
    """Sample one tensor of independent elements as one event."""
    return pyro.sample(name, distribution.expand(torch.Size(shape)).to_event(len(shape)))


def _group_shape(shape: Sequence[int], group_dim: int | None) -> list[int]:
    """Return the shape of one scale per group: the weight's own with every axis but ``group_dim`` of size one."""
    return [size if group_dim in (None, axis) else 1 for axis, size in enumerate(shape)]


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
        if not isinstance(distribution, torch.distributions.Distribution) or distribution.event_shape:
            raise TypeError(
                f"Elementwise: expected a distribution over single weights (event shape ()), got {distribution}"
            )
        self.distribution = _as_pyro(distribution)
        for key, value in _parameters(self.distribution).items():
            self.register_buffer(key, torch.as_tensor(value))  # they follow the network to its device and dtype

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Sample the weight at the site ``name``."""
        parameters = _parameters(self.distribution)
        if not parameters:
            return _sample(name, self.distribution, shape)
        buffers = {key: getattr(self, key) for key in parameters}
        return _sample(name, type(self.distribution)(**buffers, validate_args=False), shape)


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
        self.register_buffer("scale", _positive("Normal", "scale", scale))
        self.register_buffer("loc", torch.as_tensor(loc, dtype=self.scale.dtype))

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Sample the weight at the site ``name``."""
        return _sample(name, dist.Normal(self.loc, self.scale, validate_args=False), shape)


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
        self.log_scale = nn.Parameter(_positive("LearnedNormal", "scale", scale).log())

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Sample the weight at the site ``name``."""
        return _sample(name, dist.Normal(0.0, self.log_scale.exp(), validate_args=False), shape)


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
        return _sample(name, distributions.LogUniform(kl=self.kl), shape)


class NormalJeffreys(nn.Module):
    r"""Group-sparse weights, :math:`w = \tilde w z`, :math:`\tilde w \sim \mathcal{N}(0, 1)`,
    :math:`p(z) \propto 1/|z|` per group.

    Sites ``NAME.scale`` (z, real: its sign carries no meaning) and ``NAME.unit``. The prior of z is improper, as in
    :class:`LogUniform`.

    Args:
        kl: the KL divergence of z as a function of its :math:`\log\alpha`; as for :class:`LogUniform`.

    Source: Louizos, Ullrich & Welling (2017), section 4.1 (BC-GNJ).
    """

    def __init__(self, kl: Callable[[Tensor], Tensor] = distributions.kl_log_uniform) -> None:
        super().__init__()
        self.kl = kl

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Sample scale and unit and report their product as the site ``name``."""
        z = _sample(f"{name}.scale", distributions.LogUniform(kl=self.kl), _group_shape(shape, group_dim))
        return pyro.deterministic(name, _standard_normal(name, shape, z) * z)


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
        groups = _group_shape(shape, group_dim) if self.group else None
        return _sample(name, distributions.AutomaticRelevance(groups=groups), shape)


class InformationBottleneck(nn.Module):
    r"""Units that carry no more information than the labels need, :math:`w = \theta z`,
    :math:`p(z) = \mathcal{N}(0, 1/\tau)` with :math:`\tau` maximising the ELBO.

    One z per group, the site ``NAME.scale``; :math:`\theta`, the site ``NAME.unit``, has a flat prior and is learned as
    usual. With :math:`q(z) = \mathcal{N}(m, v)` the bound on the mutual information between the unit and the input is
    the KL divergence of automatic relevance determination, :math:`\tfrac12\log(1 + m^2/v)`.

    Args:
        weight: of this divergence; 1 for Bayes' rule. The paper multiplies it by the number H W of positions of a
            convolution's output, as if each had a z of its own, and by a trade-off.

    Raises:
        ValueError: a weight that is not positive.

    Source: Dai, Zhu, Guo & Wipf (2018), section 3 (VIBNet), https://arxiv.org/abs/1802.10399.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        _positive("InformationBottleneck", "weight", weight)
        self.weight = weight

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Sample scale and unit and report their product as the site ``name``."""
        prior = distributions.AutomaticRelevance(weight=self.weight)
        z = _sample(f"{name}.scale", prior, _group_shape(shape, group_dim))
        return pyro.deterministic(name, _sample(f"{name}.unit", distributions.Flat(), shape) * z)


class TruncatedLogUniform(nn.Module):
    r"""Units under multiplicative noise between two bounds, :math:`w = \theta z`,
    :math:`p(z) \propto 1/z` for :math:`e^a \le z \le e^b`.

    A proper relative of :class:`NormalJeffreys`. One z per group, the site ``NAME.scale``; :math:`\theta`, the site
    ``NAME.unit``, has a flat prior and is learned as usual.

    Args:
        low: a.
        high: b; at 0 noise only ever weakens a unit.
        unit_scale: give :math:`\theta` the prior :math:`\mathcal{N}(0, s^2)` instead of the flat one: weight decay,
            and a prior that can be sampled.

    Raises:
        ValueError: bounds that are not in order, a ``unit_scale`` that is not positive.

    Source: Neklyudov, Molchanov, Ashukha & Vetrov (2017), section 3 (structured Bayesian pruning),
    https://arxiv.org/abs/1705.07283.
    """

    low: Tensor
    high: Tensor
    unit_scale: Tensor | None

    def __init__(self, low: float = -20.0, high: float = 0.0, unit_scale: float | None = None) -> None:
        super().__init__()
        if not low < high:
            raise ValueError(f"TruncatedLogUniform: expected low < high, got {low} and {high}")
        self.register_buffer("low", torch.as_tensor(low, dtype=torch.get_default_dtype()))
        self.register_buffer("high", torch.as_tensor(high, dtype=torch.get_default_dtype()))
        given = None if unit_scale is None else _positive("TruncatedLogUniform", "unit_scale", unit_scale)
        self.register_buffer("unit_scale", given)

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Sample scale and unit and report their product as the site ``name``."""
        prior = distributions.TruncatedLogUniform(self.low, self.high, validate_args=False)
        z = _sample_from(f"{name}.scale", prior, _group_shape(shape, group_dim), self.high.exp())
        if self.unit_scale is None:
            return pyro.deterministic(name, _sample(f"{name}.unit", distributions.Flat(), shape) * z)
        unit = dist.Normal(torch.zeros_like(self.unit_scale), self.unit_scale, validate_args=False)
        return pyro.deterministic(name, _sample(f"{name}.unit", unit, shape) * z)


class Horseshoe(nn.Module):
    r"""Horseshoe weights, :math:`w = \tilde w z s`, :math:`\tilde w \sim \mathcal{N}(0, 1)`, :math:`z \sim C^+(0, 1)`,
    :math:`s \sim C^+(0, \tau)`.

    One z per group and one s per weight tensor. With a slab of width c the scale :math:`\lambda = zs` is replaced by
    :math:`\tilde\lambda = c\lambda / \sqrt{c^2 + \lambda^2}`, which no weight exceeds by much: the regularised
    horseshoe, the form that Hamiltonian samplers like.

    Args:
        global_scale: :math:`\tau`.
        slab: c, or ``None`` for the plain horseshoe.
        group: ``True`` for one scale per group, ``None`` for one per weight.
        decomposed: write each half-Cauchy as :math:`\sqrt{ab}`, a Gamma and an inverse Gamma variable (sites
            ``NAME.scale.gamma``, ``NAME.scale.inverse_gamma`` and likewise for ``NAME.global_scale``), whose KL
            divergences to log-normals are closed.

    Raises:
        ValueError: a scale or a slab that is not positive.

    Source: Carvalho, Polson & Scott (2010); Piironen & Vehtari (2017), equation 2.8, for the slab; Louizos, Ullrich &
    Welling (2017), section 4.2 (BC-GHS) for the decomposition.
    """

    global_scale: Tensor
    slab: Tensor | None

    def __init__(
        self, global_scale: float = 1.0, slab: float | None = None, group: bool | None = True, decomposed: bool = False
    ) -> None:
        super().__init__()
        self.register_buffer("global_scale", _positive("Horseshoe", "global_scale", global_scale))
        self.register_buffer("slab", None if slab is None else _positive("Horseshoe", "slab", slab))
        self.group, self.decomposed = group, decomposed

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Sample the scales and the unit and report the product as the site ``name``."""
        group_shape = _group_shape(shape, group_dim if self.group else None)
        s = self._half_cauchy(f"{name}.global_scale", self.global_scale, [1] * len(shape))
        z = self._half_cauchy(f"{name}.scale", torch.ones_like(self.global_scale), group_shape)
        if self.slab is None:
            weight = _standard_normal(name, shape, s[0])
            for factor in (*z, *s):
                weight = weight * factor
            return pyro.deterministic(name, weight)
        scale = regularised(math.prod((*z[1:], *s), start=z[0]), self.slab)
        return pyro.deterministic(name, _standard_normal(name, shape, scale) * scale)

    def _half_cauchy(self, name: str, scale: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
        """Sample z ~ C+(0, scale) and return it as factors: (z,) or, decomposed, (sqrt a, sqrt b)."""
        if not self.decomposed:
            return (_sample(name, dist.HalfCauchy(scale, validate_args=False), shape),)
        # a starts where its prior has it, scale^2 (else its KL, of order a / scale^2, explodes); b so that sqrt(ab)
        # starts at one.
        gamma, inverse_gamma = distributions.half_cauchy_as_product(scale)
        a = _sample_from(f"{name}.gamma", gamma, shape, scale.square())
        b = _sample_from(f"{name}.inverse_gamma", inverse_gamma, shape, scale.square().reciprocal())
        return a.sqrt(), b.sqrt()


def regularised(scale: Tensor, slab: Tensor) -> Tensor:
    r"""Return the scale bounded by the slab, :math:`c\lambda / \sqrt{c^2 + \lambda^2}`."""
    return slab * scale * (slab.square() + scale.square()).rsqrt()


def _sample_from(name: str, distribution: dist.TorchDistribution, shape: Sequence[int], initial: Tensor) -> Tensor:
    """Sample a tensor of independent elements and tell guides where to start."""
    fn = distribution.expand(torch.Size(shape)).to_event(len(shape))
    hint: Any = {"initial": initial.expand(torch.Size(shape))}
    return pyro.sample(name, fn, infer=hint)


def _standard_normal(name: str, shape: torch.Size, like: Tensor) -> Tensor:
    """Sample the standard normal site ``NAME.unit`` on the device and in the dtype of ``like``."""
    zero = torch.zeros((), dtype=like.dtype, device=like.device)
    return _sample(f"{name}.unit", dist.Normal(zero, zero + 1, validate_args=False), shape)


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
        self, scales: Sequence[float], probs: Sequence[float] | None = None, locs: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        probs, locs = probs or [1.0] * len(scales), locs or [0.0] * len(scales)
        if not len(scales) == len(probs) == len(locs) or not len(scales):
            raise ValueError(
                f"GaussianMixture: got {len(scales)} scales, {len(probs)} probs and {len(locs)} locs; "
                "expected one or more, of each as many"
            )
        dtype = torch.get_default_dtype()
        self.register_buffer("scales", _positive("GaussianMixture", "scales", torch.tensor(scales, dtype=dtype)))
        self.register_buffer("probs", _positive("GaussianMixture", "probs", torch.tensor(probs, dtype=dtype)))
        self.register_buffer("locs", torch.tensor(locs, dtype=dtype))

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Sample the weight at the site ``name``."""
        mixture = Mixture(
            dist.Categorical(self.probs, validate_args=False),
            dist.Normal(self.locs, self.scales, validate_args=False),
            validate_args=False,
        )
        return _sample(name, mixture, shape)


class Mixture(dist.MixtureSameFamily):
    """A mixture that says outright that it lives on the real line; guides and samplers ask."""

    support = constraints.real
