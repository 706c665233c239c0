"""What holds for all priors: initial values, errors, dtypes and devices."""

import copy
import math

import pytest
import torch
from torch import nn

from pyro_bnn import BayesianNet, likelihoods, priors
from pyro_bnn.distributions import ImproperPriorError
from pyro_bnn.guides import MeanField
from tests.priors.draws import draw


@pytest.mark.parametrize(
    "prior",
    [
        priors.Normal(),
        priors.Horseshoe(1e-3),
        priors.Horseshoe(1e-3, decomposed=True),
        priors.Horseshoe(slab=0.3),
    ],
)
def test_the_initial_weight_is_the_weight_of_the_network(prior):
    net = nn.Linear(4, 3)
    model = BayesianNet(net, prior, likelihoods.Gaussian(1.0), num_data=1)
    assert torch.allclose(model.weights()["weight"], net.weight, rtol=1e-4)


@pytest.mark.parametrize("prior", [priors.LogUniform(), priors.NormalJeffreys()])
def test_improper_priors_raise_and_name_proper_relatives(prior):
    with pytest.raises(ImproperPriorError, match=r"improper[\s\S]*Horseshoe"):
        draw(prior)
    model = BayesianNet(nn.Linear(3, 1), prior, likelihoods.Gaussian(1.0), num_data=1)
    with pytest.raises(ImproperPriorError, match=r"improper[\s\S]*Horseshoe"):
        model(torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.Normal(-1.0), "Normal: expected scale above zero, got -1.0"),
        (lambda: priors.Normal(math.nan), "Normal: expected scale above zero"),
        (lambda: priors.Normal(torch.tensor([1.0, 0.0])), "Normal: expected scale above zero"),
        (lambda: priors.LearnedNormal(0.0), "LearnedNormal: expected scale above zero"),
        (lambda: priors.Horseshoe(-1.0), "Horseshoe: expected global_scale above zero"),
        (lambda: priors.Horseshoe(slab=-1.0), "Horseshoe: expected slab above zero"),
        (
            lambda: priors.GaussianMixture([1.0, -1.0]),
            "GaussianMixture: expected scales above zero",
        ),
        (
            lambda: priors.GaussianMixture([1.0, 2.0], probs=[0.0, 1.0]),
            "GaussianMixture: expected probs above zero",
        ),
        (lambda: priors.GaussianMixture([1.0, 2.0], probs=[1.0]), "2 scales, 1 probs and 2 locs"),
        (lambda: priors.GaussianMixture([1.0], locs=[1.0, 2.0]), "1 scales, 1 probs and 2 locs"),
    ],
)
def test_scales_and_probabilities_must_be_positive(make, message):
    with pytest.raises(ValueError, match=message):
        make()


ALL = {
    "Normal": priors.Normal(0.5),
    "LearnedNormal": priors.LearnedNormal(0.5),
    "Elementwise": priors.Elementwise(torch.distributions.StudentT(3.0, 0.0, 0.5)),
    "GaussianMixture": priors.GaussianMixture([0.5, 1.0]),
    "Horseshoe": priors.Horseshoe(0.5),
    "Horseshoe decomposed": priors.Horseshoe(0.5, slab=2.0, decomposed=True),
}


@pytest.mark.parametrize("prior", ALL.values(), ids=ALL)
def test_priors_follow_to_double_precision_and_can_be_copied(prior):
    sites = draw(copy.deepcopy(prior).double(), [2, 3], 1)
    assert {value.dtype for value in sites.values()} == {torch.float64}
    other = copy.deepcopy(prior)
    other.load_state_dict(prior.state_dict())
    torch.manual_seed(2)
    first = draw(prior, [2, 3], 1)
    torch.manual_seed(2)
    second = draw(other, [2, 3], 1)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("prior", [*ALL.values(), priors.LogUniform(), priors.NormalJeffreys()])
def test_positive_scales_get_log_normal_posteriors(prior):
    model = BayesianNet(nn.Linear(3, 1), prior, likelihoods.Gaussian(1.0), num_data=1)
    for name, family in MeanField(model).families().items():
        positive = "scale" in name and not isinstance(prior, priors.NormalJeffreys)
        assert type(family).__name__ == ("LogNormal" if positive else "Gaussian")


def test_priors_can_be_built_on_the_meta_device():
    with torch.device("meta"):
        made = [
            priors.Normal(0.5),
            priors.LearnedNormal(0.5),
            priors.LogUniform(),
            priors.NormalJeffreys(),
            priors.Horseshoe(0.5, slab=1.0, decomposed=True),
            priors.GaussianMixture([0.5, 1.0]),
        ]
        model = BayesianNet(
            nn.Linear(3, 2),
            {"weight": made[0], "bias": made[1]},
            likelihoods.Categorical(),
            num_data=5,
        )
    assert all(
        buffer.is_meta for prior in made for buffer in (*prior.buffers(), *prior.parameters())
    )
    assert all(value.is_meta for value in model.weights().values())
