"""Posterior: the same interface whatever the inference was.

Statistical checks have fixed seeds and 5 standard errors (false-alarm rate below 1e-6 each).
"""

import copy
import math
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from torch import nn
from torch.distributions import constraints

from pyro_bnn import BayesianNet, Posterior, fit, likelihoods, priors
from pyro_bnn.guides import FactorizedGaussian, MeanField
from pyro_bnn.models import LeNet300100, linear_regression, mlp_regression
from pyro_bnn.runtime.tensor_files import CheckpointError


def net(inputs=3, outputs=2, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, outputs))


def classifier(prior=None, n=20):
    return BayesianNet(net(), prior or priors.Normal(1.0), likelihoods.Categorical(), n)


def posterior_of(model, scale=0.1):
    return Posterior.from_guide(model, MeanField(model, init_scale=scale))


X = torch.linspace(-1, 1, 15).reshape(5, 3)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- Draws -----------------------------------------------------------------------------------------------------------


def test_sample_gives_every_weight_in_its_shape():
    model = BayesianNet(
        LeNet300100(inputs=6, hidden=(5, 4)), priors.LogUniform(), likelihoods.Categorical(), 10
    )
    weights = posterior_of(model).sample(100)
    shapes = {"fc1.weight": (100, 5, 6), "fc2.weight": (100, 4, 5), "fc3.weight": (100, 10, 4)}
    assert {name: tuple(value.shape) for name, value in weights.items()} == shapes
    assert not any(value.requires_grad for value in weights.values())


PRIORS = {
    "jeffreys": priors.NormalJeffreys(),
    "horseshoe": priors.Horseshoe(),
    "slab": priors.Horseshoe(slab=2.0),
    "decomposed": priors.Horseshoe(decomposed=True),
    "per weight": priors.Horseshoe(group=None),
}


@pytest.mark.parametrize("name", PRIORS)
def test_sites_and_the_weights_they_make(name):
    model = classifier(PRIORS[name])
    draws = posterior_of(model).sample(7, seed=3)
    for weight in ("0.weight", "2.weight"):
        unit = draws[f"{weight}.unit"]
        if name == "decomposed":
            z = (draws[f"{weight}.scale.gamma"] * draws[f"{weight}.scale.inverse_gamma"]).sqrt()
            s = (
                draws[f"{weight}.global_scale.gamma"]
                * draws[f"{weight}.global_scale.inverse_gamma"]
            ).sqrt()
        else:
            z, s = draws[f"{weight}.scale"], draws.get(f"{weight}.global_scale", torch.ones(()))
        scale = z * s
        if name == "slab":
            scale = 2 * scale / (4 + scale.square()).sqrt()
        assert torch.allclose(draws[weight], unit * scale, rtol=1e-5)
        assert draws[weight].shape == (
            7,
            *model.net.get_submodule(weight.split(".")[0]).weight.shape,
        )
    assert not torch.allclose(draws["0.weight"][0], draws["0.weight"][1])


def test_moments_of_draws_are_the_moments_of_the_guide():
    """Sample means of 4000 draws within 5 standard errors, variances within 5 * sqrt(2 / 4000)."""
    posterior = posterior_of(classifier(), scale=0.3)
    weights = posterior.sample(4000)
    for name, (mean, variance) in posterior.moments().items():
        assert ((weights[name].mean(0) - mean).abs() < 5 * (variance / 4000).sqrt()).all()
        assert ((weights[name].var(0) / variance - 1).abs() < 5 * math.sqrt(2 / 4000)).all()


def test_seeds_and_the_global_state():
    posterior = posterior_of(classifier(priors.Horseshoe()))
    pyro.param("mine", torch.tensor(1.0))
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    a, b, c = posterior.sample(5, seed=1), posterior.sample(5, seed=1), posterior.sample(5, seed=2)
    p, q, r = (posterior.predict(X, draws=5, seed=seed).mean for seed in (1, 1, 2))
    _ = posterior.draws, posterior.moments(), posterior.mean_network()
    assert torch.equal(torch.rand(3), expected)
    assert same(a, b)
    assert not torch.equal(a["0.weight"], c["0.weight"])
    assert torch.equal(p, q)
    assert not torch.equal(p, r)
    assert list(pyro.get_param_store().keys()) == ["mine"]


def test_draws_have_chain_and_draw_axes():
    posterior = posterior_of(classifier(priors.NormalJeffreys()))
    assert {name: tuple(value.shape) for name, value in posterior.draws.items()} == {
        "0.weight.scale": (1, 100, 1, 3),
        "0.weight.unit": (1, 100, 4, 3),
        "2.weight.scale": (1, 100, 1, 4),
        "2.weight.unit": (1, 100, 2, 4),
    }
    values = {name: torch.randn(3, 10, *value.shape[2:]) for name, value in posterior.draws.items()}
    given = Posterior.from_draws(posterior.model, values)
    assert same(given.draws, values)
    pooled = given.sample(30)
    flat = values["0.weight.unit"].flatten(0, 1)
    order = [int((flat == one).flatten(1).all(1).nonzero()) for one in pooled["0.weight.unit"]]
    assert sorted(order) == list(range(30))  # each once
    assert order != sorted(order)
    assert torch.equal(pooled["0.weight"], pooled["0.weight.unit"] * pooled["0.weight.scale"])
    again = given.sample(75)["0.weight.unit"]
    counts = torch.stack([(again == one).flatten(1).all(1).sum() for one in flat])
    assert counts.min() == 2
    assert counts.max() == 3
    values["0.weight.unit"].zero_()
    assert not torch.equal(given.draws["0.weight.unit"], values["0.weight.unit"])


def test_what_cannot_be_draws():
    model = linear_regression(5)
    good = {"weight": torch.zeros(2, 3, 1), "bias": torch.zeros(2, 3)}
    for name, bad in {"weight": torch.zeros(2, 4, 1), "bias": torch.zeros(2)}.items():
        with pytest.raises(ValueError, match=r"same shape \(chain, draw, ...\) for all sites"):
            Posterior.from_draws(model, good | {name: bad})
    for bad in ({}, {"bias": torch.zeros(2, 0)}):
        with pytest.raises(ValueError, match=r"same shape \(chain, draw"):
            Posterior.from_draws(model, bad)
    with pytest.raises(ValueError, match="'bias' contain NaN or infinity"):
        Posterior.from_draws(model, good | {"bias": torch.full((2, 3), math.nan)})
    for num in (0, -1):
        with pytest.raises(ValueError, match="at least one draw"):
            Posterior.from_draws(model, good).sample(num)


# --- Networks and priors ---------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))


@pytest.mark.parametrize(
    "make", [net, Tied, lambda: LeNet300100(inputs=3, hidden=(4, 3), outputs=2)]
)
@pytest.mark.parametrize("prior", [priors.Normal(1.0), priors.Horseshoe()])
def test_the_mean_network_is_the_network_with_the_means(make, prior):
    original = make()
    model = BayesianNet(original, prior, likelihoods.Categorical(), 20)
    posterior = posterior_of(model)
    mean = posterior.mean_network()
    assert type(mean) is type(original)
    values = dict(original.state_dict()) | {
        name: value for name, (value, _) in posterior.moments().items()
    }
    if "b.weight" in values:
        values["b.weight"] = values["a.weight"]
        assert mean.a.weight is mean.b.weight
    expected = torch.func.functional_call(original, values, (X,), tie_weights=False)
    assert torch.equal(mean(X), expected)
    assert {name for name, _ in mean.named_parameters()} == {
        name for name, _ in original.named_parameters()
    }
    with torch.no_grad():
        for parameter in mean.parameters():
            parameter.zero_()
    assert not torch.equal(posterior.mean_network()(X), mean(X))  # a copy


def test_hand_written_programs_have_no_network():
    model = linear_regression(5, inputs=3)
    posterior = Posterior.from_guide(model, MeanField(model, X, torch.zeros(5)))
    with pytest.raises(TypeError, match="hand-written program has no network"):
        posterior.mean_network()
    assert set(posterior.sample(4)) == {"weight", "bias"}


def test_moments_are_copies_and_of_one_draw_too():
    posterior = posterior_of(classifier())
    for mean, variance in posterior.moments().values():
        mean.zero_()
        variance.zero_()
    assert posterior.moments()["0.weight"][0].abs().min() > 0
    one = Posterior.from_draws(
        classifier(), {name: value[:, :1] for name, value in posterior.draws.items()}
    )
    assert torch.equal(one.mean_network()[0].weight, one.draws["0.weight"][0, 0])
    with pytest.raises(ValueError, match="has no variance"):
        one.as_prior()


def exact(x, y, noise, mean, precision):
    """Update a Gaussian (mean, precision matrix) with y = x w + noise."""
    new = precision + x.T @ x / noise**2
    return torch.linalg.solve(new, precision @ mean + x.T @ y / noise**2), new


def test_the_posterior_as_a_prior_of_the_next_task():
    """With orthogonal inputs the exact posterior factorises: two steps of conjugate updating equal one, to 1e-6."""
    torch.manual_seed(0)
    x = torch.linalg.qr(torch.randn(8, 4, dtype=torch.float64)).Q
    x, y = torch.cat([x, -2 * x]), torch.randn(16, dtype=torch.float64)
    layer = nn.Linear(4, 1, bias=False, dtype=torch.float64)

    def solved(prior, x, y, mean, precision):
        model = BayesianNet(layer, prior, likelihoods.Gaussian(0.5), len(x)).double()
        mean, precision = exact(x, y, 0.5, mean, precision)
        guide = MeanField(model)
        guide.sites.weight.loc.data = mean[None].clone()
        guide.sites.weight.log_scale.data = -0.5 * precision.diagonal()[None].log()
        return Posterior.from_guide(model, guide), mean, precision

    start = torch.zeros(4).double(), torch.eye(4).double()
    first, mean, _ = solved(priors.Normal(1.0), x[:8], y[:8], *start)
    prior = first.as_prior()
    assert list(prior) == ["weight"]
    assert torch.allclose(prior["weight"].loc[0], mean, rtol=1e-12)
    model = BayesianNet(layer, prior, likelihoods.Gaussian(0.5), 8).double()
    trained = model.prior_of("weight")
    second = exact(
        x[8:], y[8:], 0.5, trained.loc[0].double(), torch.diag(trained.scale[0].double() ** -2)
    )
    batch = exact(x, y, 0.5, *start)
    assert trained.loc.dtype == torch.float64
    assert torch.allclose(second[0], batch[0], rtol=1e-6)
    assert torch.allclose(second[1].diagonal(), batch[1].diagonal(), rtol=1e-6)
    # and through fit itself: within the noise of stochastic gradients
    result = fit(
        model,
        MeanField(model),
        (x[8:], y[8:]),
        epochs=500,
        learning_rate=lambda epoch: 0.1 * 0.001 ** (epoch / 500),
        progress=False,
    )
    learned = result.posterior.moments()["weight"]
    assert torch.allclose(
        learned[0][0], batch[0], atol=0.1 * float(batch[1].diagonal().min()) ** -0.5
    )
    assert torch.allclose(learned[1][0] * batch[1].diagonal(), torch.ones(4).double(), atol=0.3)


def test_priors_of_scale_mixtures_and_draws_keep_two_moments():
    posterior = posterior_of(classifier(priors.Horseshoe()))
    prior = posterior.as_prior()
    assert list(prior) == ["0.weight", "2.weight"]
    mean, variance = posterior.moments()["0.weight"]
    assert torch.allclose(prior["0.weight"].loc, mean)
    assert torch.allclose(prior["0.weight"].scale, variance.sqrt())
    BayesianNet(net(), prior, likelihoods.Categorical(), 5)
    from_draws = Posterior.from_draws(posterior.model, posterior.draws)
    weights = from_draws.sample(100)["0.weight"]
    got = from_draws.as_prior()["0.weight"]
    assert torch.allclose(got.loc, weights.mean(0), atol=1e-6)
    assert torch.allclose(got.scale, weights.std(0), rtol=1e-4)


# --- Owning copies ---------------------------------------------------------------------------------------------------


def test_refitting_leaves_earlier_posteriors_alone():
    model = classifier()
    guide = MeanField(model)
    y = torch.tensor([0, 1, 0, 1, 0])
    model.num_data = 5
    first = fit(model, guide, (X, y), epochs=3, learning_rate=0.1, progress=False)
    before = first.posterior.predict(X).mean
    second = fit(first.model, first.guide, (X, y), epochs=3, learning_rate=0.1, progress=False)
    assert torch.equal(first.posterior.predict(X).mean, before)
    assert not torch.equal(second.posterior.predict(X).mean, before)
    by_hand = Posterior.from_guide(model, guide)
    before = by_hand.predict(X).mean
    with torch.no_grad():
        for parameter in (*model.parameters(), *guide.parameters()):
            parameter.add_(1.0)
    assert torch.equal(by_hand.predict(X).mean, before)
    assert model.training
    assert guide.training


@pytest.mark.parametrize("kind", [AutoNormal, AutoLowRankMultivariateNormal])
def test_stock_guides_are_copied_and_stay_whole(kind):
    model = classifier()
    guide = kind(model, init_scale=0.1)
    y = torch.zeros(5).long()
    guide(X, y)
    posterior = Posterior.from_guide(model, guide)
    before = posterior.predict(X, draws=20).mean
    assert guide.model is not None
    guide(X, y)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(1.0)
    assert torch.equal(posterior.predict(X, draws=20).mean, before)
    assert set(posterior.sample(3)) == {"0.weight", "2.weight"}


def function_guide(x, y=None):
    loc = pyro.param("loc", torch.zeros(3))
    scale = pyro.param("scale", torch.full((3,), 0.1), constraint=constraints.positive)
    pyro.sample("weight", dist.Normal(loc, scale).to_event(1))
    pyro.sample("bias", dist.Normal(pyro.param("b.loc", torch.tensor(0.0)), 0.1))


def test_a_function_trained_by_pyros_own_svi():
    model = linear_regression(5, inputs=3)
    y = X @ torch.tensor([1.0, 2.0, -1.0])
    svi = SVI(model, function_guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(20):
        svi.step(X, y)
    learned = {name: pyro.param(name).detach().clone() for name in ("loc", "scale", "b.loc")}
    posterior = Posterior.from_guide(model, function_guide, X, y)
    svi.step(X, y)
    pyro.clear_param_store()
    draws = posterior.sample(4000)
    assert (
        (draws["weight"].mean(0) - learned["loc"]).abs() < 5 * learned["scale"] / math.sqrt(4000)
    ).all()
    assert ((draws["weight"].std(0) / learned["scale"] - 1).abs() < 5 / math.sqrt(8000)).all()
    assert not list(pyro.get_param_store().keys())


# --- Vectorised or one by one ----------------------------------------------------------------------------------------


def by_hand(posterior, x, draws):
    """Average the networks' distributions with plain modules and a loop."""
    weights = posterior.sample(draws)
    outputs = []
    for index in range(draws):
        drawn = posterior.model.network_with(
            {name: weights[name][index] for name in posterior.model.names}
        ).eval()
        with torch.no_grad():
            outputs.append(drawn(x).softmax(-1))
    return torch.stack(outputs)


class Branch(nn.Module):
    """Looks at numbers, which vmap cannot."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        y = self.layer(x)
        return y if float(self.layer.weight.sum()) > -1e9 else -y


@pytest.mark.parametrize("make", [net, Branch])
def test_both_ways_give_the_distribution_of_the_draws(make):
    """Class probabilities of 600 draws on each side: 5 standard errors of the difference."""
    torch.manual_seed(2)
    model = BayesianNet(make(), priors.Normal(1.0), likelihoods.Categorical(), 20)
    posterior = posterior_of(model, scale=0.8)
    got = torch.cat([part["probs"] for part in posterior.components(X, draws=600)])
    expected = by_hand(posterior, X, 600)
    assert got.shape == expected.shape
    error = ((got.var(0) + expected.var(0)) / 600).sqrt()
    assert ((got.mean(0) - expected.mean(0)).abs() < 5 * error).all()
    assert ((got.square().mean(0) - expected.square().mean(0)).abs() < 10 * error).all()
    assert torch.allclose(posterior.predict(X, draws=600).mean, got.mean(0), atol=1e-6)


def test_given_draws_are_used_exactly():
    model = classifier()
    posterior = Posterior.from_draws(model, posterior_of(model, 0.5).draws)
    for maker in (model, BayesianNet(Branch(), priors.Normal(), likelihoods.Categorical(), 5)):
        posterior = Posterior.from_draws(maker, posterior_of(maker, 0.5).draws)
        assert torch.allclose(
            posterior.predict(X, draws=100).mean, by_hand(posterior, X, 100).mean(0), atol=1e-6
        )


def test_a_guide_and_a_prior_that_cannot_be_vectorised():
    class Hesitant(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2, 3))

        def forward(self, *args):
            value = pyro.sample("weight", dist.Normal(self.loc, 1.0).to_event(2))
            assert float(value.sum()) < 1e9

    def prior(name, shape, group_dim):
        value = pyro.sample(name, dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape)))
        assert float(value.sum()) < 1e9
        return value

    model = BayesianNet(nn.Linear(3, 2), prior, likelihoods.Categorical(), 5)
    posterior = Posterior.from_guide(model, Hesitant())
    weights = posterior.sample(6)["weight"]
    assert weights.shape == (6, 2, 3)
    assert len(weights.flatten(1).unique(dim=0)) == 6
    assert posterior.predict(X, draws=3).mean.shape == (5, 2)


def test_batch_normalisation_predicts_as_in_evaluation():
    layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model = BayesianNet(layers, priors.Normal(), likelihoods.Categorical(), 5)
    model.train()
    posterior = posterior_of(model)
    together = posterior.predict(X, draws=6).mean
    alone = torch.cat([posterior.predict(x[None], draws=6).mean for x in X])
    assert torch.allclose(together, alone, atol=1e-6)
    assert int(posterior.model.state_dict()["net.1.num_batches_tracked"]) == 0


def test_hand_written_models_predict():
    model = mlp_regression(5)
    x, y = torch.linspace(-1, 1, 5)[:, None], torch.zeros(5)
    posterior = Posterior.from_guide(model, MeanField(model, x, y))
    prediction = posterior.predict(x, draws=10)
    assert prediction.mean.shape == (5,)
    sites = posterior.sample(400)
    assert (sites["noise"] > 0).all()
    assert prediction.aleatoric.mean() == pytest.approx(
        float(sites["noise"].square().mean()), rel=0.1
    )

    def silent(x, y=None):
        pyro.sample("weight", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="no unobserved data site"):
        Posterior.from_guide(silent, MeanField(silent, x)).predict(x)


# --- Disk ------------------------------------------------------------------------------------------------------------

LOAD = """
import sys, torch
from torch import nn
from pyro_bnn import BayesianNet, Posterior, likelihoods, priors
from pyro_bnn.guides import MeanField
net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
model = BayesianNet(net, priors.Horseshoe(), likelihoods.Categorical(), 20)
x = torch.linspace(-1, 1, 15).reshape(5, 3)
for name, guide in (("guide", MeanField(model)), ("draws", None)):
    prediction = Posterior.load(f"{sys.argv[1]}/{name}", model, guide=guide).predict(x, draws=20)
    print(prediction.mean.double().flatten().tolist())
"""


def test_a_new_process_predicts_the_same(tmp_path):
    model = classifier(priors.Horseshoe())
    with torch.no_grad():
        model.net[0].bias.add_(0.5)
    guide = posterior_of(model, 0.3)
    saved = {"guide": guide, "draws": Posterior.from_draws(model, guide.draws)}
    for name, posterior in saved.items():
        posterior.save(tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = [eval(line) for line in done.stdout.splitlines()]
    for posterior, line in zip(saved.values(), lines, strict=True):
        assert posterior.predict(X, draws=20).mean.double().flatten().tolist() == line


def test_round_trips_of_all_kinds(tmp_path):
    y = torch.tensor([0, 1, 0, 1, 0])
    model = BayesianNet(net(), priors.Normal(), likelihoods.Categorical(), 5)
    regression = linear_regression(5, inputs=3)
    cases = {
        "mean field": (model, MeanField(model), y),
        "stock": (model, AutoNormal(model), y),
        "function": (regression, function_guide, y.float()),
    }
    for name, (program, guide, target) in cases.items():
        result = fit(
            program,
            guide,
            (X, target),
            epochs=3,
            learning_rate=0.1,
            progress=False,
            reparameterize=False,
        )
        result.posterior.save(tmp_path / name)
        fresh = copy.deepcopy(guide) if name == "mean field" else guide
        loaded = Posterior.load(tmp_path / name, program, guide=fresh)
        assert torch.equal(loaded.predict(X).mean, result.posterior.predict(X).mean), name
        assert same(loaded.sample(3), result.posterior.sample(3))
    assert not list(pyro.get_param_store().keys())


def test_what_belongs_to_something_else_is_refused(tmp_path):
    model = classifier()
    posterior_of(model).save(tmp_path / "run")
    wider = BayesianNet(net(outputs=3), priors.Normal(1.0), likelihoods.Categorical(), 20)
    with pytest.raises(
        CheckpointError,
        match=r"first guide.sites.2.weight.loc: expected .*\(3, 4\), found .*\(2, 4\)",
    ):
        Posterior.load(tmp_path / "run", wider, guide=MeanField(wider))
    with pytest.raises(
        CheckpointError, match=r"tensors differ, first guide\.loc\.0: expected .*, found none"
    ):
        Posterior.load(tmp_path / "run", model, guide=FactorizedGaussian(model))
    double = copy.deepcopy(model).double()
    with pytest.raises(CheckpointError, match=r"float64.*found torch.float32"):
        Posterior.load(tmp_path / "run", double, guide=MeanField(double))
    with pytest.raises(CheckpointError, match="pass the guide"):
        Posterior.load(tmp_path / "run", model)
    with pytest.raises(CheckpointError, match="no such file"):
        Posterior.load(tmp_path / "nothing", model)
    from pyro_bnn.runtime.tensor_files import save_tensors

    save_tensors(tmp_path / "other", {}, {"kind": "network"})
    with pytest.raises(CheckpointError, match="expected a saved posterior"):
        Posterior.load(tmp_path / "other", model)


def test_draws_of_another_model_are_refused(tmp_path):
    model = classifier()
    Posterior.from_draws(model, posterior_of(model).draws).save(tmp_path / "draws")
    wider = BayesianNet(net(outputs=3), priors.Normal(1.0), likelihoods.Categorical(), 20)
    with pytest.raises(CheckpointError, match="belongs to another model"):
        Posterior.load(tmp_path / "draws", wider)
    programs = Posterior.from_draws(
        linear_regression(5, inputs=3), {"weight": torch.zeros(1, 2, 3), "bias": torch.zeros(1, 2)}
    )
    programs.save(tmp_path / "program")
    with pytest.raises(CheckpointError, match="belongs to another model"):
        Posterior.load(tmp_path / "program", model)


def test_draws_that_lack_a_site_of_the_network_are_refused():
    model = BayesianNet(
        nn.Linear(3, 2), {"*": priors.Normal()}, likelihoods.Categorical(), num_data=4
    )
    weight, bias = torch.randn(1, 5, 2, 3), torch.randn(1, 5, 2)
    assert Posterior.from_draws(model, {"weight": weight, "bias": bias}).predict(
        torch.randn(4, 3)
    ).mean.shape == (4, 2)
    with pytest.raises(ValueError, match="site 'bias': expected draws of shape \\(2,\\), got none"):
        Posterior.from_draws(model, {"weight": weight})
    with pytest.raises(ValueError, match="site 'weight': expected draws of shape \\(2, 3\\)"):
        Posterior.from_draws(model, {"weight": weight.mT, "bias": bias})
