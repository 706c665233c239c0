"""Pruning: the masks are the thresholds, what is dead goes, and the smaller network is the same function."""

import math

import pytest
import torch
from torch import nn

from pyro_bnn import BayesianNet, Posterior, fit, likelihoods, priors
from pyro_bnn.compression import EmptyNetworkError, group_measures, keep_masks, prune
from pyro_bnn.guides import (
    GroupHorseshoe,
    GroupNormalJeffreys,
    MeanField,
    PointEstimate,
    SparseVariationalDropout,
)
from pyro_bnn.models import LeNet5, LeNet300100, linear_regression


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


def network_of(posterior, masks):
    """Return the full-size network with the weights outside of the masks at zero, written without pruning."""
    return posterior.model.network_with(
        {name: posterior.moments()[name][0] * mask for name, mask in masks.items()}
    )


def same_function(pruned, net, x):
    expected = net.eval()(x).detach()
    assert torch.allclose(
        pruned.module(x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
    )
    assert torch.allclose(
        pruned.masked(x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
    )
    return True


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 3.0])
def test_masks_are_the_threshold_of_log_alpha(threshold):
    model = model_of(priors.LogUniform())
    guide = scatter(MeanField(model, init_scale=0.3))
    posterior = Posterior.from_guide(model, guide)
    masks, groups = keep_masks(posterior, threshold)
    for name, family in guide.families().items():
        assert torch.equal(
            masks[name], 2 * family.log_scale - family.loc.square().log() < threshold
        )
    assert groups == {}
    zeros = sum(int((~mask).sum()) for mask in masks.values())
    assert 0 < zeros < 45
    pruned = prune(posterior, threshold)
    assert same_function(pruned, network_of(posterior, masks), torch.randn(20, 6))
    for name, mask in pruned.masks.items():
        assert not (mask & ~masks[name]).any()  # dead units take more weights along
        assert torch.equal(pruned.masked.get_parameter(name), posterior.moments()[name][0] * mask)
    assert pruned.ratio == 45 / sum(int(mask.sum()) for mask in pruned.masks.values())
    assert pruned.groups == {}


def test_signal_to_noise_and_log_alpha_are_one_thing():
    model = model_of(priors.LogUniform())
    posterior = Posterior.from_guide(model, scatter(MeanField(model, init_scale=0.3)))
    masks, _ = keep_masks(posterior, threshold=1.5)
    for name, (mean, variance) in posterior.moments().items():
        assert torch.equal(masks[name], mean.abs() / variance.sqrt() > math.exp(-1.5 / 2))


def test_sparse_variational_dropout_prunes_what_it_calls_dropped():
    model = model_of(priors.LogUniform())
    guide = scatter(SparseVariationalDropout(model, init_log_variance=-2.0))
    masks, _ = keep_masks(Posterior.from_guide(model, guide))
    for name, log_alpha in guide.log_alpha().items():
        assert torch.equal(masks[name], log_alpha < 3)
    assert 0 < sum(int((~mask).sum()) for mask in masks.values()) < 45


@torch.no_grad()
def signal_in(model, keep):
    """Return a posterior of known answer: weights are 1 with deviation 0.1 where they are kept, and 1000 elsewhere."""
    guide = MeanField(model)
    for name, family in guide.families().items():
        family.loc.fill_(1.0)
        family.log_scale.copy_(torch.where(keep[name], 0.1, 1000.0).log())
    return Posterior.from_guide(model, guide)


def sparse(model, seed=0):
    """Return such a posterior with dead rows, dead columns and single zeros at random, and what it keeps."""
    generator = torch.Generator().manual_seed(seed)
    keep = {
        name: torch.rand(value.shape, generator=generator) > 0.4
        for name, value in model.weights().items()
    }
    for mask in keep.values():
        mask[torch.rand(len(mask), generator=generator) < 0.3] = False
    return signal_in(model, keep), keep


def test_what_is_left_has_known_shapes():
    model = model_of(priors.Normal())
    keep = {
        "0.weight": torch.zeros(5, 6, dtype=torch.bool),
        "2.weight": torch.zeros(3, 5, dtype=torch.bool),
    }
    keep["0.weight"][[0, 2], 1:4] = True
    keep["0.weight"][2, 1] = False  # a zero that stays, inside
    keep["0.weight"][4, 5] = True  # nobody reads unit 4
    keep["2.weight"][0, [0, 2, 3]] = True  # nothing leads to unit 3
    posterior = signal_in(model, keep)
    pruned = prune(posterior)
    assert pruned.module.get_submodule("0").weight.tolist() == [[1, 1, 1], [0, 1, 1]]
    assert pruned.module.get_submodule("2").weight.tolist() == [[1, 1], [0, 0], [0, 0]]
    assert pruned.module.inputs.tolist() == [1, 2, 3]
    assert [index.tolist() for index in pruned.kept["0.weight"]] == [[0, 2], [1, 2, 3]]
    assert [index.tolist() for index in pruned.kept["2.weight"]] == [[0, 1, 2], [0, 2]]
    expected = torch.zeros(5, 6, dtype=torch.bool)
    expected[[0, 0, 0, 2, 2], [1, 2, 3, 2, 3]] = True
    assert torch.equal(pruned.masks["0.weight"], expected)
    assert int(pruned.masks["2.weight"].sum()) == 2
    assert pruned.architecture == "3-2"
    assert (pruned.ratio, pruned.dense_ratio) == (45 / 7, 45 / 12)
    assert [(row.shape, row.new_shape, row.kept) for row in pruned.report] == [
        ((5, 6), (2, 3), 5),
        ((3, 5), (3, 2), 2),
    ]
    assert torch.equal(pruned.variances["0.weight"] > 1, torch.tensor([[0, 0, 0], [1, 0, 0]]) > 0)
    assert pruned.variances["2.weight"].shape == (3, 2)
    assert same_function(pruned, network_of(posterior, keep), torch.randn(20, 6))
    assert "3-2" in str(pruned)
    assert "2x3" in str(pruned)


def test_the_report_adds_up():
    model = model_of(priors.LogUniform())
    pruned = prune(
        Posterior.from_guide(model, scatter(MeanField(model, init_scale=0.3))), threshold=0.0
    )
    assert [(row.name, row.shape, row.total) for row in pruned.report] == [
        ("0.weight", (5, 6), 30),
        ("2.weight", (3, 5), 15),
    ]
    for row in pruned.report:
        weight = pruned.module.get_submodule(row.name[0]).weight
        assert row.new_shape == weight.shape
        assert row.kept == int((weight != 0).sum()) == int(pruned.masks[row.name].sum())
        assert row.sparsity == pytest.approx(1 - row.kept / row.total)
    kept = sum(row.kept for row in pruned.report)
    assert pruned.ratio == pytest.approx(45 / kept)
    text = str(pruned)
    assert f"{45 / kept:.1f} times fewer" in text
    assert len({len(line) for line in text.splitlines()[:3]}) == 1


def log_normal_measure(family):
    return (2 * family.log_scale).exp() - family.loc


@pytest.mark.parametrize(
    "kind", ["jeffreys", "jeffreys page", "horseshoe", "decomposed", "decomposed page"]
)
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
    posterior = Posterior.from_guide(model, guide)
    masks, groups = keep_masks(posterior, group_threshold=threshold)
    assert groups["0.weight"].shape == (4, 1, 1, 1)
    assert groups["2.weight"].shape == (1, 16)
    kept = [measure < threshold for measure in measures.values()]
    assert any(0 < int(keep.sum()) < keep.numel() for keep in kept)
    for (name, keep), mask in zip(groups.items(), kept, strict=True):
        assert torch.equal(keep, mask)
        assert torch.equal(masks[name], mask.expand_as(masks[name]))
    if not masks["0.weight"].any() or not masks["2.weight"].any():
        with pytest.raises(EmptyNetworkError):
            prune(posterior, group_threshold=threshold)
        return
    pruned = prune(posterior, group_threshold=threshold)
    assert same_function(pruned, network_of(posterior, masks), torch.randn(7, 2, 4, 4))
    features = groups["2.weight"][0].view(4, 4) & groups["0.weight"].view(4, 1)
    assert pruned.architecture == f"{int(features.any(1).sum())}-{int(features.sum())}"


def test_thresholds_by_name():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    model = BayesianNet(net, {"0.weight": priors.NormalJeffreys(), "2.weight": priors.LogUniform()},
                        likelihoods.Categorical(), 50)  # fmt: skip
    guide = scatter(MeanField(model, init_scale=0.3))
    posterior = Posterior.from_guide(model, guide)
    measure = group_measures(posterior)["0.weight"]
    t, s = float(measure.median()) + 1e-4, 0.5
    masks, groups = keep_masks(posterior, {"2.*": s, "*": 100.0}, {"0.weight": t})
    assert torch.equal(groups["0.weight"], measure < t)
    assert torch.equal(masks["0.weight"], (measure < t).expand(5, 6))
    mean, variance = posterior.moments()["2.weight"]
    assert torch.equal(masks["2.weight"], variance / mean**2 < math.exp(s))
    mistakes = (
        ({"0.*": 3.0}, r"no threshold fits 2.weight; there are '0\.\*'"),
        (
            {"*": 3.0, "1.*": 2.0},
            r"the threshold for '1\.\*' fits no weight; there are 0\.weight, 2\.weight",
        ),
        ("3", "numbers"),
    )
    for bad, message in mistakes:
        with pytest.raises(ValueError, match=message):
            keep_masks(posterior, bad)
    with pytest.raises(ValueError, match=r"no threshold fits 0\.weight"):
        keep_masks(posterior, 3.0, {"2.weight": 3.0})


def test_draws_are_pruned_by_their_moments():
    model = model_of(priors.NormalJeffreys())
    guide = Posterior.from_guide(model, scatter(MeanField(model, init_scale=0.3)))
    given = Posterior.from_draws(model, guide.draws)
    masks, groups = keep_masks(given, threshold=0.0)
    pruned = prune(given, threshold=0.0)
    weights = given.sample(100)["0.weight"]
    assert torch.equal(masks["0.weight"], weights.var(0) < weights.mean(0).square())
    assert groups == pruned.groups == {}
    assert same_function(pruned, network_of(given, masks), torch.randn(9, 6))
    rows, columns = pruned.kept["0.weight"]
    assert torch.allclose(pruned.variances["0.weight"], weights.var(0)[rows][:, columns])


def test_what_cannot_be_pruned():
    model = model_of(priors.Normal())
    with pytest.raises(ValueError, match=r"no variance.*not a point estimate"):
        prune(Posterior.from_guide(model, PointEstimate(model)))
    program = linear_regression(5)
    guide = MeanField(program, torch.zeros(5, 1), torch.zeros(5))
    with pytest.raises(TypeError, match="hand-written program has no network to prune"):
        prune(Posterior.from_guide(program, guide))


def test_a_mean_that_has_overflowed_is_refused():
    model = model_of(priors.Horseshoe())
    guide = MeanField(model, init_scale=0.1)
    with torch.no_grad():
        for name, parameter in guide.named_parameters():
            if name.endswith("log_scale"):
                parameter += 6.0  # of the scales too: the mean of a log-normal is exp(m + s^2 / 2)
    with pytest.raises(ValueError, match=r"'0\.weight' has a posterior mean that is not finite"):
        prune(Posterior.from_guide(model, guide), math.inf)


@pytest.mark.parametrize("which", ["all", "one layer"])
def test_a_network_of_which_nothing_is_left_is_refused(which):
    torch.manual_seed(0)
    model = BayesianNet(LeNet5(size=16), priors.LogUniform(), likelihoods.Categorical(), 10)
    posterior = Posterior.from_guide(model, MeanField(model))
    threshold = -math.inf if which == "all" else {"fc1.weight": -math.inf, "*": math.inf}
    message = (
        r"threshold=-inf .* no weight is left; raise"
        if which == "all"
        else r"^fc1: .*constant; prune less"
    )
    with pytest.raises(EmptyNetworkError, match=message):
        prune(posterior, threshold)
    masks, _ = keep_masks(posterior, threshold)
    assert not masks["fc1.weight"].any()
    kept = prune(posterior, threshold=math.inf)
    assert kept.ratio == kept.dense_ratio == 1
    assert torch.equal(
        kept.module(torch.ones(1, 256)), posterior.mean_network()(torch.ones(1, 256))
    )


class Gated(nn.Module):
    """Its control flow depends on the data."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = self.one(x)
        return self.two(torch.relu(h) if len(h) > 1 else h)


def test_a_network_that_cannot_be_traced_keeps_its_size():
    torch.manual_seed(0)
    model = BayesianNet(Gated(), priors.LogUniform(), likelihoods.Categorical(), 50)
    posterior = Posterior.from_guide(model, scatter(MeanField(model, init_scale=0.3)))
    pruned = prune(posterior, threshold=0.0)
    masks, _ = keep_masks(posterior, threshold=0.0)
    assert all(torch.equal(pruned.masks[name], mask) for name, mask in masks.items())
    assert pruned.module.one.weight.shape == (5, 6)
    assert pruned.ratio > 1 == pruned.dense_ratio
    assert same_function(pruned, network_of(posterior, masks), torch.randn(9, 6))
    assert "keeps its size: Gated: expected a network that torch.fx can trace" in pruned.notes[0]
    assert pruned.notes[0] in str(pruned)
    with pytest.raises(EmptyNetworkError, match="no weight is left"):
        prune(posterior, threshold=-math.inf)


def test_images_may_come_as_before():
    torch.manual_seed(0)
    for net, shapes in (
        (LeNet5(size=16, filters=(3, 4), hidden=8), [(256,), (1, 16, 16)]),
        (LeNet300100(64, (9, 8)), [(64,), (1, 8, 8), (8, 8)]),
    ):
        posterior, keep = sparse(
            BayesianNet(net, priors.LogUniform(), likelihoods.Categorical(), 10)
        )
        pruned = prune(posterior)
        assert pruned.dense_ratio > 1
        x = torch.randn(5, shapes[0][0])
        outputs = [
            part(x.view(5, *shape)) for shape in shapes for part in (pruned.module, pruned.masked)
        ]
        expected = network_of(posterior, keep)(x.view(5, *shapes[-1]))
        assert all(torch.allclose(output, expected, rtol=1e-5, atol=1e-5) for output in outputs)


# --- other numbers, and training on -----------------------------------------------------------------------------------


@torch.no_grad()
def test_constants_of_dead_units_live_on_in_the_biases():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3, bias=False))
    model = BayesianNet(net, priors.Normal(), likelihoods.Categorical(), 50)
    keep = {"0.weight": torch.rand(5, 6) > 0.4, "2.weight": torch.rand(3, 5) > 0.2}
    keep["0.weight"][1] = False
    posterior = signal_in(model, keep)
    pruned = prune(posterior)
    x = torch.randn(20, 6)
    assert same_function(pruned, network_of(posterior, keep), x)
    assert pruned.module.get_submodule("2").bias.any()
    assert not pruned.masks["2.weight"][:, 1].any()
    bias = pruned.module.get_submodule("2").bias + 1
    changed = pruned.with_values(
        {"2.bias": bias, "0.weight": 2 * pruned.module.get_submodule("0").weight}
    )
    assert torch.allclose(changed.module(x), changed.masked(x), atol=1e-5)
    assert torch.equal(changed.masked.get_parameter("2.bias"), bias)
    assert not torch.allclose(changed.module(x), pruned.module(x), atol=1e-2)


def test_other_values():
    model = model_of(priors.LogUniform())
    pruned = prune(sparse(model)[0])
    assert pruned.module.get_submodule("2").weight.shape < (3, 5)
    before = {name: value.clone() for name, value in pruned.module.state_dict().items()}
    weight = pruned.module.get_submodule("2").weight.detach().round(decimals=1)
    weight[:, 0] = 0.0
    changed = pruned.with_values({"2.weight": weight})
    assert torch.equal(changed.module.get_submodule("2").weight, weight)
    assert all(
        torch.equal(value, before[name]) for name, value in pruned.module.state_dict().items()
    )
    assert (
        changed.report[1].kept
        == int(weight.count_nonzero())
        == int(changed.masks["2.weight"].sum())
    )
    assert changed.report[0] == pruned.report[0]
    x = torch.randn(9, 6)
    assert torch.allclose(changed.module(x), changed.masked(x), atol=1e-6)
    for name, value in (("2.weight", torch.zeros(3, 5)), ("3.weight", weight)):
        with pytest.raises(ValueError, match=rf"{name}.*expected .*got"):
            pruned.with_values({name: value})


@pytest.mark.filterwarnings("ignore:site .*covariances between positions")
def test_the_smaller_network_trains_on_and_is_pruned_again(monkeypatch):
    # the first step is a plain one; what is traced then runs as it is, without waiting for the C++ compiler
    monkeypatch.setattr("pyro_bnn.runtime.compile.lowered", lambda graph, examples: graph)
    torch.manual_seed(0)
    x, y = torch.randn(64, 256), torch.randint(3, (64,))
    net = LeNet5(size=16, filters=(4, 5), hidden=8, outputs=3)
    first = BayesianNet(net, priors.LogUniform(), likelihoods.Categorical(), 64)
    pruned = prune(sparse(first)[0])
    assert pruned.dense_ratio > 1
    model = BayesianNet(pruned.module, priors.LogUniform(), likelihoods.Categorical(), 64)
    guide = MeanField(model, init_scale=1e-2)
    result = fit(model, guide, (x, y), epochs=2, batch_size=16, compile=True, progress=False)
    assert all(math.isfinite(value) for value in result.history["loss"])
    threshold = {"conv2.weight": 3.0, "*": 100.0}
    scatter(result.posterior.guide)
    again = prune(result.posterior, threshold)
    assert same_function(
        again, network_of(result.posterior, keep_masks(result.posterior, threshold)[0]), x
    )
    twice = prune(sparse(model, seed=1)[0])
    assert same_function(twice, network_of(*sparse(model, seed=1)), x)
    assert twice.dense_ratio > 1
    assert twice.module.conv2.out_channels < pruned.module.conv2.out_channels
    assert result.posterior.predict(x[:4], 5).mean.shape == (4, 3)


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
    result = fit(
        model, guide, (x, y), epochs=60, batch_size=64, learning_rate=falling, progress=False
    )
    pruned = prune(result.posterior, threshold=0.0)
    mask = pruned.masks["weight"][0]
    assert mask[[0, 3]].all()
    assert int(mask.sum()) <= 3
    assert torch.allclose(pruned.module.weight[0, [0, 3]], torch.tensor([1.5, -2.0]), atol=0.1)


def test_groups_without_influence_are_pruned():
    x, y = toy()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 1))
    model = BayesianNet(
        net, {"0.weight": priors.NormalJeffreys()}, likelihoods.Gaussian(0.3), len(x)
    )
    guide = GroupNormalJeffreys(model, init_log_variance=-4.0)
    result = fit(
        model, guide, (x, y), epochs=150, batch_size=64, learning_rate=0.02, progress=False
    )
    keep = prune(result.posterior, group_threshold=0.0).groups["0.weight"][0]
    assert keep[[0, 3]].all()
    assert int(keep.sum()) <= 3
