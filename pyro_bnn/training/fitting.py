"""``fit``: train a guide by stochastic variational inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import torch
from torch import nn

from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.copying import deepcopy_together
from pyro_bnn.runtime.devices import device_of, require_device
from pyro_bnn.runtime.malloc import retain_freed_memory
from pyro_bnn.runtime.minibatches import Data, batches_of
from pyro_bnn.runtime.program import Program
from pyro_bnn.runtime.rng import fork_rng
from pyro_bnn.variational.elbo import ELBO, ELBOModule
from pyro_bnn.variational.guide import Guide
from pyro_bnn.variational.reparameterization import Reparameterized, local_reparameterization

from .callbacks import Callback
from .checkpoint import open_checkpoint
from .loop import train
from .schedules import Schedule
from .training_run import OptimizerFactory, begin_run

__all__ = ["Fit", "fit"]

STEPS_WORTH_COMPILING = 20_000
"""With this many steps, compiling the step saves more time than it takes."""


@dataclass
class Fit:
    """The result of :func:`fit`.

    Attributes:
        posterior: the approximate posterior, with copies of everything that was learned.
        history: averages over each epoch, one number per epoch under each of these names:

            - ``"epoch"``: its number, from 1;
            - ``"loss"``: the negative ELBO, in nats for the whole data set;
            - ``"data"``: minus the expected log-likelihood, in nats per datum;
            - ``"kl"``: the KL divergence, unweighted, in nats per datum;
            - ``"kl_weight"`` and ``"learning_rate"``: their values at the last step of the epoch;
            - ``"seconds"``: training time since the beginning of the run.

        interrupted: whether Ctrl-C stopped the run before its last step.
    """

    posterior: Posterior
    history: dict[str, list[float]]
    interrupted: bool = False

    @property
    def model(self) -> Program:
        """The trained model, a copy of the one that was passed to :func:`fit`."""
        model: Program = self.posterior.model
        return model

    @property
    def guide(self) -> Guide:
        """The trained guide, a copy of the one that was passed to :func:`fit`."""
        guide: Guide = self.posterior.guide
        return guide


def fit(
    model: Program,
    guide: Guide,
    data: Data,
    *,
    epochs: int = 100,
    batch_size: int | None = None,
    learning_rate: Schedule = 1e-3,
    seed: int = 0,
    kl_weight: Schedule = 1.0,
    num_particles: int = 1,
    reparameterize: bool = True,
    compile: bool | None = None,
    optimizer: OptimizerFactory = torch.optim.Adam,
    device: str | torch.device | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1,
    resume: bool = False,
    progress: bool = True,
) -> Fit:
    r"""Fit a guide to the posterior of a model by stochastic variational inference.

    Minimize the negative ELBO, in nats, by stochastic gradients on minibatches of B of the N
    examples:

    .. math::

        \mathcal{L} = \frac{N}{B} \sum_{n \in \text{batch}}
            \mathbb{E}_{q(w)}[-\log p(y_n \mid x_n, w)]
            + \beta\, \mathrm{KL}(q(w) \,\|\, p(w)).

    Model and guide are copied: the arguments, the global random state and Pyro's parameter store
    are the same after the call as before it. (A module that a plain function refers to cannot be
    copied and is trained in place.) On one device and one release of torch, the seed determines
    every bit of the result.

    Every batch of tensors has the same size. An epoch is a random permutation of the data; where B
    does not divide N, a batch combines the end of one permutation with the beginning of the next.

    Ctrl-C ends the run after the present step and returns the posterior reached so far.

    Args:
        model: a ``BayesianNet``, or any Pyro program with a plate over its data.
        guide: built for this model: a module, or a function with ``pyro.param`` statements.
        data: tensors of the same length, ``(x, y)``, or a ``DataLoader``, which then determines the
            batches and their order.
        epochs: number of passes through the data.
        batch_size: B; ``None`` uses all the data at every step. Not for a ``DataLoader``.
        learning_rate: a number, or a function of the epoch (a float), called at every step.
        seed: seed of the permutations and of all noise.
        kl_weight: :math:`\beta`, a number or a function of the epoch, such as
            ``linear_warmup(5, 20)``.
        num_particles: number of draws from the guide at each step.
        reparameterize: whether to use local reparameterization. A guide that is wrapped already
            keeps its settings: ``local_reparameterization(guide, hide=[...])``.
        compile: whether to trace the step and compile it, which makes it two to thirty times as
            fast after up to half a minute of compilation. Random numbers and optimum are the same,
            rounding differs. ``None`` compiles from 20,000 steps on, which take longer than
            the compilation even for a small network.
        optimizer: called as ``optimizer(parameters, lr=...)``; ``torch.optim.SGD``, ``Adam`` and
            ``AdamW`` can be compiled.
        device: the device to train on, such as ``"cuda"``; ``None`` trains where the parameters
            are. The result is returned to the device of the model.
        callbacks: functions that are called with a :class:`~pyro_bnn.training.Progress` after each
            epoch. They may draw random numbers without changing the run.
        checkpoint: folder in which to save the state of the run.
        checkpoint_every: number of epochs between two checkpoints. The last epoch and Ctrl-C also
            save one.
        resume: whether to continue from the checkpoint in the folder, bit for bit as if the run had
            never stopped. Without a checkpoint, the run starts. ``epochs`` may be larger than
            before.
        progress: whether to show a progress bar, with the terms of the loss in nats per datum.

    Returns:
        The posterior and the history of the run.

    Raises:
        ValueError: a setting out of range; data whose length is not the model's ``num_data``; a
            device that is not available; a guide without parameters, or for another model.
        DataError: NaN or infinity in the data, tensors of different lengths, or targets outside the
            support of the likelihood.
        NonFiniteError: the loss or a gradient became NaN or infinite. The parameters are those
            before that step.
        CheckpointError: a checkpoint folder that holds another run, is damaged, or cannot be
            written to.

    Warns:
        CompileWarning: the step cannot be compiled as requested; it runs uncompiled.

    Example:
        >>> import torch
        >>> from pyro_bnn import BayesianNet, fit, likelihoods, priors
        >>> from pyro_bnn.guides import MeanField
        >>> x = torch.linspace(-1, 1, 50)[:, None]
        >>> y = 2 * x[:, 0] + 1
        >>> model = BayesianNet(
        ...     torch.nn.Linear(1, 1),
        ...     prior={"*": priors.Normal(1.0)},
        ...     likelihood=likelihoods.Gaussian(0.1),
        ...     num_data=50,
        ... )
        >>> result = fit(
        ...     model, MeanField(model), (x, y), epochs=300, learning_rate=0.05, progress=False
        ... )
        >>> mean, variance = result.posterior.moments()["weight"]
        >>> print(f"slope {mean.item():.1f}")
        slope 2.0
        >>> len(result.history["loss"])
        300
    """
    counts = {
        "epochs": epochs,
        "checkpoint_every": checkpoint_every,
        "num_particles": num_particles,
    }
    _require_counts(counts)
    _require_not_negative({"learning_rate": learning_rate, "kl_weight": kl_weight})
    if isinstance(guide, type):
        raise ValueError(
            f"fit: expected a guide, got the class {guide.__name__}; "
            f"build a guide from the model: {guide.__name__}(model)"
        )
    if resume and checkpoint is None:
        raise ValueError(
            "fit: resume=True continues from a checkpoint, but none is given; "
            "pass its folder: checkpoint=FOLDER"
        )
    home = device_of(model, guide)
    target = home if device is None else require_device(device)
    if "meta" in (home.type, target.type):
        raise ValueError(
            "fit: the model or the guide is on the device 'meta', which holds no numbers; "
            "build it on another device"
        )
    batches = batches_of(data, batch_size, seed, getattr(model, "num_data", None))
    if compile is None:
        compile_step = epochs * batches.per_epoch >= STEPS_WORTH_COMPILING
    else:
        compile_step = compile
    retain_freed_memory()
    model, guide = deepcopy_together(model, guide)
    with fork_rng(target, seed), batches.preserve_rng_state():
        loss = _loss_of(model, guide, reparameterize).to(target)
        run = begin_run(loss, batches, optimizer, num_particles, target, compile_step)
        saved_to = None
        if checkpoint is not None:
            settings = {
                "seed": seed,
                "num_particles": num_particles,
                "reparameterize": reparameterize,
                "learning_rate": _describe_schedule(learning_rate),
                "kl_weight": _describe_schedule(kl_weight),
            }
            saved_to = open_checkpoint(
                Path(checkpoint), run, settings, compile, checkpoint_every, resume
            )
        train(run, epochs, learning_rate, kl_weight, callbacks, saved_to, progress)
        posterior = run.posterior(home)
    posterior.facts |= {
        "method": type(guide).__name__ if isinstance(guide, nn.Module) else "SVI",
        "data": batches.fingerprint(),
        "seconds": run.state.seconds,
        "gradients": run.state.step * num_particles,
    }
    return Fit(posterior, run.state.history, run.state.interrupted)


def _loss_of(model: Program, guide: Guide, reparameterize: bool) -> ELBOModule:
    """Return the loss, with local reparameterization unless the guide has its own settings."""
    if reparameterize and not isinstance(guide, Reparameterized):
        return ELBO()(model, local_reparameterization(guide))
    return ELBO()(model, guide)


def _require_counts(counts: dict[str, int]) -> None:
    for name, count in counts.items():
        if not isinstance(count, Integral) or count < 1:
            raise ValueError(
                f"fit: expected {name} to be a whole number of at least 1, got {count!r}"
            )


def _require_not_negative(schedules: dict[str, Schedule]) -> None:
    for name, value in schedules.items():
        if not callable(value) and not value >= 0:
            raise ValueError(f"fit: expected a {name} of at least 0, got {value}")


def _describe_schedule(schedule: Schedule) -> float | str:
    """Return the value of a constant schedule; functions cannot be compared."""
    return "a function" if callable(schedule) else float(schedule)
