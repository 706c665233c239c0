r"""One step of stochastic variational inference: loss, gradient, and the optimizer's update.

:class:`PlainStep` runs the Pyro programs as they are. :class:`CompiledStep` does the same
arithmetic as one function of tensors, traced once and compiled. Both draw the same random numbers
from the same generator, and both are a :class:`Step`.
"""

from __future__ import annotations

import collections
import copy
import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pyro_bnn.runtime.compile import (
    CompileWarning,
    Function,
    NotTraceableError,
    compiled_strictly,
)
from pyro_bnn.variational.elbo import ELBOModule
from pyro_bnn.variational.terms import Terms

__all__ = ["CompiledStep", "PlainStep", "Step", "StepStats", "learnable_parameters"]


@dataclass
class StepStats:
    """The measurements of one step.

    Attributes:
        loss: the negative ELBO, in nats.
        data: minus the expected log-likelihood, in nats.
        kl: the KL divergence of each latent site, in nats.
        gradients: the Euclidean norm of the gradient of each parameter.
    """

    loss: float
    data: float
    kl: dict[str, float]
    gradients: dict[str, float]

    @property
    def finite(self) -> bool:
        """Whether all values are finite; if not, the step has changed no parameter."""
        values = (self.loss, self.data, *self.kl.values(), *self.gradients.values())
        return math.isfinite(sum(values))  # a double holds any sum of finite float32 numbers


class Step(Protocol):
    """A function that changes the parameters by one stochastic gradient."""

    def __call__(
        self, batch: Sequence[Tensor], learning_rate: float, kl_weight: float
    ) -> StepStats:
        """Take a step on a minibatch, unless its loss or gradient is not finite."""


def learnable_parameters(loss: ELBOModule) -> dict[str, nn.Parameter]:
    """Return the parameters of a loss that have a gradient, by name."""
    return {name: p for name, p in loss.named_parameters() if p.requires_grad}


class PlainStep:
    """The step in eager torch.

    Args:
        loss: the loss of the model and the guide.
        optimizer: an optimizer of the parameters of the loss.
        num_particles: number of draws from the guide to average over.
    """

    def __init__(
        self, loss: ELBOModule, optimizer: torch.optim.Optimizer, num_particles: int
    ) -> None:
        self.loss = loss
        self.optimizer = optimizer
        self.num_particles = num_particles
        self.parameters = learnable_parameters(loss)

    def __call__(
        self, batch: Sequence[Tensor], learning_rate: float, kl_weight: float
    ) -> StepStats:
        """Change the parameters by one stochastic gradient."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        particles = [self.loss.terms(*batch) for _ in range(self.num_particles)]
        mean = _mean_over_particles(particles, kl_weight)
        torch.autograd.backward(mean.loss)
        gradients = {}
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                gradients[name] = parameter.grad
        measured = _stack(mean, list(gradients.values()))
        stats = _unstack(measured, list(mean.kl), list(gradients))
        if stats.finite:
            self.optimizer.step()
        return stats


class _Arguments(NamedTuple):
    """The arguments of the compiled update, which receives them as one flat list in this order."""

    parameters: list[Tensor]
    buffers: list[Tensor]
    optimizer_state: list[Tensor]
    learning_rate: Tensor
    kl_weight: Tensor
    batch: list[Tensor]


class _Slot(NamedTuple):
    """Where the state of an optimizer holds a tensor: name of the parameter, key in its state."""

    parameter: str
    key: str


class CompiledStep:
    """The same step, traced and compiled at its first call.

    The compiled function receives parameters, buffers (such as the running moments of batch
    normalization) and the state of the optimizer, and changes them in place. Learning rate, KL
    weight and minibatch are further arguments. A program or an optimizer that cannot be traced
    continues with plain steps.

    Args:
        plain: the step to compile. Its optimizer must have taken a step, since most optimizers
            create their state only then.

    Warns:
        CompileWarning: the step cannot be traced; the message gives the reason.
    """

    def __init__(self, plain: PlainStep) -> None:
        self.plain = plain
        plain.optimizer.zero_grad()
        self.names = list(plain.parameters)
        values = [p.detach() for p in plain.parameters.values()]
        buffers = dict(plain.loss.named_buffers())
        self.buffers = list(buffers)
        self.optimizer_state = {
            name: plain.optimizer.state[p] for name, p in plain.parameters.items()
        }
        self.slots = self._tensors_of_optimizer()
        optimizer_state = [self.optimizer_state[slot.parameter][slot.key] for slot in self.slots]
        self.learning_rate = values[0].new_zeros(())
        self.kl_weight = values[0].new_zeros(())
        schedule = [self.learning_rate, self.kl_weight]
        # the same tensors at every step, which the update changes in place
        self.constant_arguments = [*values, *buffers.values(), *optimizer_state, *schedule]
        self.sites: list[str] = []  # the latent sites, known once the update has been traced
        self.update: Function | None = None
        self.uncompilable = False

    def __call__(
        self, batch: Sequence[Tensor], learning_rate: float, kl_weight: float
    ) -> StepStats:
        """Change the parameters by one stochastic gradient."""
        if self.uncompilable:
            return self.plain(batch, learning_rate, kl_weight)
        self.learning_rate.fill_(learning_rate)
        self.kl_weight.fill_(kl_weight)
        arguments = [*self.constant_arguments, *[tensor.contiguous() for tensor in batch]]
        if self.update is None:
            self.update = self._compile(arguments)
            if self.update is None:
                self.uncompilable = True
                return self.plain(batch, learning_rate, kl_weight)
        (measured,) = self.update(*arguments)
        return _unstack(measured, self.sites, self.names)

    def _tensors_of_optimizer(self) -> list[_Slot]:
        """Return where the state of the optimizer holds tensors."""
        slots = []
        for name, state in self.optimizer_state.items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    slots.append(_Slot(name, key))
        return slots

    def _split(self, tensors: Sequence[Tensor]) -> _Arguments:
        """Return the parts of a flat list of arguments."""
        remaining = iter(tensors)
        return _Arguments(
            parameters=list(itertools.islice(remaining, len(self.names))),
            buffers=list(itertools.islice(remaining, len(self.buffers))),
            optimizer_state=list(itertools.islice(remaining, len(self.slots))),
            learning_rate=next(remaining),
            kl_weight=next(remaining),
            batch=list(remaining),
        )

    def _compile(self, arguments: Sequence[Tensor]) -> Function | None:
        """Return the compiled update, or ``None`` with a warning that gives the reason."""
        try:
            # torch gives this setting to the optimizers that can be traced
            if "differentiable" not in self.plain.optimizer.defaults:
                kind = type(self.plain.optimizer).__name__
                raise NotTraceableError(f"the optimizer {kind} cannot be traced")
            return compiled_strictly(self._update, arguments, allow_random=True)
        except NotTraceableError as error:
            message = f"fit runs uncompiled, which is correct and slower: {error}"
            warnings.warn(message, CompileWarning, stacklevel=6)  # the line that calls fit
            return None

    def _update(self, *tensors: Tensor) -> tuple[Tensor]:
        """Take a step as a function of tensors; return what it measured as one tensor."""
        arguments = self._split(tensors)
        loss_and_gradient = torch.func.grad_and_value(self._loss, has_aux=True)
        gradients, (_, mean) = loss_and_gradient(
            arguments.parameters, arguments.buffers, arguments.kl_weight, arguments.batch
        )
        self.sites = list(mean.kl)
        measured = _stack(mean, gradients)
        changed = [*arguments.parameters, *arguments.optimizer_state]
        before = [tensor.clone() for tensor in changed]
        with torch.no_grad():
            self._optimize(arguments, gradients)
            # where loss or gradient is NaN or infinite, nothing changes
            finite = measured.isfinite().all()
            for tensor, old in zip(changed, before, strict=True):
                tensor.copy_(torch.where(finite, tensor.detach(), old))
        return (measured,)

    def _loss(
        self,
        parameters: list[Tensor],
        buffers: list[Tensor],
        kl_weight: Tensor,
        batch: list[Tensor],
    ) -> tuple[Tensor, _MeanTerms]:
        """Return the loss as a function of parameters and buffers, and its terms."""
        tensors = dict(zip(self.names, parameters, strict=True))
        tensors |= zip(self.buffers, buffers, strict=True)
        loss = self.plain.loss
        particles = [loss.terms_at(tensors, *batch) for _ in range(self.plain.num_particles)]
        mean = _mean_over_particles(particles, kl_weight)
        return mean.loss, mean

    def _optimize(self, arguments: _Arguments, gradients: Sequence[Tensor]) -> None:
        """Let a copy of the optimizer change parameters and optimizer state in place."""
        twin = copy.copy(self.plain.optimizer)
        by_name = dict(zip(self.names, arguments.parameters, strict=True))
        twin.state = collections.defaultdict(dict)
        for name, parameter in by_name.items():
            twin.state[parameter] = dict(self.optimizer_state[name])
        for slot, tensor in zip(self.slots, arguments.optimizer_state, strict=True):
            twin.state[by_name[slot.parameter]][slot.key] = tensor
        settings = {
            # without a gradient, some optimizers would ask for the value of the learning rate
            "lr": arguments.learning_rate.detach().requires_grad_(),
            "differentiable": True,
            "foreach": False,
            "fused": None,
            "capturable": False,
            "params": arguments.parameters,
        }
        twin.defaults = twin.defaults | {"differentiable": True}
        twin.param_groups = [group | settings for group in twin.param_groups]
        for parameter, gradient in zip(arguments.parameters, gradients, strict=True):
            parameter.grad = gradient
        twin.step()


class _MeanTerms(NamedTuple):
    """Loss and terms of the loss, averaged over draws from the guide, in nats."""

    loss: Tensor
    data: Tensor
    kl: dict[str, Tensor]


def _mean_over_particles(particles: list[Terms], kl_weight: float | Tensor) -> _MeanTerms:
    """Return the means of loss, data term and KL terms over several draws from the guide."""
    first, *others = particles
    loss, data, kl = first.loss(kl_weight), first.data, dict(first.kl)
    if not others:
        return _MeanTerms(loss, data, kl)
    for terms in others:
        loss = loss + terms.loss(kl_weight)
        data = data + terms.data
        for name, value in terms.kl.items():
            kl[name] = kl[name] + value
    for name, total in kl.items():
        kl[name] = total / len(particles)
    return _MeanTerms(loss / len(particles), data / len(particles), kl)


def _stack(mean: _MeanTerms, gradients: Sequence[Tensor]) -> Tensor:
    """Return all that a step measures in one tensor, so that a GPU is waited for only once."""
    with torch.no_grad():
        numbers = [mean.loss, mean.data, *mean.kl.values()]
        for gradient in gradients:
            numbers.append(torch.linalg.vector_norm(gradient))
        return torch.stack([number.detach().to(mean.loss.dtype) for number in numbers])


def _unstack(measured: Tensor, sites: list[str], parameters: list[str]) -> StepStats:
    """Return what :func:`_stack` put into one tensor, by name."""
    loss, data, *others = measured.tolist()
    kl = dict(zip(sites, others[: len(sites)], strict=True))
    gradients = dict(zip(parameters, others[len(sites) :], strict=True))
    return StepStats(loss, data, kl, gradients)
