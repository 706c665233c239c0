"""The data of a fit: tensors, loaders, and the checks that precede the first step."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_bnn import BayesianNet, fit, likelihoods, priors
from pyro_bnn.guides import MeanField
from pyro_bnn.runtime.validation import DataError
from tests.training.programs import (
    classifier_pair,
    decaying_rate,
    digest,
    linear_pair,
    quick_fit,
    toy_data,
)


def test_every_epoch_trains_on_a_permutation_in_batches_of_one_size():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 1))

        def forward(self, x):
            seen.append(x[:, 0].clone())
            return x @ self.weight

    x = torch.stack([torch.arange(10.0), torch.ones(10)], 1)
    model = BayesianNet(Spy(), priors.Normal(), likelihoods.Gaussian(1.0), 10)
    result = quick_fit(model, MeanField(model), (x, x[:, 0]), epochs=3, batch_size=4, seed=2)
    steps = seen[1:]  # the first was the dry run
    assert len(steps) == math.ceil(3 * 10 / 4)
    assert {len(batch) for batch in steps} == {4}
    assert torch.equal(torch.cat(steps)[:10].sort().values, torch.arange(10.0))
    assert result.history["epoch"] == [1, 2, 3]


def test_a_loader_and_its_tensors_give_the_same_result():
    x, y = toy_data()
    model, guide = linear_pair()
    loader = DataLoader(TensorDataset(x, y), batch_size=30)
    from_loader = quick_fit(model, guide, loader, batch_size=None)
    from_tensors = quick_fit(model, guide, (x, y), batch_size=None)
    assert digest(from_loader) == digest(from_tensors)


def test_the_seed_determines_a_shuffling_loader_whose_generator_is_restored():
    x, y = toy_data()
    model, guide = linear_pair()
    generator = torch.Generator().manual_seed(8)
    for loader in (
        DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True, generator=generator),
        DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True),
    ):
        before = generator.get_state()
        first = quick_fit(model, guide, loader, batch_size=None)
        assert torch.equal(generator.get_state(), before)
        torch.rand(3)
        assert digest(first) == digest(quick_fit(model, guide, loader, batch_size=None))
        assert digest(first) != digest(quick_fit(model, guide, loader, batch_size=None, seed=1))


def test_a_loader_of_the_wrong_length_or_kind_is_an_error():
    x, y = toy_data()
    model, guide = linear_pair()

    class Liar:
        def __len__(self):
            return 5

        def __iter__(self):
            return iter([(x, y)])

    with pytest.raises(ValueError, match="yielded 1 batches but its length is 5"):
        quick_fit(model, guide, Liar(), batch_size=None)
    with pytest.raises(ValueError, match="knows its length"):
        quick_fit(model, guide, ((x, y) for _ in range(3)), batch_size=None)
    with pytest.raises(ValueError, match="leave it out"):
        quick_fit(model, guide, DataLoader(TensorDataset(x, y)), batch_size=4)
    with pytest.raises(ValueError, match="num_data=10"):
        quick_fit(model, guide, DataLoader(TensorDataset(x[:10], y[:10])), batch_size=None)


def test_a_program_without_targets_reaches_its_exact_posterior():
    x = 3 + torch.randn(64, generator=torch.Generator().manual_seed(0))

    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("data", 64, subsample=range(len(x))):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    result = quick_fit(
        model, MeanField(model, x), x, epochs=300, learning_rate=decaying_rate(300), batch_size=None
    )
    mean, variance = result.posterior.moments()["mean"]
    precision = 64 + 0.25
    assert mean.item() == pytest.approx(float(x.sum()) / precision, abs=0.01)
    assert variance.item() == pytest.approx(1 / precision, rel=0.1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_or_infinity_in_the_data_is_an_error_before_the_first_step(bad):
    for which in (0, 1):
        data = toy_data()
        data[which][3] = bad
        with pytest.raises(DataError, match="finite"):
            quick_fit(*linear_pair(), data)
    with pytest.raises(DataError, match="finite"):
        quick_fit(*linear_pair(), torch.full((30, 3), bad))


def test_lengths_labels_and_shapes_of_the_data_are_checked():
    x, y = toy_data()
    with pytest.raises(DataError, match="30 and 29"):
        quick_fit(*linear_pair(), (x, y[:-1]))
    labels = torch.arange(30) % 3
    labels[7] = 3
    with pytest.raises(DataError, match=r"y\[7\] = 3 cannot be observed at site 'y'"):
        quick_fit(*classifier_pair(), (x, labels))
    loader = DataLoader(TensorDataset(x, labels), batch_size=10)
    with pytest.raises(DataError, match="cannot be observed"):
        quick_fit(*classifier_pair(), loader, batch_size=None)
    with pytest.raises(ValueError, match=r"observations at site 'y' have the shape \(8, 1\)"):
        quick_fit(*linear_pair(), (x, y[:, None]))
    model = BayesianNet(nn.Linear(3, 2), priors.Normal(), likelihoods.Bernoulli(), 30)
    ones = torch.ones(30, 2)
    ones[4, 1] = 0.5
    with pytest.raises(DataError, match=r"y\[4\] = \[1.0, 0.5\]"):
        quick_fit(model, MeanField(model), (x, ones))


def test_a_plate_of_the_size_of_a_batch_is_an_error():
    x, y = toy_data(12)

    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):  # forgets that a batch stands for all the data
            pyro.sample("y", dist.Normal(x @ w, 0.3), obs=y)

    message = r"plate 'data' of 4 examples but the data have 12.*pyro\.plate\('data', 12"
    with pytest.raises(ValueError, match=message):
        fit(model, MeanField(model, x, y), (x, y), epochs=1, batch_size=4, progress=False)
