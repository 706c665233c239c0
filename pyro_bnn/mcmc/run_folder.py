"""Saving a run while it goes on, and resuming it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyro_bnn.runtime.run_identity import require_same_run
from pyro_bnn.runtime.tensor_files import (
    CheckpointError,
    load_tensors,
    require_folder,
    save_tensors,
    tensors_under,
)

from .draws import DrawBuffer
from .noise import Noise
from .options import errors_named
from .sampler import State

__all__ = ["Counters", "RunFolder"]


@dataclass
class Counters:
    """How far a run has come.

    Attributes:
        steps: Steps taken.
        gradients: Gradients computed, of all chains together.
        seconds: Time spent in the loop, over all parts of an interrupted run.
    """

    steps: int = 0
    gradients: int = 0
    seconds: float = 0.0


class RunFolder:
    """The files of one run.

    ``draws.bin`` holds the raw numbers of the draws, (chain, draw, D), and is mapped into memory.
    ``state.json`` and the file of tensors beside it hold everything else that the run needs to
    continue: the state of the sampler, of its random numbers, and the statistics of the draws.

    Args:
        folder: The folder; it is created if it does not exist.
        identity: Settings and data, by which the run is recognised.
        resume: Whether the folder may hold a run already.
        caller: Name of the function that the user called, with which messages begin.

    Attributes:
        holds_run: Whether the folder held a run when it was opened.

    Raises:
        CheckpointError: The folder holds a run and ``resume`` is false, or cannot be written.
    """

    def __init__(
        self, folder: str | Path, identity: Mapping[str, str | int], resume: bool, caller: str
    ) -> None:
        self.folder, self.identity, self.caller = Path(folder), identity, caller
        self.holds_run = (self.folder / "state.json").exists()
        if self.holds_run and not resume:
            raise CheckpointError(
                f"{caller}: the folder {folder} holds a run; continue it (resume=True) or choose "
                "another folder"
            )
        with errors_named(caller, CheckpointError):
            require_folder(self.folder)

    def map_draws(self, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
        """Return space for the draws in a file, (chain, draw, D)."""
        file = str(self.folder / "draws.bin")
        return torch.from_file(file, shared=True, size=math.prod(shape), dtype=dtype).view(shape)

    def save(self, state: State, noise: Noise, draws: DrawBuffer, counters: Counters) -> None:
        """Write everything but the draws, which are in their file already."""
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, float | None] = {}
        for index, leaf in enumerate(tree_flatten(state)[0]):
            if isinstance(leaf, Tensor):
                tensors[f"state.{index}"] = leaf
            else:
                numbers[str(index)] = leaf
        for name, value in noise.state().items():
            tensors[f"noise.{name}"] = value
        for name, value in draws.statistics.items():
            tensors[f"statistics.{name}"] = value
        facts = {
            "identity": self.identity,
            "counters": asdict(counters),
            "draws": draws.count,
            "state": numbers,
        }
        with errors_named(self.caller, CheckpointError):
            save_tensors(self.folder / "state", tensors, facts)

    def restore(self, state: State, noise: Noise, draws: DrawBuffer) -> tuple[State, Counters]:
        """Return the saved state and counters; noise and draws continue from where they were.

        Args:
            state: The state at the start of the run, which shows the structure of the saved one.
            noise: The random numbers of the run, changed in place.
            draws: The draws of the run, changed in place.

        Raises:
            CheckpointError: The files are of another run, or damaged.
        """
        with errors_named(self.caller, CheckpointError):
            tensors, facts = load_tensors(self.folder / "state")
            require_same_run(self.folder, facts["identity"], self.identity)
        structure, device = tree_flatten(state)[1], state.position.device
        leaves: list[Tensor | float | None] = []
        for index in range(structure.num_leaves):
            if f"state.{index}" in tensors:
                leaves.append(tensors[f"state.{index}"].to(device))
            else:
                leaves.append(facts["state"][str(index)])
        noise.restore(tensors_under("noise", tensors))
        draws.statistics = tensors_under("statistics", tensors)
        draws.count = facts["draws"]
        restored: State = tree_unflatten(leaves, structure)
        return restored, Counters(**facts["counters"])
