"""Checks of a program against the data, made before the first step of an inference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pyro.distributions import TorchDistribution
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from .program import sample_sites
from .validation import DataError

__all__ = ["require_observable", "require_program_fits_data", "require_whole_plate"]


def require_program_fits_data(
    trace: Trace,
    batch: Sequence[Tensor],
    targets: Tensor | None,
    num_data: int,
    caller: str = "fit",
) -> None:
    """Check the site that observes the targets: its support, and the size of its plate.

    Args:
        trace: trace of the model, run on ``batch``.
        batch: one minibatch, ``(x, y)``; one without targets has nothing to check.
        targets: all targets that are available, not only those of the batch.
        num_data: N, the number of examples in the data set.
        caller: name of the function that the user called, with which messages begin.

    Raises:
        DataError: a target outside the support of the likelihood.
        ValueError: a plate over the data whose size is not N.
    """
    if targets is None:
        return
    for name, site in sample_sites(trace):
        if site["is_observed"] and site["value"] is batch[1]:
            require_observable(name, site["fn"], targets, caller)
            require_whole_plate(name, site["cond_indep_stack"], num_data, caller)


def require_observable(
    name: str, distribution: TorchDistribution, y: Tensor, caller: str = "fit"
) -> None:
    """Check that targets lie in the support of the likelihood: a label 10 of ten classes does not.

    Raises:
        DataError: a target lies outside the support; the message names the first one.
    """
    support = distribution.support
    if support is None:
        return
    impossible = (~support.check(y)).nonzero()
    if len(impossible):
        index = tuple(impossible[0].tolist())
        raise DataError(
            f"{caller}: y{list(index)} = {y[index].tolist()} cannot be observed at site {name!r}: "
            f"expected values in {support}"
        )


def require_whole_plate(
    name: str, plates: Iterable[CondIndepStackFrame], num_data: int, caller: str = "fit"
) -> None:
    """Check that a plate over the data has the size of the data set.

    The ELBO scales the log-likelihood of a minibatch by the size of this plate over that of the
    batch. With a plate of another size it would be the ELBO of another data set.

    Raises:
        ValueError: the sizes differ; the message names the plate and both sizes.
    """
    for plate in plates:
        size = plate.full_size or plate.size
        if plate.dim == -1 and size != num_data:
            raise ValueError(
                f"{caller}: site {name!r} lies in the plate {plate.name!r} of {size} examples but "
                f"the data have {num_data}; the plate must have the size of the whole data set, "
                f"whatever the size of a batch: "
                f"pyro.plate({plate.name!r}, {num_data}, subsample=range(len(x)))"
            )
