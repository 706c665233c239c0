"""The compiled training step does what the plain one does: the same numbers, up to rounding."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoNormal
from torch import nn

from pyro_bnn import BayesianNet, NonFiniteError, fit, likelihoods, linear_warmup, priors
from pyro_bnn.guides import (
    BernoulliDropout,
    GroupNormalJeffreys,
    MeanField,
    PointEstimate,
    SparseVariationalDropout,
)
from pyro_bnn.runtime.compile import CompileWarning
from tests.training.programs import tensors_of

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
Y = X.sum(1).tanh()


def net(**options):
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1))


def bayesian(network=None, prior=None, likelihood=None):
    return BayesianNet(
        network or net(), prior or {"*": priors.Normal()}, likelihood or likelihoods.Gaussian(), 40
    )


def program(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    noise = pyro.sample(
        "noise", dist.HalfNormal(1.0)
    )  # validates its arguments: built before anything is traced
    with pyro.plate("data", 40, subsample=range(len(x))):
        pyro.sample("y", dist.Normal(x @ w, noise), obs=y)


def statements(x, y):
    """A guide with pyro.param statements, one of them constrained."""
    scale = pyro.param("scale", torch.full((3,), 0.1), constraint=dist.constraints.positive)
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.zeros(3)), scale).to_event(1))
    pyro.sample("noise", dist.LogNormal(pyro.param("noise_loc", torch.tensor(-1.0)), 0.1))


def mean_field():
    model = bayesian()
    return model, MeanField(model)


def horseshoe():
    noise = likelihoods.Gaussian(dist.Gamma(2.0, 2.0))
    model = bayesian(prior={"*": priors.Horseshoe(0.1, slab=2.0)}, likelihood=noise)
    return model, MeanField(model)


def sparse_dropout():
    model = bayesian(prior=priors.LogUniform())
    return model, SparseVariationalDropout(model)


def group_sparsity():
    model = bayesian(prior=priors.NormalJeffreys())
    return model, GroupNormalJeffreys(model)


def binary_dropout():
    model = bayesian(prior=priors.Normal())
    return model, BernoulliDropout(model)


def batch_norm():
    network = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1))
    model = bayesian(network, priors.Normal())
    return model, MeanField(model)


def point_estimate():
    model = bayesian()
    return model, PointEstimate(model)


def hand_written():
    return program, statements


def stock_diagonal():
    model = bayesian()
    return model, AutoNormal(model)


def stock_full_rank():
    model = bayesian()
    return model, AutoMultivariateNormal(model)


def stock_low_rank():
    model = bayesian()
    return model, AutoLowRankMultivariateNormal(model)


CASES = [
    mean_field,
    horseshoe,
    sparse_dropout,
    group_sparsity,
    binary_dropout,
    batch_norm,
    point_estimate,
    hand_written,
    stock_diagonal,
    stock_full_rank,
    stock_low_rank,
]


def fit_plain_and_traced(case, **options):
    """Return two fits of one model and guide: with plain steps, and with compile=True."""
    defaults = {"epochs": 4, "batch_size": 16, "learning_rate": 1e-2, "kl_weight": 0.5}
    results = []
    for compile in (False, True):
        torch.manual_seed(3)
        settings = defaults | {"compile": compile, "progress": False} | options
        results.append(fit(*case(), (X, Y), **settings))
    return results


@pytest.fixture
def eager_compiler(monkeypatch):
    """Run traced graphs as they are, which tests tracing without waiting for a C++ compiler."""
    monkeypatch.setattr("pyro_bnn.runtime.compile.lowered", lambda graph, examples: graph)


def different_tensors(one, other):
    """Return the names of learned tensors that differ by more than rounding."""
    state, other_state = tensors_of(one), tensors_of(other)
    assert state.keys() == other_state.keys()
    names = set()
    for name, value in state.items():
        if not torch.allclose(value, other_state[name], rtol=2e-3, atol=2e-3):
            names.add(name)
    return names


@pytest.mark.parametrize("case", CASES)
def test_the_traced_step_equals_the_plain_one(case, eager_compiler):
    plain, traced = fit_plain_and_traced(case)
    assert plain.history["loss"] == pytest.approx(traced.history["loss"], rel=1e-4)
    assert plain.history["kl"] == pytest.approx(traced.history["kl"], rel=1e-3, abs=1e-6)
    assert len(set(plain.history["loss"])) == 4
    different = different_tensors(plain, traced)
    if case is batch_norm:
        # the gradient of a bias before a batch norm is rounding alone, but Adam follows it
        different -= {name for name in different if name.endswith(("net.0.bias", "running_mean"))}
    assert not different


# torch 2.6 reorders the random numbers of several particles and cannot trace SGD: such fits run
# uncompiled
OLD = torch.__version__.startswith("2.6.")


@pytest.mark.slow
def test_the_compiled_step_equals_the_plain_one():
    """With the C++ compiler, two particles, and buffers that the step changes (batch norm)."""
    particles = 1 if OLD else 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        plain, fast = fit_plain_and_traced(
            batch_norm, num_particles=particles, kl_weight=linear_warmup(0.0, 2.0)
        )
    assert plain.history["loss"] == pytest.approx(fast.history["loss"], rel=1e-4)
    tracked = [run.model.net[1].num_batches_tracked for run in (plain, fast)]
    assert tracked[0] == tracked[1] == 10 * particles  # steps times particles
    torch.testing.assert_close(
        plain.model.net[1].running_var, fast.model.net[1].running_var, rtol=1e-3, atol=1e-4
    )


def test_in_double_precision_the_traced_step_agrees_to_double_precision(eager_compiler):
    losses = []
    for compile in (False, True):
        torch.manual_seed(3)
        model = bayesian().double()
        guide = MeanField(model).double()
        data = X.double(), Y.double()
        result = fit(model, guide, data, epochs=3, compile=compile, progress=False)
        losses.append(result.history["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-7)


def test_sgd_and_adamw_are_traced(eager_compiler):
    def sgd(parameters, lr):
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9)

    for optimizer in (torch.optim.AdamW,) if OLD else (sgd, torch.optim.SGD, torch.optim.AdamW):
        plain, traced = fit_plain_and_traced(
            point_estimate, optimizer=optimizer, learning_rate=1e-3
        )
        assert plain.history["loss"] == pytest.approx(traced.history["loss"], rel=1e-4), optimizer
        assert not different_tensors(plain, traced)


def test_an_optimizer_that_reads_the_value_of_its_learning_rate_runs_uncompiled():
    with pytest.warns(CompileWarning, match="addcdiv"):
        plain, other = fit_plain_and_traced(point_estimate, optimizer=torch.optim.RMSprop)
    assert plain.history["loss"] == pytest.approx(other.history["loss"], rel=1e-5)


def test_an_optimizer_without_a_differentiable_form_runs_uncompiled():
    class Own(torch.optim.Optimizer):
        def __init__(self, parameters, lr):
            super().__init__(parameters, {"lr": lr})

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p -= group["lr"] * p.grad
                    self.state[p]["seen"] = True

    with pytest.warns(CompileWarning, match="Own cannot be traced") as warned:
        result = fit(
            *point_estimate(), (X, Y), epochs=3, compile=True, optimizer=Own, progress=False
        )
    assert len(result.history["loss"]) == 3
    assert [warning.filename for warning in warned] == [__file__]  # points to the call of fit


class ValueDependent(nn.Module):
    """A network whose operations depend on the values of its outputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        out = self.layer(x)
        return out if float(out.detach().abs().max()) > 0 else -out


def test_a_network_that_decides_by_values_runs_uncompiled_with_a_warning():
    def case():
        model = bayesian(ValueDependent())
        return model, MeanField(model)

    with pytest.warns(CompileWarning, match="depend on the values of tensors"):
        plain, other = fit_plain_and_traced(case)
    assert plain.history["loss"] == pytest.approx(other.history["loss"], rel=1e-5)


def test_an_infinite_loss_changes_no_parameter(eager_compiler):
    model, guide = mean_field()
    seen = []

    def blow_up(epoch):
        return 1e-2 if epoch < 3 else math.inf

    def keep_parameters(progress):
        seen.append(progress.posterior().guide.state_dict())

    with pytest.raises(NonFiniteError, match=r"step 4 .*the loss"):
        fit(
            model,
            guide,
            (X, Y),
            epochs=8,
            compile=True,
            progress=False,
            learning_rate=blow_up,
            callbacks=[keep_parameters],
        )
    assert all(bool(value.isfinite().all()) for value in seen[2].values())


def test_a_traced_run_resumes_bit_for_bit(tmp_path, eager_compiler):
    def run(folder, epochs, resume=False):
        torch.manual_seed(3)
        settings = {"batch_size": 16, "compile": True, "progress": False}
        return fit(
            *batch_norm(), (X, Y), epochs=epochs, checkpoint=folder, resume=resume, **settings
        )

    whole = run(tmp_path / "whole", 6)
    run(tmp_path / "parts", 2)
    parts = run(tmp_path / "parts", 6, resume=True)
    state = tensors_of(parts)
    for name, value in tensors_of(whole).items():
        assert torch.equal(value, state[name]), name
    assert whole.history["loss"] == parts.history["loss"]


def test_by_default_a_fit_of_many_steps_is_compiled_and_a_short_one_is_not(
    monkeypatch, eager_compiler
):
    taken = []
    monkeypatch.setattr("pyro_bnn.training.fitting.STEPS_WORTH_COMPILING", 10)
    model, guide = point_estimate()
    monkeypatch.setattr(
        "pyro_bnn.training.training_run.CompiledStep", lambda step: taken.append(step) or step
    )
    fit(model, guide, (X, Y), epochs=9, progress=False)
    assert not taken
    fit(model, guide, (X, Y), epochs=10, progress=False)
    assert taken
