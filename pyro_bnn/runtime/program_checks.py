"""Checks of a program before its first step."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_bnn.runtime.validation import DataError

__all__ = ["require_observable", "require_whole_plate"]


def require_observable(name: str, distribution: Any, y: Tensor, caller: str = "fit") -> None:
    """Refuse data outside the support of the likelihood: a label of 10 for ten classes, say.

    Raises:
        DataError: with the first offending value.
    """
    bad = (~distribution.support.check(y)).nonzero()
    if len(bad):
        index = tuple(bad[0].tolist())
        raise DataError(
            f"{caller}: y{list(index)} = {y[index].tolist()} cannot be observed at site {name!r}: "
            f"expected values in {distribution.support}"
        )


def require_whole_plate(name: str, plates: Any, num_data: int, caller: str = "fit") -> None:
    """Refuse a model whose plate over the data has another size than the data set: its ELBO would be of other data.

    Raises:
        ValueError: naming the plate and the two sizes.
    """
    for plate in plates:
        size = plate.full_size or plate.size
        if plate.dim == -1 and size != num_data:
            raise ValueError(
                f"{caller}: site {name!r} lies in the plate {plate.name!r} of {size} examples but the data have {num_data}; "
                f"the plate must have the size of the whole data set, whatever the size of a batch: "
                f"pyro.plate({plate.name!r}, {num_data}, subsample=range(len(x)))"
            )
