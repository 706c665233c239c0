r"""How narrow a posterior is: from it follows a step size for whom none was given.

The step sizes of stochastic-gradient samplers have the scale of a posterior variance. Where its smallest one is
:math:`1/\lambda`, :math:`\lambda` the largest eigenvalue of :math:`-\nabla^2 U` at a mode, and gradients are of B out
of N examples, a step adds to the variance along that direction

- by its length, :math:`\varepsilon\lambda/4` of it (SGLD, full batch: the exact law of a Gaussian target),
- by the noise of the minibatch, :math:`\varepsilon V/4` with :math:`V \approx \lambda N/B`, for near a mode of a
  well-specified model the gradients of single examples have the covariance that the curvature has, divided by N.

The defaults keep the larger of the two at about one twentieth. Wider directions err less, and are slow to be explored:
a step size of one's own is usually worth finding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .sampler import Batch, Gradient, SamplingError

__all__ = ["largest_curvature"]


def largest_curvature(
    gradient: Gradient, position: Tensor, batch: Batch, climb: int = 300, rounds: int = 30
) -> float:
    """Return the largest eigenvalue of minus the Hessian of U at the modes next to the chains.

    The chains climb by Adam, then Hessian-vector products, as differences of gradients, are iterated.

    Args:
        gradient: log-density and gradient of all chains.
        position: where the chains start (chains, D); it stays as it is.
        batch: what the gradient is taken on.
        climb: steps of Adam.
        rounds: of the power iteration.

    Raises:
        SamplingError: a curvature that is no positive number.
    """
    top = position.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([top], lr=0.02)
    for _ in range(climb):
        top.grad = -gradient(top.detach(), *batch)[1]
        optimizer.step()
    mode = top.detach()
    noise = torch.Generator(mode.device).manual_seed(0)
    direction = torch.empty_like(mode).normal_(generator=noise)
    found = mode.new_zeros(len(mode))
    for _ in range(rounds):
        direction = direction / direction.norm(dim=1, keepdim=True).clamp_min(1e-30)
        reach = 1e-3 * (1 + mode.norm(dim=1, keepdim=True)) * direction
        # -H v = (∇U(q - h v) - ∇U(q + h v)) / 2h
        bent = gradient(mode - reach, *batch)[1] - gradient(mode + reach, *batch)[1]
        bent = bent / (2e-3 * (1 + mode.norm(dim=1, keepdim=True)))
        found, direction = (bent * direction).sum(1), bent
    largest = float(found.abs().max())
    if not 0 < largest < float("inf"):
        raise SamplingError(
            f"the curvature of the log-density near the start is {largest}: give a step_size"
        )
    return largest
