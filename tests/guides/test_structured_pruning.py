"""Structured Bayesian pruning: truncated log-normal noise against quadrature and simulation, and what it prunes.

Kolmogorov-Smirnov tests have fixed seeds and a threshold of 1e-4 on the p-value, Monte-Carlo comparisons five standard
errors: on a fresh seed each fails falsely with that probability, or once in 2e6.
"""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import integrate, stats
from torch import nn
from torch.distributions import kl_divergence

from pyro_bnn import (
    ELBO,
    BayesianNet,
    Posterior,
    fit,
    likelihoods,
    linear_warmup,
    local_reparameterization,
    priors,
)
from pyro_bnn.compression import prune
from pyro_bnn.distributions import (
    Flat,
    ImproperPriorError,
    Point,
    TruncatedLogNormal,
    TruncatedLogUniform,
)
from pyro_bnn.guides import GroupHorseshoe, MeanField, StructuredPruning

LOW, HIGH = -20.0, 0.0
# around the starting point, in the middle, as wide as the prior, with its mode outside on either side
PARAMETERS = [
    (0.0, 0.0067),
    (-1.0, 0.5),
    (-3.0, 2.0),
    (-10.0, 30.0),
    (0.5, 0.2),
    (1.0, 0.1),
    (-22.0, 0.7),
    (0.3, 0.01),
]


def double(values):
    return torch.as_tensor(values, dtype=torch.float64)


def noise(mu, sigma, low=LOW, high=HIGH):
    return TruncatedLogNormal(double(mu), double(sigma), double(low), double(high))


def density(mu, sigma):
    """Return the density of t = log z on [LOW, HIGH] and where to look for it: written by hand, normalised by scipy."""
    mode = min(max(mu, LOW), HIGH)

    def kernel(t):
        return math.exp(-(((t - mu) / sigma) ** 2 - ((mode - mu) / sigma) ** 2) / 2)

    # a truncated tail falls off over sigma^2 / distance
    width = sigma if mode == mu else min(sigma, sigma**2 / abs(mode - mu))
    ends = (max(LOW, mode - 50 * width), min(HIGH, mode + 50 * width))
    points = [t for t in (mode - 3 * width, mode, mode + 3 * width) if ends[0] < t < ends[1]]

    def integral(f):
        return integrate.quad(
            lambda t: f(t) * kernel(t), *ends, points=points or None, epsabs=0, limit=500
        )[0]

    total = integral(lambda t: 1.0)
    return lambda f: integral(f) / total, lambda t: kernel(t) / total


@pytest.mark.parametrize(("mu", "sigma"), PARAMETERS)
def test_moments_and_divergence_are_those_of_quadrature(mu, sigma):
    q = noise(mu, sigma)
    mean_of, p = density(mu, sigma)
    first = mean_of(math.exp)
    variance = mean_of(lambda t: (math.exp(t) - first) ** 2)
    assert q.mean.item() == pytest.approx(first, rel=1e-8)
    assert q.variance.item() == pytest.approx(variance, rel=1e-6)
    assert q.signal_to_noise.item() == pytest.approx(first / math.sqrt(variance), rel=1e-6)
    kl = kl_divergence(q, TruncatedLogUniform(double(LOW), double(HIGH))).item()
    assert kl == pytest.approx(
        mean_of(lambda t: math.log(p(t)) if p(t) else 0.0) + math.log(HIGH - LOW), rel=1e-7
    )
    for t in (HIGH - 1e-3, -1.0, LOW + 0.1):
        if p(t) > 0:
            assert q.log_prob(double(t).exp()).item() == pytest.approx(
                math.log(p(t)) - t, rel=1e-6, abs=1e-6
            )


@pytest.mark.parametrize(("mu", "sigma"), PARAMETERS)
def test_single_precision_agrees_with_double(mu, sigma):
    q, exact = TruncatedLogNormal(torch.tensor(mu), torch.tensor(sigma)), noise(mu, sigma)
    prior = TruncatedLogUniform(torch.tensor(LOW), torch.tensor(HIGH))
    for value, expected in (
        (q.mean, exact.mean),
        (q.variance, exact.variance),
        (
            kl_divergence(q, prior),
            kl_divergence(exact, TruncatedLogUniform(double(LOW), double(HIGH))),
        ),
    ):
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(expected.item(), rel=2e-4)


@pytest.mark.parametrize(("mu", "sigma"), [*PARAMETERS, (5.0, 0.1), (-60.0, 0.5)])
def test_draws_follow_the_law(mu, sigma):
    torch.manual_seed(0)
    q = noise(mu, sigma)
    log_z = q.rsample(torch.Size([5000])).log().numpy()
    assert log_z.min() >= LOW
    assert log_z.max() <= HIGH
    bounds = ((LOW - mu) / sigma, (HIGH - mu) / sigma)
    assert stats.kstest(log_z, stats.truncnorm(*bounds, mu, sigma).cdf).pvalue > 1e-4


@pytest.mark.parametrize(("mu", "sigma"), PARAMETERS)
def test_gradients_are_those_of_finite_differences(mu, sigma):
    loc, scale = double(mu).requires_grad_(), double(sigma).requires_grad_()

    def kl(m, s):
        return kl_divergence(noise(m, s), TruncatedLogUniform(double(LOW), double(HIGH)))

    step = 1e-3 * sigma
    for f in (kl, lambda m, s: noise(m, s).mean.log(), lambda m, s: noise(m, s).variance.log()):
        for gradient, (dm, ds) in zip(
            torch.autograd.grad(f(loc, scale), (loc, scale)), ((1, 0), (0, 1)), strict=True
        ):
            with torch.no_grad():
                up, down = (f(loc + sign * dm * step, scale + sign * ds * step) for sign in (1, -1))
            assert gradient.item() == pytest.approx(
                ((up - down) / (2 * step)).item(), rel=1e-3, abs=1e-3 / sigma
            )


@pytest.mark.parametrize(("mu", "sigma"), [*PARAMETERS, (5.0, 0.1)])
def test_draws_have_the_gradient_of_their_quantile(mu, sigma):
    for u in (0.02, 0.5, 0.97):
        values = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TruncatedLogNormal, "_uniform", lambda self, shape, u=u: double(u))
            loc, scale = double(mu).requires_grad_(), double(sigma).requires_grad_()
            draw = noise(loc, scale).rsample().log()
            gradients = torch.autograd.grad(draw, (loc, scale))
            step = 1e-4 * sigma
            for m, s in (
                (mu + step, sigma),
                (mu - step, sigma),
                (mu, sigma + step),
                (mu, sigma - step),
            ):
                values.append(noise(m, s).rsample().log().item())
        for gradient, (up, down) in zip(gradients, (values[:2], values[2:]), strict=True):
            # at the far end of a truncated tail the draw hardly depends on anything
            assert gradient.item() == pytest.approx(
                (up - down) / (2 * step), rel=1e-3, abs=1e-6 / sigma
            )


def test_far_outside_all_is_finite():
    for mu in (-1e3, -25.0, 0.0, 3.0, 1e3):
        for sigma in (1e-4, 1e-2, 1.0, 1e3):
            loc, scale = (
                torch.tensor(mu, requires_grad=True),
                torch.tensor(sigma, requires_grad=True),
            )
            q = TruncatedLogNormal(loc, scale)
            kl = kl_divergence(q, TruncatedLogUniform(LOW, HIGH))
            (kl + q.rsample() + q.mean).backward()
            for value in (kl, q.mean, q.variance, q.signal_to_noise, loc.grad, scale.grad):
                assert value.isfinite(), (mu, sigma)
            assert kl > -1e-4


def test_as_wide_as_the_prior_it_is_the_prior():
    q, p = noise(-10.0, 1e4), TruncatedLogUniform(double(LOW), double(HIGH))
    assert abs(kl_divergence(q, p).item()) < 1e-6
    assert q.mean.item() == pytest.approx(p.mean.item(), rel=1e-5)
    assert q.variance.item() == pytest.approx(p.variance.item(), rel=1e-5)
    assert p.mean.item() == pytest.approx(integrate.quad(lambda t: math.exp(t) / 20, -20, 0)[0])
    torch.manual_seed(0)
    assert (
        stats.kstest(p.sample(torch.Size([5000])).log().numpy(), stats.uniform(-20, 20).cdf).pvalue
        > 1e-4
    )
    assert kl_divergence(noise(0.0, 1.0, high=1.0), p) == math.inf  # mass where the prior has none


# --- the prior and the guide


def model_of(prior, n=8):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    return BayesianNet(net, prior, likelihoods.Categorical(), n)


X, Y = torch.linspace(-1, 1, 8 * 16).reshape(8, 1, 4, 4), torch.arange(8) % 2


def test_the_weight_is_a_point_times_noise_of_its_group():
    model = model_of(priors.TruncatedLogUniform())
    guide = StructuredPruning(model)
    torch.manual_seed(3)
    trace = poutine.trace(guide).get_trace()
    weights = poutine.replay(model.weights, trace=trace)()
    net = model.network_with(model.weights())
    for name, shape in (("0.weight", (3, 1, 1, 1)), ("3.weight", (1, 12))):
        z = trace.nodes[f"{name}.scale"]["value"]
        assert z.shape == shape
        assert torch.allclose(weights[name], net.get_parameter(name) * z)
        mean, variance = guide.moments()[name]
        q = TruncatedLogNormal(torch.tensor(0.0), torch.tensor(0.0067))
        assert torch.allclose(mean, net.get_parameter(name) * q.mean)
        assert torch.allclose(variance, net.get_parameter(name).square() * q.variance)
    assert {name.rsplit(".", 1)[1] for name, _ in guide.named_parameters()} == {"loc", "log_scale"}


@pytest.mark.parametrize("s", [None, 0.7])
def test_the_units_have_no_divergence_or_weight_decay(s):
    model = model_of(priors.TruncatedLogUniform(unit_scale=s))
    guide = StructuredPruning(model)
    kl = ELBO(model, guide).terms(X, Y).kl
    for name in ("0.weight", "3.weight"):
        unit = guide.families()[f"{name}.unit"]
        if s is None:
            assert kl[f"{name}.unit"].item() == 0
        else:
            (gradient,) = torch.autograd.grad(kl[f"{name}.unit"], unit.loc)
            assert torch.allclose(gradient, unit.loc.detach() / s**2)
        z = guide.distributions()[f"{name}.scale"].base_dist
        expected = kl_divergence(z, TruncatedLogUniform(LOW, HIGH)).sum()
        assert kl[f"{name}.scale"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_points_pass_local_reparameterization_as_they_are():
    net = nn.Linear(5, 3)
    x, y = torch.randn(4, 5), torch.arange(4) % 3
    model = BayesianNet(net, {"weight": point_prior}, likelihoods.Categorical(), 4)

    def guide(*args):
        import pyro

        pyro.sample("weight", Point(net.weight.detach()).to_event(2))

    plain, local = (ELBO(model, g)(x, y) for g in (guide, local_reparameterization(guide)))
    assert plain.item() == pytest.approx(local.item(), rel=1e-6)
    assert plain.item() == pytest.approx(
        nn.functional.cross_entropy(net(x), y, reduction="sum").item(), rel=1e-5
    )


def point_prior(name, shape, group_dim):
    import pyro

    return pyro.sample(name, Flat().expand(shape).to_event(len(shape)))


def test_points_and_flat_priors_by_themselves():
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


def test_the_prior_is_proper_where_its_units_have_a_scale():
    assert model_of(priors.TruncatedLogUniform(unit_scale=1.0))(X).shape == (8, 2)
    with pytest.raises(ImproperPriorError):
        model_of(priors.TruncatedLogUniform())(X)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.TruncatedLogUniform(0.0, 0.0), "expected low < high, got 0.0 and 0.0"),
        (lambda: priors.TruncatedLogUniform(unit_scale=-1.0), "unit_scale above zero"),
        (
            lambda: StructuredPruning(model_of(priors.NormalJeffreys())),
            r"between two bounds.*TruncatedLogUniform\(\)",
        ),
        (
            lambda: StructuredPruning(model_of(priors.TruncatedLogUniform()), init_scale=0.0),
            "init_scale above zero",
        ),
        (
            lambda: MeanField(model_of(priors.TruncatedLogUniform())),
            "site '0.weight.scale' has the support",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_it_copies_saves_and_doubles():
    import copy

    model = model_of(priors.TruncatedLogUniform(-12.0, 0.5))
    guide = StructuredPruning(model)
    z = guide.distributions()["0.weight.scale"].base_dist
    assert torch.allclose(torch.stack([z.low, z.high]).flatten(1)[:, 0], torch.tensor([-12.0, 0.5]))
    other = StructuredPruning(model)
    other.load_state_dict(copy.deepcopy(guide).state_dict())
    loss = ELBO(copy.deepcopy(model).double(), other.double())(X.double(), Y)
    assert loss.dtype == torch.float64
    draws = Posterior.from_guide(model, guide).sample(20)
    assert draws["0.weight"].shape == (20, 3, 1, 3, 3)
    assert draws["0.weight.scale"].std(0).min() > 0
    with torch.device("meta"):
        assert all(
            p.is_meta
            for p in StructuredPruning(
                model_of(priors.TruncatedLogUniform().to("meta"))
            ).parameters()
        )


def data_with_useless_inputs(n=1000):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(n, 8, generator=generator)
    return x, (x[:, 0] * x[:, 1] > 0).long()  # six of eight inputs say nothing


def trained_network(x, y, hidden=16):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02, weight_decay=1e-3)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net


def accuracy(net, x, y):
    with torch.no_grad():
        return (net(x).argmax(1) == y).float().mean().item()


def test_from_a_trained_network_it_drops_what_says_nothing():
    x, y = data_with_useless_inputs()
    prior = priors.TruncatedLogUniform(unit_scale=1.0)
    model = BayesianNet(trained_network(x, y), prior, likelihoods.Categorical(), len(x))
    result = fit(
        model,
        StructuredPruning(model, init_scale=0.1),
        (x, y),
        epochs=300,
        learning_rate=lambda e: 0.05 * (1 - e / 300),
        kl_weight=linear_warmup(0, 100),
        progress=False,
    )
    snr = result.guide.signal_to_noise()["0.weight"].flatten()
    assert (snr[:2] > 5).all()
    assert (snr[2:] < 1).all()
    pruned = prune(result.posterior, group_threshold=0.0)  # log alpha >= 0: SNR <= 1
    assert torch.equal(pruned.groups["0.weight"].flatten(), torch.arange(8) < 2)
    assert pruned.groups["2.weight"].sum() < 16
    assert accuracy(pruned.module, x, y) > 0.97


# --- the horseshoes


@pytest.mark.parametrize("tau", [1e-3, 0.5])
def test_the_direct_horseshoe_has_exact_divergences_and_prunes_groups_by_their_mode(tau):
    model = model_of(priors.Horseshoe(tau))
    guide = MeanField(model, init_scale=0.3)
    with torch.no_grad():
        for name, p in guide.named_parameters():
            if "scale" in name:
                p.add_(0.5 * torch.randn_like(p))
    kl = ELBO(model, guide).terms(X, Y).kl

    def expected(q, scale):
        total = 0.0
        for m, s in zip(
            q.loc.double().flatten().tolist(), q.scale.double().flatten().tolist(), strict=True
        ):

            def integrand(n, m=m, s=s):
                z = math.exp(m + s * n)
                log_q = stats.norm.logpdf(n) - math.log(s) - m - s * n
                return stats.norm.pdf(n) * (log_q - stats.halfcauchy.logpdf(z, scale=scale))

            total += integrate.quad(integrand, -12, 12, epsabs=1e-10)[0]
        return total

    q = {name: d.base_dist for name, d in guide.requires_grad_(False).distributions().items()}
    for name in ("0.weight", "3.weight"):
        assert kl[f"{name}.scale"].item() == pytest.approx(
            expected(q[f"{name}.scale"], 1.0), rel=1e-4
        )
        assert kl[f"{name}.global_scale"].item() == pytest.approx(
            expected(q[f"{name}.global_scale"], tau), rel=1e-4
        )
    z = q["3.weight.scale"]
    measure = (z.scale.square() - z.loc).flatten()
    threshold = measure.sort().values[5:7].mean().item()
    pruned = prune(Posterior.from_guide(model, guide), group_threshold=threshold)
    assert torch.equal(pruned.groups["3.weight"].flatten(), measure < threshold)


def test_the_cap_of_the_group_horseshoe_holds():
    model = model_of(priors.Horseshoe(0.1, decomposed=True))
    guide = GroupHorseshoe(model, max_scale={"3.weight": 0.2})
    assert torch.allclose(
        guide.distributions()["3.weight.unit"].base_dist.scale, torch.tensor(math.exp(-4.5))
    )
    for name in ("0.weight", "3.weight"):
        guide.families()[f"{name}.unit"].log_scale.data.fill_(30.0)
    assert torch.allclose(guide.distributions()["3.weight.unit"].base_dist.scale, torch.tensor(0.2))
    assert guide.distributions()["0.weight.unit"].base_dist.scale.min() > 1e10
    assert list(guide.distributions()) == list(GroupHorseshoe(model).distributions())
    with pytest.raises(
        ValueError,
        match=r"GroupHorseshoe: max_scale names fc1; the weights .* are 0.weight, 3.weight",
    ):
        GroupHorseshoe(model, max_scale={"fc1": 0.2})
    with pytest.raises(ValueError, match="not below its cap"):
        GroupHorseshoe(model, init_log_variance=-2.0, max_scale={"3.weight": 0.2})
