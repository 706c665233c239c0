"""Bayesian linear regression with a known posterior, and the deviation of draws from it."""

import math

import numpy as np
import torch

from pyro_bnn.models import linear_regression

CHAINS, SIGMAS, N, NOISE = 512, 4.5, 12, 0.5

torch.manual_seed(1)
X = torch.randn(N, 2, dtype=torch.float64)
Y = X[:, 0] - 0.5 * X[:, 1] + 0.3 + NOISE * torch.randn(N, dtype=torch.float64)
MODEL = linear_regression(N, inputs=2, noise=NOISE)
DESIGN = np.column_stack([X.numpy(), np.ones(N)])
PRECISION = DESIGN.T @ DESIGN / NOISE**2 + np.eye(3)
COVARIANCE = np.linalg.inv(PRECISION)
MEAN = COVARIANCE @ DESIGN.T @ Y.numpy() / NOISE**2
STIFF = np.linalg.eigvalsh(PRECISION)[-1]


def deviation(statistics, truths):
    """The largest deviation of statistics (chain, draw, ...) from their means, in errors."""
    each = np.asarray(statistics).mean(1)
    return np.abs((each.mean(0) - truths) / (each.std(0) / math.sqrt(len(each)))).max()


def regression_deviation(posterior):
    """Mean and covariance against the conjugate posterior."""
    weight, bias = posterior.draws["weight"], posterior.draws["bias"]
    q = torch.cat([weight, bias[..., None]], -1).numpy() - MEAN
    products = np.einsum("cti,ctj->ctij", q, q)
    return max(deviation(q, 0.0), deviation(products, COVARIANCE))
