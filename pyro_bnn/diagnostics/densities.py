r"""Log-densities of draws: of each example, and of data and weights together.

The log-likelihood of an example is that of the example alone, :math:`\log p(y_n \mid x_n, w)`,
without the factors of plates and of :func:`pyro.poutine.scale`. All examples are evaluated, also
where a plate of the program draws minibatches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyro_bnn.posterior import Posterior
from pyro_bnn.posterior.vectorized import for_each_draw
from pyro_bnn.runtime.program import Program, Site, shape_of
from pyro_bnn.runtime.tensor_dicts import concatenate, map_tensors

from .recording import Recording, record

__all__ = ["Densities", "log_densities", "weighted_log_prob"]

# The number of values that the draws of a chunk hold at once, and a guess at the number of values
# of one example in a layer.
CHUNK = 8_000_000
NUMBERS_PER_EXAMPLE = 64

# Terms of a draw are named "plain.SITE", "weighted.SITE" and "latent".
PLAIN, WEIGHTED, LATENT = "plain.", "weighted.", "latent"


@dataclass(frozen=True)
class Densities:
    r"""Log-densities of S draws and N examples, in nats and in double precision.

    Attributes:
        log_likelihood: for each observed site the terms of the examples (S, N, ...), unscaled.
        log_joint: :math:`\log p(y, w \mid x)` of all the data, (S,); up to a constant where the
            prior is improper.
        num_data: for each observed site the number of examples that its plates stand for; 0 where
            it is in no plate.
    """

    log_likelihood: dict[str, Tensor]
    log_joint: Tensor
    num_data: dict[str, int]

    def pointwise(self) -> Tensor:
        """Return the log-likelihoods of all sites side by side, (S, examples)."""
        columns = []
        for value in self.log_likelihood.values():
            # the numbers of one example are one observation
            columns.append(value.flatten(2).sum(2) if value.dim() > 2 else value)
        return torch.cat(columns, 1)

    def all_terms(self) -> Tensor:
        """Return the log-likelihoods of every single number of all sites, (S, numbers)."""
        return torch.cat([value.flatten(1) for value in self.log_likelihood.values()], 1)


class _Batch(NamedTuple):
    """The rows of a minibatch, and how many of them are new: the last minibatch may start again."""

    rows: Tensor | None
    num_new: int | None


def log_densities(
    posterior: Posterior, sites: Mapping[str, Tensor], data: tuple[Tensor, ...]
) -> Densities:
    """Return the log-densities of draws under the posterior's own model.

    Args:
        posterior: its model, with the parameters that it learned, is evaluated.
        sites: draws of all latent sites, (S, ...).
        data: the arguments of the model, with all examples: (x, y).

    Raises:
        ValueError: if a latent site has no draws, if data do not match their distribution or are
            not observed, or if plates that draw minibatches are nested or contain latent sites.
    """
    first = map_tensors(lambda value: value[0], sites)
    with posterior.source.isolated(0):
        probe = record(posterior.model, first, data)
    _require_complete(probe, sites)
    batches = _batches_of_all_data(probe, data[0].device)

    def terms_of_draw(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return _terms_of_all_data(posterior.model, values, data, batches)

    numbers = data[0].numel() + max(len(data[0]) * NUMBERS_PER_EXAMPLE, 1)
    with posterior.source.isolated(0):
        terms = for_each_draw(terms_of_draw, sites, max(1, CHUNK // numbers))
    log_joint = terms[LATENT].double()
    log_likelihood, num_data = {}, {}
    for name, site in probe.observed.items():
        log_joint = log_joint + terms[f"{WEIGHTED}{name}"].double().flatten(1).sum(1)
        log_likelihood[name] = terms[f"{PLAIN}{name}"].double()
        num_data[name] = _num_data(site)
    return Densities(log_likelihood, log_joint, num_data)


def weighted_log_prob(site: Site) -> Tensor:
    """Return the log-density at a sample statement as it enters the joint density."""
    return _scale_and_mask(site["fn"].log_prob(site["value"]), site, site["scale"])


# --- pieces ---------------------------------------------------------------------------------------


def _terms_of_all_data(
    model: Program,
    values: Mapping[str, Tensor],
    data: tuple[Tensor, ...],
    batches: list[_Batch],
) -> dict[str, Tensor]:
    """Return the terms of one draw, those of the examples joined over the minibatches."""
    by_batch = [_terms(model, values, data, batch) for batch in batches]
    latent = [terms.pop(LATENT) for terms in by_batch]  # the same in every minibatch
    return concatenate(by_batch) | {LATENT: latent[0]}


def _terms(
    model: Program, values: Mapping[str, Tensor], data: tuple[Tensor, ...], batch: _Batch
) -> dict[str, Tensor]:
    """Return the log-likelihoods of the examples of a minibatch, and the rest of the log-density.

    The log-likelihoods are returned twice: plain, and weighted as the program weights them.
    """
    run = record(model, values, data, batch.rows)
    observed = run.observed
    terms = {LATENT: data[0].new_zeros(())}
    for name, site in run.sites.items():
        if name not in observed:
            terms[LATENT] = terms[LATENT] + weighted_log_prob(site).sum()
    for name, site in observed.items():
        plain = _scale_and_mask(site["fn"].log_prob(site["value"]), site, 1.0)
        # a plate multiplies by N / B; the rest of the scale is the program's own, as in a
        # tempered likelihood
        weighted = plain * (site["scale"] / _plate_scale(site))
        terms[f"{PLAIN}{name}"] = _first(plain, batch.num_new)
        terms[f"{WEIGHTED}{name}"] = _first(weighted, batch.num_new)
    return terms


def _first(terms: Tensor, num: int | None) -> Tensor:
    """Return the first terms, all of them where ``num`` is ``None``; a number becomes (1,)."""
    return terms[:num] if terms.dim() else terms[None]


def _scale_and_mask(log_prob: Tensor, site: Site, scale: float | Tensor) -> Tensor:
    terms: Tensor = scale_and_mask(log_prob, scale, site["mask"])
    return terms


def _plates(site: Site) -> list[CondIndepStackFrame]:
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


def _full_size(plates: list[CondIndepStackFrame]) -> int:
    return math.prod(frame.full_size or frame.size for frame in plates)


def _num_data(site: Site) -> int:
    """Return the number of examples that the plates of a site stand for; 0 without a plate."""
    plates = _plates(site)
    if not plates:
        return 0
    return _full_size(plates)


def _plate_scale(site: Site) -> float:
    """Return N / B, the factor by which plates scale a minibatch."""
    plates = _plates(site)
    return _full_size(plates) / math.prod(frame.size for frame in plates)


def _batches_of_all_data(probe: Recording, device: torch.device) -> list[_Batch]:
    """Return minibatches of the size that the program draws, which together make all the data."""
    if not probe.minibatches:
        return [_Batch(None, None)]
    plate, *others = probe.minibatches.values()
    inside = []
    for name, site in probe.sites.items():
        names = {frame.name for frame in site["cond_indep_stack"]}
        if name not in probe.observed and names & probe.minibatches.keys():
            inside.append(name)
    if others or inside:
        around = f" around the latent sites {', '.join(inside)}" if inside else ""
        raise ValueError(
            f"log_densities: the plates {', '.join(probe.minibatches)} draw minibatches{around}; "
            "build the model without subsample_size to evaluate it on all the data"
        )
    batches = []
    cyclic = torch.arange(plate.size + plate.batch_size, device=device) % plate.size
    for start in range(0, plate.size, plate.batch_size):
        rows = cyclic[start : start + plate.batch_size]
        batches.append(_Batch(rows, min(plate.batch_size, plate.size - start)))
    return batches


def _require_complete(probe: Recording, sites: Mapping[str, Tensor]) -> None:
    """Raise if data or draws are not those of the program."""
    if not probe.observed:
        raise ValueError(
            "log_densities: the model observes nothing when it is called with the data; "
            "expected data=(x, y)"
        )
    missing = [name for name in probe.latent if name not in sites]
    if missing:
        raise ValueError(
            f"log_densities: expected draws of all latent sites, but {', '.join(missing)} "
            f"have none; there are draws of {', '.join(sites)}"
        )
    for name, site in probe.observed.items():
        expected, received = tuple(shape_of(site["fn"])), tuple(site["value"].shape)
        if expected != received:
            raise ValueError(
                f"log_densities: expected data of shape {expected} at site {name!r}, the shape "
                f"of their distribution, got {received}"
            )
