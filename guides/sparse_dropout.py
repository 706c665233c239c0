"""SparseVariationalDropout: every weight learns its own dropout rate, and most of them learn to be dropped."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_bnn.distributions import GaussianDropout
from pyro_bnn.network import BayesianNet

from .families import Factorized, real_sites

__all__ = ["SparseVariationalDropout"]


class SparseVariationalDropout(Factorized):
    r"""Gaussian noise of its own for every weight, to be used under the log-uniform prior.

    .. math::

        q(w_{ij}) = \mathcal{N}(w_{ij}; \theta_{ij}, \sigma_{ij}^2), \qquad
        \alpha_{ij} = \sigma_{ij}^2 / \theta_{ij}^2

    :math:`\theta` and :math:`\log\sigma^2` are learned rather than :math:`\alpha`: the gradient with respect to
    :math:`\theta` is then free of the noise (of variance :math:`\alpha` in the multiplicative form
    :math:`\theta(1 + \sqrt\alpha\,\epsilon)`). The KL divergence to the log-uniform prior falls with :math:`\alpha` to
    zero, so whatever the data do not ask for drifts to :math:`\alpha \to \infty`: pure noise around nothing. A weight
    counts as dropped from :math:`\log\alpha \ge 3` on, which is binary dropout of rate
    :math:`\alpha/(1+\alpha) = 0.95`.

    Start the KL term slowly (``fit(..., kl_weight=linear_warmup(5, 20))``): at full weight from the first step it drops
    every weight before the network has learned anything.

    Training uses two tricks of the original code. They make the objective a surrogate of the ELBO;
    ``clip=None, mask=None`` is the exact one.

    Args:
        model: a ``BayesianNet``.
        init_log_variance: where :math:`\log\sigma^2` starts.
        clip: :math:`\log\alpha` is clipped to [-clip, clip], in the noise (whose variance is then
            :math:`e^{clip}\theta^2` at most, and dies with :math:`\theta`) as in the KL divergence.
        mask: means of weights with :math:`\log\alpha` at or above this are taken as zero, as they will be after
            pruning.

    Raises:
        ValueError: a latent site that is not real, an inferred noise scale, say.

    Source: Molchanov, Ashukha & Vetrov (2017), sections 4.2-4.3, https://arxiv.org/abs/1701.05369.
    """

    def __init__(
        self,
        model: BayesianNet,
        init_log_variance: float = -10.0,
        clip: float | None = 8.0,
        mask: float | None = 3.0,
    ) -> None:
        sites = real_sites("SparseVariationalDropout", model)
        noises = {
            name: AdditiveNoise(site.initial, init_log_variance, clip, mask)
            for name, site in sites.items()
        }
        super().__init__(noises)

    @torch.no_grad()
    def log_alpha(self) -> dict[str, Tensor]:
        """Return log alpha of every weight."""
        return {name: family.log_alpha() for name, family in self.families().items()}


class AdditiveNoise(nn.Module):
    """The posterior of one weight tensor: parameters ``loc`` and ``log_variance``."""

    def __init__(
        self, initial: Tensor, init_log_variance: float, clip: float | None, mask: float | None
    ) -> None:
        super().__init__()
        self.loc = nn.Parameter(initial.detach().clone())
        self.log_variance = nn.Parameter(torch.full_like(initial, init_log_variance))
        self.clip, self.mask = clip, mask

    def log_alpha(self) -> Tensor:
        """Return log alpha, clipped."""
        # log alpha = log sigma^2 - log theta^2; the small number keeps the logarithm finite at theta = 0
        log_alpha = self.log_variance - (self.loc.square() + 1e-8).log()
        return log_alpha if self.clip is None else log_alpha.clamp(-self.clip, self.clip)

    def forward(self) -> torch.distributions.Distribution:
        """Return q as one event."""
        log_alpha = self.log_alpha()
        keep = None if self.mask is None else log_alpha < self.mask
        return GaussianDropout(self.loc, log_alpha, keep, validate_args=False).to_event(
            self.loc.dim()
        )
