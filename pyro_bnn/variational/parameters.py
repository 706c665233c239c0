"""The parameters of programs, held by a module instead of Pyro's global parameter store."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self

import pyro
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to
from torch.distributions.constraints import Constraint

from pyro_bnn.runtime.program import Program, Site

__all__ = ["LocalParamStore"]


class LocalParamStore(nn.Module):
    """The parameters that some programs declare, in place of Pyro's global store.

    Inside :meth:`capture`, a ``pyro.param`` statement of a module returns the module's own tensor.
    A statement of a plain function returns a parameter that this store creates at the first call.
    The parameters of a network that a function declares with ``pyro.module`` are registered here.
    So ``store.parameters()`` and the parameters of the programs are together all that is learned.

    Args:
        programs: the programs, models and guides; the store does not register them as submodules.

    Attributes:
        unconstrained: parameters of plain functions, by their unconstrained values.
        registered: parameters of networks that a function declares and no program owns.
    """

    def __init__(self, *programs: Program | None) -> None:
        super().__init__()
        self.unconstrained = nn.ParameterDict()
        self.registered = nn.ParameterDict()
        self._programs = programs  # inside a tuple, a module is not registered
        self._owned: dict[int, nn.Parameter] = {}
        self._constraints: dict[str, Constraint] = {}
        self._has_new_parameters = False
        self._substitutes: frozenset[int] = frozenset()

    def capture(self) -> ParamMessenger:
        """Return the context in which parameter statements are answered from this store."""
        return ParamMessenger(self)

    @contextlib.contextmanager
    def substituted(self, tensors: Iterable[Tensor]) -> Iterator[None]:
        """Accept these tensors, which stand in for parameters of the programs, as they are."""
        self._substitutes = frozenset(map(id, tensors))
        try:
            yield
        finally:
            self._substitutes = frozenset()

    def lookup(
        self,
        name: str,
        initial: Tensor | Callable[[], Tensor] | None = None,
        constraint: Constraint = constraints.real,
        event_dim: int | None = None,
    ) -> Tensor:
        """Return the value of a ``pyro.param`` statement.

        Args:
            name: name of the parameter.
            initial: the tensor of a module, or the initial value of a parameter that is new.
            constraint: constraint of the value; of the first statement, if there are several.
            event_dim: accepted as an argument of ``pyro.param``; it has no effect.
        """
        if isinstance(initial, Tensor) and id(initial) in self._substitutes:
            return initial
        if isinstance(initial, nn.Parameter):
            self._register(name, initial)
            return initial
        key = _key(name)
        if key not in self.unconstrained and initial is not None:
            self._declare(key, initial, constraint)
        parameter = self.unconstrained[key]
        # A later pyro.param("scale") may leave the constraint out.
        transform = transform_to(self._constraints.get(key, constraint))
        value: Tensor = transform(parameter.view_as(parameter))
        value.unconstrained = weakref.ref(parameter)  # type: ignore[attr-defined]  # as Pyro does
        return value

    def _register(self, name: str, parameter: nn.Parameter) -> None:
        """Register the parameter of a network, unless one of the programs owns it."""
        key = _key(name)
        if self.registered.get(key) is not parameter and not self._is_owned(parameter):
            self.registered[key] = parameter
            self._has_new_parameters = True

    def _declare(
        self, key: str, initial: Tensor | Callable[[], Tensor], constraint: Constraint
    ) -> None:
        """Create the parameter of a plain function."""
        if not isinstance(initial, Tensor):
            initial = initial()
        value = initial.detach().clone()
        self.unconstrained[key] = nn.Parameter(transform_to(constraint).inv(value))
        self._constraints[key] = constraint
        self._has_new_parameters = True

    def release(self) -> None:
        """Remove the parameters that a program has come to own.

        A stock autoguide is built in its first call: it declares parameters here and then keeps
        them itself.
        """
        if not self._has_new_parameters:
            return
        self._has_new_parameters = False
        for container in (self.unconstrained, self.registered):
            for key in list(container):
                if self._is_owned(container[key]):
                    del container[key]

    def set_unconstrained(self, name: str, unconstrained: Tensor) -> None:
        """Copy a parameter that was learned elsewhere, by its unconstrained value."""
        self.unconstrained[_key(name)] = nn.Parameter(unconstrained.detach().clone())

    def _is_owned(self, parameter: nn.Parameter) -> bool:
        """Return whether one of the programs is a module that owns the parameter."""
        if self._owned.get(id(parameter)) is not parameter:
            self._owned = {}
            for program in self._programs:
                if isinstance(program, nn.Module):
                    self._owned.update((id(owned), owned) for owned in program.parameters())
        return id(parameter) in self._owned


def _key(name: str) -> str:
    """Return a name as a key of a ``ParameterDict``.

    A key must not contain a dot, nor be the name of an attribute of the container ("values").
    """
    key = name.replace(".", "/")
    if hasattr(nn.ParameterDict, key) or key in ("training", "_keys"):
        return f"{key}_"
    return key


class ParamMessenger(Messenger):
    """Answer parameter statements from a :class:`LocalParamStore`.

    Some statements still reach Pyro's store: a ``PyroParam`` puts its own tensor there. Inside the
    context that store is empty, and afterwards it is as it was.
    """

    def __init__(self, store: LocalParamStore) -> None:
        super().__init__()
        self.store = store
        self.global_store_scope = pyro.get_param_store().scope()

    def __enter__(self) -> Self:
        self.global_store_scope.__enter__()
        return super().__enter__()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        self.global_store_scope.__exit__(exc_type, exc_value, traceback)
        self.store.release()

    def _pyro_param(self, msg: Site) -> None:
        if msg["value"] is not None or not _declares_a_parameter(msg):
            return
        name, *initial = msg["args"]
        if initial or _key(name) in self.store.unconstrained:
            msg["value"] = self.store.lookup(name, *initial, **msg["kwargs"])
            msg["done"] = True


def _declares_a_parameter(statement: Site) -> bool:
    """Return whether a statement is a ``pyro.param``, which calls a method of Pyro's store."""
    return getattr(statement["fn"], "__self__", None) is pyro.get_param_store()
