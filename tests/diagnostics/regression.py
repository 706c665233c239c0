"""A conjugate regression, whose exact posterior and leave-one-out densities are known."""

import torch
from torch.distributions import Normal

from pyro_bnn import Posterior
from pyro_bnn.models import linear_regression

N, NOISE = 20, 0.3
X = torch.linspace(-1, 1, N, dtype=torch.float64)[:, None]
Y = (
    0.7 * X[:, 0]
    - 0.2
    + NOISE * torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
)
DATA = (X, Y)


def conjugate(x=X, y=Y):
    """Return mean and covariance of (weights, bias) under standard normal priors."""
    design = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    precision = design.T @ design / NOISE**2 + torch.eye(design.shape[1], dtype=x.dtype)
    covariance = torch.linalg.inv(precision)
    return covariance @ design.T @ y / NOISE**2, covariance


def exact(chains=4, num=250, scale=1.0, seed=0, centered=False, shift=0.0, model=None, **more):
    """Return draws from the exact posterior, or from a scaled or shifted one.

    Args:
        centered: whether the noise of all draws together has mean zero.
        shift: is added to the bias.
    """
    mean, covariance = conjugate()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(chains, num, 2, dtype=X.dtype, generator=generator)
    if centered:
        noise = noise - noise.mean((0, 1))
    draws = mean + scale * noise @ torch.linalg.cholesky(covariance).T
    sites = {"weight": draws[..., :1], "bias": draws[..., 1] + shift}
    return Posterior.from_draws(model or linear_regression(N), sites, **more)


def leave_one_out_exactly():
    """Return log p(y_n | all others), (N,), by N refits."""
    terms = []
    for n in range(N):
        others = torch.arange(N) != n
        mean, covariance = conjugate(X[others], Y[others])
        row = torch.tensor([float(X[n, 0]), 1.0], dtype=X.dtype)
        stddev = (row @ covariance @ row + NOISE**2).sqrt()
        terms.append(Normal(row @ mean, stddev).log_prob(Y[n]))
    return torch.stack(terms)
