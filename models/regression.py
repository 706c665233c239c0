"""Bayesian regression, written by hand with ``pyro.sample``: the whole generative story in a dozen lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["linear_regression", "mlp_regression"]


def linear_regression(
    num_data: int, inputs: int = 1, prior_scale: float = 1.0, noise: float = 0.3
) -> Callable[..., Tensor]:
    r"""Return the model :math:`y_n = w^T x_n + b + \epsilon_n`, with Gaussian priors and known Gaussian noise.

    x (batch, inputs), y (batch,). Its posterior is Gaussian and known in closed form, so it is where approximations are
    tried first.

    Args:
        num_data: the number of examples in the data set.
        inputs: the number of inputs.
        prior_scale: the standard deviation of w and b.
        noise: the standard deviation of the noise.
    """

    def model(x: Tensor, y: Tensor | None = None) -> Tensor:
        weight = pyro.sample("weight", dist.Normal(x.new_zeros(inputs), prior_scale).to_event(1))
        bias = pyro.sample("bias", dist.Normal(x.new_zeros(()), prior_scale))
        batch: Any = range(len(x))  # the examples that were handed in stand for all num_data
        with pyro.plate("data", len(x) if y is None else num_data, subsample=batch):
            mean = x @ weight + bias
            pyro.sample("y", dist.Normal(mean, noise), obs=y)
        return mean

    return model


def mlp_regression(
    num_data: int, inputs: int = 1, hidden: int = 32, noise: float | None = None
) -> Callable[..., Tensor]:
    r"""Return the model :math:`y_n = v^T \max(0, W x_n + b) + c + \epsilon_n` with one hidden layer.

    x (batch, inputs), y (batch,). W, b and c are standard normal, and the variance 4 / H of the H weights v falls with
    the width, so that the functions have one scale whatever the width. The noise is known, or inferred under a
    half-normal prior.

    Args:
        num_data: the number of examples in the data set.
        inputs: the number of inputs.
        hidden: H, the number of hidden units.
        noise: the standard deviation of the noise; ``None`` infers it, at the site ``"noise"``.
    """

    def model(x: Tensor, y: Tensor | None = None) -> Tensor:
        w1 = pyro.sample("w1", dist.Normal(x.new_zeros(inputs, hidden), 1.0).to_event(2))
        b1 = pyro.sample("b1", dist.Normal(x.new_zeros(hidden), 1.0).to_event(1))
        w2 = pyro.sample("w2", dist.Normal(x.new_zeros(hidden), 2 * hidden**-0.5).to_event(1))
        b2 = pyro.sample("b2", dist.Normal(x.new_zeros(()), 1.0))
        sigma = pyro.sample("noise", dist.HalfNormal(x.new_ones(()))) if noise is None else noise
        batch: Any = range(len(x))
        with pyro.plate("data", len(x) if y is None else num_data, subsample=batch):
            mean = torch.relu(x @ w1 + b1) @ w2 + b2
            pyro.sample("y", dist.Normal(mean, sigma), obs=y)
        return mean

    return model
