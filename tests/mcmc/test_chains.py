"""What holds for the runs of every sampler: seeds, independent chains, thinning, checked data."""

import math

import pytest
import torch

from pyro_bnn import mcmc
from pyro_bnn.runtime.validation import DataError
from tests.mcmc.runs import MODEL, SAMPLERS, STOCHASTIC, N, X, Y, run, same

pytestmark = pytest.mark.filterwarnings("ignore::pyro_bnn.mcmc.ConvergenceWarning")


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_seed_fixes_every_bit_and_leaves_the_global_random_state_alone(name):
    state = torch.get_rng_state()
    one, other = run(name), run(name)
    assert same(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert not same(one, run(name, seed=6))


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("start", ["prior", "values"])
def test_a_chain_does_not_depend_on_the_chains_beside_it(name, start):
    """Up to rounding: matrix products for another number of chains add in another order."""
    if start == "values":
        start = {"weight": torch.zeros(2), "bias": torch.tensor(0.0)}
    few, many = run(name, start=start), run(name, chains=8, start=start)
    for site in few.draws:
        assert torch.allclose(few.draws[site], many.draws[site][:3], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(many.draws["bias"][3], many.draws["bias"][0])


def test_thinning_keeps_every_third_draw_of_the_same_chain():
    every, third = run("sgld", draws=12), run("sgld", draws=4, thin=3)
    assert torch.equal(every.draws["weight"][:, 2::3], third.draws["weight"])


def test_the_facts_hold_method_gradients_settings_and_seconds():
    facts = run("sgld", thin=2).facts
    assert facts["method"] == "SGLD"
    assert facts["gradients"] == 3 * (10 + 8 * 2)
    assert facts["settings"] == {"step_size": "0.001", "temperature": "1.0", "warmup": 10}
    assert facts["seconds"] > 0


def test_the_gradients_of_hmc_are_its_leapfrogs():
    posterior = run("hmc", warmup=0, step_size=0.1, trajectory=0.3)
    assert posterior.facts["gradients"] == int(posterior.statistics["n_steps"].sum())


@pytest.mark.parametrize("name", ["sgld", "sghmc", "baoa"])
def test_a_step_that_is_too_large_is_an_error_that_says_so(name):
    message = f"^{name}: at step .* NaN or infinite; the step size is too large"
    with pytest.raises(mcmc.SamplingError, match=message):
        run(name, step_size=100.0, warmup=200)


# --- Data --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SAMPLERS, "nuts"])
def test_a_loader_is_an_error_that_asks_for_tensors(name):
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=5)
    message = rf"^{name}: expected tensors \(x, y\) .* got DataLoader"
    with pytest.raises(ValueError, match=message):
        getattr(mcmc, name)(MODEL, loader, progress=False)


@pytest.mark.parametrize("name", [*SAMPLERS, "nuts"])
def test_data_with_nan_or_of_another_length_are_errors_that_name_the_sampler(name):
    broken = Y.clone()
    broken[2] = math.nan
    with pytest.raises(DataError, match=rf"^{name}: y: expected finite numbers.*\[2\]"):
        getattr(mcmc, name)(MODEL, (X, broken), progress=False)
    message = f"^{name}: site 'y' lies in the plate 'data' of {N} examples but the data have 5"
    with pytest.raises(ValueError, match=message):
        getattr(mcmc, name)(MODEL, (X[:5], Y[:5]), progress=False)


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        (0, "batch_size that is a whole number of at least 1, got 0"),
        (N + 1, f"batch_size={N + 1} is larger than the data set"),
    ],
)
def test_a_batch_size_that_does_not_fit_the_data_is_an_error(batch_size, message):
    with pytest.raises(ValueError, match=f"^sgld: .*{message}"):
        run("sgld", batch_size=batch_size)
