"""Fixtures of the tests of samplers: traced programs, and seeded bugs."""

import __future__

import inspect
import sys
import textwrap

import pytest

from pyro_bnn.mcmc import chains
from pyro_bnn.runtime.compile import traced


@pytest.fixture
def traced_samplers(monkeypatch):
    """Run samplers on traced operations: ten times faster than Pyro, without a compiler."""

    def traced_only(function, examples, what):
        return traced(function, examples)

    monkeypatch.setattr(chains, "compiled", traced_only)


@pytest.fixture
def seeded_bug(monkeypatch):
    """Return a function that replaces a piece of the source of a function by another."""

    def plant(owner, name, right, wrong):
        original = inspect.getattr_static(owner, name)
        original = getattr(original, "__func__", original)
        source = textwrap.dedent(inspect.getsource(original))
        assert right in source, f"{name} no longer contains {right!r}: update the bug"
        module = sys.modules[original.__module__]
        namespace = {}
        flags = __future__.annotations.compiler_flag
        code = compile(
            source.replace(right, wrong), "<seeded bug>", "exec", flags=flags, dont_inherit=True
        )
        exec(code, vars(module), namespace)
        monkeypatch.setattr(owner, name, namespace[name])

    return plant
