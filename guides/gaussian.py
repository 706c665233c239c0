"""FactorizedGaussian: the Gaussian posterior of Bayes by backprop, written out."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_bnn.network import BayesianNet

__all__ = ["FactorizedGaussian"]


class FactorizedGaussian(PyroModule):
    r"""An independent Gaussian for every weight.

    .. math::

        q(w) = \prod_i \mathcal{N}(w_i; \mu_i, \sigma_i^2), \qquad
        \mathrm{KL}\big(\mathcal{N}(\mu, \sigma^2) \,\|\, \mathcal{N}(0, s^2)\big)
            = \log\frac{s}{\sigma} + \frac{\sigma^2 + \mu^2}{2 s^2} - \frac12

    It has twice the parameters of the network. :math:`\log\sigma` is learned, so that :math:`\sigma` is positive by
    construction, and it starts small: a network as noisy as its prior learns nothing at first.

    Args:
        model: a ``BayesianNet`` whose priors have one site per weight.
        init_scale: where :math:`\sigma` starts.

    Source: Graves (2011); Blundell et al. (2015), https://arxiv.org/abs/1505.05424. ``MeanField`` builds the same
    posterior.
    """

    def __init__(self, model: BayesianNet, init_scale: float = 1e-2) -> None:
        super().__init__()
        weights = model.weights()
        self.names = list(weights)
        self.loc = nn.ParameterList(weight.clone() for weight in weights.values())
        self.log_scale = nn.ParameterList(
            torch.full_like(weight, init_scale).log() for weight in weights.values()
        )

    def forward(self, *args: object) -> None:
        """Sample every weight."""
        for name, loc, log_scale in zip(self.names, self.loc, self.log_scale, strict=True):
            pyro.sample(
                name, dist.Normal(loc, log_scale.exp(), validate_args=False).to_event(loc.dim())
            )

    @torch.no_grad()
    def moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return mean and variance of every weight."""
        pairs = zip(self.names, self.loc, self.log_scale, strict=True)
        return {name: (loc.clone(), (2 * log_scale).exp()) for name, loc, log_scale in pairs}
