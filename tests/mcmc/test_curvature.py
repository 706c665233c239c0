"""Default step sizes: the curvature from which they follow, and the bias that they cause.

The posterior is that of conjugate linear regression, which is known. The bias of the samplers is a
twentieth of the variance by design; a tenth is allowed, plus 4.5 standard errors of the estimate
from the second moments of 64 independent chains (a false-alarm rate near 1e-4 for the file; the
seed is fixed).
"""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_bnn import mcmc
from pyro_bnn.mcmc.curvature import largest_curvature
from pyro_bnn.mcmc.log_density import LogDensity

# these runs have many chains and are as short as the moments allow; R-hat asks for longer ones
pytestmark = pytest.mark.filterwarnings("ignore::pyro_bnn.mcmc.ConvergenceWarning")

N, NOISE = 50, 0.5
G = torch.Generator().manual_seed(0)
X = torch.randn(N, 3, generator=G) * torch.tensor([1.0, 0.5, 2.0])
Y = X @ torch.tensor([1.0, -1.0, 0.5]) + NOISE * torch.randn(N, generator=G)
PRECISION = X.T.double() @ X.double() / NOISE**2 + torch.eye(3).double()


def regression(x, y):
    w = pyro.sample("w", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
    with pyro.plate("data", N, subsample=range(len(x))):
        pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)


def test_the_largest_curvature_is_the_largest_eigenvalue():
    density = LogDensity(regression, (X, Y))
    start = torch.stack([density.prior_draw() for _ in range(3)])
    largest = largest_curvature(density.value_and_grad, start, (X, Y))
    assert largest == pytest.approx(float(torch.linalg.eigvalsh(PRECISION).max()), rel=0.02)


def test_a_flat_density_has_no_curvature():
    def flat(positions, *batch):
        return positions.sum(1), torch.ones_like(positions)

    with pytest.raises(
        mcmc.SamplingError, match=r"^largest_curvature: .* is 0.0.*give a step_size"
    ):
        largest_curvature(flat, torch.zeros(2, 3), ())


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("sampler", "batch_size"),
    [
        (mcmc.sgld, None),
        (mcmc.sghmc, None),
        (mcmc.baoa, None),
        (mcmc.sgld, 10),
        pytest.param(mcmc.sghmc, 10, marks=SLOW),
        pytest.param(mcmc.baoa, 10, marks=SLOW),
    ],
)
def test_the_default_step_size_changes_the_variances_by_at_most_a_tenth(
    sampler, batch_size, traced_samplers
):
    warmup, thin = (3000, 50) if batch_size else (600, 10)
    run = {"chains": 64, "warmup": warmup, "draws": 40, "thin": thin}
    posterior = sampler(regression, (X, Y), batch_size=batch_size, progress=False, **run)
    draws = posterior.draws["w"].double()
    exact = PRECISION.inverse().diag()
    mean = PRECISION.inverse() @ (X.T @ Y / NOISE**2).double()
    each = (draws - mean).square().mean(1)  # one estimate from each chain
    variance, error = each.mean(0), each.std(0) / 64**0.5
    assert ((variance / exact - 1).abs() < 0.1 + 4.5 * error / exact).all()
    assert ((draws.mean((0, 1)) - mean).abs() < 4.5 * draws.mean(1).std(0) / 8).all()


def test_the_default_step_size_of_psgld_finds_the_mean(traced_samplers):
    run = {"chains": 16, "warmup": 500, "draws": 100, "progress": False}
    posterior = mcmc.psgld(regression, (X, Y), **run)
    assert bool(posterior.draws["w"].isfinite().all())
    assert (posterior.draws["w"].mean((0, 1)) - torch.tensor([1.0, -1.0, 0.5])).abs().max() < 0.5
