"""Step sizes that change from step to step."""

import math

import pytest
import torch

from pyro_bnn import mcmc
from pyro_bnn.mcmc.langevin import SGLD
from pyro_bnn.mcmc.step_schedule import StepSchedule
from tests.mcmc.runs import STOCHASTIC, X, run

pytestmark = pytest.mark.filterwarnings("ignore::pyro_bnn.mcmc.ConvergenceWarning")


def test_a_decay_gives_the_step_sizes_of_its_formula():
    schedule = mcmc.polynomial_decay(0.01, b=3.0, gamma=0.7)
    posterior = run("sgld", step_size=schedule, warmup=2, draws=5, thin=2)
    expected = [0.01 * (3.0 + step) ** -0.7 for step in (3, 5, 7, 9, 11)]
    assert torch.allclose(posterior.statistics["step_size"], torch.tensor(expected).expand(3, 5))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_draws_come_from_the_sampling_part_of_a_cycle_and_name_the_cycle(name):
    schedule = mcmc.cyclical(0.01, cycle_length=10, exploration=0.6)
    posterior = run(name, step_size=schedule, warmup=0, draws=6, thin=2)
    assert posterior.statistics["cycle"].tolist() == [[0, 0, 1, 1, 2, 2]] * 3
    expected = [schedule(step) for step in (7, 9, 17, 19, 27, 29)]
    assert torch.allclose(posterior.statistics["step_size"], torch.tensor(expected).expand(3, 6))
    assert posterior.facts["gradients"] == 3 * 30


def test_the_exploring_part_of_a_cycle_has_temperature_zero():
    schedule = mcmc.cyclical(0.01, cycle_length=10, exploration=0.9)
    settings = SGLD(schedule)
    present = StepSchedule.start(settings, X)
    temperatures = []
    for step in range(20):
        present = present.at(step, settings)
        temperatures.append(float(present.temperature))
    assert temperatures == [0.0] * 9 + [1.0] + [0.0] * 9 + [1.0]


def test_chains_that_start_together_part_at_the_first_sampling_step_of_a_cycle():
    start = {"weight": torch.zeros(2), "bias": torch.tensor(0.0)}
    schedule = mcmc.cyclical(0.01, cycle_length=10, exploration=0.9)
    settings = {"warmup": 0, "draws": 1, "chains": 2, "start": start, "batch_size": None}
    weights = run("sgld", step_size=schedule, **settings).draws["weight"]
    assert not torch.equal(weights[0], weights[1])


def test_an_unchanged_step_size_makes_no_new_tensors():
    constant = SGLD(0.1)
    present = StepSchedule.start(constant, X)
    assert present.at(7, constant) is present
    assert present.at(8, SGLD(lambda step: 0.1 * step)) is not present


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mcmc.polynomial_decay(0.0), "polynomial_decay: expected a and b above zero"),
        (lambda: mcmc.polynomial_decay(0.1, gamma=0.5), r"gamma in \(1/2, 1\]"),
        (lambda: mcmc.cyclical(0.1, 10, exploration=1.0), "cyclical: expected"),
        (
            lambda: mcmc.cyclical(0.1, 10, exploration=0.95),
            r"leaves none to sample; expected at most 0\.9",
        ),
    ],
)
def test_a_schedule_out_of_range_is_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_schedule_that_returns_no_positive_number_is_an_error_that_names_the_step(name):
    with pytest.raises(ValueError, match=f"^{name}: .*above zero at step 0, got -1"):
        run(name, step_size=lambda step: -1.0)
    with pytest.raises(ValueError, match=f"^{name}: .*above zero at step 5, got nan"):
        run(name, step_size=lambda step: 1e-3 if step < 5 else math.nan)
