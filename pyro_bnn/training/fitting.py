"""fit: the one training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_bnn.posterior.posterior import Posterior
from pyro_bnn.runtime.copying import deepcopy_together
from pyro_bnn.runtime.devices import device_of, require_device
from pyro_bnn.runtime.malloc import retain_freed_memory
from pyro_bnn.runtime.minibatches import batches_of
from pyro_bnn.runtime.rng import fork_rng
from pyro_bnn.training.loop import Loop, Progress, Schedule
from pyro_bnn.variational.elbo import ELBO
from pyro_bnn.variational.reparameterization import Reparameterized, local_reparameterization

__all__ = ["Fit", "fit"]


@dataclass
class Fit:
    """The result of :func:`fit`.

    Attributes:
        posterior: with copies of all that was learned.
        history: one number per epoch under each of ``epoch``, ``loss`` (nats), ``data``, ``kl`` (both in nats per
            datum), ``kl_weight``, ``learning_rate`` and ``seconds``.
        interrupted: whether the run was stopped by Ctrl-C.
    """

    posterior: Posterior
    history: dict[str, list[float]]
    interrupted: bool = False

    @property
    def model(self) -> Any:
        """The model that was trained: a copy of the one given."""
        return self.posterior.model

    @property
    def guide(self) -> Any:
        """The guide that was trained: a copy of the one given."""
        return self.posterior.guide


def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: tuple[Tensor, ...] | Iterable[Any],
    *,
    epochs: int = 100,
    batch_size: int | None = None,
    learning_rate: Schedule = 1e-3,
    seed: int = 0,
    kl_weight: Schedule = 1.0,
    num_particles: int = 1,
    reparameterize: bool = True,
    compile: bool | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    device: str | torch.device | None = None,
    callbacks: Sequence[Callable[[Progress], None]] = (),
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1,
    resume: bool = False,
    progress: bool = True,
) -> Fit:
    r"""Maximise the ELBO by stochastic gradients and return the posterior.

    .. math:: \min\ \frac{N}{B}\sum_{n \in \text{batch}} \mathbb{E}_q[-\log p(y_n \mid x_n, w)] + \beta\,\mathrm{KL}(q
    \,\|\, p)

    Model and guide are copied: the ones given, the global random state and Pyro's parameter store stay as they were.
    One seed fixes every bit of the result on one device and release of torch. All batches have one size: what is left
    of a permutation of the data is carried into the next epoch. (A module that a plain function closes over cannot be
    copied and is trained in place.)

    Args:
        model: a ``BayesianNet`` or any Pyro program with a plate over its data.
        guide: built for this model; a module, or a function with ``pyro.param`` statements.
        data: tensors of the same length, ``(x, y)``; or a ``DataLoader`` (which then decides on the batches and their
            order).
        epochs: how many times the data are gone through.
        batch_size: B; ``None`` for all the data at every step.
        learning_rate: a number, or a function of the epoch (a float; it is called at every step).
        seed: of the permutations and of all noise.
        kl_weight: :math:`\beta`, a number or a function of the epoch such as ``linear_warmup(5, 20)``.
        num_particles: draws from the guide at each step.
        reparameterize: use local reparameterization, unless the guide comes with it:
            ``local_reparameterization(guide, hide=[...])``.
        compile: trace the step and compile it: two to thirty times as fast, after up to half a minute of compilation.
            The same random numbers and the same optimum, other rounding. ``None``: from 20,000 steps on, which take
            longer than that however small the network is.
        optimizer: called as ``optimizer(parameters, lr=...)``; SGD, Adam and AdamW can be compiled.
        device: where to train, ``"cuda"`` say; ``None``: where the guide's parameters are. The result comes back to
            where the model was.
        callbacks: called with a :class:`Progress` after each epoch; their use of random numbers changes nothing.
        checkpoint: a folder to save the state of the run in.
        checkpoint_every: epochs between checkpoints.
        resume: go on from the folder's checkpoint, bit for bit as if never stopped; without one, start.
        progress: show a bar, with the terms of the loss in nats per datum.

    Raises:
        ValueError: settings that make no sense; data whose length differs from the model's ``num_data``; a device
            that is not there; a guide without parameters, or built for another model.
        DataError: NaN in the data, or tensors of different lengths.
        NonFiniteError: at the first loss or gradient that is not finite.
        CheckpointError: a checkpoint folder that holds another run, or is damaged.
    """
    counts = {
        "epochs": epochs,
        "checkpoint_every": checkpoint_every,
        "num_particles": num_particles,
    }
    for name, count in counts.items():
        if not isinstance(count, Integral) or count < 1:
            raise ValueError(
                f"fit: expected {name} to be a whole number of at least 1, got {count!r}"
            )
    for name, value in (("learning_rate", learning_rate), ("kl_weight", kl_weight)):
        if not callable(value) and not value >= 0:
            raise ValueError(f"fit: expected a {name} of at least 0, got {value}")
    if isinstance(guide, type):
        raise ValueError(
            f"fit: the guide is the class {guide.__name__}; build it from the model, {guide.__name__}(model)"
        )
    if resume and checkpoint is None:
        raise ValueError(
            "fit: resume=True goes on from a checkpoint; say where it is, checkpoint=FOLDER"
        )
    home = device_of(model, guide)
    target = home if device is None else require_device(device)
    if "meta" in (home.type, target.type):
        raise ValueError(
            "fit: the model or the guide is on the device 'meta', which holds no numbers; build it elsewhere"
        )
    batches = batches_of(data, batch_size, seed, getattr(model, "num_data", None))
    retain_freed_memory()
    model, guide = deepcopy_together(model, guide)
    with fork_rng(target, seed), batches.borrowed():
        wrap = reparameterize and not isinstance(
            guide, Reparameterized
        )  # one that is wrapped already has its settings
        loss = ELBO()(model, local_reparameterization(guide) if wrap else guide).to(target)
        fast = epochs * batches.per_epoch >= _MANY_STEPS if compile is None else compile
        loop = Loop(loss, batches, optimizer, num_particles, target, fast)
        if checkpoint is not None:
            settings: dict[str, Any] = {
                "seed": seed,
                "num_particles": num_particles,
                "reparameterize": reparameterize,
                "compile": compile,
            }
            schedules = {"learning_rate": learning_rate, "kl_weight": kl_weight}
            settings |= {
                key: "a function" if callable(value) else float(value)
                for key, value in schedules.items()
            }
            loop.open_checkpoint(Path(checkpoint), settings, resume)
        interrupted = loop.run(
            epochs, learning_rate, kl_weight, callbacks, checkpoint_every, progress
        )
        posterior = loop.posterior(home)
    posterior.facts |= {
        "method": type(guide).__name__ if isinstance(guide, nn.Module) else "SVI",
        "data": batches.fingerprint(),
        "seconds": loop.seconds,
        "gradients": loop.step * num_particles,
    }
    return Fit(posterior, loop.history, interrupted)


_MANY_STEPS = 20_000
