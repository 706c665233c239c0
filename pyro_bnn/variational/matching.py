"""Checks that a model and its guide belong together.

Pyro warns of a site that only one program has, and lets data broadcast against their distribution.
Here both are errors that name the site.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from pyro.poutine.trace_struct import Trace
from pyro.util import check_model_guide_match

from pyro_bnn.distributions.shapes import broadcast_shapes
from pyro_bnn.runtime.program import Site, sample_sites, shape_of

__all__ = ["is_deterministic", "missing_site_error", "require_match"]


def require_match(model_trace: Trace, guide_trace: Trace) -> None:
    """Check that a guide fits a model and its data.

    Args:
        model_trace: trace of the model, replayed on the guide.
        guide_trace: trace of the guide.

    Raises:
        ValueError: if the guide lacks a latent site of the model, gives it another shape, or
            samples a site that the model observes; if data do not have the shape of their
            distribution.
    """
    model_sites = dict(sample_sites(model_trace))
    _require_latent_sites(model_sites, guide_trace)
    observed_sites = {}
    for name, site in model_sites.items():
        if site["is_observed"] and not is_deterministic(site):
            observed_sites[name] = site
    _require_data_not_sampled(observed_sites, guide_trace)
    check_model_guide_match(model_trace, guide_trace)
    _require_shapes_of_data(observed_sites)


def _require_latent_sites(model_sites: Mapping[str, Site], guide_trace: Trace) -> None:
    missing = []
    for name, site in model_sites.items():
        if not site["is_observed"] and name not in guide_trace:
            missing.append(name)
    if missing:
        raise missing_site_error(sorted(missing), guide_trace)


def _require_data_not_sampled(observed_sites: Iterable[str], guide_trace: Trace) -> None:
    for name in observed_sites:
        if name in guide_trace and not guide_trace.nodes[name]["is_observed"]:
            raise ValueError(
                f"ELBO: the guide samples {name!r}, which the model observes. Was the guide built "
                "without the data? Give it the arguments that the loss is called with: "
                "MeanField(model, x, y)"
            )


def _require_shapes_of_data(observed_sites: Mapping[str, Site]) -> None:
    for name, site in observed_sites.items():
        expected = shape_of(site["fn"])
        received = site["value"].shape
        if not _broadcasts_to(received, expected):
            raise ValueError(
                f"ELBO: the observations at site {name!r} have the shape {tuple(received)}, their "
                f"distribution has the shape {tuple(expected)}. Usually one of them has a trailing "
                "axis of size one: remove it with y.squeeze(-1)"
            )


def _broadcasts_to(shape: torch.Size, target: torch.Size) -> bool:
    try:
        return broadcast_shapes(shape, target) == target
    except RuntimeError:
        return False


def missing_site_error(names: Iterable[str], guide_trace: Trace) -> ValueError:
    """Return the error for sites that the guide lacks, or a description of them."""
    guide_sites = ", ".join(name for name, _ in sample_sites(guide_trace)) or "none"
    return ValueError(
        f"ELBO: the guide has no site {', '.join(names)}; its sites are {guide_sites}. Was it "
        "built for another model? Build the guide from this model. If the missing site is the "
        "data, which a model called without data samples, call loss(x, y)"
    )


def is_deterministic(site: Site) -> bool:
    """Return whether a site is a ``pyro.deterministic`` statement, which has no density."""
    return bool(site["infer"].get("_deterministic"))
