"""The handler: the sites that it defers, and training and prediction under it."""

import copy
import functools
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import nn

from pyro_bnn import (
    ELBO,
    BayesianNet,
    fit,
    flipout,
    guides,
    likelihoods,
    local_reparameterization,
    priors,
)
from pyro_bnn.models import LeNet300100
from pyro_bnn.variational.reparameterization import (
    DeferredSample,
    ReparameterizationWarning,
)
from tests.variational.deferred_weights import (
    RandomShapes,
    normal,
    randn,
    sample,
)


def test_hidden_sites_are_sampled_as_usual_and_must_exist():
    distributions = {"a": normal(2, 2), "b": normal(2, 2)}
    sites = sample(distributions, hide=["a"])
    assert type(sites["a"]) is torch.Tensor
    assert isinstance(sites["b"], DeferredSample)
    with pytest.raises(ValueError, match="hide names 'c', which the guide does not sample"):
        sample(distributions, hide=["a", "c"])
    with pytest.raises(ValueError, match="collection of names"):
        sample(distributions, hide="weight")


def test_sites_that_are_not_weights_are_sampled_as_usual():
    def guide():
        scalar = pyro.sample("scalar", dist.Normal(0.0, 1.0))
        positive = pyro.sample("positive", dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
        seen = pyro.sample("seen", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=torch.ones(3))
        with pyro.plate("data", 4):
            local = pyro.sample("local", dist.Normal(torch.zeros(4, 2), 1.0).to_event(1))
        return scalar, positive, seen, local

    assert all(type(value) is torch.Tensor for value in local_reparameterization(guide)())


def training_step(guide, model, wrap):
    loss = ELBO(model, wrap(guide))
    x, y = torch.randn(7, 64), torch.randint(10, (7,))
    with RandomShapes() as random:
        loss(x, y).backward()
    return set(random.shapes)


@pytest.mark.parametrize(
    ("prior", "make"),
    [
        (priors.LogUniform(), guides.SparseVariationalDropout),
        (priors.LogUniform(), guides.GaussianDropout),
        (priors.Normal(), guides.MeanField),
        (priors.Normal(), guides.BernoulliDropout),
        (priors.NormalJeffreys(), guides.GroupNormalJeffreys),
        (priors.Horseshoe(1e-2, decomposed=True), guides.GroupHorseshoe),
        (priors.Horseshoe(slab=1.0), guides.MeanField),
    ],
)
def test_a_training_step_draws_no_random_number_of_a_weights_shape(prior, make):
    torch.manual_seed(0)
    model = BayesianNet(LeNet300100(inputs=64), prior, likelihoods.Categorical(), num_data=100)
    guide = make(model)
    weights = {(300, 64), (100, 300), (10, 100)}
    for options in ({}, {"per_example_scales": True}):
        with warnings.catch_warnings():
            # the scales under a slab cannot be drawn for each example
            if getattr(prior, "slab", None) is not None:
                warnings.simplefilter("ignore", ReparameterizationWarning)
            wrap = functools.partial(local_reparameterization, **options)
            shapes = training_step(guide, model, wrap)
        assert not set(map(math.prod, shapes)) & set(map(math.prod, weights))
        outputs = {(7, 300), (7, 100), (7, 10)}
        if make is guides.BernoulliDropout:
            outputs = {(7, 64), (7, 300), (7, 100)}
        assert outputs <= shapes
    if make is not guides.BernoulliDropout:  # without the handler, weights are drawn and recorded
        assert weights <= training_step(guide, model, lambda g: g)


def gradients(loss, x, y, draws):
    rows = []
    parameters = [p for p in loss.parameters() if p.requires_grad]
    for _ in range(draws):
        gradient = torch.autograd.grad(loss(x, y), parameters)
        rows.append(torch.cat([g.flatten() for g in gradient]))
    return torch.stack(rows)


@pytest.mark.parametrize("wrap", [local_reparameterization, flipout])
def test_the_gradient_is_unbiased_and_less_noisy(wrap):
    # 5 standard errors on 107 numbers
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    model = BayesianNet(net, {"*": priors.Normal(1.0)}, likelihoods.Categorical(), num_data=40)
    guide = guides.MeanField(model, init_scale=0.3)
    x, y = torch.randn(40, 4), torch.randint(2, (40,))
    drawn = gradients(ELBO(model, guide), x, y, 250)
    local = gradients(ELBO(model, wrap(guide)), x, y, 250)
    spread = ((drawn.var(0) + local.var(0)) / 250).sqrt()
    z = (drawn.mean(0) - local.mean(0)) / spread.clamp_min(1e-12)
    assert z.abs().max() < 5
    assert local.var(0).sum() < 0.8 * drawn.var(0).sum()


def test_the_expected_loss_is_that_of_drawn_weights_with_scales_per_example():
    model = BayesianNet(
        nn.Linear(6, 3), priors.NormalJeffreys(), likelihoods.Categorical(), num_data=20
    )
    guide = guides.MeanField(model, init_scale=0.4)
    x, y = torch.randn(20, 6), torch.randint(3, (20,))
    with torch.no_grad():
        losses = [
            torch.stack([ELBO(model, g)(x, y) for _ in range(200)])
            for g in (
                guide,
                local_reparameterization(guide),
                local_reparameterization(guide, per_example_scales=True),
            )
        ]
    for a, b in ((0, 1), (0, 2)):
        error = ((losses[a].var() + losses[b].var()) / 200).sqrt()
        assert (losses[a].mean() - losses[b].mean()).abs() < 5 * error


def test_no_function_of_torch_is_patched():
    before = (torch.nn.functional.linear, torch.conv2d, torch.matmul, torch.Tensor.__matmul__)

    def guide():
        inside = (torch.nn.functional.linear, torch.conv2d, torch.matmul, torch.Tensor.__matmul__)
        assert all(a is b for a, b in zip(before, inside, strict=True))
        return pyro.sample("w", normal(4, 3).to_event(2))

    F.linear(randn(2, 3), local_reparameterization(guide)())
    after = (torch.nn.functional.linear, torch.conv2d, torch.matmul, torch.Tensor.__matmul__)
    assert all(a is b for a, b in zip(before, after, strict=True))


def test_outside_the_handler_the_guide_samples_as_usual():
    model = BayesianNet(
        nn.Linear(3, 2), {"*": priors.NormalJeffreys()}, likelihoods.Gaussian(0.1), num_data=5
    )
    guide = guides.MeanField(model)
    wrapped = local_reparameterization(guide, per_example_scales=True)
    ELBO(model, wrapped)(torch.randn(5, 3), torch.randn(5, 2))
    values = [node["value"] for _, node in poutine.trace(guide).get_trace().iter_stochastic_nodes()]
    assert len(values) == 4
    assert all(type(value) is torch.Tensor for value in values)
    inside = [
        node["value"] for _, node in poutine.trace(wrapped).get_trace().iter_stochastic_nodes()
    ]
    assert all(isinstance(value, DeferredSample) for value in inside)


def test_an_error_in_the_guide_removes_the_handler():
    def guide():
        raise ArithmeticError("in the guide")

    with pytest.raises(ArithmeticError, match="in the guide"):
        local_reparameterization(guide)()
    assert type(pyro.sample("w", normal(4, 3).to_event(2))) is torch.Tensor


def test_predictions_never_defer(monkeypatch):
    model = BayesianNet(
        nn.Linear(3, 2), priors.NormalJeffreys(), likelihoods.Categorical(), num_data=20
    )
    data = (torch.randn(20, 3), torch.randint(2, (20,)))
    posterior = fit(
        model, guides.MeanField(model), data, epochs=1, batch_size=10, progress=False
    ).posterior

    def refuse(*args):
        raise AssertionError("a weight was deferred")

    monkeypatch.setattr(DeferredSample, "create", staticmethod(refuse))
    assert posterior.predict(data[0], draws=3).mean.isfinite().all()
    assert posterior.sample(2)["weight"].shape == (2, 2, 3)


def test_a_copy_has_parameters_of_its_own_and_hides_the_same_sites():
    model = BayesianNet(nn.Linear(3, 2), priors.Normal(), likelihoods.Gaussian(0.1), num_data=5)
    guide = guides.MeanField(model)
    wrapped = local_reparameterization(guide, hide=["weight"])
    assert {id(p) for p in wrapped.parameters()} == {id(p) for p in guide.parameters()}
    other = copy.deepcopy(wrapped)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    assert not {id(p) for p in other.parameters()} & {id(p) for p in guide.parameters()}
    assert type(other()["weight"]) is torch.Tensor  # it hides what the original hides
    wrapped.load_state_dict(other.state_dict())
    assert list(wrapped.state_dict()) == [f"guide.{name}" for name in guide.state_dict()]
    for p, q in zip(guide.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert wrapped.double()()["weight"].dtype == torch.float64
