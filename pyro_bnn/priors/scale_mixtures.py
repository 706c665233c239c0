"""Priors of groups of weights: a weight is multiplied by the random scale of its group."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_bnn import distributions

from .sites import group_shape, positive, sample, sample_from, standard_normal

__all__ = [
    "Horseshoe",
    "InformationBottleneck",
    "NormalJeffreys",
    "TruncatedLogUniform",
    "regularized",
]


class NormalJeffreys(nn.Module):
    r"""Group-sparse weights, :math:`w = \tilde w z`, with one scale z per group.

    .. math:: \tilde w \sim \mathcal{N}(0, 1), \qquad p(z) \propto 1/|z|

    The sites are ``NAME.scale`` (z, real; its sign has no meaning) and ``NAME.unit``
    (:math:`\tilde w`). The prior of z is improper, as in :class:`LogUniform`.

    Args:
        kl: The KL divergence of z as a function of its :math:`\log\alpha`, as for
            :class:`LogUniform`.

    References:
        Louizos, Ullrich & Welling (2017), section 4.1 (BC-GNJ), https://arxiv.org/abs/1705.08665.
    """

    def __init__(self, kl: Callable[[Tensor], Tensor] = distributions.kl_log_uniform) -> None:
        super().__init__()
        self.kl = kl

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Draw scale and unit, and report their product as the site ``name``."""
        prior = distributions.LogUniform(kl=self.kl)
        z = sample(f"{name}.scale", prior, group_shape(shape, group_dim))
        return pyro.deterministic(name, standard_normal(name, shape, z) * z)


class InformationBottleneck(nn.Module):
    r"""Units that carry no more information than the labels need, :math:`w = \theta z`.

    .. math:: p(z) = \mathcal{N}(0, 1/\tau), \qquad \tau \text{ maximizes the ELBO}

    There is one z per group, the site ``NAME.scale``. The site ``NAME.unit`` (:math:`\theta`) has a
    flat prior and is learned as an ordinary weight. With :math:`q(z) = \mathcal{N}(m, v)` the bound
    on the mutual information between the unit and the input is the KL divergence of automatic
    relevance determination, :math:`\tfrac12\log(1 + m^2/v)`.

    Args:
        weight: A factor of this divergence; 1 for Bayes' rule. The paper multiplies it by the
            number H W of positions of a convolution's output, as if each had its own z, and by a
            trade-off.

    Raises:
        ValueError: If ``weight`` is not positive.

    References:
        Dai, Zhu, Guo & Wipf (2018), section 3 (VIBNet), https://arxiv.org/abs/1802.10399.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        positive("InformationBottleneck", "weight", weight)
        self.weight = weight

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Draw scale and unit, and report their product as the site ``name``."""
        prior = distributions.AutomaticRelevance(weight=self.weight)
        z = sample(f"{name}.scale", prior, group_shape(shape, group_dim))
        return pyro.deterministic(name, sample(f"{name}.unit", distributions.Flat(), shape) * z)


class TruncatedLogUniform(nn.Module):
    r"""Units under multiplicative noise between two bounds, :math:`w = \theta z`.

    .. math:: p(z) \propto 1/z, \qquad e^a \le z \le e^b

    This is a proper relative of :class:`NormalJeffreys`. There is one z per group, the site
    ``NAME.scale``. The site ``NAME.unit`` (:math:`\theta`) has a flat prior by default and is
    learned as an ordinary weight.

    Args:
        low: a.
        high: b; at 0 the noise only ever weakens a unit.
        unit_scale: The standard deviation s of a prior :math:`\mathcal{N}(0, s^2)` of
            :math:`\theta`, instead of the flat one: weight decay, and a prior with draws.

    Raises:
        ValueError: If ``low`` is not less than ``high``, or ``unit_scale`` is not positive.

    References:
        Neklyudov, Molchanov, Ashukha & Vetrov (2017), section 3 (structured Bayesian pruning),
        https://arxiv.org/abs/1705.07283.
    """

    low: Tensor
    high: Tensor
    unit_scale: Tensor | None

    def __init__(
        self, low: float = -20.0, high: float = 0.0, unit_scale: float | None = None
    ) -> None:
        super().__init__()
        if not low < high:
            raise ValueError(f"TruncatedLogUniform: expected low < high, got {low} and {high}")
        dtype = torch.get_default_dtype()
        self.register_buffer("low", torch.as_tensor(low, dtype=dtype))
        self.register_buffer("high", torch.as_tensor(high, dtype=dtype))
        self.register_buffer("unit_scale", None)
        if unit_scale is not None:
            self.unit_scale = positive("TruncatedLogUniform", "unit_scale", unit_scale)

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Draw scale and unit, and report their product as the site ``name``."""
        prior = distributions.TruncatedLogUniform(self.low, self.high, validate_args=False)
        z = sample_from(f"{name}.scale", prior, group_shape(shape, group_dim), self.high.exp())
        return pyro.deterministic(name, sample(f"{name}.unit", self._unit_prior(), shape) * z)

    def _unit_prior(self) -> dist.TorchDistribution:
        if self.unit_scale is None:
            return distributions.Flat()
        return dist.Normal(torch.zeros_like(self.unit_scale), self.unit_scale, validate_args=False)


class Horseshoe(nn.Module):
    r"""Horseshoe weights, :math:`w = \tilde w z s`, with half-Cauchy scales.

    .. math:: \tilde w \sim \mathcal{N}(0, 1), \qquad z \sim C^+(0, 1), \qquad s \sim C^+(0, \tau)

    There is one z per group and one s per weight tensor. With a slab of width c, the scale
    :math:`\lambda = zs` is replaced by
    :math:`\tilde\lambda = c\lambda / \sqrt{c^2 + \lambda^2} \le c`. This regularized horseshoe is
    the form that Hamiltonian samplers explore well.

    Args:
        global_scale: :math:`\tau`.
        slab: The width c of the slab, or ``None`` for the plain horseshoe.
        group: ``True`` for one scale per group, ``None`` for one per weight.
        decomposed: Write each half-Cauchy variable as :math:`\sqrt{ab}` with a Gamma and an inverse
            Gamma variable, whose KL divergences from log-normal distributions are closed. The sites
            are then ``NAME.scale.gamma`` and ``NAME.scale.inverse_gamma``, and likewise for
            ``NAME.global_scale``.

    Raises:
        ValueError: If ``global_scale`` or ``slab`` is not positive.

    References:
        Carvalho, Polson & Scott (2010); Piironen & Vehtari (2017), equation 2.8, for the slab;
        Louizos, Ullrich & Welling (2017), section 4.2 (BC-GHS), for the decomposition.
    """

    global_scale: Tensor
    slab: Tensor | None

    def __init__(
        self,
        global_scale: float = 1.0,
        slab: float | None = None,
        group: bool | None = True,
        decomposed: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("global_scale", positive("Horseshoe", "global_scale", global_scale))
        self.register_buffer("slab", None)
        if slab is not None:
            self.slab = positive("Horseshoe", "slab", slab)
        self.group, self.decomposed = group, decomposed

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Draw the scales and the unit, and report the product as the site ``name``."""
        groups = group_shape(shape, group_dim if self.group else None)
        s = self._half_cauchy(f"{name}.global_scale", self.global_scale, [1] * len(shape))
        z = self._half_cauchy(f"{name}.scale", torch.ones_like(self.global_scale), groups)
        if self.slab is None:
            # one factor at a time: a product with a group scale can stay deferred
            weight = standard_normal(name, shape, s[0])
            for factor in (*z, *s):
                weight = weight * factor
            return pyro.deterministic(name, weight)
        scale = regularized(math.prod((*z[1:], *s), start=z[0]), self.slab)
        return pyro.deterministic(name, standard_normal(name, shape, scale) * scale)

    def _half_cauchy(self, name: str, scale: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
        """Draw z ~ C+(0, scale); return its factors: (z,) or, decomposed, (sqrt a, sqrt b)."""
        if not self.decomposed:
            return (sample(name, dist.HalfCauchy(scale, validate_args=False), shape),)
        # a starts at the scale of its prior, scale^2: elsewhere its KL, of order a / scale^2,
        # explodes. b starts where sqrt(ab) is one.
        gamma, inverse_gamma = distributions.half_cauchy_as_product(scale)
        a = sample_from(f"{name}.gamma", gamma, shape, scale.square())
        b = sample_from(f"{name}.inverse_gamma", inverse_gamma, shape, scale.square().reciprocal())
        return a.sqrt(), b.sqrt()


def regularized(scale: Tensor, slab: Tensor) -> Tensor:
    r"""Return a scale bounded by the slab, :math:`c\lambda / \sqrt{c^2 + \lambda^2}`."""
    return slab * scale * (slab.square() + scale.square()).rsqrt()
