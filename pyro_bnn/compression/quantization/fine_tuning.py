r"""Fine-tuning of a pruned network: the nonzero numbers learn on, zeros stay, and codebooks stay codebooks.

A network after pruning is a vector v of its nonzero numbers, weights and biases, at fixed positions. With codebooks,
:math:`v_i = c_{k_i}`, and the gradient of a centroid is the sum of those of its weights,

.. math:: \frac{\partial L}{\partial c_k} = \sum_{i: k_i = k} \frac{\partial L}{\partial v_i} .

``"centroids"`` learns these alone, assignments fixed. ``"straight-through"`` also keeps a latent number per weight,
which gets the gradient of its centroid as if it were its own and is assigned anew, to the nearest centroid or, under
``bits_weight``, to the cheapest one (:mod:`pyro_bnn.compression.quantization.codebooks`).

Source: Han, Mao & Dally (2016), section 3.3, for centroids; Courbariaux, Bengio & David (2015) for latent weights;
Hinton, Vinyals & Dean (2015) for teachers, Korattikara et al. (2015) for the posterior as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_bnn.compression.pruning.pruned_network import Pruned
from pyro_bnn.runtime.malloc import retain_freed_memory
from pyro_bnn.runtime.minibatches import TensorBatches

from .codebooks import codes, half, precisions

__all__ = ["Mode", "fine_tune", "fine_tune_pruned"]

Mode = Literal["centroids", "straight-through"]
Loss = Callable[[Tensor, Tensor], Tensor]


def fine_tune(
    quantized: Pruned,
    data: tuple[Tensor, Tensor],
    *,
    mode: Mode = "straight-through",
    epochs: int = 20,
    batch_size: int = 500,
    learning_rate: float = 1e-3,
    bits_weight: float = 0.0,
    settle: float = 0.3,
    start: Pruned | None = None,
    teacher: Tensor | None = None,
    loss: Loss = F.cross_entropy,
    seed: int = 0,
    progress: bool = True,
) -> Pruned:
    r"""Return the quantised network with codebooks that were trained; the support is as it was.

    Adam with a rate that falls linearly to zero; the state after the last step is returned, in values that half
    precision can hold. Levels that nobody uses fall away. One seed fixes every bit of the result.

    Args:
        quantized: of :func:`~pyro_bnn.compression.quantization.codebooks.quantize`.
        data: (x, y).
        mode: ``"centroids"`` or ``"straight-through"``.
        epochs: how many times the data are gone through.
        batch_size: of the minibatches.
        learning_rate: at the start.
        bits_weight: :math:`\beta` of the assignments, as for ``quantize``; straight-through alone. It needs the
            variances of the weights.
        settle: the last part of the steps, in which assignments are not changed any more; straight-through alone.
        start: the pruned network as it was before quantisation, where the latent weights start; the quantised one if
            not given.
        teacher: class probabilities (n, classes) to be matched instead of the labels, such as
            ``posterior.predict(x).mean``.
        loss: of outputs and targets, a mean over the batch.
        seed: of the order of the data.
        progress: show a bar if it takes longer than two seconds.

    Raises:
        ValueError: settings out of range; another mode; a teacher that does not fit the data; a ``start`` that is
            another network; variances that are not known where ``bits_weight`` needs them.
        DataError: data that are not finite, or of different lengths.
    """
    if mode not in ("centroids", "straight-through"):
        raise ValueError(
            f"fine_tune: expected the mode 'centroids' or 'straight-through', got {mode!r}"
        )
    if not (bits_weight >= 0 and 0 <= settle <= 1):
        raise ValueError(
            f"fine_tune: expected bits_weight >= 0 and settle from 0 to 1, got {bits_weight} and {settle}"
        )
    if bits_weight and not quantized.variances:
        raise ValueError(
            "fine_tune: bits_weight weighs bits against variances, and those of the weights are not known"
        )
    support = _Support(quantized)
    book = _Book(quantized, support, bits_weight)
    latent = (
        (support.values if start is None else support.values_of(start.module))
        .clone()
        .requires_grad_()
    )
    learned = [book.table, latent] if mode == "straight-through" else [book.table]
    run = _Run(support, data, teacher, loss, epochs, batch_size, seed, progress)
    last = math.ceil(run.steps * (1 - settle)) if mode == "straight-through" else 0
    for step in run.train(learned, learning_rate):
        if step < last:
            book.assign(latent.detach())
        coded = book.table[book.code]
        run.descend(coded + latent - latent.detach() if mode == "straight-through" else coded)
    return quantized.with_values(support.parameters(half(book.table.detach())[book.code]))


def fine_tune_pruned(
    pruned: Pruned,
    data: tuple[Tensor, Tensor],
    *,
    epochs: int = 20,
    batch_size: int = 500,
    learning_rate: float = 1e-3,
    teacher: Tensor | None = None,
    loss: Loss = F.cross_entropy,
    seed: int = 0,
    progress: bool = True,
) -> Pruned:
    """Return the pruned network with nonzero numbers that learned on; zeros stay zero.

    Args and errors are those of :func:`fine_tune`.
    """
    support = _Support(pruned)
    latent = support.values.clone().requires_grad_()
    run = _Run(support, data, teacher, loss, epochs, batch_size, seed, progress)
    for _ in run.train([latent], learning_rate):
        run.descend(latent)
    return pruned.with_values(support.parameters(latent.detach()))


class _Support:
    """Where the nonzero numbers of a network are, its parameters being laid end to end."""

    def __init__(self, pruned: Pruned) -> None:
        self.module: nn.Module = pruned.module
        self.names, own = zip(
            *((n, p.detach()) for n, p in self.module.named_parameters()), strict=True
        )
        self.shapes, self.sizes = [p.shape for p in own], [p.numel() for p in own]
        flat = torch.cat([p.flatten() for p in own])
        self.positions = flat.nonzero()[:, 0]
        self.values = flat[self.positions]
        self.zeros = torch.zeros_like(flat)

    def values_of(self, module: nn.Module) -> Tensor:
        """Return the numbers that the same network had at these positions before it was quantised."""
        own = {name: p.detach() for name, p in module.named_parameters()}
        if [(name, p.shape) for name, p in own.items()] != list(
            zip(self.names, self.shapes, strict=True)
        ):
            raise ValueError("fine_tune: start is another network; give the one that was quantised")
        return torch.cat([p.flatten() for p in own.values()])[self.positions]

    def parameters(self, values: Tensor) -> dict[str, Tensor]:
        """Return the parameters with these nonzero numbers."""
        flat = self.zeros.index_put((self.positions,), values)
        parts = flat.split(self.sizes)
        return {
            n: part.view(shape)
            for n, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }


class _Book:
    """All codebooks in one table, which codebook each number has, and its code, an index into the table."""

    def __init__(self, quantized: Pruned, support: _Support, bits_weight: float) -> None:
        found = codes(quantized)
        self.table = torch.cat([code.values for code in found.values()]).requires_grad_()
        self.bits_weight = bits_weight
        lengths = torch.tensor([len(code.values) for code in found.values()])
        sizes = torch.tensor([int(code.counts.sum()) for code in found.values()])
        # row k of the grid: the entries of codebook k; where it is shorter, its first entry again and again
        column = torch.arange(int(lengths.max()))
        grid = (lengths.cumsum(0) - lengths)[:, None] + torch.where(
            column < lengths[:, None], column, 0
        )
        owners = torch.arange(len(sizes)).repeat_interleave(sizes)
        self.grid, self.owners, self.sizes = (
            part.to(support.values.device) for part in (grid, owners, sizes)
        )
        exact = self.table.detach()[self.grid][self.owners] == support.values[:, None]
        self.code = self.grid[self.owners, exact.int().argmax(1)]
        known = precisions(quantized, "posterior") if quantized.variances else {}
        self.precision = (
            torch.cat([known[name].flatten() for name in support.names])[support.positions]
            if known
            else torch.ones_like(support.values)
        )

    @torch.no_grad()
    def assign(self, latent: Tensor) -> None:
        """Give each latent number the centroid of its codebook that costs least, at the present code lengths."""
        table = self.table[self.grid]
        nats = torch.zeros_like(table)
        if self.bits_weight:
            counts = self.code.bincount(minlength=len(self.table))[self.grid]
            nats = -self.bits_weight * (counts / self.sizes[:, None]).log()
        costs = (table[self.owners] - latent[:, None]).square_() * (self.precision / 2)[:, None]
        best = costs.add_(nats[self.owners]).argmin(1)
        self.code = self.grid[self.owners, best]


class _Run:
    """The loop that both kinds of fine-tuning share."""

    def __init__(
        self,
        support: _Support,
        data: tuple[Tensor, Tensor],
        teacher: Tensor | None,
        loss: Loss,
        epochs: int,
        batch_size: int,
        seed: int,
        progress: bool,
    ) -> None:
        if epochs < 1:
            raise ValueError(f"fine_tune: expected at least one epoch, got {epochs}")
        x, y = data
        if teacher is not None and (teacher.dim() != 2 or len(teacher) != len(x)):
            raise ValueError(
                f"fine_tune: expected a teacher of class probabilities ({len(x)}, classes), got {tuple(teacher.shape)}"
            )
        retain_freed_memory()
        self.support, self.loss, self.progress = support, loss, progress
        batches = TensorBatches(
            (x, y if teacher is None else teacher), min(batch_size, len(x)), seed
        )
        self.steps = math.ceil(epochs * batches.per_epoch)
        self.stream = batches.stream(0, support.values.device)
        self.buffers = dict(support.module.named_buffers())

    def train(self, learned: list[Tensor], learning_rate: float) -> Iterator[int]:
        """Yield the number of each step; after the caller has descended, the parameters move."""
        optimizer = torch.optim.Adam(learned, lr=learning_rate)
        look: dict[str, Any] = {
            "desc": "fine-tune",
            "unit": "step",
            "dynamic_ncols": True,
            "delay": 2,
        }
        for step in tqdm(range(self.steps), disable=not self.progress, **look):
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / self.steps)
            optimizer.zero_grad()
            yield step
            optimizer.step()

    def descend(self, values: Tensor) -> None:
        """Leave the gradient of the loss on the next minibatch at what the values are made of."""
        x, target = next(self.stream)
        tensors = self.support.parameters(values) | self.buffers
        self.loss(torch.func.functional_call(self.support.module, tensors, (x,)), target).backward()
