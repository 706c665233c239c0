"""One run of a program with given values at its latent sites, and the statements it executed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pyro.distributions as dist
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_bnn.runtime.handlers import FixedSites
from pyro_bnn.runtime.program import Program, Site, is_subsample, sample_sites

__all__ = ["Minibatch", "Recording", "record"]


class Minibatch(NamedTuple):
    """A plate that draws a minibatch: the number of its examples, and how many it draws."""

    size: int
    batch_size: int


@dataclass(frozen=True)
class Recording:
    """The sample statements of one run.

    Attributes:
        sites: the statements by name, in the order of the program; without those that draw the
            indices of a minibatch and without ``pyro.deterministic``.
        minibatches: the plates that would have drawn a minibatch, by name.
    """

    sites: dict[str, Site]
    minibatches: dict[str, Minibatch]

    @property
    def latent(self) -> dict[str, Site]:
        """The statements without data."""
        latent = {}
        for name, site in self.sites.items():
            if not site["is_observed"]:
                latent[name] = site
        return latent

    @property
    def observed(self) -> dict[str, Site]:
        """The statements that have data; a ``pyro.factor`` has none."""
        observed = {}
        for name, site in self.sites.items():
            if site["is_observed"] and not isinstance(site["fn"], dist.Unit):
                observed[name] = site
        return observed


class FixedMinibatches(Messenger):
    """Give plates the rows of their minibatch instead of drawing them.

    Args:
        rows: the indices; ``None`` to let the plates draw, and only list them.

    Attributes:
        minibatches: the plates that draw a minibatch, by name.
    """

    def __init__(self, rows: Tensor | None) -> None:
        super().__init__()
        self.rows = rows
        self.minibatches: dict[str, Minibatch] = {}

    def _pyro_sample(self, msg: Site) -> None:
        if not is_subsample(msg) or msg["value"] is not None:
            return
        plate = msg["fn"]
        if plate.subsample_size is not None and plate.subsample_size < plate.size:
            self.minibatches[msg["name"]] = Minibatch(plate.size, plate.subsample_size)
            msg["value"] = self.rows


def record(
    program: Program,
    values: Mapping[str, Tensor],
    data: tuple[Tensor, ...],
    rows: Tensor | None = None,
) -> Recording:
    """Run a program with the given values at its latent sites; draw those that have no value.

    Args:
        program: the program.
        values: values of latent sites, by name.
        data: the arguments of the program.
        rows: the indices that plates take instead of drawing a minibatch.
    """
    plates = FixedMinibatches(rows)
    with FixedSites(values, otherwise=_draw), plates:
        trace = poutine.trace(program).get_trace(*data)
    sites = {}
    for name, site in sample_sites(trace):
        if not site["infer"].get("_deterministic"):
            sites[name] = site
    return Recording(sites, plates.minibatches)


def _draw(site: Site) -> Tensor:
    # not rsample, which torch.vmap cannot vectorize for a Normal
    return site["fn"].sample()
