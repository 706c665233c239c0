"""The one loop of all samplers: warm up, draw, thin, show, store, resume; and the posterior at its end."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from tqdm.auto import tqdm

from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.compile import compiled
from pyro_bnn.runtime.interrupt import graceful_interrupt
from pyro_bnn.runtime.malloc import retain_freed_memory
from pyro_bnn.runtime.minibatches import TensorBatches, batches_of
from pyro_bnn.runtime.program_checks import require_observable, require_whole_plate
from pyro_bnn.runtime.rng import fork_rng
from pyro_bnn.runtime.run_identity import require_same_run
from pyro_bnn.runtime.tensor_files import (
    CheckpointError,
    load_tensors,
    require_folder,
    save_tensors,
)

from .curvature import largest_curvature
from .log_density import LogDensity
from .noise import Noise
from .sampler import Batch, ConvergenceWarning, Sampler, SamplingError, Update

__all__ = ["ConvergenceWarning", "Sampler", "SamplingError", "sample"]


@runtime_checkable
class HasPosterior(Protocol):
    """The result of an inference, such as that of :func:`~pyro_bnn.fit`."""

    posterior: Posterior


Start = str | Posterior | HasPosterior | Mapping[str, Tensor]
"""Where chains start."""


def sample(
    settings: Sampler,
    model: Callable[..., Any],
    data: Batch,
    *,
    chains: int,
    warmup: int,
    draws: int,
    seed: int = 0,
    thin: int = 1,
    batch_size: int | None = None,
    start: Start = "prior",
    folder: str | Path | None = None,
    resume: bool = False,
    compile: bool = True,
    progress: bool = True,
    keep: Callable[[int], bool] | None = None,
) -> Posterior:
    """Run a sampler and return its draws; one seed fixes every bit of them on one machine.

    Args:
        settings: of the sampler.
        model: the Pyro program.
        data: tensors of the same length.
        chains: how many.
        warmup: steps before the first draw.
        draws: to be kept of each chain.
        seed: of all random numbers.
        thin: steps between draws.
        batch_size: B, where gradients are of minibatches, drawn for every chain by itself; ``None``: of all the data.
        start: where the chains start: ``"prior"``, a draw each from the prior; a posterior or the result of ``fit``, a
            draw each (of a point estimate, the point itself); values of the sites, for all chains or one for each.
        folder: where the draws are written as they come, and the state of the run every half minute.
        resume: go on from the folder's state, bit for bit as if never stopped.
        compile: use the compiled log-density; without it, the same numbers up to rounding, slower.
        progress: show a bar.
        keep: whether the end of a step, by its number, may be a draw; ``None``: of every step after the warm-up.

    Raises:
        ValueError: settings that make no sense; what :class:`~pyro_bnn.mcmc.log_density.LogDensity` refuses.
        SamplingError: numbers that are not finite, or Ctrl-C before the first draw.
        CheckpointError: a folder that holds another run, or that cannot be read or written.

    Warns:
        ConvergenceWarning: chains that diverged, or that do not agree with each other.
    """
    if chains < 1 or draws < 1 or warmup < 0 or thin < 1:
        raise ValueError(
            "expected at least one chain, one draw, thin=1 and a warmup of zero steps, "
            f"got chains={chains}, draws={draws}, thin={thin}, warmup={warmup}"
        )
    if resume and folder is None:
        raise ValueError("resume=True goes on from a folder; say which, folder=FOLDER")
    batches = batches_of(data, batch_size, seed, getattr(model, "num_data", None))
    if not isinstance(batches, TensorBatches):
        raise ValueError(
            "a sampler draws its minibatches itself: expected tensors (x, y), got a loader"
        )
    began = time.perf_counter()
    retain_freed_memory()
    full = batches.size == batches.num_data
    batch = tuple(part if full else part[: batches.size] for part in batches.tensors)
    with fork_rng(batch[0].device, seed):
        density = LogDensity(model, batch)  # runs the program once
        require_fitting(density, batches)
        position = starting_points(density, start, chains)
    if not full:
        batch = tuple(part.expand(chains, *part.shape) for part in batch)
    gradient = density.value_and_grad if full else density.value_and_grad_each
    settings = settings.chosen(
        lambda: largest_curvature(gradient, position, batch), batches.size / batches.num_data
    )
    update = settings.function(gradient)
    if compile and density.vectorized:
        update = compiled(
            update, settings.examples(position, batch), f"{settings.name} on this model"
        )
    noise = Noise(
        seed, chains, density.size, position, 0 if full else batches.size, batches.num_data
    )
    due = _due(warmup, draws, thin, keep)
    run = _Run(settings, update, batches, full, noise, warmup, thin, seed, due)
    run.state = settings.init(gradient, update, position, batch)
    run.open(draws, density.size, position, folder, resume)
    run.go(progress)
    return run.posterior(density, model, time.perf_counter() - began)


def starting_points(density: LogDensity, start: Start, chains: int) -> Tensor:
    """Return one position for each chain, (chains, D), all of finite density.

    Raises:
        ValueError: a start that is none.
        NonFiniteDensityError: a start of density zero, naming the site.
    """
    if isinstance(start, str) and start != "prior":
        raise ValueError(
            f'start: expected "prior", a posterior, or values of the sites; got {start!r}'
        )
    if isinstance(start, str):
        position = torch.stack([density.prior_draw() for _ in range(chains)])
        for _ in range(100):  # a heavy-tailed prior now and then draws what overflows
            bad = ~density.value_and_grad(position, *density.data)[0].isfinite()
            if not bool(bad.any()):
                break
            position = torch.where(
                bad[:, None], torch.stack([density.prior_draw() for _ in range(chains)]), position
            )
    else:
        posterior = start.posterior if isinstance(start, HasPosterior) else start
        values = posterior.sample(chains, seed=0) if isinstance(posterior, Posterior) else posterior
        position = density.unconstrain(values).expand(chains, density.size).clone()
    for one in position:
        density.require_finite(one)
    return position


def _due(warmup: int, draws: int, thin: int, keep: Callable[[int], bool] | None) -> Sequence[int]:
    """Return after how many steps each draw is kept: every ``thin``-th of those that may be."""
    if keep is None:
        return range(warmup + thin, warmup + draws * thin + 1, thin)
    eligible = (number + 1 for number in itertools.count(warmup) if keep(number))
    return list(itertools.islice(eligible, thin - 1, draws * thin, thin))


def require_fitting(density: LogDensity, batches: TensorBatches) -> None:
    """Refuse labels that the likelihood cannot have, and a plate of another size than the data."""
    for name, site in density.trace.nodes.items():
        observed = site["type"] == "sample" and site["is_observed"] and len(batches.tensors) > 1
        if observed and site["value"] is density.data[1]:
            require_observable(name, site["fn"], batches.tensors[1])
            require_whole_plate(name, site["cond_indep_stack"], batches.num_data)


def minibatch(data: Batch, examples: Tensor) -> Batch:
    """Return these examples of every tensor, a minibatch for each chain: (chains, B, ...)."""
    rows = examples.flatten()
    return tuple(part.index_select(0, rows).unflatten(0, examples.shape) for part in data)


@dataclasses.dataclass
class _Run:
    """A run: its state, the step that changes it, and the draws so far."""

    settings: Sampler
    update: Update
    batches: TensorBatches
    full: bool
    noise: Noise
    warmup: int
    thin: int
    seed: int
    due: Sequence[int]
    state: Any = None
    number: int = 0
    kept: int = 0
    gradients: int = 0
    seconds: float = 0.0
    stopping: bool = False
    checkpoint: Path | None = None

    def open(
        self, draws: int, size: int, like: Tensor, folder: str | Path | None, resume: bool
    ) -> None:
        """Make room for the draws: in memory, or in a file that is memory as well."""
        self.chains = len(like)
        self.statistics: dict[str, Tensor] = {}
        shape = (self.chains, draws, size)
        if folder is None:
            self.draws = torch.empty(shape, dtype=like.dtype, device=like.device)
            return
        folder = Path(folder)
        values = {name: str(value) for name, value in vars(self.settings).items()}
        self.identity = values | {
            "sampler": self.settings.name,
            "seed": self.seed,
            "warmup": self.warmup,
            "thin": self.thin,
            "batch_size": self.batches.size,
            "draws": f"{like.dtype} {list(shape)}",
            "data": self.batches.fingerprint(),
        }
        there = (folder / "state.json").exists()
        if there and not resume:
            raise CheckpointError(
                f"{folder}: holds a run; go on with it (resume=True) or choose another folder"
            )
        require_folder(folder)
        file = str(folder / "draws.bin")  # raw numbers, (chain, draw, D)
        self.draws = torch.from_file(
            file, shared=True, size=math.prod(shape), dtype=like.dtype
        ).view(shape)
        self.checkpoint = folder / "state"
        if there:
            self.restore()

    def go(self, progress: bool) -> None:
        """Take the steps that are left."""
        total = self.due[-1]
        look: dict[str, Any] = {"desc": self.settings.name, "unit": "step", "dynamic_ncols": True}
        bar = tqdm(total=total, initial=self.number, disable=not progress, mininterval=0.5, **look)
        began = shown = saved = time.perf_counter()
        before, data = self.seconds, self.batches.tensors
        with bar, graceful_interrupt(self.stop):
            while self.number < total and not self.stopping:
                random = self.noise.next()
                batch = data if self.full else minibatch(data, random.examples)
                self.state, info = self.settings.step(
                    self.update, self.state, self.number, random, batch
                )
                self.number += 1
                self.gradients += self.chains * (
                    int(info.n_steps[0]) if hasattr(info, "n_steps") else 1
                )
                if self.number == self.due[self.kept]:
                    self.keep(info)
                elif (
                    self.number % 500 == 0
                ):  # a long warm-up on numbers that are none would be wasted
                    self.require_finite()
                bar.update()
                now = time.perf_counter()
                self.seconds = before + now - began
                if progress and now - shown > 0.5:
                    shown = now
                    bar.set_description(
                        f"{self.settings.name} {'warm-up' if self.number < self.warmup else 'draws'}"
                    )
                    bar.set_postfix_str(self.told(info))
                if self.checkpoint is not None and now - saved > 30:
                    saved = now
                    self.save()
        if self.checkpoint is not None:
            self.save()

    def stop(self) -> None:
        """Stop after the present step."""
        self.stopping = True

    def require_finite(self) -> None:
        """Refuse to go on with a chain that left the finite numbers."""
        if not bool(self.state.position.isfinite().all()):
            raise SamplingError(
                f"{self.settings.name}: step {self.number}: a chain left the finite numbers; the step size is too "
                "large for the curvature of the posterior: try a tenth of it"
            )

    def keep(self, info: Any) -> None:
        """Keep the present positions as draws."""
        self.require_finite()
        self.draws[:, self.kept] = self.state.position
        for name, value in info._asdict().items():
            if value is None:
                continue
            if name not in self.statistics:
                self.statistics[name] = torch.empty(
                    self.draws.shape[:2], dtype=value.dtype, device=value.device
                )
            self.statistics[name][:, self.kept] = value
        self.kept += 1

    def told(self, info: Any) -> str:
        """Return what the bar says."""
        said = {"lp": "{:.1f}", "acceptance_rate": "{:.2f}", "step_size": "{:.2g}"}
        shown = [
            f"{name} {form.format(float(getattr(info, name).mean()))}"
            for name, form in said.items()
            if hasattr(info, name)
        ]
        if "diverging" in self.statistics:
            shown.append(f"diverging {int(self.statistics['diverging'][:, : self.kept].sum())}")
        return "  ".join([*shown, f"{self.gradients / max(self.seconds, 1e-9):.0f} gradients/s"])

    def save(self) -> None:
        """Write the state of the run; the draws are in their file already."""
        assert self.checkpoint is not None
        leaves = tree_flatten(self.state)[0]
        tensors = {f"state.{i}": leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        numbers = {str(i): leaf for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)}
        tensors |= {f"noise.{name}": value for name, value in self.noise.state().items()}
        tensors |= {f"statistics.{name}": value for name, value in self.statistics.items()}
        facts = {
            key: getattr(self, key)
            for key in ("identity", "number", "kept", "gradients", "seconds")
        }
        save_tensors(self.checkpoint, tensors, facts | {"state": numbers})

    def restore(self) -> None:
        """Go on from the state that was written."""
        assert self.checkpoint is not None
        tensors, facts = load_tensors(self.checkpoint)
        require_same_run(self.checkpoint.parent, facts["identity"], self.identity)
        spec = tree_flatten(self.state)[1]
        leaves = [
            tensors.get(f"state.{i}", facts["state"].get(str(i))) for i in range(spec.num_leaves)
        ]
        self.state = tree_unflatten(leaves, spec)
        self.noise.restore({name: tensors[f"noise.{name}"] for name in ("generators", "used")})
        self.statistics = {
            name.removeprefix("statistics."): value
            for name, value in tensors.items()
            if name.startswith("statistics.")
        }
        self.number, self.kept, self.gradients, self.seconds = (
            facts[key] for key in ("number", "kept", "gradients", "seconds")
        )

    def posterior(self, density: LogDensity, model: Any, seconds: float) -> Posterior:
        """Return the draws as a posterior, and say what is wrong with them."""
        if self.kept == 0:
            raise SamplingError(
                f"{self.settings.name}: stopped after {self.number} steps, before the first draw"
            )
        draws = self.draws[:, : self.kept]
        statistics = {name: value[:, : self.kept] for name, value in self.statistics.items()}
        told = convergence_warnings(statistics, self.kept < self.draws.shape[1] and self.kept)
        for concern in told:
            warnings.warn(f"{self.settings.name}: {concern}", ConvergenceWarning, stacklevel=4)
        facts = {
            "method": self.settings.name,
            "seconds": seconds,
            "gradients": self.gradients,
            "data": self.batches.fingerprint(),
            "settings": {name: str(value) for name, value in vars(self.settings).items()}
            | {"warmup": self.warmup},
            "warnings": told,
        }
        return Posterior.from_draws(model, density.constrain(draws), statistics, facts)


def convergence_warnings(statistics: Mapping[str, Tensor], stopped_after: int = 0) -> list[str]:
    """Return in words what speaks against the draws."""
    found = []
    if stopped_after:
        found.append(f"stopped by Ctrl-C after {stopped_after} draws of each chain")
    if "diverging" in statistics:
        diverging = statistics["diverging"]
        if bool(diverging.all()):
            raise SamplingError(
                f"all {len(diverging)} chains diverged at every draw: the step size does not fit where they are; give "
                "them a longer warm-up, or another start (start=fit(...))"
            )
        stuck = int(diverging.all(1).sum())
        if stuck:
            found.append(
                f"{stuck} of {len(diverging)} chains diverged at every draw: they are stuck; warm up longer"
            )
        if int(diverging.sum()):
            share = float(diverging.double().mean())
            found.append(
                f"{int(diverging.sum())} divergent draws ({share:.1%}): parts of high curvature are missed; raise "
                "target_acceptance, or write the model non-centred"
            )
    chains, draws = statistics["lp"].shape
    if chains > 1 and draws >= 8:
        r_hat = split_r_hat(statistics["lp"])
        if not r_hat < 1.05:
            found.append(
                f"the chains do not agree: R-hat of the log-density is {r_hat:.2f}; run longer"
            )
    return found


def split_r_hat(values: Tensor) -> float:
    """Return how far chains (chain, draw), cut in halves, disagree: one if they do not (Gelman et al., 2013, 11.4)."""
    half = values.shape[1] // 2
    parts = torch.cat([values[:, :half], values[:, -half:]]).double()
    within, between = parts.var(1).mean(), parts.mean(1).var()
    return float(((half - 1) / half + between / within).sqrt())
