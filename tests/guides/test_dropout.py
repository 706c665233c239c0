"""Binary and Gaussian dropout."""

import pytest
import torch

from pyro_bnn import ELBO, priors
from pyro_bnn.distributions import kl_log_uniform
from pyro_bnn.guides import (
    BernoulliDropout,
    GaussianDropout,
)
from tests.guides.networks import X, Y, many_weights, model_with


def test_the_divergence_of_a_fixed_alpha_has_no_gradient():
    model = model_with(priors.LogUniform())
    guide = GaussianDropout(model, alpha=0.5)
    loss = ELBO(model, guide)
    kl = sum(loss.terms(X, Y).kl.values())
    each = kl_log_uniform(torch.tensor(0.5).log()).item()
    assert kl.item() == pytest.approx(
        each * sum(w.numel() for w in model.weights().values()), rel=1e-4
    )
    assert not kl.requires_grad
    assert {name.rsplit(".", 1)[1] for name, _ in guide.named_parameters()} == {"loc"}
    for name, (mean, variance) in guide.moments().items():
        assert torch.allclose(variance, 0.5 * mean**2), name


@pytest.mark.parametrize("cap", [False, True])
@pytest.mark.parametrize(
    ("learn", "shapes"),
    [
        ("weight", {"conv": (3, 2, 1, 2), "up": (3, 2, 2, 1), "fc": (2, 16)}),
        ("unit", {"conv": (3, 1, 1, 1), "up": (1, 2, 1, 1), "fc": (1, 16)}),
        ("layer", {"conv": (1, 1, 1, 1), "up": (1, 1, 1, 1), "fc": (1, 1)}),
    ],
)
def test_alpha_is_learned_per_weight_unit_or_layer(learn, shapes, cap):
    model = model_with(priors.LogUniform())
    guide = GaussianDropout(model, alpha=0.3, learn=learn, cap=cap)
    for name, log_alpha in guide.log_alpha().items():
        assert tuple(log_alpha.shape) == shapes[name.removesuffix(".weight")]
        assert torch.allclose(log_alpha.exp(), torch.tensor(0.3))
    kl = ELBO(model, guide).terms(X, Y).kl
    for name, w in model.weights().items():  # every weight counts, also where alpha is shared
        assert kl[name].item() == pytest.approx(
            w.numel() * kl_log_uniform(torch.tensor(0.3).log()).item(), rel=1e-4
        )
    for family in guide.families().values():
        family.raw_alpha.data.fill_(20.0)
    top = {v.item() for log_alpha in guide.log_alpha().values() for v in log_alpha.exp().flatten()}
    assert (max(top) <= 1) == cap
    sum(kl.values()).backward()
    assert all(family.raw_alpha.grad.abs().min() > 0 for family in guide.families().values())


def test_binary_and_gaussian_dropout_of_one_rate_have_the_same_moments():
    model = model_with(priors.LogUniform())
    p = 0.2
    binary = BernoulliDropout(
        model_with(priors.Normal(), model.network_with(model.weights())), rate=p
    ).moments()
    for name, (mean, variance) in GaussianDropout(model, alpha=p / (1 - p)).moments().items():
        m, v = binary[
            name
        ]  # binary dropout without 1 / (1 - p): of weights that are smaller by that factor
        assert torch.allclose(m / (1 - p), mean, rtol=1e-5)
        assert torch.allclose(v / (1 - p) ** 2, variance, rtol=1e-5)


def test_rates_are_set_by_name_and_the_divergence_is_weight_decay():
    s = 0.7
    model = model_with(priors.Normal(s))
    guide = BernoulliDropout(model, rate={"fc.*": 0.25, "conv.weight": 0.5})
    rates = {"conv.weight": 0.5, "up.weight": 0.0, "fc.weight": 0.25}
    kl = ELBO(model, guide).terms(X, Y).kl
    for name, family in guide.families().items():
        (gradient,) = torch.autograd.grad(kl[name], family.loc)
        assert torch.allclose(gradient, (1 - rates[name]) * family.loc.detach() / s**2, rtol=1e-5)
    with pytest.raises(
        ValueError,
        match=r"the rate for 'fc1.\*' matches no weight; the weights are conv.weight, up.weight",
    ):
        BernoulliDropout(model, rate={"fc1.*": 0.2})
    with pytest.raises(ValueError, match=r"rate in \[0, 1\) for 'conv.weight', got 1.0"):
        BernoulliDropout(model, rate=1.0)


def test_units_drop_together():
    model = model_with(priors.Normal())
    draws = many_weights(model, BernoulliDropout(model, rate=0.5), 200)
    for name, axis in (("conv.weight", 0), ("up.weight", 1), ("fc.weight", 1)):
        alive = (draws[name] != 0).movedim(axis + 1, 1).flatten(2)
        assert ((alive.all(2)) | (~alive).all(2)).all()
        assert 0.2 < alive.float().mean() < 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "alpha above 0"),
        ({"alpha": 1.0, "cap": True}, "below its cap 1"),
        ({"learn": "all"}, "learn to be 'weight', 'unit', 'layer' or None, got 'all'"),
    ],
)
def test_wrong_options_of_gaussian_dropout_are_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        GaussianDropout(model_with(priors.LogUniform()), **options)
