"""The loop of all samplers: seeds, chains, schedules, interruption, folders, and wrong input."""

import math

import pytest
import torch

from pyro_bnn import Posterior, mcmc
from pyro_bnn.mcmc import chains as loop
from pyro_bnn.mcmc.hamiltonian import HMC
from pyro_bnn.mcmc.schedules import StepSchedule
from pyro_bnn.models import linear_regression
from pyro_bnn.runtime.tensor_files import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore::pyro_bnn.mcmc.ConvergenceWarning")

N = 10
torch.manual_seed(2)
X, Y = torch.randn(N, 2), torch.randn(N)
MODEL = linear_regression(N, inputs=2)
VERBS = {
    "hmc": lambda **run: mcmc.hmc(MODEL, (X, Y), **run),
    "sgld": lambda **run: mcmc.sgld(MODEL, (X, Y), **{"step_size": 1e-3, "batch_size": 4} | run),
    "psgld": lambda **run: mcmc.psgld(MODEL, (X, Y), **{"step_size": 1e-3, "batch_size": 4} | run),
    "sghmc": lambda **run: mcmc.sghmc(MODEL, (X, Y), **{"step_size": 1e-3, "batch_size": 4} | run),
    "baoa": lambda **run: mcmc.baoa(MODEL, (X, Y), **{"step_size": 1e-2, "batch_size": 4} | run),
}


def run(name, **settings):
    defaults = {
        "chains": 3,
        "warmup": 10,
        "draws": 8,
        "seed": 5,
        "compile": False,
        "progress": False,
    }
    return VERBS[name](**defaults | settings)


def same(one, other):
    pairs = [(one.draws, other.draws), (one.statistics, other.statistics)]
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs
    )


# --- Seeds and chains ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VERBS)
def test_a_seed_fixes_every_bit_and_leaves_the_global_random_state_alone(name):
    state = torch.get_rng_state()
    one, other = run(name), run(name)
    assert same(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert not same(one, run(name, seed=6))


@pytest.mark.parametrize("name", ["sgld", "psgld", "sghmc", "baoa"])
@pytest.mark.parametrize("start", ["prior", "given"])
def test_a_chain_does_not_depend_on_the_chains_beside_it(name, start):
    """Up to rounding: matrix products of another number of chains add in another order."""
    chosen = start if start == "prior" else {"weight": torch.zeros(2), "bias": torch.tensor(0.0)}
    few, many = run(name, start=chosen), run(name, chains=8, start=chosen)
    for site in few.draws:
        assert torch.allclose(few.draws[site], many.draws[site][:3], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(many.draws["bias"][3], many.draws["bias"][0])


def test_thinning_keeps_every_so_many_of_the_same_chain():
    every, third = run("sgld", draws=12), run("sgld", draws=4, thin=3)
    assert torch.equal(every.draws["weight"][:, 2::3], third.draws["weight"])


# --- Schedules -------------------------------------------------------------------------------------------------------


def test_a_decay_gives_the_step_sizes_of_its_formula():
    posterior = run(
        "sgld", step_size=mcmc.polynomial_decay(0.01, b=3.0, gamma=0.7), warmup=2, draws=5, thin=2
    )
    expected = [0.01 * (3.0 + step) ** -0.7 for step in (3, 5, 7, 9, 11)]
    assert torch.allclose(posterior.statistics["step_size"], torch.tensor(expected).expand(3, 5))


@pytest.mark.parametrize("name", ["sgld", "psgld", "sghmc", "baoa"])
def test_cycles_keep_draws_of_their_sampling_part_alone_and_tell_which(name):
    schedule = mcmc.cyclical(0.01, cycle_length=10, exploration=0.6)
    posterior = run(name, step_size=schedule, warmup=0, draws=6, thin=2)
    assert posterior.statistics["cycle"].tolist() == [[0, 0, 1, 1, 2, 2]] * 3
    expected = [schedule(step) for step in (7, 9, 17, 19, 27, 29)]
    assert torch.allclose(posterior.statistics["step_size"], torch.tensor(expected).expand(3, 6))
    assert posterior.facts["gradients"] == 3 * 30


def test_cycles_explore_without_noise():
    start = {"weight": torch.zeros(2), "bias": torch.tensor(0.0)}
    schedule = mcmc.cyclical(0.01, cycle_length=10, exploration=0.9)
    chains = run(
        "sgld", step_size=schedule, warmup=0, draws=1, start=start, batch_size=None, chains=2
    ).draws["weight"]
    assert not torch.equal(chains[0], chains[1])  # the tenth step has noise
    pace = StepSchedule.start(schedule, 1.0, X)
    temperatures = [float((pace := pace.at(step, schedule, 1.0)).temperature) for step in range(20)]
    assert temperatures == [0.0] * 9 + [1.0] + [0.0] * 9 + [1.0]


def test_an_unchanged_pace_makes_no_new_tensors():
    pace = StepSchedule.start(0.1, 1.0, X)
    assert pace.at(7, 0.1, 1.0) is pace
    assert pace.at(8, lambda step: 0.1 * step, 1.0) is not pace


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mcmc.polynomial_decay(0.0), "polynomial_decay: expected a and b above zero"),
        (lambda: mcmc.polynomial_decay(0.1, gamma=0.5), r"gamma in \(1/2, 1\]"),
        (lambda: mcmc.cyclical(0.1, 10, exploration=1.0), "cyclical: expected"),
        (
            lambda: mcmc.cyclical(0.1, 10, exploration=0.95),
            "leaves none to sample; expected at most 0.9",
        ),
        (lambda: run("sgld", step_size=lambda step: -1.0), "above zero at step 0, got -1"),
        (
            lambda: run("sgld", step_size=lambda step: 1e-3 if step < 5 else math.nan),
            "above zero at step 5, got nan",
        ),
    ],
)
def test_schedules_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- Interruption ----------------------------------------------------------------------------------------------------


class PowerCutError(RuntimeError):
    """The power goes."""


def cut_at(monkeypatch, step, error):
    """Raise in the middle of a run, after a draw; a power cut comes just after the state was written."""
    original = loop._Run.keep
    kept = []

    def keep(self, info):
        original(self, info)
        kept.append(1)
        if len(kept) == step:
            if error is PowerCutError:
                self.save()
            raise error

    monkeypatch.setattr(loop._Run, "keep", keep)


SCHEDULES = {"sgld": mcmc.cyclical(1e-3, 7, 0.5), "psgld": mcmc.polynomial_decay(1e-2)}


@pytest.mark.parametrize("name", VERBS)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(name, tmp_path, monkeypatch):
    schedule = {"step_size": SCHEDULES[name]} if name in SCHEDULES else {}
    whole = run(name, **schedule)
    with monkeypatch.context() as patch:
        cut_at(patch, 3, KeyboardInterrupt)
        with pytest.warns(mcmc.ConvergenceWarning, match="stopped by Ctrl-C after 3 draws"):
            part = run(name, folder=tmp_path, **schedule)
    assert part.draws["weight"].shape[1] == 3
    assert torch.equal(part.draws["weight"], whole.draws["weight"][:, :3])
    assert same(run(name, folder=tmp_path, resume=True, **schedule), whole)
    # and once more, now that it is complete
    assert same(run(name, folder=tmp_path, resume=True, **schedule), whole)


@pytest.mark.parametrize("name", ["hmc", "sgld"])
def test_a_run_that_was_killed_goes_on_from_what_was_written(name, tmp_path, monkeypatch):
    whole = run(name)
    with monkeypatch.context() as patch:
        cut_at(patch, 5, PowerCutError)
        with pytest.raises(PowerCutError):
            run(name, folder=tmp_path)
    assert same(run(name, folder=tmp_path, resume=True), whole)


def test_stopping_before_the_first_draw_is_an_error(monkeypatch):
    def stop(self, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(HMC, "step", stop)
    with pytest.raises(mcmc.SamplingError, match="stopped after 0 steps, before the first draw"):
        run("hmc")


def test_a_folder_of_another_run_is_refused(tmp_path):
    run("sgld", folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"holds a run; go on with it \(resume=True\)"):
        run("sgld", folder=tmp_path)
    for other in ({"seed": 6}, {"step_size": 2e-3}, {"thin": 2}, {"batch_size": 5}, {"chains": 2}):
        with pytest.raises((CheckpointError, RuntimeError)):
            run("sgld", folder=tmp_path, resume=True, **other)
    with pytest.raises(CheckpointError, match="another run"):
        run("baoa", folder=tmp_path, resume=True)


# --- Wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VERBS)
@pytest.mark.parametrize("wrong", [{"chains": 0}, {"draws": 0}, {"thin": 0}, {"warmup": -1}])
def test_counts_that_make_no_sense_are_refused(name, wrong):
    ((key, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"expected at least one chain.*{key}={value}"):
        run(name, **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size that is a whole number of at least 1, got 0"),
        ({"batch_size": N + 1}, "larger than the data set"),
        ({"resume": True}, "say which, folder=FOLDER"),
        ({"start": "posterior"}, 'expected "prior"'),
        ({"start": {"weight": torch.zeros(2)}}, "for site 'bias', got none"),
    ],
)
def test_wrong_input_is_refused_with_the_way_out(wrong, message):
    with pytest.raises(ValueError, match=message):
        run("sgld", **wrong)


def test_data_that_are_a_loader_are_refused():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=5)
    with pytest.raises((ValueError, TypeError)):
        mcmc.sgld(MODEL, loader, step_size=1e-3, progress=False)


def test_a_step_that_is_too_large_ends_in_an_error_that_says_so():
    with pytest.raises(
        mcmc.SamplingError,
        match=r"SGLD: step .* left the finite numbers; the step size is too large",
    ):
        run("sgld", step_size=100.0, warmup=200)


def test_chains_start_where_they_are_told():
    first = run("sgld")
    start = {"weight": torch.arange(6.0).reshape(3, 2), "bias": torch.zeros(3)}
    tiny = run("sgld", start=start, step_size=1e-12, warmup=0, draws=1)
    assert torch.allclose(tiny.draws["weight"][:, 0], start["weight"], atol=1e-4)
    again = run("sgld", start=first, step_size=1e-12, warmup=0, draws=1)
    assert isinstance(first, Posterior)
    drawn = first.draws["weight"].flatten(0, 1)
    assert all((drawn - one).abs().sum(-1).min() < 1e-4 for one in again.draws["weight"][:, 0])


def test_chains_that_do_not_agree_are_told_in_a_warning_and_in_the_facts():
    start = {"weight": torch.tensor([[0.0, 0.0], [30.0, 0.0], [60.0, 0.0]]), "bias": torch.zeros(3)}
    with pytest.warns(mcmc.ConvergenceWarning, match="SGLD: the chains do not agree: R-hat"):
        posterior = run("sgld", start=start, step_size=1e-7)
    assert posterior.facts["warnings"][0].startswith("the chains do not agree")
