"""Functions shared by the guides of group priors: weights with group scales, bounded units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import constraints

from pyro_bnn import distributions
from pyro_bnn.distributions.independent import base_distribution

from .families import Gaussian, as_event
from .latent import LatentSite, elementwise_support

__all__ = ["CappedGaussian", "capped_units", "group_log_alpha", "weights_with_real_scales"]


def weights_with_real_scales(sites: Mapping[str, LatentSite]) -> list[str]:
    """Return the weights whose group scales are real, not positive as those of a horseshoe."""
    weights = []
    for name, site in sites.items():
        weight = name.removesuffix(".scale")
        real = elementwise_support(site.support) is constraints.real
        if name.endswith(".scale") and real and f"{weight}.unit" in sites:
            weights.append(weight)
    return weights


def group_log_alpha(
    q: Mapping[str, dist.TorchDistribution], weights: Iterable[str]
) -> dict[str, Tensor]:
    r"""Return :math:`\log\alpha_i = \log(v_i / m_i^2)` of the Gaussian group scales.

    Args:
        q: the distribution of each site of a guide.
        weights: names of the weights with group scales.
    """
    log_alpha = {}
    for weight in weights:
        scale = base_distribution(q[f"{weight}.scale"])
        log_alpha[weight] = distributions.log_alpha(
            scale.mean, scale.variance.log(), offset=distributions.MEAN_OFFSET
        )
    return log_alpha


def capped_units(
    guide: str,
    sites: Mapping[str, LatentSite],
    weights: Sequence[str],
    init_scale: float,
    max_scale: Mapping[str, float] | None,
) -> dict[str, CappedGaussian]:
    """Return the families of the units whose standard deviation is bounded, by site.

    Args:
        guide: name of the guide, for the error.
        sites: the latent sites of the model.
        weights: names of the weights with group scales.
        init_scale: initial standard deviation.
        max_scale: bound of the standard deviation, by weight.

    Raises:
        ValueError: if a bound is for a weight without group scales, or not above ``init_scale``.
    """
    if max_scale is None:
        return {}
    unknown = sorted(set(max_scale) - set(weights))
    if unknown:
        raise ValueError(
            f"{guide}: max_scale names {', '.join(unknown)}; the weights with group scales are "
            f"{', '.join(weights)}"
        )
    families = {}
    for weight, cap in max_scale.items():
        if not init_scale < cap:
            raise ValueError(
                f"{guide}: the standard deviation of {weight!r} starts at {init_scale:.3g}, which "
                f"is not below its cap {cap}"
            )
        unit = f"{weight}.unit"
        families[unit] = CappedGaussian(sites[unit].initial, init_scale, cap)
    return families


class CappedGaussian(Gaussian):
    r"""Independent Gaussians whose standard deviation is smoothly bounded.

    With s the exponential of ``log_scale`` and c the bound, :math:`\sigma = 1 / (1/s + 1/c)`.

    Args:
        initial: initial value of the mean.
        init_scale: initial value of :math:`\sigma`, below the bound.
        cap: the bound c.
    """

    def __init__(self, initial: Tensor, init_scale: float, cap: float) -> None:
        super().__init__(initial, 1 / (1 / init_scale - 1 / cap))
        self.cap = cap

    def forward(self) -> dist.TorchDistribution:
        """Return q as one event."""
        scale = 1 / ((-self.log_scale).exp() + 1 / self.cap)
        return as_event(dist.Normal(self.loc, scale, validate_args=False))
