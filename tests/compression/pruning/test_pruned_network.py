"""The pruned network: its shapes and report are known, and other values keep its structure."""

import pytest
import torch
from torch import nn

from pyro_bnn import BayesianNet, Posterior, likelihoods, priors
from pyro_bnn.compression import prune
from pyro_bnn.guides import MeanField
from tests.compression.pruning.posteriors import (
    model_of,
    network_of,
    same_function,
    scatter,
    signal_in,
    sparse,
)


def test_the_shapes_and_indices_of_a_small_network_are_known():
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


# --- other values ---


@torch.no_grad()
def test_constants_of_removed_units_are_folded_into_the_biases():
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


def test_other_values_change_the_masks_and_leave_the_original_alone():
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
