"""The forms of a tensor in a file, and the state that one tensor leaves for the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Literal, NamedTuple

import torch

from .context_mixing import Numbers

__all__ = [
    "NO_IMAGE",
    "ImageSize",
    "Matrix",
    "Positions",
    "Section",
    "State",
    "TensorForm",
    "Values",
]

Section = Literal["graph", "positions", "values", "codebook"]


class Positions(IntEnum):
    """The forms of the positions of nonzero numbers; the values are the codes in a file."""

    ALL = 0
    GAPS = 1
    MASK = 2


class Values(IntEnum):
    """The forms of the numbers themselves; the values are the codes in a file."""

    CODEBOOK = 0
    INTEGERS = 1
    RAW = 2


class ImageSize(NamedTuple):
    """Size of the images whose points are the columns of a matrix.

    Column ``c * height * width + y * width + x`` is the point (y, x) of image c. If the columns
    are not points of images, the size is :data:`NO_IMAGE`.
    """

    height: int
    width: int

    @property
    def area(self) -> int:
        """The number of points."""
        return self.height * self.width


NO_IMAGE = ImageSize(0, 0)


@dataclass(frozen=True)
class TensorForm:
    """The form in which the encoder writes a tensor; a reader learns it from the file.

    Attributes:
        positions: How the positions of the nonzero numbers are coded.
        image: The images that columns are points of, if the positions are a mask.
        values: How the nonzero numbers are coded.
        ascending: Whether the numbers, in the order of their positions, do not decrease.
        fixed: Whether the number grid is in fixed point; see :class:`.number_grids.NumberGrid`.
        codebook: 0 for a new codebook, k for the k-th last codebook of the file.
    """

    positions: Positions = Positions.ALL
    image: ImageSize = NO_IMAGE
    values: Values = Values.RAW
    ascending: bool = False
    fixed: bool = False
    codebook: int = 0


@dataclass(frozen=True)
class Matrix:
    """A tensor seen as a matrix of units by inputs.

    Attributes:
        rows: The number of units.
        columns: The number of each column, by which columns are placed in images.
        kind: What the numbers are: ``"weight"``, ``"bias of units"``, ... Each kind has
            statistics of its own.
    """

    rows: int
    columns: Sequence[int]
    kind: str

    @property
    def size(self) -> int:
        """The number of entries."""
        return self.rows * len(self.columns)


@dataclass
class State:
    """The state that encoder and decoder share at a point of the file.

    Attributes:
        dtype: Type of the numbers of the present layer.
        numbers: The statistics of integers.
        codebooks: All codebooks so far, as bit patterns.
        image: The last image size.
        section: The kind of content being coded; only :class:`.sizes.SizeMeter` reads it.
    """

    dtype: torch.dtype = torch.float32
    numbers: Numbers = field(default_factory=Numbers)
    codebooks: list[tuple[int, ...]] = field(default_factory=list)
    image: ImageSize = NO_IMAGE
    section: Section = "graph"

    def copy(self) -> State:
        """Return an independent copy."""
        return replace(self, numbers=self.numbers.copy(), codebooks=list(self.codebooks))
