"""Dropout as variational inference: binary masks, and Gaussian noise with fixed or learned rate."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from typing import Literal

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_bnn import distributions
from pyro_bnn.network import BayesianNet

from .factorized import Factorized
from .families import as_event
from .latent import LatentSite, latent_sites, require_real_sites

__all__ = ["BernoulliDropout", "GaussianDropout"]


class BernoulliDropout(Factorized):
    r"""Binary dropout: every input unit of a layer is dropped with probability p.

    .. math:: q(w_{\cdot i}) = p\,\delta(0) + (1 - p)\,\delta(\theta_{\cdot i})

    All weights of a unit are dropped together. A weight is 0 or :math:`\theta`, its mean
    :math:`(1 - p)\theta`: there is no rescaling by :math:`1/(1 - p)`. Under a Gaussian prior the KL
    divergence is an L2 penalty, :math:`(1-p)\lVert\theta\rVert^2 / 2s^2` up to a constant: dropout
    with weight decay is variational inference. With :func:`~pyro_bnn.local_reparameterization`
    every example has a mask of its own, as in ordinary dropout.

    Args:
        model: a ``BayesianNet`` under a Gaussian prior.
        rate: the probability p of being dropped, for all weights or by patterns for their names:
            ``{"fc1.*": 0.2, "*": 0.5}``. The first pattern that matches counts; a weight that none
            matches is never dropped.

    Raises:
        ValueError: if a rate is outside [0, 1), if a pattern matches no weight, or if the model has
            positive sites.

    Source: Gal & Ghahramani (2016), https://arxiv.org/abs/1506.02142.
    """

    def __init__(self, model: BayesianNet, rate: float | Mapping[str, float] = 0.5) -> None:
        if not isinstance(rate, Mapping):
            rate = {"*": rate}
        sites = latent_sites("BernoulliDropout", model)
        require_real_sites("BernoulliDropout", sites)
        for pattern in rate:
            if not fnmatch.filter(sites, pattern):
                raise ValueError(
                    f"BernoulliDropout: the rate for {pattern!r} matches no weight; the weights "
                    f"are {', '.join(sites)}"
                )
        families = {}
        for name, site in sites.items():
            families[name] = BinaryNoise(site, _rate_of(name, rate))
        super().__init__(families)


def _rate_of(name: str, rates: Mapping[str, float]) -> float:
    """Return the rate of the first pattern that matches a name, zero if none does."""
    for pattern, rate in rates.items():
        if fnmatch.fnmatchcase(name, pattern):
            if not 0 <= rate < 1:
                raise ValueError(
                    f"BernoulliDropout: expected a rate in [0, 1) for {name!r}, got {rate}"
                )
            return rate
    return 0.0


class BinaryNoise(nn.Module):
    r"""Two point masses, at zero and at :math:`\theta`, the parameter ``loc``.

    Args:
        site: the weight.
        rate: the probability of zero.
    """

    def __init__(self, site: LatentSite, rate: float) -> None:
        super().__init__()
        self.loc = nn.Parameter(site.initial.clone())
        self.rate = rate
        self.group_dim = site.group_dim

    def forward(self) -> dist.TorchDistribution:
        """Return q as one event."""
        return distributions.BernoulliDropout(self.loc, self.rate, self.group_dim)


class GaussianDropout(Factorized):
    r"""Multiplicative Gaussian noise, to be used under the log-uniform prior.

    .. math:: q(w) = \mathcal{N}(w; \theta, \alpha\theta^2)

    The KL divergence depends on :math:`\alpha` alone. So with :math:`\alpha` fixed, training is
    Gaussian dropout and nothing else; with :math:`\alpha` learned, it is variational dropout.
    :math:`\alpha = p/(1-p)` has the mean and variance of binary dropout of rate p.

    Args:
        model: a ``BayesianNet``.
        alpha: the value of :math:`\alpha`, or its initial value if it is learned.
        learn: ``None`` for a fixed :math:`\alpha`; otherwise one :math:`\alpha` is learned per
            ``"weight"``, per input ``"unit"`` or per ``"layer"``.
        cap: keep :math:`\alpha \le 1`, as Kingma et al. do. The likelihood is then well behaved,
            but no weight is ever dropped entirely.

    Raises:
        ValueError: if alpha is not above zero, or not below the cap, or if ``learn`` is unknown.

    Source: Kingma, Salimans & Welling (2015), section 3, https://arxiv.org/abs/1506.02557.
    """

    def __init__(
        self,
        model: BayesianNet,
        alpha: float = 0.25,
        learn: Literal["weight", "unit", "layer"] | None = None,
        cap: bool = False,
    ) -> None:
        if not 0 < alpha < math.inf:
            raise ValueError(f"GaussianDropout: expected alpha above 0, got {alpha}")
        if cap and not alpha < 1:
            raise ValueError(
                f"GaussianDropout: expected alpha above 0 and below its cap 1, got {alpha}"
            )
        if learn not in (None, "weight", "unit", "layer"):
            raise ValueError(
                "GaussianDropout: expected learn to be 'weight', 'unit', 'layer' or None, "
                f"got {learn!r}"
            )
        sites = latent_sites("GaussianDropout", model)
        require_real_sites("GaussianDropout", sites)
        families = {}
        for name, site in sites.items():
            families[name] = MultiplicativeNoise(site, alpha, learn, cap)
        super().__init__(families)

    @torch.no_grad()
    def log_alpha(self) -> dict[str, Tensor]:
        r"""Return :math:`\log\alpha` of every weight tensor, per weight, unit or layer."""
        log_alpha = {}
        for name, family in self.families().items():
            assert isinstance(family, MultiplicativeNoise)
            log_alpha[name] = family.log_alpha()
        return log_alpha


class MultiplicativeNoise(nn.Module):
    r"""The posterior of one weight tensor under :class:`GaussianDropout`.

    :math:`\theta` is the parameter ``loc``; ``raw_alpha`` is a parameter if :math:`\alpha` is
    learned, else a buffer. With the cap, :math:`\alpha` is the sigmoid of ``raw_alpha``, without it
    the exponential.

    Args:
        site: the weight.
        alpha: initial value of :math:`\alpha`.
        learn: as in :class:`GaussianDropout`.
        cap: as in :class:`GaussianDropout`.
    """

    raw_alpha: Tensor

    def __init__(self, site: LatentSite, alpha: float, learn: str | None, cap: bool) -> None:
        super().__init__()
        self.cap = cap
        self.loc = nn.Parameter(site.initial.clone())
        raw = math.log(alpha)
        if cap:
            raw = math.log(alpha / (1 - alpha))
        raw_alpha = site.initial.new_full(_alpha_shape(site, learn), raw)
        if learn:
            self.raw_alpha = nn.Parameter(raw_alpha)
        else:
            self.register_buffer("raw_alpha", raw_alpha)

    def log_alpha(self) -> Tensor:
        r"""Return :math:`\log\alpha`."""
        if self.cap:
            return F.logsigmoid(self.raw_alpha)
        return self.raw_alpha

    def forward(self) -> dist.TorchDistribution:
        """Return q as one event."""
        q = distributions.GaussianDropout(self.loc, self.log_alpha(), validate_args=False)
        return as_event(q)


def _alpha_shape(site: LatentSite, learn: str | None) -> list[int]:
    """Return the shape of alpha, which broadcasts against the weight."""
    shape = list(site.initial.shape)
    if learn == "weight":
        return shape
    alpha_shape = [1] * len(shape)
    if learn == "unit" and site.group_dim is not None:
        alpha_shape[site.group_dim] = shape[site.group_dim]
    return alpha_shape
