"""The latent sites of a program, and the programs whose sites cannot be sampled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol, cast

import torch
from pyro.distributions import ImproperUniform, TorchDistribution
from pyro.poutine.trace_struct import Trace
from torch import nn
from torch.distributions import Transform, biject_to

from pyro_bnn.distributions import ImproperPriorError, LogUniform
from pyro_bnn.network import BayesianNet
from pyro_bnn.runtime.program import Program, Site, is_subsample, sample_sites

__all__ = [
    "LatentSite",
    "continuous_sites",
    "discrete_sites",
    "is_identity",
    "require_proper_priors",
    "require_samplable",
]


class LatentSite(NamedTuple):
    """One latent site.

    Attributes:
        shape: Shape of its value.
        transform: The bijection from the real numbers to its support.
        unconstrained_shape: Shape of its value before the bijection.
        start: Where it begins in the vector of all sites.
        stop: Where it ends there.
    """

    shape: torch.Size
    transform: Transform
    unconstrained_shape: torch.Size
    start: int
    stop: int


def continuous_sites(trace: Trace) -> dict[str, LatentSite]:
    """Return the continuous latent sites in the order of the program."""
    sites: dict[str, LatentSite] = {}
    start = 0
    for name, site in _latent_sites(trace):
        if site["fn"].has_enumerate_support:
            continue
        transform = biject_to(site["fn"].support)
        unconstrained_shape = transform.inv(site["value"]).shape
        stop = start + unconstrained_shape.numel()
        shape = site["value"].shape
        sites[name] = LatentSite(shape, transform, unconstrained_shape, start, stop)
        start = stop
    return sites


def discrete_sites(trace: Trace) -> list[str]:
    """Return the names of the discrete latent sites."""
    return [name for name, site in _latent_sites(trace) if site["fn"].has_enumerate_support]


def require_proper_priors(trace: Trace, caller: str) -> None:
    """Raise an error if a latent site has an improper prior.

    Raises:
        ImproperPriorError: Naming the site; the message begins with ``caller``.
    """
    for name, site in _latent_sites(trace):
        prior = _base_distribution(site["fn"])
        if isinstance(prior, LogUniform | ImproperUniform):
            raise ImproperPriorError(
                f"{caller}: site {name!r} has the improper prior {type(prior).__name__}, so its "
                "posterior need not exist and cannot be sampled. Proper relatives: "
                "priors.Horseshoe(slab=...), priors.LearnedNormal (ARD, for fit only), a "
                "Student-t, or a truncated log-uniform"
            )


def require_samplable(model: Program, trace: Trace, caller: str) -> None:
    """Raise an error if the posterior of the latent sites is not the posterior of the model.

    Raises:
        ImproperPriorError: A latent site has an improper prior.
        ValueError: The model has free parameters, or a plate draws its own minibatch.
    """
    require_proper_priors(trace, caller)
    free = _free_parameters(model, trace)
    if free:
        raise ValueError(
            f"{caller}: the parameters {', '.join(free)} are free: a sampler would not change "
            "them, and its posterior would be that of another model than the posterior of fit. "
            'Give them a prior (BayesianNet(net, {"*": prior}), Gaussian(scale=distribution)), or '
            "hold them at their present values by model.freeze()"
        )
    for name, plate in _plates(trace):
        if plate.subsample_size not in (None, plate.size):
            raise ValueError(
                f"{caller}: the plate {name!r} draws its own minibatch of {plate.subsample_size}, "
                "but a sampler passes the examples to the program: "
                f"pyro.plate({name!r}, {plate.size}, subsample=range(len(x)))"
            )


def is_identity(transform: Transform) -> bool:
    """Return whether a bijection changes nothing, so that its Jacobian can be left out."""
    while hasattr(transform, "base_transform"):
        transform = transform.base_transform
    return bool(transform == torch.distributions.identity_transform)


class _Plate(Protocol):
    """What Pyro records as the distribution of a plate's minibatch."""

    size: int
    subsample_size: int | None


def _plates(trace: Trace) -> Iterator[tuple[str, _Plate]]:
    for name, node in trace.nodes.items():
        site = cast(Site, node)
        if site["type"] == "sample" and is_subsample(site):
            yield name, cast(_Plate, site["fn"])


def _latent_sites(trace: Trace) -> Iterator[tuple[str, Site]]:
    for name, site in sample_sites(trace):
        if not site["is_observed"] and not site["infer"].get("_deterministic"):
            yield name, site


def _free_parameters(model: Program, trace: Trace) -> list[str]:
    """Return the names of the parameters that fit would learn, in alphabetical order."""
    if isinstance(model, BayesianNet):
        return sorted(model.free_parameters())
    names = set(trace.param_nodes)
    if isinstance(model, nn.Module):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                names.add(name)
    return sorted(names)


def _base_distribution(distribution: TorchDistribution) -> TorchDistribution:
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return distribution
