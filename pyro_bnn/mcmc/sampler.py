"""What every sampler provides, and how to add one: see :class:`Sampler`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self, TypeVar

from torch import Tensor

from .noise import RandomNumbers

__all__ = [
    "Batch",
    "ConvergenceWarning",
    "Info",
    "Sampler",
    "SamplerState",
    "SamplingError",
    "Update",
    "ValueAndGrad",
]


class SamplingError(RuntimeError):
    """Sampling cannot continue.

    Every chain diverges, the step size falls to zero, a chain leaves the finite numbers, or the
    run was stopped before its first draw.
    """


class ConvergenceWarning(UserWarning):
    """The draws may not represent the posterior; also in ``posterior.facts["warnings"]``."""


Batch = tuple[Tensor, ...]
"""The arguments of the program: ``(x, y)``, all the data or a minibatch."""

Update = Callable[..., tuple[Tensor, ...]]
"""The tensor operations of one step, from tensors to tensors, so that they can be compiled."""


class ValueAndGrad(Protocol):
    """The log density of all chains and its gradient."""

    def __call__(self, position: Tensor, /, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log density (chains,) in nats and its gradient, both at (chains, D)."""


class SamplerState(Protocol):
    """Everything that the next step needs; a NamedTuple."""

    @property
    def position(self) -> Tensor:
        """The positions of all chains, (chains, D)."""


class Info(Protocol):
    """What one step reports; a NamedTuple of tensors, one number for each chain or one for all."""

    @property
    def lp(self) -> Tensor:
        """The log density at the position after the step, (chains,), in nats."""

    def _asdict(self) -> dict[str, Tensor | None]:
        """Return the fields by name."""


State = TypeVar("State", bound=SamplerState)


class Sampler(Protocol[State]):
    """The settings of a sampler, with the methods that the loop of all samplers calls.

    To add a sampler, write one file beside the others, with the same five parts in the same
    order. :mod:`pyro_bnn.mcmc.langevin` is the shortest example.

    1. The module docstring gives the equations, the bias and the source.
    2. The public function, ``sampler(model, data, *, ...)``, spells out every keyword argument,
       collects its own in the settings (4) and the common ones in
       :class:`~pyro_bnn.mcmc.options.RunOptions`, and calls :func:`~pyro_bnn.mcmc.chains.sample`.
    3. ``State`` is a NamedTuple of everything that the next step needs: ``position`` (chains, D),
       and tensors, numbers or NamedTuples of them. It is saved and restored as a whole.
       ``Info`` is a NamedTuple of what a step reports. Each field that is not ``None`` becomes an
       entry (chain, draw) of ``posterior.statistics``. ``lp`` is the log density; ``n_steps`` is
       the number of gradients that the step took, if that is not one.
    4. The settings are a frozen dataclass that checks its values in ``__post_init__`` and
       implements this protocol. Messages begin with :attr:`caller`.
    5. ``pyro_bnn/mcmc/__init__.py`` exports the function.

    The loop calls ``with_default_step_size`` once, then ``make_update``, compiles the result for
    ``example_arguments``, calls ``init`` once, and ``step`` for every step.
    """

    @property
    def name(self) -> str:
        """The usual name of the method, such as ``"SGLD"``."""

    @property
    def caller(self) -> str:
        """The name of the public function, with which messages begin, such as ``"sgld"``."""

    def with_default_step_size(self, curvature: Callable[[], float], batch_fraction: float) -> Self:
        """Return the settings with a value for every setting that was left to be chosen.

        Args:
            curvature: Computes the largest curvature of the log density at a mode; it costs
                hundreds of gradients.
            batch_fraction: B/N, the fraction of the examples that a gradient uses.
        """

    def make_update(self, value_and_grad: ValueAndGrad) -> Update:
        """Return the tensor operations of one step, for all chains."""

    def example_arguments(self, position: Tensor, batch: Batch) -> list[Tensor]:
        """Return arguments of the update at these positions, to compile it with."""

    def init(
        self, value_and_grad: ValueAndGrad, update: Update, position: Tensor, batch: Batch
    ) -> State:
        """Return the state of chains at these positions (chains, D)."""

    def step(
        self, update: Update, state: State, number: int, random: RandomNumbers, batch: Batch
    ) -> tuple[State, Info]:
        """Take step ``number``, counted from zero; return the state after it and its report."""
