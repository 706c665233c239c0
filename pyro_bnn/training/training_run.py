"""A training run: the loss, the optimizer, the data, and the state that it has reached."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.copying import deepcopy_together
from pyro_bnn.runtime.minibatches import Minibatches, TensorBatches
from pyro_bnn.runtime.program_checks import require_program_fits_data
from pyro_bnn.runtime.rng import fork_rng
from pyro_bnn.variational.elbo import ELBOModule

from .callbacks import Callback, Progress
from .state import TrainingState
from .steps import CompiledStep, PlainStep, Step, StepStats, learnable_parameters

__all__ = ["OptimizerFactory", "TrainingRun", "begin_run"]


class OptimizerFactory(Protocol):
    """A class such as ``torch.optim.Adam``, or a function that builds an optimizer."""

    def __call__(self, parameters: list[nn.Parameter], /, *, lr: float) -> torch.optim.Optimizer:
        """Return an optimizer of the parameters; its ``lr`` is set again before every step."""


@dataclass
class TrainingRun:
    """The parts of a run.

    Attributes:
        loss: the loss of the model and the guide, whose parameters are learned.
        optimizer: the optimizer of these parameters.
        step: changes the parameters.
        batches: the data.
        example: one example, for guides that read their arguments.
        device: the device on which the run computes.
        compile: whether to compile the step.
        state: the number of steps taken, and the measurements so far.
    """

    loss: ELBOModule
    optimizer: torch.optim.Optimizer
    step: Step
    batches: Minibatches
    example: tuple[Tensor, ...]
    device: torch.device
    compile: bool
    state: TrainingState = field(default_factory=TrainingState)

    def take_step(
        self, batch: Sequence[Tensor], learning_rate: float, kl_weight: float
    ) -> StepStats:
        """Change the parameters by one stochastic gradient.

        The first step is never compiled, because it creates the state of the optimizer.
        """
        if self.compile and self.state.step and isinstance(self.step, PlainStep):
            self.step = CompiledStep(self.step)
        return self.step(batch, learning_rate, kl_weight)

    def call(self, callbacks: Sequence[Callback]) -> None:
        """Call the callbacks; whatever they draw or evaluate, the run remains the same."""
        if not callbacks:
            return
        progress = Progress(self.state.epochs, copy.deepcopy(self.state.history), self.posterior)
        with fork_rng(self.device):
            try:
                for callback in callbacks:
                    callback(progress)
            except KeyboardInterrupt:
                self.state.interrupt()

    def posterior(self, device: torch.device | None = None) -> Posterior:
        """Return the present posterior, made of copies; ``None`` for the device of the run."""
        (loss,) = deepcopy_together(self.loss)
        return Posterior.from_loss(loss, device or self.device, self.example)


def begin_run(
    loss: ELBOModule,
    batches: Minibatches,
    optimizer: OptimizerFactory,
    num_particles: int,
    device: torch.device,
    compile: bool,
) -> TrainingRun:
    """Check model, guide and data against each other and return a run that has taken no step.

    Raises:
        ValueError: a guide without parameters or for another model; a plate of the wrong size.
        DataError: targets outside the support of the likelihood.
    """
    example = _dry_run(loss, batches, device)
    parameters = learnable_parameters(loss)
    if all(name.startswith("model.") for name in parameters):
        raise ValueError(
            "fit: the guide has no parameters to learn; "
            "give it pyro.param statements, or make it a module with parameters"
        )
    built = optimizer(list(parameters.values()), lr=1e-3)
    step = PlainStep(loss, built, num_particles)
    return TrainingRun(loss, built, step, batches, example, device, compile)


def _dry_run(loss: ELBOModule, batches: Minibatches, device: torch.device) -> tuple[Tensor, ...]:
    """Run model and guide once and return one example of the data.

    Functions declare their parameters here, autoguides are built, and a guide that does not match
    the model raises its error.
    """
    batch = next(batches.stream(0, device))
    example = tuple(tensor[:1].clone() for tensor in batch)
    loss.eval()  # so that batch normalization does not count this pass
    trace = loss.trace(*batch)
    loss.train()
    if len(batch) > 1:
        in_memory = batches.tensors if isinstance(batches, TensorBatches) else batch
        require_program_fits_data(trace, batch, in_memory[1], batches.num_data)
    return example
