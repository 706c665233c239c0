"""NUTS by both backends against a conjugate posterior, and its settings."""

import pyro
import pytest
import torch

from pyro_bnn import mcmc
from tests.mcmc.conjugate import MODEL, X, Y, regression_deviation

pytestmark = pytest.mark.filterwarnings("ignore::pyro_bnn.mcmc.ConvergenceWarning")


def test_nutpie_samples_the_conjugate_posterior():
    pytest.importorskip("nutpie")
    run = {"chains": 16, "warmup": 200, "draws": 300, "progress": False}
    posterior = mcmc.nuts(MODEL, (X, Y), backend="nutpie", **run)
    assert regression_deviation(posterior) < 7  # Student's t of 16 chains: 4e-6
    statistics = {"lp", "step_size", "acceptance_rate", "diverging", "n_steps"}
    assert set(posterior.statistics) == statistics


def test_the_compiled_log_density_gives_nutpie_the_draws_of_the_plain_one():
    pytest.importorskip("nutpie")
    run = {"chains": 1, "warmup": 10, "draws": 4, "backend": "nutpie", "progress": False}
    compiled = mcmc.nuts(MODEL, (X, Y), **run)
    plain = mcmc.nuts(MODEL, (X, Y), compile=False, **run)
    assert torch.allclose(compiled.draws["weight"], plain.draws["weight"], rtol=1e-6)


def test_pyro_samples_the_program_and_notes_statistics_of_each_draw():
    run = {"chains": 2, "warmup": 10, "draws": 5, "seed": 3, "progress": False}
    posterior = mcmc.nuts(MODEL, (X, Y), **run)
    assert posterior.draws["weight"].shape == (2, 5, 2)
    assert set(posterior.statistics) == {"lp", "step_size", "acceptance_rate", "diverging"}
    draw = {name: value[1, 3] for name, value in posterior.draws.items()}
    trace = pyro.poutine.trace(pyro.condition(MODEL, data=draw)).get_trace(X, Y)
    log_density = posterior.statistics["lp"][1, 3]
    assert torch.allclose(log_density.double(), trace.log_prob_sum(), rtol=1e-6)
    assert posterior.facts["gradients"] > 2 * 15
    again = mcmc.nuts(MODEL, (X, Y), **run)
    assert torch.equal(posterior.draws["weight"], again.draws["weight"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"backend": "stan"}, 'expected backend="pyro" or "nutpie", got \'stan\''),
        ({"warmup": 0}, "expected a warmup of at least one step, got 0"),
        ({"chains": 0}, "expected chains to be a whole number of at least 1, got 0"),
        ({"target_acceptance": 1.0}, "expected a target_acceptance between 0 and 1"),
        ({"max_tree_depth": 0}, "max_tree_depth of at least 1, got 0.8 and 0"),
    ],
)
def test_a_setting_out_of_range_is_an_error_that_names_it(wrong, message):
    with pytest.raises(ValueError, match=f"^nuts: .*{message}"):
        mcmc.nuts(MODEL, (X, Y), progress=False, **wrong)
