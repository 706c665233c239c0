"""Copies of programs that belong together: what an inference owns, so that no later training changes it."""

from __future__ import annotations

import copy
import itertools
from typing import Any

from pyro.infer.autoguide import AutoGuide
from torch import nn

__all__ = ["deepcopy_together"]


def deepcopy_together(*programs: Any) -> Any:
    """Return deep copies of programs that belong together.

    Pyro's autoguides need help: they forget their model when they are copied, and so do the originals.
    """
    modules = itertools.chain.from_iterable(
        part.modules() for part in programs if isinstance(part, nn.Module)
    )
    autoguides = [(guide, guide._model) for guide in modules if isinstance(guide, AutoGuide)]
    # the prototype is only looked at, and may hold tensors that cannot be copied
    memo = {
        id(guide.prototype_trace): guide.prototype_trace
        for guide, _ in autoguides
        if guide.prototype_trace
    }
    copied = copy.deepcopy(programs, memo)
    for guide, reference in autoguides:
        guide._model = reference
        memo[id(guide)]._model = copy.deepcopy(reference, memo)
    return copied
