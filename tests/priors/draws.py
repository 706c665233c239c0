"""Draws from a prior, and a test of their distribution.

Kolmogorov-Smirnov tests have fixed seeds and a threshold of 1e-4 on the p-value: on a fresh seed
each would fail falsely with that probability.
"""

import torch
from pyro import poutine
from scipy import stats

SMALLEST_P_VALUE = 1e-4


SHAPE = torch.Size([4, 5000])


def draw(prior, shape=SHAPE, group_dim=None):
    trace = poutine.trace(lambda: prior("w", torch.Size(shape), group_dim)).get_trace()
    return {name: site["value"] for name, site in trace.nodes.items() if site["type"] == "sample"}


def assert_follows(values, cdf):
    assert stats.kstest(values.flatten().numpy(), cdf).pvalue > SMALLEST_P_VALUE
