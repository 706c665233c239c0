"""Evaluate compressed files: decode a network, identify its data and its original, and test it."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from pyro_bnn.compression.pbnn.codec import load
from pyro_bnn.datasets import Dataset
from pyro_bnn.metrics import error_of

from .names import ModelName
from .registry import build, read_data
from .run import load_data
from .settings import Settings

__all__ = ["FileEvaluation", "Original", "evaluate_compressed", "evaluate_file", "find_original"]


@dataclass(frozen=True)
class FileEvaluation:
    """The error of a compressed file on test data, and its size.

    Attributes:
        path: of the file.
        bytes: the size of the file.
        error: the fraction of test examples that its network gets wrong.
        examples: the number of test examples.
        data: the name of the data set.
        nonzero: the number of nonzero weights of the decoded network.
        weights: the number of weights of the original network, without biases; ``None`` if unknown.
        original: the name of the original network.
    """

    path: str
    bytes: int
    error: float
    examples: int
    data: str
    nonzero: int
    weights: int | None = None
    original: str = ""

    @property
    def rate(self) -> float | None:
        """The compression rate: 4 bytes per weight of the original over the bytes of the file."""
        return None if self.weights is None else 4 * self.weights / self.bytes

    def __str__(self) -> str:
        wrong = round(self.error * self.examples)
        rate = "compression rate: not known; name the network that it was, --model lenet-300-100"
        if self.weights is not None:
            rate = (
                f"compression rate {self.rate:,.1f}: 4 bytes for each of the {self.weights:,} "
                f"weights of {self.original}, over the bytes of the file"
            )
        return (
            f"{self.path}: {self.bytes:,} bytes, {self.nonzero:,} weights that are not zero\n"
            f"test error {self.error:.2%} ({wrong:,} of {self.examples:,} test examples of "
            f"{self.data})\n{rate}"
        )


class Original(NamedTuple):
    """The network that was compressed.

    Attributes:
        weights: the number of its weights, without biases; ``None`` if unknown.
        name: its name; empty if unknown.
    """

    weights: int | None = None
    name: str = ""


def evaluate_compressed(
    path: Path, data_name: str | None, directory: str | None, original: str | None
) -> FileEvaluation:
    """Decode a file and evaluate its network on test data.

    Args:
        path: of a file that ``pyro-bnn compress`` or :func:`~pyro_bnn.compression.save` wrote.
        data_name: the data set that the network was trained on; ``None`` where the report of
            ``pyro-bnn compress`` lies beside the file.
        directory: the folder of all data sets; ``None`` for the default.
        original: the name of the original model; ``None`` for that of the run, or, on MNIST, for
            the LeNet whose layers fit.

    Raises:
        FormatError: if the file is damaged or not a compressed network.
        ValueError: if the data are not those of the run, or the model does not fit.
    """
    network = load(path)
    settings = _settings_beside(path)
    if settings is None:
        if data_name is None:
            raise ValueError(
                f"{path}: expected --data, the data set to test a compressed file on, "
                "such as mnist or digits"
            )
        data = read_data(data_name, split=0, directory=directory)
        return evaluate_file(path, data, network, find_original(network, data, original))
    if data_name not in (None, settings.data):
        raise ValueError(
            f"{path}: was made of a run on {settings.data}, got --data {data_name}; "
            "leave --data out"
        )
    data, _ = load_data(settings, directory)
    if original not in (None, settings.model):
        return evaluate_file(path, data, network, find_original(network, data, original))
    weights = _count(_layers_of_settings(settings, data))
    return evaluate_file(path, data, network, Original(weights, settings.model))


def evaluate_file(
    path: Path, data: Dataset, network: nn.Module, original: Original
) -> FileEvaluation:
    """Return the error of a decoded network on test data, and the size of its file.

    Args:
        path: of the file.
        data: of classes; its test part is used.
        network: as :func:`~pyro_bnn.compression.load` returns it.
        original: the network that was compressed.

    Raises:
        ValueError: if the targets are real numbers, or the network does not take the inputs.
    """
    if data.classes is None:
        raise ValueError(
            f"{path}: expected data of classes to compute a test error, but the targets of "
            f"{data.name} are real numbers; take the data that it was trained on"
        )
    try:
        # torch.fx prints the traceback of an error of its own accord
        with contextlib.redirect_stderr(io.StringIO()):
            error = error_of(network, data.test)
    except (RuntimeError, IndexError) as failure:
        inputs = "x".join(map(str, data.x_test.shape[1:]))
        raise ValueError(
            f"{path}: its network does not take the inputs of {data.name}, {inputs} numbers each; "
            f"take the data that it was trained on ({failure})"
        ) from failure
    nonzero = 0
    for parameter in network.parameters():
        if parameter.dim() > 1:
            nonzero += int(parameter.count_nonzero())
    return FileEvaluation(
        path=str(path),
        bytes=path.stat().st_size,
        error=error,
        examples=len(data.x_test),
        data=data.name,
        nonzero=nonzero,
        weights=original.weights,
        original=original.name,
    )


def _settings_beside(path: Path) -> Settings | None:
    """Return the settings of the run that a file was made of.

    They are in the report beside the file; ``None`` if there is no report, or if it belongs to a
    file of another size.
    """
    try:
        report = json.loads(path.with_name("report.json").read_bytes())
        if report["file_bytes"] != path.stat().st_size:
            return None
        return Settings(**report["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


# --- the original network -------------------------------------------------------------------------

_FIXED = (ModelName.LENET_300_100, ModelName.LENET_5)  # models whose widths follow from the name


class _LayerShape(NamedTuple):
    """The kind of a layer, and the shape of its weight."""

    dense: bool
    shape: torch.Size

    def fits_in(self, original: _LayerShape) -> bool:
        """Return whether pruning could have made this layer from another."""
        if self.dense != original.dense or len(self.shape) != len(original.shape):
            return False
        sizes = zip(self.shape, original.shape, strict=True)
        return all(size <= original_size for size, original_size in sizes)


def find_original(network: nn.Module, data: Dataset, name: str | None) -> Original:
    """Return the original of a compressed network.

    Args:
        network: the compressed network.
        data: the data set that it was trained on.
        name: of the original model. If ``None``, the LeNet whose layers fit is taken for images of
            the size of MNIST; for other data the original is unknown.

    Raises:
        ValueError: if the named model is unknown or does not fit the network.
    """
    if name is not None:
        model = ModelName(name)
        original = _original_if_fits(network, data, model)
        if original is None:
            raise ValueError(
                f"model: the network in the file is no smaller {model} for {data.name}: "
                "its layers do not fit"
            )
        return original
    if data.x_train[0].numel() == 28 * 28:
        for model in _FIXED:
            original = _original_if_fits(network, data, model)
            if original is not None:
                return original
    return Original()


def _original_if_fits(network: nn.Module, data: Dataset, model: ModelName) -> Original | None:
    """Return a model as the original of a network, or ``None`` if the layers do not fit."""
    try:
        settings = Settings(model, prior="normal", guide="mean-field")
        originals = _layers_of_settings(settings, data)
    except ValueError:  # for example, images too small for the model
        return None
    layers = _layer_shapes(network)
    if len(layers) != len(originals):
        return None
    pairs = zip(layers, originals, strict=True)
    if not all(layer.fits_in(original) for layer, original in pairs):
        return None
    return Original(_count(originals), str(model))


def _count(layers: Sequence[_LayerShape]) -> int:
    return sum(layer.shape.numel() for layer in layers)


def _layers_of_settings(settings: Settings, data: Dataset) -> list[_LayerShape]:
    """Return the layers of the network that settings describe."""
    model, _ = build(settings, data)
    return _layer_shapes(model.network_with(model.weights()))


def _layer_shapes(network: nn.Module) -> list[_LayerShape]:
    """Return the layers that have a weight, in order."""
    shapes = []
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            shapes.append(_LayerShape(isinstance(module, nn.Linear), module.weight.shape))
    return shapes
