"""The rows of the published tables: the recipes that make them, and their measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from pyro_bnn import compression
from pyro_bnn.compression import Pruned, restrict
from pyro_bnn.datasets import Dataset, with_random_labels
from pyro_bnn.metrics import error_of
from pyro_bnn.models import VGG, LeNet5, LeNet300100, vgg
from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.tensor_files import write_atomically
from pyro_bnn.training import linear_warmup
from pyro_bnn.variational import ELBO

from . import recipes
from .experiment import Experiment
from .groups import (
    GROUP_HORSESHOE,
    NORMAL_JEFFREYS,
    GroupMethod,
    Stage,
    prune_by_groups,
)
from .schedules import linear_decay

__all__ = ["RECIPES", "Row"]

_GROUP_METHODS = (NORMAL_JEFFREYS, GROUP_HORSESHOE)


@dataclass(frozen=True)
class Row:
    """One network of a table.

    Attributes:
        method: the method that made the network.
        seed: of weights, batches and noise.
        test_error: in percent, of the test images, after the last epoch.
        held_out_error: in percent, of the 5,000 training images that thresholds are chosen on. No
            fit used them, except where the method or the note says that it used all 60,000.
        weights: of the original network.
        nonzero: nonzero weights of the pruned network.
        dense: weights of the smaller network, zeros among them.
        architecture: inputs of every dense layer, filters of every convolution.
        minutes: of all fits together.
        file_bytes: of its file, if one was written.
        note: remarks.
    """

    method: str
    seed: int
    test_error: float
    held_out_error: float
    weights: int
    nonzero: int
    dense: int
    architecture: str
    minutes: float
    file_bytes: int | None = None
    note: str = ""


def _row(
    experiment: Experiment,
    original: nn.Module,
    method: str,
    pruned: Pruned,
    file_bytes: int | None = None,
    note: str = "",
) -> Row:
    """Measure a pruned network."""
    weights = 0
    for parameter in original.parameters():
        if parameter.dim() > 1:
            weights += parameter.numel()
    return Row(
        method=method,
        seed=experiment.seed,
        test_error=100 * error_of(pruned.module, experiment.data.test),
        held_out_error=100 * error_of(pruned.module, experiment.held_out),
        weights=weights,
        nonzero=sum(layer.kept for layer in pruned.report),
        dense=pruned.dense,
        architecture=pruned.architecture,
        minutes=experiment.minutes,
        file_bytes=file_bytes,
        note=note,
    )


def _file_row(experiment: Experiment, original: nn.Module, method: str, pruned: Pruned) -> Row:
    """Write a file and measure the network that it decodes to.

    The units are in their order or sorted, whichever gives the shorter file.
    """
    name = f"{method.replace(' ', '-').replace(',', '')}-{pruned.architecture}.pbnn"
    path = experiment.folder / name
    plain = compression.encode(pruned.module)
    sorted_ = compression.encode(compression.sorted_units(pruned.module))
    write_atomically(path, min(plain, sorted_, key=len))
    row = _row(experiment, original, method, pruned, file_bytes=path.stat().st_size)
    return replace(row, test_error=100 * error_of(compression.load(path), experiment.data.test))


# --- Sparse VD ------------------------------------------------------------------------------------

_DROPOUT: dict[type[nn.Module], dict[str, float]] = {
    LeNet300100: {"fc1.weight": 0.2, "fc2.weight": 0.4, "fc3.weight": 0.4},
    LeNet5: {"fc1.weight": 0.3, "fc2.weight": 0.5},
}


def _teacher(
    experiment: Experiment, network: type[nn.Module], epochs: int, shifted: bool = False
) -> nn.Module:
    return recipes.pretrained(experiment, network(), _DROPOUT[network], epochs, shifted)


def _sparse_300_100(experiment: Experiment) -> Iterator[Row]:
    original = LeNet300100()
    pruned = compression.prune(recipes.sparse_lenet_300_100(experiment))
    yield _row(experiment, original, "Sparse VD", pruned, note="trained on all 60,000 images")
    # the few weights of a sparse dense network cannot also fit shifted digits; LeNet-5 can
    teacher = _teacher(experiment, LeNet300100, 40)
    distillation = experiment.distillation_data(teacher, shifted=False)
    tuned = experiment.fine_tune("5-tuned", pruned, distillation, epochs=40, half_rate=True)
    yield _row(experiment, original, "Sparse VD, fine-tuned", tuned)
    for levels in (16, 8):
        quantized = experiment.fine_tune(
            f"6-{levels}-levels", tuned, distillation, levels=levels, epochs=30, half_rate=True
        )
        method = f"Sparse VD, {levels} values per layer"
        yield _file_row(experiment, original, method, quantized)


def _sparse_5(experiment: Experiment) -> Iterator[Row]:
    original = LeNet5()
    posterior = recipes.sparse_lenet_5(experiment)
    yield _row(experiment, original, "Sparse VD", compression.prune(posterior))
    distillation = experiment.distillation_data(_teacher(experiment, LeNet5, 12))
    pruned = recipes.prune_to_count(posterior, 430_500 // 350)
    tuned = experiment.fine_tune("5-tuned", pruned, distillation, epochs=24)
    method = "Sparse VD, 350 times fewer weights"
    yield _row(experiment, original, f"{method}, fine-tuned", tuned)
    quantized = experiment.fine_tune(
        "6-8-levels", tuned, distillation, levels=8, epochs=6, half_rate=True
    )
    yield _file_row(experiment, original, f"{method}, 8 values per layer", quantized)


# --- groups ---------------------------------------------------------------------------------------

# Sizes of published architectures: 278-98-13, 311-86-14 and 97-71-33; 8-13-88-13 and, except for
# three units, 5-10-76-16. The noise-to-signal ratio of the horseshoe differs too much between
# layers for one threshold, which would leave 100 units in the last layer: its layers get the
# proportions that the normal-Jeffreys prior finds.
_LENET_5 = (
    Stage(4, (12, 24, 200, 60), 0),
    Stage(8, (8, 13, 88, 13), 16),
    Stage(8, (5, 10, 76, 13), 24),
)
_STAGES = {
    (LeNet300100, "group normal-Jeffreys"): (Stage(40, 28_648, 60), Stage(40, 9_507, 60)),
    (LeNet300100, "group horseshoe"): (
        Stage(40, (208, 112, 39), 60),
        Stage(40, (130, 58, 27), 120),
    ),
    (LeNet5, "group normal-Jeffreys"): _LENET_5,
    (LeNet5, "group horseshoe"): (*_LENET_5[:2], Stage(8, (5, 10, 76, 13), 60)),
}
# the first and the last layer are small, and a coarse first layer costs most
_LEVELS: dict[type[nn.Module], dict[str, dict[str, int]]] = {
    LeNet5: {"5 to 7": {"conv1.*": 7, "fc2.*": 7, "*": 5}}
}


def _groups(
    experiment: Experiment,
    network: type[LeNet300100] | type[LeNet5],
    epochs: int,
    shifted: bool,
) -> Iterator[Row]:
    """Yield the rows of both group priors, which start at one trained network.

    Args:
        experiment: with images of MNIST.
        network: the original.
        epochs: of the trained network.
        shifted: also train it on shifted images.
    """
    teacher = _teacher(experiment, network, epochs, shifted)
    distillation = experiment.distillation_data(teacher)
    for method in _GROUP_METHODS:
        inner = experiment.within(method.name.replace(" ", "-"))
        stages = _STAGES[network, method.name]
        networks = prune_by_groups(inner, distillation, method, stages)
        for number, pruned in enumerate(networks):
            yield _file_row(inner, network(), method.name, pruned)
            for name, levels in _LEVELS.get(network, {}).items():
                quantized = inner.fine_tune(
                    f"{number}-{name}",
                    pruned,
                    distillation,
                    levels=levels,
                    epochs=8,
                    half_rate=True,
                )
                values = f"{method.name}, {name} values per layer"
                yield _file_row(inner, network(), values, quantized)


def _vgg(
    experiment: Experiment, width: float, epochs: tuple[int, int], keep: float
) -> Iterator[Row]:
    """Yield the rows of both group priors for VGG, which start at one trained network.

    Args:
        experiment: with images of 3 x 32 x 32.
        width: of the network.
        epochs: of the trained network; of each of the two fits of a posterior, with all groups and
            with the remaining ones.
        keep: the fraction of the groups that each layer keeps; the noise differs too much between
            fifteen layers for one threshold.
    """
    rates = {"fc1.weight": 0.5, "fc2.weight": 0.5}
    trained = recipes.pretrained(experiment, VGG(width), rates, epochs[0])
    error = 100 * error_of(trained, experiment.data.test)
    total = epochs[0] + 2 * epochs[1]
    note = f"{experiment.data.name}, {total} epochs, {error:.2f} % before"
    for method in _GROUP_METHODS:
        inner = experiment.within(method.name.replace(" ", "-"))
        pruned = _pruned_vgg(inner, trained, method, epochs[1], keep)
        yield _row(inner, trained, method.name, pruned, note=note)


def _pruned_vgg(
    experiment: Experiment, trained: nn.Module, method: GroupMethod, epochs: int, keep: float
) -> Pruned:
    """Fit a group posterior, prune each layer, and fit the remaining groups."""
    model = vgg(experiment.num_data, method.prior(), net=trained)
    warmup = linear_warmup(0, epochs)
    posterior = experiment.fit(
        "2-groups", model, method.guide(model), epochs=epochs, kl_weight=warmup
    )
    limits = {}
    for name, measure in compression.group_measures(posterior, method.groups_by).items():
        limits[name] = float(measure.quantile(keep))
    pruned = compression.prune(posterior, group_threshold=limits, groups_by=method.groups_by)
    rate = linear_decay(1e-3, epochs / 2, epochs)
    restricted = restrict(posterior, pruned)
    posterior = experiment.fit("3-groups-left", *restricted, epochs=epochs, learning_rate=rate)
    return compression.prune(posterior, math.inf, groups_by=method.groups_by)


# --- random labels --------------------------------------------------------------------------------


def _random_labels(experiment: Experiment) -> Iterator[Row]:
    """Yield rows of binary dropout and Sparse VD on random labels, and of Sparse VD on true labels.

    All training images are used.
    """
    true = experiment.everything
    random = with_random_labels(true, experiment.seed)
    yield _dropout_row(experiment, random, "binary dropout, random labels")
    yield _sparse_row(experiment, random, "Sparse VD, random labels")
    yield _sparse_row(experiment, true, "Sparse VD, true labels")


def _dropout_row(experiment: Experiment, data: Dataset, method: str) -> Row:
    inner = replace(experiment, data=data)
    posterior = recipes.fit_random_labels(inner, method, sparse=False)
    remark = f"rate {recipes.RANDOM_LABELS_DROPOUT_RATE}"
    return _memory_row(inner, posterior, _means(posterior), method, remark)


def _sparse_row(experiment: Experiment, data: Dataset, method: str) -> Row:
    inner = replace(experiment, data=data)
    posterior = recipes.fit_random_labels(inner, method, sparse=True)
    weights = _means(posterior)
    masks, _ = compression.keep_masks(posterior)
    for name, mask in masks.items():
        weights[name] = weights[name] * mask
    remark = f"KL {_kl_per_image(posterior, data):.2g} nats an image"
    return _memory_row(inner, posterior, weights, method, remark)


def _means(posterior: Posterior) -> dict[str, Tensor]:
    return {name: mean for name, (mean, _) in posterior.moments().items()}


def _kl_per_image(posterior: Posterior, data: Dataset) -> float:
    """Return the KL divergence to the prior over the number of training images, in nats."""
    terms = ELBO(posterior.model, posterior.guide).terms(data.x_train[:1], data.y_train[:1])
    total = sum(float(term.detach()) for term in terms.kl.values())
    return total / len(data.x_train)


def _memory_row(
    experiment: Experiment,
    posterior: Posterior,
    weights: Mapping[str, Tensor],
    method: str,
    remark: str,
) -> Row:
    """Measure how well a network with these weights has memorized its training labels."""
    network = posterior.model.network_with(weights).eval()
    accuracy = 1 - error_of(network, experiment.data.train)
    total, nonzero, inputs = 0, 0, []
    for weight in weights.values():
        total += weight.numel()
        nonzero += int(torch.count_nonzero(weight))
        inputs.append(str(weight.shape[1]))
    return Row(
        method=method,
        seed=experiment.seed,
        test_error=100 * error_of(network, experiment.data.test),
        held_out_error=100 * error_of(network, experiment.held_out),
        weights=total,
        nonzero=nonzero,
        dense=total,
        architecture="-".join(inputs),
        minutes=experiment.minutes,
        note=f"{experiment.num_data:,} images, training accuracy {accuracy:.1%}, {remark}",
    )


RECIPES: dict[tuple[str, str], Callable[[Experiment], Iterator[Row]]] = {
    ("sparse-vd", "lenet-300-100"): _sparse_300_100,
    ("sparse-vd", "lenet-5"): _sparse_5,
    ("bayesian-compression", "lenet-300-100"): partial(
        _groups, network=LeNet300100, epochs=16, shifted=True
    ),
    ("bayesian-compression", "lenet-5"): partial(_groups, network=LeNet5, epochs=12, shifted=False),
    ("bayesian-compression", "vgg"): partial(_vgg, width=1.0, epochs=(120, 60), keep=1 / 4),
    ("bayesian-compression", "vgg-sixteenth"): partial(
        _vgg, width=1 / 16, epochs=(2, 2), keep=3 / 4
    ),
    ("random-labels", "mlp"): _random_labels,
}
