r"""Training after pruning: the same posterior, restricted to the remaining weights.

Pruning removes units whose weights are noise. The fit continues on the restricted posterior,

.. math:: q(w_K) = \prod_{i \in K} q_i(w_i), \qquad K \text{ the weights of the smaller network},

with the same prior, likelihood and variational family as before, in less time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_bnn.network import BayesianNet
from pyro_bnn.posterior import Posterior
from pyro_bnn.priors import Prior
from pyro_bnn.variational.guide import FactorizedGuide

from .pruned_network import Pruned

__all__ = ["Restriction", "restrict"]


class Restriction(NamedTuple):
    """A model of the smaller network, and its guide."""

    model: BayesianNet
    guide: FactorizedGuide


@torch.no_grad()
def restrict(posterior: Posterior, pruned: Pruned) -> Restriction:
    """Return model and guide of the smaller network, with which ``fit`` continues.

    The remaining weights keep their posteriors, including single weights that pruning set to zero:
    these may become nonzero again. Biases are those of the smaller network, with the constants of
    removed units folded into them.

    Args:
        posterior: The result of ``fit`` with a guide that factorizes over the weights.
        pruned: The result of :func:`~pyro_bnn.compression.prune` for this posterior.

    Returns:
        (model, guide), copies that share nothing with the posterior.

    Raises:
        TypeError: If the posterior has no such guide.
        ValueError: If ``pruned`` belongs to another posterior.
    """
    model, guide = posterior.model, posterior.guide
    if not isinstance(model, BayesianNet) or not isinstance(guide, FactorizedGuide):
        kind = "draws of a sampler" if guide is None else type(guide).__name__
        raise TypeError(
            "restrict: expected the posterior of a BayesianNet with a factorized guide such as "
            f"MeanField or SparseVariationalDropout, got {kind}"
        )
    for name in model.names:
        if name not in pruned.kept:
            raise ValueError(
                f"restrict: the pruned network has {', '.join(pruned.kept)}; expected every weight "
                f"of the posterior, {', '.join(model.names)}"
            )
    priors: dict[str | type[nn.Module], Prior | None] = {}
    for name in model.names:
        priors[name] = copy.deepcopy(model.prior_of(name))
    smaller = BayesianNet(
        pruned.module, priors, model.likelihood, model.num_data, model.subsample_size
    )
    restricted = copy.deepcopy(guide)
    weights = model.weights()
    for site, family in restricted.families().items():
        weight = _weight_of_site(site, model.names)
        if weight is not None:
            _restrict_family(family, pruned.kept[weight], weights[weight].shape)
    return Restriction(smaller, restricted)


def _weight_of_site(site: str, weights: Iterable[str]) -> str | None:
    """Return the weight to which a site belongs: ``"fc1.weight"`` for ``"fc1.weight.scale"``."""
    for name in weights:
        if site == name or site.startswith(f"{name}."):
            return name
    return None


def _restrict_family(family: nn.Module, kept: Sequence[Tensor], shape: torch.Size) -> None:
    """Cut every tensor of a family to the remaining weights.

    Args:
        family: A family whose parameters broadcast to the weight, with axes of size one.
        kept: The remaining indices of each axis of the weight.
        shape: The shape of the weight before pruning.
    """
    for name, parameter in list(family.named_parameters(recurse=False)):
        if parameter.dim() == len(shape):
            setattr(family, name, nn.Parameter(_restricted(parameter, kept, shape)))
    for name, buffer in list(family.named_buffers(recurse=False)):
        if buffer.dim() == len(shape):
            setattr(family, name, _restricted(buffer, kept, shape))


def _restricted(tensor: Tensor, kept: Sequence[Tensor], shape: torch.Size) -> Tensor:
    values = tensor.detach()
    for axis, index in enumerate(kept):
        if values.shape[axis] == shape[axis]:
            values = values.index_select(axis, index.to(values.device))
    return values.clone()
