"""A posterior becomes the prior of the next task."""

import pytest
import torch
from torch import nn

from pyro_bnn import BayesianNet, Posterior, fit, likelihoods, priors
from pyro_bnn.guides import MeanField
from tests.posterior.programs import classifier, network, posterior_of


def exact(x, y, noise, mean, precision):
    """Update a Gaussian (mean, precision matrix) with y = x w + noise."""
    new = precision + x.T @ x / noise**2
    return torch.linalg.solve(new, precision @ mean + x.T @ y / noise**2), new


class TwoTasks:
    """Two regression tasks with orthogonal inputs, so that the exact posterior factorizes."""

    def __init__(self):
        torch.manual_seed(0)
        x = torch.linalg.qr(torch.randn(8, 4, dtype=torch.float64)).Q
        x, y = torch.cat([x, -2 * x]), torch.randn(16, dtype=torch.float64)
        start = torch.zeros(4).double(), torch.eye(4).double()
        self.first, self.second = (x[:8], y[:8]), (x[8:], y[8:])
        self.mean, self.precision = exact(*self.first, 0.5, *start)
        self.batch_mean, self.batch_precision = exact(x, y, 0.5, *start)

    def model(self, prior):
        layer = nn.Linear(4, 1, bias=False, dtype=torch.float64)
        return BayesianNet(layer, prior, likelihoods.Gaussian(0.5), 8).double()

    def prior_for_the_second_task(self):
        """Return the exact posterior of the first task as a prior."""
        model = self.model(priors.Normal(1.0))
        guide = MeanField(model)
        guide.sites.weight.loc.data = self.mean[None].clone()
        guide.sites.weight.log_scale.data = -0.5 * self.precision.diagonal()[None].log()
        return Posterior.from_guide(model, guide).as_prior()


def test_two_conjugate_updates_equal_one():
    tasks = TwoTasks()
    prior = tasks.prior_for_the_second_task()
    assert list(prior) == ["weight"]
    assert torch.allclose(prior["weight"].loc[0], tasks.mean, rtol=1e-12)
    trained = tasks.model(prior).prior_of("weight")
    assert trained.loc.dtype == torch.float64
    precision = torch.diag(trained.scale[0].double() ** -2)
    mean, precision = exact(*tasks.second, 0.5, trained.loc[0].double(), precision)
    assert torch.allclose(mean, tasks.batch_mean, rtol=1e-6)
    assert torch.allclose(precision.diagonal(), tasks.batch_precision.diagonal(), rtol=1e-6)


@pytest.mark.slow
def test_fitting_the_second_task_gives_the_posterior_of_both():
    """Within the noise of stochastic gradients."""
    tasks = TwoTasks()
    model = tasks.model(tasks.prior_for_the_second_task())
    result = fit(
        model,
        MeanField(model),
        tasks.second,
        epochs=500,
        learning_rate=lambda epoch: 0.1 * 0.001 ** (epoch / 500),
        progress=False,
    )
    learned = result.posterior.moments()["weight"]
    precision = tasks.batch_precision.diagonal()
    assert torch.allclose(
        learned.mean[0], tasks.batch_mean, atol=0.1 * float(precision.min()) ** -0.5
    )
    assert torch.allclose(learned.variance[0] * precision, torch.ones(4).double(), atol=0.3)


def test_a_prior_from_a_scale_mixture_or_draws_has_their_two_moments():
    posterior = posterior_of(classifier(priors.Horseshoe()))
    prior = posterior.as_prior()
    assert list(prior) == ["0.weight", "2.weight"]
    mean, variance = posterior.moments()["0.weight"]
    assert torch.allclose(prior["0.weight"].loc, mean)
    assert torch.allclose(prior["0.weight"].scale, variance.sqrt())
    BayesianNet(network(), prior, likelihoods.Categorical(), 5)
    from_draws = Posterior.from_draws(posterior.model, posterior.draws)
    weights = from_draws.sample(100)["0.weight"]
    got = from_draws.as_prior()["0.weight"]
    assert torch.allclose(got.loc, weights.mean(0), atol=1e-6)
    assert torch.allclose(got.scale, weights.std(0), rtol=1e-4)
