"""Pruning: the masks are the thresholds, the zeros are in the network, and what is not needed goes."""

import math

import pytest
import torch
from torch import nn

from pyro_bnn import BayesianNet, Posterior, fit, likelihoods, priors
from pyro_bnn.compression import prune
from pyro_bnn.guides import GroupHorseshoe, GroupNormalJeffreys, MeanField, PointEstimate, SparseVariationalDropout
from pyro_bnn.models import LeNet5, linear_regression


def model_of(prior, n=50):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    return BayesianNet(net, prior, likelihoods.Categorical(), n)


def scatter(guide, seed=1):
    """Spread the parameters, so that some weights are signal and some are noise."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in guide.named_parameters():
            spread = 1.5 if name.endswith(("log_scale", "log_variance")) else 0.3
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
            if name.endswith("log_scale"):
                parameter.clamp_(max=1.0)
    return guide


@pytest.mark.parametrize("threshold", [-3.0, 0.0, 3.0])
def test_masks_are_the_threshold_of_log_alpha(threshold):
    model = model_of(priors.LogUniform())
    guide = scatter(MeanField(model, init_scale=0.3))
    pruned = prune(Posterior.from_guide(model, guide), threshold=threshold)
    zeros = 0
    for name, family in guide.families().items():
        log_alpha = 2 * family.log_scale - family.loc.square().log()
        assert torch.equal(pruned.masks[name], log_alpha < threshold)
        weight = pruned.module.get_submodule(name[0]).weight
        assert torch.equal(weight != 0, log_alpha < threshold)
        assert torch.equal(weight, family.loc * (log_alpha < threshold))
        zeros += int((weight == 0).sum())
    assert 0 < zeros < 45
    assert pruned.ratio == 45 / (45 - zeros)
    assert pruned.groups == {}


def test_sparse_variational_dropout_prunes_what_it_calls_dropped():
    model = model_of(priors.LogUniform())
    guide = scatter(SparseVariationalDropout(model, init_log_variance=-2.0))
    pruned = prune(Posterior.from_guide(model, guide))
    for name, log_alpha in guide.log_alpha().items():
        assert torch.equal(pruned.masks[name], log_alpha < 3)
    assert 1 < pruned.ratio < 45


def test_the_report_adds_up():
    model = model_of(priors.LogUniform())
    pruned = prune(Posterior.from_guide(model, scatter(MeanField(model, init_scale=0.3))), threshold=0.0)
    assert [(row.name, row.shape, row.total) for row in pruned.report] == [
        ("0.weight", (5, 6), 30),
        ("2.weight", (3, 5), 15),
    ]
    for row in pruned.report:
        weight = pruned.module.get_submodule(row.name[0]).weight
        assert row.kept == int((weight != 0).sum())
        assert row.sparsity == pytest.approx(1 - row.kept / row.total)
    kept = sum(row.kept for row in pruned.report)
    assert pruned.ratio == pytest.approx(45 / kept)
    text = str(pruned)
    assert f"{45 / kept:.1f} times fewer" in text
    assert len({len(line) for line in text.splitlines()[:3]}) == 1


def log_normal_measure(family):
    return (2 * family.log_scale).exp() - family.loc


@pytest.mark.parametrize("kind", ["jeffreys", "jeffreys page", "horseshoe", "decomposed", "decomposed page"])
def test_groups_go_as_whole_rows_and_columns(kind):
    prior = {
        "jeffreys": priors.NormalJeffreys(),
        "horseshoe": priors.Horseshoe(),
        "decomposed": priors.Horseshoe(decomposed=True),
    }[kind.split()[0]]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    model = BayesianNet(net, prior, likelihoods.Categorical(), 50)
    pages = {"jeffreys page": GroupNormalJeffreys, "decomposed page": GroupHorseshoe}
    guide = scatter(pages[kind](model) if kind in pages else MeanField(model, init_scale=0.3))
    families = guide.requires_grad_(False).families()
    measures = {}
    for name in ("0.weight", "2.weight"):
        if "jeffreys" in kind:
            z = families[f"{name}.scale"]
            measures[name] = 2 * z.log_scale - z.loc.square().log()
        elif "horseshoe" in kind:
            measures[name] = log_normal_measure(families[f"{name}.scale"])
        else:
            a, b = families[f"{name}.scale.gamma"], families[f"{name}.scale.inverse_gamma"]
            # log z = (log a + log b) / 2: its mean and variance
            variance = ((2 * a.log_scale).exp() + (2 * b.log_scale).exp()) / 4
            measures[name] = variance - (a.loc + b.loc) / 2
    for name in measures:
        check_groups(model, guide, measures, threshold=float(measures[name].median()) + 1e-4)


def check_groups(model, guide, measures, threshold):
    pruned = prune(Posterior.from_guide(model, guide), group_threshold=threshold)
    assert pruned.groups["0.weight"].shape == (4, 1, 1, 1)
    assert pruned.groups["2.weight"].shape == (1, 16)
    kept = [measure < threshold for measure in measures.values()]
    assert any(0 < int(keep.sum()) < keep.numel() for keep in kept)
    for (name, keep), mask in zip(pruned.groups.items(), kept, strict=True):
        assert torch.equal(keep, mask)
        assert torch.equal(pruned.masks[name], mask.expand_as(pruned.masks[name]))
        weight = pruned.module.get_submodule(name[0]).weight
        assert torch.equal(weight == 0, ~pruned.masks[name])
    assert pruned.module(torch.zeros(2, 2, 4, 4)).shape == (2, 3)


def test_draws_are_pruned_by_their_moments():
    model = model_of(priors.NormalJeffreys())
    guide = Posterior.from_guide(model, scatter(MeanField(model, init_scale=0.3)))
    given = Posterior.from_draws(model, guide.draws)
    pruned = prune(given, threshold=0.0)
    weights = given.sample(100)["0.weight"]
    assert torch.equal(pruned.masks["0.weight"], weights.var(0) < weights.mean(0).square())
    assert pruned.groups == {}


def test_what_cannot_be_pruned():
    model = model_of(priors.Normal())
    with pytest.raises(ValueError, match=r"no variance.*not a point estimate"):
        prune(Posterior.from_guide(model, PointEstimate(model)))
    program = linear_regression(5)
    guide = MeanField(program, torch.zeros(5, 1), torch.zeros(5))
    with pytest.raises(TypeError, match="hand-written program has no network to prune"):
        prune(Posterior.from_guide(program, guide))


def test_everything_may_go_and_the_module_still_runs():
    torch.manual_seed(0)
    model = BayesianNet(LeNet5(size=16), priors.LogUniform(), likelihoods.Categorical(), 10)
    posterior = Posterior.from_guide(model, MeanField(model))
    pruned = prune(posterior, threshold=-math.inf)
    assert pruned.ratio == math.inf
    assert all(row.kept == 0 and row.sparsity == 1 for row in pruned.report)
    outputs = pruned.module(torch.randn(3, 256))
    assert torch.equal(outputs, outputs[:1].expand(3, 10))  # biases alone
    assert "inf times fewer" in str(pruned)
    kept = prune(posterior, threshold=math.inf)
    assert kept.ratio == 1
    assert torch.equal(kept.module(torch.ones(1, 256)), posterior.mean_network()(torch.ones(1, 256)))


def test_means_of_exactly_zero_are_dropped():
    model = model_of(priors.LogUniform())
    guide = MeanField(model)
    guide.sites.get_submodule("0.weight").loc.data[0, 0] = 0.0
    assert not prune(Posterior.from_guide(model, guide)).masks["0.weight"][0, 0]


def falling(epoch):
    return 0.05 * 0.01 ** (epoch / 60)


def toy(n=256):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 8, generator=generator)
    y = 1.5 * x[:, 0] - 2.0 * x[:, 3] + 0.3 * torch.randn(n, generator=generator)
    return x, y


def test_inputs_without_influence_are_pruned():
    """Two inputs of eight matter, at 5 and 7 noise deviations each: whatever is learned must separate them."""
    x, y = toy()
    torch.manual_seed(0)
    model = BayesianNet(nn.Linear(8, 1), priors.LogUniform(), likelihoods.Gaussian(0.3), len(x))
    guide = MeanField(model, init_scale=0.05)
    result = fit(model, guide, (x, y), epochs=60, batch_size=64, learning_rate=falling, progress=False)
    pruned = prune(result.posterior, threshold=0.0)
    mask = pruned.masks["weight"][0]
    assert mask[[0, 3]].all()
    assert int(mask.sum()) <= 3
    assert torch.allclose(pruned.module.weight[0, [0, 3]], torch.tensor([1.5, -2.0]), atol=0.1)


def test_groups_without_influence_are_pruned():
    x, y = toy()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 1))
    model = BayesianNet(net, {"0.weight": priors.NormalJeffreys()}, likelihoods.Gaussian(0.3), len(x))
    guide = GroupNormalJeffreys(model, init_log_variance=-4.0)
    result = fit(model, guide, (x, y), epochs=150, batch_size=64, learning_rate=0.02, progress=False)
    keep = prune(result.posterior, group_threshold=0.0).groups["0.weight"][0]
    assert keep[[0, 3]].all()
    assert int(keep.sum()) <= 3
