"""Dropout as variational inference: binary masks, and Gaussian noise with a fixed or a learned rate."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_bnn import distributions
from pyro_bnn.network import BayesianNet

from .families import Factorized, Latent, real_sites

__all__ = ["BernoulliDropout", "GaussianDropout"]


class BernoulliDropout(Factorized):
    r"""Binary dropout: every input unit of a layer is dropped with probability p, all its weights together.

    .. math:: q(w_{\cdot i}) = p\,\delta(0) + (1 - p)\,\delta(\theta_{\cdot i})

    A weight is 0 or :math:`\theta`, its mean :math:`(1 - p)\theta`: there is no rescaling by :math:`1/(1 - p)`. Under a
    Gaussian prior the KL divergence is an L2 penalty, :math:`(1-p)\lVert\theta\rVert^2 / 2s^2` up to a
    constant: dropout with weight decay is variational inference. With :func:`~pyro_bnn.local_reparameterization` each
    example has a mask of its own, as usual.

    Args:
        model: a ``BayesianNet`` under a Gaussian prior.
        rate: the probability p of being dropped, for all weights, or by patterns for their names of which the first
            that fits counts: ``{"fc1.*": 0.2, "*": 0.5}``. What no pattern fits is never dropped.

    Raises:
        ValueError: a rate outside [0, 1), or a pattern that fits no weight; a model with positive sites.

    Source: Gal & Ghahramani (2016), https://arxiv.org/abs/1506.02142.
    """

    def __init__(self, model: BayesianNet, rate: float | Mapping[str, float] = 0.5) -> None:
        rates = rate if isinstance(rate, Mapping) else {"*": rate}
        sites = real_sites("BernoulliDropout", model)
        for pattern in rates:
            if not fnmatch.filter(sites, pattern):
                raise ValueError(
                    f"BernoulliDropout: the rate for {pattern!r} fits no weight; there are {', '.join(sites)}"
                )
        families = {}
        for name, site in sites.items():
            p = next((p for pattern, p in rates.items() if fnmatch.fnmatchcase(name, pattern)), 0.0)
            if not 0 <= p < 1:
                raise ValueError(
                    f"BernoulliDropout: expected a rate in [0, 1) for {name!r}, got {p}"
                )
            families[name] = BinaryNoise(site, p)
        super().__init__(families)


class BinaryNoise(nn.Module):
    """Point masses at zero and at ``loc``."""

    def __init__(self, site: Latent, rate: float) -> None:
        super().__init__()
        self.loc = nn.Parameter(site.initial.clone())
        self.rate, self.group_dim = rate, site.group_dim

    def forward(self) -> torch.distributions.Distribution:
        """Return q as one event."""
        return distributions.BernoulliDropout(self.loc, self.rate, self.group_dim)


class GaussianDropout(Factorized):
    r"""Multiplicative Gaussian noise, :math:`q(w) = \mathcal{N}(w; \theta, \alpha\theta^2)`, under the log-uniform
    prior.

    The KL divergence depends on :math:`\alpha` alone, so with :math:`\alpha` fixed training is Gaussian dropout and
    nothing else; with :math:`\alpha` learned it is variational dropout. :math:`\alpha = p/(1-p)` has the mean and
    variance of binary dropout of rate p.

    Args:
        model: a ``BayesianNet``.
        alpha: its (initial) value.
        learn: ``None`` to hold it fixed, or one alpha per ``"weight"``, per input ``"unit"`` or per ``"layer"``.
        cap: keep :math:`\alpha \le 1`, as Kingma et al. do (the likelihood is then well behaved, but nothing is ever
            dropped entirely).

    Raises:
        ValueError: alpha not above zero, or above the cap; an unknown ``learn``.

    Source: Kingma, Salimans & Welling (2015), section 3, https://arxiv.org/abs/1506.02557.
    """

    def __init__(
        self,
        model: BayesianNet,
        alpha: float = 0.25,
        learn: Literal["weight", "unit", "layer"] | None = None,
        cap: bool = False,
    ) -> None:
        if not 0 < alpha < (1 if cap else math.inf):
            raise ValueError(
                f"GaussianDropout: expected alpha above 0{' and below its cap 1' if cap else ''}, got {alpha}"
            )
        if learn not in (None, "weight", "unit", "layer"):
            raise ValueError(
                f"GaussianDropout: expected learn to be 'weight', 'unit', 'layer' or None, got {learn!r}"
            )
        sites = real_sites("GaussianDropout", model)
        super().__init__(
            {name: MultiplicativeNoise(site, alpha, learn, cap) for name, site in sites.items()}
        )

    @torch.no_grad()
    def log_alpha(self) -> dict[str, Tensor]:
        """Return log alpha of every weight tensor, one number for each weight, unit or layer."""
        return {name: family.log_alpha() for name, family in self.families().items()}


class MultiplicativeNoise(nn.Module):
    """The posterior of one weight tensor: ``loc``, and ``raw_alpha`` (learned, or a buffer where alpha is fixed)."""

    def __init__(self, site: Latent, alpha: float, learn: str | None, cap: bool) -> None:
        super().__init__()
        weight = site.initial
        shape = {
            "weight": list(weight.shape),
            "unit": [
                size if axis == site.group_dim else 1 for axis, size in enumerate(weight.shape)
            ],
        }.get(learn or "layer", [1] * weight.dim())
        # with the cap, alpha = sigmoid(raw) < 1; without, alpha = exp(raw)
        raw = weight.new_full(shape, math.log(alpha / (1 - alpha)) if cap else math.log(alpha))
        self.loc, self.cap = nn.Parameter(weight.clone()), cap
        if learn:
            self.raw_alpha = nn.Parameter(raw)
        else:
            self.register_buffer("raw_alpha", raw)

    def log_alpha(self) -> Tensor:
        """Return log alpha."""
        return F.logsigmoid(self.raw_alpha) if self.cap else self.raw_alpha

    def forward(self) -> torch.distributions.Distribution:
        """Return q as one event."""
        return distributions.GaussianDropout(
            self.loc, self.log_alpha(), validate_args=False
        ).to_event(self.loc.dim())
