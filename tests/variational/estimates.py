"""Estimates of a loss and its gradient, and Pyro's loss as a reference.

A comparison at 5 standard errors fails falsely with a probability of 6e-7 for each number compared
(6e-5 at 4 standard errors).
"""

import math
from unittest import mock

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from pyro_bnn import priors


def double(values):
    return torch.as_tensor(values, dtype=torch.float64)


def values(draw, draws):
    """Return independent values of a random number, by one vectorized run of the program."""
    draw()  # validates, and declares parameters
    # vmap refuses tensor.normal_() where the tensor itself has no batch
    fresh = mock.patch.object(torch.Tensor, "normal_", lambda self: torch.randn_like(self))
    with pyro.validation_enabled(False), fresh:
        return torch.vmap(lambda _: draw(), randomness="different")(torch.arange(draws))


def estimate(draw, draws):
    """Return mean and standard error of a random number."""
    with torch.no_grad():
        drawn = values(draw, draws).double()
    return float(drawn.mean()), float(drawn.std() / math.sqrt(draws))


def gradients(draw, parameters, draws, groups=50):
    """Return mean and standard error of the gradient, from means over independent groups."""
    parts = values(draw, draws).reshape(groups, -1).mean(1)
    rows = [torch.autograd.grad(part, parameters, retain_graph=True) for part in parts]
    rows = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    return rows.mean(0), rows.std(0) / math.sqrt(groups)


def agree(first, second, errors=5.0):
    (a, sa), (b, sb) = first, second
    assert abs(a - b) < errors * math.hypot(sa, sb) + 1e-5 * abs(a), (first, second)


def stock_loss(model, guide, *args):
    """Return the integrand of Pyro's Trace_ELBO, log q(w) - log p(y, w) at one draw."""
    guide_trace = poutine.trace(guide).get_trace(*args)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args)
    return guide_trace.log_prob_sum() - model_trace.log_prob_sum()


PRIORS = {
    "Normal": priors.Normal(0.7),
    "LearnedNormal": priors.LearnedNormal(0.7),
    "LogUniform": priors.LogUniform(),
    "NormalJeffreys": priors.NormalJeffreys(),
    "Horseshoe": priors.Horseshoe(0.5),
    "Horseshoe elementwise": priors.Horseshoe(0.5, group=None),
    "Horseshoe decomposed": priors.Horseshoe(0.5, decomposed=True),
    "Horseshoe slab": priors.Horseshoe(0.5, slab=1.0, decomposed=True),
    "GaussianMixture": priors.GaussianMixture([0.1, 1.0], [0.3, 0.7]),
    "StudentT": priors.Elementwise(dist.StudentT(3.0, 0.0, 0.5)),
}
