"""The published tables, run again: which recipes make them, what is measured, and how the rows are kept.

Every row is a JSON file, written by ``pyro-bnn reproduce`` as soon as it is known; a table is made of the files that
are there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_bnn import compression
from pyro_bnn.compression.pruning.pruned_network import Pruned
from pyro_bnn.compression.pruning.restriction import restrict
from pyro_bnn.datasets import (
    Dataset,
    cifar10,
    cifar10_jpeg,
    data_folder,
    hold_out,
    mnist,
    with_random_labels,
)
from pyro_bnn.metrics import error_of
from pyro_bnn.models import VGG, LeNet5, LeNet300100, vgg
from pyro_bnn.runtime.tensor_files import write_atomically
from pyro_bnn.training import linear_warmup
from pyro_bnn.variational.elbo import ELBO

from . import recipes
from .experiment import Experiment, linear_decay
from .recipes import Stage

__all__ = ["RECIPES", "Row", "data_for", "reproduce", "require", "table"]


@dataclass(frozen=True)
class Row:
    """One network of a table.

    Attributes:
        method: what made it.
        seed: of weights, batches and noise.
        test_error: in percent, of the test images, after the last epoch.
        held_out_error: in percent, of the 5,000 training images that thresholds are chosen on; no fit saw them, but
            where the method or the note says that it was given all 60,000.
        weights: of the original network.
        nonzero: weights that are left.
        dense: weights of the smaller network, zeros among them.
        architecture: inputs of every dense layer, filters of every convolution.
        minutes: of all fits together.
        file_bytes: of its file, if one was written.
        note: what else there is to know.
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


def reproduce(recipe: str, network: str, experiment: Experiment, results: Path) -> Iterator[Row]:
    """Run a recipe; yield its rows as they come, each written to the folder ``results`` first.

    Raises:
        ValueError: there is no such recipe for this network.
    """
    require(recipe, network)
    folder = results / recipe / network
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(RECIPES[recipe, network](experiment)):
        name = f"{number}-{row.method.replace(',', '').replace(' ', '-')}-seed-{row.seed}.json"
        write_atomically(folder / name, (json.dumps(asdict(row), indent=1) + "\n").encode())
        yield row


def data_for(network: str, directory: str | None) -> tuple[Dataset, tuple[Tensor, Tensor]]:
    """Return the data that a network's recipes are run on, without 5,000 training images, and these.

    That is MNIST; for VGG CIFAR-10, as published if it is there, else the copy that was recompressed with JPEG.
    """
    if not network.startswith("vgg"):
        return hold_out(mnist(directory), 5000)
    original = (data_folder(directory) / "cifar-10-batches-bin").exists()
    return hold_out(cifar10(directory) if original else cifar10_jpeg(directory), 5000)


def require(recipe: str, network: str) -> None:
    """Refuse a recipe that there is none of.

    Raises:
        ValueError: there is no such recipe for this network.
    """
    if (recipe, network) not in RECIPES:
        there = ", ".join(f"{name} --network {net}" for name, net in RECIPES)
        raise ValueError(f"reproduce: there is no recipe {recipe} for {network}; there are {there}")


def table(recipe: str, network: str, results: Path) -> str:
    """Return the rows that are there as a markdown table: for each place in a recipe the mean, and the range of seeds.

    Raises:
        FileNotFoundError: there are no rows of this recipe.
    """
    files = sorted((results / recipe / network).glob("*.json"))
    if not files:
        raise FileNotFoundError(
            f"{results}: holds no rows of {recipe} for {network}; pyro-bnn reproduce makes them"
        )
    places: dict[str, list[Row]] = {}
    for file in files:
        places.setdefault(file.name.split("-seed-")[0], []).append(
            Row(**json.loads(file.read_text()))
        )
    lines = [
        f"| {network} | seeds | test error | weights / nonzero | weights / those of the smaller network "
        "| architecture (first seed) | file, 4 bytes x weights / file | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for rows in places.values():
        sizes = [row.file_bytes for row in rows if row.file_bytes]
        rates = [4 * row.weights / row.file_bytes for row in rows if row.file_bytes]
        cells = [
            rows[0].method + (f" ({rows[0].note})" if rows[0].note else ""),
            ", ".join(str(row.seed) for row in rows),
            _spread([row.test_error for row in rows], "{:.2f} %"),
            _spread([row.weights / row.nonzero for row in rows], "{:.1f}x")
            if rows[0].nonzero
            else "none is left",
            _spread([row.weights / row.dense for row in rows], "{:.1f}x"),
            rows[0].architecture,
            f"{_spread(sizes, '{:,.0f}')} bytes, {_spread(rates, '{:.0f}x')}" if sizes else "",
            _spread([row.minutes for row in rows], "{:.0f}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[Any], form: str) -> str:
    mean = form.format(sum(values) / len(values))
    if len(values) == 1:
        return mean
    return f"{mean} ({form.format(min(values))} to {form.format(max(values))})"


# --- recipes ----------------------------------------------------------------------------------------------------------


def _row(
    experiment: Experiment, original: nn.Module, method: str, pruned: Pruned, **facts: Any
) -> Row:
    """Measure a pruned network."""
    return Row(
        method=method,
        seed=experiment.seed,
        test_error=100 * error_of(pruned.module, experiment.data.test),
        held_out_error=100 * error_of(pruned.module, experiment.held_out),
        weights=sum(weight.numel() for weight in original.parameters() if weight.dim() > 1),
        nonzero=sum(layer.kept for layer in pruned.report),
        dense=pruned.dense,
        architecture=pruned.architecture,
        minutes=experiment.minutes,
        **facts,
    )


_DROPOUT: dict[type[nn.Module], dict[str, float]] = {
    LeNet300100: {"fc1.weight": 0.2, "fc2.weight": 0.4, "fc3.weight": 0.4},
    LeNet5: {"fc1.weight": 0.3, "fc2.weight": 0.5},
}
# sizes of published architectures: 278-98-13, 311-86-14 and 97-71-33; 8-13-88-13 and, but for three units, 5-10-76-16.
# The horseshoe's noise over signal differs from layer to layer too much for one threshold, which leaves 100 units of
# the last layer: it is given the shares that normal-Jeffreys finds.
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
# numbers that are few learn at half the rate
_SLOWLY: dict[str, Any] = {"batch_size": 100, "learning_rate": 1e-3}


def _teacher(
    experiment: Experiment, network: type[nn.Module], epochs: int, shifted: bool = False
) -> nn.Module:
    return recipes.pretrained(experiment, network(), _DROPOUT[network], epochs, shifted)


def _sparse_300_100(experiment: Experiment) -> Iterator[Row]:
    pruned = compression.prune(recipes.sparse_lenet_300_100(experiment))
    yield _row(experiment, LeNet300100(), "Sparse VD", pruned, note="trained on all 60,000 images")
    # so few weights of a dense network have no room for moved digits; the filters of LeNet-5 do not mind
    lesson = experiment.distillation_data(_teacher(experiment, LeNet300100, 40), shifted=False)
    tuned = experiment.fine_tune("5-tuned", pruned, lesson, epochs=40, **_SLOWLY)
    yield _row(experiment, LeNet300100(), "Sparse VD, fine-tuned", tuned)
    for levels in (16, 8):
        coded = experiment.fine_tune(
            f"6-{levels}-levels", tuned, lesson, levels=levels, epochs=30, **_SLOWLY
        )
        yield _file_row(experiment, LeNet300100(), f"Sparse VD, {levels} values per layer", coded)


def _sparse_5(experiment: Experiment) -> Iterator[Row]:
    posterior = recipes.sparse_lenet_5(experiment)
    pruned = compression.prune(posterior)
    yield _row(experiment, LeNet5(), "Sparse VD", pruned)
    lesson = experiment.distillation_data(_teacher(experiment, LeNet5, 12))
    fewer = experiment.fine_tune(
        "5-tuned", recipes.prune_to_count(posterior, 430_500 // 350), lesson, epochs=24
    )
    yield _row(experiment, LeNet5(), "Sparse VD, 350 times fewer weights, fine-tuned", fewer)
    coded = experiment.fine_tune("6-8-levels", fewer, lesson, levels=8, epochs=6, **_SLOWLY)
    yield _file_row(
        experiment, LeNet5(), "Sparse VD, 350 times fewer weights, 8 values per layer", coded
    )


def _groups(
    experiment: Experiment, network: type[nn.Module], epochs: int, shifted: bool
) -> Iterator[Row]:
    """Both group priors, from one network that was trained for so many epochs, on moved images too or not."""
    lesson = experiment.distillation_data(_teacher(experiment, network, epochs, shifted))
    for method in (recipes.normal_jeffreys, recipes.group_horseshoe):
        own = experiment.within(method.name.replace(" ", "-"))
        for number, pruned in enumerate(
            recipes.by_groups(own, lesson, method, _STAGES[network, method.name])
        ):
            yield _file_row(own, network(), method.name, pruned)
            for name, levels in _LEVELS.get(network, {}).items():
                coded = own.fine_tune(
                    f"{number}-{name}", pruned, lesson, levels=levels, epochs=8, **_SLOWLY
                )
                yield _file_row(own, network(), f"{method.name}, {name} values per layer", coded)


def _vgg(
    experiment: Experiment, width: float, epochs: tuple[int, int], left: float
) -> Iterator[Row]:
    """Both group priors on the VGG-like network, from one network that was trained with dropout.

    Args:
        experiment: with images of 3 x 32 x 32.
        width: of the network.
        epochs: of the network; of each posterior, once with all groups and once with those that are left.
        left: the fraction of the groups of every layer that is left: noise differs too much between fifteen layers for
            one threshold.
    """
    rates = {"fc1.weight": 0.5, "fc2.weight": 0.5}
    trained = recipes.pretrained(experiment, VGG(width), rates, epochs[0])
    before = f"{100 * error_of(trained, experiment.data.test):.2f} % before"
    for method in (recipes.normal_jeffreys, recipes.group_horseshoe):
        own = experiment.within(method.name.replace(" ", "-"))
        model = vgg(experiment.num_data, method.prior(), net=trained)
        rise = linear_warmup(0, epochs[1])
        posterior = own.fit(
            "2-groups", model, method.guide(model), epochs=epochs[1], kl_weight=rise
        )
        measures = compression.group_measures(posterior, method.groups_by)
        limits = {name: float(measure.quantile(left)) for name, measure in measures.items()}
        pruned = compression.prune(posterior, group_threshold=limits, groups_by=method.groups_by)
        rate = linear_decay(1e-3, epochs[1] / 2, epochs[1])
        posterior = own.fit(
            "3-groups-left", *restrict(posterior, pruned), epochs=epochs[1], learning_rate=rate
        )
        pruned = compression.prune(posterior, math.inf, groups_by=method.groups_by)
        note = f"{experiment.data.name}, {epochs[0] + 2 * epochs[1]} epochs, {before}"
        yield _row(own, trained, method.name, pruned, note=note)


def _file_row(experiment: Experiment, original: nn.Module, method: str, pruned: Pruned) -> Row:
    """Write a file, of the units as they are or sorted, whichever is shorter, and measure what it decodes to."""
    path = (
        experiment.folder
        / f"{method.replace(' ', '-').replace(',', '')}-{pruned.architecture}.pbnn"
    )
    ways = (pruned.module, compression.sorted_units(pruned.module))
    write_atomically(path, min((compression.encode(module) for module in ways), key=len))
    row = _row(experiment, original, method, pruned, file_bytes=path.stat().st_size)
    return replace(row, test_error=100 * error_of(compression.load(path), experiment.data.test))


def _random_labels(experiment: Experiment) -> Iterator[Row]:
    """Binary dropout and Sparse VD on all training images with labels drawn by lot, and Sparse VD on the true ones."""
    true = experiment.everything
    by_lot = with_random_labels(true, experiment.seed)
    for name, labels, data in (
        ("binary dropout", "random labels", by_lot),
        ("Sparse VD", "random labels", by_lot),
        ("Sparse VD", "true labels", true),
    ):
        own = replace(experiment, data=data)
        posterior = recipes.fit_random_labels(own, f"{name}, {labels}", sparse=name == "Sparse VD")
        weights = {weight: mean for weight, (mean, _) in posterior.moments().items()}
        kl = 0.0
        if name == "Sparse VD":
            masks, _ = compression.keep_masks(posterior)
            weights = {weight: mean * masks[weight] for weight, mean in weights.items()}
            terms = ELBO()(posterior.model, posterior.guide).terms(
                *(part[:1] for part in data.train)
            )
            kl = float(sum(term.detach() for term in terms.kl.values())) / own.num_data
        network = posterior.model.network_with(weights).eval()
        total, nonzero = (
            sum(int(f(w)) for w in weights.values()) for f in (torch.numel, torch.count_nonzero)
        )
        known = f"training accuracy {1 - error_of(network, data.train):.1%}"
        known += (
            f", KL {kl:.2g} nats an image"
            if name == "Sparse VD"
            else f", rate {recipes.random_labels_dropout_rate}"
        )
        yield Row(
            method=f"{name}, {labels}",
            seed=experiment.seed,
            test_error=100 * error_of(network, data.test),
            held_out_error=100 * error_of(network, experiment.held_out),
            weights=total,
            nonzero=nonzero,
            dense=total,
            architecture="-".join(str(weight.shape[1]) for weight in weights.values()),
            minutes=own.minutes,
            note=f"{own.num_data:,} images, {known}",
        )


RECIPES: dict[tuple[str, str], Callable[[Experiment], Iterator[Row]]] = {
    ("sparse-vd", "lenet-300-100"): _sparse_300_100,
    ("sparse-vd", "lenet-5"): _sparse_5,
    ("bayesian-compression", "lenet-300-100"): partial(
        _groups, network=LeNet300100, epochs=16, shifted=True
    ),
    ("bayesian-compression", "lenet-5"): partial(_groups, network=LeNet5, epochs=12, shifted=False),
    ("bayesian-compression", "vgg"): partial(_vgg, width=1.0, epochs=(120, 60), left=1 / 4),
    ("bayesian-compression", "vgg-sixteenth"): partial(
        _vgg, width=1 / 16, epochs=(2, 2), left=3 / 4
    ),
    ("random-labels", "mlp"): _random_labels,
}
