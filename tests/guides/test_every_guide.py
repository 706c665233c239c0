"""What holds for every guide: its start, its state, its moments, and that it can be trained.

A comparison at 5 standard errors fails falsely with a probability of 6e-7 for each number compared.
"""

import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_bnn import ELBO, BayesianNet, likelihoods, priors
from pyro_bnn.guides import (
    BernoulliDropout,
    GaussianDropout,
    PointEstimate,
    SparseVariationalDropout,
)
from tests.guides.networks import (
    GUIDES,
    Net,
    X,
    Y,
    every_guide,
    many_weights,
    model_with,
    spread,
)


@every_guide
def test_a_guide_is_built_without_data_and_does_not_own_the_model(kind, prior):
    model = model_with(prior)
    guide = kind(model)
    parameters = dict(guide.named_parameters())
    assert parameters
    assert all(
        isinstance(p, nn.Parameter) and p.is_leaf and p.requires_grad for p in parameters.values()
    )
    assert not any(isinstance(module, BayesianNet | Net) for module in guide.modules())
    addresses = {p.data_ptr() for p in parameters.values()}
    assert not addresses & {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    before = {name: p.detach().clone() for name, p in parameters.items()}
    ELBO(model, guide)(X, Y).backward()
    assert {name for name, _ in guide.named_parameters()} == set(before)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters.values())
    assert not list(pyro.get_param_store().keys())


@every_guide
def test_means_start_at_the_weights_of_the_network(kind, prior):
    net = Net()
    model = model_with(prior, net)
    for name, (mean, _) in kind(model).moments().items():
        weight = net.get_parameter(name)
        keep = 0.5 if kind is BernoulliDropout else 1.0
        assert mean.shape == weight.shape
        assert torch.allclose(mean, keep * weight, rtol=2e-2), (
            name
        )  # log-normal scales: mean over median, e^(v/2)


@every_guide
def test_state_copies_and_dtypes_keep_the_distribution(kind, prior):
    model = model_with(prior)
    guide, other = spread(kind(model)), kind(model)
    other.load_state_dict(guide.state_dict())
    copied = copy.deepcopy(guide)
    for twin in (other, copied):
        torch.manual_seed(1)
        first = poutine.trace(guide).get_trace()
        torch.manual_seed(1)
        second = poutine.trace(twin).get_trace()
        assert all(
            torch.equal(first.nodes[n]["value"], second.nodes[n]["value"])
            for n in first.stochastic_nodes
        )
        pyro.clear_param_store()
    next(copied.parameters()).data.add_(1)
    assert not torch.equal(next(copied.parameters()), next(guide.parameters()))
    double = copy.deepcopy(guide).to(torch.float64)
    moments = double.moments()
    assert {t.dtype for pair in moments.values() for t in pair} == {torch.float64}
    for name, (mean, variance) in guide.moments().items():
        assert torch.allclose(moments[name][0].float(), mean, rtol=1e-4, atol=1e-6)
        assert torch.allclose(moments[name][1].float(), variance, rtol=1e-3, atol=1e-6)
    loss = ELBO(copy.deepcopy(model).double(), double)
    assert loss(X.double(), Y).dtype == torch.float64


@every_guide
def test_a_guide_can_be_made_on_the_meta_device(kind, prior):
    with torch.device("meta"):
        guide = kind(model_with(copy.deepcopy(prior).to("meta")))
    assert all(p.is_meta for p in guide.parameters())
    shapes = {name: p.shape for name, p in kind(model_with(prior)).named_parameters()}
    assert {name: p.shape for name, p in guide.named_parameters()} == shapes


@every_guide
def test_moments_are_those_of_the_weights_that_the_model_makes(kind, prior):
    model = model_with(prior)
    guide = spread(kind(model))
    if kind is SparseVariationalDropout:
        assert any(
            (log_alpha >= 3).any() for log_alpha in guide.log_alpha().values()
        )  # some means are masked
    draws = many_weights(model, guide, 20_000)
    moments = guide.moments()
    assert list(moments) == model.names
    for name, (mean, variance) in moments.items():
        w = draws[name].double()
        error = w.std(0) / math.sqrt(len(w))
        assert ((w.mean(0) - mean).abs() <= 5 * error + 1e-6).all(), name
        square = (w - mean) ** 2
        assert (
            (square.mean(0) - variance).abs() <= 5 * square.std(0) / math.sqrt(len(w)) + 1e-6
        ).all(), name


@pytest.mark.parametrize("kind", [BernoulliDropout, GaussianDropout, PointEstimate])
@pytest.mark.parametrize("prior", [priors.Horseshoe(), priors.Horseshoe(decomposed=True)])
def test_positive_sites_are_an_error_for_guides_of_real_sites(kind, prior):
    with pytest.raises(
        ValueError, match=rf"{kind.__name__}: site 'conv.weight.global_scale.*support"
    ):
        kind(model_with(prior))
    noisy = BayesianNet(
        nn.Linear(2, 1), priors.Normal(), likelihoods.Gaussian(dist.HalfNormal(1.0)), num_data=1
    )
    with pytest.raises(ValueError, match="site 'noise'"):
        kind(noisy)


def test_the_closed_divergences_of_all_guides_agree_with_monte_carlo():
    # E log q - log p over draws of the guide, for each site with a density
    for name in (
        "MeanField",
        "MeanField horseshoe",
        "MeanField decomposed slab",
        "GaussianDropout",
        "GroupNormalJeffreys",
    ):
        kind, prior = GUIDES[name]
        model = model_with({"fc.weight": prior})
        guide = spread(kind(model))
        kl = ELBO(model, guide).terms(X, Y).kl
        trace = poutine.trace(
            poutine.replay(model, trace=poutine.trace(guide).get_trace())
        ).get_trace(X, Y)
        for site, q in guide.distributions().items():
            p = trace.nodes[site]["fn"]
            w = q.sample((20_000,))
            ratio = (q.log_prob(w) - p.log_prob(w)).detach()
            error = float(ratio.double().std()) / math.sqrt(len(ratio))
            assert abs(float(ratio.double().mean()) - kl[site].item()) < 5 * error + 1e-4, (
                name,
                site,
            )
        pyro.clear_param_store()


def test_all_guides_can_be_trained():
    for kind, prior in GUIDES.values():
        model = model_with({"fc.weight": prior})
        guide = kind(model)
        loss = ELBO(model, guide)
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
        history = []
        for _ in range(15):
            optimizer.zero_grad()
            value = loss(X, Y)
            value.backward()
            optimizer.step()
            history.append(value.item())
        assert np.mean(history[-4:]) < np.mean(history[:4])
