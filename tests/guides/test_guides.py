"""Every guide: what it is made of, that it equals the general guide where it restates it, and its exact objective.

Statistical tests have fixed seeds; on a fresh seed each would fail falsely with a probability of 6e-7 per compared
number (5 standard errors, two-sided).
"""

import copy
import math
from unittest import mock

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.distributions import kl_divergence

from pyro_bnn import ELBO, BayesianNet, fit, likelihoods, local_reparameterization, priors
from pyro_bnn.distributions import kl_log_uniform, kl_log_uniform_approximate
from pyro_bnn.guides import (
    BernoulliDropout,
    FactorizedGaussian,
    GaussianDropout,
    GroupHorseshoe,
    GroupNormalJeffreys,
    MeanField,
    PointEstimate,
    SparseVariationalDropout,
)
from pyro_bnn.models import hidden_layer_regression, linear_regression


class Net(nn.Module):
    """A convolution, a transposed one and a dense layer: all three group axes, with asymmetric kernels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, (1, 2))
        self.up = nn.ConvTranspose2d(3, 2, (2, 1))
        self.fc = nn.Linear(2 * 4 * 2, 2)

    def forward(self, x):
        return self.fc(torch.tanh(self.up(torch.tanh(self.conv(x)))).flatten(1))


def model_with(prior, net=None, **options):
    return BayesianNet(
        Net() if net is None else net, prior, likelihoods.Categorical(), num_data=8, **options
    )


X, Y = torch.linspace(-1, 1, 8 * 2 * 3 * 3).reshape(8, 2, 3, 3), torch.arange(8) % 2

GUIDES = {
    "MeanField": (MeanField, priors.Normal()),
    "MeanField horseshoe": (MeanField, priors.Horseshoe(0.5)),
    "MeanField slab": (MeanField, priors.Horseshoe(0.5, slab=1.5)),
    "MeanField decomposed slab": (MeanField, priors.Horseshoe(0.5, slab=1.5, decomposed=True)),
    "FactorizedGaussian": (FactorizedGaussian, priors.Normal()),
    "PointEstimate": (PointEstimate, priors.Normal()),
    "BernoulliDropout": (BernoulliDropout, priors.Normal()),
    "GaussianDropout": (GaussianDropout, priors.LogUniform()),
    "SparseVariationalDropout": (SparseVariationalDropout, priors.LogUniform()),
    "GroupNormalJeffreys": (GroupNormalJeffreys, priors.NormalJeffreys()),
    "GroupHorseshoe": (GroupHorseshoe, priors.Horseshoe(0.01, decomposed=True)),
    "GroupHorseshoe slab": (GroupHorseshoe, priors.Horseshoe(0.5, slab=1.5, decomposed=True)),
}
every_guide = pytest.mark.parametrize(("kind", "prior"), GUIDES.values(), ids=GUIDES)


def weights(model, guide):
    """One draw of the composed weights."""
    trace = poutine.trace(guide).get_trace()
    return poutine.replay(model.weights, trace=trace)()


def many_weights(model, guide, draws):
    fresh = mock.patch.object(torch.Tensor, "normal_", lambda self: torch.randn_like(self))
    with torch.no_grad(), pyro.validation_enabled(False), fresh, pyro.get_param_store().scope():
        weights(model, guide)
        return torch.vmap(lambda _: weights(model, guide), randomness="different")(
            torch.arange(draws)
        )


def spread(guide):
    """Move every parameter off its starting point, so that nothing is equal by symmetry."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in guide.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "log_scale" in name:
                p.copy_(-1.2 + 0.3 * noise)
            elif "log_variance" in name or "raw_alpha" in name:
                p.copy_(-2.4 + 0.8 * noise)
            elif "loc" in name and "scale" in name:  # the logarithm of a scale, or a real one
                p.add_(0.2 * noise)
            else:
                p.copy_(noise)
    return guide


# --- every guide
# -------------------------------------------------------------------------------------------------------


@every_guide
def test_a_guide_stands_before_any_data_and_owns_no_model(kind, prior):
    model = model_with(prior)
    guide = kind(model)
    parameters = dict(guide.named_parameters())
    assert parameters
    assert all(
        isinstance(p, nn.Parameter) and p.is_leaf and p.requires_grad for p in parameters.values()
    )
    assert not any(isinstance(module, BayesianNet | Net) for module in guide.modules())
    own = {p.data_ptr() for p in parameters.values()}
    assert not own & {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    before = {name: p.detach().clone() for name, p in parameters.items()}
    ELBO(model, guide)(X, Y).backward()
    assert {name for name, _ in guide.named_parameters()} == set(before)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters.values())
    assert not list(pyro.get_param_store().keys())


@every_guide
def test_means_start_at_the_weights_of_the_network(kind, prior):
    net = Net()
    model = model_with(prior, net)
    for name, (mean, _) in kind(model).moments().items():
        weight = net.get_parameter(name)
        keep = 0.5 if kind is BernoulliDropout else 1.0
        assert mean.shape == weight.shape
        assert torch.allclose(mean, keep * weight, rtol=2e-2), (
            name
        )  # log-normal scales: mean over median, e^(v/2)


@every_guide
def test_state_round_trip_copy_and_dtype(kind, prior):
    model = model_with(prior)
    guide, other = spread(kind(model)), kind(model)
    other.load_state_dict(guide.state_dict())
    copied = copy.deepcopy(guide)
    for twin in (other, copied):
        torch.manual_seed(1)
        first = poutine.trace(guide).get_trace()
        torch.manual_seed(1)
        second = poutine.trace(twin).get_trace()
        assert all(
            torch.equal(first.nodes[n]["value"], second.nodes[n]["value"])
            for n in first.stochastic_nodes
        )
        pyro.clear_param_store()
    next(copied.parameters()).data.add_(1)
    assert not torch.equal(next(copied.parameters()), next(guide.parameters()))
    double = copy.deepcopy(guide).to(torch.float64)
    moments = double.moments()
    assert {t.dtype for pair in moments.values() for t in pair} == {torch.float64}
    for name, (mean, variance) in guide.moments().items():
        assert torch.allclose(moments[name][0].float(), mean, rtol=1e-4, atol=1e-6)
        assert torch.allclose(moments[name][1].float(), variance, rtol=1e-3, atol=1e-6)
    loss = ELBO(copy.deepcopy(model).double(), double)
    assert loss(X.double(), Y).dtype == torch.float64


@every_guide
def test_a_guide_can_be_made_on_the_meta_device(kind, prior):
    with torch.device("meta"):
        guide = kind(model_with(copy.deepcopy(prior).to("meta")))
    assert all(p.is_meta for p in guide.parameters())
    shapes = {name: p.shape for name, p in kind(model_with(prior)).named_parameters()}
    assert {name: p.shape for name, p in guide.named_parameters()} == shapes


@every_guide
def test_moments_are_those_of_the_weights_that_the_model_makes(kind, prior):
    model = model_with(prior)
    guide = spread(kind(model))
    if kind is SparseVariationalDropout:
        assert any(
            (log_alpha >= 3).any() for log_alpha in guide.log_alpha().values()
        )  # some means are masked
    draws = many_weights(model, guide, 20_000)
    moments = guide.moments()
    assert list(moments) == model.names
    for name, (mean, variance) in moments.items():
        w = draws[name].double()
        error = w.std(0) / math.sqrt(len(w))
        assert ((w.mean(0) - mean).abs() <= 5 * error + 1e-6).all(), name
        square = (w - mean) ** 2
        assert (
            (square.mean(0) - variance).abs() <= 5 * square.std(0) / math.sqrt(len(w)) + 1e-6
        ).all(), name


@pytest.mark.parametrize("kind", [BernoulliDropout, GaussianDropout, PointEstimate])
@pytest.mark.parametrize("prior", [priors.Horseshoe(), priors.Horseshoe(decomposed=True)])
def test_guides_of_real_sites_refuse_positive_ones(kind, prior):
    with pytest.raises(
        ValueError, match=rf"{kind.__name__}: site 'conv.weight.global_scale.*support"
    ):
        kind(model_with(prior))
    noisy = BayesianNet(
        nn.Linear(2, 1), priors.Normal(), likelihoods.Gaussian(dist.HalfNormal(1.0)), num_data=1
    )
    with pytest.raises(ValueError, match="site 'noise'"):
        kind(noisy)


# --- guides that restate another
# ----------------------------------------------------------------------------------------


def equal_losses(first, second, model, local=False):
    values = []
    for guide in (first, second):
        torch.manual_seed(11)
        loss = ELBO(model, local_reparameterization(guide) if local else guide)
        values.append(loss(X, Y).item())
    assert values[0] == pytest.approx(values[1], rel=1e-6)


@pytest.mark.filterwarnings("ignore:site")
@pytest.mark.parametrize("local", [False, True])
def test_the_factorised_gaussian_is_mean_field(local):
    model = model_with(priors.Normal(0.7))
    written, general = FactorizedGaussian(model), MeanField(model)
    spread(written)
    for name, loc, log_scale in zip(written.names, written.loc, written.log_scale, strict=True):
        family = general.sites.get_submodule(name)
        family.loc.data, family.log_scale.data = loc.data.clone(), log_scale.data.clone()
    equal_losses(written, general, model, local)


@pytest.mark.filterwarnings("ignore:site")
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("name", ["GroupNormalJeffreys", "GroupHorseshoe", "GroupHorseshoe slab"])
def test_the_group_guides_are_mean_field(name, local):
    kind, prior = GUIDES[name]
    model = model_with(prior)
    written, general = spread(kind(model)), MeanField(model)
    general.load_state_dict(written.state_dict())
    equal_losses(written, general, model, local)


def test_centred_and_non_centred_group_posteriors_have_one_divergence():
    model = model_with({"fc.weight": priors.NormalJeffreys()})
    guide = spread(GroupNormalJeffreys(model))
    kl = ELBO(model, guide).terms(X, Y).kl
    unit, scale = guide.sites.fc.weight.unit, guide.sites.fc.weight.scale
    m, v = scale.loc.detach(), (2 * scale.log_scale.detach()).exp()
    for z in (
        m,
        m + 0.3,
        -2 * m,
    ):  # whatever z is drawn: q(w | z) = N(z mu, z^2 sigma^2), p(w | z) = N(0, z^2)
        q = dist.Normal(z * unit.loc, z.abs() * unit.log_scale.exp())
        centred = kl_divergence(q, dist.Normal(torch.zeros(()), z.abs())).sum()
        assert kl["fc.weight.unit"].item() == pytest.approx(centred.item(), rel=1e-5)
    assert kl["fc.weight.scale"].item() == pytest.approx(
        kl_log_uniform(v.log() - (m**2).log()).sum().item(), rel=1e-5
    )
    # and as it stands in the paper
    mu, sigma2 = unit.loc, (2 * unit.log_scale).exp()
    assert kl["fc.weight.unit"].item() == pytest.approx(
        (0.5 * (sigma2 + mu**2 - 1 - sigma2.log())).sum().item()
    )


def test_the_horseshoe_divergences_are_those_of_the_reference():
    # KL(LN(mu, v) || Gamma(1/2, scale t)) and KL(LN(mu, v) || InvGamma(1/2, 1)) at (mu, v, t) = (-1.2, 0.3, 0.4)
    model = model_with({"fc.weight": priors.Horseshoe(math.sqrt(0.4), decomposed=True)})
    guide = GroupHorseshoe(model)
    s = guide.sites.fc.weight.global_scale
    for factor in (s.gamma, s.inverse_gamma):
        factor.loc.data.fill_(-1.2)
        factor.log_scale.data.fill_(0.5 * math.log(0.3))
    kl = ELBO(model, guide).terms(X, Y).kl
    assert kl["fc.weight.global_scale.gamma"].item() == pytest.approx(0.77211, abs=1e-5)
    assert kl["fc.weight.global_scale.inverse_gamma"].item() == pytest.approx(3.01284, abs=1e-5)


def test_the_log_scale_of_a_group_horseshoe_is_normal_with_half_the_sum():
    model = model_with({"fc.weight": priors.Horseshoe(0.1, decomposed=True)})
    guide = spread(GroupHorseshoe(model))
    z = guide.sites.fc.weight.scale
    m = (z.gamma.loc + z.inverse_gamma.loc).detach() / 2
    v = ((2 * z.gamma.log_scale).exp() + (2 * z.inverse_gamma.log_scale).exp()).detach() / 4
    density = torch.distributions.LogNormal(m, v.sqrt())
    mode = (m - v).exp()
    assert torch.allclose(guide.negative_log_mode()["fc.weight"], -mode.log())
    for shift in (0.99, 1.01):
        assert (density.log_prob(mode) > density.log_prob(shift * mode)).all()
    # the initial divergence is small whatever tau, where starting s_a at one would cost s_a / tau^2
    tiny = model_with({"fc.weight": priors.Horseshoe(1e-5, decomposed=True)})
    kl = ELBO(tiny, GroupHorseshoe(tiny)).terms(X, Y).kl
    assert sum(v.item() for name, v in kl.items() if "global" in name) < 40


@pytest.mark.parametrize("noise", [0.5, dist.HalfNormal(1.0)])
def test_group_guides_take_other_sites_by_their_support(noise):
    net = nn.Linear(3, 1)
    for kind, prior in (
        (GroupNormalJeffreys, priors.NormalJeffreys()),
        (GroupHorseshoe, priors.Horseshoe(decomposed=True)),
    ):
        model = BayesianNet(
            net, {"weight": prior, "bias": priors.Normal()}, likelihoods.Gaussian(noise), num_data=4
        )
        guide = kind(model)
        if not isinstance(noise, float):
            assert type(guide.families()["noise"]).__name__ == "LogNormal"
        assert type(guide.families()["bias"]).__name__ == "Gaussian"
        ELBO(model, guide)(torch.randn(4, 3), torch.randn(4))


def test_group_guides_refuse_models_without_their_scales():
    for prior in (priors.Normal(), priors.Horseshoe(), priors.Horseshoe(decomposed=True)):
        with pytest.raises(
            ValueError, match=r"no real group scales, only .*; use priors.NormalJeffreys"
        ):
            GroupNormalJeffreys(model_with(prior))
    for prior in (priors.Normal(), priors.Horseshoe(), priors.NormalJeffreys()):
        with pytest.raises(ValueError, match=r"no decomposed scales, only .*decomposed=True"):
            GroupHorseshoe(model_with(prior))


def test_the_cap_holds_and_starts_where_it_should():
    model = model_with(priors.NormalJeffreys())
    guide = GroupNormalJeffreys(model, max_scale={"fc.weight": 0.2})
    scale = guide.distributions()["fc.weight.unit"].base_dist.scale
    assert torch.allclose(scale, torch.tensor(math.exp(-4.5)))
    guide.sites.fc.weight.unit.log_scale.data.fill_(30.0)
    capped = guide.distributions()["fc.weight.unit"].base_dist.scale
    assert torch.allclose(capped, torch.tensor(0.2))
    with pytest.raises(
        ValueError, match=r"max_scale names fc1; the weights with group scales are conv.weight"
    ):
        GroupNormalJeffreys(model, max_scale={"fc1": 0.2})
    with pytest.raises(ValueError, match="not below its cap"):
        GroupNormalJeffreys(model, init_log_variance=-2.0, max_scale={"fc.weight": 0.2})


# --- sparse variational dropout
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kl", [kl_log_uniform, kl_log_uniform_approximate])
def test_without_its_tricks_sparse_variational_dropout_is_mean_field(kl):
    model = model_with({"fc.weight": priors.LogUniform(kl)}).double()
    sparse = SparseVariationalDropout(model, clip=None, mask=None)
    general = MeanField(model)
    spread(sparse)
    own, other = sparse.sites.fc.weight, general.sites.fc.weight
    other.loc.data = own.loc.data.clone()
    other.log_scale.data = own.log_variance.data / 2
    terms, expected = (ELBO(model, guide).terms(X.double(), Y) for guide in (sparse, general))
    # only the 1e-8 inside log(theta^2 + 1e-8) tells them apart
    assert terms.kl["fc.weight"].item() == pytest.approx(expected.kl["fc.weight"].item(), rel=1e-4)
    log_alpha = own.log_variance - 2 * own.loc.abs().log()
    assert terms.kl["fc.weight"].item() == pytest.approx(kl(log_alpha).sum().item(), rel=1e-4)
    mean, variance = sparse.moments()["fc.weight"]
    assert torch.allclose(mean, own.loc)
    assert torch.allclose(variance, own.log_variance.exp(), rtol=1e-3)


def test_the_tricks_are_the_documented_surrogate():
    model = model_with({"fc.weight": priors.LogUniform()}).double()
    guide = SparseVariationalDropout(model, clip=8.0, mask=3.0)
    family = guide.sites.fc.weight
    family.loc.data.fill_(0.1)
    log_alpha = torch.linspace(-12, 12, family.loc.numel(), dtype=torch.float64).view_as(family.loc)
    family.log_variance.data = log_alpha + math.log(0.01)
    mean, variance = guide.moments()["fc.weight"]
    clipped = log_alpha.clamp(-8, 8)
    assert torch.allclose(mean, 0.1 * (log_alpha < 3).double())
    assert torch.allclose(variance, clipped.exp() * 0.01, rtol=1e-4)
    assert torch.allclose(guide.log_alpha()["fc.weight"], clipped, atol=1e-4)
    kl = ELBO(model, guide).terms(X.double(), Y).kl["fc.weight"]
    assert kl.item() == pytest.approx(kl_log_uniform(clipped).sum().item(), rel=1e-5)
    # beyond the clip the gradient of log sigma^2 is dead
    (gradient,) = torch.autograd.grad(kl, family.log_variance)
    assert (gradient[log_alpha.abs() > 8.01] == 0).all()
    assert (gradient[log_alpha.abs() < 7.9] < 0).all()


# --- dropout
# ---------------------------------------------------------------------------------------------------------------


def test_with_alpha_fixed_the_divergence_has_no_gradient():
    model = model_with(priors.LogUniform())
    guide = GaussianDropout(model, alpha=0.5)
    loss = ELBO(model, guide)
    kl = sum(loss.terms(X, Y).kl.values())
    each = kl_log_uniform(torch.tensor(0.5).log()).item()
    assert kl.item() == pytest.approx(
        each * sum(w.numel() for w in model.weights().values()), rel=1e-4
    )
    assert not kl.requires_grad
    assert {name.rsplit(".", 1)[1] for name, _ in guide.named_parameters()} == {"loc"}
    for name, (mean, variance) in guide.moments().items():
        assert torch.allclose(variance, 0.5 * mean**2), name


@pytest.mark.parametrize("cap", [False, True])
@pytest.mark.parametrize(
    ("learn", "shapes"),
    [
        ("weight", {"conv": (3, 2, 1, 2), "up": (3, 2, 2, 1), "fc": (2, 16)}),
        ("unit", {"conv": (3, 1, 1, 1), "up": (1, 2, 1, 1), "fc": (1, 16)}),
        ("layer", {"conv": (1, 1, 1, 1), "up": (1, 1, 1, 1), "fc": (1, 1)}),
    ],
)
def test_alpha_is_learned_per_weight_unit_or_layer(learn, shapes, cap):
    model = model_with(priors.LogUniform())
    guide = GaussianDropout(model, alpha=0.3, learn=learn, cap=cap)
    for name, log_alpha in guide.log_alpha().items():
        assert tuple(log_alpha.shape) == shapes[name.removesuffix(".weight")]
        assert torch.allclose(log_alpha.exp(), torch.tensor(0.3))
    kl = ELBO(model, guide).terms(X, Y).kl
    for name, w in model.weights().items():  # every weight counts, also where alpha is shared
        assert kl[name].item() == pytest.approx(
            w.numel() * kl_log_uniform(torch.tensor(0.3).log()).item(), rel=1e-4
        )
    for family in guide.families().values():
        family.raw_alpha.data.fill_(20.0)
    top = {v.item() for log_alpha in guide.log_alpha().values() for v in log_alpha.exp().flatten()}
    assert (max(top) <= 1) == cap
    sum(kl.values()).backward()
    assert all(family.raw_alpha.grad.abs().min() > 0 for family in guide.families().values())


def test_the_rate_of_binary_dropout_and_alpha_have_the_same_moments():
    model = model_with(priors.LogUniform())
    p = 0.2
    binary = BernoulliDropout(
        model_with(priors.Normal(), model.network_with(model.weights())), rate=p
    ).moments()
    for name, (mean, variance) in GaussianDropout(model, alpha=p / (1 - p)).moments().items():
        m, v = binary[
            name
        ]  # binary dropout without 1 / (1 - p): of weights that are smaller by that factor
        assert torch.allclose(m / (1 - p), mean, rtol=1e-5)
        assert torch.allclose(v / (1 - p) ** 2, variance, rtol=1e-5)


def test_rates_go_by_name_and_the_divergence_is_weight_decay():
    s = 0.7
    model = model_with(priors.Normal(s))
    guide = BernoulliDropout(model, rate={"fc.*": 0.25, "conv.weight": 0.5})
    rates = {"conv.weight": 0.5, "up.weight": 0.0, "fc.weight": 0.25}
    kl = ELBO(model, guide).terms(X, Y).kl
    for name, family in guide.families().items():
        (gradient,) = torch.autograd.grad(kl[name], family.loc)
        assert torch.allclose(gradient, (1 - rates[name]) * family.loc.detach() / s**2, rtol=1e-5)
    with pytest.raises(
        ValueError,
        match=r"the rate for 'fc1.\*' matches no weight; the weights are conv.weight, up.weight",
    ):
        BernoulliDropout(model, rate={"fc1.*": 0.2})
    with pytest.raises(ValueError, match=r"rate in \[0, 1\) for 'conv.weight', got 1.0"):
        BernoulliDropout(model, rate=1.0)


def test_units_drop_together():
    model = model_with(priors.Normal())
    draws = many_weights(model, BernoulliDropout(model, rate=0.5), 200)
    for name, axis in (("conv.weight", 0), ("up.weight", 1), ("fc.weight", 1)):
        alive = (draws[name] != 0).movedim(axis + 1, 1).flatten(2)
        assert ((alive.all(2)) | (~alive).all(2)).all()
        assert 0.2 < alive.float().mean() < 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "alpha above 0"),
        ({"alpha": 1.0, "cap": True}, "below its cap 1"),
        ({"learn": "all"}, "learn to be 'weight', 'unit', 'layer' or None, got 'all'"),
    ],
)
def test_options_of_gaussian_dropout(options, message):
    with pytest.raises(ValueError, match=message):
        GaussianDropout(model_with(priors.LogUniform()), **options)


# --- point estimate
# ---------------------------------------------------------------------------------------------------------


def test_a_point_estimate_is_training_with_weight_decay():
    net, s = Net(), 0.6
    model = model_with(priors.Normal(s), net)
    guide = PointEstimate(model)
    loss = ELBO(model, guide)(X, Y)
    weight = [net.conv.weight, net.up.weight, net.fc.weight]
    decay = sum(
        (w**2).sum() / (2 * s**2) + w.numel() * math.log(s * math.sqrt(2 * math.pi)) for w in weight
    )
    expected = nn.functional.cross_entropy(net(X), Y, reduction="sum") + decay
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = torch.autograd.grad(loss, list(guide.parameters()))
    for own, usual in zip(gradients, torch.autograd.grad(expected, weight), strict=True):
        assert torch.allclose(own, usual, atol=1e-4)


# --- mean field on any program
# ------------------------------------------------------------------------------------------------


def test_hand_written_programs_need_example_arguments():
    x, y = torch.randn(5, 3), torch.randn(5)
    model = linear_regression(num_data=5, inputs=3)
    with pytest.raises(ValueError, match=r"example arguments, MeanField\(model, x, y\).*'x'"):
        MeanField(model)
    guide = MeanField(model, x, y=y)
    assert list(guide.families()) == ["weight", "bias"]
    assert ELBO(model, guide)(x, y).isfinite()


def test_a_program_without_arguments_is_a_program():
    def model():
        pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    assert ELBO(model, MeanField(model, init_scale=1.0))().item() < 5


def test_positive_sites_get_log_normals_and_others_an_error():
    x, y = torch.randn(5, 1), torch.randn(5)
    model = hidden_layer_regression(num_data=5, hidden=3)
    kinds = {
        name: type(family).__name__ for name, family in MeanField(model, x, y).families().items()
    }
    assert kinds == {**dict.fromkeys(["w1", "b1", "w2", "b2"], "Gaussian"), "noise": "LogNormal"}
    for support, distribution in (
        ("Interval", dist.Uniform(0.0, 1.0)),
        ("Simplex", dist.Dirichlet(torch.ones(2))),
    ):
        with pytest.raises(ValueError, match=f"site 'u' has the support {support}"):
            MeanField(lambda d=distribution: pyro.sample("u", d))
    with pytest.raises(ValueError, match="init_scale above zero"):
        MeanField(model, x, y, init_scale=0.0)
    with pytest.raises(ValueError, match="no latent site"):
        MeanField(lambda: None)


def test_a_local_latent_of_a_minibatch_is_refused():
    def model(x):
        with pyro.plate("data", 10, subsample=range(len(x))):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(ValueError, match="'z' lies in a subsampled plate"):
        MeanField(model, torch.zeros(4))


def test_building_a_guide_leaves_the_parameter_store_alone():
    def model(x):
        loc = pyro.param("prior.loc", torch.zeros(()))
        pyro.sample("w", dist.Normal(loc, 1.0))

    MeanField(model, torch.zeros(4))
    assert not list(pyro.get_param_store().keys())


def test_the_closed_divergences_of_all_guides_agree_with_monte_carlo():
    # E log q - log p over draws of the guide, site by site; binary dropout and point masses have no density
    for name in (
        "MeanField",
        "MeanField horseshoe",
        "MeanField decomposed slab",
        "GaussianDropout",
        "GroupNormalJeffreys",
    ):
        kind, prior = GUIDES[name]
        model = model_with({"fc.weight": prior})
        guide = spread(kind(model))
        kl = ELBO(model, guide).terms(X, Y).kl
        trace = poutine.trace(
            poutine.replay(model, trace=poutine.trace(guide).get_trace())
        ).get_trace(X, Y)
        for site, q in guide.distributions().items():
            p = trace.nodes[site]["fn"]
            w = q.sample((20_000,))
            ratio = (q.log_prob(w) - p.log_prob(w)).detach()
            error = float(ratio.double().std()) / math.sqrt(len(ratio))
            assert abs(float(ratio.double().mean()) - kl[site].item()) < 5 * error + 1e-4, (
                name,
                site,
            )
        pyro.clear_param_store()


def test_all_guides_can_be_trained():
    for kind, prior in GUIDES.values():
        model = model_with({"fc.weight": prior})
        guide = kind(model)
        loss = ELBO(model, guide)
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
        history = []
        for _ in range(15):
            optimizer.zero_grad()
            value = loss(X, Y)
            value.backward()
            optimizer.step()
            history.append(value.item())
        assert np.mean(history[-4:]) < np.mean(history[:4])


def test_a_site_may_have_the_name_of_others_with_something_behind():
    def prior(name, shape, group_dim):
        scale = pyro.sample(f"{name}.s", dist.HalfNormal(torch.ones(shape)).to_event(len(shape)))
        return pyro.sample(name, dist.Normal(torch.zeros(shape), scale).to_event(len(shape)))

    model = BayesianNet(nn.Linear(2, 1), prior, likelihoods.Gaussian(0.1), num_data=3)
    assert set(MeanField(model).distributions()) == {"weight.s", "weight"}


def test_mean_field_of_weights_in_plates_has_the_exact_optimum():
    torch.manual_seed(0)
    x = torch.randn(30, 4)
    x = torch.linalg.qr(x)[0] * 3  # orthogonal inputs: the posterior factorises
    y = x @ torch.tensor([1.0, -1.0, 0.5, 0.0]) + 0.2 * torch.randn(30)

    def model(x, y=None):
        with pyro.plate("groups", 2, dim=-2), pyro.plate("members", 2, dim=-1):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
        bias = pyro.sample("bias", dist.Normal(torch.zeros(1), 1e-3).to_event(1))
        with pyro.plate("data", 30):
            pyro.sample("y", dist.Normal(x @ w.flatten() + bias, 0.2), obs=y)

    guide = MeanField(model, x, y)
    result = fit(
        model,
        guide,
        (x, y),
        epochs=1200,
        learning_rate=lambda e: 0.03 * (1 - e / 1200),
        progress=False,
    )
    mean, variance = result.posterior.moments()["w"]
    precision = 9 / 0.2**2 + 1
    # half a posterior standard deviation for the noise of the steps
    torch.testing.assert_close(mean.flatten(), x.T @ y / 0.2**2 / precision, atol=0.03, rtol=0)
    torch.testing.assert_close(variance * precision, torch.ones(2, 2), atol=0.15, rtol=0)
    assert result.posterior.sample(7)["w"].shape == (7, 2, 2)
