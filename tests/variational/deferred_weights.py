"""Deferred weights, and the moments that the outputs of their layers have.

The output of a layer is linear in its weight. With J the Jacobian of the output with respect to the
weight, found by differentiating the layer itself, a weight of independent elements N(m, s^2) gives
an output of mean J m, variance J^2 s^2 and covariance J diag(s^2) J^T.

A comparison at 5 standard errors fails falsely with a probability of 6e-7 for each number compared
(6e-5 at 4 standard errors).
"""

import math
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_bnn import local_reparameterization

DRAWS = 20_000


positions = pytest.mark.filterwarnings("ignore:.*covariances between positions")


def normal(*shape, scale=0.7, dtype=torch.float64):
    """Return a Normal whose means and standard deviations are of order one and all different."""
    loc = torch.randn(shape, dtype=dtype)
    return dist.Normal(loc, scale * (0.3 + torch.rand(shape, dtype=dtype)))


def log_normal(*shape, scale=0.4):
    return dist.LogNormal(
        0.5 * randn(*shape), scale * (0.5 + torch.rand(shape, dtype=torch.float64))
    )


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64)


def sample(distributions, wrap=local_reparameterization, **options):
    """Return a deferred sample of every site of a guide, from the distributions of its sites."""

    def guide():
        samples = {}
        for name, q in distributions.items():
            samples[name] = pyro.sample(name, q.to_event(len(q.batch_shape)))
        return samples

    return wrap(guide, **options)()


def deferred(q, wrap=local_reparameterization, **options):
    return sample({"w": q}, wrap, **options)["w"]


def composed(prior, shape, group_dim, distributions, **options):
    """Return the weight that a prior makes of deferred sites."""

    def guide():
        for site, q in distributions.items():
            pyro.sample(f"w.{site}", q.to_event(len(q.batch_shape)))

    trace = poutine.trace(local_reparameterization(guide, **options)).get_trace()
    return poutine.replay(prior, trace=trace)("w", torch.Size(shape), group_dim), trace


class Estimates(NamedTuple):
    """Moments estimated from draws, with their standard errors."""

    mean: torch.Tensor
    variance: torch.Tensor
    mean_error: torch.Tensor
    variance_error: torch.Tensor


def moments(draws):
    """Return mean and variance along axis 0; the error of the variance needs the fourth moment."""
    n, mean = len(draws), draws.mean(0)
    centred = draws - mean
    variance = centred.square().mean(0)
    fourth = centred.pow(4).mean(0)
    variance_error = ((fourth - variance.square()).clamp_min(0) / n).sqrt()
    return Estimates(mean, variance, (variance / n).sqrt(), variance_error)


def assert_moments(draws, mean, variance, errors=5.0):
    """Compare with expected values, within standard errors; 1e-6 is for draws without noise."""
    estimates = moments(draws)
    assert ((estimates.mean - mean).abs() <= errors * estimates.mean_error + 1e-6).all()
    tolerance = errors * estimates.variance_error + 1e-6
    assert ((estimates.variance - variance).abs() <= tolerance).all()


def covariance(a, b):
    """Return the covariance of two columns of draws and its standard error."""
    product = (a - a.mean(0)) * (b - b.mean(0))
    return product.mean(0), product.std(0) / math.sqrt(len(product))


def linear_moments(call, q):
    """Return mean, variance and (flat) covariance of a call that is affine in the weight."""
    zero = call(torch.zeros_like(q.mean))
    jacobian = torch.func.jacrev(call)(torch.zeros_like(q.mean)).reshape(
        zero.numel(), q.mean.numel()
    )
    mean = (jacobian @ q.mean.flatten()).reshape(zero.shape) + zero
    covariance_matrix = jacobian @ torch.diag(q.variance.flatten()) @ jacobian.T
    return mean, covariance_matrix.diagonal().reshape(zero.shape), covariance_matrix


def drawn_and_expected(call, x, q, wrap=local_reparameterization, draws=DRAWS):
    """Return draws of ``call(x, w)`` for a deferred w, with the expected mean and variance.

    The draws are independent along axis 0; axis 1 holds the examples.
    """
    out = call(x.repeat(draws, *[1] * (x.dim() - 1)), deferred(q, wrap))
    mean, variance, _ = linear_moments(lambda w: call(x, w), q)
    return out.reshape(draws, len(x), *out.shape[1:]), mean, variance


LAYERS = {
    "linear": (F.linear, (3,), (4, 3), {}),
    "linear, positions": (F.linear, (2, 3), (4, 3), {}),
    "conv1d": (F.conv1d, (2, 9), (3, 2, 3), {"stride": 2, "padding": 2, "dilation": 2}),
    "conv2d": (
        F.conv2d,
        (2, 6, 8),
        (3, 2, 3, 5),
        {"stride": (2, 1), "padding": (1, 2), "dilation": (2, 1)},
    ),
    "conv2d same": (F.conv2d, (2, 4, 6), (3, 2, 3, 5), {"padding": "same"}),
    "conv2d groups": (F.conv2d, (4, 4, 6), (6, 2, 3, 5), {"groups": 2, "padding": 1}),
    "conv3d": (F.conv3d, (2, 3, 3, 4), (2, 2, 2, 1, 3), {"stride": 2, "padding": 1}),
    "conv_transpose1d": (F.conv_transpose1d, (2, 4), (2, 3, 3), {"stride": 2, "output_padding": 1}),
    "conv_transpose2d": (
        F.conv_transpose2d,
        (2, 3, 2),
        (2, 3, 3, 5),
        {"stride": 2, "padding": 1, "dilation": (1, 2)},
    ),
    "conv_transpose2d groups": (
        F.conv_transpose2d,
        (4, 2, 3),
        (4, 2, 3, 5),
        {"groups": 2, "padding": (1, 2)},
    ),
    "conv_transpose3d": (F.conv_transpose3d, (2, 2, 2, 2), (2, 2, 2, 1, 3), {"padding": (1, 0, 1)}),
}


def channels(name, w_shape, options):
    """Return the number of output channels of a layer."""
    if "transpose" in name:
        return w_shape[1] * options.get("groups", 1)
    return w_shape[0]


class RandomShapes(TorchDispatchMode):
    """Record the shapes of all random numbers that are drawn."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.shapes.append(tuple(result.shape))
        return result
