"""Minibatches: an endless stream of them, from tensors or from a ``DataLoader``.

The order is a function of seed and epoch alone, so that an interrupted run can continue at any
batch. :func:`batches_of` returns the right kind for the data, :class:`TensorBatches` or
:class:`LoaderBatches`; both have the interface :class:`Minibatches`.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager
from fractions import Fraction
from numbers import Integral
from typing import Protocol, TypeGuard

import torch
from torch import Tensor

from .rng import preserve_states
from .validation import validate

__all__ = ["Data", "LoaderBatches", "Minibatches", "TensorBatches", "batches_of", "fingerprint"]


class Loader(Protocol):
    """A ``torch.utils.data.DataLoader``, or anything else that yields batches and has a length."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""

    def __iter__(self) -> Iterator[Tensor | Sequence[Tensor]]:
        """Yield the batches of one epoch."""


Data = Tensor | Sequence[Tensor] | Loader
"""Tensors of the same length, such as ``(x, y)``, or a loader of minibatches of them."""


class Minibatches(Protocol):
    """An endless stream of minibatches."""

    @property
    def num_data(self) -> int:
        """N, the number of examples."""

    @property
    def size(self) -> int | None:
        """B, the number of examples in each batch; ``None`` if a loader decides."""

    @property
    def per_epoch(self) -> Fraction:
        """The number of batches in an epoch, N/B, as an exact fraction."""

    def stream(self, start: int, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches from number ``start`` on, as tensors on a device."""

    def fingerprint(self) -> str:
        """Return a text that identifies the data."""

    def preserve_rng_state(self) -> AbstractContextManager[None]:
        """Return a context at whose end the generators of the data are as they were before."""


def batches_of(
    data: Data, batch_size: int | None, seed: int, num_data: int | None, caller: str = "fit"
) -> Minibatches:
    """Return a stream of minibatches of some data.

    Args:
        data: tensors of the same length, or a ``DataLoader``.
        batch_size: B; ``None`` for all the data at once, and for a loader.
        seed: seed of the order.
        num_data: N according to the model; ``None`` if the model does not state it.
        caller: name of the function that the user called, with which messages begin.

    Raises:
        ValueError: a batch size or a number of examples that does not match the data; a loader
            without a length.
        DataError: NaN or infinity in the data; tensors of different lengths.
    """
    if isinstance(data, Tensor):
        data = (data,)
    if _are_tensors(data):
        batches: Minibatches = TensorBatches(tuple(data), batch_size, seed, caller)
    elif not _is_loader(data):
        raise ValueError(
            f"{caller}: expected tensors (x, y) or a DataLoader that knows its length, "
            f"got {_type_names(data)}"
        )
    elif batch_size is not None:
        raise ValueError(
            f"{caller}: a loader determines its batches itself, but batch_size={batch_size} was "
            "given; leave it out"
        )
    else:
        batches = LoaderBatches(data, seed, num_data, caller)
    if num_data is not None and batches.num_data != num_data:
        raise ValueError(
            f"{caller}: the data have {batches.num_data} examples but the model's num_data is "
            f"{num_data}; to train on a part of the data (a training split), build the model for "
            f"that part: num_data={batches.num_data}"
        )
    return batches


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """Return the SHA-256 of the dtypes, shapes and numbers of tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        numbers = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(numbers.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class TensorBatches:
    """Minibatches of one size, drawn from tensors.

    Every epoch is a random permutation of the examples. The permutations are laid end to end and
    cut into batches, so where B does not divide N, a batch contains the rest of one permutation and
    the beginning of the next.

    Attributes:
        tensors: the data, contiguous.
        num_data: N, the number of examples.
        size: B, the number of examples in each batch.
        per_epoch: N/B, as an exact fraction.

    Args:
        tensors: finite tensors of the same length.
        size: B; ``None`` for all the data.
        seed: seed of the permutations.
        caller: name of the function that the user called, with which messages begin.

    Raises:
        ValueError: a size below one or above N.
        DataError: NaN or infinity in the data; tensors of different lengths.
    """

    def __init__(
        self, tensors: tuple[Tensor, ...], size: int | None, seed: int, caller: str = "fit"
    ) -> None:
        first = tensors[0]
        for other in tensors[1:] or tensors:
            validate(first, other)
        # compiled functions expect contiguous arguments
        self.tensors = tuple(tensor.contiguous() for tensor in tensors)
        self.seed = seed
        self.num_data = len(first)
        self.size = self.num_data
        if size is not None:
            self.size = _valid_size(size, self.num_data, caller)
        self.per_epoch = Fraction(self.num_data, self.size)
        self._permutation = torch.empty(0)
        self._epoch_of_permutation = -1

    def stream(self, start: int, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches from number ``start`` on; the data are moved to the device once."""
        tensors = _to(device, self.tensors)
        if self.size == self.num_data:
            yield from itertools.repeat(tensors)
        for step in itertools.count(start):
            pieces = list(self._positions(step * self.size, (step + 1) * self.size))
            examples = torch.cat(pieces).to(device)
            yield tuple(tensor[examples] for tensor in tensors)

    def _positions(self, begin: int, end: int) -> Iterator[Tensor]:
        """Yield, in pieces, the examples at ``begin`` to ``end`` of the joined permutations."""
        for epoch in range(begin // self.num_data, (end - 1) // self.num_data + 1):
            if self._epoch_of_permutation != epoch:
                generator = torch.Generator().manual_seed(_epoch_seed(self.seed, epoch))
                self._permutation = torch.randperm(self.num_data, generator=generator)
                self._epoch_of_permutation = epoch
            offset = epoch * self.num_data
            yield self._permutation[max(begin - offset, 0) : end - offset]

    def fingerprint(self) -> str:
        """Return the SHA-256 of the data."""
        return fingerprint(self.tensors)

    def preserve_rng_state(self) -> AbstractContextManager[None]:
        """Return an empty context: tensors have no generators."""
        return contextlib.nullcontext()


class LoaderBatches:
    """The minibatches of a ``DataLoader``.

    Their order is a function of seed and epoch as far as the loader draws its random numbers from
    torch and in this process.

    Attributes:
        num_data: N, the number of examples.
        size: ``None``, since the loader decides on the size of each batch.
        per_epoch: the length of the loader.

    Args:
        loader: yields batches and has a length.
        seed: seed of the order, if the loader shuffles.
        num_data: N, for a loader whose data set has no length.
        caller: name of the function that the user called, with which messages begin.

    Raises:
        ValueError: a loader without batches, or whose number of examples is unknown.
    """

    def __init__(
        self, loader: Loader, seed: int, num_data: int | None, caller: str = "fit"
    ) -> None:
        if len(loader) < 1:
            raise ValueError(f"{caller}: the loader has no batches; pass one with data")
        self.loader = loader
        self.seed = seed
        self.caller = caller
        self.num_data = self._number_of_examples(num_data)
        self.size = None
        self.per_epoch = Fraction(len(loader))
        self._generators = self._generators_of_loader()

    def _number_of_examples(self, num_data: int | None) -> int:
        dataset = getattr(self.loader, "dataset", None)
        if isinstance(dataset, Sized):
            return len(dataset)
        if num_data is not None:
            return num_data
        raise ValueError(
            f"{self.caller}: the loader's dataset has no length and the model has no num_data: "
            "one of them must state the number of examples"
        )

    def _generators_of_loader(self) -> list[torch.Generator]:
        """Return the generators of loader and sampler, which are often the same one."""
        generators: list[torch.Generator] = []
        for owner in (self.loader, getattr(self.loader, "sampler", None)):
            generator = getattr(owner, "generator", None)
            if generator is not None and generator not in generators:
                generators.append(generator)
        return generators

    def stream(self, start: int, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches from number ``start`` on; earlier ones of its epoch are skipped."""
        for epoch in itertools.count(start // len(self.loader)):
            for number, batch in enumerate(self._epoch(epoch), epoch * len(self.loader)):
                if number < start:
                    continue
                tensors = batch if isinstance(batch, tuple | list) else (batch,)
                yield _to(device, tensors)

    def _epoch(self, epoch: int) -> Iterator[Tensor | Sequence[Tensor]]:
        """Yield the batches of one epoch, with random numbers seeded by its number.

        A loader may also draw from torch's global generator. Around each access to the loader, the
        state of that generator is therefore exchanged for one that belongs to the epoch.
        """
        seed = _epoch_seed(self.seed, epoch)
        for generator in self._generators:
            generator.manual_seed(seed)
        epoch_state = torch.Generator().manual_seed(seed).get_state()
        iterator = None
        for number in range(len(self.loader)):
            global_state = torch.get_rng_state()
            torch.set_rng_state(epoch_state)
            try:
                iterator = iter(self.loader) if iterator is None else iterator
                batch = next(iterator)
            except StopIteration:
                raise ValueError(
                    f"{self.caller}: the loader yielded {number} batches but its length is "
                    f"{len(self.loader)}; make its __len__ return the number of batches"
                ) from None
            finally:
                epoch_state = torch.get_rng_state()
                torch.set_rng_state(global_state)
            yield batch

    def fingerprint(self) -> str:
        """Return the number of batches: a loader is not read to identify its data."""
        return f"a loader of {len(self.loader)} batches"

    def preserve_rng_state(self) -> AbstractContextManager[None]:
        """Return a context at whose end the loader's generators are as they were before."""
        return preserve_states(self._generators)


def _to(device: torch.device, tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    return tuple(tensor.to(device) for tensor in tensors)


def _are_tensors(data: Data) -> TypeGuard[Sequence[Tensor]]:
    """Return whether the data are a nonempty tuple or list of tensors."""
    if not isinstance(data, tuple | list) or not data:
        return False
    return all(isinstance(element, Tensor) for element in data)


def _is_loader(data: Data) -> TypeGuard[Loader]:
    """Return whether the data can be iterated over repeatedly and have a length."""
    if isinstance(data, tuple | list):
        return False
    return hasattr(data, "__len__") and hasattr(data, "__iter__")


def _type_names(data: Data) -> str:
    """Return what was passed, for an error message."""
    if not isinstance(data, tuple | list):
        return type(data).__name__
    return f"({', '.join([type(element).__name__ for element in data])})"


def _valid_size(size: int, num_data: int, caller: str) -> int:
    """Return a batch size after checking that it is a whole number from 1 to N."""
    if not isinstance(size, Integral) or size < 1:
        raise ValueError(
            f"{caller}: expected a batch_size that is a whole number of at least 1, got {size!r}"
        )
    if size > num_data:
        raise ValueError(
            f"{caller}: batch_size={size} is larger than the data set of {num_data}; "
            f"use batch_size={num_data} or None"
        )
    return int(size)


def _epoch_seed(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch + 1) % 2**63
