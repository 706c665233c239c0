"""Measures of groups: closed forms for every prior with groups, and whole groups are pruned."""

import pytest
import torch
from torch import nn

from pyro_bnn import BayesianNet, Posterior, fit, likelihoods, priors
from pyro_bnn.compression import EmptyNetworkError, group_measures, keep_masks, prune
from pyro_bnn.guides import GroupHorseshoe, GroupNormalJeffreys, MeanField
from tests.compression.pruning.posteriors import (
    network_of,
    same_function,
    scatter,
    two_inputs_of_eight,
)


def log_normal_measure(family):
    return (2 * family.log_scale).exp() - family.loc


@pytest.mark.parametrize(
    "kind", ["jeffreys", "jeffreys page", "horseshoe", "decomposed", "decomposed page"]
)
def test_groups_are_pruned_as_whole_rows_and_columns(kind):
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
        with pytest.raises(EmptyNetworkError, match=r"no weight remains|no unit of this layer"):
            prune(posterior, group_threshold=threshold)
        return
    pruned = prune(posterior, group_threshold=threshold)
    assert same_function(pruned, network_of(posterior, masks), torch.randn(7, 2, 4, 4))
    features = groups["2.weight"][0].view(4, 4) & groups["0.weight"].view(4, 1)
    assert pruned.architecture == f"{int(features.any(1).sum())}-{int(features.sum())}"


def test_groups_without_influence_are_pruned():
    x, y = two_inputs_of_eight()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 1))
    model = BayesianNet(
        net, {"0.weight": priors.NormalJeffreys()}, likelihoods.Gaussian(0.3), len(x)
    )
    guide = GroupNormalJeffreys(model, init_log_variance=-4.0)
    result = fit(model, guide, (x, y), epochs=90, batch_size=64, learning_rate=0.02, progress=False)
    keep = prune(result.posterior, group_threshold=0.0).groups["0.weight"][0]
    assert keep[[0, 3]].all()
    assert int(keep.sum()) <= 3


def test_an_unknown_measure_of_groups_is_an_error():
    model = BayesianNet(nn.Linear(2, 2), priors.NormalJeffreys(), likelihoods.Categorical(), 5)
    posterior = Posterior.from_guide(model, MeanField(model))
    with pytest.raises(ValueError, match="group_measures: expected 'scale' or 'weights', got 'z'"):
        group_measures(posterior, "z")
