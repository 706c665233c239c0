"""The priors against the laws that they claim: sites, shapes, quantiles, evidence.

Kolmogorov-Smirnov tests have fixed seeds and a threshold of 1e-4 on the p-value: on a fresh seed each would fail
falsely with that probability.
"""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import optimize, stats
from torch import nn

from pyro_bnn import ELBO, BayesianNet, likelihoods, priors
from pyro_bnn.distributions import ImproperPriorError
from pyro_bnn.guides import MeanField
from pyro_bnn.network import group_dim

P = 1e-4
SHAPE = torch.Size([4, 5000])


def draw(prior, shape=SHAPE, axis=None):
    trace = poutine.trace(lambda: prior("w", torch.Size(shape), axis)).get_trace()
    return {name: site["value"] for name, site in trace.nodes.items() if site["type"] == "sample"}


def follows(values, cdf):
    assert stats.kstest(values.flatten().numpy(), cdf).pvalue > P


# --- proper priors on single weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prior", "cdf"),
    [
        (priors.Normal(0.3, loc=-1.0), stats.norm(-1.0, 0.3).cdf),
        (priors.LearnedNormal(2.0), stats.norm(0.0, 2.0).cdf),
        (priors.Elementwise(dist.StudentT(3.0, 0.5, 0.1)), stats.t(3, 0.5, 0.1).cdf),
        (priors.Elementwise(torch.distributions.Laplace(0.5, 2.0)), stats.laplace(0.5, 2.0).cdf),
        (priors.Elementwise(torch.distributions.HalfNormal(0.2)), stats.halfnorm(0, 0.2).cdf),
        (priors.Elementwise(torch.distributions.Gamma(2.0, 4.0)), stats.gamma(2, scale=0.25).cdf),
        (priors.Elementwise(dist.Uniform(-1.0, 3.0)), stats.uniform(-1, 4).cdf),
    ],
)
def test_draws_of_elementwise_priors_follow_their_law(prior, cdf):
    sites = draw(prior)
    assert list(sites) == ["w"]
    assert sites["w"].shape == SHAPE
    follows(sites["w"].detach(), cdf)


def test_draws_of_the_gaussian_mixture_follow_its_law():
    prior = priors.GaussianMixture([0.1, 2], probs=[3, 1], locs=[1, 0])
    follows(
        draw(prior)["w"],
        lambda w: 0.75 * stats.norm.cdf(w, 1, 0.1) + 0.25 * stats.norm.cdf(w, 0, 2),
    )
    fn = poutine.trace(lambda: prior("w", torch.Size([2, 3]), 1)).get_trace().nodes["w"]["fn"]
    value = torch.randn(2, 3)
    density = 0.75 * stats.norm.pdf(value, 1, 0.1) + 0.25 * stats.norm.pdf(value, 0, 2)
    assert float(fn.log_prob(value)) == pytest.approx(
        float(torch.as_tensor(density).log().sum()), rel=1e-5
    )


# --- scale mixtures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decomposed", [False, True])
def test_the_scales_of_the_horseshoe_are_half_cauchy(decomposed):
    tau = 0.2
    prior = priors.Horseshoe(tau, decomposed=decomposed)
    sites = draw(prior, [3, 10_000], axis=1)
    z = (
        (sites["w.scale.gamma"] * sites["w.scale.inverse_gamma"]).sqrt()
        if decomposed
        else sites["w.scale"]
    )
    assert z.shape == (1, 10_000)
    follows(z, stats.halfcauchy.cdf)
    follows(sites["w.unit"], stats.norm.cdf)
    assert sites["w"].shape == (3, 10_000)
    # the global scale is one number: draw it often
    part = [draw(prior, [1, 1]) for _ in range(400)]
    name = "w.global_scale"
    if decomposed:
        s = torch.stack([(d[f"{name}.gamma"] * d[f"{name}.inverse_gamma"]).sqrt() for d in part])
    else:
        s = torch.stack([d[name] for d in part])
    follows(s, stats.halfcauchy(scale=tau).cdf)
    factors = torch.ones(())
    for key, value in sites.items():
        if key not in ("w", "w.unit"):
            factors = factors * (value.sqrt() if decomposed else value)
    assert torch.allclose(sites["w"], sites["w.unit"] * factors, rtol=1e-4)


@pytest.mark.parametrize("decomposed", [False, True])
def test_the_slab_bounds_the_scale(decomposed):
    sites = draw(priors.Horseshoe(5.0, slab=0.5, decomposed=decomposed), [2, 1000], axis=1)
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
def test_groups_are_input_units_and_output_channels(layer, shape, axis, prior):
    assert group_dim(layer, "weight") == axis
    model = BayesianNet(layer, {"weight": prior}, likelihoods.Gaussian(1.0), num_data=1)
    trace = poutine.trace(model.initialize).get_trace()
    assert list(trace.nodes["weight.scale"]["value"].shape) == shape


def test_without_a_group_axis_every_weight_has_its_scale():
    assert draw(priors.Horseshoe(), [7], None)["w.scale"].shape == (7,)
    assert draw(priors.Horseshoe(group=None), [2, 7], 1)["w.scale"].shape == (2, 7)
    assert draw(priors.Horseshoe(), [2, 7], 1)["w.global_scale"].shape == (1, 1)
    assert draw(priors.Horseshoe(), [], None)["w"].shape == ()


@pytest.mark.parametrize(
    "prior",
    [
        priors.Normal(),
        priors.Horseshoe(1e-3),
        priors.Horseshoe(1e-3, decomposed=True),
        priors.Horseshoe(slab=0.3),
    ],
)
def test_the_initial_weight_is_that_of_the_network(prior):
    net = nn.Linear(4, 3)
    model = BayesianNet(net, prior, likelihoods.Gaussian(1.0), num_data=1)
    assert torch.allclose(model.weights()["weight"], net.weight, rtol=1e-4)


# --- improper priors
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [priors.LogUniform(), priors.NormalJeffreys()])
def test_improper_priors_refuse_to_be_sampled_and_name_a_way_out(prior):
    with pytest.raises(ImproperPriorError, match=r"improper[\s\S]*Horseshoe"):
        draw(prior)
    model = BayesianNet(nn.Linear(3, 1), prior, likelihoods.Gaussian(1.0), num_data=1)
    with pytest.raises(ImproperPriorError, match=r"improper[\s\S]*Horseshoe"):
        model(torch.zeros(2, 3))


# --- empirical Bayes
# ---------------------------------------------------------------------------------------------------


def test_every_tensor_learns_a_scale_of_its_own():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    given = priors.LearnedNormal(0.3)
    model = BayesianNet(net, given, likelihoods.Gaussian(1.0), num_data=1)
    own = [p for name, p in model.named_parameters() if name.endswith("log_scale")]
    assert len(own) == 2
    assert all(
        p is not given.log_scale and float(p.detach().exp()) == pytest.approx(0.3) for p in own
    )


def test_the_learned_scale_maximises_the_evidence():
    # y_i = w_i + noise, one observation of each weight: the mean-field posterior is exact, y_i ~ N(0, s^2 + noise^2)
    torch.manual_seed(1)
    n, noise = 40, 0.5
    y = (1.5 * torch.randn(n) + noise * torch.randn(n)).double()

    def model():
        w = learned("w", torch.Size([n]), None)
        pyro.sample("y", dist.Normal(w, noise).to_event(1), obs=y)

    def guide():
        # the exact posterior at the current scale, so that the ELBO is the evidence
        variance = 1 / (1 / noise**2 + (-2 * learned.log_scale).exp())
        pyro.sample(
            "w", dist.Normal(y * variance / noise**2, variance.sqrt().expand(n)).to_event(1)
        )

    learned = priors.LearnedNormal(0.5).double()
    loss = ELBO(model, guide)

    def evidence(log_s):
        return -stats.norm.logpdf(y, 0, math.hypot(math.exp(log_s), noise)).sum()

    best = optimize.minimize_scalar(
        evidence, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}
    ).x
    assert math.exp(2 * best) == pytest.approx(float((y**2).mean()) - noise**2, rel=1e-5)
    for log_s in (best, best - 0.5):
        learned.log_scale.data.fill_(log_s)
        drawn = torch.stack([loss().detach() for _ in range(100)])
        gradients = torch.stack(
            [torch.autograd.grad(loss(), learned.log_scale)[0] for _ in range(100)]
        )
        assert abs(float(drawn.mean()) - evidence(log_s)) < 5 * float(drawn.std()) / 10
        slope = (evidence(log_s + 1e-5) - evidence(log_s - 1e-5)) / 2e-5
        assert abs(float(gradients.mean()) - slope) < 5 * float(gradients.std()) / 10
        assert float(gradients.std()) / 10 < 2  # at best - 0.5 the slope is tens


# --- arguments, dtypes, devices
# ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.Normal(-1.0), "Normal: expected scale above zero, got -1.0"),
        (lambda: priors.Normal(math.nan), "Normal: expected scale above zero"),
        (lambda: priors.Normal(torch.tensor([1.0, 0.0])), "Normal: expected scale above zero"),
        (lambda: priors.LearnedNormal(0.0), "LearnedNormal: expected scale above zero"),
        (lambda: priors.Horseshoe(-1.0), "Horseshoe: expected global_scale above zero"),
        (lambda: priors.Horseshoe(slab=-1.0), "Horseshoe: expected slab above zero"),
        (
            lambda: priors.GaussianMixture([1.0, -1.0]),
            "GaussianMixture: expected scales above zero",
        ),
        (
            lambda: priors.GaussianMixture([1.0, 2.0], probs=[0.0, 1.0]),
            "GaussianMixture: expected probs above zero",
        ),
        (lambda: priors.GaussianMixture([1.0, 2.0], probs=[1.0]), "2 scales, 1 probs and 2 locs"),
        (lambda: priors.GaussianMixture([1.0], locs=[1.0, 2.0]), "1 scales, 1 probs and 2 locs"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "given",
    [
        1.0,
        dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(torch.ones(2)),
            torch.distributions.Normal(torch.zeros(2), 1.0),
        ),
    ],
)
def test_elementwise_refuses_what_it_cannot_rebuild(given):
    with pytest.raises(TypeError, match="Elementwise: expected"):
        priors.Elementwise(given)


ALL = {
    "Normal": priors.Normal(0.5),
    "LearnedNormal": priors.LearnedNormal(0.5),
    "Elementwise": priors.Elementwise(torch.distributions.StudentT(3.0, 0.0, 0.5)),
    "GaussianMixture": priors.GaussianMixture([0.5, 1.0]),
    "Horseshoe": priors.Horseshoe(0.5),
    "Horseshoe decomposed": priors.Horseshoe(0.5, slab=2.0, decomposed=True),
}


@pytest.mark.parametrize("prior", ALL.values(), ids=ALL)
def test_priors_follow_to_double_precision_and_copy(prior):
    sites = draw(copy.deepcopy(prior).double(), [2, 3], 1)
    assert {value.dtype for value in sites.values()} == {torch.float64}
    other = copy.deepcopy(prior)
    other.load_state_dict(prior.state_dict())
    torch.manual_seed(2)
    first = draw(prior, [2, 3], 1)
    torch.manual_seed(2)
    second = draw(other, [2, 3], 1)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("prior", [*ALL.values(), priors.LogUniform(), priors.NormalJeffreys()])
def test_guides_and_samplers_see_the_support(prior):
    model = BayesianNet(nn.Linear(3, 1), prior, likelihoods.Gaussian(1.0), num_data=1)
    for name, family in MeanField(model).families().items():
        positive = "scale" in name and not isinstance(prior, priors.NormalJeffreys)
        assert type(family).__name__ == ("LogNormal" if positive else "Gaussian")


def test_priors_can_be_made_on_the_meta_device():
    with torch.device("meta"):
        made = [
            priors.Normal(0.5),
            priors.LearnedNormal(0.5),
            priors.LogUniform(),
            priors.NormalJeffreys(),
            priors.Horseshoe(0.5, slab=1.0, decomposed=True),
            priors.GaussianMixture([0.5, 1.0]),
        ]
        model = BayesianNet(
            nn.Linear(3, 2),
            {"weight": made[0], "bias": made[1]},
            likelihoods.Categorical(),
            num_data=5,
        )
    assert all(
        buffer.is_meta for prior in made for buffer in (*prior.buffers(), *prior.parameters())
    )
    assert all(value.is_meta for value in model.weights().values())
