r"""Going on after pruning: the same posterior, over the weights that are left.

Pruning removes units whose weights are noise. What is left of the posterior,

.. math:: q(w_K) = \prod_{i \in K} q_i(w_i), \qquad K \text{ the weights of the smaller network},

is where the fit goes on, with the posterior's own objective: same prior, same likelihood, same family, in less time.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_bnn.network import BayesianNet
from pyro_bnn.posterior import Posterior
from pyro_bnn.priors import Prior

from .posterior_pruning import Pruned

__all__ = ["restrict"]


@torch.no_grad()
def restrict(posterior: Posterior, pruned: Pruned) -> tuple[BayesianNet, nn.Module]:
    """Return model and guide of the smaller network, where ``fit`` goes on.

    Weights inside the units that are left keep their posteriors, those that pruning set to zero included: they may come
    back. Biases are those of the smaller network, the constants of removed units among them.

    Args:
        posterior: what was pruned, the result of ``fit`` with a guide that factorises over the weights.
        pruned: what :func:`~pyro_bnn.compression.prune` made of it.

    Raises:
        TypeError: the posterior has no such guide.
        ValueError: ``pruned`` belongs to another posterior.
    """
    model, guide = posterior.model, posterior.guide
    if not isinstance(model, BayesianNet) or not hasattr(guide, "families"):
        raise TypeError(
            "restricted: expected the posterior of a BayesianNet with a factorised guide such as MeanField or "
            f"SparseVariationalDropout, got {type(guide).__name__ if guide is not None else 'draws of a sampler'}"
        )
    left = {site.name: pruned.kept[site.name] for site in model.sites if site.name in pruned.kept}
    if set(left) != set(model.names):
        raise ValueError(
            f"restricted: the pruned network has {', '.join(pruned.kept)}; expected every weight of the posterior, "
            f"{', '.join(model.names)}"
        )
    priors: dict[str | type[nn.Module], Prior | None] = {
        name: copy.deepcopy(model.prior_of(name)) for name in model.names
    }
    smaller = BayesianNet(
        pruned.module, priors, model.likelihood, model.num_data, model.subsample_size
    )
    shapes = {name: value.shape for name, value in model.weights().items()}
    cut = copy.deepcopy(guide)
    for site, family in cut.families().items():
        stem = next((name for name in left if site == name or site.startswith(f"{name}.")), None)
        if stem is not None:
            _cut(family, left[stem], shapes[stem])
    return smaller, cut


def _cut(family: nn.Module, kept: Sequence[Tensor], shape: torch.Size) -> None:
    """Cut every tensor of a family to the weights that are kept; an axis of size one stands for all of them."""
    for name, tensor in (
        *family.named_parameters(recurse=False),
        *family.named_buffers(recurse=False),
    ):
        if tensor.dim() != len(shape):
            continue
        value = tensor.detach()
        for axis, index in enumerate(kept):
            if value.shape[axis] == shape[axis]:
                value = value.index_select(axis, index.to(value.device))
        setattr(
            family,
            name,
            nn.Parameter(value.clone()) if isinstance(tensor, nn.Parameter) else value.clone(),
        )
