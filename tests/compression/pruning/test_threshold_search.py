"""Thresholds: gaps are found where they were made, and validation data decide among them."""

import math

import pytest
import torch
from torch import nn

from pyro_bnn import BayesianNet, Posterior, likelihoods, priors
from pyro_bnn.compression import choose_thresholds, prune
from pyro_bnn.compression.pruning import threshold_search
from pyro_bnn.compression.pruning.threshold_search import gaps
from pyro_bnn.guides import MeanField, PointEstimate


def test_gaps_lie_between_the_measures():
    assert gaps(torch.tensor([5.0, -3.0, 5.5, -2.5, math.inf]), 1) == [1.25]
    assert gaps(torch.tensor([5.0, -3.0, 5.5, -2.5]), 9) == [-2.75, 1.25, 5.25]
    assert (
        gaps(torch.tensor([2.0, 2.0])) == gaps(torch.tensor([1.0])) == gaps(torch.tensor([])) == []
    )
    torch.manual_seed(0)
    two = torch.cat([torch.randn(30_000) - 6, torch.randn(3_000) + 6]).view(100, -1)
    (middle,) = gaps(two[two.abs() < 9], 1)
    assert -3 < middle < 3


@torch.no_grad()
def dense(measures, weights, prior=None, likelihood=None):
    """Return a posterior of a linear network with these log alphas (units, inputs)."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(weights.shape[1], len(weights)))
    net[1].bias.zero_()
    model = BayesianNet(
        net, prior or priors.LogUniform(), likelihood or likelihoods.Categorical(), 100
    )
    guide = MeanField(model)
    if prior is None:
        family = guide.sites.get_submodule("1.weight")
        family.loc.copy_(weights)
        family.log_scale.copy_((measures + weights.square().log()) / 2)
        return Posterior.from_guide(model, guide)
    unit, scale = (guide.families()[f"1.weight.{part}"] for part in ("unit", "scale"))
    unit.loc.copy_(weights)
    unit.log_scale.fill_(-5.0)
    scale.loc.fill_(1.0)
    scale.log_scale.copy_((measures / 2).view(scale.log_scale.shape))
    return Posterior.from_guide(model, guide)


def problem():
    """Return data whose class depends on inputs 0 and 1, a little on 2, and hardly on 3 to 5."""
    torch.manual_seed(0)
    x = torch.randn(400, 6)
    weights = torch.tensor([[2.0, -2.0, 0.4, 1e-3, 1e-3, -1e-3]])
    y = (x[:, :3] @ weights[0, :3] > 0).long()
    return x, y, torch.cat([-weights, weights])


MEASURES = torch.tensor([-6.0, -5.5, 0.5, 4.2, 4.5, 5.2])


def expected_error(x, y, weights, kept):
    return float(((x[:, :kept] @ weights.T[:kept]).argmax(-1) != y).double().mean())


@pytest.mark.parametrize("grouped", [False, True])
def test_the_widest_gap_that_costs_nothing_is_chosen(grouped):
    x, y, weights = problem()
    measures = MEASURES if grouped else MEASURES.expand(2, -1)
    posterior = dense(measures, weights, priors.NormalJeffreys() if grouped else None)
    without = expected_error(x, y, weights, 2)
    assert expected_error(x, y, weights, 3) == 0 < without < 0.2
    unpruned = expected_error(x, y, weights, 6)
    for tolerance, inputs in ((0.0, 3), (without / 2, 3), (without, 2), (0.4, 1)):
        chosen = choose_thresholds(posterior, (x, y), tolerance)
        limit = (chosen.group_threshold if grouped else chosen.threshold)["1.weight"]
        assert MEASURES[inputs - 1] < limit < MEASURES[inputs]
        assert chosen.kept == 2 * inputs
        assert chosen.error == expected_error(x, y, weights, inputs) <= unpruned + tolerance
        assert chosen.unpruned_error == unpruned
        pruned = prune(posterior, chosen.threshold, chosen.group_threshold)
        assert pruned.module.inputs.tolist() == list(range(inputs))
        assert pruned.report[0].kept == chosen.kept


def test_the_table_lists_every_threshold_that_was_tried():
    x, y, weights = problem()
    posterior = dense(MEASURES.expand(2, -1), weights)
    chosen = choose_thresholds(posterior, (x, y), candidates=[-10.0, 10.0, 2.0, -1.0])
    assert [(row.threshold, row.kept) for row in chosen.tried] == [
        (10.0, 12),
        (2.0, 6),
        (-1.0, 4),
        (-10.0, 0),
    ]
    for row in chosen.tried[:3]:
        assert row.error == expected_error(x, y, weights, row.kept // 2)
        assert row.names == ("1.weight",)
    assert chosen.tried[3].error == math.inf
    assert chosen.threshold == {"1.weight": 2.0}
    assert chosen.group_threshold == {}
    assert (
        str(chosen)
        .splitlines()[-1]
        .startswith("chosen: 1.weight 2.000: 6 weights, error 0.0000, before ")
    )
    nothing = choose_thresholds(posterior, (x, y), candidates=[-10.0])
    assert nothing.threshold == {"1.weight": math.inf}
    assert (nothing.kept, nothing.error) == (12, nothing.unpruned_error)


@torch.no_grad()
def deep(prior):
    """Return a posterior that needs inputs 0, 1 and hidden units 0, 1, with data and measures."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))
    model = BayesianNet(net, prior, likelihoods.Gaussian(0.1), 100)
    guide = MeanField(model)
    measures = {
        "0.weight": torch.tensor([-5.0, -4.0, 3.0, 6.0, 6.5]),
        "2.weight": torch.tensor([-7.0, -6.0, -1.0, 0.0]),
    }
    for name, family in guide.families().items():
        if name.endswith("unit"):
            family.log_scale.fill_(-6.0)
            family.loc.normal_()
        elif name.endswith("scale"):
            measure = measures[name.removesuffix(".scale")]
            family.loc.copy_(torch.where(measure > -2, 1e-4, 1.0).view(family.loc.shape))
            family.log_scale.copy_(measure.view(family.loc.shape) / 2 + family.loc.abs().log())
    posterior = Posterior.from_guide(model, guide)
    x = torch.randn(300, 5)
    return posterior, x, posterior.mean_network()(x).squeeze(-1), measures


def test_every_layer_has_its_own_gap():
    posterior, x, y, measures = deep(priors.NormalJeffreys())
    chosen = choose_thresholds(posterior, (x, y), tolerance=1e-2)
    assert chosen.threshold == {}
    for name, measure in measures.items():
        assert measure[1] < chosen.group_threshold[name] < measure[2]
    assert prune(posterior, group_threshold=chosen.group_threshold).architecture == "2-2"
    assert 0 < chosen.error < 1e-2
    assert chosen.unpruned_error == pytest.approx(0, abs=1e-6)
    assert {row.names for row in chosen.tried} == {("0.weight",), ("2.weight",)}


def test_thresholds_of_groups_and_weights_are_chosen_together():
    x, y, _ = problem()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 2))
    model = BayesianNet(net, {"0.weight": priors.NormalJeffreys(), "2.weight": priors.LogUniform()},
                        likelihoods.Categorical(), 100)  # fmt: skip
    posterior = Posterior.from_guide(model, MeanField(model, init_scale=0.3))
    for per_layer in (False, True):
        chosen = choose_thresholds(posterior, (x, y), tolerance=1.0, per_layer=per_layer)
        assert list(chosen.threshold) == ["2.weight"]
        assert list(chosen.group_threshold) == ["0.weight"]
        pruned = prune(posterior, chosen.threshold, chosen.group_threshold)
        assert sum(row.kept for row in pruned.report) == chosen.kept < 24


@pytest.mark.parametrize(
    "bug", ["the error is ignored", "the error before is forgotten", "the mildest wins"]
)
def test_the_chosen_thresholds_reveal_bugs(bug, seeded_bug):
    right, wrong = {
        "the error is ignored": ("row.error <= allowed and ", ""),
        "the error before is forgotten": ("unpruned.error + tolerance", "0.5 + tolerance"),
        "the mildest wins": ("best = min(better", "best = max(better"),
    }[bug]
    seeded_bug(threshold_search, "choose_thresholds", right, wrong)
    x, y, weights = problem()
    posterior = dense(MEASURES.expand(2, -1), weights)
    assert threshold_search.choose_thresholds(posterior, (x, y)).kept != 6


def test_unusable_data_and_posteriors_are_errors():
    x, y, weights = problem()
    posterior = dense(MEASURES.expand(2, -1), weights)
    with pytest.raises(ValueError, match="as many x as y, at least one, got 400 and 3"):
        choose_thresholds(posterior, (x, y[:3]))
    with pytest.raises(ValueError, match="at least one, got 0 and 0"):
        choose_thresholds(posterior, (x[:0], y[:0]))
    with pytest.raises(ValueError, match="tolerance of at least 0, got -1"):
        choose_thresholds(posterior, (x, y), tolerance=-1)
    with pytest.raises(ValueError, match=r"^choose_thresholds: the posterior has no variance"):
        choose_thresholds(
            Posterior.from_guide(posterior.model, PointEstimate(posterior.model)), (x, y)
        )
