"""Bayesian regression written by hand with ``pyro.sample``: a whole generative story in a page."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_bnn.runtime.program import Program

__all__ = ["hidden_layer_regression", "linear_regression"]


def linear_regression(
    num_data: int, inputs: int = 1, prior_scale: float = 1.0, noise: float = 0.3
) -> Program:
    r"""Return the program of :math:`y_n = w^T x_n + b + \epsilon_n`.

    The priors are Gaussian and the noise is Gaussian of known scale. The posterior is therefore
    Gaussian with a closed form, which makes this the model to try approximations on first.

    x (batch, inputs), y (batch,); the program returns the means (batch,).

    Args:
        num_data: The number of examples in the data set.
        inputs: The number of inputs.
        prior_scale: The standard deviation of w and b.
        noise: The standard deviation of the noise.
    """

    def model(x: Tensor, y: Tensor | None = None) -> Tensor:
        weight = pyro.sample("weight", dist.Normal(x.new_zeros(inputs), prior_scale).to_event(1))
        bias = pyro.sample("bias", dist.Normal(x.new_zeros(()), prior_scale))
        batch: Any = range(len(x))  # the given examples stand for all num_data
        with pyro.plate("data", len(x) if y is None else num_data, subsample=batch):
            mean = x @ weight + bias
            pyro.sample("y", dist.Normal(mean, noise), obs=y)
        return mean

    return model


def hidden_layer_regression(
    num_data: int, inputs: int = 1, hidden: int = 32, noise: float | None = None
) -> Program:
    r"""Return the program of :math:`y_n = v^T \max(0, W x_n + b) + c + \epsilon_n`.

    W, b and c are standard normal. The variance 4 / H of the H weights v decreases with the width,
    so that the functions have one scale whatever the width. The noise is known, or inferred under a
    half-normal prior.

    x (batch, inputs), y (batch,); the program returns the means (batch,).

    Args:
        num_data: The number of examples in the data set.
        inputs: The number of inputs.
        hidden: The number H of hidden units.
        noise: The standard deviation of the noise; ``None`` infers it, at the site ``"noise"``.
    """

    def model(x: Tensor, y: Tensor | None = None) -> Tensor:
        w1 = pyro.sample("w1", dist.Normal(x.new_zeros(inputs, hidden), 1.0).to_event(2))
        b1 = pyro.sample("b1", dist.Normal(x.new_zeros(hidden), 1.0).to_event(1))
        w2 = pyro.sample("w2", dist.Normal(x.new_zeros(hidden), 2 * hidden**-0.5).to_event(1))
        b2 = pyro.sample("b2", dist.Normal(x.new_zeros(()), 1.0))
        sigma = pyro.sample("noise", dist.HalfNormal(x.new_ones(()))) if noise is None else noise
        batch: Any = range(len(x))  # the given examples stand for all num_data
        with pyro.plate("data", len(x) if y is None else num_data, subsample=batch):
            mean = torch.relu(x @ w1 + b1) @ w2 + b2
            pyro.sample("y", dist.Normal(mean, sigma), obs=y)
        return mean

    return model
