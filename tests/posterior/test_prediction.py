"""Predictions are averages of distributions, checked against closed forms and loops.

Statistical checks have fixed seeds and 5 standard errors (false-alarm rate below 1e-6 each).
"""

import math

import pyro.distributions as dist
import pytest
import torch
from scipy.stats import norm
from torch import nn

from pyro_bnn import BayesianNet, Posterior, likelihoods, priors
from pyro_bnn.models import linear_regression
from tests.posterior.ensembles import X, classifier, fixed_draws


def test_a_prediction_averages_distributions_not_scores_or_votes():
    fixed, logits = fixed_draws(classifier())
    prediction = fixed.predict(X, draws=50)
    probs = logits.softmax(-1)
    assert torch.allclose(prediction.mean.double(), probs.mean(0), atol=1e-6)
    assert not torch.allclose(prediction.mean.double(), logits.mean(0).softmax(-1), atol=1e-3)
    votes = nn.functional.one_hot(logits.argmax(-1), 4).double().mean(0)
    assert not torch.allclose(prediction.mean.double(), votes, atol=1e-3)
    entropy = -(probs * probs.log()).sum(-1)
    total = -(probs.mean(0) * probs.mean(0).log()).sum(-1)
    assert torch.allclose(prediction.aleatoric.double(), entropy.mean(0), atol=1e-6)
    assert torch.allclose(prediction.total.double(), total, atol=1e-6)
    y = torch.tensor([0, 3, 1, 2, 2, 0])
    assert torch.allclose(
        prediction.log_prob(y).double(), probs.mean(0)[range(6), y].log(), atol=1e-6
    )


def test_entropies_stay_within_their_bounds():
    for seed in range(5):
        for scale in (0.01, 1.0, 10.0):
            prediction = classifier(seed=seed, scale=scale).predict(X, draws=20, seed=seed)
            assert (prediction.epistemic >= 0).all()
            assert (prediction.aleatoric >= 0).all()
            assert (prediction.total <= math.log(4) + 1e-6).all()
            assert torch.allclose(
                prediction.total, prediction.aleatoric + prediction.epistemic, atol=1e-6
            )
            assert torch.allclose(prediction.mean.sum(-1), torch.ones(6), atol=1e-6)


def test_one_draw_has_no_epistemic_uncertainty():
    prediction = classifier().predict(X, draws=1)
    assert torch.allclose(prediction.epistemic, torch.zeros(6), atol=1e-7)


def test_the_average_predicts_no_worse_than_its_parts_on_average():
    fixed, logits = fixed_draws(classifier())
    for label in range(4):
        y = torch.full((6,), label)
        average = -fixed.predict(X, draws=50).log_prob(y).double()
        apart = -logits.log_softmax(-1)[:, range(6), label].mean(0)
        assert (average <= apart + 1e-6).all()


def test_a_confident_error_has_a_finite_cost():
    model = BayesianNet(nn.Linear(3, 2, bias=False), priors.Normal(), likelihoods.Categorical(), 6)
    weight = torch.tensor([[300.0, 0, 0], [0, 0, 0]])
    posterior = Posterior.from_draws(model, {"weight": weight.expand(1, 4, 2, 3)})
    prediction = posterior.predict(torch.tensor([[1.0, 0, 0]]))
    assert prediction.log_prob(torch.tensor([1])).item() == pytest.approx(-300, rel=1e-6)
    assert prediction.total.item() == 0


def test_binary_data_have_probabilities_and_entropies():
    fixed, logits = fixed_draws(classifier(1, likelihoods.Bernoulli()))
    prediction, p = fixed.predict(X, draws=50), logits[..., 0].sigmoid()
    assert prediction.mean.shape == (6,)
    assert torch.allclose(prediction.mean.double(), p.mean(0), atol=1e-6)

    def entropy(p):
        return -(p * p.log() + (1 - p) * (1 - p).log())

    assert torch.allclose(prediction.total.double(), entropy(p.mean(0)), atol=1e-6)
    assert torch.allclose(prediction.aleatoric.double(), entropy(p).mean(0), atol=1e-6)
    y = torch.tensor([1.0, 0, 0, 1, 1, 0])
    expected = torch.where(y > 0.5, p, 1 - p).mean(0).log()
    assert torch.allclose(prediction.log_prob(y).double(), expected, atol=1e-6)
    with pytest.raises(ValueError, match="only Gaussian likelihoods have intervals"):
        prediction.interval()


def test_several_labels_are_one_observation():
    fixed, logits = fixed_draws(classifier(3, likelihoods.Bernoulli()))
    prediction, p = fixed.predict(X, draws=50), logits.sigmoid()
    assert prediction.mean.shape == prediction.total.shape == (6, 3)
    y = (torch.arange(18).reshape(6, 3) % 2).float()
    expected = torch.where(y > 0.5, p, 1 - p).prod(-1).mean(0).log()
    assert prediction.log_prob(y).shape == (6,)
    assert torch.allclose(prediction.log_prob(y).double(), expected, atol=1e-5)


@pytest.fixture(scope="module")
def gaussian():
    """Exact draws from the posterior of a linear model, and its predictive in closed form."""
    torch.manual_seed(0)
    n, noise, draws = 20, 0.4, 4_000
    x, y = torch.randn(n, 3), torch.randn(n)
    design = torch.cat([x, torch.ones(n, 1)], 1).double()
    precision = design.T @ design / noise**2 + torch.eye(4)
    mean = torch.linalg.solve(precision, design.T @ y.double() / noise**2)
    w = (
        torch.distributions.MultivariateNormal(mean, precision_matrix=precision)
        .sample((4, draws // 4))
        .float()
    )
    posterior = Posterior.from_draws(
        linear_regression(n, inputs=3, noise=noise), {"weight": w[..., :3], "bias": w[..., 3]}
    )
    test = torch.cat([X, torch.ones(6, 1)], 1).double()
    epistemic = (test @ torch.linalg.inv(precision) * test).sum(-1)
    return posterior, draws, test @ mean, epistemic, noise**2


def test_a_linear_gaussian_model_predicts_its_closed_form(gaussian):
    posterior, draws, mean, epistemic, noise = gaussian
    prediction = posterior.predict(X, draws=draws)
    assert ((prediction.mean.double() - mean).abs() < 5 * (epistemic / draws).sqrt()).all()
    assert ((prediction.epistemic.double() / epistemic - 1).abs() < 5 * math.sqrt(2 / draws)).all()
    assert torch.allclose(prediction.aleatoric, torch.full((6,), noise), atol=1e-6)
    assert torch.allclose(prediction.total, prediction.aleatoric + prediction.epistemic)
    exact = torch.distributions.Normal(mean, (epistemic + noise).sqrt())
    for level in (0.5, 0.9, 0.99):
        tail = torch.tensor((1 - level) / 2).double()
        for got, probability in zip(prediction.interval(level), (tail, 1 - tail), strict=True):
            quantile = exact.icdf(probability)
            # a quantile of a mixture is more precise than that of plain draws, whose standard
            # error is sqrt(p (1 - p) / n) / density
            error = (tail * (1 - tail) / draws).sqrt() / exact.log_prob(quantile).exp()
            assert ((got.double() - quantile).abs() < 5 * error).all()
    for shift in (-1.0, 0.0, 2.0):
        y = (mean + shift * exact.stddev).float()
        error = (
            5 * 3 / math.sqrt(draws)
        )  # the density of a draw has a coefficient of variation below 3 here
        assert torch.allclose(
            prediction.log_prob(y).double(), exact.log_prob(y.double()), atol=error
        )


def test_several_numbers_are_one_observation():
    fixed, outputs = fixed_draws(classifier(2, likelihoods.Gaussian(0.3)))
    prediction = fixed.predict(X, draws=50)
    for value in (
        prediction.mean,
        prediction.total,
        prediction.aleatoric,
        prediction.epistemic,
        *prediction.interval(),
    ):
        assert value.shape == (6, 2)
    assert torch.allclose(prediction.mean.double(), outputs.mean(0), atol=1e-6)
    assert torch.allclose(prediction.epistemic.double(), outputs.var(0, correction=0), atol=1e-5)
    y = torch.linspace(-1, 1, 12).reshape(6, 2)
    each = torch.distributions.Normal(outputs, 0.3).log_prob(y.double()).sum(-1)
    assert prediction.log_prob(y).shape == (6,)
    assert torch.allclose(
        prediction.log_prob(y).double(), each.logsumexp(0) - math.log(50), rtol=1e-4
    )
    separate = torch.distributions.Normal(outputs, 0.3).log_prob(y.double()).logsumexp(0).sum(
        -1
    ) - 2 * math.log(50)
    assert not torch.allclose(prediction.log_prob(y).double(), separate, rtol=1e-3)
    lower, upper = prediction.interval(0.8)
    for j in (0, 1):
        cdf = norm.cdf(lower[:, j].numpy(), outputs[:, :, j].numpy(), 0.3).mean(0)
        assert cdf == pytest.approx([0.1] * 6, abs=1e-4)
    assert (lower < upper).all()


@pytest.mark.parametrize("noise", [None, dist.Gamma(2.0, 4.0)])
def test_learned_and_inferred_noise_is_aleatoric(noise):
    fixed, outputs = fixed_draws(classifier(1, likelihoods.Gaussian(noise)))
    prediction = fixed.predict(X, draws=50)
    square = 0.25 if noise is None else float(fixed.draws["noise"].double().square().mean())
    assert torch.allclose(prediction.aleatoric, torch.full((6,), square), rtol=1e-5)
    assert torch.allclose(
        prediction.epistemic.double(), outputs[..., 0].var(0, correction=0), rtol=1e-4
    )


def test_other_likelihoods_have_moments_but_no_densities():
    posterior = classifier(1, lambda outputs: dist.Poisson(outputs.squeeze(-1).exp()))
    prediction = posterior.predict(X)
    assert torch.allclose(
        prediction.aleatoric, prediction.mean, rtol=1e-5
    )  # a Poisson's variance is its mean
    with pytest.raises(ValueError, match="only"):
        prediction.log_prob(torch.ones(6))
    with pytest.raises(ValueError, match="only"):
        prediction.interval()


def test_a_prediction_needs_draws_and_finite_inputs():
    posterior = classifier()
    with pytest.raises(ValueError, match="at least one draw, got 0"):
        posterior.predict(X, draws=0)
    with pytest.raises(ValueError, match="NaN or infinity"):
        posterior.predict(X * math.nan)
    with pytest.raises(ValueError, match="x is empty"):
        posterior.predict(X[:0])


def test_a_log_probability_needs_data_of_the_right_shape_and_labels_in_range():
    prediction = classifier().predict(X)
    with pytest.raises(ValueError, match=r"y of shape \(6,\), got \(6, 1\)"):
        prediction.log_prob(torch.zeros(6, 1).long())
    with pytest.raises(ValueError, match="labels from 0 to 3, got 0 to 4"):
        prediction.log_prob(torch.tensor([0, 1, 2, 3, 4, 0]))
    real = classifier(1, likelihoods.Gaussian(0.1)).predict(X)
    with pytest.raises(ValueError, match=r"y of shape \(6,\), got \(6, 1\)"):
        real.log_prob(torch.zeros(6, 1))


def test_an_interval_needs_real_data_and_a_level_between_0_and_1():
    with pytest.raises(ValueError, match="only Gaussian"):
        classifier().predict(X).interval()
    real = classifier(1, likelihoods.Gaussian(0.1)).predict(X)
    for level in (0, 1, -0.5, 2):
        with pytest.raises(ValueError, match="between 0 and 1"):
            real.interval(level)


def test_a_prediction_shows_its_kind_and_shape():
    real = classifier(1, likelihoods.Gaussian(0.1)).predict(X)
    assert repr(real).startswith("Prediction(real, mean (6,)")
