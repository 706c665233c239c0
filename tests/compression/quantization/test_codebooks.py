"""Codebooks: exact where they claim it, against brute force, and never at the cost of the zeros."""

import math

import pytest
import torch
from torch import nn

from pyro_bnn import BayesianNet, Posterior, likelihoods, priors
from pyro_bnn.compression import prune
from pyro_bnn.compression.quantization.codebooks import codes, half, k_means, quantize, value_bits
from pyro_bnn.guides import MeanField


def spread(values, weights, centroids):
    return float((weights * (values[:, None] - centroids).square().amin(1)).sum())


def clusterings(n, levels):
    """All ways of giving n values to so many clusters, intervals or not, as indicators (ways, n, levels)."""
    ways = torch.cartesian_prod(*[torch.arange(levels)] * n).view(-1, n)
    return torch.nn.functional.one_hot(ways, levels).double()


def least_spread(values, weights, levels):
    """The least weighted spread over all clusterings."""
    member = clusterings(len(values), levels)
    mass, first, second = ((weights * values**power) @ member for power in range(3))
    return float((second - first.square() / mass.clamp_min(1e-300)).sum(1).min())


@pytest.mark.parametrize(("n", "levels"), [(5, 1), (7, 2), (8, 3), (6, 4), (5, 5), (3, 4)])
@pytest.mark.parametrize("weighted", [False, True])
def test_k_means_is_exact(n, levels, weighted):
    values = torch.randn(n, dtype=torch.double)
    weights = (
        torch.rand(n, dtype=torch.double) ** 4 + 1e-3
        if weighted
        else torch.ones(n, dtype=torch.double)
    )
    found = k_means(values, levels, weights if weighted else None)
    assert len(found) == min(n, levels)
    assert torch.equal(found, found.sort().values)
    assert spread(values, weights, found) == pytest.approx(
        least_spread(values, weights, levels), abs=1e-12
    )


def interval_optimum(values, weights, levels):
    """The least spread of the sorted values in intervals, by the plain recursion over all starts."""
    x, w = values.sort().values, weights[values.argsort()]
    n = len(x)

    def cost(i, j):
        mean = (w[i:j] * x[i:j]).sum() / w[i:j].sum()
        return float((w[i:j] * (x[i:j] - mean).square()).sum())

    table = [[cost(i, j) if i < j else 0.0 for j in range(n + 1)] for i in range(n + 1)]
    best = table[0]
    for _ in range(levels - 1):
        best = [min((best[i] + table[i][j] for i in range(j)), default=0.0) for j in range(n + 1)]
    return best[n]


def test_k_means_of_many_values_finds_the_best_intervals():
    values = torch.cat([torch.randn(30), 5 + torch.randn(20), torch.full((10,), 0.25)]).double()
    weights = torch.rand(60, dtype=torch.double).pow(6) + 1e-4
    for levels in (2, 5, 13):
        found = k_means(values, levels, weights)
        assert spread(values, weights, found) == pytest.approx(
            interval_optimum(values, weights, levels), rel=1e-9
        )


def test_k_means_of_very_many_values_is_merged_first(monkeypatch):
    monkeypatch.setattr("pyro_bnn.compression.quantization.codebooks._EXACT", 500)
    values = torch.randn(20_000)
    monkeypatch.undo()
    exact, ones = k_means(values, 8), torch.ones(20_000)
    monkeypatch.setattr("pyro_bnn.compression.quantization.codebooks._EXACT", 500)
    merged = k_means(values, 8)
    assert not torch.equal(exact, merged)
    assert spread(values, ones, merged) == pytest.approx(spread(values, ones, exact), rel=1e-3)


def test_k_means_of_nothing():
    with pytest.raises(ValueError, match="values and levels of at least one, got 0 and 3"):
        k_means(torch.tensor([]), 3)
    with pytest.raises(ValueError, match="got 2 and 0"):
        k_means(torch.ones(2), 0)
    assert k_means(torch.ones(5), 3).tolist() == [1.0]


def pruned_net(seed=0, sizes=(20, 12, 3), dropped=0.4):
    """A pruned network with zeros in weights and biases and variances of all sizes."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(*sizes[:2]), nn.Tanh(), nn.Linear(*sizes[1:]))
    model = BayesianNet(net, priors.LogUniform(), likelihoods.Categorical(), 10)
    with torch.no_grad():
        model.net[0].bias[::3] = 0
    guide = MeanField(model)
    with torch.no_grad():
        for _, family in guide.families().items():
            family.loc.normal_()
            family.log_scale.copy_(math.log(0.05) + torch.randn(family.loc.shape))
            family.log_scale[torch.rand(family.loc.shape) < dropped] = 4.0
    return prune(Posterior.from_guide(model, guide))


def parameter(pruned, name):
    return dict(pruned.module.named_parameters())[name]


@pytest.mark.parametrize(
    ("rule", "bits_weight"), [("equal", 0.0), ("posterior", 0.0), ("posterior", 0.5)]
)
def test_zeros_stay_and_the_rest_takes_few_values(rule, bits_weight):
    pruned = pruned_net()
    small = quantize(pruned, 6, rule, bits_weight)
    for (name, before), after in zip(
        pruned.module.named_parameters(), small.module.parameters(), strict=True
    ):
        assert torch.equal(after != 0, before != 0)
        used = after[after != 0].unique()
        assert (name == "0.weight") + 1 <= len(used) <= 6
        assert torch.equal(used, used.half().float())
        assert torch.equal(codes(small)[name].values, used)
    assert bool((parameter(pruned, "0.bias") == 0).any())
    assert {
        name: torch.equal(mask, small.masks[name]) for name, mask in pruned.masks.items()
    } == dict.fromkeys(pruned.masks, True)
    again = quantize(pruned, 6, rule, bits_weight)
    assert all(
        torch.equal(a, b)
        for a, b in zip(small.module.parameters(), again.module.parameters(), strict=True)
    )


def test_plain_codebooks_are_k_means():
    pruned = pruned_net()
    weight = parameter(pruned, "0.weight").detach()
    table = half(k_means(weight[weight != 0], 5))
    small = parameter(quantize(pruned, 5, "equal"), "0.weight")
    assert torch.equal(codes(quantize(pruned, 5, "equal"))["0.weight"].values, table)
    nearest = table[(weight[..., None] - table).abs().argmin(-1)]
    assert torch.equal(small, torch.where(weight == 0, 0, nearest))


def nats(pruned, small, name, bits_weight):
    """The description length as the equation has it: distortion, code, table."""
    before, after = (parameter(p, name).detach() for p in (pruned, small))
    kept = before != 0
    distortion = ((before - after).square() / (2 * pruned.variances[name]))[kept].sum()
    code = codes(small)[name]
    bits = code.bits * int(kept.sum()) + 16 * len(code.values)
    return float(distortion) + bits_weight * math.log(2) * bits


@pytest.mark.parametrize("bits_weight", [1.0, 30.0])
def test_the_entropy_constraint_lowers_the_description_length(bits_weight):
    pruned = pruned_net()
    constrained = quantize(pruned, 12, "posterior", bits_weight)
    for name in pruned.variances:
        length = nats(pruned, constrained, name, bits_weight)
        others = [
            nats(pruned, quantize(pruned, levels), name, bits_weight) for levels in (1, 2, 4, 8, 12)
        ]
        assert length <= min(others)  # k-means of any size costs as much or more
        assert length < others[-1]


def test_bits_fall_and_distortion_rises_with_their_price():
    pruned = pruned_net()
    lengths, distortions = [], []
    for bits_weight in (0.0, 0.03, 0.3, 3.0, 1e5):
        small = quantize(pruned, 16, "posterior", bits_weight)
        lengths.append(value_bits(small))
        distortions.append(sum(nats(pruned, small, name, 0.0) for name in pruned.variances))
    assert lengths == sorted(lengths, reverse=True)
    assert distortions == sorted(distortions)
    assert lengths[0] > 3
    assert lengths[-1] == 0  # one value for all: nothing to tell


def test_tiny_entropy_constrained_codes_against_all_codes():
    """Alternation may stop short of the optimum; on these it must come within a percent of it."""
    for seed in range(5):
        pruned = pruned_net(seed, sizes=(4, 2, 3), dropped=0.0)
        small = quantize(pruned, 3, "posterior", 0.02)
        for name, variance in pruned.variances.items():
            weight = parameter(pruned, name).detach()
            kept = weight != 0
            values, precision = weight[kept].double(), 1 / variance[kept].double()
            best = least_length(values, precision, 3, 0.02)
            # half precision costs up to 2^-11 of a value: what that is in nats, on top
            slack = float((precision * (values * 2.0**-11).square()).sum())
            assert nats(pruned, small, name, 0.02) <= 1.01 * best + slack


def least_length(values, precision, levels, bits_weight):
    """The least description length over all codes."""
    member = clusterings(len(values), levels)
    mass, first, second = ((precision * values**power) @ member for power in range(3))
    distortion = (second - first.square() / mass.clamp_min(1e-300)).sum(1) / 2
    counts = member.sum(1)
    code = torch.xlogy(counts, len(values) / counts.clamp_min(1)).sum(1)
    return float((distortion + bits_weight * (code + 16 * math.log(2) * (counts > 0).sum(1))).min())


def test_precise_weights_keep_their_values():
    """Of two values that must share, the one known ten times better draws the centroid a hundred times as much."""
    pruned = pruned_net(sizes=(4, 2, 2), dropped=0.0)
    weight, variance = parameter(pruned, "0.weight"), pruned.variances["0.weight"]
    values, scales = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.1, 0.01, 0.1])
    with torch.no_grad():
        weight.zero_().view(-1)[:3] = values
        variance.view(-1)[:3] = scales.square()
    posterior, equal = (
        codes(quantize(pruned, {"0.weight": 2}, rule))["0.weight"]
        for rule in ("posterior", "equal")
    )
    assert equal.values.tolist() == [1.5, 9.0]
    assert posterior.values.tolist() == half(torch.tensor([201 / 101, 9.0])).tolist()
    assert posterior.counts.tolist() == [2, 1]


def test_a_variance_of_zero_does_not_break_it():
    pruned = pruned_net()
    pruned.variances["0.weight"][0] = 0.0
    small = quantize(pruned, 4, "posterior", 0.1)
    assert all(bool(torch.isfinite(p).all()) for p in small.module.parameters())


def test_patterns_choose_levels():
    pruned = pruned_net()
    small = quantize(pruned, {"0.weight": 3, "0.*": 5, "2.weight": 1})
    counts = {name: len(code.values) for name, code in codes(small).items()}
    assert counts == {"0.weight": 3, "0.bias": 5, "2.weight": 1, "2.bias": 3}
    assert torch.equal(
        parameter(small, "2.bias"), parameter(pruned, "2.bias")
    )  # no pattern fits it


def test_value_bits_are_an_average():
    pruned = pruned_net(sizes=(4, 2, 2), dropped=0.0)
    with torch.no_grad():
        for each in pruned.module.parameters():
            each.zero_()
        parameter(pruned, "0.weight").view(-1)[:4] = torch.tensor(
            [1.0, 2.0, 3.0, 4.0]
        )  # 2 bits each
        parameter(pruned, "2.weight").view(-1)[:2] = torch.tensor([1.0, 1.0])  # none
    assert value_bits(pruned) == pytest.approx(8 / 6)


def test_what_cannot_be_quantised():
    pruned = pruned_net()
    for bad, match in (
        ({"levels": 0}, "levels of at least one, got 0"),
        ({"levels": {"1.*": 4}}, r"'1.\*' fits no parameter; there are 0.weight, 0.bias"),
        ({"rule": "median"}, "'posterior' or 'equal', got 'median'"),
        ({"bits_weight": -1.0}, "bits_weight of at least 0"),
        ({"bits_weight": math.nan}, "bits_weight of at least 0"),
    ):
        with pytest.raises(ValueError, match=match):
            quantize(pruned, **bad)
    unknown = pruned_net()
    unknown.variances.clear()
    for options in ({}, {"rule": "equal", "bits_weight": 0.1}):
        with pytest.raises(ValueError, match="take rule='equal' and bits_weight=0"):
            quantize(unknown, **options)
    assert len(codes(quantize(unknown, 4, "equal"))["0.weight"].values) == 4
    for factor in (1e6, 1e20):  # the second one overflows when it is squared
        with torch.no_grad():
            parameter(unknown, "0.weight").mul_(factor)
        with pytest.raises(ValueError, match="numbers up to 65504"):
            quantize(unknown, 4, "equal")


def test_half_is_never_zero():
    values = torch.tensor([1e-9, -1e-12, 0.1, -3.0001])
    rounded = half(values)
    assert torch.equal(rounded, rounded.half().float())
    assert torch.equal(rounded.sign(), values.sign())
    assert float((rounded - values).abs().max()) < 1e-3
