"""Minibatches: an endless, seeded stream of them, from tensors or from a ``DataLoader``.

Both kinds have ``num_data``, the number of examples N; ``per_epoch``, how many batches make an epoch, as an exact
fraction; and ``stream(start, device)``, the batches from number ``start`` on, a function of seed and ``start`` alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .validation import validate

__all__ = ["LoaderBatches", "TensorBatches", "batches_of"]


def batches_of(
    data: Tensor | Sequence[Tensor] | Iterable[Any],
    batch_size: int | None,
    seed: int,
    num_data: int | None,
    caller: str = "fit",
) -> TensorBatches | LoaderBatches:
    """Return the stream of minibatches of these data.

    Args:
        data: tensors of the same length, or a ``DataLoader``.
        batch_size: B; ``None`` for all the data, or what the loader says.
        seed: of the order.
        num_data: N as the model has it, or ``None`` where it does not say.
        caller: name of the function that the user called, with which messages begin.

    Raises:
        ValueError: a batch size or a number of examples that does not fit; a loader without a length.
        DataError: numbers that are not finite; tensors of different lengths.
    """
    if isinstance(data, Tensor):
        data = (data,)
    if isinstance(data, tuple | list) and data and all(isinstance(part, Tensor) for part in data):
        batches: TensorBatches | LoaderBatches = TensorBatches(
            tuple(data), batch_size, seed, caller
        )
    elif (
        isinstance(data, tuple | list)
        or not hasattr(data, "__len__")
        or not hasattr(data, "__iter__")
    ):
        kinds = (
            [type(part).__name__ for part in data]
            if isinstance(data, tuple | list)
            else type(data).__name__
        )
        raise ValueError(
            f"{caller}: expected tensors (x, y) or a DataLoader that knows its length, got {kinds}"
        )
    elif batch_size is not None:
        raise ValueError(
            f"{caller}: a loader decides on its batches itself, but batch_size={batch_size} was given; leave it out"
        )
    else:
        batches = LoaderBatches(data, seed, num_data)
    if num_data is not None and batches.num_data != num_data:
        raise ValueError(
            f"{caller}: the data have {batches.num_data} examples but the model's num_data is {num_data}; "
            f"if this is a part of the data (a training split), the model should say so: num_data={batches.num_data}"
        )
    return batches


class TensorBatches:
    """Batches of one size: epochs are permutations laid end to end; what is left of one is carried into the next."""

    def __init__(
        self, tensors: tuple[Tensor, ...], size: int | None, seed: int, caller: str = "fit"
    ) -> None:
        if len(tensors) == 1:
            validate(tensors[0], tensors[0])
        for other in tensors[1:]:
            validate(tensors[0], other)
        self.tensors = tuple(
            part.contiguous() for part in tensors
        )  # as compiled functions expect them
        self.seed, self.num_data = seed, len(tensors[0])
        if size is not None and (not isinstance(size, Integral) or size < 1):
            raise ValueError(
                f"{caller}: expected a batch_size that is a whole number of at least 1, got {size!r}"
            )
        self.size = self.num_data if size is None else int(size)
        if self.size > self.num_data:
            raise ValueError(
                f"{caller}: batch_size={size} is larger than the data set of {self.num_data}; "
                f"use batch_size={self.num_data} or None"
            )
        self.per_epoch = Fraction(self.num_data, self.size)
        self._permutation = (-1, torch.empty(0))

    def stream(self, start: int, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
        """Yield batches from number ``start`` on; the data are moved to the device once."""
        tensors = tuple(part.to(device) for part in self.tensors)
        if self.size == self.num_data:
            yield from itertools.repeat(tensors)
        for step in itertools.count(start):
            index = torch.cat(list(self._indices(step * self.size, (step + 1) * self.size))).to(
                device
            )
            yield tuple(part[index] for part in tensors)

    def _indices(self, begin: int, end: int) -> Iterator[Tensor]:
        """Yield the examples number begin to end of the permutations laid end to end."""
        for epoch in range(begin // self.num_data, (end - 1) // self.num_data + 1):
            if self._permutation[0] != epoch:
                generator = torch.Generator().manual_seed(_seed(self.seed, epoch))
                self._permutation = (epoch, torch.randperm(self.num_data, generator=generator))
            first = epoch * self.num_data
            yield self._permutation[1][max(begin - first, 0) : end - first]

    def fingerprint(self) -> str:
        """Return a SHA-256 of the data."""
        digest = hashlib.sha256()
        for part in self.tensors:
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            digest.update(
                part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
        return digest.hexdigest()

    def borrowed(self) -> contextlib.AbstractContextManager[None]:
        """Return a context for the time of use; tensors need none."""
        return contextlib.nullcontext()


class LoaderBatches:
    """The batches of a ``DataLoader``, in an order that is a function of seed and epoch: a run can be resumed anywhere.

    That holds for what draws its random numbers from torch, in this process.
    """

    def __init__(self, loader: Any, seed: int, num_data: int | None) -> None:
        if len(loader) < 1:
            raise ValueError("fit: the loader has no batches")
        sized = hasattr(getattr(loader, "dataset", None), "__len__")
        self.loader, self.seed = loader, seed
        known = len(loader.dataset) if sized else num_data
        if known is None:
            raise ValueError(
                "fit: the loader's dataset has no length and the model has no num_data: "
                "one of them must say how many examples there are"
            )
        self.num_data, self.size = known, None
        self.per_epoch = Fraction(len(loader))
        owners = (loader, getattr(loader, "sampler", None))
        self._generators = {
            id(g): g
            for g in (getattr(owner, "generator", None) for owner in owners)
            if g is not None
        }

    def stream(self, start: int, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
        """Yield batches from number ``start`` on; those before it in its epoch are read and left out."""
        for epoch in itertools.count(start // len(self.loader)):
            for number, batch in enumerate(self._epoch(epoch), epoch * len(self.loader)):
                if number >= start:
                    parts = batch if isinstance(batch, tuple | list) else (batch,)
                    yield tuple(part.to(device) for part in parts)

    def _epoch(self, epoch: int) -> Iterator[Any]:
        seed = _seed(self.seed, epoch)
        for generator in self._generators.values():
            generator.manual_seed(seed)
        own, iterator = torch.Generator().manual_seed(seed).get_state(), None
        for number in range(len(self.loader)):
            outside = torch.get_rng_state()
            torch.set_rng_state(own)
            try:
                iterator = iter(self.loader) if iterator is None else iterator
                batch = next(iterator)
            except StopIteration:
                raise ValueError(
                    f"fit: the loader has {number} batches but says that it has {len(self.loader)}"
                ) from None
            finally:
                own = torch.get_rng_state()
                torch.set_rng_state(outside)
            yield batch

    def fingerprint(self) -> str:
        """Return what is known of the data without reading them."""
        return f"a loader of {len(self.loader)} batches"

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[None]:
        """Leave the loader's generators afterwards as they were."""
        states = [(generator, generator.get_state()) for generator in self._generators.values()]
        try:
            yield
        finally:
            for generator, state in states:
                generator.set_state(state)


def _seed(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch + 1) % 2**63
