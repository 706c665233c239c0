r"""Fine-tuning of a pruned network: nonzero numbers are trained, zeros and codebooks are kept.

A pruned network is a vector v of its nonzero numbers, weights and biases, at fixed positions. With
codebooks, :math:`v_i = c_{k_i}`, and the gradient of a centroid is the sum of those of its weights,

.. math:: \frac{\partial L}{\partial c_k} = \sum_{i: k_i = k} \frac{\partial L}{\partial v_i} .

``"centroids"`` trains the centroids alone; assignments are fixed. ``"straight-through"`` also keeps
a latent number per weight, which gets the gradient of its centroid as if it were its own. In each
step it is assigned anew: to the nearest centroid or, under ``bits_weight``, to the cheapest one
(:mod:`~pyro_bnn.compression.quantization.codebooks`).

Source: Han, Mao & Dally (2016), section 3.3, for centroids; Courbariaux, Bengio & David (2015) for
latent weights; Hinton, Vinyals & Dean (2015) for teachers, Korattikara et al. (2015) for the
posterior as a teacher.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_bnn.compression.pruning.pruned_network import Pruned
from pyro_bnn.runtime.malloc import retain_freed_memory
from pyro_bnn.runtime.minibatches import TensorBatches

from .codebooks import codes, half, precisions

__all__ = ["Mode", "fine_tune", "fine_tune_pruned"]

Mode: TypeAlias = Literal["centroids", "straight-through"]
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


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
    r"""Return the quantized network with trained codebooks; the positions of its zeros are kept.

    The optimizer is Adam with a learning rate that decays linearly to zero. The values after the
    last step are rounded to half precision. Levels that no weight has are dropped. The result is
    a function of the arguments and the seed.

    Args:
        quantized: The result of :func:`~pyro_bnn.compression.quantize`.
        data: (x, y).
        mode: ``"centroids"`` or ``"straight-through"``.
        epochs: The number of passes over the data.
        batch_size: The size of the minibatches.
        learning_rate: The learning rate at the start.
        bits_weight: :math:`\beta` of the assignments, as for ``quantize``, if the mode is
            straight-through. It needs the variances of the weights.
        settle: The last fraction of the steps, in which assignments are fixed, if the mode is
            straight-through.
        start: The pruned network before quantization, where the latent numbers start; by default
            the quantized one.
        teacher: Class probabilities (n, classes) to match instead of the labels, such as
            ``posterior.predict(x).mean``.
        loss: A function of outputs and targets, a mean over the batch.
        seed: The seed of the order of the data.
        progress: Whether to show a bar if training takes longer than two seconds.

    Raises:
        ValueError: If an argument is out of range or the mode is unknown; if the teacher does not
            fit the data; if ``start`` is another network; if ``bits_weight`` needs variances that
            are unknown.
        DataError: If the data are not finite, or differ in length.
    """
    if mode not in ("centroids", "straight-through"):
        raise ValueError(
            f"fine_tune: expected the mode 'centroids' or 'straight-through', got {mode!r}"
        )
    if not (bits_weight >= 0 and 0 <= settle <= 1):
        raise ValueError(
            "fine_tune: expected bits_weight >= 0 and settle from 0 to 1, got "
            f"{bits_weight} and {settle}"
        )
    if bits_weight and not quantized.variances:
        raise ValueError(
            "fine_tune: bits_weight weighs bits against variances, and those of the weights are "
            "unknown; prune a posterior, which has them, or take bits_weight=0"
        )
    support = _Support(quantized)
    book = _Codebooks(quantized, support, bits_weight)
    latent = support.values if start is None else support.values_in(start.module)
    settings = _Settings(epochs, batch_size, learning_rate, teacher, loss, seed, progress)
    training = _Training("fine_tune", support, data, settings)
    if mode == "centroids":
        for _ in training.steps([book.table]):
            training.descend(book.values())
    else:
        latent = latent.clone().requires_grad_()
        last_assignment = math.ceil(training.num_steps * (1 - settle))
        for step in training.steps([book.table, latent]):
            if step < last_assignment:
                book.assign(latent.detach())
            # the value is that of the centroid, the gradient reaches the latent number as well
            training.descend(book.values() + latent - latent.detach())
    table = half(book.table.detach(), "fine_tune")
    return quantized.with_values(support.parameters(table[book.code]))


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
    """Return the pruned network with trained nonzero numbers; zeros stay zero.

    Args and errors are those of :func:`fine_tune`.
    """
    support = _Support(pruned)
    settings = _Settings(epochs, batch_size, learning_rate, teacher, loss, seed, progress)
    training = _Training("fine_tune_pruned", support, data, settings)
    values = support.values.clone().requires_grad_()
    for _ in training.steps([values]):
        training.descend(values)
    return pruned.with_values(support.parameters(values.detach()))


class _Support:
    """The nonzero numbers of a network, whose parameters are laid end to end.

    Attributes:
        module: The network.
        positions: The positions of the nonzero numbers.
        values: The nonzero numbers.
    """

    def __init__(self, pruned: Pruned) -> None:
        self.module = pruned.module
        self._shapes: dict[str, torch.Size] = {}
        self._sizes: list[int] = []
        for name, parameter in self.module.named_parameters():
            self._shapes[name] = parameter.shape
            self._sizes.append(parameter.numel())
        flat = self.flattened(dict(self.module.named_parameters()))
        self.positions = flat.nonzero()[:, 0]
        self.values = flat[self.positions]
        self._zeros = torch.zeros_like(flat)

    def flattened(self, by_name: dict[str, Tensor]) -> Tensor:
        """Return tensors of the shapes of the parameters, laid end to end."""
        return torch.cat([by_name[name].detach().flatten() for name in self._shapes])

    def values_in(self, module: nn.Module) -> Tensor:
        """Return the numbers at these positions of the network before it was quantized."""
        parameters: dict[str, Tensor] = dict(module.named_parameters())
        if {name: value.shape for name, value in parameters.items()} != self._shapes:
            raise ValueError("fine_tune: start is another network; give the one that was quantized")
        return self.flattened(parameters)[self.positions]

    def parameters(self, values: Tensor) -> dict[str, Tensor]:
        """Return the parameters with these nonzero numbers."""
        flat = self._zeros.index_put((self.positions,), values)
        parameters = {}
        parts = torch.split(flat, self._sizes)
        for (name, shape), part in zip(self._shapes.items(), parts, strict=True):
            parameters[name] = part.view(shape)
        return parameters


class _Codebooks:
    """All codebooks in one table.

    Attributes:
        table: The values of one codebook after another.
        code: The index in the table of the value of each nonzero number.
    """

    def __init__(self, quantized: Pruned, support: _Support, bits_weight: float) -> None:
        books = codes(quantized).values()
        device = support.values.device
        self.table = torch.cat([book.values for book in books]).requires_grad_()
        self._bits_weight = bits_weight
        sizes = torch.tensor([int(book.counts.sum()) for book in books])
        self._sizes = sizes.to(device)
        self._grid = _entries([len(book.values) for book in books]).to(device)
        self._books = torch.arange(len(sizes)).repeat_interleave(sizes).to(device)
        candidates = self.table.detach()[self._grid][self._books]
        place = (candidates == support.values[:, None]).int().argmax(1)
        self.code = self._grid[self._books, place]
        self._precision = torch.ones_like(support.values)
        if quantized.variances:
            precision = support.flattened(precisions(quantized, "posterior"))
            self._precision = precision[support.positions]

    def values(self) -> Tensor:
        """Return the value of each number."""
        return self.table[self.code]

    @torch.no_grad()
    def assign(self, latent: Tensor) -> None:
        """Give each latent number the centroid that costs least, at the present code lengths."""
        table = self.table[self._grid]
        nats = torch.zeros_like(table)
        if self._bits_weight:
            counts = self.code.bincount(minlength=len(self.table))[self._grid]
            nats = -self._bits_weight * (counts / self._sizes[:, None]).log()
        distance = table[self._books] - latent[:, None]
        costs = distance.square_() * (self._precision / 2)[:, None]
        best = costs.add_(nats[self._books]).argmin(1)
        self.code = self._grid[self._books, best]


def _entries(lengths: list[int]) -> Tensor:
    """Return for each codebook the indices of its values in the table, (books, most values).

    A row that is too short is filled with its first index.
    """
    length = torch.tensor(lengths)
    first = length.cumsum(0) - length
    column = torch.arange(int(length.max()))
    return first[:, None] + torch.where(column < length[:, None], column, 0)


@dataclass(frozen=True)
class _Settings:
    """The arguments of both functions, as :func:`fine_tune` explains them."""

    epochs: int
    batch_size: int
    learning_rate: float
    teacher: Tensor | None
    loss: Loss
    seed: int
    progress: bool


class _Training:
    """The training loop that both functions share.

    Attributes:
        num_steps: The number of steps of the optimizer.
    """

    def __init__(
        self,
        caller: str,
        support: _Support,
        data: tuple[Tensor, Tensor],
        settings: _Settings,
    ) -> None:
        if settings.epochs < 1:
            raise ValueError(f"{caller}: expected at least one epoch, got {settings.epochs}")
        x, target = data
        if settings.teacher is not None:
            target = settings.teacher
            if target.dim() != 2 or len(target) != len(x):
                raise ValueError(
                    f"{caller}: expected a teacher of class probabilities ({len(x)}, classes), "
                    f"got {tuple(target.shape)}"
                )
        retain_freed_memory()
        batch_size = min(settings.batch_size, len(x))
        batches = TensorBatches((x, target), batch_size, settings.seed, caller)
        self.num_steps = math.ceil(settings.epochs * batches.per_epoch)
        self._settings, self._support = settings, support
        self._stream = batches.stream(0, support.values.device)
        self._buffers = dict(support.module.named_buffers())

    def steps(self, learned: list[Tensor]) -> Iterator[int]:
        """Yield the number of each step; the optimizer moves after the caller has descended."""
        learning_rate = self._settings.learning_rate
        optimizer = torch.optim.Adam(learned, lr=learning_rate)
        bar = tqdm(
            range(self.num_steps),
            desc="fine-tune",
            unit="step",
            dynamic_ncols=True,
            delay=2,
            disable=not self._settings.progress,
        )
        for step in bar:
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / self.num_steps)
            optimizer.zero_grad()
            yield step
            optimizer.step()

    def descend(self, values: Tensor) -> None:
        """Backpropagate the loss on the next minibatch through the values."""
        x, target = next(self._stream)
        tensors = self._support.parameters(values) | self._buffers
        outputs = torch.func.functional_call(self._support.module, tensors, (x,))
        torch.autograd.backward(self._settings.loss(outputs, target))
