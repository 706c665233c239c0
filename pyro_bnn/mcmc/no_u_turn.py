"""The No-U-Turn Sampler (NUTS), by other libraries: a baseline for :func:`~pyro_bnn.mcmc.hmc`.

Two implementations of the same algorithm (Hoffman & Gelman, 2014,
https://arxiv.org/abs/1111.4246) sample the same model. ``"pyro"`` is Pyro's own, on the plain
program, with some milliseconds for each gradient. ``"nutpie"`` is that of nutpie (written in Rust,
in double precision) on the compiled log density.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import numpy as np
import pyro.infer
import torch
from torch import Tensor, nn

from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.compile import compiled
from pyro_bnn.runtime.copying import deepcopy_together
from pyro_bnn.runtime.program import Program
from pyro_bnn.runtime.rng import fork_rng

from .chains import require_fitting, tensor_batches
from .convergence import convergence_warnings, require_valid_draws
from .log_density import LogDensity
from .options import RunOptions
from .sampler import Batch, ConvergenceWarning, Update
from .start import Start, starting_points

__all__ = ["NUTS", "nuts"]


def nuts(
    model: Program,
    data: Batch,
    *,
    backend: str = "pyro",
    target_acceptance: float = 0.8,
    max_tree_depth: int = 10,
    chains: int = 4,
    warmup: int = 500,
    draws: int = 500,
    start: Start = "prior",
    seed: int = 0,
    compile: bool = True,
    progress: bool = True,
) -> Posterior:
    r"""Sample the posterior by NUTS, one chain after the other.

    Args:
        model: A ``BayesianNet`` or any Pyro program, with proper priors and no free parameters.
        data: All the data, ``(x, y)``.
        backend: ``"pyro"``, or ``"nutpie"`` (``pip install "pyro-bnn[nuts]"``).
        target_acceptance: The mean acceptance probability to which the step size is adapted.
        max_tree_depth: A trajectory has at most two to this power leapfrogs.
        chains: Number of chains, computed one after the other.
        warmup: Number of steps before the first draw, in which step size and scales are adapted.
        draws: Number of draws of each chain.
        start: Where the chains start: ``"prior"`` for a draw from the prior each; a posterior or
            the result of :func:`~pyro_bnn.fit` for a draw from it each; or values of the sites,
            for all chains or one for each.
        seed: Seed of all random numbers.
        compile: Whether to compile the log density; ``backend="pyro"`` never does.
        progress: Whether to show a progress bar.

    Returns:
        The draws, with ``statistics`` (chain, draw): ``lp``, ``step_size``, ``acceptance_rate``,
        ``diverging`` and, with nutpie, ``n_steps``.

    Raises:
        ImproperPriorError: A prior is improper.
        ValueError: A setting is out of range, the model has free parameters, or the data are not
            its ``num_data`` examples.
        NonFiniteDensityError: The density is zero at the start; the message names the site.
        SamplingError: Every draw diverges.
        ModuleNotFoundError: nutpie is not installed.
    """
    began = time.perf_counter()
    sampler = NUTS(target_acceptance, max_tree_depth)
    options = RunOptions(
        sampler.caller,
        chains=chains,
        warmup=warmup,
        draws=draws,
        start=start,
        seed=seed,
        compile=compile,
        progress=progress,
    )
    if backend not in BACKENDS:
        raise ValueError(f'nuts: expected backend="pyro" or "nutpie", got {backend!r}')
    if options.warmup < 1:
        raise ValueError(f"nuts: expected a warmup of at least one step, got {warmup}")
    batches = tensor_batches(model, data, options)
    with fork_rng(torch.device("cpu"), options.seed):
        if backend == "pyro":
            log_density = LogDensity(model, batches.tensors, options.caller)
        else:
            log_density = _in_double_precision(model, batches.tensors, options.caller)
        require_fitting(log_density, batches)
        position = starting_points(log_density, options.start, options.chains)
    result = BACKENDS[backend](log_density, position, sampler, options)
    require_valid_draws(options.caller, result.statistics)
    problems = convergence_warnings(result.statistics)
    for problem in problems:
        warnings.warn(f"nuts: {problem}", ConvergenceWarning, stacklevel=2)
    facts = {
        "method": "NUTS" if backend == "pyro" else "NUTS (nutpie)",
        "seconds": time.perf_counter() - began,
        "gradients": result.gradients,
        "data": batches.fingerprint(),
        "settings": {"warmup": options.warmup} | vars(sampler),
        "warnings": problems,
    }
    dtype = _floating_dtype(batches.tensors)
    values = {name: value.to(dtype) for name, value in result.values.items()}
    return Posterior.from_draws(model, values, result.statistics, facts)


@dataclass(frozen=True)
class NUTS:
    """The settings of :func:`nuts`."""

    target_acceptance: float = 0.8
    max_tree_depth: int = 10

    name = "NUTS"
    caller = "nuts"

    def __post_init__(self) -> None:
        if not 0 < self.target_acceptance < 1 or self.max_tree_depth < 1:
            raise ValueError(
                "nuts: expected a target_acceptance between 0 and 1 and a max_tree_depth of at "
                f"least 1, got {self.target_acceptance} and {self.max_tree_depth}"
            )


class Result(NamedTuple):
    """What a backend returns.

    Attributes:
        values: Of each site, ``(chain, draw, *shape)``.
        statistics: Of each draw, (chain, draw).
        gradients: Number of gradients of all chains, warm-up included.
    """

    values: dict[str, Tensor]
    statistics: dict[str, Tensor]
    gradients: int


def _in_double_precision(model: Program, data: Batch, caller: str) -> LogDensity:
    """Return the log density of copies of program and data in double precision."""
    copied: Program = deepcopy_together(model)[0]
    if isinstance(copied, nn.Module):
        copied.double()
    doubled = []
    for tensor in data:
        doubled.append(tensor.double() if tensor.is_floating_point() else tensor)
    return LogDensity(copied, tuple(doubled), caller)


def _floating_dtype(data: Batch) -> torch.dtype:
    """Return the dtype of the first floating-point tensor, or torch's default."""
    for tensor in data:
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.get_default_dtype()


# --- Pyro -------------------------------------------------------------------------------------


@dataclass
class KernelRecord:
    """The statistics of one chain, noted by Pyro after each iteration."""

    log_density: list[float] = field(default_factory=list)
    step_size: list[float] = field(default_factory=list)
    acceptance_rate: list[float] = field(default_factory=list)

    def __call__(
        self, kernel: pyro.infer.NUTS, samples: Mapping[str, Tensor], stage: str, number: int
    ) -> None:
        """Note one iteration, if it is not part of the warm-up."""
        if stage.lower().startswith("warmup"):
            return
        potential = cast(Tensor, kernel._potential_energy_last)
        self.log_density.append(-float(potential))
        self.step_size.append(kernel.step_size)
        self.acceptance_rate.append(kernel._mean_accept_prob)

    def statistics(self) -> dict[str, Tensor]:
        """Return them as tensors (draw,)."""
        return {
            "lp": torch.tensor(self.log_density),
            "step_size": torch.tensor(self.step_size),
            "acceptance_rate": torch.tensor(self.acceptance_rate),
        }


def _sample_with_pyro(
    log_density: LogDensity, position: Tensor, sampler: NUTS, options: RunOptions
) -> Result:
    """Run Pyro's sampler on the program, chain after chain."""
    chains, draws = options.chains, options.draws
    evaluations = 0

    def program(*batch: Tensor) -> None:
        nonlocal evaluations
        evaluations += 1
        log_density.model(*batch)

    values, statistics = [], []
    for chain, point in enumerate(position):
        start = {name: value.clone() for name, value in log_density.split(point).items()}
        record = KernelRecord()
        kernel = pyro.infer.NUTS(
            program,
            target_accept_prob=sampler.target_acceptance,
            max_tree_depth=sampler.max_tree_depth,
        )
        mcmc = pyro.infer.MCMC(
            kernel,
            num_samples=draws,
            warmup_steps=options.warmup,
            initial_params=start,
            disable_progbar=not options.progress,
            hook_fn=record,
        )
        seed = options.seed * 1009 + chain
        with fork_rng(log_density.device, seed), log_density.parameters.capture():
            mcmc.run(*log_density.data)
        diagnostics = mcmc.diagnostics()
        diverging = torch.zeros(draws, dtype=torch.bool)
        diverging[diagnostics["divergences"]["chain 0"]] = True
        values.append(mcmc.get_samples())
        statistics.append(record.statistics() | {"diverging": diverging})
    pooled, shaped = _stack(values), {}
    for name, site in log_density.sites.items():
        shaped[name] = pooled[name].reshape(chains, draws, *site.shape)
    return Result(shaped, _stack(statistics), evaluations)


def _stack(chains: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of all chains in one for each name, with the chains along axis 0."""
    stacked = {}
    for name in chains[0]:
        stacked[name] = torch.stack([chain[name] for chain in chains])
    return stacked


# --- nutpie -----------------------------------------------------------------------------------

NUTPIE_STATISTICS = {
    "lp": "logp",
    "step_size": "step_size_bar",
    "acceptance_rate": "mean_tree_accept",
    "diverging": "diverging",
    "n_steps": "n_steps",
}


def _sample_with_nutpie(
    log_density: LogDensity, position: Tensor, sampler: NUTS, options: RunOptions
) -> Result:
    """Run nutpie's sampler on the compiled log density."""
    try:
        import nutpie
        from nutpie.compiled_pyfunc import from_pyfunc
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'nuts: {error}; backend="nutpie" needs it: pip install "pyro-bnn[nuts]"'
        ) from error
    update: Update = log_density.value_and_grad
    if options.compile and log_density.vectorized:
        arguments = [position[:1], *log_density.data]
        update = compiled(update, arguments, "NUTS on this model")

    def value_and_grad(q: np.ndarray) -> tuple[float, np.ndarray]:
        positions = torch.from_numpy(q).to(log_density.dtype)[None]
        value, gradient = update(positions, *log_density.data)
        if not bool(value.isfinite()):  # nutpie then ends the trajectory
            raise ValueError("the log density is NaN or infinite")
        return float(value), gradient[0].double().numpy()

    starts: Iterator[Tensor] = itertools.cycle(position)
    size = log_density.size
    program = from_pyfunc(
        size,
        lambda: value_and_grad,
        lambda *_: lambda q: {"position": q},
        [np.dtype("float64")],
        [(size,)],
        ["position"],
        make_initial_point_fn=lambda _: next(starts).double().numpy(),
    )
    result = nutpie.sample(
        program,
        draws=options.draws,
        tune=options.warmup,
        chains=options.chains,
        cores=1,
        seed=options.seed,
        save_warmup=True,
        progress_bar=options.progress,
        target_accept=sampler.target_acceptance,
        maxdepth=sampler.max_tree_depth,
    )
    positions = torch.from_numpy(np.array(result["posterior"]["position"].values))
    sample_stats, warmup_stats = result["sample_stats"], result["warmup_sample_stats"]
    statistics = {}
    for name, nutpie_name in NUTPIE_STATISTICS.items():
        statistics[name] = torch.from_numpy(np.array(sample_stats[nutpie_name].values))
    gradients = int(sample_stats["n_steps"].sum()) + int(warmup_stats["n_steps"].sum())
    values = log_density.constrain(positions.to(log_density.dtype))
    return Result(values, statistics, gradients)


BACKENDS: dict[str, Callable[[LogDensity, Tensor, NUTS, RunOptions], Result]] = {
    "pyro": _sample_with_pyro,
    "nutpie": _sample_with_nutpie,
}
