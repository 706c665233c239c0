r"""The exact stationary distributions of the stochastic-gradient samplers on a Gaussian posterior.

On a Gaussian posterior every sampler is a linear recursion :math:`s' = K s + L e + \text{noise}`
with independent :math:`K, e` at each step. Its stationary covariance, bias and minibatch noise
included, solves a linear equation; so do the standard errors of estimates from draws. Therefore
nothing is tested with a small step and a loose tolerance.
"""

import math

import numpy as np
import torch
from scipy.linalg import solve_discrete_lyapunov

from pyro_bnn import mcmc
from pyro_bnn.models import linear_regression

N, NOISE, SIGMAS, CHAINS = 12, 0.5, 4.5, 256
SAMPLERS = {"sgld": mcmc.sgld, "psgld": mcmc.psgld, "sghmc": mcmc.sghmc, "baoa": mcmc.baoa}


def regression_data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, 2, generator=generator, dtype=torch.float64)
    noise = NOISE * torch.randn(N, generator=generator, dtype=torch.float64)
    return x, x @ torch.tensor([1.0, -0.5], dtype=torch.float64) + 0.3 + noise


X, Y = regression_data()
MODEL = linear_regression(N, inputs=2, prior_scale=1.0, noise=NOISE)
DESIGN = np.column_stack([X.numpy(), np.ones(N)])
EACH = np.einsum("ni,nj->nij", DESIGN, DESIGN) / NOISE**2  # precision that each example adds
PRECISION = EACH.sum(0) + np.eye(3)
MEAN = np.linalg.solve(PRECISION, DESIGN.T @ Y.numpy() / NOISE**2)
# the gradient of each example at the mean
RESIDUALS = DESIGN * (Y.numpy() - DESIGN @ MEAN)[:, None] / NOISE**2
STIFF = np.linalg.eigvalsh(PRECISION)[-1]
SCALES = np.array([0.5, 1.0, 2.0])  # a preconditioner
START = {"weight": torch.tensor(MEAN[:2]), "bias": torch.tensor(MEAN[2])}


# --- Recursions q' = K q + L e + noise, as functions of the precision A seen by the gradient ---


def sgld_recursion(A, step_size, temperature=1.0):
    identity = np.eye(3)
    return (
        identity - step_size / 2 * A,
        step_size / 2 * identity,
        step_size * temperature * identity,
    )


def psgld_recursion(A, step_size, temperature=1.0):
    G = np.diag(SCALES)
    return np.eye(3) - step_size / 2 * G @ A, step_size / 2 * G, step_size * temperature * G


def sghmc_recursion(A, step_size, temperature=1.0, friction=0.3, noise_estimate=0.0):
    I, remaining = np.eye(3), 1 - friction
    noise = 2 * (friction - noise_estimate) * step_size * temperature
    K = np.block([[I - step_size * A, remaining * I], [-step_size * A, remaining * I]])
    return K, step_size * np.vstack([I, I]), noise * np.kron(np.ones((2, 2)), I)


def baoa_recursion(A, step_size, temperature=1.0, friction=4.0):
    I, h, c = np.eye(3), step_size, math.exp(-friction * step_size)
    K = np.block([[I - h**2 * (1 + c) / 2 * A, h * (1 + c) / 2 * I], [-h * c * A, c * I]])
    L = np.vstack([h**2 * (1 + c) / 2 * I, h * c * I])
    return K, L, temperature * (1 - c**2) * np.kron([[h**2 / 4, h / 2], [h / 2, 1]], I)


RECURSIONS = {
    "sgld": sgld_recursion,
    "psgld": psgld_recursion,
    "sghmc": sghmc_recursion,
    "baoa": baoa_recursion,
}
SETTINGS = {
    "sgld": {},
    "psgld": {"preconditioner": torch.tensor(SCALES)},
    "sghmc": {"friction": 0.3},
    "baoa": {"friction": 4.0},
}
# not small: the bias of sgld is 33 % of the smallest variance
STEPS = {
    "sgld": 1 / STIFF,
    "psgld": 0.7 / STIFF,
    "sghmc": 0.5 / STIFF,
    "baoa": 1 / math.sqrt(STIFF),
}


def stationary(recursion, batch_size=None, **settings):
    """The exact stationary covariance on all the data, or on minibatches of iid examples."""
    K, L, Q = recursion(PRECISION, **settings)
    if batch_size is None:
        return solve_discrete_lyapunov(K, Q)
    # E[K x K] = K x K + (1/B) mean_i of dK_i x dK_i, where dK_i is the change of K by example i,
    # taken N times
    changes = []
    for i in range(N):
        changes.append(recursion(PRECISION + N * EACH[i] - EACH.sum(0), **settings)[0] - K)
    squares = np.kron(K, K) + sum(np.kron(d, d) for d in changes) / (N * batch_size)
    deviations = N * RESIDUALS - RESIDUALS.sum(0)
    Q = Q + L @ (deviations.T @ deviations / (N * batch_size)) @ L.T
    return np.linalg.solve(np.eye(squares.shape[0]) - squares, Q.reshape(-1)).reshape(Q.shape)


def standard_errors(K, P, draws, thin, chains):
    """Standard errors of mean and covariance, exact for a Gaussian recursion of known mean."""
    step, cross = np.linalg.matrix_power(K, thin), P
    variance_of_mean = draws * np.diag(P)
    variance = draws * (np.outer(np.diag(P), np.diag(P)) + P**2)
    for lag in range(1, draws):
        cross = step @ cross  # Cov(s_{t + lag}, s_t)
        d = np.diag(cross)
        variance_of_mean = variance_of_mean + 2 * (draws - lag) * d
        # Isserlis: Cov(a b, a' b') = Cov(a, a') Cov(b, b') + Cov(a, b') Cov(b, a')
        variance = variance + 2 * (draws - lag) * (np.outer(d, d) + cross * cross.T)
    mean_error = np.sqrt(variance_of_mean[:3] / chains) / draws
    covariance_error = np.sqrt(variance[:3, :3] / chains) / draws
    return mean_error, covariance_error


# --- Draws ------------------------------------------------------------------------------------


def positions(posterior):
    """Draws as one array (chain, draw, 3)."""
    draws = posterior.draws
    return torch.cat([draws["weight"], draws["bias"][..., None]], -1).numpy()


def run(name, model=MODEL, data=(X, Y), **settings):
    defaults = {
        "step_size": STEPS[name],
        "chains": CHAINS,
        "warmup": 300,
        "draws": 40,
        "thin": 5,
        "start": START,
        "progress": False,
    }
    return SAMPLERS[name](model, data, **SETTINGS[name], **defaults | settings)


def deviation(posterior, recursion, batch_size=None, thin=5, **settings):
    """The largest deviation of mean and covariance from the exact ones, in standard errors."""
    draws = positions(posterior)
    P = stationary(recursion, batch_size, **settings)
    chains, length, _ = draws.shape
    centred = draws - MEAN
    each = np.einsum("cti,ctj->cij", centred, centred) / length
    if batch_size is None:
        K = recursion(PRECISION, **settings)[0]
        mean_error, error = standard_errors(K, P, length, thin, chains)
    else:  # multiplicative noise is not Gaussian; the errors are those between the chains
        mean_error = centred.mean(1).std(0) / math.sqrt(chains)
        error = each.std(0) / math.sqrt(chains)
    return max(
        np.abs(centred.mean((0, 1)) / mean_error).max(),
        np.abs((each.mean(0) - P[:3, :3]) / error).max(),
    )
