"""Step sizes for whom none was given: the curvature they rest on, and the error they leave.

Conjugate linear regression, whose posterior is known. The samplers' own errors there are a twentieth of the variance
by design and a tenth is allowed, beside 4.5 standard errors of the estimate from 64 independent chains' second moments
(a false-alarm rate near 1e-4 for the file; the seed is fixed).
"""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_bnn import mcmc
from pyro_bnn.mcmc.curvature import largest_curvature
from pyro_bnn.mcmc.log_density import LogDensity

# these runs are as short as the moments allow, over many chains; R-hat asks for longer ones
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
    found = largest_curvature(density.value_and_grad, start, (X, Y))
    assert found == pytest.approx(float(torch.linalg.eigvalsh(PRECISION).max()), rel=0.02)


def test_a_flat_density_has_no_curvature():
    def flat(positions, *batch):
        return positions.sum(1), torch.ones_like(positions)

    with pytest.raises(mcmc.SamplingError, match="give a step_size"):
        largest_curvature(flat, torch.zeros(2, 3), ())


@pytest.mark.parametrize("batch_size", [None, 10])
@pytest.mark.parametrize("verb", [mcmc.sgld, mcmc.sghmc, mcmc.baoa], ids=["sgld", "sghmc", "baoa"])
def test_without_a_step_size_the_posterior_is_met_to_a_tenth(verb, batch_size):
    long = 3000 if batch_size else 600
    run = {"chains": 64, "warmup": long, "draws": 40, "thin": 50 if batch_size else 10}
    posterior = verb(
        regression, (X, Y), batch_size=batch_size, compile=False, progress=False, **run
    )
    draws = posterior.draws["w"].double()
    exact = PRECISION.inverse().diag()
    mean = PRECISION.inverse() @ (X.T @ Y / NOISE**2).double()
    each = (draws - mean).square().mean(1)  # one estimate from each chain
    found, error = each.mean(0), each.std(0) / 64**0.5
    assert ((found / exact - 1).abs() < 0.1 + 4.5 * error / exact).all()
    assert ((draws.mean((0, 1)) - mean).abs() < 4.5 * draws.mean(1).std(0) / 8).all()


def test_psgld_runs_without_a_step_size():
    posterior = mcmc.psgld(
        regression, (X, Y), chains=16, warmup=500, draws=100, compile=False, progress=False
    )
    assert bool(posterior.draws["w"].isfinite().all())
    assert (posterior.draws["w"].mean((0, 1)) - torch.tensor([1.0, -1.0, 0.5])).abs().max() < 0.5
