"""The published tables: rows are JSON files, and a table is made of the rows that are available.

``pyro-bnn reproduce`` writes each row as soon as it is known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from pyro_bnn.datasets import Dataset, cifar10, cifar10_jpeg, data_folder, hold_out, mnist
from pyro_bnn.runtime.tensor_files import write_atomically
from pyro_bnn.runtime.text_table import format_markdown_table

from .experiment import Experiment
from .rows import RECIPES, Row

__all__ = ["RECIPES", "Row", "data_for", "format_rows", "reproduce", "require_recipe"]

HELD_OUT = 5000


def reproduce(recipe: str, network: str, experiment: Experiment, results: Path) -> Iterator[Row]:
    """Run a recipe; write each row into the folder ``results`` as it comes, and yield it.

    Raises:
        ValueError: if there is no such recipe for this network.
    """
    require_recipe(recipe, network)
    folder = results / recipe / network
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(RECIPES[recipe, network](experiment)):
        name = f"{number}-{row.method.replace(',', '').replace(' ', '-')}-seed-{row.seed}.json"
        write_atomically(folder / name, (json.dumps(asdict(row), indent=1) + "\n").encode())
        yield row


def data_for(network: str, directory: str | None) -> tuple[Dataset, tuple[Tensor, Tensor]]:
    """Return the data of a network's recipes without 5,000 training images, and these images.

    The data are MNIST; for VGG CIFAR-10, as published if it is in the folder, else the copy that
    was recompressed with JPEG.
    """
    if not network.startswith("vgg"):
        return hold_out(mnist(directory), HELD_OUT)
    if (data_folder(directory) / "cifar-10-batches-bin").exists():
        return hold_out(cifar10(directory), HELD_OUT)
    return hold_out(cifar10_jpeg(directory), HELD_OUT)


def require_recipe(recipe: str, network: str) -> None:
    """Refuse a recipe that does not exist.

    Raises:
        ValueError: if there is no such recipe for this network.
    """
    if (recipe, network) not in RECIPES:
        available = ", ".join(f"{name} --network {net}" for name, net in RECIPES)
        raise ValueError(
            f"reproduce: there is no recipe {recipe} for {network}; available are {available}"
        )


def format_rows(recipe: str, network: str, results: Path) -> str:
    """Return the available rows of a recipe as a Markdown table.

    Each row of the table is one network of the recipe, with mean and range over the seeds.

    Raises:
        FileNotFoundError: if there are no rows of this recipe.
    """
    files = sorted((results / recipe / network).glob("*.json"))
    if not files:
        raise FileNotFoundError(
            f"{results}: holds no rows of {recipe} for {network}; pyro-bnn reproduce makes them"
        )
    rows_by_network: dict[str, list[Row]] = {}
    for file in files:
        name, _, _ = file.name.partition("-seed-")
        row = Row(**json.loads(file.read_text()))
        rows_by_network.setdefault(name, []).append(row)
    header = (
        network,
        "seeds",
        "test error",
        "weights / nonzero",
        "weights / those of the smaller network",
        "architecture (first seed)",
        "file, 4 bytes x weights / file",
        "minutes",
    )
    cells = [_cells(rows) for rows in rows_by_network.values()]
    return format_markdown_table(header, cells, align="l" * len(header)) + "\n"


def _cells(rows: Sequence[Row]) -> list[str]:
    """Return the cells of one row of the table, from the rows of its seeds."""
    first = rows[0]
    method = f"{first.method} ({first.note})" if first.note else first.method
    sparsity = "none is left"
    if first.nonzero:
        sparsity = _spread([row.weights / row.nonzero for row in rows], "{:.1f}x")
    return [
        method,
        ", ".join(str(row.seed) for row in rows),
        _spread([row.test_error for row in rows], "{:.2f} %"),
        sparsity,
        _spread([row.weights / row.dense for row in rows], "{:.1f}x"),
        first.architecture,
        _file_cell(rows),
        _spread([row.minutes for row in rows], "{:.0f}"),
    ]


def _file_cell(rows: Sequence[Row]) -> str:
    """Return sizes and compression rates of the files, or an empty string."""
    sizes, rates = [], []
    for row in rows:
        if row.file_bytes:
            sizes.append(float(row.file_bytes))
            rates.append(4 * row.weights / row.file_bytes)
    if not sizes:
        return ""
    return f"{_spread(sizes, '{:,.0f}')} bytes, {_spread(rates, '{:.0f}x')}"


def _spread(values: Sequence[float], form: str) -> str:
    """Return the mean, and the range if there is more than one value."""
    mean = form.format(sum(values) / len(values))
    if len(values) == 1:
        return mean
    return f"{mean} ({form.format(min(values))} to {form.format(max(values))})"
