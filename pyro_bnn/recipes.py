"""Recipes of the published tables: each is a function of a workbench that returns pruned networks.

Read :func:`sparse_lenet_5` first: fit, prune, and go on with the units that are left, which is the same posterior for a
fraction of the time. Networks that were pruned to a given size are fine-tuned towards what the network predicted before
it was pruned, its own teacher: the labels say which class, the teacher also says how sure to be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import compression, guides, likelihoods, priors
from .compression.continuation import restricted
from .compression.pruning import GroupMeasure, Pruned
from .models import LeNet300100, lenet_5
from .network import BayesianNet
from .posterior import Posterior
from .reproduction import Workbench, falling
from .training import linear_warmup

__all__ = ["dense_size", "group_lenet_300_100", "pretrained", "pruned_to", "soft_labels", "sparse_lenet_5"]


def sparse_lenet_5(bench: Workbench) -> Posterior:
    """Return the Sparse VD posterior of LeNet-5-Caffe: 110 epochs, in which dead units leave three times."""
    torch.manual_seed(bench.seed)
    model = lenet_5(bench.num_data)
    guide = guides.SparseVariationalDropout(model)
    posterior = bench.fit("1-all-units", model, guide, epochs=14, kl_weight=linear_warmup(1, 10))
    # log sigma^2 moves by a learning rate per step: twice the rate is half the way to log alpha = 3
    for name, epochs, rate in (("2-units-left", 12, 1e-3), ("3-units-left", 24, 2e-3)):
        model, guide = restricted(posterior, compression.prune(posterior))
        posterior = bench.fit(name, model, guide, epochs=epochs, learning_rate=rate)
    model, guide = restricted(posterior, compression.prune(posterior))
    return bench.fit("4-units-left", model, guide, epochs=60, learning_rate=falling(2e-3, 0, 60))


def pretrained(bench: Workbench, net: nn.Module, rates: dict[str, float], epochs: int = 40) -> nn.Module:
    """Return the network trained under binary dropout and a standard normal prior, at its means."""
    torch.manual_seed(bench.seed)
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.reset_parameters()
    model = BayesianNet(net, priors.Normal(1.0), likelihoods.Categorical(), bench.num_data)
    guide = guides.BernoulliDropout(model, rates)
    posterior = bench.fit("1-dropout", model, guide, epochs=epochs, learning_rate=falling(1e-3, epochs / 2, epochs))
    return posterior.mean_network().eval()


@torch.no_grad()
def soft_labels(network: nn.Module, x: Tensor, temperature: float = 2.0) -> Tensor:
    r"""Return the teacher's class probabilities, :math:`\mathrm{softmax}(f(x) / T)`: (n, classes).

    Source: Hinton, Vinyals & Dean (2015), section 2.
    """
    return torch.cat([torch.softmax(network(part) / temperature, -1) for part in x.split(1000)])


def group_lenet_300_100(
    bench: Workbench,
    prior: Callable[[], Any],
    guide: Callable[[BayesianNet], Any],
    sizes: tuple[int, ...],
    groups_by: GroupMeasure = "scale",
) -> list[Pruned]:
    """Return LeNet-300-100 pruned by groups to at most so many weights, once for each of the sizes, largest first.

    Dropout for 40 epochs; the group posterior from there, its KL term rising over 40 epochs; then for each size: prune
    to that size, fine-tune for 60 epochs towards the dropout network. Before the second size the posterior goes on for
    40 epochs, on the units that are left.
    """
    net = pretrained(bench, LeNet300100(), {"fc1.weight": 0.2, "fc2.weight": 0.4, "fc3.weight": 0.4})
    teacher = soft_labels(net, bench.data.x_train)
    model = BayesianNet(net, {"fc?.weight": prior()}, likelihoods.Categorical(), bench.num_data)
    posterior = bench.fit("2-groups", model, guide(model), epochs=40, kl_weight=linear_warmup(0, 40))
    networks: list[Pruned] = []
    for number, size in enumerate(sizes, 3):
        pruned = pruned_to(posterior, size, groups_by)
        networks.append(bench.tuned(f"{number}-tuned", pruned, teacher, epochs=60))
        if number < len(sizes) + 2:
            model, smaller = restricted(posterior, pruned)
            rate = falling(1e-3, 20, 40)
            posterior = bench.fit(f"{number}-groups-left", model, smaller, epochs=40, learning_rate=rate)
    return networks


def pruned_to(posterior: Posterior, size: int, groups_by: GroupMeasure = "scale") -> Pruned:
    """Return the network pruned by groups at the largest threshold that leaves at most ``size`` weights, to within a
    thousandth: one threshold for all layers.

    Raises:
        ValueError: the posterior has no groups; no threshold leaves so few.
    """
    measures = compression.group_measures(posterior, groups_by)
    if not measures:
        raise ValueError("pruned_to: the posterior has no groups; fit a guide under a group prior")
    values = torch.cat([measure.flatten() for measure in measures.values()])
    values = values[values.isfinite()]
    low, high, best = float(values.min()), float(values.max()) + 1, None
    while high - low > 1e-3:
        middle = (low + high) / 2
        try:
            pruned = compression.prune(posterior, group_threshold=middle, groups_by=groups_by)
        except compression.EmptyNetworkError:
            low = middle
            continue
        if dense_size(pruned) <= size:
            low, best = middle, pruned
        else:
            high = middle
    if best is None:
        raise ValueError(f"pruned_to: no threshold leaves between one and {size} weights")
    return best


def dense_size(pruned: Pruned) -> int:
    """Return the number of weights of the smaller network, zeros among them counted."""
    return sum(torch.Size(layer.new_shape).numel() for layer in pruned.report)
