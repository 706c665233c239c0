"""The divergence from the log-uniform prior against quadrature and published tables."""

import math

import numpy as np
import pytest
import torch
from scipy import special

from pyro_bnn.distributions import (
    kl_log_uniform,
    kl_log_uniform_approximate,
)
from tests.distributions.reference import dawson_slope, double, quadrature_kl

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


@pytest.mark.parametrize(
    ("dtype", "value_error", "slope_error"),
    [(torch.float64, 3e-8, 3e-8), (torch.float32, 6e-6, 6e-6)],
)
def test_the_exact_divergence_and_its_slope_equal_quadrature(dtype, value_error, slope_error):
    # every grid point is a multiple of 1/4: exact in float32 too
    log_alpha = torch.tensor(GRID, dtype=dtype, requires_grad=True)
    value = kl_log_uniform(log_alpha)
    (slope,) = torch.autograd.grad(value.sum(), log_alpha)
    assert value.dtype == dtype
    np.testing.assert_allclose(
        value.detach().double(), [quadrature_kl(la) for la in GRID], rtol=0, atol=value_error
    )
    np.testing.assert_allclose(slope.double(), dawson_slope(GRID), rtol=0, atol=slope_error)


def test_the_curvature_is_the_derivative_of_dawsons_function():
    log_alpha = double(GRID).requires_grad_()
    (slope,) = torch.autograd.grad(kl_log_uniform(log_alpha).sum(), log_alpha, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), log_alpha)
    # d/dla[-x D(x)] with dx/dla = -x/2 and D' = 1 - 2xD
    x = np.sqrt(np.exp(-GRID) / 2)
    d = special.dawsn(x)
    np.testing.assert_allclose(curvature, x / 2 * (d + x * (1 - 2 * x * d)), rtol=0, atol=1e-6)


def test_the_tail_at_large_alpha_has_a_small_relative_error():
    # KL = u - u²/3 + O(u³)
    u = torch.exp(-double([12.0, 20.0, 40.0])) / 2
    torch.testing.assert_close(kl_log_uniform(-torch.log(2 * u)), u - u**2 / 3, rtol=1e-9, atol=0)


def test_exact_and_approximate_divergence_equal_published_tables():
    np.testing.assert_allclose(
        kl_log_uniform(double(TABLE_LOG_ALPHA)), TABLE_EXACT, rtol=0, atol=6e-6
    )
    approximate = kl_log_uniform_approximate(double(TABLE_LOG_ALPHA[:-1]))
    np.testing.assert_allclose(approximate, TABLE_APPROXIMATE, rtol=0, atol=6e-6)
    np.testing.assert_allclose(
        dawson_slope(np.array([0, 3, -5.0])), [-0.36239, -0.02448, -0.50344], atol=6e-6
    )


def test_the_approximation_has_its_published_error():
    log_alpha = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    error = (kl_log_uniform_approximate(log_alpha) - kl_log_uniform(log_alpha)).abs()
    assert error.max().item() == pytest.approx(0.0094, abs=1e-4)
    assert log_alpha[error.argmax()].item() == pytest.approx(-3.5, abs=0.2)


def test_the_exact_divergence_decreases_in_alpha():
    assert (kl_log_uniform(torch.linspace(-30, 30, 6001, dtype=torch.float64)).diff() < 0).all()


@pytest.mark.parametrize("kl", [kl_log_uniform, kl_log_uniform_approximate])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_value_slope_and_curvature_are_finite_at_extreme_alpha(kl, dtype):
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


def test_the_limits_at_infinite_alpha_are_exact():
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
def test_derivatives_of_all_orders_equal_finite_differences():
    log_alpha = double([-9.0, -4.0, -1.5, 0.0, 0.7, 3.0, 8.0]).requires_grad_()
    assert torch.autograd.gradcheck(kl_log_uniform, log_alpha, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(kl_log_uniform, log_alpha)

    def slope(la):
        return torch.autograd.grad(kl_log_uniform(la).sum(), la, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(slope, log_alpha)


@forward_mode
def test_vmap_grad_jvp_and_hessian_agree():
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
