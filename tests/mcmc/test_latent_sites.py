"""Programs whose sites cannot be sampled are errors."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_bnn import BayesianNet, likelihoods, priors
from pyro_bnn.distributions import ImproperPriorError
from pyro_bnn.mcmc.log_density import LogDensity

N = 7
X = torch.randn(N, 3, dtype=torch.float64)
CLASSES = torch.arange(N) % 2
REAL = torch.randn(N, dtype=torch.float64)


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def classifier(prior, network=None):
    return BayesianNet(network or net(), {"*": prior}, likelihoods.Categorical(), N).double()


@pytest.mark.parametrize("prior", [priors.LogUniform(), priors.NormalJeffreys()])
def test_an_improper_prior_is_an_error_that_names_proper_relatives(prior):
    with pytest.raises(
        ImproperPriorError, match=r"site '.*weight.*' has the improper prior LogUniform.*Horseshoe"
    ):
        LogDensity(classifier(prior), (X, CLASSES))


def test_free_parameters_are_an_error_that_names_them():
    model = BayesianNet(net(), priors.Normal(1.0), likelihoods.Categorical(), N).double()
    with pytest.raises(ValueError, match=r"net\.0\.bias, net\.2\.bias are free.*freeze"):
        LogDensity(model, (X, CLASSES))
    LogDensity(model.freeze(), (X, CLASSES))

    def program(x):
        slope = pyro.param("slope", torch.tensor(1.0))
        pyro.sample("q", dist.Normal(slope, 1.0))

    with pytest.raises(ValueError, match="the parameters slope are free"):
        LogDensity(program, (X,))


def test_a_plate_that_draws_its_own_minibatch_is_an_error():
    def program(x, y):
        slope = pyro.sample("slope", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", N, subsample_size=2) as index:
            pyro.sample("y", dist.Normal(slope * x[index, 0], 1.0), obs=y[index])

    with pytest.raises(
        ValueError, match=r"plate 'data' draws its own minibatch of 2.*subsample=range"
    ):
        LogDensity(program, (X, REAL))


def test_a_model_without_a_latent_site_is_an_error():
    def program(y):
        pyro.sample("y", dist.Normal(y.new_zeros(N), 1.0).to_event(1), obs=y)

    with pytest.raises(ValueError, match="no continuous latent site"):
        LogDensity(program, (REAL,))


def test_a_weight_that_the_network_never_reads_is_an_error():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(ValueError, match=r"never reads idle\.weight"):
        LogDensity(classifier(priors.Normal(1.0), Idle().double()), (X, CLASSES))
