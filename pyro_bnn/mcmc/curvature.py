r"""The curvature of a log density, from which default step sizes follow.

The step sizes of stochastic-gradient samplers have the scale of a posterior variance. Let
:math:`\lambda` be the largest eigenvalue of :math:`-\nabla^2 \log p` at a mode, so that
:math:`1/\lambda` is the smallest variance, and let gradients use B out of N examples. Along that
direction a step adds to the variance

- by its length the fraction :math:`\varepsilon\lambda/4` of it (SGLD on all the data; this is the
  exact stationary distribution of a Gaussian target), and
- by the noise of the minibatch the fraction :math:`\varepsilon V/4` with
  :math:`V \approx \lambda N/B`: near a mode of a well-specified model the gradients of single
  examples have the curvature divided by N as their covariance.

The defaults keep the larger of the two at about one twentieth. Wider directions have a smaller
bias and are explored slowly, so a tuned step size usually pays off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .sampler import Batch, SamplingError, ValueAndGrad

__all__ = ["largest_curvature"]


def largest_curvature(
    value_and_grad: ValueAndGrad,
    position: Tensor,
    batch: Batch,
    *,
    adam_steps: int = 300,
    power_iterations: int = 30,
    caller: str = "largest_curvature",
) -> float:
    """Return the largest eigenvalue of minus the Hessian of the log density at nearby modes.

    The chains climb to a mode by Adam; there, a power iteration runs on products of Hessian and
    vector, which are differences of gradients.

    Args:
        value_and_grad: Log density and gradient of all chains.
        position: Where the chains start, (chains, D); it is not changed.
        batch: The data on which gradients are computed.
        adam_steps: Number of steps of Adam.
        power_iterations: Number of power iterations.
        caller: Name of the function that the user called, with which messages begin.

    Raises:
        SamplingError: The curvature is zero, NaN or infinite.
    """
    mode = _climb(value_and_grad, position, batch, adam_steps)
    noise = torch.Generator(mode.device).manual_seed(0)
    direction = torch.empty_like(mode).normal_(generator=noise)
    eigenvalue = mode.new_zeros(len(mode))
    for _ in range(power_iterations):
        direction = direction / direction.norm(dim=1, keepdim=True).clamp_min(1e-30)
        # -H v = (∇log p(q - h v) - ∇log p(q + h v)) / 2h
        reach = 1e-3 * (1 + mode.norm(dim=1, keepdim=True)) * direction
        difference = (
            value_and_grad(mode - reach, *batch)[1] - value_and_grad(mode + reach, *batch)[1]
        )
        product = difference / (2e-3 * (1 + mode.norm(dim=1, keepdim=True)))
        eigenvalue, direction = (product * direction).sum(1), product
    largest = float(eigenvalue.abs().max())
    if not 0 < largest < float("inf"):
        raise SamplingError(
            f"{caller}: the curvature of the log density near the start is {largest}, so no step "
            "size follows from it: give a step_size"
        )
    return largest


def _climb(value_and_grad: ValueAndGrad, position: Tensor, batch: Batch, adam_steps: int) -> Tensor:
    """Return positions near a mode, (chains, D)."""
    top = position.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([top], lr=0.02)
    for _ in range(adam_steps):
        top.grad = -value_and_grad(top.detach(), *batch)[1]
        optimizer.step()
    return top.detach()
