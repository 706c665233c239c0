"""Types of Pyro programs and of the records that Pyro keeps of their statements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypedDict, cast

import pyro.distributions as dist
import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.trace_struct import Trace

__all__ = ["Program", "Site", "is_subsample", "sample_sites", "shape_of", "values_of"]


class Program(Protocol):
    """A Pyro model or guide: anything that is called and contains ``pyro.sample`` statements."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""


class Site(TypedDict):
    """One statement of a program, as a handler or a trace sees it.

    Only the fields that the library reads are listed here. ``value`` is ``None`` until the
    statement is answered, and ``fn`` is the distribution of a sample statement.
    """

    type: str
    name: str
    fn: dist.TorchDistribution
    value: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    is_observed: bool
    done: bool
    scale: Any
    mask: Any
    infer: dict[str, Any]
    cond_indep_stack: tuple[CondIndepStackFrame, ...]


def shape_of(distribution: torch.distributions.Distribution) -> torch.Size:
    """Return the shape of a draw."""
    return distribution.batch_shape + distribution.event_shape


def is_subsample(site: Site) -> bool:
    """Return whether a statement draws the indices of a plate's minibatch."""
    return type(site["fn"]).__name__ == "_Subsample"


def values_of(sites: Mapping[str, Site]) -> dict[str, Any]:
    """Return the value of every statement."""
    values = {}
    for name, site in sites.items():
        values[name] = site["value"]
    return values


def sample_sites(trace: Trace) -> Iterator[tuple[str, Site]]:
    """Yield names and sample statements of a trace, without those that draw a plate's minibatch."""
    for name, node in trace.nodes.items():
        site = cast(Site, node)
        if site["type"] == "sample" and not is_subsample(site):
            yield name, site
