"""Precision: the two rules bit by bit, and the error of rounded networks."""

import math

import pytest
import torch
from torch import nn

from pyro_bnn import BayesianNet, Posterior, fit, likelihoods, priors
from pyro_bnn.compression import prune
from pyro_bnn.compression.quantization.precision import (
    Precision,
    bits_per_layer,
    exponent_bits,
    fixed_point,
    rounded,
    significand_bits,
)
from pyro_bnn.datasets.handwritten_digits import digits as load_digits
from pyro_bnn.guides import MeanField


@pytest.mark.parametrize("rule", ["variance", "standard deviation"])
def test_significand_bits_count_the_steps_above_the_noise(rule):
    variance = 10.0 ** torch.linspace(-16, 3, 400, dtype=torch.double)
    noise = [2 * v if rule == "variance" else math.sqrt(v) for v in variance.tolist()]
    expected = [sum(v < 0.5 * 2 ** (1 - t) for t in range(1, 24)) for v in noise]
    assert significand_bits(variance, rule).tolist() == expected
    assert {0, 23} < set(expected)


def test_significand_bits_agree_with_published_values():
    variance = torch.tensor([1e-2, 1e-3, 1e-4])
    assert significand_bits(variance).tolist() == [5, 8, 12]
    assert significand_bits(variance, "standard deviation").tolist() == [3, 4, 6]
    with pytest.raises(ValueError, match="'variance' or 'standard deviation'"):
        significand_bits(variance, "std")


@pytest.mark.parametrize(
    ("largest", "bits"),
    [(0.0, 1), (0.3, 1), (0.5, 1), (0.51, 1), (1.0, 1), (1.5, 2), (2.0, 2), (3.9, 3), (100.0, 4)],
)
def test_exponent_bits_are_those_of_the_formula_and_at_least_one(largest, bits):
    assert exponent_bits(torch.tensor([0.1 * largest, -largest])) == bits
    if largest >= 1:
        assert bits == math.ceil(math.log2(math.log2(largest) + 1) + 1)
    assert exponent_bits(torch.tensor([])) == 1


@pytest.mark.parametrize("significand", [0, 1, 5, 12])
def test_rounding_moves_values_by_at_most_half_a_step(significand):
    values = torch.randn(1000, dtype=torch.double)
    result = rounded(values, significand)
    assert float((result - values).abs().max()) <= 2.0 ** -(significand + 1)
    assert torch.equal(result * 2**significand, (result * 2**significand).round())
    assert torch.equal(rounded(result, significand), result)


def pruned_net(means, scales, bias):
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor(bias))
    model = BayesianNet(net, priors.LogUniform(), likelihoods.Gaussian(0.1), 10)
    guide = MeanField(model)
    with torch.no_grad():
        for (_, family), mean, scale in zip(guide.families().items(), means, scales, strict=True):
            family.loc.copy_(torch.tensor(mean))
            family.log_scale.copy_(torch.tensor(scale).log())
    return prune(Posterior.from_guide(model, guide))


def test_the_bits_of_a_layer_are_the_mean_of_its_nonzero_weights():
    # variances 1e-2 (5 bits), 1e-4 (12) and 1e-4 (12), and a pruned weight: 29 / 3 rounds up to 10
    means = ([[1.0, -1.3], [0.7001, 0.001]], [[0.111, 3.0]])
    scales = ([[0.1, 0.01], [0.01, 0.5]], [[0.01, 0.1]])
    pruned = pruned_net(means, scales, [0.123456, 0.2])
    assert bits_per_layer(pruned) == {"0.weight": Precision(2, 10), "2.weight": Precision(3, 9)}
    assert bits_per_layer(pruned, "standard deviation") == {
        "0.weight": Precision(2, 5),
        "2.weight": Precision(3, 5),
    }
    assert Precision(2, 10).total == 13
    result, precisions = fixed_point(pruned)
    assert precisions == bits_per_layer(pruned)
    before, after = dict(pruned.module.named_parameters()), dict(result.module.named_parameters())
    for name, significand in (("0.weight", 10), ("0.bias", 10), ("2.weight", 9), ("2.bias", 9)):
        assert torch.equal(after[name], rounded(before[name], significand))
        assert not torch.equal(after[name], before[name])
    assert torch.equal(result.masks["0.weight"], torch.tensor([[True, True], [True, False]]))


def test_unknown_variances_are_an_error():
    pruned = pruned_net(
        ([[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0]]),
        ([[0.1, 0.1], [0.1, 0.1]], [[0.1, 0.1]]),
        [0.1, 0.2],
    )
    object.__setattr__(pruned, "variances", {})
    with pytest.raises(ValueError, match=r"^fixed_point: the variances of the weights are unknown"):
        fixed_point(pruned)
    with pytest.raises(ValueError, match=r"^bits_per_layer: the variances"):
        bits_per_layer(pruned)


def test_fixed_point_hardly_changes_the_accuracy_on_digits():
    digits = load_digits()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
    model = BayesianNet(net, priors.Normal(1.0), likelihoods.Categorical(), len(digits.x_train))
    result = fit(
        model,
        MeanField(model),
        digits.train,
        epochs=40,
        batch_size=128,
        learning_rate=1e-2,
        progress=False,
    )
    pruned = prune(result.posterior)
    x = torch.cat([digits.x_train, digits.x_test])
    y = torch.cat([digits.y_train, digits.y_test])
    before = accuracy(pruned.module, x, y)
    assert before > 0.93
    published, bits = fixed_point(pruned)
    assert abs(accuracy(published.module, x, y) - before) < 0.002  # three digits of 1,797
    coarse, fewer_bits = fixed_point(pruned, "standard deviation")
    assert all(
        few.total < many.total <= 12
        for few, many in zip(fewer_bits.values(), bits.values(), strict=True)
    )
    # steps of one to two standard deviations move a weight by less than posterior draws do
    draws = result.posterior.sample(20)
    drawn = [
        result.posterior.model.network_with({k: v[i] for k, v in draws.items()}) for i in range(20)
    ]
    assert accuracy(coarse.module, x, y) > sum(accuracy(net, x, y) for net in drawn) / 20


@torch.no_grad()
def accuracy(net, x, y):
    return float((net(x).argmax(1) == y).float().mean())
