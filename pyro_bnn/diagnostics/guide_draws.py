"""Draws from a guide together with their log-density under it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_bnn.posterior import Posterior
from pyro_bnn.posterior.draw_source import DrawSource
from pyro_bnn.posterior.vectorized import draw_repeatedly, vectorized_draws
from pyro_bnn.runtime.program import Site, sample_sites

from .densities import weighted_log_prob

__all__ = ["GuideDraws", "draw_guide"]

LOG_Q = "log q"  # the name of the log-density, beside the names of the sites


@dataclass(frozen=True)
class GuideDraws:
    """Draws from a guide.

    Attributes:
        sites: draws of every latent site of the model, (num, ...).
        log_q: their log-density under the guide, (num,), in nats; ``None`` where it is unknown.
        reason: why it is unknown; empty otherwise.
    """

    sites: dict[str, Tensor]
    log_q: Tensor | None
    reason: str


def draw_guide(posterior: Posterior, num: int, seed: int) -> GuideDraws:
    """Return independent draws from the guide of a posterior.

    Args:
        posterior: a posterior with a guide.
        num: the number of draws.
        seed: the seed of the draws.
    """
    source = posterior.source
    with source.isolated(seed):
        reason = _reason_without_density(_latent_sites(source))

        def draw_once() -> dict[str, Tensor]:
            latent = _latent_sites(source)
            values = {}
            for name, site in latent.items():
                if not _is_auxiliary(site):
                    values[name] = site["value"]
            if not reason:
                values[LOG_Q] = _log_density(latent)
            return values

        with vectorized_draws():
            draws = draw_repeatedly(draw_once, num)
    log_q = draws.pop(LOG_Q, None)
    return GuideDraws(draws, log_q, reason)


def _latent_sites(source: DrawSource) -> dict[str, Site]:
    """Return the latent sites of one call of the guide, auxiliary ones included."""
    latent = {}
    for name, site in sample_sites(source.guide_trace()):
        if not site["is_observed"]:
            latent[name] = site
    return latent


def _log_density(latent: Mapping[str, Site]) -> Tensor:
    terms = [weighted_log_prob(site).sum().double() for site in latent.values()]
    return torch.stack(terms).sum()


def _is_auxiliary(site: Site) -> bool:
    return bool(site["infer"].get("is_auxiliary"))


def _reason_without_density(latent: Mapping[str, Site]) -> str:
    """Return why the density of a draw is unknown; empty if it is known."""
    auxiliary = points = others = 0
    for site in latent.values():
        if _is_auxiliary(site):
            auxiliary += 1
        elif isinstance(site["fn"], dist.Delta):
            points += 1
        else:
            others += 1
    if auxiliary and others:
        return "the guide has auxiliary variables, over which its density is not integrated"
    if points and not auxiliary:
        return "the guide is a point estimate, which has no density"
    try:
        _log_density(latent)
    except NotImplementedError as error:
        return f"the guide's density is not known ({error or 'it has no log_prob'})"
    return ""
