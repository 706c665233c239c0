r"""Log-densities of draws: of each example, of data and weights together, and of the guide that drew them.

The log-likelihood of an example is that of the example alone, :math:`\log p(y_n \mid x_n, w)`, whatever a plate or
:func:`pyro.poutine.scale` multiplies it by, and all examples are there, also where the program's plate draws
minibatches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_bnn.posterior import Posterior

__all__ = ["Densities", "Run", "log_densities", "variational_draws", "vectorized"]


@dataclass(frozen=True)
class Densities:
    """What a program says of S draws and N examples, in nats and in double precision.

    Attributes:
        log_likelihood: for each observed site the terms of the examples (S, N, ...), unscaled.
        log_joint: :math:`\\log p(y, w \\mid x)` of all the data, (S,); of an improper prior up to a constant.
        num_data: for each observed site the number of examples that its plates stand for; 0 where it has none.
    """

    log_likelihood: dict[str, Tensor]
    log_joint: Tensor
    num_data: dict[str, int]


class Run(Messenger):
    """Run a program with these values at its latent sites; note every other sample statement.

    What has no value is drawn. By ``sample``, not ``rsample``: that is what :func:`torch.vmap` can do for a Normal.
    Entered around the program, it sees what the program's own plates and handlers made of a statement.

    Args:
        values: of latent sites.
        rows: the indices that a plate takes which would draw a minibatch.
    """

    def __init__(self, values: Mapping[str, Tensor], rows: Tensor | None = None) -> None:
        super().__init__()
        self.values, self.rows = values, rows
        self.sites: dict[str, Any] = {}
        self.minibatches: dict[str, tuple[int, int]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if _draws_indices(msg):
            size, batch = msg["fn"].size, msg["fn"].subsample_size
            if msg["value"] is None and batch is not None and batch < size:
                self.minibatches[msg["name"]] = (size, batch)
                msg["value"] = self.rows
        elif msg["value"] is None and not msg["is_observed"]:
            given = msg["name"] in self.values
            msg["value"], msg["done"] = (
                self.values[msg["name"]] if given else msg["fn"].sample(),
                True,
            )

    def _pyro_post_sample(self, msg: Any) -> None:
        if not _draws_indices(msg) and not msg["infer"].get("_deterministic"):
            self.sites[msg["name"]] = dict(msg)

    def observed(self) -> dict[str, Any]:
        """Return the statements that have data; a factor has none."""
        return {
            name: site
            for name, site in self.sites.items()
            if site["is_observed"] and type(site["fn"]).__name__ != "Unit"
        }


def log_densities(
    posterior: Posterior, sites: Mapping[str, Tensor], data: tuple[Tensor, ...]
) -> Densities:
    """Return the log-densities of draws under the posterior's own model.

    Args:
        posterior: whose model, with the parameters that it learned, is evaluated.
        sites: draws of all latent sites, (S, ...).
        data: what the program is called with, all examples: (x, y).

    Raises:
        ValueError: a latent site without draws; data that do not fit their distribution or are not observed; plates
            that draw minibatches one within another, or around latent sites.
    """
    first = {name: value[0] for name, value in sites.items()}
    with posterior.source.isolated(0), Run(first) as probe:
        posterior.model(*data)
    _require_complete(probe, sites)
    rows = _rows(probe, data[0].device)
    num_data = {
        name: math.prod(sizes) if (sizes := _frames(site, "full_size")) else 0
        for name, site in probe.observed().items()
    }

    def one(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        parts = [_terms(posterior, values, data, chunk, keep) for chunk, keep in rows]
        whole = {
            name: torch.cat([part[name] for part in parts]) for name in parts[0] if name != "latent"
        }
        return whole | {"latent": parts[0]["latent"]}

    numbers = data[0].numel() + max(
        len(data[0]) * 64, 1
    )  # a guess at what one draw keeps in flight
    with posterior.source.isolated(0):
        found = vectorized(one, sites, max(1, _CHUNK // numbers))
    log_joint = found.pop("latent").double()
    for name in num_data:
        log_joint = log_joint + found.pop(f"weighted.{name}").double().flatten(1).sum(1)
    return Densities(
        {name: found[f"plain.{name}"].double() for name in num_data}, log_joint, num_data
    )


def variational_draws(
    posterior: Posterior, num: int, seed: int
) -> tuple[dict[str, Tensor], Tensor | None, str]:
    """Return draws of a guide's sites (num, ...), their log-density under the guide (num,) in nats, and, where that is
    ``None``, why it is not known.
    """
    drawn, log_q, reason = [], [], ""
    with posterior.source.isolated(seed):
        for _ in range(num):
            trace = posterior.source.guide_trace()
            sites = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
            sites = {name: site for name, site in sites.items() if not _draws_indices(site)}
            free = {name: site for name, site in sites.items() if not site["is_observed"]}
            drawn.append(
                {name: site["value"] for name, site in free.items() if not _auxiliary(site)}
            )
            reason = reason or _no_density(free)
            if not reason:
                try:
                    log_q.append(sum(_weighted(site).sum().double() for site in free.values()))
                except NotImplementedError as error:
                    reason = f"the guide's density is not known ({error or 'it has no log_prob'})"
    stacked = {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}
    return (
        stacked,
        None if reason else torch.stack([torch.as_tensor(value) for value in log_q]),
        reason,
    )


def vectorized(
    function: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    draws: Mapping[str, Tensor],
    chunk: int,
) -> dict[str, Tensor]:
    """Return the function of every draw, stacked: by :func:`torch.vmap`, or one by one where that cannot be."""
    try:
        return torch.vmap(function, randomness="different", chunk_size=chunk)(dict(draws))
    except RuntimeError:
        num = len(next(iter(draws.values())))
        single = [
            function({name: value[index] for name, value in draws.items()}) for index in range(num)
        ]
        return {name: torch.stack([one[name] for one in single]) for name in single[0]}


# --- pieces -----------------------------------------------------------------------------------------------------------


def _terms(
    posterior: Posterior,
    values: Mapping[str, Tensor],
    data: tuple[Tensor, ...],
    rows: Tensor | None,
    keep: int | None,
) -> dict[str, Tensor]:
    """Return the log-likelihoods of the examples in these rows, plain and with the program's own weights, and the
    log-density of everything else.
    """
    with Run(values, rows) as run:
        posterior.model(*data)
    observed = run.observed()
    others = [_weighted(site).sum() for name, site in run.sites.items() if name not in observed]
    found = {"latent": torch.as_tensor(sum(others, data[0].new_zeros(())))}
    for name, site in observed.items():
        plain = scale_and_mask(site["fn"].log_prob(site["value"]), 1.0, site["mask"])
        # a plate multiplies by N / B; what is left of the scale is the program's own, a tempered likelihood's say
        plate = math.prod(_frames(site, "full_size")) / math.prod(_frames(site, "size"))
        found[f"plain.{name}"] = plain[:keep] if plain.dim() else plain[None]
        weighted = scale_and_mask(plain, site["scale"] / plate)
        found[f"weighted.{name}"] = weighted[:keep] if weighted.dim() else weighted[None]
    return found


def _weighted(site: Any) -> Tensor:
    """Return the log-density at a sample statement as it enters the joint one."""
    return scale_and_mask(site["fn"].log_prob(site["value"]), site["scale"], site["mask"])


def _frames(site: Any, size: str) -> list[int]:
    return [
        getattr(frame, size) or frame.size for frame in site["cond_indep_stack"] if frame.vectorized
    ]


def _rows(probe: Run, device: torch.device) -> list[tuple[Tensor | None, int | None]]:
    """Return the minibatches that make all the data, and how many rows of each count; the last one may start anew."""
    if not probe.minibatches:
        return [(None, None)]
    (size, batch), *more = probe.minibatches.values()
    inside = [
        name
        for name, site in probe.sites.items()
        if name not in probe.observed()
        and any(frame.name in probe.minibatches for frame in site["cond_indep_stack"])
    ]
    if more or inside:
        raise ValueError(
            f"log_densities: the plates {', '.join(probe.minibatches)} draw minibatches"
            + (f" around the latent sites {', '.join(inside)}" if inside else "")
            + "; build the model without subsample_size to evaluate it on all the data"
        )
    everything = torch.arange(size + batch, device=device) % size
    return [
        (everything[start : start + batch], min(batch, size - start))
        for start in range(0, size, batch)
    ]


def _require_complete(probe: Run, sites: Mapping[str, Tensor]) -> None:
    """Refuse data or draws that are not those of the program."""
    observed = probe.observed()
    if not observed:
        raise ValueError(
            "log_densities: the model observes nothing when it is called with the data; expected data=(x, y)"
        )
    missing = [
        name for name, site in probe.sites.items() if not site["is_observed"] and name not in sites
    ]
    if missing:
        raise ValueError(
            f"log_densities: there are no draws of {', '.join(missing)}; there are {', '.join(sites)}"
        )
    for name, site in observed.items():
        expected, received = tuple(site["fn"].shape()), tuple(site["value"].shape)
        if expected != received:
            raise ValueError(
                f"log_densities: the data at site {name!r} have the shape {received}, their distribution has {expected}"
            )


def _draws_indices(site: Any) -> bool:
    return type(site["fn"]).__name__ == "_Subsample"


def _auxiliary(site: Any) -> bool:
    return bool(site["infer"].get("is_auxiliary"))


def _no_density(sites: Mapping[str, Any]) -> str:
    """Return why the log-densities of a guide's sites do not add up to that of its draws; empty if they do."""
    points = [
        type(site["fn"]).__name__ == "Delta" for site in sites.values() if not _auxiliary(site)
    ]
    hidden = any(map(_auxiliary, sites.values()))
    if hidden and not all(points):
        return (
            "the guide has auxiliary variables, over which its density would have to be integrated"
        )
    return (
        "the guide is a point estimate, which has no density" if any(points) and not hidden else ""
    )


# Numbers in flight over all draws of a chunk.
_CHUNK = 8_000_000
