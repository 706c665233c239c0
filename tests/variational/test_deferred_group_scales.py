"""Group scales of scale mixtures: drawn for each example, or shared by all of them."""

import math
import warnings

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import nn

from pyro_bnn import (
    ELBO,
    BayesianNet,
    guides,
    likelihoods,
    local_reparameterization,
    priors,
)
from pyro_bnn.distributions import TruncatedLogNormal
from pyro_bnn.variational.reparameterization import (
    DeferredSample,
    ReparameterizationWarning,
)
from tests.variational.deferred_weights import (
    DRAWS,
    RandomShapes,
    assert_moments,
    composed,
    covariance,
    deferred,
    linear_moments,
    log_normal,
    normal,
    positions,
    randn,
)


def mixture(kind, shape, group_dim):
    """Return a prior, its scale sites, and E lambda, E lambda^2 of the product of the scales."""
    group = [size if axis == group_dim else 1 for axis, size in enumerate(shape)]
    one = [1] * len(shape)
    if kind == "jeffreys":
        distributions = {"scale": normal(*group)}
        return (
            priors.NormalJeffreys(),
            distributions,
            distributions["scale"].mean,
            distributions["scale"].variance + distributions["scale"].mean.square(),
        )
    if kind == "truncated":
        z = TruncatedLogNormal(
            randn(*group) - 1, 0.5 + torch.rand(group, dtype=torch.float64), -20.0, 0.0
        )
        return (
            priors.TruncatedLogUniform(unit_scale=1.0).double(),
            {"scale": z},
            z.mean,
            z.variance + z.mean.square(),
        )
    # the scale of the whole layer is shared by all examples, so it has no spread in this test
    sharp = dist.LogNormal(torch.full(one, 0.3).double(), torch.full(one, 1e-9).double())
    z, s = log_normal(*group), math.exp(0.3)
    if kind == "horseshoe":
        return (
            priors.Horseshoe().double(),
            {"global_scale": sharp, "scale": z},
            z.mean * s,
            (z.variance + z.mean**2) * s**2,
        )
    distributions = {"global_scale.gamma": sharp, "global_scale.inverse_gamma": sharp}
    distributions |= {"scale.gamma": z, "scale.inverse_gamma": log_normal(*group)}
    # log sqrt(ab) ~ N((m_a + m_b) / 2, (v_a + v_b) / 4)
    other = distributions["scale.inverse_gamma"]
    z = dist.LogNormal(
        (z.loc + other.loc) / 2, (z.scale.square() + other.scale.square()).sqrt() / 2
    )
    return (
        priors.Horseshoe(decomposed=True).double(),
        distributions,
        z.mean * s,
        (z.variance + z.mean**2) * s**2,
    )


KINDS = ["jeffreys", "horseshoe", "decomposed", "truncated"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["linear", "x @ w"])
def test_scales_of_input_units_are_drawn_for_each_example(kind, form):
    shape, group_dim = ((4, 3), 1) if form == "linear" else ((3, 4), 0)
    prior, distributions, first, second = mixture(kind, shape, group_dim)
    unit = normal(*shape)
    sites = {**distributions, "unit": unit}
    w, _ = composed(prior, shape, group_dim, sites, per_example_scales=True)
    assert isinstance(w, DeferredSample)
    assert len(w.scales) == (2 if kind == "decomposed" else 1)
    x, bias = randn(2, 3), randn(4)
    rows = x.repeat(DRAWS, 1)
    out = F.linear(rows, w, bias) if form == "linear" else rows @ w + bias
    out = out.reshape(DRAWS, 2, 4)
    # y_o = sum_i x_i z_i u_oi:  E y = sum x E z mu,
    # Var y = sum x^2 (E z^2 (mu^2 + s^2) - (E z)^2 mu^2)
    unit_mean, unit_variance = unit.mean, unit.variance
    if form == "x @ w":
        unit_mean, unit_variance = unit_mean.T, unit_variance.T
        first, second = first.T, second.T
    mean = unit_mean * first
    variance = second * (unit_mean.square() + unit_variance) - (first * unit_mean).square()
    assert_moments(out, x @ mean.T + bias, x.square() @ variance.T)
    # the scales are the same for all outputs of an example,
    # cov(y_o, y_p) = sum_i x_i^2 Var z_i mu_oi mu_pi ...
    expected = (x.square() * (second - first.square())) @ (unit_mean[0] * unit_mean[1])
    value, error = covariance(out[:, :, 0], out[:, :, 1])
    assert ((value - expected).abs() < 5 * error).all()
    # ... and independent for different examples
    value, error = covariance(out[:, 0], out[:, 1])
    assert (value.abs() < 5 * error).all()


@positions
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", ["none", "tensor"])
def test_scales_of_output_channels_are_drawn_for_each_example(kind, bias):
    shape = (3, 2, 3, 5)
    prior, distributions, first, second = mixture(kind, shape, 0)
    unit = normal(*shape)
    w, _ = composed(prior, shape, 0, {**distributions, "unit": unit}, per_example_scales=True)
    x, b = randn(2, 2, 4, 5), None if bias == "none" else randn(3)
    out = F.conv2d(x.repeat(DRAWS // 4, 1, 1, 1), w, b, padding=1).reshape(DRAWS // 4, 2, 3, 4, 3)
    mean, variance, _ = linear_moments(lambda u: F.conv2d(x, u, padding=1), unit)
    first, second = first.reshape(3, 1, 1), second.reshape(3, 1, 1)
    offset = 0 if b is None else b.reshape(3, 1, 1)  # not scaled: the bias is no part of w = u z
    assert_moments(
        out, first * mean + offset, second * (mean.square() + variance) - (first * mean).square()
    )
    # one z for all positions of a channel: cov = Var z E c E c'
    value, error = covariance(out[:, :, :, 0, 0], out[:, :, :, 1, 2])
    expected = (second - first.square()).flatten() * mean[:, :, 0, 0] * mean[:, :, 1, 2]
    assert ((value - expected).abs() < 5 * error).all()
    value, error = covariance(out[:, 0, 0], out[:, 0, 1])  # another channel, another z
    assert (value.abs() < 5 * error).all()
    value, error = covariance(out[:, 0], out[:, 1])
    assert (value.abs() < 5 * error).all()


@positions
def test_scales_are_drawn_for_each_example_if_their_axis_covers_all_channels():
    x, unit = randn(2, 4, 2, 3), normal(4, 2, 3, 5)
    z = normal(1, 2, 1, 1)
    mean, variance, _ = linear_moments(lambda u: F.conv_transpose2d(x, u), unit)
    w, _ = composed(
        priors.NormalJeffreys(),
        (4, 2, 3, 5),
        1,
        {"scale": z, "unit": unit},
        per_example_scales=True,
    )
    out = F.conv_transpose2d(x.repeat(3000, 1, 1, 1), w).reshape(3000, *mean.shape)
    first, second = z.mean.reshape(2, 1, 1), (z.mean.square() + z.variance).reshape(2, 1, 1)
    assert_moments(out, first * mean, second * (mean.square() + variance) - (first * mean).square())
    # with groups, the inner axis runs over some channels only: the scales are drawn once
    w, trace = composed(
        priors.NormalJeffreys(),
        (4, 2, 3, 5),
        1,
        {"scale": z, "unit": unit},
        per_example_scales=True,
    )
    with pytest.warns(ReparameterizationWarning, match=r"'w\.scale'"):
        out = F.conv_transpose2d(x.repeat(3000, 1, 1, 1), w, groups=2)
    drawn = trace.nodes["w.scale"]["value"].materialize()
    mean, variance, _ = linear_moments(lambda u: F.conv_transpose2d(x, u * drawn, groups=2), unit)
    assert_moments(out.reshape(3000, *mean.shape), mean, variance)


@pytest.mark.parametrize("kind", KINDS)
def test_shared_scales_are_drawn_once_and_the_unit_stays_deferred(kind):
    prior, distributions, _, _ = mixture(kind, (4, 3), 1)
    unit = normal(4, 3)
    with RandomShapes() as random:
        w, trace = composed(prior, (4, 3), 1, {**distributions, "unit": unit})
        assert isinstance(w, DeferredSample)
        assert not w.scales
        x = randn(2, 3)
        random.shapes.clear()
        out = F.linear(x.repeat(DRAWS, 1), w)
        assert random.shapes == [(2 * DRAWS, 4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = {
            name: node["value"]
            for name, node in trace.iter_stochastic_nodes()
            if not name.endswith("unit")
        }
        values = {
            name: v.materialize() if isinstance(v, DeferredSample) else v
            for name, v in values.items()
        }
    root = 0.5 if kind == "decomposed" else 1.0
    scale = math.prod(value**root for value in values.values())
    mean, variance, _ = linear_moments(lambda u: F.linear(x, u * scale), unit)
    assert_moments(out.reshape(DRAWS, 2, 4), mean, variance)


@pytest.mark.parametrize("decomposed", [False, True])
def test_the_slab_leaves_the_unit_deferred(decomposed):
    model = BayesianNet(
        nn.Linear(3, 4),
        priors.Horseshoe(slab=2.0, decomposed=decomposed),
        likelihoods.Gaussian(0.1),
        num_data=9,
    )
    guide = guides.MeanField(model, init_scale=0.2)
    trace = poutine.trace(local_reparameterization(guide)).get_trace()
    model_trace = poutine.trace(poutine.replay(model, trace=trace)).get_trace(torch.randn(5, 3))
    w = model_trace.nodes["weight"]["value"]
    assert isinstance(w, DeferredSample)
    plain = {name: node["value"] for name, node in trace.iter_stochastic_nodes()}
    assert [name for name, value in plain.items() if isinstance(value, DeferredSample)] == [
        "weight.unit"
    ]
    # a scale under a slab is not a factor of the weight: it is drawn once, with a warning
    loss = ELBO(model, local_reparameterization(guide, per_example_scales=True))
    with pytest.warns(ReparameterizationWarning, match=r"weight\.scale"):
        assert loss(torch.randn(5, 3), torch.randn(5, 4)).isfinite()


def test_scales_of_single_weights_are_shared_by_the_examples():
    # a bias under a scale mixture has one scale for each number, and no groups
    distributions = {"scale": normal(4), "unit": normal(4)}
    b, trace = composed(priors.NormalJeffreys(), (4,), None, distributions, per_example_scales=True)
    q, x = normal(4, 3), randn(2, 3)
    out = F.linear(x.repeat(DRAWS, 1), deferred(q), b).reshape(DRAWS, 2, 4)
    z = trace.nodes["w.scale"]["value"].materialize()
    mean, variance, _ = linear_moments(lambda w: F.linear(x, w), q)
    unit = distributions["unit"]
    assert_moments(out, mean + unit.mean * z, variance + unit.variance * z.square())


def test_shared_scales_correlate_the_examples():
    z, unit, x = normal(1, 3), normal(4, 3), randn(2, 3)
    draws = []
    for _ in range(1000):
        w, _ = composed(priors.NormalJeffreys(), (4, 3), 1, {"scale": z, "unit": unit})
        draws.append(F.linear(x, w))
    draws = torch.stack(draws)
    value, error = covariance(draws[:, 0], draws[:, 1])
    expected = (
        x[0] * x[1] * z.variance
    ) @ unit.mean.square().T  # cov = sum_i x_i x'_i Var z_i mu_oi^2
    assert ((value - expected[0]).abs() < 5 * error).all()
