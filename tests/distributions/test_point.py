"""Points and flat priors."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_bnn.distributions import (
    Flat,
    ImproperPriorError,
    Point,
)


def double(values):
    return torch.as_tensor(values, dtype=torch.float64)


def test_divergences_of_points_and_flat_priors_are_closed():
    q = Point(double([0.5, -2.0]))
    assert kl_divergence(q, Flat()).tolist() == [0.0, 0.0]
    assert torch.equal(q.rsample((3,)), q.loc.expand(3, 2))
    assert torch.allclose(
        kl_divergence(q, dist.Normal(double(0.0), 1.0)), q.loc**2 / 2 + math.log(2 * math.pi) / 2
    )
    assert q.log_prob(double([0.5, 2.0])).tolist() == [0.0, -math.inf]
    wide = dist.Normal(double([0.0, 3.0]), double([1.0, 0.1]))
    assert torch.allclose(kl_divergence(wide, Flat()), -wide.entropy())
    with pytest.raises(ImproperPriorError, match=r"improper[\s\S]*unit_scale"):
        Flat().sample()
