"""The steps of the recipes: pruning to a size, to groups of each layer, to a number of weights."""

import pytest
import torch

from pyro_bnn import BayesianNet, Posterior, likelihoods, priors
from pyro_bnn.guides import MeanField, SparseVariationalDropout
from pyro_bnn.metrics import error_of
from pyro_bnn.models import MLP, LeNet5
from pyro_bnn.reproduction import experiment as experiment_module
from pyro_bnn.reproduction import recipes
from pyro_bnn.reproduction.groups import (
    NORMAL_JEFFREYS,
    Stage,
    keep_best_groups,
    prune_by_groups,
    prune_to_size,
)
from tests.reproduction.digits import experiment, grouped


def test_pruning_to_a_size_gives_the_largest_network_of_at_most_that_size():
    torch.manual_seed(0)
    posterior = grouped(MLP(6, (8, 7), 3))  # the groups with the highest numbers are kept first
    for size in (20, 40, 80):
        pruned = prune_to_size(posterior, size)
        inputs, first, second = map(int, pruned.architecture.split("-"))
        assert pruned.dense == inputs * first + first * second + second * 3 <= size
        # one threshold keeps the groups with numbers above it: 6 - t, 8 - t and 7 - t of them
        assert (8 - first, 7 - second) == (6 - inputs, 6 - inputs)
        larger = (inputs + 1) * (first + 1) + (first + 1) * (second + 1) + (second + 1) * 3
        assert larger > size
    assert prune_to_size(posterior, 1000).dense == 6 * 8 + 8 * 7 + 7 * 3


def test_a_posterior_without_groups_cannot_be_pruned_to_a_size():
    model = BayesianNet(MLP(4, (5,), 3), priors.Normal(1.0), likelihoods.Categorical(), num_data=10)
    posterior = Posterior.from_guide(model, MeanField(model))
    with pytest.raises(ValueError, match="prune_to_size: the posterior has no groups"):
        prune_to_size(posterior, 10)


def test_a_size_below_that_of_every_network_is_an_error():
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="no threshold leaves between one and 0 weights"):
        prune_to_size(grouped(MLP(4, (5,), 3)), 0)


def test_the_groups_of_least_noise_are_kept_in_every_layer():
    torch.manual_seed(0)
    posterior = grouped(LeNet5(size=16, filters=(4, 6), hidden=9))
    before, pruned = keep_best_groups(posterior, (2, 3, 3, 5))
    assert pruned.architecture == "2-3-3-5"
    small = before.model.weights()
    assert small["conv1.weight"].shape[0] == 2
    full = posterior.model.weights()
    assert torch.equal(small["conv1.weight"], full["conv1.weight"][-2:])
    assert torch.equal(small["conv2.weight"], full["conv2.weight"][-3:, -2:])


def test_pruning_to_a_count_keeps_the_weights_of_least_noise():
    torch.manual_seed(0)
    model = BayesianNet(
        MLP(6, (8,), 3), priors.LogUniform(), likelihoods.Categorical(), num_data=10
    )
    guide = SparseVariationalDropout(model, init_log_variance=-4.0)
    posterior = Posterior.from_guide(model, guide)
    pruned = recipes.prune_to_count(posterior, 30)
    assert 20 <= sum(layer.kept for layer in pruned.report) <= 30  # dead units take more away
    # all variances are equal, so that log alpha orders the weights by their absolute means
    means = torch.cat([mean.flatten() for mean, _ in posterior.moments().values()])
    least = means.abs().sort(descending=True).values[29]
    for name, parameter in pruned.module.named_parameters():
        if "weight" in name:
            kept = parameter[parameter != 0].detach().abs()
            assert (kept >= least).all()


def test_a_recipe_by_groups_ends_with_small_networks_that_classify_digits(tmp_path, monkeypatch):
    fit = experiment_module.fit
    monkeypatch.setattr(  # compiling takes longer than fits this short
        experiment_module,
        "fit",
        lambda *args, **options: fit(*args, **options | {"compile": False}),
    )
    torch.manual_seed(0)
    setup = experiment(tmp_path)
    teacher = recipes.pretrained(setup, MLP(64, (20, 10), 10), {"3.weight": 0.1}, epochs=20)
    distillation = setup.distillation_data(teacher)
    stages = (Stage(8, 900, fine_tune_epochs=10), Stage(4, 700, fine_tune_epochs=10))
    networks = list(prune_by_groups(setup, distillation, NORMAL_JEFFREYS, stages))
    for network, size in zip(networks, (900, 700), strict=True):
        assert network.dense <= size
        assert error_of(network.module, setup.data.test) < 0.25  # chance is 0.9
    # earlier results are found again under these names
    names = {path.name.partition(".")[0].partition("-tuned-")[0] for path in tmp_path.iterdir()}
    assert {"1-dropout", "2-groups", "3-groups-left"} <= names
    assert (tmp_path / "3-tuned.json").exists()
    assert (tmp_path / "4-tuned.json").exists()
