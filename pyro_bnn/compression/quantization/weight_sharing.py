r"""Soft weight sharing: a prior that learns the codebook.

The weights of a tensor come from a mixture whose parameters are fitted along with them,

.. math:: p(w) = \prod_i \sum_{k=0}^{K} \pi_k\, \mathcal{N}(w_i; \mu_k, \sigma_k^2), \qquad
    \mu_0 = 0,\ \pi_0 \text{ fixed}, \qquad \sigma_k^2 \sim \text{Inv-Gamma}(a, b),

so weights gather around few values, most of them around zero. It is an ordinary prior for an ordinary guide,

    result = fit(BayesianNet(net, WeightSharing(), likelihood, num_data), PointEstimate(model), data)

after which :func:`shared` sets every weight to the mean of the component that is most responsible for it.

Source: Nowlan & Hinton (1992), section 2; Ullrich, Meeds & Welling (2017), sections 3.1 and 3.2, appendix A.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import overload

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_bnn.compression.pruning.pruned_network import Pruned
from pyro_bnn.priors.elementwise import Mixture

from .codebooks import half

__all__ = ["WeightSharing", "shared"]


class WeightSharing(nn.Module):
    r"""A mixture of Gaussians with learned means, variances and proportions; one component stays at zero.

    ``BayesianNet`` gives every weight tensor a copy of its own, with ``means`` (K,), ``log_variances`` (K + 1,) and
    ``logits`` (K,), free parameters of the model. The means start evenly spaced, the standard deviations at the
    spacing. The hyper-prior enters as a factor ``NAME.hyper_prior``, which ``kl_weight`` does not scale.

    Args:
        levels: K, the components other than zero; two or more.
        reach: the means start from ``-reach`` to ``reach``.
        zero_probability: :math:`\pi_0`.
        variances: (a, b) of the inverse Gamma distribution of :math:`\sigma_k^2`, whose mode is b / (a + 1).
        zero_variance: (a, b) for the component at zero; narrow, and held there.

    Raises:
        ValueError: fewer than two levels; a probability outside (0, 1); numbers that are not above zero.
    """

    def __init__(
        self,
        levels: int = 16,
        reach: float = 0.6,
        zero_probability: float = 0.99,
        variances: tuple[float, float] = (250.0, 0.1),
        zero_variance: tuple[float, float] = (5000.0, 2.0),
    ) -> None:
        super().__init__()
        if (
            levels < 2
            or not 0 < zero_probability < 1
            or not min(reach, *variances, *zero_variance) > 0
        ):
            raise ValueError(
                "WeightSharing: expected two levels or more, a probability between 0 and 1 and numbers above zero, got "
                f"{levels=}, {zero_probability=}, {reach=}, {variances=}, {zero_variance=}"
            )
        spacing = torch.tensor(2 * reach / (levels - 1))
        self.means = nn.Parameter(torch.linspace(-reach, reach, levels))
        self.log_variances = nn.Parameter(2 * spacing.log().expand(levels + 1).clone())
        self.logits = nn.Parameter(torch.zeros(levels))
        zero, others = torch.tensor(zero_variance), torch.tensor(variances).expand(levels, 2)
        self.register_buffer("hyper", torch.cat([zero[None], others]))
        self.register_buffer("zero_probability", torch.tensor(zero_probability))

    hyper: Tensor
    zero_probability: Tensor

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Sample the weight at the site ``name``."""
        pyro.factor(f"{name}.hyper_prior", self.log_hyper_prior())
        mixture = Mixture(
            dist.Categorical(logits=self.log_proportions(), validate_args=False),
            dist.Normal(self.centres(), self.log_variances.div(2).exp(), validate_args=False),
            validate_args=False,
        )
        return pyro.sample(name, mixture.expand(shape).to_event(len(shape)))

    def centres(self) -> Tensor:
        """Return the means of all components (K + 1,): zero, then those that are learned."""
        return torch.cat([self.means.new_zeros(1), self.means])

    def log_proportions(self) -> Tensor:
        r"""Return :math:`\log \pi_k` (K + 1,)."""
        rest = torch.log_softmax(self.logits, 0) + torch.log1p(-self.zero_probability)
        return torch.cat([self.zero_probability.log()[None], rest])

    def log_hyper_prior(self) -> Tensor:
        """Return the log-density of all variances, a number."""
        a, b = self.hyper.unbind(1)
        return dist.InverseGamma(a, b, validate_args=False).log_prob(self.log_variances.exp()).sum()

    def responsibilities(self, weights: Tensor) -> Tensor:
        r"""Return :math:`p(k \mid w) \propto \pi_k\, \mathcal{N}(w; \mu_k, \sigma_k^2)`, (..., K + 1).

        Args:
            weights: any shape.
        """
        terms = dist.Normal(self.centres(), self.log_variances.div(2).exp()).log_prob(
            weights[..., None]
        )
        return torch.softmax(self.log_proportions() + terms, -1)

    @torch.no_grad()
    def shared(self, weights: Tensor) -> Tensor:
        """Return every weight's value: the mean, in half precision, of its most responsible component.

        Args:
            weights: any shape.
        """
        values = torch.cat([self.means.new_zeros(1), half(self.means)])
        return values[self.responsibilities(weights).argmax(-1)]

    @torch.no_grad()
    def codebook(self, weights: Tensor) -> Tensor:
        """Return the ascending nonzero values that weights get from :meth:`shared`.

        Args:
            weights: any shape.
        """
        values = self.shared(weights).unique()
        return values[values != 0]


@overload
def shared(network: Pruned, priors: Mapping[str, WeightSharing]) -> Pruned: ...
@overload
def shared(network: nn.Module, priors: Mapping[str, WeightSharing]) -> nn.Module: ...
def shared(network: nn.Module | Pruned, priors: Mapping[str, WeightSharing]) -> nn.Module | Pruned:
    """Return the network with every weight at the value that its prior gives it: few distinct ones, many zeros;
    what is zero stays zero.

    Args:
        network: with the weights as they were fitted, ``posterior.mean_network()``; or a pruned one.
        priors: for names of weights their fitted priors, ``{name: model.prior_of(name) for name in model.names}`` with
            ``model = posterior.model``.

    Raises:
        ValueError: a name that the network does not have.
    """
    module = network.module if isinstance(network, Pruned) else network
    parameters = dict(module.named_parameters())
    for name in priors:
        if name not in parameters:
            raise ValueError(
                f"shared: {name!r} is no weight of the network; there are {', '.join(parameters)}"
            )
    weights = {name: parameters[name].detach() for name in priors}
    values = {name: torch.where(w == 0, 0, priors[name].shared(w)) for name, w in weights.items()}
    if isinstance(network, Pruned):
        return network.with_values(values)
    result = copy.deepcopy(network)
    with torch.no_grad():
        for name, parameter in result.named_parameters():
            if name in values:
                parameter.copy_(values[name])
    return result
