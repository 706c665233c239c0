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


def normalised():
    return bayesian(
        nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)),
        priors.Normal(),
    )


CASES = {
    "mean field, learned noise": lambda: (m := bayesian(), MeanField(m)),
    "horseshoe": lambda: (
        m := bayesian(
            prior={"*": priors.Horseshoe(0.1, slab=2.0)},
            likelihood=likelihoods.Gaussian(dist.Gamma(2.0, 2.0)),
        ),
        MeanField(m),
    ),
    "sparse": lambda: (m := bayesian(prior=priors.LogUniform()), SparseVariationalDropout(m)),
    "group": lambda: (m := bayesian(prior=priors.NormalJeffreys()), GroupNormalJeffreys(m)),
    "dropout": lambda: (m := bayesian(prior=priors.Normal()), BernoulliDropout(m)),
    "batch norm": lambda: (m := normalised(), MeanField(m)),
    "point": lambda: (m := bayesian(), PointEstimate(m)),
    "hand-written": lambda: (program, statements),
    "stock diagonal": lambda: (m := bayesian(), AutoNormal(m)),
    "stock full rank": lambda: (m := bayesian(), AutoMultivariateNormal(m)),
    "stock low rank": lambda: (m := bayesian(), AutoLowRankMultivariateNormal(m)),
}


def both(case, eager_compiler, **options):
    options = {
        "epochs": 4,
        "batch_size": 16,
        "learning_rate": 1e-2,
        "progress": False,
        "kl_weight": 0.5,
    } | options
    runs = []
    for compile in (False, True):
        torch.manual_seed(3)
        runs.append(fit(*case()[:2], (X, Y), compile=compile, **options))
    return runs


@pytest.fixture
def eager_compiler(monkeypatch):
    """The traced graph runs as it is: what is traced is tested without waiting for the C++ compiler."""
    monkeypatch.setattr("pyro_bnn.runtime.compile.lowered", lambda graph, examples: graph)


def same_parameters(a, b):
    pairs = zip(a.posterior._state().items(), b.posterior._state().values(), strict=True)
    return [name for (name, p), q in pairs if not torch.allclose(p, q, rtol=2e-3, atol=2e-3)]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_traced_step_equals_the_plain_one(case, eager_compiler):
    plain, traced = both(case, eager_compiler)
    assert plain.history["loss"] == pytest.approx(traced.history["loss"], rel=1e-4)
    assert plain.history["kl"] == pytest.approx(traced.history["kl"], rel=1e-3, abs=1e-6)
    assert len(set(plain.history["loss"])) == 4
    different = same_parameters(plain, traced)
    # the bias in front of a batch norm has no gradient but rounding, of which Adam makes steps
    assert [
        name for name in different if "net.0.bias" not in name and "running_mean" not in name
    ] == []


# torch 2.6 changes the order of random numbers of several particles and cannot trace SGD: such fits run plain
OLD = torch.__version__.startswith("2.6.")


def test_the_compiled_step_equals_the_plain_one():
    """With the C++ compiler, on a net with batch norm (buffers go in and come out) under two particles."""
    particles = 1 if OLD else 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        plain, fast = both(
            CASES["batch norm"], None, num_particles=particles, kl_weight=linear_warmup(0.0, 2.0)
        )
    assert plain.history["loss"] == pytest.approx(fast.history["loss"], rel=1e-4)
    tracked = [run.model.net[1].num_batches_tracked for run in (plain, fast)]
    assert tracked[0] == tracked[1] == 10 * particles  # steps times particles
    torch.testing.assert_close(
        plain.model.net[1].running_var, fast.model.net[1].running_var, rtol=1e-3, atol=1e-4
    )


def test_float64_agrees_to_float64(eager_compiler):
    case = CASES["mean field, learned noise"]

    def double():
        torch.manual_seed(3)
        model = case()[0].double()
        return model, MeanField(model).double()

    runs = [
        fit(*double(), (X.double(), Y.double()), epochs=3, compile=compile, progress=False)
        for compile in (False, True)
    ]
    assert runs[0].history["loss"] == pytest.approx(runs[1].history["loss"], rel=1e-7)


def test_other_optimizers_are_traced_too(eager_compiler):
    def sgd(parameters, lr):
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9)

    for optimizer in (torch.optim.AdamW,) if OLD else (sgd, torch.optim.SGD, torch.optim.AdamW):
        plain, traced = both(
            CASES["point"], eager_compiler, optimizer=optimizer, learning_rate=1e-3
        )
        assert plain.history["loss"] == pytest.approx(traced.history["loss"], rel=1e-4), optimizer
        assert same_parameters(plain, traced) == []


def test_an_optimizer_that_asks_for_the_value_of_its_learning_rate_runs_as_it_is():
    with pytest.warns(CompileWarning, match="addcdiv"):
        plain, other = both(CASES["point"], None, optimizer=torch.optim.RMSprop)
    assert plain.history["loss"] == pytest.approx(other.history["loss"], rel=1e-5)


def test_an_optimizer_that_cannot_be_traced_runs_as_it_is():
    class Own(torch.optim.Optimizer):
        def __init__(self, parameters, lr):
            super().__init__(parameters, {"lr": lr})

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p -= group["lr"] * p.grad
                    self.state[p]["seen"] = True

    case = CASES["point"]
    with pytest.warns(CompileWarning, match="Own cannot be traced"):
        result = fit(*case()[:2], (X, Y), epochs=3, compile=True, optimizer=Own, progress=False)
    assert len(result.history["loss"]) == 3


class Moody(nn.Module):
    """A network that looks at its values to decide what to do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        out = self.layer(x)
        return out if float(out.detach().abs().max()) > 0 else -out


def test_what_decides_by_values_runs_uncompiled_and_says_so():
    def case():
        model = bayesian(Moody())
        return model, MeanField(model)

    with pytest.warns(CompileWarning, match="depend on the values of tensors"):
        plain, other = both(case, None)
    assert plain.history["loss"] == pytest.approx(other.history["loss"], rel=1e-5)


def test_a_loss_that_is_no_number_changes_no_parameter(eager_compiler):
    model = bayesian()
    guide = MeanField(model)
    seen = []

    def blow_up(epoch):
        return 1e-2 if epoch < 3 else math.inf

    with pytest.raises(NonFiniteError, match=r"step 4 .*the loss"):
        fit(
            model, guide, (X, Y), epochs=8, compile=True, progress=False, learning_rate=blow_up,
            callbacks=[lambda seen_so_far: seen.append(seen_so_far.posterior().guide.state_dict())],
        )  # fmt: skip
    assert all(bool(value.isfinite().all()) for value in seen[2].values())


def test_a_run_is_resumed_bit_for_bit(tmp_path, eager_compiler):
    case = CASES["batch norm"]

    def run(folder, epochs, resume=False):
        torch.manual_seed(3)
        own = {
            "batch_size": 16,
            "checkpoint": folder,
            "resume": resume,
            "progress": False,
            "compile": True,
        }
        return fit(*case()[:2], (X, Y), epochs=epochs, **own)

    whole = run(tmp_path / "whole", 6)
    run(tmp_path / "parts", 2)
    parts = run(tmp_path / "parts", 6, resume=True)
    states = [run.posterior._state() for run in (whole, parts)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert whole.history["loss"] == parts.history["loss"]


def test_many_steps_are_compiled_unasked_and_few_are_not(monkeypatch, eager_compiler):
    taken = []
    monkeypatch.setattr("pyro_bnn.training.fitting.STEPS_WORTH_COMPILING", 10)
    plain = CASES["point"]()
    monkeypatch.setattr(
        "pyro_bnn.training.training_run.CompiledStep", lambda step: taken.append(step) or step
    )
    fit(*plain[:2], (X, Y), epochs=9, progress=False)
    assert not taken
    fit(*plain[:2], (X, Y), epochs=10, progress=False)
    assert taken
