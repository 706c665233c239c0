"""Pruning: masks are those of the thresholds, and the smaller network is the same function."""

import math

import pytest
import torch
from torch import nn

from pyro_bnn import BayesianNet, Posterior, fit, likelihoods, priors
from pyro_bnn.compression import EmptyNetworkError, group_measures, keep_masks, prune
from pyro_bnn.guides import (
    MeanField,
    PointEstimate,
    SparseVariationalDropout,
)
from pyro_bnn.models import LeNet5, LeNet300100, linear_regression
from tests.compression.pruning.posteriors import (
    model_of,
    network_of,
    same_function,
    scatter,
    sparse,
    two_inputs_of_eight,
)


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


def test_log_alpha_and_signal_to_noise_ratio_give_the_same_masks():
    model = model_of(priors.LogUniform())
    posterior = Posterior.from_guide(model, scatter(MeanField(model, init_scale=0.3)))
    masks, _ = keep_masks(posterior, threshold=1.5)
    for name, (mean, variance) in posterior.moments().items():
        assert torch.equal(masks[name], mean.abs() / variance.sqrt() > math.exp(-1.5 / 2))


def test_masks_agree_with_the_log_alpha_of_sparse_variational_dropout():
    model = model_of(priors.LogUniform())
    guide = scatter(SparseVariationalDropout(model, init_log_variance=-2.0))
    masks, _ = keep_masks(Posterior.from_guide(model, guide))
    for name, log_alpha in guide.log_alpha().items():
        assert torch.equal(masks[name], log_alpha < 3)
    assert 0 < sum(int((~mask).sum()) for mask in masks.values()) < 45


def test_the_first_matching_pattern_gives_the_threshold():
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
        (
            {"0.*": 3.0},
            r"keep_masks: no threshold matches 2.weight; the thresholds are for '0\.\*'",
        ),
        (
            {"*": 3.0, "1.*": 2.0},
            r"the threshold for '1\.\*' matches no weight; the weights are 0\.weight, 2\.weight",
        ),
        ("3", "keep_masks: expected numbers as thresholds, got 3"),
    )
    for bad, message in mistakes:
        with pytest.raises(ValueError, match=message):
            keep_masks(posterior, bad)
    with pytest.raises(ValueError, match=r"no threshold matches 0\.weight"):
        keep_masks(posterior, 3.0, {"2.weight": 3.0})


def test_draws_are_pruned_by_their_moments():
    model = model_of(priors.NormalJeffreys())
    guide = Posterior.from_guide(model, scatter(MeanField(model, init_scale=0.3)))
    posterior = Posterior.from_draws(model, guide.draws)
    masks, groups = keep_masks(posterior, threshold=0.0)
    pruned = prune(posterior, threshold=0.0)
    weights = posterior.sample(100)["0.weight"]
    assert torch.equal(masks["0.weight"], weights.var(0) < weights.mean(0).square())
    assert groups == pruned.groups == {}
    assert same_function(pruned, network_of(posterior, masks), torch.randn(9, 6))
    rows, columns = pruned.kept["0.weight"]
    assert torch.allclose(pruned.variances["0.weight"], weights.var(0)[rows][:, columns])


def test_point_estimates_and_hand_written_programs_cannot_be_pruned():
    model = model_of(priors.Normal())
    with pytest.raises(ValueError, match=r"no variance.*not a point estimate"):
        prune(Posterior.from_guide(model, PointEstimate(model)))
    with pytest.raises(ValueError, match=r"^keep_masks: the posterior has no variance"):
        keep_masks(Posterior.from_guide(model, PointEstimate(model)))
    with pytest.raises(TypeError, match=r"^prune: expected a Posterior, got BayesianNet"):
        prune(model)
    program = linear_regression(5)
    guide = MeanField(program, torch.zeros(5, 1), torch.zeros(5))
    with pytest.raises(TypeError, match="BayesianNet, got one of a hand-written program"):
        prune(Posterior.from_guide(program, guide))


def test_a_mean_that_has_overflowed_is_an_error():
    model = model_of(priors.Horseshoe())
    guide = MeanField(model, init_scale=0.1)
    with torch.no_grad():
        for name, parameter in guide.named_parameters():
            if name.endswith("log_scale"):
                parameter += 6.0  # of the scales too: the mean of a log-normal is exp(m + s^2 / 2)
    with pytest.raises(ValueError, match=r"'0\.weight' has a posterior mean that is not finite"):
        prune(Posterior.from_guide(model, guide), math.inf)


@pytest.mark.parametrize("which", ["all", "one layer"])
def test_pruning_everything_is_an_error(which):
    torch.manual_seed(0)
    model = BayesianNet(LeNet5(size=16), priors.LogUniform(), likelihoods.Categorical(), 10)
    posterior = Posterior.from_guide(model, MeanField(model))
    threshold = -math.inf if which == "all" else {"fc1.weight": -math.inf, "*": math.inf}
    message = (
        r"threshold=-inf .* no weight remains; raise"
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
    with pytest.raises(EmptyNetworkError, match="no weight remains"):
        prune(posterior, threshold=-math.inf)


def test_the_smaller_network_accepts_images_in_every_shape_of_the_original():
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


@pytest.mark.filterwarnings("ignore:site .*covariances between positions")
def test_the_smaller_network_can_be_trained_and_pruned_again(monkeypatch):
    # traced operations run as they are, so that the test does not wait for the C++ compiler
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


def test_a_mean_of_exactly_zero_is_pruned():
    model = model_of(priors.LogUniform())
    guide = MeanField(model)
    guide.sites.get_submodule("0.weight").loc.data[0, 0] = 0.0
    assert not prune(Posterior.from_guide(model, guide)).masks["0.weight"][0, 0]


def decaying(epoch):
    return 0.05 * 0.01 ** (epoch / 60)


def test_inputs_without_influence_are_pruned():
    x, y = two_inputs_of_eight()
    torch.manual_seed(0)
    model = BayesianNet(nn.Linear(8, 1), priors.LogUniform(), likelihoods.Gaussian(0.3), len(x))
    guide = MeanField(model, init_scale=0.05)
    result = fit(
        model, guide, (x, y), epochs=60, batch_size=64, learning_rate=decaying, progress=False
    )
    pruned = prune(result.posterior, threshold=0.0)
    mask = pruned.masks["weight"][0]
    assert mask[[0, 3]].all()
    assert int(mask.sum()) <= 3
    assert torch.allclose(pruned.module.weight[0, [0, 3]], torch.tensor([1.5, -2.0]), atol=0.1)
