"""Models in double precision, on the meta device, as state dictionaries and as copies."""

import copy

import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_bnn import ELBO, guides, priors
from tests.network.networks import (
    Tied,
    bayesian,
    new_weights,
)
from tests.network.prior_kinds import EVERY_PRIOR, every_prior


@every_prior
def test_a_model_in_double_precision_computes_in_double_precision(kind):
    make, _ = EVERY_PRIOR[kind]
    model = bayesian(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), make()).double()
    guide = guides.MeanField(model)
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randint(2, (6,))
    loss = ELBO(model, guide)(x, y)
    assert loss.dtype == torch.float64
    assert all(p.dtype == torch.float64 for p in guide.parameters())
    assert all(w.dtype == torch.float64 for w in model.weights().values())


@every_prior
def test_a_model_built_on_the_meta_device_can_be_loaded(kind):
    make, _ = EVERY_PRIOR[kind]
    if kind == "student":
        pytest.skip("Pyro's own StudentT cannot be built there")
    with torch.device("meta"):
        model = bayesian(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), make())
    tensors = [*model.parameters(), *model.buffers()]
    assert all(tensor.is_meta for tensor in tensors)
    real = bayesian(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), make())
    model = model.to_empty(device="cpu")
    model.load_state_dict(real.state_dict())
    for name, value in real.weights().items():
        torch.testing.assert_close(model.weights()[name], value)
    assert ELBO(model, guides.MeanField(model))(
        torch.randn(6, 3), torch.randint(2, (6,))
    ).isfinite()


@every_prior
def test_a_state_dict_restores_weights_and_parameters(kind):
    make, _ = EVERY_PRIOR[kind]
    one = bayesian(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), make())
    other = bayesian(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), make())
    other.load_state_dict(one.state_dict())
    for name, value in one.weights().items():
        torch.testing.assert_close(other.weights()[name], value)
    for (name, value), (other_name, other_value) in zip(
        one.named_parameters(), other.named_parameters(), strict=True
    ):
        assert name == other_name
        torch.testing.assert_close(value, other_value)


def test_a_copy_shares_no_tensor():
    model = bayesian(Tied(), {"*": priors.LearnedNormal()})
    other = copy.deepcopy(model)
    mine = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    assert not mine & {id(tensor) for tensor in (*other.parameters(), *other.buffers())}
    x = torch.randint(4, (6,))
    weights = new_weights(model)
    torch.testing.assert_close(
        poutine.condition(model, weights)(x), poutine.condition(other, weights)(x)
    )


def test_a_copy_draws_its_weights_from_its_own_priors():
    other = copy.deepcopy(bayesian(nn.Linear(3, 2), priors.LearnedNormal()))
    parameters = {id(parameter) for parameter in other.parameters()}
    assert id(other.prior_of("weight").log_scale) in parameters
