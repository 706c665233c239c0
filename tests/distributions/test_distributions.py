"""The distributions and divergences against independent truth: quadrature, exact laws, Monte Carlo, published tables.

Statistical tests have fixed seeds, so they pass or fail for good; on a fresh seed each would fail falsely with a
probability of 6e-5 per compared number at 4 standard errors (6e-7 at 5), two-sided, and 1e-4 where a p-value decides.
"""

import itertools
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, special, stats
from torch.distributions import kl_divergence
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_bnn.distributions import (
    BernoulliDropout,
    GaussianDropout,
    ImproperPriorError,
    LogUniform,
    half_cauchy_as_product,
    kl_log_uniform,
    kl_log_uniform_approximate,
    kl_monte_carlo,
)

# torch compiles its own decompositions with a deprecated tool when forward mode is first used
forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

GRID = np.linspace(-12, 12, 97)
TABLE_LOG_ALPHA = [-10, -8, -5, -3, -2, -1, 0, 1, 2, 3, 5, 8]
TABLE_EXACT = [
    5.63516,
    4.63501,
    3.13178,
    2.10798,
    1.54415,
    0.91453,
    0.42669,
    0.17319,
    0.06617,
    0.02469,
    0.00337,
    1.68e-4,
]
TABLE_APPROXIMATE = [
    5.63578,
    4.63590,
    3.13668,
    2.11559,
    1.54053,
    0.91387,
    0.43124,
    0.17797,
    0.06842,
    0.02542,
    0.00342,
]


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def quadrature_kl(log_alpha):
    x = math.sqrt(math.exp(-log_alpha) / 2)
    breaks = [b for b in (0.5, 1, 2, 4, 8, 16, 32, 64, 128) if b < x]
    edges = [0.0, *breaks, x]
    return 2 * sum(
        integrate.quad(special.dawsn, a, b, epsabs=1e-13, epsrel=1e-12)[0]
        for a, b in itertools.pairwise(edges)
    )


def dawson_slope(log_alpha):
    x = np.sqrt(np.exp(-log_alpha) / 2)
    return -x * special.dawsn(x)


def expectation(f, loc=0.0, scale=1.0):
    """E f(N(loc, scale²)) by adaptive quadrature."""
    return integrate.quad(
        lambda n: f(loc + scale * n) * math.exp(-n * n / 2) / math.sqrt(2 * math.pi),
        -12,
        12,
        limit=400,
        epsabs=1e-11,
    )[0]


# --- the log-uniform divergence --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "value_error", "slope_error"),
    [(torch.float64, 3e-8, 3e-8), (torch.float32, 6e-6, 6e-6)],
)
def test_exact_kl_and_its_slope_are_those_of_quadrature(dtype, value_error, slope_error):
    # every grid point is a multiple of 1/4: exact in float32 too
    log_alpha = torch.tensor(GRID, dtype=dtype, requires_grad=True)
    value = kl_log_uniform(log_alpha)
    (slope,) = torch.autograd.grad(value.sum(), log_alpha)
    assert value.dtype == dtype
    np.testing.assert_allclose(
        value.detach().double(), [quadrature_kl(la) for la in GRID], rtol=0, atol=value_error
    )
    np.testing.assert_allclose(slope.double(), dawson_slope(GRID), rtol=0, atol=slope_error)


def test_curvature_is_that_of_dawson():
    log_alpha = double(GRID).requires_grad_()
    (slope,) = torch.autograd.grad(kl_log_uniform(log_alpha).sum(), log_alpha, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), log_alpha)
    # d/dla[-x D(x)] with dx/dla = -x/2 and D' = 1 - 2xD
    x = np.sqrt(np.exp(-GRID) / 2)
    d = special.dawsn(x)
    np.testing.assert_allclose(curvature, x / 2 * (d + x * (1 - 2 * x * d)), rtol=0, atol=1e-6)


def test_tails_are_relatively_accurate():
    # KL = u - u²/3 + O(u³)
    u = torch.exp(-double([12.0, 20.0, 40.0])) / 2
    torch.testing.assert_close(kl_log_uniform(-torch.log(2 * u)), u - u**2 / 3, rtol=1e-9, atol=0)


def test_published_table():
    np.testing.assert_allclose(
        kl_log_uniform(double(TABLE_LOG_ALPHA)), TABLE_EXACT, rtol=0, atol=6e-6
    )
    approximate = kl_log_uniform_approximate(double(TABLE_LOG_ALPHA[:-1]))
    np.testing.assert_allclose(approximate, TABLE_APPROXIMATE, rtol=0, atol=6e-6)
    np.testing.assert_allclose(
        dawson_slope(np.array([0, 3, -5.0])), [-0.36239, -0.02448, -0.50344], atol=6e-6
    )


def test_published_error_of_the_approximation():
    log_alpha = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    error = (kl_log_uniform_approximate(log_alpha) - kl_log_uniform(log_alpha)).abs()
    assert error.max().item() == pytest.approx(0.0094, abs=1e-4)
    assert log_alpha[error.argmax()].item() == pytest.approx(-3.5, abs=0.2)


def test_exact_kl_is_monotone():
    assert (kl_log_uniform(torch.linspace(-30, 30, 6001, dtype=torch.float64)).diff() < 0).all()


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 3.0])
def test_closed_kl_is_the_mean_log_ratio(log_alpha):
    torch.manual_seed(0)
    q = dist.Normal(double(0.3), double(0.3 * math.exp(log_alpha / 2)))
    p = LogUniform()
    w = q.sample((400_000,))
    ratio = q.log_prob(w) - p.log_prob(w)
    assert abs(ratio.mean() - kl_divergence(q, p)) < 4 * ratio.std() / math.sqrt(len(w))


@pytest.mark.parametrize("kl", [kl_log_uniform, kl_log_uniform_approximate])
def test_scale_invariance_and_sign_symmetry(kl):
    p = LogUniform(kl=kl)
    loc, scale = double([0.3, 1e-5, 2.0]), double([0.1, 3e-5, 5.0])
    value = kl_divergence(dist.Normal(loc, scale), p)
    torch.testing.assert_close(kl_divergence(dist.Normal(-loc, scale), p), value, rtol=0, atol=0)
    for c in (1e-6, 7.0, 1e6):
        torch.testing.assert_close(kl_divergence(dist.Normal(c * loc, c * scale), p), value)


@pytest.mark.parametrize("kl", [kl_log_uniform, kl_log_uniform_approximate])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_finite_at_the_extremes(kl, dtype):
    log_alpha = torch.tensor(
        [-100.0, -50, -20, -3, 0, 3, 20, 50, 100], dtype=dtype, requires_grad=True
    )
    value = kl(log_alpha)
    (slope,) = torch.autograd.grad(value.sum(), log_alpha, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), log_alpha)
    assert value.dtype == slope.dtype == dtype
    for x in (value, slope, curvature):
        assert torch.isfinite(x).all()
    reference = kl(log_alpha.detach().double())
    torch.testing.assert_close(
        value.detach().double(), reference, rtol=4 * torch.finfo(dtype).eps, atol=5e-6
    )


def test_limits_at_infinity():
    log_alpha = torch.tensor([-torch.inf, torch.inf], requires_grad=True)
    value = kl_log_uniform(log_alpha)
    (slope,) = torch.autograd.grad(value.sum(), log_alpha)
    assert value.tolist() == [torch.inf, 0.0]
    assert slope.tolist() == pytest.approx([-0.5, 0.0], abs=1e-6)
    # KL + la/2 tends to (γ + log 2)/2
    assert kl_log_uniform(double(-60.0)).item() - 30 == pytest.approx(
        (np.euler_gamma + math.log(2)) / 2, abs=1e-8
    )


@forward_mode
def test_all_derivatives_by_finite_differences():
    log_alpha = double([-9.0, -4.0, -1.5, 0.0, 0.7, 3.0, 8.0]).requires_grad_()
    assert torch.autograd.gradcheck(kl_log_uniform, log_alpha, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(kl_log_uniform, log_alpha)

    def slope(la):
        return torch.autograd.grad(kl_log_uniform(la).sum(), la, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(slope, log_alpha)


@forward_mode
def test_function_transforms():
    log_alpha = torch.linspace(-9, 9, 12, dtype=torch.float64).reshape(3, 4)
    plain = kl_log_uniform(log_alpha)
    torch.testing.assert_close(torch.vmap(kl_log_uniform)(log_alpha), plain)
    torch.testing.assert_close(
        torch.vmap(torch.vmap(kl_log_uniform), in_dims=1, out_dims=1)(log_alpha), plain
    )
    slope = torch.func.grad(lambda la: kl_log_uniform(la).sum())(log_alpha)
    np.testing.assert_allclose(slope, dawson_slope(log_alpha.numpy()), atol=3e-8)
    each = torch.vmap(torch.vmap(torch.func.grad(kl_log_uniform)))(log_alpha)
    torch.testing.assert_close(each, slope)
    torch.testing.assert_close(
        torch.func.grad(lambda la: torch.vmap(kl_log_uniform)(la).sum())(log_alpha), slope
    )
    _, forward = torch.func.jvp(kl_log_uniform, (log_alpha,), (torch.ones_like(log_alpha),))
    torch.testing.assert_close(forward, slope)
    hessian = torch.func.hessian(lambda la: kl_log_uniform(la).sum())(log_alpha[0])
    twice = torch.vmap(torch.func.grad(torch.func.grad(kl_log_uniform)))(log_alpha[0])
    torch.testing.assert_close(hessian, torch.diag(twice))


def test_traced_graph_computes_the_same():
    def loss_and_gradient(loc, log_scale):
        def loss(loc, log_scale):
            return kl_divergence(
                dist.Normal(loc, log_scale.exp(), validate_args=False), LogUniform()
            ).sum()

        return torch.func.grad_and_value(loss, argnums=(0, 1))(loc, log_scale)

    torch.manual_seed(0)
    first, second = (torch.randn(2, 5), torch.randn(2, 5)), (torch.randn(2, 5), torch.randn(2, 5))
    graph = make_fx(loss_and_gradient)(*first)
    torch.testing.assert_close(graph(*second), loss_and_gradient(*second))

    def stepwise(log_alpha):  # as autograd traces it, without torch.func
        log_alpha = log_alpha.detach().requires_grad_()
        return torch.autograd.grad(kl_log_uniform(log_alpha).sum(), log_alpha)

    torch.testing.assert_close(make_fx(stepwise)(first[0])(second[0]), stepwise(second[0]))


# --- LogUniform ------------------------------------------------------------------------------------------------------


def test_log_uniform_density():
    w = double([0.5, -0.5, 3.0])
    log_density = LogUniform().log_prob(w)
    torch.testing.assert_close(log_density[0], log_density[1])
    # the measure of [a, 2a] is the same for every a
    torch.testing.assert_close(log_density[0] - log_density[2], double(math.log(6)))
    assert LogUniform((2, 3)).log_prob(w).shape == (2, 3)
    assert LogUniform().log_prob(torch.tensor(0.0)) == torch.inf


@pytest.mark.parametrize(
    "ask",
    [
        lambda p: p.sample(),
        lambda p: p.rsample((3,)),
        lambda p: p(),
        lambda p: p.mean,
        lambda p: p.variance,
        lambda p: p.stddev,
        lambda p: p.entropy(),
        lambda p: p.cdf(torch.tensor(1.0)),
        lambda p: p.icdf(torch.tensor(0.5)),
        lambda p: p.normalizer,
    ],
)
def test_log_uniform_refuses_what_it_lacks(ask):
    with pytest.raises(
        ImproperPriorError, match=r"LogUniform was asked for .* improper .* Horseshoe"
    ):
        ask(LogUniform((2,)))


def test_log_uniform_expands_and_stays_independent():
    p = LogUniform(kl=kl_log_uniform_approximate).expand((4, 3))
    assert isinstance(p, LogUniform)
    assert p.batch_shape == (4, 3)
    assert isinstance(p.expand_by([2]), LogUniform)
    q = dist.Normal(torch.full((4, 3), 2.0), torch.full((4, 3), 2.0))
    torch.testing.assert_close(kl_divergence(q, p), torch.full((4, 3), 0.43124), rtol=0, atol=1e-5)
    joint = kl_divergence(q.to_event(2), p.to_event(2))
    torch.testing.assert_close(joint, torch.tensor(12 * 0.43124), rtol=0, atol=1e-4)
    # torch's own classes, and a batch that only the prior has
    assert kl_divergence(torch.distributions.Normal(1.0, 1.0), LogUniform((5,))).shape == (5,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_normal_at_zero_mean_is_finite(dtype):
    loc = torch.tensor([0.0, 1e-30, 1e-6, 1.0], dtype=dtype, requires_grad=True)
    scale = torch.tensor([1e-3, 1e-3, 1.0, 1e3], dtype=dtype, requires_grad=True)
    value = kl_divergence(dist.Normal(loc, scale), LogUniform())
    gradient = torch.autograd.grad(value.sum(), (loc, scale))
    assert value.dtype == dtype
    assert all(torch.isfinite(x).all() for x in (value, *gradient))
    assert value[0].item() < 1e-30  # tiny in log(θ² + tiny) is all that is left
    assert gradient[0][0] == 0


# --- GaussianDropout -------------------------------------------------------------------------------------------------


def test_gaussian_dropout_is_the_normal_with_that_noise():
    loc, log_alpha = torch.tensor([[1.0, -2.0, 0.5]] * 2), torch.tensor([[0.3], [-1.0]])
    q = GaussianDropout(loc, log_alpha)
    assert isinstance(q, torch.distributions.Normal)
    torch.testing.assert_close(q.variance, log_alpha.exp() * loc**2)
    torch.testing.assert_close(q.mean, loc)
    expected = kl_divergence(dist.Normal(q.loc, q.scale), LogUniform())
    torch.testing.assert_close(kl_divergence(q, LogUniform()), expected)
    approximate = kl_divergence(
        q.to_event(2), LogUniform(kl=kl_log_uniform_approximate).expand((2, 3)).to_event(2)
    )
    torch.testing.assert_close(approximate, 3 * kl_log_uniform_approximate(log_alpha).sum())
    torch.manual_seed(0)
    w = q.rsample((100_000,))
    assert ((w.mean(0) - loc).abs() < 4 * q.scale / math.sqrt(len(w))).all()
    assert ((w.var(0) / q.variance - 1).abs() < 4 * math.sqrt(2 / len(w))).all()


def test_gaussian_dropout_masks_means_only():
    loc, keep = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([True, False, True])
    q = GaussianDropout(loc, torch.tensor(0.0), keep)
    assert q.loc.tolist() == [1.0, 0.0, 0.5]
    assert q.scale.tolist() == [1.0, 2.0, 0.5]
    value = kl_divergence(q, LogUniform())
    torch.testing.assert_close(value, torch.full((3,), 0.426686), rtol=0, atol=1e-5)
    grown = q.expand((4, 3))
    assert isinstance(grown, GaussianDropout)
    torch.testing.assert_close(grown.loc, q.loc.expand(4, 3))
    torch.testing.assert_close(grown.scale, q.scale.expand(4, 3))
    torch.testing.assert_close(kl_divergence(grown, LogUniform()), value.expand(4, 3))


def test_gaussian_dropout_at_zero():
    loc, log_alpha = torch.zeros(3, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    q = GaussianDropout(loc, log_alpha)
    value = kl_divergence(q, LogUniform()).sum() + q.rsample().sum()
    gradient = torch.autograd.grad(value, (loc, log_alpha))
    assert all(torch.isfinite(x).all() for x in (value, *gradient))


# --- BernoulliDropout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group_dim", "groups"), [(None, 12), (0, 3), (1, 4), (-1, 4)])
def test_bernoulli_dropout_drops_groups_at_its_rate(group_dim, groups):
    torch.manual_seed(1)
    loc = torch.arange(1.0, 13).reshape(3, 4)
    q = BernoulliDropout(loc, 0.3, group_dim)
    assert (q.batch_shape, q.event_shape) == ((), (3, 4))
    w = q.sample((20_000,))
    assert set((w / loc).unique().tolist()) == {0.0, 1.0}
    dropped = w == 0
    if group_dim is not None:
        dropped = dropped.movedim(group_dim % 2 + 1, 1)
        assert (dropped.all(2) == dropped.any(2)).all()
        dropped = dropped[:, :, 0]
    dropped = dropped.reshape(len(w), -1)
    assert dropped.shape[1] == groups
    assert stats.binomtest(int(dropped.sum()), dropped.numel(), 0.3).pvalue > 1e-4
    # different groups fall out independently
    correlation = torch.corrcoef(dropped.T.float()) - torch.eye(groups)
    assert correlation.abs().max() < 5 / math.sqrt(len(w))
    assert ((w.mean(0) - q.mean).abs() < 4 * q.stddev / math.sqrt(len(w))).all()
    torch.testing.assert_close(w.var(0), q.variance, rtol=0.05, atol=0)


def narrow_mixture_kl(theta, rate, prior_mean, prior_scale, width):
    """KL of r N(0, ε²) + (1 - r) N(θ, ε²) from N(m, s²), by quadrature over each peak."""

    def integrand(w):
        log_q = np.logaddexp(
            math.log(rate) + stats.norm.logpdf(w, 0, width),
            math.log1p(-rate) + stats.norm.logpdf(w, theta, width),
        )
        return np.exp(log_q) * (log_q - stats.norm.logpdf(w, prior_mean, prior_scale))

    total = 0.0
    for centre in (0.0, theta):
        w = np.linspace(centre - 12 * width, centre + 12 * width, 4001)
        total += np.trapezoid(integrand(w), w)
    return total


@pytest.mark.parametrize(("prior_mean", "prior_scale"), [(0.0, 1.0), (0.4, 2.5)])
def test_bernoulli_dropout_kl_is_the_limit_of_narrow_mixtures(prior_mean, prior_scale):
    theta, rate = double([0.7, -1.3]), 0.2
    prior = dist.Normal(double(prior_mean), double(prior_scale)).expand((2,)).to_event(1)
    closed = kl_divergence(BernoulliDropout(theta, rate), prior).item()
    gaps = []
    for width in (3e-2, 1e-2, 1e-3):
        mixture = sum(
            narrow_mixture_kl(t, rate, prior_mean, prior_scale, width) for t in theta.tolist()
        )
        gaps.append(abs(mixture - 2 * (-math.log(width) - 0.5) - closed))
    # the remainder is ε²/(2 s²) per weight
    np.testing.assert_allclose(
        gaps[:2], [2 * w * w / (2 * prior_scale**2) for w in (3e-2, 1e-2)], rtol=1e-3
    )
    assert gaps[2] < 1.1e-6


def test_bernoulli_dropout_kl_counts_one_coin_per_group():
    loc = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prior = dist.Normal(double(0.0), double(1.0)).expand((3, 4)).to_event(2)
    coin = stats.bernoulli(0.2).entropy()
    cost = 0.8 * loc.square().sum().item() / 2
    for group_dim, groups in ((None, 12), (0, 3), (1, 4)):
        value = kl_divergence(BernoulliDropout(loc, 0.2, group_dim), prior).item()
        assert value == pytest.approx(cost - groups * coin)
    assert kl_divergence(BernoulliDropout(loc, 0.0), prior).item() == pytest.approx(cost / 0.8)
    # a rate per group
    rates = double([[0.2], [0.2], [0.5]])
    expected = loc.square().sum(1) @ double([0.8, 0.8, 0.5]) / 2 - 2 * coin - math.log(2)
    torch.testing.assert_close(kl_divergence(BernoulliDropout(loc, rates, 0), prior), expected)
    # a prior with a batch
    batch = (
        dist.Normal(double(0.0), double([1.0, 2.0]).reshape(2, 1, 1)).expand((2, 3, 4)).to_event(2)
    )
    assert kl_divergence(BernoulliDropout(loc, 0.2), batch).shape == (2,)
    assert kl_divergence(BernoulliDropout(loc, 0.2), batch)[0].item() == pytest.approx(
        cost - 12 * coin
    )


def test_bernoulli_dropout_gradients():
    loc = double([[0.7, -1.3, 0.2]]).requires_grad_()
    scale = double(1.5).requires_grad_()

    def kl(loc, scale):
        prior = dist.Normal(loc.new_zeros(()), scale).expand((1, 3)).to_event(2)
        return kl_divergence(BernoulliDropout(loc, 0.25, 1), prior)

    assert torch.autograd.gradcheck(kl, (loc, scale))
    torch.manual_seed(0)
    q = BernoulliDropout(loc, 0.25, 1)
    w = q.rsample((1000,))
    (gradient,) = torch.autograd.grad(w.sum(), loc)
    torch.testing.assert_close(gradient, (w != 0).sum(0).double())


def test_bernoulli_dropout_errors():
    loc = torch.ones(2, 3)
    with pytest.raises(NotImplementedError, match="no density"):
        BernoulliDropout(loc, 0.5).log_prob(loc)
    with pytest.raises(ValueError, match=r"\[0, 1\]; got 1.5"):
        BernoulliDropout(loc, 1.5)
    with pytest.raises(ValueError, match="rate"):
        BernoulliDropout(loc, torch.tensor(-0.5), validate_args=True)
    with pytest.raises(ValueError, match="axis of loc"):
        BernoulliDropout(loc, 0.5, group_dim=2)
    with pytest.raises(NotImplementedError, match="not from an independent Laplace"):
        kl_divergence(BernoulliDropout(loc, 0.5), dist.Laplace(loc, 1.0).to_event(2))
    with pytest.raises(NotImplementedError, match="not from an independent LogUniform"):
        kl_divergence(BernoulliDropout(loc, 0.5), LogUniform((2, 3)).to_event(2))
    with pytest.raises(ValueError, match="event shape"):
        kl_divergence(BernoulliDropout(loc, 0.5), dist.Normal(loc, 1.0).to_event(1))


# --- scales ----------------------------------------------------------------------------------------------------------


def log_normal_kl(loc, scale, log_density):
    """KL of LogNormal(loc, scale) by quadrature over y = log z; log_density is that of y, so the Jacobian cancels."""
    entropy = 0.5 * math.log(2 * math.pi * math.e * scale**2)
    return -entropy - expectation(log_density, loc, scale)


@pytest.mark.parametrize("log_sd", [0.05, 0.3, 1.0, 2.0, 4.0])
@pytest.mark.parametrize(("loc", "tau"), [(0.0, 1.0), (-3.0, 1.0), (0.7, 1e-3), (1.5, 20.0)])
def test_half_cauchy_kl(log_sd, loc, tau):
    def log_density(y):
        return math.log(2 / (math.pi * tau)) - np.logaddexp(0, 2 * (y - math.log(tau))) + y

    value = kl_divergence(dist.LogNormal(double(loc), double(log_sd)), dist.HalfCauchy(double(tau)))
    assert value.item() == pytest.approx(log_normal_kl(loc, log_sd, log_density), abs=1e-5)


@pytest.mark.parametrize("log_sd", [0.3, 1.0])
@pytest.mark.parametrize(("concentration", "rate"), [(0.5, 1.0), (0.5, 6.25), (2.5, 0.7)])
def test_gamma_and_inverse_gamma_kl(log_sd, concentration, rate):
    loc = -0.4
    q = dist.LogNormal(double(loc), double(log_sd))
    gamma, inverse = (
        stats.gamma(concentration, scale=1 / rate),
        stats.invgamma(concentration, scale=rate),
    )
    for p, truth in (
        (dist.Gamma(double(concentration), double(rate)), gamma),
        (dist.InverseGamma(double(concentration), double(rate)), inverse),
        (torch.distributions.InverseGamma(double(concentration), double(rate)), inverse),
    ):
        expected = log_normal_kl(loc, log_sd, lambda y, truth=truth: truth.logpdf(math.exp(y)) + y)
        assert kl_divergence(q, p).item() == pytest.approx(expected, abs=1e-8)


def test_horseshoe_oracles():
    q = dist.LogNormal(double(-1.2), double(math.sqrt(0.3)))
    a, b = half_cauchy_as_product(double(math.sqrt(0.4)))
    assert kl_divergence(q, a).item() == pytest.approx(0.77211, abs=6e-6)
    assert kl_divergence(q, b).item() == pytest.approx(3.01284, abs=6e-6)
    best = dist.LogNormal(double(math.log(0.4 / 2) - 1), double(math.sqrt(2)))
    assert kl_divergence(best, a).item() == pytest.approx(0.15343, abs=6e-6)


def test_half_cauchy_is_the_root_of_the_product():
    torch.manual_seed(0)
    for tau in (0.3, 5.0):
        a, b = half_cauchy_as_product(tau)
        s = (a.sample((20_000,)) * b.sample((20_000,))).sqrt()
        assert stats.kstest(s.numpy(), stats.halfcauchy(scale=tau).cdf).pvalue > 1e-4


def test_scale_divergences_differentiate_and_broadcast():
    loc, sd, tau = (double(x).requires_grad_() for x in ([-1.0, 0.4], [0.3, 1.1], 0.7))
    assert torch.autograd.gradcheck(
        lambda m, s, t: kl_divergence(dist.LogNormal(m, s), dist.HalfCauchy(t)), (loc, sd, tau)
    )
    for family in (dist.Gamma, dist.InverseGamma):
        assert torch.autograd.gradcheck(
            lambda m, s, t, family=family: kl_divergence(dist.LogNormal(m, s), family(t, t + 1)),
            (loc, sd, tau),
        )
    q, single = dist.LogNormal(torch.zeros(4, 1), 1.0), dist.LogNormal(0.0, 1.0)
    priors = (
        dist.HalfCauchy(torch.ones(3)),
        dist.Gamma(torch.ones(3), 1.0),
        dist.InverseGamma(torch.ones(3), 1.0),
    )
    for p in priors:
        torch.testing.assert_close(kl_divergence(q, p), kl_divergence(single, p).expand(4, 3))
        torch.testing.assert_close(
            kl_divergence(q.expand([4, 3]).to_event(1), p.to_event(1).expand([4])),
            3 * kl_divergence(q, p)[:, 0],
        )
    assert kl_divergence(single, priors[0]).dtype == torch.float32


# --- Monte Carlo -----------------------------------------------------------------------------------------------------


def test_monte_carlo_kl_from_a_scale_mixture():
    torch.manual_seed(0)
    q = dist.Normal(double([0.0, 1.2]), double([0.3, 0.8]))
    weights, scales = [0.75, 0.25], [1.0, 0.1]
    p = dist.MixtureSameFamily(
        dist.Categorical(double(weights)), dist.Normal(double([0.0, 0.0]), double(scales))
    )

    def log_ratio(w, loc, scale):
        density = sum(c * stats.norm.pdf(w, 0, s) for c, s in zip(weights, scales, strict=True))
        return stats.norm.logpdf(w, loc, scale) - np.log(density)

    n = 40_000
    estimate = kl_monte_carlo(q, p, n)
    assert estimate.shape == (2,)
    for i, (loc, scale) in enumerate([(0.0, 0.3), (1.2, 0.8)]):
        w = np.linspace(loc - 9 * scale, loc + 9 * scale, 4001)
        pdf, ratio = stats.norm.pdf(w, loc, scale), log_ratio(w, loc, scale)
        exact = np.trapezoid(pdf * ratio, w)
        error = math.sqrt(np.trapezoid(pdf * (ratio - exact) ** 2, w) / n)
        assert abs(estimate[i].item() - exact) < 4 * error


def test_monte_carlo_kl_is_differentiable():
    torch.manual_seed(0)
    loc = torch.tensor(1.0, requires_grad=True)
    # KL(N(m, 1) || N(0, 1)) = m²/2: log q - log p = m w - m²/2, whose gradient m + n has standard error 1/√S
    value = kl_monte_carlo(dist.Normal(loc, 1.0), dist.Normal(0.0, 1.0), 10_000)
    (gradient,) = torch.autograd.grad(value, loc)
    assert abs(gradient - 1) < 4 / math.sqrt(10_000)


def test_monte_carlo_kl_errors():
    with pytest.raises(ValueError, match="at least 1; got 0"):
        kl_monte_carlo(dist.Normal(0.0, 1.0), dist.Normal(0.0, 1.0), 0)
    with pytest.raises(ValueError, match="Poisson has no reparameterised draws"):
        kl_monte_carlo(dist.Poisson(1.0), dist.Poisson(1.0), 3)
