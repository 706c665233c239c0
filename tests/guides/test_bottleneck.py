"""The variational information bottleneck: divergence, noise, and the units that it prunes."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from pyro_bnn import (
    ELBO,
    BayesianNet,
    Posterior,
    fit,
    likelihoods,
    linear_warmup,
    local_reparameterization,
    priors,
)
from pyro_bnn.compression import prune
from pyro_bnn.datasets import digits
from pyro_bnn.distributions import ImproperPriorError
from pyro_bnn.guides import InformationBottleneck, MeanField
from pyro_bnn.runs.registry import build
from pyro_bnn.runs.settings import Settings
from tests.guides.group_networks import (
    X,
    Y,
    data_with_useless_inputs,
    model_of,
)


def spread(guide):
    torch.manual_seed(2)
    with torch.no_grad():
        for name, p in guide.named_parameters():
            p.add_((1.0 if "log_scale" in name else 0.3) * torch.randn_like(p))
            if "log_scale" in name:
                p.add_(3.0)
    return guide


@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_the_divergence_is_published_and_units_have_none(weight):
    model = model_of(
        {
            "0.weight": priors.InformationBottleneck(weight),
            "3.weight": priors.InformationBottleneck(),
        }
    )
    guide = spread(InformationBottleneck(model))
    kl = ELBO(model, guide).terms(X, Y).kl
    for name, factor in (("0.weight", weight), ("3.weight", 1.0)):
        family = guide.families()[f"{name}.scale"]
        m, v = family.loc.double(), (2 * family.log_scale.double()).exp()
        assert kl[f"{name}.scale"].item() == pytest.approx(
            factor * 0.5 * (1 + m**2 / v).log().sum().item(), rel=1e-5
        )
        assert kl[f"{name}.unit"].item() == 0
        assert torch.allclose(guide.log_alpha()[name].double(), v.log() - (m**2).log(), atol=1e-3)


def test_the_posterior_starts_at_the_network_with_little_noise():
    model = model_of(priors.InformationBottleneck())
    guide = InformationBottleneck(model)
    net = model.network_with(model.weights())
    for name, (mean, variance) in guide.moments().items():
        assert torch.allclose(mean, net.get_parameter(name))
        assert torch.allclose(variance, math.exp(-9) * mean.square(), rtol=1e-4)
    assert guide.families()["3.weight.scale"].loc.shape == (1, 12)
    assert guide.families()["0.weight.scale"].loc.shape == (3, 1, 1, 1)


@pytest.mark.filterwarnings("ignore:site")
def test_every_example_has_its_own_noise():
    # the same image 4,000 times; mean, deviation and correlation within five standard errors
    model = model_of(priors.InformationBottleneck(), n=4000)
    guide = spread(InformationBottleneck(model))
    families = guide.families()
    x = X[:1].expand(4000, -1, -1, -1)
    outputs = {}

    def keep(module, inputs, output):
        outputs["z"] = output.detach()

    loss = ELBO(model, local_reparameterization(guide, per_example_scales=True))
    conv = model.net[0]
    conv.register_forward_hook(keep)
    loss(x, torch.zeros(4000, dtype=torch.long))
    family, unit = families["0.weight.scale"], families["0.weight.unit"].loc.detach()
    mean, deviation = family.loc.detach().flatten(), family.log_scale.detach().exp().flatten()
    plain = nn.functional.conv2d(x[:1], unit)
    drawn = outputs["z"] - conv.bias.view(1, -1, 1, 1)
    # one number per example and channel, the same at every position: the noise multiplies channels
    z = drawn / plain
    assert torch.allclose(z[:, :, :1, :1].expand_as(z), z, rtol=1e-2, atol=1e-2)
    z = z[:, :, 0, 0]
    assert ((z.mean(0) - mean).abs() < 5 * deviation / math.sqrt(4000)).all()
    assert ((z.std(0) / deviation - 1).abs() < 5 / math.sqrt(8000)).all()
    assert (torch.corrcoef(z.T) - torch.eye(3)).abs().max() < 5 / math.sqrt(4000)


def test_units_with_information_remain_of_a_trained_network():
    x, y = data_with_useless_inputs()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02, weight_decay=1e-3)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    model = BayesianNet(net, priors.InformationBottleneck(), likelihoods.Categorical(), len(x))
    guide = local_reparameterization(
        InformationBottleneck(model, init_log_variance=-4.0), per_example_scales=True
    )
    result = fit(
        model,
        guide,
        (x, y),
        epochs=250,
        learning_rate=lambda e: 0.05 * (1 - e / 250),
        kl_weight=linear_warmup(0, 60),
        progress=False,
    )
    pruned = prune(result.posterior, group_threshold=-2.0)
    assert torch.equal(pruned.groups["0.weight"].flatten(), torch.arange(8) < 2)
    assert pruned.groups["2.weight"].sum() < 16
    with torch.no_grad():
        assert (pruned.module(x).argmax(1) == y).float().mean() > 0.95


def test_mean_field_supports_the_prior_of_the_bottleneck():
    model = model_of(priors.InformationBottleneck())
    kl = ELBO(model, MeanField(model)).terms(X, Y).kl
    # under a flat prior the divergence of a Gaussian unit is minus its entropy
    assert kl["3.weight.unit"].item() == pytest.approx(
        -24 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.01))
    )


@pytest.mark.parametrize(
    ("prior", "guide"),
    [
        ("ard", "sparse-vd"),
        ("ard", "mean-field"),
        ("group-ard", "mean-field"),
        ("truncated-log-uniform", "structured-pruning"),
        ("information-bottleneck", "bottleneck"),
    ],
)
def test_the_registry_builds_the_methods(prior, guide):
    data = digits()
    settings = Settings("mlp", prior=prior, guide=guide, hidden="7")
    model, built = build(settings, data)
    assert ELBO(model, built)(data.x_train[:50], data.y_train[:50]).isfinite()
    assert Posterior.from_guide(model, built).predict(data.x_test[:5], draws=2).mean.shape == (
        5,
        10,
    )


def test_the_registry_fits_networks_to_images():
    flat = digits()
    square = replace(flat, x_train=torch.zeros(1437, 3, 32, 32), x_test=torch.zeros(360, 3, 32, 32))
    with torch.device("meta"):
        net = build(Settings("lenet-5", prior="ard"), square)[0]
    assert net.weights()["conv1.weight"].shape == (20, 3, 5, 5)
    with pytest.raises(
        ValueError, match=r"vgg: expected images .* the inputs of digits are \(64,\)"
    ):
        build(Settings("vgg", prior="normal-jeffreys", guide="group"), flat)


def test_models_without_real_group_scales_are_an_error():
    with pytest.raises(
        ValueError, match=r"no real group scales, only .*; use priors.InformationBottleneck\(\)"
    ):
        InformationBottleneck(model_of(priors.Normal()))
    with pytest.raises(ValueError, match=r"no real group scales"):
        InformationBottleneck(model_of(priors.Horseshoe()))
    with pytest.raises(ValueError, match="weight above zero, got 0"):
        priors.InformationBottleneck(0.0)
    with pytest.raises(ImproperPriorError, match="neither a density nor draws"):
        model_of(priors.InformationBottleneck())(X)
