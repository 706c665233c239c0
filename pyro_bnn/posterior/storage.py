"""A posterior on disk: named tensors and facts; the programs themselves stay with the caller."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pyro_bnn.runtime.program import Program
from pyro_bnn.runtime.tensor_files import CheckpointError, load_tensors, tensors_under

__all__ = ["SavedPosterior", "named_tensors", "read_posterior"]


@dataclass(frozen=True)
class SavedPosterior:
    """The content of a saved posterior.

    Attributes:
        draws: the draws of a sampler; empty for a guide.
        statistics: numbers noted with each draw.
        example: the arguments that the guide is called with.
        facts: how the posterior was made.
        tensors: all tensors of the file, those of the model and the guide among them.
    """

    draws: dict[str, Tensor]
    statistics: dict[str, Tensor]
    example: tuple[Tensor, ...]
    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def named_tensors(
    draws: Mapping[str, Tensor],
    statistics: Mapping[str, Tensor],
    example: tuple[Tensor, ...],
    programs: Mapping[str, Program | None],
) -> dict[str, Tensor]:
    """Return all tensors of a posterior under one name each, such as ``draws.fc1.weight``.

    Args:
        draws: as in :class:`SavedPosterior`.
        statistics: likewise.
        example: likewise.
        programs: by name. The state of modules is saved; functions have none.
    """
    arguments = {str(index): argument for index, argument in enumerate(example)}
    groups = {"draws": draws, "statistics": statistics, "example": arguments}
    for name, program in programs.items():
        if isinstance(program, nn.Module):
            groups[name] = program.state_dict()
    tensors = {}
    for group, members in groups.items():
        for name, value in members.items():
            tensors[f"{group}.{name}"] = value
    return tensors


def read_posterior(path: str | os.PathLike[str], has_guide: bool) -> SavedPosterior:
    """Return the content of a saved posterior.

    Args:
        path: without a suffix, as it was saved.
        has_guide: whether the caller has a guide to load a variational posterior into.

    Raises:
        CheckpointError: if a file is missing or damaged, holds something other than a posterior, or
            holds a variational posterior and the caller has no guide.
    """
    tensors, facts = load_tensors(path)
    kind = facts.get("kind")
    if kind not in ("guide", "draws"):
        raise CheckpointError(f"{path}: expected a saved posterior, found something else")
    if kind == "guide" and not has_guide:
        raise CheckpointError(
            f"{path}: holds a variational posterior; pass the guide to load it into, guide=..."
        )
    arguments = tensors_under("example", tensors)
    return SavedPosterior(
        draws=tensors_under("draws", tensors),
        statistics=tensors_under("statistics", tensors),
        example=tuple(arguments[str(index)] for index in range(len(arguments))),
        facts=facts.get("made") or {},
        tensors=tensors,
    )
