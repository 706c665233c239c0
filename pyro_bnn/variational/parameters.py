"""The parameters of a program, held by a module instead of the global store."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import pyro
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

__all__ = ["LocalParamStore"]


class LocalParamStore(nn.Module):
    """The parameters that the programs of one loss declare, kept here instead of in Pyro's global store.

    Modules answer with their own tensors. For plain functions, each ``pyro.param`` statement gets a parameter here at
    its first call, and a module of a closure that is registered with ``pyro.module`` is found.
    """

    def __init__(self, *programs: Any) -> None:
        super().__init__()
        self.unconstrained = nn.ParameterDict()
        self.found = nn.ParameterDict()
        self._programs = programs  # in a tuple: they are registered elsewhere
        self._known: dict[int, nn.Parameter] = {}
        self._constraints: dict[str, Any] = {}
        self._declared = False
        self._standing_in: frozenset[int] = frozenset()

    @contextlib.contextmanager
    def substituted(self, tensors: Iterable[Tensor]) -> Iterator[None]:
        """Take these tensors for parameters: they were put in the place of the programs' own."""
        self._standing_in = frozenset(map(id, tensors))
        try:
            yield
        finally:
            self._standing_in = frozenset()

    def capture(self) -> _ParamMessenger:
        """Return the context in which parameter statements are answered from here."""
        return _ParamMessenger(self)

    def answer(
        self, name: str, initial: Any = None, constraint: Any = constraints.real, **_: Any
    ) -> Tensor:
        """Return the value of one ``pyro.param`` statement."""
        key = _key(name)
        if id(initial) in self._standing_in:
            return initial
        if isinstance(initial, nn.Parameter):
            if self.found.get(key) is not initial and not self._belongs(initial):
                self.found[key] = initial
                self._declared = True
            return initial
        if key not in self.unconstrained:
            value = (initial() if callable(initial) else initial).detach().clone()
            self.unconstrained[key] = nn.Parameter(transform_to(constraint).inv(value))
            self._constraints[key] = constraint
            self._declared = True
        constraint = self._constraints.get(
            key, constraint
        )  # pyro.param("scale"), said again without its constraint
        parameter = self.unconstrained[key]
        value = transform_to(constraint)(parameter.view_as(parameter))
        value.unconstrained = weakref.ref(parameter)  # as the values of Pyro's store have it
        return value

    def release(self) -> None:
        """Drop what a module took over: an autoguide that was built in this call keeps its parameters itself."""
        if self._declared:
            self._declared = False
            for kept in (self.unconstrained, self.found):
                for key in [key for key, parameter in kept.items() if self._belongs(parameter)]:
                    del kept[key]

    def set_unconstrained(self, name: str, unconstrained: Tensor) -> None:
        """Take a copy of a parameter that was learned elsewhere, by its unconstrained value."""
        self.unconstrained[_key(name)] = nn.Parameter(unconstrained.detach().clone())

    def _belongs(self, parameter: nn.Parameter) -> bool:
        """Return whether one of the programs is a module that owns the parameter."""
        if self._known.get(id(parameter)) is not parameter:
            modules = [program for program in self._programs if isinstance(program, nn.Module)]
            self._known = {id(own): own for module in modules for own in module.parameters()}
        return id(parameter) in self._known


def _key(name: str) -> str:
    """Return the name as a key of a ParameterDict: it takes neither dots nor the name of a method, "values" say."""
    key = name.replace(".", "/")
    return f"{key}_" if hasattr(nn.ParameterDict, key) or key in ("training", "_keys") else key


class _ParamMessenger(Messenger):
    """Answer parameter statements; what still reaches the store (a PyroParam shows its own tensor there) finds an empty
    one."""

    def __init__(self, owner: LocalParamStore) -> None:
        super().__init__()
        self.owner = owner
        self.scope = pyro.get_param_store().scope()

    def __enter__(self) -> Any:
        self.scope.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.scope.__exit__(*error)
        self.owner.release()

    def _pyro_param(self, msg: Any) -> None:
        name, *initial = msg["args"]
        declares = getattr(msg["fn"], "__self__", None) is pyro.get_param_store()
        if (
            declares
            and msg["value"] is None
            and (initial or _key(name) in self.owner.unconstrained)
        ):
            msg["value"] = self.owner.answer(name, *initial, **msg["kwargs"])
            msg["done"] = True
