"""Dense layers, convolutions and batch norms: their sizes, options and tensors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from .argument_codes import FloatCode
from .forms import ImageSize, Matrix, State
from .network_sources import LARGEST_SIZE, Source
from .number_grids import DTYPES
from .range_coder import Coder, FormatError

__all__ = ["LayerCoder", "TensorStream"]

_MODES = ("zeros", "reflect", "replicate", "circular")
_PADDINGS = (None, "same", "valid")
Convolution = TypeVar("Convolution", nn.Conv1d, nn.Conv2d)
BatchNorm = TypeVar("BatchNorm", nn.BatchNorm1d, nn.BatchNorm2d)


class TensorStream(Protocol):
    """The part of a writer or reader that layers need; see :class:`.network_codes.Stream`."""

    coder: Coder
    state: State

    def tensor(self, matrix: Matrix, shape: Sequence[int], tensor: Tensor) -> Tensor:
        """Code a tensor of known shape; when reading, ``tensor`` is a blank."""
        ...


class _ConvolutionOptions(NamedTuple):
    """The options of a convolution that are rarely set."""

    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str


class LayerCoder:
    """Code one layer.

    Args:
        stream: Writer or reader.
        source: The layer to write, or a blank.
        width: Size of the second axis of the input; ``None`` where it is not known.
        columns: Inputs that the second axis holds, if it is a selection of them.
    """

    def __init__(
        self,
        stream: TensorStream,
        source: Source,
        width: int | None,
        columns: list[int] | None,
    ) -> None:
        self._stream, self._source = stream, source
        self._coder, self._state = stream.coder, stream.state
        self._width_before, self._columns = width, columns

    def code(self, kind: type[nn.Module]) -> nn.Module:
        """Code the layer and return it.

        Raises:
            FormatError: The file does not hold such a layer.
        """
        if kind is nn.Linear:
            return self._code_linear(self._source.layer(nn.Linear))
        if kind is nn.Conv1d:
            return self._code_convolution(nn.Conv1d, self._source.layer(nn.Conv1d))
        if kind is nn.Conv2d:
            return self._code_convolution(nn.Conv2d, self._source.layer(nn.Conv2d))
        if kind is nn.BatchNorm1d:
            return self._code_norm(nn.BatchNorm1d, self._source.layer(nn.BatchNorm1d))
        return self._code_norm(nn.BatchNorm2d, self._source.layer(nn.BatchNorm2d))

    def _code_dtype(self, layer: nn.Module) -> None:
        dtypes = list(DTYPES)
        first = next(iter(layer.state_dict().values()))
        number = self._state.numbers.code(self._coder, dtypes.index(first.dtype), "type")
        if number >= len(dtypes):
            raise FormatError(
                f"expected one of {len(dtypes)} types of numbers, found number {number}"
            )
        self._state.dtype = dtypes[number]

    def _code_linear(self, original: nn.Linear) -> nn.Linear:
        self._code_dtype(original)
        inputs = self._code_input_width(original.in_features)
        outputs = self._code_size(original.out_features, "width")
        layer = _make(nn.Linear, inputs, outputs, bias=False)
        columns: Sequence[int] = range(inputs)
        if self._columns is not None and len(self._columns) == inputs:
            columns = self._columns
        self._code_weight_and_bias(layer, original, Matrix(outputs, columns, "weight"))
        return layer

    def _code_convolution(self, kind: type[Convolution], original: Convolution) -> Convolution:
        self._code_dtype(original)
        inputs = self._code_input_width(original.in_channels)
        outputs = self._code_size(original.out_channels, "width")
        kernel = self._code_sizes(original.kernel_size, "kernel")
        options = self._code_options(original)
        layer = _make(kind, inputs, outputs, kernel, bias=False, **options._asdict())
        area = math.prod(kernel)
        if area > 1:
            self._state.image = ImageSize(area // kernel[-1], kernel[-1])
        columns = range(layer.weight.shape[1] * area)
        self._code_weight_and_bias(layer, original, Matrix(outputs, columns, "weight"))
        return layer

    def _code_norm(self, kind: type[BatchNorm], original: BatchNorm) -> BatchNorm:
        self._code_dtype(original)
        features = self._code_input_width(original.num_features)
        affine = self._code_size(int(not original.affine), "not affine") == 0
        eps = FloatCode().code(self._coder, self._state, original.eps)
        layer = _make(kind, features, eps=eps, affine=False)
        layer.affine = affine
        layer.running_mean = self._code_vector(features, original.running_mean, "running_mean")
        layer.running_var = self._code_vector(features, original.running_var, "running_var")
        layer.num_batches_tracked = torch.tensor(0)
        if affine:
            layer.weight = nn.Parameter(self._code_vector(features, original.weight, "weight"))
            layer.bias = nn.Parameter(self._code_vector(features, original.bias, "bias"))
        return layer

    # --- sizes ----------------------------------------------------------------------------

    def _code_size(self, value: int, context: str, limit: int = LARGEST_SIZE) -> int:
        size = self._state.numbers.code(self._coder, value, context)
        if size > limit:
            raise FormatError(f"expected a size up to {limit:,}, found {size:,} for {context!r}")
        return size

    def _code_input_width(self, value: int) -> int:
        """Code the number of inputs: nearly always the number of outputs of the layer before."""
        likely = self._width_before
        if likely is not None and self._code_size(int(value != likely), "other width") == 0:
            return likely
        return self._code_size(value, "width")

    def _code_sizes(self, values: Sequence[int], context: str) -> tuple[int, ...]:
        """Code one size per axis: the first, then how much each of the others differs from it."""
        first = self._code_size(values[0], context)
        sizes = [first]
        for value in values[1:]:
            step = value - values[0]
            sizes.append(first + self._state.numbers.signed(self._coder, step, f"{context} step"))
        if min(sizes) < 0 or max(sizes) > LARGEST_SIZE:
            raise FormatError(
                f"expected sizes from 0 to {LARGEST_SIZE:,}, found {tuple(sizes)} for {context!r}"
            )
        return tuple(sizes)

    def _code_options(self, original: nn.Conv1d | nn.Conv2d) -> _ConvolutionOptions:
        """Code the options of a convolution: 0 if all are as usual, otherwise one after another."""
        axes = len(original.kernel_size)
        usual = _ConvolutionOptions((1,) * axes, (0,) * axes, (1,) * axes, 1, "zeros")
        options = _ConvolutionOptions(
            original.stride,
            original.padding,
            original.dilation,
            original.groups,
            original.padding_mode,
        )
        if self._code_size(int(options != usual), "options") == 0:
            return usual
        stride = self._code_sizes(options.stride, "stride")
        padding = self._code_padding(options.padding, axes)
        dilation = self._code_sizes(options.dilation, "dilation")
        groups = self._code_size(options.groups, "groups")
        mode = self._code_size(_MODES.index(options.padding_mode), "mode", len(_MODES) - 1)
        return _ConvolutionOptions(stride, padding, dilation, groups, _MODES[mode])

    def _code_padding(self, padding: tuple[int, ...] | str, axes: int) -> tuple[int, ...] | str:
        """Code which kind of padding a convolution has, and its sizes if it is not a named one."""
        name: str | None = None
        sizes = (0,) * axes
        if isinstance(padding, str):
            name = padding
        else:
            sizes = padding
        last = len(_PADDINGS) - 1
        name = _PADDINGS[self._code_size(_PADDINGS.index(name), "padding kind", last)]
        if name is not None:
            return name
        return self._code_sizes(sizes, "padding")

    # --- tensors --------------------------------------------------------------------------

    def _code_weight_and_bias(
        self,
        layer: nn.Linear | nn.Conv1d | nn.Conv2d,
        original: nn.Linear | nn.Conv1d | nn.Conv2d,
        matrix: Matrix,
    ) -> None:
        """Code whether there is a bias, the weight, and the bias if there is one."""
        has_bias = self._code_size(int(original.bias is None), "no bias") == 0
        weight = self._stream.tensor(matrix, layer.weight.shape, original.weight)
        layer.weight = nn.Parameter(weight)
        if has_bias:
            layer.bias = nn.Parameter(self._code_vector(matrix.rows, original.bias, "bias"))

    def _code_vector(self, size: int, tensor: Tensor | None, name: str) -> Tensor:
        assert tensor is not None  # the source checked that the layer has it
        matrix = Matrix(1, range(size), f"{name} of units")
        return self._stream.tensor(matrix, (size,), tensor)


_Layer = TypeVar("_Layer", bound=nn.Module)


def _make(kind: Callable[..., _Layer], *args: Any, **kwargs: Any) -> _Layer:
    """Return a layer whose tensors take no memory yet.

    Raises:
        FormatError: There is no layer with these sizes.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # layers without inputs or outputs
            return kind(*args, device="meta", **kwargs)
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:
        name = getattr(kind, "__name__", kind)
        raise FormatError(f"expected a layer, found sizes that no {name} has: {error}") from error
