"""The latent sites of a model, which a guide must sample, and the values at which it starts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyro_bnn.network import BayesianNet
from pyro_bnn.runtime.program import Program, Site, sample_sites

__all__ = [
    "LatentSite",
    "Plate",
    "elementwise_support",
    "latent_sites",
    "require_real_sites",
    "slab_widths",
]


class Plate(NamedTuple):
    """A plate of a program, by the arguments of ``pyro.plate``."""

    name: str
    size: int
    dim: int


class LatentSite(NamedTuple):
    """A latent site of a model.

    Attributes:
        initial: the value at which its posterior starts.
        support: the support of its prior.
        group_dim: the axis of the weight whose indices form groups; of a ``BayesianNet`` only.
        plates: the plates that contain the site; of a hand-written program only.
    """

    initial: Tensor
    support: Constraint | None
    group_dim: int | None
    plates: tuple[Plate, ...] = ()


def latent_sites(guide: str, model: Program, *args: Any, **kwargs: Any) -> dict[str, LatentSite]:
    """Return every latent site of a model.

    Sites of a ``BayesianNet`` start at the weights of its network, sites of another program at one
    draw from the prior.

    Args:
        guide: name of the guide, for the error.
        model: a ``BayesianNet`` or another Pyro program.
        args: example arguments of a program that is not a ``BayesianNet``.
        kwargs: likewise, by keyword.

    Raises:
        ValueError: if the example arguments do not fit the program, if the program has no latent
            site, or if a latent site lies in a subsampled plate: its posterior would have to depend
            on the examples of the minibatch.
    """
    group_dims = {}
    if isinstance(model, BayesianNet):
        trace = _initial_trace(model)
        for weight in model.sites:
            group_dims[weight.name] = weight.group_dim
    else:
        try:
            inspect.signature(model).bind(*args, **kwargs)
        except TypeError as error:
            raise ValueError(
                f"{guide}: a hand-written Pyro program needs example arguments, "
                f"{guide}(model, x, y): {error}"
            ) from error
        trace = _prior_trace(functools.partial(model, *args, **kwargs))
    sites = {}
    for name, site in sample_sites(trace):
        if not site["is_observed"]:
            group_dim = group_dims.get(name.removesuffix(".unit"))
            plates = _plates_of(guide, name, site)
            sites[name] = LatentSite(site["value"].detach(), site["fn"].support, group_dim, plates)
    if not sites:
        raise ValueError(
            f"{guide}: expected a model with latent sites; it has no latent site, so there is "
            "nothing to infer"
        )
    return sites


def _initial_trace(model: BayesianNet) -> Trace:
    # Nothing is sampled; on the meta device there is nothing to validate.
    with pyro.validation_enabled(False):
        return poutine.trace(model.initialize).get_trace()


def _prior_trace(program: Program) -> Trace:
    with torch.no_grad(), pyro.get_param_store().scope():  # leave the caller's store unchanged
        return poutine.trace(program).get_trace()


def _plates_of(guide: str, name: str, site: Site) -> tuple[Plate, ...]:
    plates = []
    for frame in site["cond_indep_stack"]:
        if frame.full_size not in (None, frame.size):
            raise ValueError(
                f"{guide}: site {name!r} lies in a subsampled plate; its posterior depends on "
                "the examples. Write its guide by hand, as a function of the examples"
            )
        if frame.dim is not None:
            plates.append(Plate(frame.name, frame.size, frame.dim))
    return tuple(plates)


def require_real_sites(guide: str, sites: Mapping[str, LatentSite]) -> None:
    """Check that all sites are real, for a guide that supports no others.

    Args:
        guide: name of the guide, for the error.
        sites: the latent sites of the model.

    Raises:
        ValueError: if the support of a site is not the real line, as that of the scales of a
            horseshoe or of an inferred noise.
    """
    for name, site in sites.items():
        if elementwise_support(site.support) is not constraints.real:
            raise ValueError(
                f"{guide}: site {name!r} has the support {site.support}; expected real sites only. "
                "Use MeanField, or a prior on the weights themselves and a noise scale that is "
                "known or learned"
            )


def elementwise_support(support: Constraint | None) -> Constraint | None:
    """Return the support of one element of a site."""
    # The support of independent elements, or of a mixture, contains that of one element.
    while support is not None and hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def slab_widths(model: Program) -> dict[str, Tensor]:
    """Return the slab width of every weight that has a regularized horseshoe prior."""
    slabs: dict[str, Tensor] = {}
    if isinstance(model, BayesianNet):
        for name in model.names:
            slab = getattr(model.prior_of(name), "slab", None)
            if slab is not None:
                slabs[name] = slab
    return slabs
