"""Fine-tuning: closed forms for linear networks, and zeros and codebooks that are kept."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_bnn import BayesianNet, Posterior, likelihoods, priors
from pyro_bnn.compression import prune
from pyro_bnn.compression.quantization.codebooks import codes, quantize
from pyro_bnn.compression.quantization.fine_tuning import fine_tune, fine_tune_pruned
from pyro_bnn.guides import MeanField
from pyro_bnn.runtime.validation import DataError
from tests.compression.quantization.pruned_networks import value_bits


def pruned_net(net, dropped=0.4, scale=0.05):
    """Return a pruned network with random zeros."""
    model = BayesianNet(net, priors.LogUniform(), likelihoods.Categorical(), 10)
    guide = MeanField(model, init_scale=scale)
    with torch.no_grad():
        for _, family in guide.families().items():
            family.log_scale[torch.rand(family.loc.shape) < dropped] = 4.0
    return prune(Posterior.from_guide(model, guide))


def parameters(pruned):
    return {name: p.detach() for name, p in pruned.module.named_parameters()}


def linear(inputs=12, outputs=2):
    """Return a linear network with zeros, and data of another linear network."""
    net = nn.Linear(inputs, outputs)
    with torch.no_grad():
        net.weight.normal_(), net.bias.normal_()
    x = torch.randn(200, inputs, dtype=torch.double)
    y = x @ torch.randn(inputs, outputs, dtype=torch.double) + 0.1 * torch.randn(
        200, outputs, dtype=torch.double
    )
    return pruned_net(net.double()), x, y


def design(pruned, x):
    """Return the matrix from weights and biases to outputs, each laid end to end."""
    weight = parameters(pruned)["weight"]
    outputs, inputs = weight.shape
    rows = torch.zeros(len(x), outputs, outputs, inputs, dtype=x.dtype)
    for o in range(outputs):
        rows[:, o, o] = x
    bias = torch.eye(outputs, dtype=x.dtype).expand(len(x), outputs, outputs)
    return torch.cat([rows.flatten(2), bias], 2).flatten(0, 1)


def flat(pruned):
    return torch.cat([p.flatten() for p in parameters(pruned).values()])


EXACT = {
    "loss": F.mse_loss,
    "epochs": 500,
    "batch_size": 200,
    "learning_rate": 0.1,
    "progress": False,
}


def test_trained_nonzero_weights_are_the_least_squares_solution():
    pruned, x, y = linear()
    support = flat(pruned) != 0
    assert 5 < int(support.sum()) < 25
    tuned = fine_tune_pruned(pruned, (x, y), **EXACT)
    expected = torch.zeros_like(flat(pruned))
    expected[support] = torch.linalg.lstsq(design(pruned, x)[:, support], y.reshape(-1)).solution
    assert torch.allclose(flat(tuned), expected, atol=1e-4)
    assert torch.equal(flat(tuned) != 0, support)


def test_trained_centroids_are_the_least_squares_solution():
    """With fixed assignments the outputs are linear in the centroids, one column for each."""
    pruned, x, y = linear()
    small = quantize(pruned, 3)
    tuned = fine_tune(small, (x, y), mode="centroids", **EXACT)
    member, weight = [], parameters(small)
    for name, code in codes(small).items():
        for value in code.values:
            member.append(
                torch.cat(
                    [(p == value).flatten() * (n == name) for n, p in weight.items()]
                ).double()
            )
    member = torch.stack(member, 1)
    centroids = torch.linalg.lstsq(design(pruned, x) @ member, y.reshape(-1)).solution
    assert torch.allclose(flat(tuned), member @ centroids, atol=2e-3)
    assert torch.equal(flat(tuned) != 0, flat(pruned) != 0)
    for code in codes(tuned).values():
        assert len(code.values) <= 3
        assert torch.equal(code.values, code.values.half().double())


def test_straight_through_corrects_wrong_assignments():
    """The data need weights of two values; quantized noisy weights have many wrong assignments."""
    net = nn.Linear(30, 1, bias=False)
    planted = torch.where(torch.rand(1, 30) < 0.5, 0.5, -1.0)
    with torch.no_grad():
        net.weight.copy_(planted + 0.6 * torch.randn(1, 30))
    pruned = pruned_net(net, dropped=0.0)
    x = torch.randn(400, 30)
    y = x @ planted.T
    small = quantize(pruned, 2, "equal")
    order = codes(small)["weight"].values
    wrong = (parameters(small)["weight"] == order[0]) != (planted == -1.0)
    assert 3 <= int(wrong.sum()) <= 20
    options = {"loss": F.mse_loss, "batch_size": 100, "progress": False}
    tuned = fine_tune(small, (x, y), start=pruned, epochs=60, learning_rate=0.03, **options)
    assert torch.allclose(parameters(tuned)["weight"], planted, atol=2e-3)
    stuck = fine_tune(small, (x, y), mode="centroids", epochs=60, learning_rate=0.03, **options)
    assert float((parameters(stuck)["weight"] - planted).abs().max()) > 0.3


def classifier():
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(300, 6)
    return pruned_net(net, dropped=0.3), x, x[:, :3].argmax(1)


SHORT = {"epochs": 5, "batch_size": 32, "learning_rate": 0.01, "progress": False}


@pytest.mark.parametrize("mode", ["centroids", "straight-through"])
def test_codebooks_and_zeros_are_kept(mode):
    pruned, x, y = classifier()
    small = quantize(pruned, {"0.weight": 5, "*": 3})
    options = SHORT | {"mode": mode}
    tuned = fine_tune(small, (x, y), **options)
    before, after = parameters(small), parameters(tuned)
    for name, code in codes(tuned).items():
        assert torch.equal(after[name] != 0, before[name] != 0)
        assert not torch.equal(after[name], before[name])
        assert len(code.values) <= (5 if name == "0.weight" else 3)
        assert torch.equal(code.values, code.values.half().float())
    if mode == "centroids":  # weights that shared a value share one
        for name, weight in before.items():
            pairs = torch.stack([weight[weight != 0], after[name][weight != 0]], 1).unique(dim=0)
            assert len(pairs) == len(weight[weight != 0].unique())
    with torch.no_grad():
        losses = [float(F.cross_entropy(each.module(x), y)) for each in (small, tuned)]
    assert losses[1] < losses[0] - 0.05
    state = torch.get_rng_state()
    assert torch.equal(flat(fine_tune(small, (x, y), **options)), flat(tuned))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(flat(fine_tune(small, (x, y), seed=1, **options)), flat(tuned))
    assert torch.equal(
        flat(small), torch.cat([p.flatten() for p in before.values()])
    )  # the argument is not changed


def test_assignments_are_fixed_while_settling():
    """Settling from the start, straight-through keeps the assignments that it starts with."""
    pruned, x, y = classifier()
    small = quantize(pruned, 4)
    settled = flat(fine_tune(small, (x, y), settle=1.0, **SHORT))
    centroids = flat(fine_tune(small, (x, y), mode="centroids", **SHORT))
    assert torch.equal(settled, centroids)
    moved = flat(fine_tune(small, (x, y), settle=0.0, **SHORT))
    pairs = [torch.stack([flat(small), after], 1).unique(dim=0) for after in (settled, moved)]
    assert len(pairs[1]) > len(pairs[0])


def test_a_price_of_bits_saves_bits():
    pruned, x, y = classifier()
    small = quantize(pruned, 6)
    bits = [
        value_bits(fine_tune(small, (x, y), bits_weight=price, start=pruned, **SHORT))
        for price in (0.0, 1.0, 1e5)
    ]
    assert bits[0] > bits[1] > bits[2]


def test_a_teacher_that_agrees_changes_nothing():
    """The cross-entropy to the network's own probabilities has a gradient of zero."""
    pruned, x, y = classifier()
    small = quantize(pruned, 4)
    with torch.no_grad():
        teacher = small.module(x).double().softmax(1).float()
    options = SHORT | {
        "learning_rate": 1e-5,
        "epochs": 1,
    }  # Adam enlarges the rounding errors of the gradient
    same = fine_tune(small, (x, y), teacher=teacher, **options)
    assert float((flat(same) - flat(small)).abs().max()) < 3e-4
    pupil = fine_tune(small, (x, y), teacher=torch.eye(3)[y], **SHORT)
    assert torch.allclose(flat(pupil), flat(fine_tune(small, (x, y), **SHORT)), atol=2e-3)
    other = fine_tune(small, (x, y), teacher=teacher.roll(1, 1), **SHORT)
    assert float((flat(other) - flat(small)).abs().max()) > 0.02


def test_convolutions_can_be_tuned():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )
    pruned = pruned_net(net, dropped=0.3)
    x = torch.randn(64, 1, 6, 6)
    y = (x.mean((1, 2, 3)) > 0).long()
    small = quantize(pruned, 4)
    tuned = fine_tune(small, (x, y), **SHORT)
    assert F.cross_entropy(tuned.module(x), y) < F.cross_entropy(small.module(x), y)
    assert all(len(code.values) <= 4 for code in codes(tuned).values())


def test_impossible_settings_and_data_are_errors():
    pruned, x, y = classifier()
    small = quantize(pruned, 4)
    for options, match in (
        ({"mode": "ste"}, "'centroids' or 'straight-through', got 'ste'"),
        ({"epochs": 0}, "at least one epoch, got 0"),
        ({"bits_weight": -1.0}, "bits_weight >= 0"),
        ({"bits_weight": math.nan}, "bits_weight >= 0"),
        ({"settle": 1.5}, "settle from 0 to 1"),
        ({"teacher": torch.ones(5, 3)}, r"class probabilities \(300, classes\), got \(5, 3\)"),
        ({"start": pruned_net(nn.Linear(6, 3))}, "start is another network"),
    ):
        with pytest.raises(ValueError, match=match):
            fine_tune(small, (x, y), **(SHORT | options))
    with pytest.raises(DataError, match="equal lengths"):
        fine_tune(small, (x, y[:5]), **SHORT)
    small.variances.clear()
    with pytest.raises(ValueError, match="those of the weights are unknown"):
        fine_tune(small, (x, y), bits_weight=0.1, **SHORT)
    assert fine_tune(small, (x, y), **SHORT).ratio == small.ratio


def test_a_bar_is_shown_only_for_long_runs(capsys):
    pruned, x, y = classifier()
    fine_tune_pruned(pruned, (x, y), epochs=1)
    assert "fine-tune" not in capsys.readouterr().err
