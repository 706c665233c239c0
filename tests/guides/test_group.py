"""The guides of group priors: normal-Jeffreys and horseshoe."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence

from pyro_bnn import ELBO, BayesianNet, likelihoods, priors
from pyro_bnn.distributions import kl_log_uniform
from pyro_bnn.guides import (
    GroupHorseshoe,
    GroupNormalJeffreys,
    MeanField,
)
from tests.guides.networks import (
    GUIDES,
    X,
    Y,
    equal_losses,
    model_with,
    spread,
)


@pytest.mark.filterwarnings("ignore:site")
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("name", ["GroupNormalJeffreys", "GroupHorseshoe", "GroupHorseshoe slab"])
def test_the_group_guides_equal_mean_field(name, local):
    kind, prior = GUIDES[name]
    model = model_with(prior)
    written, general = spread(kind(model)), MeanField(model)
    general.load_state_dict(written.state_dict())
    equal_losses(written, general, model, local)


def test_centred_and_non_centred_group_posteriors_have_the_same_divergence():
    model = model_with({"fc.weight": priors.NormalJeffreys()})
    guide = spread(GroupNormalJeffreys(model))
    kl = ELBO(model, guide).terms(X, Y).kl
    unit, scale = guide.sites.fc.weight.unit, guide.sites.fc.weight.scale
    m, v = scale.loc.detach(), (2 * scale.log_scale.detach()).exp()
    for z in (
        m,
        m + 0.3,
        -2 * m,
    ):  # whatever z is drawn: q(w | z) = N(z mu, z^2 sigma^2), p(w | z) = N(0, z^2)
        q = dist.Normal(z * unit.loc, z.abs() * unit.log_scale.exp())
        centred = kl_divergence(q, dist.Normal(torch.zeros(()), z.abs())).sum()
        assert kl["fc.weight.unit"].item() == pytest.approx(centred.item(), rel=1e-5)
    assert kl["fc.weight.scale"].item() == pytest.approx(
        kl_log_uniform(v.log() - (m**2).log()).sum().item(), rel=1e-5
    )
    # and as it stands in the paper
    mu, sigma2 = unit.loc, (2 * unit.log_scale).exp()
    assert kl["fc.weight.unit"].item() == pytest.approx(
        (0.5 * (sigma2 + mu**2 - 1 - sigma2.log())).sum().item()
    )


@pytest.mark.parametrize("noise", [0.5, dist.HalfNormal(1.0)])
def test_group_guides_choose_families_of_other_sites_by_their_support(noise):
    net = nn.Linear(3, 1)
    for kind, prior in (
        (GroupNormalJeffreys, priors.NormalJeffreys()),
        (GroupHorseshoe, priors.Horseshoe(decomposed=True)),
    ):
        model = BayesianNet(
            net, {"weight": prior, "bias": priors.Normal()}, likelihoods.Gaussian(noise), num_data=4
        )
        guide = kind(model)
        if not isinstance(noise, float):
            assert type(guide.families()["noise"]).__name__ == "LogNormal"
        assert type(guide.families()["bias"]).__name__ == "Gaussian"
        ELBO(model, guide)(torch.randn(4, 3), torch.randn(4))


def test_group_guides_of_models_without_their_scales_are_an_error():
    for prior in (priors.Normal(), priors.Horseshoe(), priors.Horseshoe(decomposed=True)):
        with pytest.raises(
            ValueError, match=r"no real group scales, only .*; use priors.NormalJeffreys"
        ):
            GroupNormalJeffreys(model_with(prior))
    for prior in (priors.Normal(), priors.Horseshoe(), priors.NormalJeffreys()):
        with pytest.raises(ValueError, match=r"no decomposed scales, only .*decomposed=True"):
            GroupHorseshoe(model_with(prior))


def test_the_bound_of_the_standard_deviation_holds_and_keeps_its_initial_value():
    model = model_with(priors.NormalJeffreys())
    guide = GroupNormalJeffreys(model, max_scale={"fc.weight": 0.2})
    scale = guide.distributions()["fc.weight.unit"].base_dist.scale
    assert torch.allclose(scale, torch.tensor(math.exp(-4.5)))
    guide.sites.fc.weight.unit.log_scale.data.fill_(30.0)
    capped = guide.distributions()["fc.weight.unit"].base_dist.scale
    assert torch.allclose(capped, torch.tensor(0.2))
    with pytest.raises(
        ValueError, match=r"max_scale names fc1; the weights with group scales are conv.weight"
    ):
        GroupNormalJeffreys(model, max_scale={"fc1": 0.2})
    with pytest.raises(ValueError, match="not below its cap"):
        GroupNormalJeffreys(model, init_log_variance=-2.0, max_scale={"fc.weight": 0.2})
