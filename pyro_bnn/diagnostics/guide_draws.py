"""Draws from a guide together with their log-density under it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.program import Site, sample_sites
from pyro_bnn.runtime.tensor_dicts import stack

from .densities import weighted_log_prob

__all__ = ["GuideDraws", "draw_guide"]


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
    draws: list[dict[str, Tensor]] = []
    log_q: list[Tensor] = []
    reason = ""
    with posterior.source.isolated(seed):
        for _ in range(num):
            latent = {}
            for name, site in sample_sites(posterior.source.guide_trace()):
                if not site["is_observed"]:
                    latent[name] = site
            draws.append(_values(latent))
            reason = reason or _reason_without_density(latent)
            if not reason:
                try:
                    log_q.append(_log_density(latent))
                except NotImplementedError as error:
                    cause = error or "it has no log_prob"
                    reason = f"the guide's density is not known ({cause})"
    if reason:
        return GuideDraws(stack(draws), None, reason)
    return GuideDraws(stack(draws), torch.stack(log_q), "")


def _values(latent: Mapping[str, Site]) -> dict[str, Tensor]:
    return {name: site["value"] for name, site in latent.items() if not _is_auxiliary(site)}


def _log_density(latent: Mapping[str, Site]) -> Tensor:
    terms = [weighted_log_prob(site).sum().double() for site in latent.values()]
    return torch.stack(terms).sum()


def _is_auxiliary(site: Site) -> bool:
    return bool(site["infer"].get("is_auxiliary"))


def _reason_without_density(latent: Mapping[str, Site]) -> str:
    """Return why log-densities of sites do not add up to that of the draw; empty if they do."""
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
    return ""
