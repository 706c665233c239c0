"""Deep copies of a model and its guide, so that later training does not change a result."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVarTuple

from pyro.infer.autoguide import AutoGuide
from torch import nn

__all__ = ["deepcopy_together"]

Programs = TypeVarTuple("Programs")


def deepcopy_together(*programs: *Programs) -> tuple[*Programs]:
    """Return deep copies of programs; what they share, their copies share.

    ``copy.deepcopy`` alone does not suffice for Pyro's autoguides: copying makes an autoguide and
    its copy lose their reference to the model, which is restored here. An autoguide's prototype
    trace is shared and not copied: it is only read, and may hold tensors that cannot be copied.
    """
    models = []
    memo: dict[int, Any] = {}
    for guide in _autoguides(programs):
        models.append((guide, guide._model))
        if guide.prototype_trace:
            memo[id(guide.prototype_trace)] = guide.prototype_trace
    copies = copy.deepcopy(programs, memo)
    for guide, model in models:
        guide._model = model
        memo[id(guide)]._model = copy.deepcopy(model, memo)
    return copies


def _autoguides(programs: tuple[*Programs]) -> Iterator[AutoGuide]:
    """Yield the autoguides among the modules of the programs."""
    for program in programs:
        if not isinstance(program, nn.Module):
            continue
        for module in program.modules():
            if isinstance(module, AutoGuide):
                yield module
