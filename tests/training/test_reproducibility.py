"""The seed determines every bit of a result, and a fit changes nothing but its result."""

import math
import random
import signal
import threading

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from torch import nn

from pyro_bnn import BayesianNet, likelihoods, priors
from pyro_bnn.guides import MeanField
from tests.training.programs import digest, linear_pair, quick_fit, tensors_of, toy_data


def test_the_seed_determines_every_bit(capsys):
    x, y = toy_data()
    model, guide = linear_pair()
    reference = digest(quick_fit(model, guide, (x, y), seed=3))
    assert digest(quick_fit(model, guide, (x, y), seed=3, progress=True)) == reference
    torch.manual_seed(99)
    torch.rand(13)
    assert digest(quick_fit(model, guide, [x, y], seed=3)) == reference
    assert digest(quick_fit(model, guide, (x, y), seed=4)) != reference
    assert "nats/datum" in capsys.readouterr().err


def test_the_seed_determines_the_noise_and_not_only_the_order_of_the_data():
    one = quick_fit(*linear_pair(), toy_data(), seed=3, batch_size=None, epochs=1)
    other = quick_fit(*linear_pair(), toy_data(), seed=4, batch_size=None, epochs=1)
    assert digest(one) != digest(other)


def test_callbacks_that_draw_predict_and_change_the_history_leave_the_run_unchanged():
    def intrude(progress):
        torch.rand(7)
        random.random()
        progress.posterior().predict(x[:2], draws=3)
        progress.history["loss"].append(math.nan)
        pyro.sample("noise", dist.Normal(0, 1))

    x, y = toy_data()
    model, guide = linear_pair()
    reference = digest(quick_fit(model, guide, (x, y), seed=3))
    observed = quick_fit(model, guide, (x, y), seed=3, callbacks=[intrude, intrude])
    assert digest(observed) == reference


@pytest.mark.parametrize("kind", [AutoNormal, AutoLowRankMultivariateNormal])
def test_the_seed_determines_the_random_initial_values_of_a_stock_guide(kind):
    model, _ = linear_pair()
    hashes = set()
    for outside in (1, 2):
        torch.manual_seed(outside)
        hashes.add(digest(quick_fit(model, kind(model), toy_data(), reparameterize=False)))
    assert len(hashes) == 1


def test_arguments_random_state_and_parameter_store_are_unchanged(monkeypatch):
    x, y = toy_data()
    model, guide = linear_pair()
    pyro.param("mine", torch.tensor(3.0))
    before = {
        name: value.clone() for part in (model, guide) for name, value in part.state_dict().items()
    }
    copies = x.clone(), y.clone()
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    handler = signal.getsignal(signal.SIGINT)
    # torch.manual_seed would also seed every GPU, whose states would be lost
    monkeypatch.setattr(torch, "manual_seed", None)
    quick_fit(model, guide, (x, y)).posterior.predict(x)
    assert torch.equal(torch.rand(4), expected)
    after = {name: value for part in (model, guide) for name, value in part.state_dict().items()}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in (*model.parameters(), *guide.parameters()))
    assert model.training
    assert guide.training
    assert torch.equal(x, copies[0])
    assert torch.equal(y, copies[1])
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_fit_in_another_thread_gives_the_same_bits():
    results = []
    thread = threading.Thread(target=lambda: results.append(quick_fit(*linear_pair(), toy_data())))
    thread.start()
    thread.join()
    assert digest(results[0]) == digest(quick_fit(*linear_pair(), toy_data()))


def test_a_model_in_double_precision_stays_in_double_precision():
    x, y = toy_data(dtype=torch.float64)
    model, guide = (part.double() for part in linear_pair())
    result = quick_fit(model, guide, (x, y))
    assert {value.dtype for value in tensors_of(result).values()} == {torch.float64}
    assert result.posterior.predict(x).mean.dtype == torch.float64


def test_batch_normalisation_counts_every_training_batch_and_no_other():
    x, y = toy_data()
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
    model = BayesianNet(net, priors.Normal(), likelihoods.Gaussian(0.3), 30)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = quick_fit(model, MeanField(model), (x, y), epochs=2, batch_size=10)
    batches = {
        k: v for k, v in result.model.state_dict().items() if k.endswith("num_batches_tracked")
    }
    assert [int(v) for v in batches.values()] == [6]
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    result.posterior.predict(x)
    assert [int(v) for v in batches.values()] == [6]
    assert not result.model.training
