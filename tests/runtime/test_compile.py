"""Compiled functions: the same numbers, or the original with one warning that gives the reason."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch._inductor

from pyro_bnn.mcmc.log_density import LogDensity
from pyro_bnn.models import hidden_layer_regression
from pyro_bnn.runtime.compile import CompileWarning, NotTraceableError, compiled, traced

A, B = torch.linspace(-1, 1, 6), torch.linspace(0, 2, 6)


def smooth(a, b):
    return a * b.sin(), (a - b).square().sum()


def no_compiler(*_, **__):
    raise RuntimeError("InvalidCxxCompiler: no working C++ compiler was found")


def agree(one, other):
    return all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(one, other, strict=True))


def test_a_compiled_function_computes_the_same_numbers():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = compiled(smooth, [A, B], "smooth")
    assert fast is not smooth
    for shift in (0.0, 0.3):
        assert agree(fast(A + shift, B), smooth(A + shift, B))


def test_compiling_changes_neither_the_examples_nor_the_random_state():
    def changing(a, b):
        a.add_(b)
        return (a.sum(),)

    before, state = A.clone(), torch.get_rng_state()
    compiled(changing, [A, B], "changing")
    assert torch.equal(A, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_changes_of_arguments_in_place_are_compiled_and_compared(monkeypatch):
    def changing(a, b):
        a.mul_(0.5).add_(b)
        return (a.sum(),)

    fast, a, expected = compiled(changing, [A, B], "changing"), A.clone(), A.clone()
    assert agree(fast(a, B), changing(expected, B))
    assert torch.allclose(a, expected)
    # a compiler that forgets the change is detected
    monkeypatch.setattr(
        torch._inductor, "compile", lambda graph, inputs: lambda a, b: changing(a.clone(), b)
    )
    with pytest.warns(CompileWarning, match="its trace gives other numbers"):
        assert compiled(changing, [A, B], "changing") is changing


def test_a_compiler_that_computes_something_else_is_detected(monkeypatch):
    def wrong(graph, inputs):
        return lambda a, b: (a * b.cos(), (a - b).square().sum())

    monkeypatch.setattr(torch._inductor, "compile", wrong)
    with pytest.warns(
        CompileWarning, match="smooth runs uncompiled.*its trace gives other numbers"
    ):
        assert compiled(smooth, [A, B], "smooth") is smooth


def test_results_may_differ_where_rounding_the_arguments_changes_them(monkeypatch):
    def steep(a, b):
        return ((1e5 * a).sin() + b,)

    def rounded(graph, inputs):
        return lambda a, b: steep(a * (1 + 6e-8), b)

    a, b = A.float(), B.float()
    monkeypatch.setattr(torch._inductor, "compile", rounded)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = compiled(steep, [a, b], "steep")
    assert not torch.allclose(fast(a, b)[0], steep(a, b)[0], atol=1e-3)


def test_a_function_that_differs_between_calls_is_detected():
    calls = []

    def counting(a, b):
        calls.append(a)
        return (a.sum() + len(calls) * b.sum(),)

    with pytest.warns(CompileWarning, match="its trace gives other numbers"):
        assert compiled(counting, [A, B], "counting") is counting


# --- Functions that cannot be compiled ------------------------------------------------------------


def test_random_numbers_are_compiled_only_where_allowed():
    def noisy(a, b):
        return (a + torch.randn_like(b),)

    with pytest.warns(
        CompileWarning, match=r"noisy runs uncompiled.*it draws random numbers \(.*randn_like"
    ) as warned:
        assert compiled(noisy, [A, B], "noisy") is noisy
    assert len(warned) == 1
    fast = compiled(noisy, [A, B], "noisy", allow_random=True)
    torch.manual_seed(3)
    first = fast(A, B)
    torch.manual_seed(3)
    assert agree(first, noisy(A, B))


def test_a_function_that_decides_by_values_is_not_compiled():
    def deciding(a, b):
        return (a if bool(a.sum() > 0) else b,)

    with pytest.warns(
        CompileWarning, match="its operations depend on the values of tensors"
    ) as warned:
        assert compiled(deciding, [A, B], "deciding") is deciding
    assert len(warned) == 1
    with pytest.raises(NotTraceableError, match="depend on the values of tensors"):
        traced(deciding, [A, B])


def test_random_numbers_of_numpy_are_detected():
    generator = np.random.default_rng(0)

    def outside(a, b):
        return (a + float(generator.normal()),)

    with pytest.warns(
        CompileWarning, match="it depends on something else than its arguments: .*numpy"
    ):
        assert compiled(outside, [A, B], "outside") is outside


def test_a_counter_is_detected():
    calls = []

    def counting(a, b):
        calls.append(1)
        return (a * len(calls),)

    with pytest.warns(CompileWarning, match="a counter"):
        assert compiled(counting, [A, B], "counting") is counting


def test_the_error_of_a_program_is_the_reason_why_it_cannot_be_traced():
    def broken(a, b):
        raise KeyError("no such thing")

    with pytest.raises(NotTraceableError, match="no such thing"):
        traced(broken, [A, B])


# --- Without a compiler, or without the private function of torch ---------------------------------


def test_without_a_compiler_the_traced_operations_run_with_a_warning(monkeypatch):
    monkeypatch.setattr(torch._inductor, "compile", no_compiler)
    with pytest.warns(CompileWarning, match="the compiler failed.*no working C") as warned:
        slow = compiled(smooth, [A, B], "smooth")
    assert len(warned) == 1
    assert isinstance(slow, torch.fx.GraphModule)
    assert all(torch.equal(a, b) for a, b in zip(slow(A + 1, B), smooth(A + 1, B), strict=True))


def test_a_torch_without_the_private_function_uses_torch_compile(monkeypatch):
    used = []
    public = torch.compile
    monkeypatch.delattr(torch._inductor, "compile")
    monkeypatch.setattr(torch, "compile", lambda *a, **k: used.append(k) or public(*a, **k))
    fast = compiled(smooth, [A, B], "smooth")
    assert used == [{"fullgraph": True, "dynamic": False}]
    assert agree(fast(A + 1, B), smooth(A + 1, B))


# --- Pyro programs --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_compiled_log_density_equals_that_of_the_program():
    x, y = torch.randn(9, 2), torch.randn(9)
    density = LogDensity(hidden_layer_regression(9, inputs=2, hidden=3), (x, y))
    fast = compiled(density.value_and_grad, [torch.zeros(4, density.size), x, y], "the density")
    assert fast != density.value_and_grad
    positions = torch.randn(4, density.size)
    assert agree(fast(positions, x, y), density.value_and_grad(positions, x, y))


def test_distributions_built_with_validation_are_traced():
    checked = dist.HalfNormal(torch.tensor(1.0), validate_args=True)
    mixture = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2), validate_args=True),
        dist.Normal(torch.zeros(2), 1.0),
        validate_args=True,
    )

    def program(y):
        scale = pyro.sample("scale", checked)
        with pyro.plate("data", 6):
            pyro.sample("z", mixture, obs=y)
            pyro.sample("y", dist.Normal(0.0, scale), obs=y)

    density = LogDensity(program, (A,))
    graph = traced(density.value_and_grad, [torch.zeros(2, 1), A])
    assert agree(graph(torch.ones(2, 1), A), density.value_and_grad(torch.ones(2, 1), A))
