"""A run of a sampler, from the program and the data to the posterior.

The parts of a run have a file each: the options (:mod:`~pyro_bnn.mcmc.options`), the log density
(:mod:`~pyro_bnn.mcmc.log_density`), the starting points (:mod:`~pyro_bnn.mcmc.start`), the loop
(:mod:`~pyro_bnn.mcmc.loop`), the draws (:mod:`~pyro_bnn.mcmc.draws`), saving and resuming
(:mod:`~pyro_bnn.mcmc.run_folder`) and the warnings at its end
(:mod:`~pyro_bnn.mcmc.convergence`).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.compile import compiled
from pyro_bnn.runtime.malloc import retain_freed_memory
from pyro_bnn.runtime.minibatches import TensorBatches, batches_of
from pyro_bnn.runtime.program import Program
from pyro_bnn.runtime.program_checks import require_program_fits_data
from pyro_bnn.runtime.rng import fork_rng
from pyro_bnn.runtime.validation import DataError

from .convergence import convergence_warnings, require_valid_draws
from .curvature import largest_curvature
from .draws import DrawBuffer, draw_steps
from .log_density import LogDensity
from .loop import Run
from .noise import Noise
from .options import RunOptions, errors_named
from .run_folder import RunFolder
from .sampler import Batch, ConvergenceWarning, Sampler, SamplingError, State, ValueAndGrad
from .start import starting_points

__all__ = ["require_fitting", "require_tensors", "sample", "tensor_batches"]


def sample(
    sampler: Sampler[State],
    model: Program,
    data: Batch,
    options: RunOptions,
    may_draw: Callable[[int], bool] | None = None,
) -> Posterior:
    """Run a sampler and return its draws; one seed fixes every bit of them on one machine.

    Args:
        sampler: The settings of the sampler.
        model: The Pyro program.
        data: Tensors of one length, the arguments of the program.
        options: The options that all samplers have in common.
        may_draw: Whether a step, given by its number, may end in a draw; ``None`` where every
            step after the warm-up may.

    Raises:
        ValueError: Data that do not fit the model, or a model that
            :class:`~pyro_bnn.mcmc.log_density.LogDensity` does not accept.
        SamplingError: A position is NaN or infinite, or Ctrl-C came before the first draw.
        CheckpointError: The folder holds another run, or cannot be read or written.

    Warns:
        ConvergenceWarning: The run was stopped, chains diverged, or the chains do not agree.
    """
    began = time.perf_counter()
    retain_freed_memory()
    batches = tensor_batches(model, data, options)
    first_batch = tuple(tensor[: batches.size] for tensor in batches.tensors)
    with fork_rng(first_batch[0].device, options.seed):
        log_density = LogDensity(model, first_batch, options.caller)
        require_fitting(log_density, batches)
        position = starting_points(log_density, options.start, options.chains)
    run = _new_run(sampler, log_density, batches, position, options, may_draw)
    run.resume()
    run.loop()
    problems = _problems(run)
    for problem in problems:
        message = f"{options.caller}: {problem}"
        warnings.warn(message, ConvergenceWarning, stacklevel=3)  # where the sampler was called
    facts = {
        "method": sampler.name,
        "seconds": time.perf_counter() - began,
        "gradients": run.counters.gradients,
        "data": batches.fingerprint(),
        "settings": _as_text(run.sampler) | {"warmup": options.warmup},
        "warnings": problems,
    }
    values = log_density.constrain(run.draws.stored_values())
    return Posterior.from_draws(model, values, run.draws.stored_statistics(), facts)


def require_tensors(caller: str, data: Tensor | Sequence[Tensor]) -> Batch:
    """Return the data as a tuple of tensors.

    Raises:
        ValueError: The data are a loader, or something else that is not tensors.
    """
    if isinstance(data, Tensor):
        return (data,)
    sequence = isinstance(data, tuple | list) and len(data) > 0
    if not sequence or not all(isinstance(part, Tensor) for part in data):
        raise ValueError(
            f"{caller}: expected tensors (x, y) with all the data, from which a sampler draws its "
            f"minibatches itself (batch_size=...); got {type(data).__name__}"
        )
    return tuple(data)


def tensor_batches(model: Program, data: Batch, options: RunOptions) -> TensorBatches:
    """Return the data with the size of a batch, after a check of both.

    Raises:
        ValueError: The data are not tensors, have another length than the model's ``num_data``,
            or do not suit the size of a batch.
        DataError: The tensors have different lengths, are empty, or hold NaN or infinity.
    """
    data = require_tensors(options.caller, data)
    num_data = getattr(model, "num_data", None)
    with errors_named(options.caller, DataError):
        batches = batches_of(data, options.batch_size, options.seed, num_data, options.caller)
    assert isinstance(batches, TensorBatches)
    return batches


def require_fitting(log_density: LogDensity, batches: TensorBatches) -> None:
    """Raise an error if the targets or their number do not fit the likelihood.

    Raises:
        DataError: A target lies outside the support of the likelihood.
        ValueError: The plate over the data has another size than the data.
    """
    targets = batches.tensors[1] if len(batches.tensors) > 1 else None
    require_program_fits_data(
        log_density.trace, log_density.data, targets, batches.num_data, log_density.caller
    )


def _new_run(
    sampler: Sampler[State],
    log_density: LogDensity,
    batches: TensorBatches,
    position: Tensor,
    options: RunOptions,
    may_draw: Callable[[int], bool] | None,
) -> Run[State]:
    """Return a run before its first step, with step size chosen and update compiled."""
    chains, size, caller = options.chains, log_density.size, options.caller
    full_batch = batches.size == batches.num_data
    value_and_grad: ValueAndGrad = log_density.value_and_grad
    batch = log_density.data
    if not full_batch:
        value_and_grad = log_density.value_and_grad_each
        batch = tuple(tensor.expand(chains, *tensor.shape) for tensor in batch)

    sampler = sampler.with_default_step_size(
        lambda: largest_curvature(value_and_grad, position, batch, caller=caller),
        batches.size / batches.num_data,
    )
    folder = _open_folder(sampler, batches, position, options)
    update = sampler.make_update(value_and_grad)
    if options.compile and log_density.vectorized:
        arguments = sampler.example_arguments(position, batch)
        update = compiled(update, arguments, f"{sampler.name} on this model")

    drawn_examples = 0 if full_batch else batches.size
    noise = Noise(options.seed, chains, size, position, drawn_examples, batches.num_data)
    state = sampler.init(value_and_grad, update, position, batch)
    shape = (chains, options.draws, size)
    if folder is None:
        space = torch.empty(shape, dtype=position.dtype, device=position.device)
    else:
        space = folder.map_draws(shape, position.dtype)
    return Run(
        sampler=sampler,
        options=options,
        update=update,
        data=batches.tensors,
        full_batch=full_batch,
        noise=noise,
        state=state,
        draws=DrawBuffer(space),
        draw_steps=draw_steps(options, may_draw),
        folder=folder,
    )


def _open_folder(
    sampler: Sampler[State], batches: TensorBatches, position: Tensor, options: RunOptions
) -> RunFolder | None:
    """Return the folder of the run, with settings and data to recognise it by, if it has one."""
    if options.folder is None:
        return None
    shape = [options.chains, options.draws, position.shape[1]]
    identity = _as_text(sampler) | {
        "sampler": sampler.name,
        "seed": options.seed,
        "warmup": options.warmup,
        "thin": options.thin,
        "batch_size": batches.size,
        "draws": f"{position.dtype} {shape}",
        "data": batches.fingerprint(),
    }
    return RunFolder(options.folder, identity, options.resume, options.caller)


def _as_text(sampler: Sampler[State]) -> dict[str, str | int]:
    """Return the settings of a sampler by name."""
    return {name: str(value) for name, value in vars(sampler).items()}


def _problems(run: Run[State]) -> list[str]:
    """Return a sentence for each reason to doubt the draws.

    Raises:
        SamplingError: There are no draws, or all of them diverged.
    """
    caller, draws = run.options.caller, run.draws
    if draws.count == 0:
        raise SamplingError(
            f"{caller}: stopped after {run.counters.steps} steps, before the first draw"
        )
    statistics = draws.stored_statistics()
    require_valid_draws(caller, statistics)
    problems = []
    if not draws.complete:
        problems.append(f"stopped by Ctrl-C after {draws.count} draws of each chain")
    return problems + convergence_warnings(statistics)
