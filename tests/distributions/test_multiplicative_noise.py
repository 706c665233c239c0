"""The log variance of multiplicative noise."""

import pyro.distributions as dist
import torch

from pyro_bnn.distributions import MEAN_OFFSET, GaussianDropout, log_alpha


def test_log_alpha_inverts_the_variance_of_gaussian_dropout():
    theta, noise = torch.randn(5, 3), torch.randn(5, 1)
    q = GaussianDropout(theta, noise)
    torch.testing.assert_close(log_alpha(q.mean, q.variance.log()), noise.expand(5, 3))


def test_log_alpha_does_not_depend_on_the_unit_of_the_weights():
    q = dist.Normal(torch.tensor([0.1, -2.0]), torch.tensor([0.1, 6.0]))
    expected = torch.tensor([0.0, 2 * torch.log(torch.tensor(3.0))])
    for unit in (1e-8, 1.0, 1e8):
        value = log_alpha(q.mean * unit, 2 * (q.scale * unit).log())
        torch.testing.assert_close(value, expected)


def test_log_alpha_at_zero_mean_is_infinite_without_an_offset_and_finite_with_it():
    mean = torch.zeros(2, requires_grad=True)
    log_variance = torch.zeros(2)
    assert (log_alpha(mean, log_variance) == torch.inf).all()
    value = log_alpha(mean, log_variance, offset=MEAN_OFFSET)
    torch.testing.assert_close(value.detach(), -torch.full((2,), MEAN_OFFSET).log())
    (gradient,) = torch.autograd.grad(value.sum(), mean)
    assert (gradient == 0).all()
