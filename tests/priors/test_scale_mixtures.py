"""Scale mixtures: the distributions and shapes of their sites."""

import math

import pytest
import torch
from pyro import poutine
from scipy import stats
from torch import nn

from pyro_bnn import BayesianNet, likelihoods, priors
from pyro_bnn.priors.assignment import group_dim
from tests.priors.draws import assert_follows, draw


@pytest.mark.parametrize("decomposed", [False, True])
def test_the_scales_of_the_horseshoe_are_half_cauchy(decomposed):
    tau = 0.2
    prior = priors.Horseshoe(tau, decomposed=decomposed)
    sites = draw(prior, [3, 10_000], group_dim=1)
    z = (
        (sites["w.scale.gamma"] * sites["w.scale.inverse_gamma"]).sqrt()
        if decomposed
        else sites["w.scale"]
    )
    assert z.shape == (1, 10_000)
    assert_follows(z, stats.halfcauchy.cdf)
    assert_follows(sites["w.unit"], stats.norm.cdf)
    assert sites["w"].shape == (3, 10_000)
    # the global scale is one number: draw it often
    draws = [draw(prior, [1, 1]) for _ in range(400)]
    name = "w.global_scale"
    if decomposed:
        s = torch.stack([(d[f"{name}.gamma"] * d[f"{name}.inverse_gamma"]).sqrt() for d in draws])
    else:
        s = torch.stack([d[name] for d in draws])
    assert_follows(s, stats.halfcauchy(scale=tau).cdf)
    factors = torch.ones(())
    for key, value in sites.items():
        if key not in ("w", "w.unit"):
            factors = factors * (value.sqrt() if decomposed else value)
    assert torch.allclose(sites["w"], sites["w.unit"] * factors, rtol=1e-4)


@pytest.mark.parametrize("decomposed", [False, True])
def test_the_slab_bounds_the_scale(decomposed):
    sites = draw(priors.Horseshoe(5.0, slab=0.5, decomposed=decomposed), [2, 1000], group_dim=1)
    scale = (sites["w"] / sites["w.unit"]).abs()
    assert scale.max() <= 0.5 * (1 + 1e-5)
    scales = [v for name, v in sites.items() if name not in ("w", "w.unit")]
    free = math.prod(v.sqrt() if decomposed else v for v in scales).expand_as(scale)
    # 1 / bounded^2 = 1 / c^2 + 1 / lambda^2
    assert torch.allclose(scale**-2, 0.5**-2 + free**-2, rtol=1e-3)


LAYERS = {
    "dense": (nn.Linear(4, 3), [1, 4], 1),
    "convolution": (nn.Conv2d(4, 3, 5), [3, 1, 1, 1], 0),
    "transposed convolution": (nn.ConvTranspose2d(4, 3, 5), [1, 3, 1, 1], 1),
}


@pytest.mark.parametrize(("layer", "shape", "axis"), LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("prior", [priors.Horseshoe(), priors.NormalJeffreys()])
def test_scales_belong_to_input_units_or_output_channels(layer, shape, axis, prior):
    assert group_dim(layer, "weight") == axis
    model = BayesianNet(layer, {"weight": prior}, likelihoods.Gaussian(1.0), num_data=1)
    trace = poutine.trace(model.initialize).get_trace()
    assert list(trace.nodes["weight.scale"]["value"].shape) == shape


def test_without_a_group_axis_every_weight_has_its_own_scale():
    assert draw(priors.Horseshoe(), [7], None)["w.scale"].shape == (7,)
    assert draw(priors.Horseshoe(group=None), [2, 7], 1)["w.scale"].shape == (2, 7)
    assert draw(priors.Horseshoe(), [2, 7], 1)["w.global_scale"].shape == (1, 1)
    assert draw(priors.Horseshoe(), [], None)["w"].shape == ()
