"""The checkpoint of a run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_bnn.runtime.tensor_files import tensors_under

__all__ = ["restore_run_state", "run_state"]


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
    loss.load_state_dict(tensors_under("loss", tensors))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors_under("optimizer", tensors).items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    for name, value in tensors_under("random", tensors).items():
        generators[name].set_state(value)
