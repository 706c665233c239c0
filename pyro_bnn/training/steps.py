r"""One step of stochastic variational inference: loss, gradient, and the optimizer's update.

:class:`PlainStep` runs the programs as they are. :class:`CompiledStep` does the same arithmetic as one function of
tensors, traced once and compiled: parameters, buffers (the running moments of batch normalisation) and the optimizer's
state go in and are changed in place; learning rate, KL weight and minibatch are arguments. Both draw the same random
numbers from the same generator.
"""

from __future__ import annotations

import collections
import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_bnn.runtime.compile import CompileWarning, NotTraceableError, compiled_strictly
from pyro_bnn.variational.elbo import ELBOModule, Terms

__all__ = ["CompiledStep", "PlainStep", "StepStats"]


@dataclass
class StepStats:
    """What one step says of itself: the loss and its parts in nats, and the norm of each parameter's gradient."""

    loss: float
    data: float
    kl: dict[str, float]
    gradients: dict[str, float]

    @property
    def finite(self) -> bool:
        """Whether all of it are numbers; if not, no parameter was changed."""
        values = (self.loss, self.data, *self.kl.values(), *self.gradients.values())
        return math.isfinite(sum(values))  # of finite float32 numbers a double holds any sum


class PlainStep:
    """The step in eager torch."""

    def __init__(
        self, loss: ELBOModule, optimizer: torch.optim.Optimizer, num_particles: int
    ) -> None:
        self.loss, self.optimizer, self.num_particles = loss, optimizer, num_particles
        self.parameters = {name: p for name, p in loss.named_parameters() if p.requires_grad}

    def __call__(
        self, batch: Sequence[Tensor], learning_rate: float, kl_weight: float
    ) -> StepStats:
        """Change the parameters by one stochastic gradient."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        loss, data, kl = _together(
            [self.loss.terms(*batch) for _ in range(self.num_particles)], kl_weight
        )
        loss.backward()
        reached = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        numbers = _numbers([loss, data, *kl.values()], list(reached.values()))
        report = _report(numbers.tolist(), list(kl), list(reached))
        if report.finite:
            self.optimizer.step()
        return report


class CompiledStep:
    """The same step, traced and compiled at its first call; the optimizer must have taken a step, for its state.

    Warns:
        CompileWarning: what cannot be traced goes on as a plain step.
    """

    def __init__(self, plain: PlainStep) -> None:
        self.plain = plain
        plain.optimizer.zero_grad()
        self.names = list(plain.parameters)
        self.values = [p.detach() for p in plain.parameters.values()]
        self.buffers = dict(plain.loss.named_buffers())
        self.state = {name: plain.optimizer.state[p] for name, p in plain.parameters.items()}
        self.slots = [
            (name, key)
            for name, own in self.state.items()
            for key, v in own.items()
            if _is_tensor(v)
        ]
        self.schedule = [self.values[0].new_zeros(()) for _ in range(2)]
        self.sites: list[str] = []
        self.update: Any = None
        self.given_up = False

    def __call__(
        self, batch: Sequence[Tensor], learning_rate: float, kl_weight: float
    ) -> StepStats:
        """Change the parameters by one stochastic gradient."""
        for tensor, number in zip(self.schedule, (learning_rate, kl_weight), strict=True):
            tensor.fill_(number)
        state = [self.state[name][key] for name, key in self.slots]
        arguments = [
            *self.values,
            *self.buffers.values(),
            *state,
            *self.schedule,
            *(p.contiguous() for p in batch),
        ]
        if self.update is None and not self.given_up:
            self.update = self._compiled(arguments)
            self.given_up = self.update is None
        if self.given_up:
            return self.plain(batch, learning_rate, kl_weight)
        (numbers,) = self.update(*arguments)
        return _report(numbers.tolist(), self.sites, self.names)

    def _compiled(self, arguments: Sequence[Tensor]) -> Any:
        try:
            if (
                "differentiable" not in self.plain.optimizer.defaults
            ):  # so torch marks optimizers that can be traced
                raise NotTraceableError(
                    f"the optimizer {type(self.plain.optimizer).__name__} cannot be traced"
                )
            return compiled_strictly(self._update, arguments, random=True)
        except NotTraceableError as error:
            message = f"fit runs uncompiled, which is correct and slower: {error}"
            warnings.warn(message, CompileWarning, stacklevel=6)
            return None

    def _update(self, *arguments: Tensor) -> tuple[Tensor]:
        """Do all of it, as a function of tensors."""
        take = _Taker(arguments)
        values, buffers, state = (
            take(len(self.names)),
            take(len(self.buffers)),
            take(len(self.slots)),
        )
        (learning_rate, kl_weight), batch = take(2), take(None)
        objective = torch.func.grad_and_value(self._objective, has_aux=True)
        gradients, (loss, (data, kl)) = objective(values, buffers, kl_weight, batch)
        self.sites = list(kl)
        numbers = _numbers([loss, data, *kl.values()], gradients)
        before = [tensor.clone() for tensor in (*values, *state)]
        with torch.no_grad():
            self._optimize(values, gradients, state, learning_rate)
            good = numbers.isfinite().all()  # a loss that is no number reaches no parameter
            for tensor, old in zip((*values, *state), before, strict=True):
                tensor.copy_(torch.where(good, tensor.detach(), old))
        return (numbers,)

    def _objective(
        self, values: list[Tensor], buffers: list[Tensor], kl_weight: Tensor, batch: list[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, dict[str, Tensor]]]:
        own = dict(zip((*self.names, *self.buffers), (*values, *buffers), strict=True))
        particles = [self.plain.loss.terms_at(own, *batch) for _ in range(self.plain.num_particles)]
        loss, data, kl = _together(particles, kl_weight)
        return loss, (data, kl)

    def _optimize(
        self, values: list[Tensor], gradients: Any, state: list[Tensor], learning_rate: Tensor
    ) -> None:
        """Let a copy of the optimizer change these values and this state."""
        twin = copy.copy(self.plain.optimizer)
        owners = dict(zip(self.names, values, strict=True))
        twin.state = collections.defaultdict(dict)
        for name, value in owners.items():
            twin.state[value] = dict(self.state[name])
        for (name, key), tensor in zip(self.slots, state, strict=True):
            twin.state[owners[name]][key] = tensor
        rate = learning_rate.detach().requires_grad_()  # else some optimizers ask for its value
        own = {
            "lr": rate,
            "differentiable": True,
            "foreach": False,
            "fused": None,
            "capturable": False,
        }
        twin.defaults = twin.defaults | {"differentiable": True}
        twin.param_groups = [group | own | {"params": values} for group in twin.param_groups]
        for value, gradient in zip(values, gradients, strict=True):
            value.grad = gradient
        twin.step()


class _Taker:
    """Hand out a sequence of tensors part by part."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.rest: Iterator[Tensor] = iter(tensors)

    def __call__(self, number: int | None) -> list[Tensor]:
        return list(self.rest) if number is None else [next(self.rest) for _ in range(number)]


def _together(
    particles: list[Terms], kl_weight: float | Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the means of loss, data term and KL terms over several draws from the guide."""

    def mean(values: list[Tensor]) -> Tensor:
        return sum(values[1:], values[0]) / len(values)

    kl = {name: mean([terms.kl[name] for terms in particles]) for name in particles[0].kl}
    return (
        mean([terms.loss(kl_weight) for terms in particles]),
        mean([terms.data for terms in particles]),
        kl,
    )


def _numbers(parts: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Return all that a report is made of in one tensor: one trip from the GPU."""
    with torch.no_grad():
        norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
        return torch.stack([part.detach().to(parts[0].dtype) for part in (*parts, *norms)])


def _report(numbers: list[float], sites: list[str], parameters: list[str]) -> StepStats:
    loss, data, *rest = numbers
    kl, norms = rest[: len(sites)], rest[len(sites) :]
    return StepStats(
        loss, data, dict(zip(sites, kl, strict=True)), dict(zip(parameters, norms, strict=True))
    )


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
