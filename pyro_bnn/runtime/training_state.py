"""The state of an inference: of its parts, its optimizer and its random numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_bnn.runtime.checkpoint import CheckpointError

__all__ = ["below", "require_same_run", "restore_run_state", "run_state"]


def run_state(
    loss: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    generators: Mapping[str, torch.Generator],
) -> dict[str, Tensor]:
    """Return parameters, buffers, optimizer state and random state as flat tensors."""
    tensors = {f"loss.{name}": value for name, value in loss.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        present = {key: value for key, value in state.items() if value is not None}
        tensors |= {
            f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in present.items()
        }
    return tensors | {
        f"random.{name}": generator.get_state() for name, generator in generators.items()
    }


def restore_run_state(
    tensors: Mapping[str, Tensor],
    loss: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    generators: Mapping[str, torch.Generator],
) -> None:
    """Put back what :func:`run_state` returned."""
    loss.load_state_dict(below("loss", tensors))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in below("optimizer", tensors).items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    for name, value in below("random", tensors).items():
        generators[name].set_state(value)


def require_same_run(folder: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a run whose settings, data or parameters are others.

    Raises:
        CheckpointError: naming what differs.
    """
    now = json.loads(json.dumps(now))
    differing = []
    for key in {**now, **saved}:
        before, after = saved.get(key), now.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            differing += [
                f"{key} {name}"
                for name in {**after, **before}
                if before.get(name) != after.get(name)
            ][:1]
        elif before != after:
            differing.append(f"{key} (saved {before}, now {after})")
    if differing:
        raise CheckpointError(
            f"{folder}: the checkpoint is of another run: {'; '.join(differing)} differ"
        )


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix and a dot, without them."""
    return {
        name.removeprefix(f"{prefix}."): value
        for name, value in tensors.items()
        if name.startswith(f"{prefix}.")
    }
