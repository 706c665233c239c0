"""Check that posteriors are of one model, by what their models compute."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_bnn.network import BayesianNet
from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.tensor_dicts import concatenate, map_tensors

from .densities import Densities, log_densities
from .guide_draws import draw_guide

__all__ = ["require_same_model"]

EXAMPLES = 32
DRAWS = 2


def require_same_model(posteriors: Mapping[str, Posterior], x: Tensor, y: Tensor) -> None:
    """Raise unless the same values at all sites have the same log-densities in every model.

    Two draws of each posterior are tried on up to 32 examples. A parameter that one inference has
    learned and another has not, such as a bias, makes another model too.

    Args:
        posteriors: by name.
        x: inputs.
        y: data.

    Raises:
        ValueError: naming two posteriors and the difference.
    """
    reference, *others = posteriors
    draws = {}
    for name, posterior in posteriors.items():
        draws[name] = map_tensors(Tensor.cpu, _few_draws(posterior))
    for name in others:
        _require_same_sites(reference, name, draws[reference], draws[name])
    joined = concatenate(list(draws.values()))
    expected = _evaluate(posteriors[reference], joined, x, y)
    for name in others:
        _require_same_densities(
            reference, name, expected, _evaluate(posteriors[name], joined, x, y)
        )


def _few_draws(posterior: Posterior) -> dict[str, Tensor]:
    stored = posterior.source.stored
    if stored is None:
        return draw_guide(posterior, DRAWS, seed=0).sites
    return stored.take(torch.arange(len(stored))[-DRAWS:])


def _require_same_sites(
    reference: str, name: str, expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]
) -> None:
    shapes = [_shapes(expected), _shapes(actual)]
    for site in sorted(shapes[0].keys() | shapes[1].keys()):
        a, b = shapes[0].get(site, "missing"), shapes[1].get(site, "missing")
        if a != b:
            raise ValueError(
                f"compare: {reference} and {name} are posteriors of different models: "
                f"site {site!r} is {a} in the one and {b} in the other"
            )


def _shapes(draws: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {site: tuple(value.shape[1:]) for site, value in draws.items()}


def _evaluate(posterior: Posterior, sites: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Densities:
    examples = min(EXAMPLES, len(x))
    if isinstance(posterior.model, BayesianNet):
        # a network accepts no more examples than its data set has
        examples = min(examples, posterior.model.num_data)
    rows = torch.linspace(0, len(x) - 1, examples).long().to(x.device)
    device = posterior.source.device
    moved = map_tensors(lambda value: value.to(device), sites)
    return log_densities(posterior, moved, (x[rows].to(device), y[rows].to(device)))


def _require_same_densities(
    reference: str, name: str, expected: Densities, actual: Densities
) -> None:
    if expected.num_data != actual.num_data:
        raise ValueError(
            f"compare: {reference} and {name} are posteriors of different models: their plates "
            f"stand for {expected.num_data} and {actual.num_data} examples"
        )
    pairs = {
        "log-likelihood of the same examples": (expected.all_terms(), actual.all_terms()),
        "log-joint density": (expected.log_joint[:, None], actual.log_joint[:, None]),
    }
    for quantity, (a, b) in pairs.items():
        different = ~torch.isclose(a.cpu(), b.cpu(), rtol=1e-4, atol=1e-4, equal_nan=True)
        if bool(different.any()):
            row, column = different.nonzero()[0].tolist()
            raise ValueError(
                f"compare: {reference} and {name} are posteriors of different models: for the "
                f"same weights the {quantity} is {float(a[row, column]):.6g} and "
                f"{float(b[row, column]):.6g} nats. The usual reason is that each has learned "
                "parameters of its own: give them a prior, {'*': prior}, or hold them fixed, "
                "model.freeze()"
            )
