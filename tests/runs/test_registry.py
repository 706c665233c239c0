"""Names, and the programs that they build."""

import pytest

from pyro_bnn import datasets, guides, priors
from pyro_bnn.runs.names import DataName, GuideName, ModelName, PriorName
from pyro_bnn.runs.registry import build, read_data, require_used_options
from pyro_bnn.runs.settings import Settings


def test_names_are_strings_and_their_case_does_not_matter():
    assert PriorName("log-uniform") == "log-uniform"
    assert DataName("BOSTONhousing") == "bostonHousing"
    assert f"{ModelName.LENET_5}" == "lenet-5"


def test_an_unknown_name_is_an_error_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"unknown guide 'meanfield'; did you mean mean-field\?"):
        GuideName("meanfield")
    with pytest.raises(ValueError, match=r"unknown prior 'zzz'\. Expected one of log-uniform, "):
        PriorName("zzz")


def test_every_uci_set_has_a_name():
    names = set(DataName)
    assert set(datasets.UCI_SETS) <= names


def test_random_labels_differ_with_the_split():
    first, second = (read_data("digits-random", split, None) for split in (1, 2))
    assert (first.y_train != second.y_train).any()
    assert (first.y_test == second.y_test).all()


def test_settings_become_a_prior_and_a_guide():
    settings = Settings("mlp", "horseshoe", "group-horseshoe", hidden="7,6", prior_scale=0.5)
    model, guide = build(settings, datasets.digits())
    assert isinstance(guide, guides.GroupHorseshoe)
    shapes = [tuple(model.weights()[f"{layer}.weight"].shape) for layer in (1, 3, 5)]
    assert shapes == [(7, 64), (6, 7), (10, 6)]
    prior = model.prior_of(model.names[0])
    assert isinstance(prior, priors.Horseshoe)
    assert prior.decomposed
    assert float(prior.global_scale) == 0.5


def test_equal_seeds_give_equal_first_weights():
    data = datasets.digits()
    weights = []
    for seed in (0, 0, 1):
        model, _ = build(Settings("mlp", "normal", "mean-field", seed=seed), data)
        weights.append(model.weights()[model.names[0]])
    first, again, other = weights
    assert (first == again).all()
    assert (first != other).any()


def test_an_option_that_prior_and_guide_do_not_use_is_an_error():
    require_used_options(Settings("mlp", prior="normal", guide="mean-field", prior_scale=0.1))
    with pytest.raises(ValueError, match="--prior-scale: the prior ard does not use it, only norm"):
        require_used_options(Settings("mlp", prior="ard", prior_scale=0.1))
    with pytest.raises(ValueError, match="--no-tricks: the guide group does not use it, only spar"):
        require_used_options(Settings("mlp", guide="group", tricks=False))
