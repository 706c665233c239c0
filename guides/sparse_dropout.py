"""SparseVariationalDropout: every weight learns its own dropout rate, and most are dropped."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_bnn import distributions
from pyro_bnn.network import BayesianNet

from .factorized import Factorized
from .families import as_event
from .latent import latent_sites, require_real_sites

__all__ = ["SparseVariationalDropout"]


class SparseVariationalDropout(Factorized):
    r"""Gaussian noise of its own for every weight, to be used under the log-uniform prior.

    .. math::

        q(w_{ij}) = \mathcal{N}(w_{ij}; \theta_{ij}, \sigma_{ij}^2), \qquad
        \alpha_{ij} = \sigma_{ij}^2 / \theta_{ij}^2

    The parameters are :math:`\theta` and :math:`\log\sigma^2`. If they were :math:`\theta` and
    :math:`\alpha`, with :math:`w = \theta(1 + \sqrt\alpha\,\epsilon)`, the gradient with respect to
    :math:`\theta` would carry noise of variance :math:`\alpha`; now it carries none.

    The KL divergence to the log-uniform prior falls to zero as :math:`\alpha` grows. A weight that
    the data do not need drifts to :math:`\alpha \to \infty` and becomes pure noise around zero. It
    counts as dropped if :math:`\log\alpha \ge 3`, which corresponds to binary dropout of rate
    :math:`\alpha/(1+\alpha) = 0.95`.

    Increase the weight of the KL term slowly, ``fit(..., kl_weight=linear_warmup(5, 20))``: at full
    weight from the first step on, it drops every weight before the network has learned anything.

    Training uses two tricks of the original code, ``clip`` and ``mask``. They make the objective a
    surrogate of the ELBO; ``clip=None, mask=None`` is the exact ELBO.

    Args:
        model: a ``BayesianNet``.
        init_log_variance: initial value of :math:`\log\sigma^2`.
        clip: clip :math:`\log\alpha` to [-clip, clip], in the noise as well as in the KL
            divergence. The variance of the noise is then at most :math:`e^{clip}\theta^2`, and
            vanishes with :math:`\theta`.
        mask: take the means of weights with :math:`\log\alpha` at or above this value as zero, as
            they will be after pruning.

    Raises:
        ValueError: if a latent site is not real, for example an inferred noise scale.

    Source: Molchanov, Ashukha & Vetrov (2017), sections 4.2-4.3, https://arxiv.org/abs/1701.05369.
    """

    def __init__(
        self,
        model: BayesianNet,
        init_log_variance: float = -10.0,
        clip: float | None = 8.0,
        mask: float | None = 3.0,
    ) -> None:
        sites = latent_sites("SparseVariationalDropout", model)
        require_real_sites("SparseVariationalDropout", sites)
        families = {}
        for name, site in sites.items():
            families[name] = AdditiveNoise(site.initial, init_log_variance, clip, mask)
        super().__init__(families)

    @torch.no_grad()
    def log_alpha(self) -> dict[str, Tensor]:
        r"""Return :math:`\log\alpha` of every weight."""
        log_alpha = {}
        for name, family in self.families().items():
            assert isinstance(family, AdditiveNoise)
            log_alpha[name] = family.log_alpha()
        return log_alpha


class AdditiveNoise(nn.Module):
    r"""The posterior of one weight tensor.

    Its parameters are ``loc``, :math:`\theta`, and ``log_variance``, :math:`\log\sigma^2`.

    Args:
        initial: initial value of :math:`\theta`.
        init_log_variance: initial value of :math:`\log\sigma^2`.
        clip: as in :class:`SparseVariationalDropout`.
        mask: as in :class:`SparseVariationalDropout`.
    """

    def __init__(
        self, initial: Tensor, init_log_variance: float, clip: float | None, mask: float | None
    ) -> None:
        super().__init__()
        self.loc = nn.Parameter(initial.detach().clone())
        self.log_variance = nn.Parameter(torch.full_like(initial, init_log_variance))
        self.clip = clip
        self.mask = mask

    def log_alpha(self) -> Tensor:
        r"""Return :math:`\log\alpha`, clipped."""
        # log alpha = log sigma^2 - log theta^2; the offset keeps the logarithm finite at theta = 0
        log_alpha = distributions.log_alpha(
            self.loc, self.log_variance, offset=distributions.MEAN_OFFSET
        )
        if self.clip is None:
            return log_alpha
        return log_alpha.clamp(-self.clip, self.clip)

    def forward(self) -> dist.TorchDistribution:
        """Return q as one event."""
        log_alpha = self.log_alpha()
        keep = None
        if self.mask is not None:
            keep = log_alpha < self.mask
        q = distributions.GaussianDropout(self.loc, log_alpha, keep, validate_args=False)
        return as_event(q)
