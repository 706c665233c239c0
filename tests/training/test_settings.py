"""Settings that fit refuses, and guides that do not match."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_bnn import BayesianNet, fit, likelihoods, priors
from pyro_bnn.guides import MeanField
from pyro_bnn.variational.reparameterization import local_reparameterization
from tests.training.programs import classifier_pair, linear_pair, quick_fit, toy_data


def test_a_setting_out_of_range_is_an_error():
    x, y = toy_data()
    model, guide = linear_pair()
    cases = [
        ({"epochs": 0}, "at least 1"),
        ({"epochs": 1.5}, "epochs to be a whole number of at least 1, got 1.5"),
        ({"batch_size": 2.5}, "batch_size that is a whole number of at least 1, got 2.5"),
        ({"checkpoint_every": 0}, "at least 1"),
        ({"num_particles": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": -3}, "at least 1"),
        ({"batch_size": 31}, "larger than the data set of 30"),
        (
            {"device": "cuda:77"},
            "device 'cuda:77' is not available on this machine; choose one of: cpu",
        ),
        ({"device": "gpu"}, "device 'gpu' is not available"),
        ({"resume": True}, "pass its folder: checkpoint=FOLDER"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            quick_fit(model, guide, (x, y), **options)
    with pytest.raises(ValueError, match=r"have 20 examples but .* is 30.*num_data=20"):
        quick_fit(model, guide, (x[:20], y[:20]))
    with pytest.raises(ValueError, match="expected tensors"):
        quick_fit(model, guide, (x.numpy(), y.numpy()))
    with pytest.raises(ValueError, match="expected tensors"):
        quick_fit(model, guide, ())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_available_is_an_error():
    message = "fit: the device 'cuda' is not available on this machine; choose one of: cpu"
    with pytest.raises(ValueError, match=message):
        quick_fit(*linear_pair(), toy_data(), device="cuda")


def test_a_model_on_the_meta_device_can_be_built_but_not_fitted():
    with torch.device("meta"):
        model = BayesianNet(nn.Linear(3, 2), priors.Normal(), likelihoods.Categorical(), 10)
        guide = MeanField(model)
    assert {p.device.type for p in (*model.parameters(), *guide.parameters())} == {"meta"}
    with pytest.raises(ValueError, match="'meta', which holds no numbers"):
        quick_fit(model, guide, (torch.zeros(10, 3), torch.zeros(10).long()))


def test_a_guide_without_parameters_or_for_another_model_is_an_error():
    x, y = toy_data()
    model, _ = linear_pair()

    def fixed(x, y=None):
        pyro.sample("weight", dist.Normal(torch.zeros(1, 3), 1.0).to_event(2))
        pyro.sample("bias", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    with pytest.raises(ValueError, match="no parameters to learn"):
        quick_fit(model, fixed, (x, y))
    _, other = classifier_pair()
    with pytest.raises(ValueError, match=r"has no site bias, weight.*another model"):
        quick_fit(model, other, (x, y))


def test_a_guide_that_is_wrapped_already_keeps_its_settings():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.b = nn.Linear(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    x, y = torch.randn(8, 3), torch.randint(3, (8,))
    model = BayesianNet(Tied(), priors.Normal(), likelihoods.Categorical(), num_data=8)
    guide = MeanField(model)
    hint = r"hide=\['a.weight'\]\), which fit accepts as a guide"
    with pytest.raises(RuntimeError, match=hint):
        fit(model, guide, (x, y), epochs=1, progress=False)
    wrapped = local_reparameterization(guide, hide=["a.weight"])
    assert len(fit(model, wrapped, (x, y), epochs=1, progress=False).history["loss"]) == 1


@pytest.mark.parametrize("name", ["learning_rate", "kl_weight"])
def test_a_negative_learning_rate_or_kl_weight_is_an_error(name):
    x, y = toy_data(12)
    model, guide = linear_pair(12)
    with pytest.raises(ValueError, match=f"expected a {name} of at least 0, got -0.5"):
        fit(model, guide, (x, y), epochs=1, progress=False, **{name: -0.5})
