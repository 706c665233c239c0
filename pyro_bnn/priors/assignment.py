"""Which parameters of a network become uncertain, and which prior each of them gets."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from .sites import Prior, PriorMapping

__all__ = ["WeightSite", "assign_priors", "group_dim", "is_weight", "owner_of"]

_NORMALIZATION = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class WeightSite:
    """One uncertain weight of a network.

    Attributes:
        name: The name of the parameter, which is also the name of its site.
        aliases: All names of the parameter in the network, ``name`` first. A tied weight has
            several.
        group_dim: The axis whose indices a group prior keeps or drops together.
        prior: The prior of the weight.
    """

    name: str
    aliases: tuple[str, ...]
    group_dim: int | None
    prior: Prior


def assign_priors(net: nn.Module, prior: Prior | PriorMapping) -> list[WeightSite]:
    """Return every parameter that becomes uncertain, in the order of ``net.named_parameters()``.

    Args:
        net: The network.
        prior: One prior for all weights, or a mapping as :class:`~pyro_bnn.BayesianNet` takes it.

    Raises:
        ValueError: If a key of a mapping matches no parameter, or no parameter gets a prior.
        TypeError: If a prior is not a function of a name, a shape and a group axis.
    """
    aliases = _aliases_of_parameters(net)
    if isinstance(prior, Mapping):
        _require_matches(prior, net, aliases)
    sites = []
    for name, names in aliases.items():
        if isinstance(prior, Mapping):
            chosen = _first_match(prior, net, names)
        else:
            chosen = prior if is_weight(*owner_of(net, name)) else None
        if chosen is not None:
            _require_prior(chosen)
            sites.append(WeightSite(name, names, group_dim(*owner_of(net, name)), chosen))
    if not sites:
        raise ValueError(
            "BayesianNet: expected at least one weight with a prior, but no parameter of the "
            f"network gets one; its parameters are {_listed(aliases)}"
        )
    return sites


def owner_of(net: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the submodule that holds a parameter of a dotted name, and the attribute there."""
    path, _, attribute = name.rpartition(".")
    return net.get_submodule(path), attribute


def is_weight(layer: nn.Module, attribute: str) -> bool:
    """Return whether a parameter is a weight: at least two axes, no bias, no normalization."""
    if isinstance(layer, _NORMALIZATION) or "bias" in attribute:
        return False
    return bool(getattr(layer, attribute).dim() >= 2)


def group_dim(layer: nn.Module, attribute: str) -> int | None:
    """Return the axis of a parameter that group priors act on.

    This is the axis of the input units of a dense layer, of the output channels of a convolution,
    and of the entries of an embedding; ``None`` for a vector or a number.
    """
    if getattr(layer, attribute).dim() < 2:
        return None
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):  # its kernels are (in, out, ...)
        return 1
    if isinstance(layer, nn.modules.conv._ConvNd | nn.Embedding):
        return 0
    return 1


def _aliases_of_parameters(net: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return all names of each parameter, by the first of them.

    A tied weight has several names, one for each attribute that holds it. A module that is
    registered twice has two names as well, but its attributes are the same, so they count once.
    """
    names_of: dict[int, list[str]] = {}
    attributes: set[tuple[int, str]] = set()
    for name, parameter in net.named_parameters(remove_duplicate=False):
        owner, attribute = owner_of(net, name)
        if (id(owner), attribute) in attributes:
            continue
        attributes.add((id(owner), attribute))
        names_of.setdefault(id(parameter), []).append(name)
    aliases = {}
    for names in names_of.values():
        aliases[names[0]] = tuple(names)
    return aliases


def _first_match(prior: PriorMapping, net: nn.Module, names: tuple[str, ...]) -> Prior | None:
    """Return the prior under the first key that matches one of the names of a parameter."""
    for key, chosen in prior.items():
        if _matches_any(key, net, names):
            return chosen
    return None


def _matches_any(key: str | type[nn.Module], net: nn.Module, names: tuple[str, ...]) -> bool:
    return any(_matches(key, net, name) for name in names)


def _matches(key: str | type[nn.Module], net: nn.Module, name: str) -> bool:
    """Return whether a key stands for a parameter: a pattern by name, a layer type by its owner."""
    if isinstance(key, str):
        return fnmatch.fnmatchcase(name, key)
    owner, attribute = owner_of(net, name)
    return isinstance(owner, key) and is_weight(owner, attribute)


def _require_matches(
    prior: PriorMapping, net: nn.Module, aliases: Mapping[str, tuple[str, ...]]
) -> None:
    """Refuse a key that matches no parameter: it is most often misspelled."""
    for key in prior:
        if any(_matches_any(key, net, names) for names in aliases.values()):
            continue
        similar = difflib.get_close_matches(str(key), aliases, n=1)
        hint = f"; did you mean {similar[0]!r}?" if similar else ""
        raise ValueError(
            f"BayesianNet: the key {key!r} of prior matches no parameter; "
            f"the network has {_listed(aliases)}{hint}"
        )


def _require_prior(prior: Prior) -> None:
    """Refuse a distribution, which is callable and would return a draw, and a class."""
    if isinstance(prior, torch.distributions.Distribution | type) or not callable(prior):
        raise TypeError(
            f"BayesianNet: expected a prior such as priors.Normal(1.0), got {prior!r}; "
            "priors.Elementwise(distribution) makes a prior of a distribution over one weight"
        )


def _listed(names: Mapping[str, tuple[str, ...]]) -> str:
    return ", ".join(names) or "none"
