"""A comparison of inference methods on one small regression with a gap in its data."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from pyro.infer.autoguide import AutoMultivariateNormal, init_to_median
from torch import Tensor

from pyro_bnn import mcmc
from pyro_bnn.diagnostics import Comparison, compare, save_netcdf, to_arviz
from pyro_bnn.guides import MeanField
from pyro_bnn.models import hidden_layer_regression
from pyro_bnn.plotting import plot_comparison
from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.program import Program
from pyro_bnn.runtime.rng import fork_rng
from pyro_bnn.runtime.tensor_files import write_atomically
from pyro_bnn.training import fit
from pyro_bnn.variational.guide import Guide

from .folders import JsonValue, write_json

__all__ = [
    "REFERENCE",
    "ComparisonResult",
    "ComparisonSettings",
    "Inference",
    "Problem",
    "compare_methods",
    "inference_methods",
    "sine_with_gap",
]

REFERENCE = "HMC"

Inference = Callable[[], Posterior]


@dataclass(frozen=True)
class ComparisonSettings:
    """The size of the computation.

    Attributes:
        seed: of the data and of every method.
        hidden: units of the network.
        epochs: of variational inference.
        draws: of HMC and SGLD, per chain.
        nuts_draws: of NUTS, per chain.
        langevin_steps: of SGLD, per chain.
    """

    seed: int = 0
    hidden: int = 16
    epochs: int = 3000
    draws: int = 500
    nuts_draws: int = 100
    langevin_steps: int = 150_000


@dataclass(frozen=True)
class Problem:
    """A model with training data and test data, each a pair of inputs (n, 1) and targets (n,)."""

    model: Program
    data: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class ComparisonResult(NamedTuple):
    """The comparison, and the names of the files that were written."""

    comparison: Comparison
    files: list[str]


def compare_methods(
    folder: Path, settings: ComparisonSettings, progress: bool, report: Callable[[str], None]
) -> ComparisonResult:
    """Run every method, compare them, and write table, figure and draws into the folder.

    Args:
        folder: where the files go.
        settings: the size of the computation.
        progress: show a bar for each method.
        report: called with a line of text at the start of each step.
    """
    problem = sine_with_gap(settings)
    posteriors = {}
    for name, inference in inference_methods(problem, settings, progress).items():
        report(f"{name} ...")
        with warnings.catch_warnings():
            # the notes of the comparison repeat these warnings
            warnings.simplefilter("ignore", mcmc.ConvergenceWarning)
            posteriors[name] = inference()
    report("comparing ...")
    x, y = problem.test
    comparison = compare(
        posteriors, x, y, reference=REFERENCE, data=problem.data, seed=settings.seed
    )
    files = _write(folder, comparison, posteriors, problem, settings)
    return ComparisonResult(comparison, files)


def sine_with_gap(settings: ComparisonSettings) -> Problem:
    r"""Return a regression on :math:`y = \sin 2x + \epsilon`, :math:`\epsilon \sim
    \mathcal{N}(0, 0.2^2)`.

    The inputs of the 40 training examples are uniform on both sides of a gap from -0.7 to 0.7; the
    101 test inputs are evenly spaced from -2.2 to 2.2.
    """
    with fork_rng(torch.device("cpu"), settings.seed):
        left = torch.empty(20, 1).uniform_(-2.0, -0.7)
        right = torch.empty(20, 1).uniform_(0.7, 2.0)
        x = torch.cat([left, right])
        x_test = torch.linspace(-2.2, 2.2, 101)[:, None]
        y = _noisy_sine(x)
        y_test = _noisy_sine(x_test)
    model = hidden_layer_regression(len(x), hidden=settings.hidden, noise=0.2)
    return Problem(model, (x, y), (x_test, y_test))


def _noisy_sine(x: Tensor) -> Tensor:
    return torch.sin(2 * x[:, 0]) + 0.2 * torch.randn(len(x))


# --- methods --------------------------------------------------------------------------------------


def inference_methods(
    problem: Problem, settings: ComparisonSettings, progress: bool
) -> dict[str, Inference]:
    """Return the methods by name; each runs when it is called."""
    methods = {
        "mean field": _mean_field,
        "full rank": _full_rank,
        "SGLD": _langevin,
        "NUTS": _no_u_turn,
        REFERENCE: _hamiltonian,
    }
    inferences: dict[str, Inference] = {}
    for name, method in methods.items():
        inferences[name] = partial(method, problem, settings, progress)
    return inferences


def _mean_field(problem: Problem, settings: ComparisonSettings, progress: bool) -> Posterior:
    with fork_rng(torch.device("cpu"), settings.seed):
        guide = MeanField(problem.model, *problem.data)
    return _fit(problem, guide, settings, num_particles=4, progress=progress)


def _full_rank(problem: Problem, settings: ComparisonSettings, progress: bool) -> Posterior:
    guide: Guide = AutoMultivariateNormal(
        problem.model, init_loc_fn=init_to_median, init_scale=0.05
    )
    with fork_rng(torch.device("cpu"), settings.seed):
        guide(*problem.data)
    return _fit(problem, guide, settings, num_particles=1, progress=progress)


def _fit(
    problem: Problem,
    guide: Guide,
    settings: ComparisonSettings,
    num_particles: int,
    progress: bool,
) -> Posterior:
    """Fit a guide so long that only the error of its family remains.

    Several particles and a decaying learning rate remove the noise of the training.
    """
    result = fit(
        problem.model,
        guide,
        problem.data,
        epochs=settings.epochs,
        learning_rate=lambda epoch: 0.02 * 0.01 ** (epoch / settings.epochs),
        compile=True,
        num_particles=num_particles,
        seed=settings.seed,
        progress=progress,
    )
    if result.interrupted:
        raise KeyboardInterrupt
    return result.posterior


def _langevin(problem: Problem, settings: ComparisonSettings, progress: bool) -> Posterior:
    return mcmc.sgld(
        problem.model,
        problem.data,
        step_size=2e-4,
        batch_size=20,
        chains=4,
        warmup=settings.langevin_steps // 4,
        draws=settings.draws,
        thin=max(settings.langevin_steps // settings.draws, 1),
        seed=settings.seed,
        progress=progress,
    )


def _no_u_turn(problem: Problem, settings: ComparisonSettings, progress: bool) -> Posterior:
    """Run NUTS on the compiled density with nutpie if it is installed, else with Pyro.

    Pyro's NUTS takes milliseconds per gradient and hundreds of gradients per draw, so it runs one
    short chain.
    """
    if importlib.util.find_spec("nutpie") is not None:
        return mcmc.nuts(
            problem.model,
            problem.data,
            backend="nutpie",
            chains=4,
            warmup=settings.nuts_draws,
            draws=settings.nuts_draws,
            seed=settings.seed,
            progress=progress,
        )
    short = max(settings.nuts_draws // 8, 25)
    return mcmc.nuts(
        problem.model,
        problem.data,
        chains=1,
        warmup=short,
        draws=short,
        seed=settings.seed,
        progress=progress,
    )


def _hamiltonian(problem: Problem, settings: ComparisonSettings, progress: bool) -> Posterior:
    return mcmc.hmc(
        problem.model,
        problem.data,
        chains=8,
        warmup=settings.draws,
        draws=settings.draws,
        seed=settings.seed,
        progress=progress,
    )


# --- files ----------------------------------------------------------------------------------------


def _write(
    folder: Path,
    comparison: Comparison,
    posteriors: dict[str, Posterior],
    problem: Problem,
    settings: ComparisonSettings,
) -> list[str]:
    """Write table, figure and draws, and return the names of the files."""
    record: dict[str, JsonValue] = {
        "settings": asdict(settings),
        "rows": comparison.rows,
        "notes": comparison.notes,
    }
    write_json(folder / "comparison.json", record)
    write_atomically(folder / "comparison.md", comparison.to_markdown().encode())
    plot_comparison(comparison).savefig(folder / "comparison.png")
    files = ["comparison.png", "comparison.md", "comparison.json"]
    for name, posterior in posteriors.items():
        file = f"{name.lower().replace(' ', '-')}.nc"
        save_netcdf(to_arviz(posterior, problem.data, seed=settings.seed), folder / file)
        files.append(file)
    return files
