"""Structured Bayesian pruning: its posterior, its divergence, and the units that it prunes."""

import pytest
import torch
from pyro import poutine
from torch import nn
from torch.distributions import kl_divergence

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
from pyro_bnn.distributions import (
    Flat,
    ImproperPriorError,
    Point,
    TruncatedLogNormal,
    TruncatedLogUniform,
)
from pyro_bnn.guides import MeanField, StructuredPruning
from tests.guides.group_networks import (
    X,
    Y,
    accuracy,
    data_with_useless_inputs,
    model_of,
    trained_network,
)

LOW, HIGH = -20.0, 0.0


def test_a_weight_is_a_point_times_the_noise_of_its_group():
    model = model_of(priors.TruncatedLogUniform())
    guide = StructuredPruning(model)
    torch.manual_seed(3)
    trace = poutine.trace(guide).get_trace()
    weights = poutine.replay(model.weights, trace=trace)()
    net = model.network_with(model.weights())
    for name, shape in (("0.weight", (3, 1, 1, 1)), ("3.weight", (1, 12))):
        z = trace.nodes[f"{name}.scale"]["value"]
        assert z.shape == shape
        assert torch.allclose(weights[name], net.get_parameter(name) * z)
        mean, variance = guide.moments()[name]
        q = TruncatedLogNormal(torch.tensor(0.0), torch.tensor(0.0067))
        assert torch.allclose(mean, net.get_parameter(name) * q.mean)
        assert torch.allclose(variance, net.get_parameter(name).square() * q.variance)
    assert {name.rsplit(".", 1)[1] for name, _ in guide.named_parameters()} == {"loc", "log_scale"}


@pytest.mark.parametrize("s", [None, 0.7])
def test_the_units_have_no_divergence_or_weight_decay(s):
    model = model_of(priors.TruncatedLogUniform(unit_scale=s))
    guide = StructuredPruning(model)
    kl = ELBO(model, guide).terms(X, Y).kl
    for name in ("0.weight", "3.weight"):
        unit = guide.families()[f"{name}.unit"]
        if s is None:
            assert kl[f"{name}.unit"].item() == 0
        else:
            (gradient,) = torch.autograd.grad(kl[f"{name}.unit"], unit.loc)
            assert torch.allclose(gradient, unit.loc.detach() / s**2)
        z = guide.distributions()[f"{name}.scale"].base_dist
        expected = kl_divergence(z, TruncatedLogUniform(LOW, HIGH)).sum()
        assert kl[f"{name}.scale"].item() == pytest.approx(expected.item(), rel=1e-4)


def point_prior(name, shape, group_dim):
    import pyro

    return pyro.sample(name, Flat().expand(shape).to_event(len(shape)))


def test_points_have_no_noise_under_local_reparameterization():
    net = nn.Linear(5, 3)
    x, y = torch.randn(4, 5), torch.arange(4) % 3
    model = BayesianNet(net, {"weight": point_prior}, likelihoods.Categorical(), 4)

    def guide(*args):
        import pyro

        pyro.sample("weight", Point(net.weight.detach()).to_event(2))

    plain, local = (ELBO(model, g)(x, y) for g in (guide, local_reparameterization(guide)))
    assert plain.item() == pytest.approx(local.item(), rel=1e-6)
    assert plain.item() == pytest.approx(
        nn.functional.cross_entropy(net(x), y, reduction="sum").item(), rel=1e-5
    )


def test_the_prior_is_proper_where_its_units_have_a_scale():
    assert model_of(priors.TruncatedLogUniform(unit_scale=1.0))(X).shape == (8, 2)
    with pytest.raises(ImproperPriorError, match="improper"):
        model_of(priors.TruncatedLogUniform())(X)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.TruncatedLogUniform(0.0, 0.0), "expected low < high, got 0.0 and 0.0"),
        (lambda: priors.TruncatedLogUniform(unit_scale=-1.0), "unit_scale above zero"),
        (
            lambda: StructuredPruning(model_of(priors.NormalJeffreys())),
            r"between two bounds.*TruncatedLogUniform\(\)",
        ),
        (
            lambda: StructuredPruning(model_of(priors.TruncatedLogUniform()), init_scale=0.0),
            "init_scale above zero",
        ),
        (
            lambda: MeanField(model_of(priors.TruncatedLogUniform())),
            "site '0.weight.scale' has the support",
        ),
    ],
)
def test_wrong_arguments_and_models_are_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bounds_are_part_of_the_state_and_follow_dtype_and_device():
    import copy

    model = model_of(priors.TruncatedLogUniform(-12.0, 0.5))
    guide = StructuredPruning(model)
    z = guide.distributions()["0.weight.scale"].base_dist
    assert torch.allclose(torch.stack([z.low, z.high]).flatten(1)[:, 0], torch.tensor([-12.0, 0.5]))
    other = StructuredPruning(model)
    other.load_state_dict(copy.deepcopy(guide).state_dict())
    loss = ELBO(copy.deepcopy(model).double(), other.double())(X.double(), Y)
    assert loss.dtype == torch.float64
    draws = Posterior.from_guide(model, guide).sample(20)
    assert draws["0.weight"].shape == (20, 3, 1, 3, 3)
    assert draws["0.weight.scale"].std(0).min() > 0
    with torch.device("meta"):
        assert all(
            p.is_meta
            for p in StructuredPruning(
                model_of(priors.TruncatedLogUniform().to("meta"))
            ).parameters()
        )


def test_inputs_without_information_are_pruned_from_a_trained_network():
    x, y = data_with_useless_inputs()
    prior = priors.TruncatedLogUniform(unit_scale=1.0)
    model = BayesianNet(trained_network(x, y), prior, likelihoods.Categorical(), len(x))
    result = fit(
        model,
        StructuredPruning(model, init_scale=0.1),
        (x, y),
        epochs=300,
        learning_rate=lambda e: 0.05 * (1 - e / 300),
        kl_weight=linear_warmup(0, 100),
        progress=False,
    )
    snr = result.guide.signal_to_noise()["0.weight"].flatten()
    assert (snr[:2] > 5).all()
    assert (snr[2:] < 1).all()
    pruned = prune(result.posterior, group_threshold=0.0)  # log alpha >= 0: SNR <= 1
    assert torch.equal(pruned.groups["0.weight"].flatten(), torch.arange(8) < 2)
    assert pruned.groups["2.weight"].sum() < 16
    assert accuracy(pruned.module, x, y) > 0.97
