r"""Soft weight sharing: a prior that learns the codebook.

The weights of a tensor come from a mixture whose parameters are fitted along with them,

.. math:: p(w) = \prod_i \sum_{k=0}^{K} \pi_k\, \mathcal{N}(w_i; \mu_k, \sigma_k^2), \qquad
    \mu_0 = 0,\ \pi_0 \text{ fixed}, \qquad \sigma_k^2 \sim \text{Inv-Gamma}(a, b),

so that weights gather around few values, most of them around zero. It is an ordinary prior for an
ordinary guide::

    model = BayesianNet(net, WeightSharing(), likelihood, num_data)
    result = fit(model, PointEstimate(model), data)

After the fit, :func:`shared` sets every weight to the mean of the component that has the largest
responsibility for it.

Source: Nowlan & Hinton (1992), section 2; Ullrich, Meeds & Welling (2017), sections 3.1 and 3.2,
appendix A.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import overload

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, InverseGamma, Normal

from pyro_bnn.compression.pruning.pruned_network import Pruned
from pyro_bnn.priors.elementwise import Mixture

from .codebooks import half

__all__ = ["WeightSharing", "shared"]


class WeightSharing(nn.Module):
    r"""A mixture of Gaussians with learned means, variances and proportions; one mean stays zero.

    ``BayesianNet`` gives every weight tensor a copy of its own. The free parameters of the model
    are ``means`` (K,), ``log_variances`` (K + 1,) and ``logits`` (K,) of each copy. The means start
    evenly spaced, and the standard deviations at the spacing. The hyper-prior enters as a factor
    ``NAME.hyper_prior``, which ``kl_weight`` does not scale.

    Args:
        levels: K, the number of components other than that at zero; two or more.
        reach: The means start from ``-reach`` to ``reach``.
        zero_probability: :math:`\pi_0`.
        variances: (a, b) of the inverse Gamma distribution of :math:`\sigma_k^2`, the mode of which
            is b / (a + 1).
        zero_variance: (a, b) for the component at zero. The default is narrow and informative.

    Raises:
        ValueError: If there are fewer than two levels, the probability is outside (0, 1), or
            another argument is not positive.
    """

    hyper: Tensor
    zero_probability: Tensor

    def __init__(
        self,
        levels: int = 16,
        reach: float = 0.6,
        zero_probability: float = 0.99,
        variances: tuple[float, float] = (250.0, 0.1),
        zero_variance: tuple[float, float] = (5000.0, 2.0),
    ) -> None:
        super().__init__()
        is_probability = 0 < zero_probability < 1
        if levels < 2 or not is_probability or not min(reach, *variances, *zero_variance) > 0:
            raise ValueError(
                "WeightSharing: expected two levels or more, a probability between 0 and 1 and "
                f"positive numbers, got {levels=}, {zero_probability=}, {reach=}, {variances=}, "
                f"{zero_variance=}"
            )
        spacing = torch.tensor(2 * reach / (levels - 1))
        self.means = nn.Parameter(torch.linspace(-reach, reach, levels))
        self.log_variances = nn.Parameter(2 * spacing.log().expand(levels + 1).clone())
        self.logits = nn.Parameter(torch.zeros(levels))
        zero, others = torch.tensor(zero_variance), torch.tensor(variances).expand(levels, 2)
        self.register_buffer("hyper", torch.cat([zero[None], others]))
        self.register_buffer("zero_probability", torch.tensor(zero_probability))

    def forward(self, name: str, shape: torch.Size, group_dim: int | None = None) -> Tensor:
        """Sample the weight at the site ``name``."""
        pyro.factor(f"{name}.hyper_prior", self.log_hyper_prior())
        mixture = Mixture(
            dist.Categorical(logits=self.log_proportions(), validate_args=False),
            dist.Normal(self.centers(), self._deviations(), validate_args=False),
            validate_args=False,
        )
        return pyro.sample(name, mixture.expand(shape).to_event(len(shape)))

    def centers(self) -> Tensor:
        """Return the means of all components (K + 1,): zero, then the learned ones."""
        return torch.cat([self.means.new_zeros(1), self.means])

    def log_proportions(self) -> Tensor:
        r"""Return :math:`\log \pi_k` (K + 1,)."""
        rest = torch.log_softmax(self.logits, 0) + torch.log1p(-self.zero_probability)
        return torch.cat([self.zero_probability.log()[None], rest])

    def log_hyper_prior(self) -> Tensor:
        """Return the log density of all variances, a number."""
        a, b = self.hyper.unbind(1)
        prior: Distribution = InverseGamma(a, b, validate_args=False)
        return prior.log_prob(self.log_variances.exp()).sum()

    def responsibilities(self, weights: Tensor) -> Tensor:
        r"""Return :math:`p(k \mid w) \propto \pi_k\, \mathcal{N}(w; \mu_k, \sigma_k^2)`.

        Args:
            weights: (...), any shape.

        Returns:
            Probabilities, (..., K + 1).
        """
        components: Distribution = Normal(self.centers(), self._deviations())
        log_density = components.log_prob(weights[..., None])
        return torch.softmax(self.log_proportions() + log_density, -1)

    @torch.no_grad()
    def shared(self, weights: Tensor) -> Tensor:
        """Return for each weight the mean of its most responsible component, in half precision.

        Args:
            weights: Any shape.
        """
        values = torch.cat([self.means.new_zeros(1), half(self.means, "shared")])
        return values[self.responsibilities(weights).argmax(-1)]

    @torch.no_grad()
    def codebook(self, weights: Tensor) -> Tensor:
        """Return the ascending nonzero values that :meth:`shared` gives to weights.

        Args:
            weights: Any shape.
        """
        values = self.shared(weights)
        ascending: Tensor = torch.unique(values[values != 0])
        return ascending

    def _deviations(self) -> Tensor:
        return self.log_variances.div(2).exp()


@overload
def shared(network: Pruned, priors: Mapping[str, WeightSharing]) -> Pruned: ...
@overload
def shared(network: nn.Module, priors: Mapping[str, WeightSharing]) -> nn.Module: ...
@torch.no_grad()
def shared(network: nn.Module | Pruned, priors: Mapping[str, WeightSharing]) -> nn.Module | Pruned:
    """Return the network with every weight at the value that its prior assigns to it.

    There are few distinct values, many of them zero. Weights that are zero stay zero.

    Args:
        network: ``posterior.mean_network()``, with the weights as they were fitted, or a pruned
            one.
        priors: The fitted prior of each weight by name,
            ``{name: model.prior_of(name) for name in model.names}`` with
            ``model = posterior.model``.

    Raises:
        ValueError: If the network has no weight of a name.
    """
    module = network.module if isinstance(network, Pruned) else network
    parameters = dict(module.named_parameters())
    values = {}
    for name, prior in priors.items():
        if name not in parameters:
            raise ValueError(
                f"shared: the network has no weight {name!r}; its weights are "
                f"{', '.join(parameters)}"
            )
        weight = parameters[name].detach()
        values[name] = torch.where(weight == 0, 0, prior.shared(weight))
    if isinstance(network, Pruned):
        return network.with_values(values)
    result = copy.deepcopy(network)
    for name, parameter in result.named_parameters():
        if name in values:
            parameter.copy_(values[name])
    return result
