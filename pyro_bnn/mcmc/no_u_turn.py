"""The No-U-Turn Sampler, as others have written it: the baseline that :func:`~pyro_bnn.mcmc.hmc` is measured against.

Two implementations of the same algorithm (Hoffman & Gelman, 2014, https://arxiv.org/abs/1111.4246) on the same model:
``"pyro"`` runs Pyro's own, on the plain program, at some milliseconds a gradient; ``"nutpie"`` runs the one of nutpie
(in Rust, in double precision) on the compiled log-density.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyro.infer
import torch
from torch import Tensor, nn

from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.compile import compiled
from pyro_bnn.runtime.copying import deepcopy_together
from pyro_bnn.runtime.minibatches import TensorBatches, batches_of
from pyro_bnn.runtime.rng import fork_rng

from .chains import Start, convergence_warnings, require_fitting, starting_points
from .log_density import LogDensity
from .sampler import Batch, ConvergenceWarning, Update

__all__ = ["nuts"]


def nuts(
    model: Callable[..., Any],
    data: Batch,
    *,
    chains: int = 4,
    warmup: int = 500,
    draws: int = 500,
    seed: int = 0,
    backend: str = "pyro",
    target_acceptance: float = 0.8,
    max_tree_depth: int = 10,
    start: Start = "prior",
    progress: bool = True,
) -> Posterior:
    r"""Sample the posterior by NUTS, one chain after the other.

    Args:
        model: a ``BayesianNet`` or any Pyro program, with proper priors and no free parameters.
        data: all the data, ``(x, y)``.
        chains: how many.
        warmup: iterations in which step size and scales are adapted; not kept.
        draws: iterations that are kept, for each chain.
        seed: of all random numbers.
        backend: ``"pyro"``, or ``"nutpie"`` (``pip install "pyro-bnn[nuts]"``).
        target_acceptance: what the step size is adapted to.
        max_tree_depth: trajectories have at most two to this power leapfrogs.
        start: as for :func:`~pyro_bnn.mcmc.chains.sample`.
        progress: show a bar.

    Raises:
        ValueError: another backend; free parameters; data that are not ``num_data`` examples.
        ImproperPriorError: an improper prior.
        NonFiniteDensityError: a start of density zero, naming the site.
        ModuleNotFoundError: nutpie is not installed.
    """
    if backend not in ("pyro", "nutpie"):
        raise ValueError(f'nuts: expected backend="pyro" or "nutpie", got {backend!r}')
    if chains < 1 or draws < 1 or warmup < 1:
        raise ValueError(
            f"nuts: expected chains, warmup and draws of at least 1, got {chains, warmup, draws}"
        )
    batches = batches_of(data, None, seed, getattr(model, "num_data", None))
    if not isinstance(batches, TensorBatches):
        raise ValueError("nuts: expected tensors (x, y), got a loader")
    began = time.perf_counter()
    sampler = _with_pyro if backend == "pyro" else _with_nutpie
    with fork_rng(torch.device("cpu"), seed):
        density = (
            LogDensity(model, batches.tensors)
            if backend == "pyro"
            else _doubled(model, batches.tensors)
        )
        require_fitting(density, batches)
        position = starting_points(density, start, chains)
    values, statistics = sampler(
        density, position, warmup, draws, seed, target_acceptance, max_tree_depth, progress
    )
    told = convergence_warnings(statistics)
    for concern in told:
        warnings.warn(f"NUTS: {concern}", ConvergenceWarning, stacklevel=2)
    facts = {
        "method": "NUTS" if backend == "pyro" else "NUTS (nutpie)",
        "seconds": time.perf_counter() - began,
        "gradients": int(statistics.pop("gradients")),
        "data": batches.fingerprint(),
        "settings": {
            "warmup": warmup,
            "target_acceptance": target_acceptance,
            "max_tree_depth": max_tree_depth,
        },
        "warnings": told,
    }
    own = next(
        (part.dtype for part in batches.tensors if part.is_floating_point()),
        torch.get_default_dtype(),
    )
    values = {name: value.to(own) for name, value in values.items()}
    return Posterior.from_draws(model, values, statistics, facts)


def _doubled(model: Any, data: Batch) -> LogDensity:
    """Return the log-density of program and data in double precision."""
    (model,) = deepcopy_together(model)
    if isinstance(model, nn.Module):
        model.double()
    return LogDensity(
        model, tuple(part.double() if part.is_floating_point() else part for part in data)
    )


def _with_pyro(
    density: LogDensity,
    position: Tensor,
    warmup: int,
    draws: int,
    seed: int,
    target: float,
    depth: int,
    progress: bool,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Run Pyro's sampler on the program, chain after chain."""
    evaluations = itertools.count()

    def program(*batch: Tensor) -> Any:
        next(evaluations)
        return density.model(*batch)

    names = ("lp", "step_size", "acceptance_rate")
    each = []
    for chain, start in enumerate(position):
        noted: list[tuple[float, ...]] = []

        def note(kernel: Any, _: Any, stage: str, __: int, noted: list = noted) -> None:
            if not stage.lower().startswith("warmup"):
                noted.append(
                    (
                        -float(kernel._potential_energy_last),
                        kernel.step_size,
                        kernel._mean_accept_prob,
                    )
                )

        kernel = pyro.infer.NUTS(program, target_accept_prob=target, max_tree_depth=depth)
        run = pyro.infer.MCMC(
            kernel,
            num_samples=draws,
            warmup_steps=warmup,
            initial_params={name: part.clone() for name, part in density.free(start).items()},
            disable_progbar=not progress,
            hook_fn=note,
        )
        with fork_rng(density.device, seed * 1009 + chain), density.statements.capture():
            run.run(*density.data)
        diverging = torch.zeros(draws, dtype=torch.bool)
        diverging[list(map(int, run.diagnostics()["divergences"]["chain 0"]))] = True
        statistics = dict(zip(names, torch.tensor(noted).T, strict=True)) | {"diverging": diverging}
        each.append((run.get_samples(), statistics))
    values, statistics = (_stacked(parts) for parts in zip(*each, strict=True))
    shaped = {
        name: values[name].reshape(len(position), draws, *site.shape)
        for name, site in density.sites.items()
    }
    return shaped, statistics | {"gradients": torch.tensor(next(evaluations))}


def _with_nutpie(
    density: LogDensity,
    position: Tensor,
    warmup: int,
    draws: int,
    seed: int,
    target: float,
    depth: int,
    progress: bool,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Run nutpie's sampler on the compiled log-density."""
    try:
        import nutpie
        from nutpie.compiled_pyfunc import from_pyfunc
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{error}; the backend "nutpie" needs it: pip install "pyro-bnn[nuts]"'
        ) from error
    update: Update = density.value_and_grad
    if density.vectorized:
        update = compiled(update, [position[:1], *density.data], "NUTS on this model")

    def density_and_gradient(q: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = update(torch.from_numpy(q).to(density.dtype)[None], *density.data)
        if not bool(value.isfinite()):
            raise ValueError(
                "the log-density is not finite"
            )  # nutpie takes it for the end of the trajectory
        return float(value), gradient[0].double().numpy()

    starts: Iterator[Tensor] = itertools.cycle(position)
    program = from_pyfunc(
        density.size,
        lambda: density_and_gradient,
        lambda *_: lambda q: {"position": q},
        [np.dtype("float64")],
        [(density.size,)],
        ["position"],
        make_initial_point_fn=lambda _: next(starts).double().numpy(),
    )
    result = nutpie.sample(
        program,
        draws=draws,
        tune=warmup,
        chains=len(position),
        cores=1,
        seed=seed,
        save_warmup=True,
        progress_bar=progress,
        target_accept=target,
        maxdepth=depth,
    )
    flat = torch.from_numpy(np.array(result["posterior"]["position"].values))
    stats, before = (result[group] for group in ("sample_stats", "warmup_sample_stats"))
    theirs = ("logp", "step_size_bar", "mean_tree_accept", "diverging", "n_steps")
    ours = ("lp", "step_size", "acceptance_rate", "diverging", "n_steps")
    statistics = {
        a: torch.from_numpy(np.array(stats[b].values)) for a, b in zip(ours, theirs, strict=True)
    }
    gradients = int(stats["n_steps"].sum()) + int(before["n_steps"].sum())
    return density.constrain(flat.to(density.dtype)), statistics | {
        "gradients": torch.tensor(gradients)
    }


def _stacked(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
