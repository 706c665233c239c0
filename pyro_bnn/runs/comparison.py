"""The comparison: one small regression with a gap in its data, and every kind of inference there is."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pyro.infer.autoguide import AutoMultivariateNormal, init_to_median
from torch import Tensor

from pyro_bnn import mcmc
from pyro_bnn.diagnostics import Comparison, compare, save_netcdf, to_arviz
from pyro_bnn.guides import MeanField
from pyro_bnn.models import mlp_regression
from pyro_bnn.plotting import plot_comparison
from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.rng import fork_rng
from pyro_bnn.runtime.tensor_files import write_atomically
from pyro_bnn.training import fit

from .folders import write_json

__all__ = ["REFERENCE", "Problem", "Settings", "methods", "problem", "run"]

REFERENCE = "HMC"


@dataclass(frozen=True)
class Settings:
    """How much is computed."""

    seed: int = 0
    hidden: int = 16
    epochs: int = 3000
    draws: int = 500
    nuts_draws: int = 100
    langevin_steps: int = 150_000


@dataclass(frozen=True)
class Problem:
    """A model, the data that it is trained on, and those that it is tested on."""

    model: Callable[..., Any]
    data: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def problem(settings: Settings) -> Problem:
    r"""Return a sine with noise, :math:`y = \sin 2x + \epsilon`, :math:`\epsilon \sim \mathcal{N}(0, 0.2^2)`.

    40 examples lie to both sides of a gap from -0.7 to 0.7; the test inputs reach from -2.2 to 2.2.
    """
    with fork_rng(torch.device("cpu"), settings.seed):
        x = torch.cat(
            [torch.empty(20, 1).uniform_(-2.0, -0.7), torch.empty(20, 1).uniform_(0.7, 2.0)]
        )
        at = torch.linspace(-2.2, 2.2, 101)[:, None]
        y, truth = (torch.sin(2 * part[:, 0]) + 0.2 * torch.randn(len(part)) for part in (x, at))
    return Problem(mlp_regression(len(x), hidden=settings.hidden, noise=0.2), (x, y), (at, truth))


def methods(
    task: Problem, settings: Settings, progress: bool
) -> dict[str, Callable[[], Posterior]]:
    """Return the inferences by name; each is run when it is called."""
    model, data, seed = task.model, task.data, settings.seed

    def variational(guide: Any) -> Posterior:
        # four particles and a falling rate: what is left is the family's own error, not the noise of its training
        result = fit(
            model,
            guide,
            data,
            epochs=settings.epochs,
            learning_rate=lambda epoch: 0.02 * 0.01 ** (epoch / settings.epochs),
            compile=True,
            num_particles=1 if isinstance(guide, AutoMultivariateNormal) else 4,
            seed=seed,
            progress=progress,
        )
        if result.interrupted:
            raise KeyboardInterrupt
        return result.posterior

    def mean_field() -> Posterior:
        with fork_rng(torch.device("cpu"), seed):
            guide = MeanField(model, *data)
        return variational(guide)

    def full_rank() -> Posterior:
        guide = AutoMultivariateNormal(model, init_loc_fn=init_to_median, init_scale=0.05)
        with fork_rng(torch.device("cpu"), seed):
            guide(*data)
        return variational(guide)

    def langevin() -> Posterior:
        thin = max(settings.langevin_steps // settings.draws, 1)
        sizes = {
            "chains": 4,
            "warmup": settings.langevin_steps // 4,
            "draws": settings.draws,
            "thin": thin,
        }
        return mcmc.sgld(model, data, step_size=2e-4, batch_size=20, **sizes, **chains)

    chains: dict[str, Any] = {"seed": seed, "progress": progress}
    sampled: dict[str, Callable[[], Posterior]] = {"SGLD": langevin}
    sampled["NUTS"] = lambda: _no_u_turn(model, data, settings, chains)
    sampled[REFERENCE] = lambda: mcmc.hmc(
        model, data, chains=8, warmup=settings.draws, draws=settings.draws, **chains
    )
    return {"mean field": mean_field, "full rank": full_rank, **sampled}


def _no_u_turn(
    model: Any, data: tuple[Tensor, Tensor], settings: Settings, chains: dict[str, Any]
) -> Posterior:
    """Run nutpie's NUTS on the compiled density where it is installed, and else Pyro's, for as long as one can wait."""
    if importlib.util.find_spec("nutpie") is not None:
        sizes: dict[str, Any] = {
            "chains": 4,
            "warmup": settings.nuts_draws,
            "draws": settings.nuts_draws,
        }
        return mcmc.nuts(model, data, backend="nutpie", **sizes, **chains)
    few = max(
        settings.nuts_draws // 8, 25
    )  # hundreds of gradients for each draw, at milliseconds each
    return mcmc.nuts(model, data, chains=1, warmup=few, draws=few, **chains)


def run(
    folder: Path, settings: Settings, progress: bool, say: Callable[[str], None]
) -> tuple[Comparison, list[str]]:
    """Run every inference, compare them, write table, picture and draws into the folder; return the comparison and the
    names of the files.
    """
    task = problem(settings)
    posteriors = {}
    for name, inference in methods(task, settings, progress).items():
        say(f"{name} ...")
        with warnings.catch_warnings():  # what chains warn of is in the notes below the table
            warnings.simplefilter("ignore", mcmc.ConvergenceWarning)
            posteriors[name] = inference()
    say("comparing ...")
    found = compare(posteriors, *task.test, reference=REFERENCE, data=task.data, seed=settings.seed)
    return found, _write_all(folder, found, posteriors, task, settings)


def _write_all(
    folder: Path,
    found: Comparison,
    posteriors: dict[str, Posterior],
    task: Problem,
    settings: Settings,
) -> list[str]:
    """Write table, picture and draws, and return the names of the files."""
    write_json(
        folder / "comparison.json",
        {"settings": asdict(settings), "rows": found.rows, "notes": found.notes},
    )
    write_atomically(folder / "comparison.md", found.to_markdown().encode())
    plot_comparison(found).savefig(folder / "comparison.png")
    files = ["comparison.png", "comparison.md", "comparison.json"]
    for name, posterior in posteriors.items():
        files.append(f"{name.lower().replace(' ', '-')}.nc")
        save_netcdf(to_arviz(posterior, task.data, seed=settings.seed), folder / files[-1])
    return files
