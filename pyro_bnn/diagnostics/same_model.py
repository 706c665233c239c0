"""Whether two posteriors are of one model: judged by what the models compute."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_bnn.network import BayesianNet
from pyro_bnn.posterior import Posterior

from .densities import Densities, log_densities, variational_draws

__all__ = ["require_same_model"]

EXAMPLES, DRAWS = 32, 2


def require_same_model(posteriors: Mapping[str, Posterior], x: Tensor, y: Tensor) -> None:
    """Refuse posteriors of different models: the same values at all sites must have the same log-densities.

    Two draws of each posterior and up to 32 examples are tried. A parameter that one inference learned and another has
    not, a bias say, is a different model too.

    Args:
        posteriors: by name.
        x: inputs.
        y: data.

    Raises:
        ValueError: naming two posteriors and what differs.
    """
    drawn = {name: _few(posterior) for name, posterior in posteriors.items()}
    first, *others = posteriors
    shapes = {
        name: {site: tuple(value.shape[1:]) for site, value in sites.items()}
        for name, sites in drawn.items()
    }
    for name in others:
        differing = sorted(
            site
            for site in shapes[first].keys() | shapes[name].keys()
            if shapes[first].get(site) != shapes[name].get(site)
        )
        if differing:
            a, b = (shapes[one].get(differing[0], "not there") for one in (first, name))
            raise ValueError(
                f"compare: {first} and {name} are posteriors of different models: "
                f"site {differing[0]!r} is {a} in the one and {b} in the other"
            )
    common = {
        site: torch.cat([sites[site].cpu() for sites in drawn.values()]) for site in drawn[first]
    }
    found = {name: _evaluate(posterior, common, x, y) for name, posterior in posteriors.items()}
    for name in others:
        _require_same(first, name, found[first], found[name])


def _few(posterior: Posterior) -> dict[str, Tensor]:
    if posterior.guide is not None:
        return variational_draws(posterior, DRAWS, 0)[0]
    return {name: value.flatten(0, 1)[-DRAWS:] for name, value in posterior.draws.items()}


def _evaluate(posterior: Posterior, sites: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Densities:
    # a network takes no more examples than there are in its data set
    most = min(
        EXAMPLES,
        len(x),
        posterior.model.num_data if isinstance(posterior.model, BayesianNet) else len(x),
    )
    rows = torch.linspace(0, len(x) - 1, most).long().to(x.device)
    here = posterior.source.device
    return log_densities(
        posterior,
        {name: value.to(here) for name, value in sites.items()},
        (x[rows].to(here), y[rows].to(here)),
    )


def _require_same(first: str, second: str, a: Densities, b: Densities) -> None:
    if a.num_data != b.num_data:
        raise ValueError(
            f"compare: {first} and {second} are posteriors of different models: their plates stand for "
            f"{a.num_data} and {b.num_data} examples"
        )
    likelihoods = [
        torch.cat([value.flatten(1) for value in part.log_likelihood.values()], 1).cpu()
        for part in (a, b)
    ]
    joints = [part.log_joint[:, None].cpu() for part in (a, b)]
    for what, (one, other) in {
        "likelihood of the same examples": likelihoods,
        "joint density": joints,
    }.items():
        same = torch.isclose(one, other, rtol=1e-4, atol=1e-4, equal_nan=True)
        if not bool(same.all()):
            row, column = (int(index) for index in (~same).nonzero()[0])
            raise ValueError(
                f"compare: {first} and {second} are posteriors of different models: for the same weights the log-"
                f"{what} is {float(one[row, column]):.6g} and {float(other[row, column]):.6g} nats; parameters that "
                "each has learned for itself are the usual reason: give them a prior, {'*': prior}, or model.freeze()"
            )
