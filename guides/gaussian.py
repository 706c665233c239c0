"""FactorizedGaussian: the Gaussian posterior of Bayes by backprop, written out."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_bnn.network import BayesianNet
from pyro_bnn.variational.guide import Moments

from .families import as_event

__all__ = ["FactorizedGaussian"]


class FactorizedGaussian(PyroModule):
    r"""An independent Gaussian for every weight.

    .. math::

        q(w) = \prod_i \mathcal{N}(w_i; \mu_i, \sigma_i^2), \qquad
        \mathrm{KL}\big(\mathcal{N}(\mu, \sigma^2) \,\|\, \mathcal{N}(0, s^2)\big)
            = \log\frac{s}{\sigma} + \frac{\sigma^2 + \mu^2}{2 s^2} - \frac12

    It has twice the parameters of the network. :math:`\log\sigma` is learned, so that
    :math:`\sigma` is always positive, and it starts small: a network as noisy as its prior learns
    nothing at first. ``MeanField`` builds the same posterior for any model.

    Args:
        model: a ``BayesianNet`` whose priors have one site per weight.
        init_scale: initial value of :math:`\sigma`.

    Source: Graves (2011); Blundell et al. (2015), https://arxiv.org/abs/1505.05424.
    """

    def __init__(self, model: BayesianNet, init_scale: float = 1e-2) -> None:
        super().__init__()
        weights = model.weights()
        self.names = list(weights)
        self.loc = nn.ParameterList(weight.clone() for weight in weights.values())
        self.log_scale = nn.ParameterList(
            torch.full_like(weight, init_scale).log() for weight in weights.values()
        )

    def forward(self, *args: Tensor | None) -> None:
        """Sample every weight; the arguments are those of the model and have no effect."""
        for name, loc, log_scale in zip(self.names, self.loc, self.log_scale, strict=True):
            pyro.sample(name, as_event(dist.Normal(loc, log_scale.exp(), validate_args=False)))

    @torch.no_grad()
    def moments(self) -> dict[str, Moments]:
        """Return mean and variance of every weight."""
        moments = {}
        for name, loc, log_scale in zip(self.names, self.loc, self.log_scale, strict=True):
            moments[name] = Moments(loc.clone(), (2 * log_scale).exp())
        return moments
