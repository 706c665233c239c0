"""What the tests of samplers share: programs traced but not compiled, and bugs put in on purpose."""

import __future__

import inspect
import sys
import textwrap

import pytest

from pyro_bnn.mcmc import chains
from pyro_bnn.runtime.compile import traced


@pytest.fixture
def traced_samplers(monkeypatch):
    """Run samplers on the traced operations, one by one: a tenth of the time of Pyro, and nothing to compile."""
    monkeypatch.setattr(
        chains, "compiled", lambda function, examples, what: traced(function, examples)
    )


@pytest.fixture
def seeded_bug(monkeypatch):
    """Return a function that replaces a piece of the source of a function, of a class or of a module, by another."""

    def put_in(owner, name, right, wrong):
        original = inspect.getattr_static(owner, name)
        original = getattr(original, "__func__", original)
        source = textwrap.dedent(inspect.getsource(original))
        assert right in source, f"{name} no longer says {right!r}: update the bug"
        module = sys.modules[original.__module__]
        namespace = {}
        flags = __future__.annotations.compiler_flag
        code = compile(
            source.replace(right, wrong), "<seeded bug>", "exec", flags=flags, dont_inherit=True
        )
        exec(code, vars(module), namespace)
        monkeypatch.setattr(owner, name, namespace[name])

    return put_in
