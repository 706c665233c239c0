"""Posteriors in ArviZ: draws, log-likelihoods and predictions of any inference, by ArviZ's names.

ArviZ's own converter for Pyro accepts MCMC objects only and leaves out the log-likelihood of most
networks; ArviZ 1.x has none. This converter takes a :class:`~pyro_bnn.Posterior`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_bnn.distributions import ImproperPriorError
from pyro_bnn.network import BayesianNet
from pyro_bnn.posterior import Posterior
from pyro_bnn.posterior.vectorized import draw_repeatedly, for_each_draw
from pyro_bnn.runtime.minibatches import TensorBatches
from pyro_bnn.runtime.program import values_of
from pyro_bnn.runtime.tensor_dicts import map_tensors

from .arviz_versions import Array, Groups, summary_table, to_inference_data
from .densities import Densities, log_densities
from .guide_draws import draw_guide
from .recording import record

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["require_same_data", "summary", "to_arviz"]

VARIATIONAL_DRAWS = 500
DRAWS_PER_CHUNK = 64

Group = dict[str, Tensor]


def to_arviz(
    posterior: Posterior,
    data: tuple[Tensor, ...],
    *,
    draws: int | None = None,
    prior_draws: int = 200,
    seed: int = 0,
) -> Any:
    r"""Convert a posterior to the data structure of ArviZ.

    The result has these groups:

    - ``posterior``: the sites, and the weights that they make;
    - ``sample_stats``: the numbers that the sampler noted, with ``lp``,
      :math:`\log p(y, w \mid x)`, where it noted none; of a guide also ``log_q``; both in nats;
    - ``log_likelihood``: of each example and unscaled, in nats;
    - ``posterior_predictive``, ``prior`` and ``prior_predictive``;
    - ``observed_data``.

    For a group that is left out, such as the draws of an improper prior, an attribute
    ``NAME_left_out`` gives the reason.

    The draws of a guide are independent: they form one chain, with the attribute ``sampler`` "svi".
    R-hat and effective sample sizes do not apply to them, and :func:`summary` leaves them out.

    Args:
        posterior: the result of any inference.
        data: all training data, as arguments of the model: (x, y).
        draws: the last n draws of each chain, all by default; of a guide n draws, 500 by default.
        prior_draws: the number of draws from the prior; 0 for none.
        seed: the seed of a guide's draws, of the prior's, and of the predictions.

    Returns:
        An ``InferenceData`` of ArviZ 0.x or a ``DataTree`` of ArviZ 1.x.

    Raises:
        ValueError: if the data are not those of the model or of the posterior, or if ``draws`` is
            below one or above the number of available draws.

    Example:
        >>> from pyro_bnn.models import linear_regression
        >>> draws = {"weight": torch.randn(2, 50, 1), "bias": torch.randn(2, 50)}
        >>> posterior = Posterior.from_draws(linear_regression(3), draws)
        >>> data = to_arviz(posterior, (torch.ones(3, 1), torch.zeros(3)))
        >>> dict(data["log_likelihood"]["y"].sizes)
        {'chain': 2, 'draw': 50, 'example': 3}
    """
    require_same_data("to_arviz", posterior, data)
    data = tuple(tensor.to(posterior.source.device) for tensor in data)
    selected = _select_draws(posterior, draws, seed)
    densities = log_densities(posterior, selected.sites, data)
    _require_all_examples(densities)
    names = list(densities.num_data)
    groups = {
        "posterior": _posterior_group(posterior, selected, seed),
        "sample_stats": {"lp": selected.by_chain(densities.log_joint)} | selected.statistics,
        "observed_data": _observations(posterior, selected.sites, data, names),
    }
    reasons = dict(selected.reasons)

    pointwise = _pointwise_group(selected, densities, len(data[0]))
    if pointwise:
        groups["log_likelihood"] = pointwise
    else:
        reason = "the model has all examples as one event; it needs a plate over the data"
        reasons["log_likelihood"] = reason
        warnings.warn(f"to_arviz: no log_likelihood: {reason}", stacklevel=2)

    if len(data) < 2:
        for group in ("prior", "prior_predictive", "posterior_predictive"):
            reasons[group] = "the model has no inputs x"
    else:
        inputs = data[:-1]
        groups["posterior_predictive"] = _predictions(posterior, selected, inputs, names, seed)
        try:
            groups |= _prior_groups(posterior, inputs, names, prior_draws, seed)
        except (ImproperPriorError, NotImplementedError) as error:
            for group in ("prior", "prior_predictive"):
                reasons[group] = f"the prior is improper ({error})"

    arrays = _to_numpy(groups)
    dims = _axis_names(posterior, pointwise)
    coords = {"example": np.arange(len(data[0]))}
    return to_inference_data(arrays, dims, coords, _attributes(posterior, reasons))


def summary(data: Any, **options: Any) -> DataFrame:
    """Return ArviZ's table of the result of :func:`to_arviz`.

    The table of independent draws from a guide has no R-hat and no effective sample sizes, which
    are about chains.

    Args:
        data: the result of :func:`to_arviz`.
        options: options of ArviZ's ``summary``, such as ``var_names``.
    """
    independent = data["posterior"].attrs.get("sampler") == "svi"
    return summary_table(data, kind="stats" if independent else "all", **options)


def require_same_data(caller: str, posterior: Posterior, data: tuple[Tensor, ...]) -> None:
    """Raise unless data are those that the posterior was made from, where that is known.

    Raises:
        ValueError: if the data are a single tensor, or other data.
    """
    if isinstance(data, Tensor) or not all(isinstance(tensor, Tensor) for tensor in data):
        raise ValueError(f"{caller}: expected the training data as a tuple of tensors, data=(x, y)")
    expected = posterior.facts.get("data", "")
    is_digest = len(expected) == 64
    if is_digest and TensorBatches(tuple(data), None, 0).fingerprint() != expected:
        raise ValueError(
            f"{caller}: the data are not those that the posterior was trained on (their SHA-256 "
            "differs); pass all the training data, in the same order and of the same dtype"
        )


# --- draws ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _SelectedDraws:
    """The draws that are converted.

    Attributes:
        sites: draws of the latent sites, pooled over chains, (chain * draw, ...).
        chains: the number of chains.
        per_chain: the number of draws of each chain.
        statistics: numbers noted with each draw, (chain, draw).
        reasons: why something is left out, by name.
    """

    sites: Group
    chains: int
    per_chain: int
    statistics: Group
    reasons: dict[str, str] = field(default_factory=dict)

    def by_chain(self, values: Tensor) -> Tensor:
        """Return values of pooled draws as (chain, draw, ...)."""
        return torch.unflatten(values, 0, (self.chains, self.per_chain))


def _select_draws(posterior: Posterior, draws: int | None, seed: int) -> _SelectedDraws:
    stored = posterior.source.stored
    if stored is None:
        return _select_from_guide(posterior, draws, seed)
    num = stored.per_chain if draws is None else draws
    if not 1 <= num <= stored.per_chain:
        raise ValueError(f"to_arviz: expected draws from 1 to {stored.per_chain}, got {num}")
    statistics = map_tensors(lambda value: value[:, -num:], posterior.statistics)
    return _SelectedDraws(stored.take(stored.last(num)), stored.chains, num, statistics)


def _select_from_guide(posterior: Posterior, draws: int | None, seed: int) -> _SelectedDraws:
    num = VARIATIONAL_DRAWS if draws is None else draws
    if num < 1:
        raise ValueError(f"to_arviz: expected at least one draw, got {num}")
    drawn = draw_guide(posterior, num, seed)
    if drawn.log_q is None:
        return _SelectedDraws(drawn.sites, 1, num, {}, {"log_q": drawn.reason})
    return _SelectedDraws(drawn.sites, 1, num, {"log_q": drawn.log_q[None]})


def _require_all_examples(densities: Densities) -> None:
    for name, expected in densities.num_data.items():
        received = densities.log_likelihood[name][0].numel()
        if expected not in (0, received):
            raise ValueError(
                f"to_arviz: the model stands for {expected} examples at site {name!r}, the data "
                f"have {received}; pass all the training data"
            )


# --- groups ---------------------------------------------------------------------------------------


def _posterior_group(posterior: Posterior, selected: _SelectedDraws, seed: int) -> Group:
    with posterior.source.isolated(seed):
        weights = posterior.source.weights_of(selected.sites)
    return map_tensors(selected.by_chain, selected.sites | weights)


def _pointwise_group(selected: _SelectedDraws, densities: Densities, num_data: int) -> Group:
    """Return the log-likelihoods of the sites that have one for each example."""
    pointwise = {}
    for name, value in densities.log_likelihood.items():
        if value.shape[1] == num_data:
            pointwise[name] = selected.by_chain(value)
    return pointwise


def _observations(
    posterior: Posterior, sites: Group, data: tuple[Tensor, ...], names: list[str]
) -> Group:
    """Return the data of each observed site."""
    if len(names) == 1 and len(data) == 2:
        return {names[0]: data[1]}
    first = map_tensors(lambda value: value[0], sites)
    with posterior.source.isolated(0):
        run = record(posterior.model, first, data)
    return values_of(run.observed)


def _predictions(
    posterior: Posterior,
    selected: _SelectedDraws,
    inputs: tuple[Tensor, ...],
    names: list[str],
    seed: int,
) -> Group:
    """Return one data set for each draw, (chain, draw, N, ...)."""

    def data_of_draw(values: Mapping[str, Tensor]) -> Group:
        run = record(posterior.model, values, inputs)
        return {name: run.sites[name]["value"] for name in names}

    with posterior.source.isolated(seed):
        values = for_each_draw(data_of_draw, selected.sites, DRAWS_PER_CHUNK)
    return map_tensors(selected.by_chain, values)


def _prior_groups(
    posterior: Posterior, inputs: tuple[Tensor, ...], names: list[str], num: int, seed: int
) -> dict[str, Group]:
    """Return draws of the sites from the prior, and of the data given them, (1, num, ...)."""
    if num < 1:
        return {}

    def draw_prior() -> Group:
        return values_of(record(posterior.model, {}, inputs).latent)

    with posterior.source.isolated(seed):
        drawn = draw_repeatedly(draw_prior, num, DRAWS_PER_CHUNK)
        predictions = {name: drawn.pop(name)[None] for name in names}
        values = drawn | posterior.source.weights_of(drawn)
    prior = map_tensors(lambda value: value[None], values)
    return {"prior": prior, "prior_predictive": predictions}


def _to_numpy(groups: Mapping[str, Group]) -> Groups:
    arrays: dict[str, dict[str, Array]] = {}
    for group, values in groups.items():
        for name, value in values.items():
            arrays.setdefault(group, {})[name] = value.detach().cpu().numpy()
    return arrays


def _axis_names(posterior: Posterior, pointwise: Group) -> dict[str, list[str]]:
    """Return names for the axes behind chain and draw."""
    names = {name: ["example"] for name in pointwise}
    if not isinstance(posterior.model, BayesianNet):
        return names
    layers = dict(posterior.model._network.named_modules())
    for weight in posterior.model.names:
        owner, _, attribute = weight.rpartition(".")
        layer = layers.get(owner)
        axes: tuple[str, ...] = ()
        if attribute == "weight" and isinstance(layer, nn.Linear):
            axes = ("output", "input")
        elif attribute == "weight" and isinstance(layer, nn.Conv2d):
            axes = ("output", "input", "row", "column")
        if axes:
            names[weight] = [f"{weight}.{axis}" for axis in axes]
    return names


def _attributes(posterior: Posterior, reasons: Mapping[str, str]) -> dict[str, str | float]:
    facts = posterior.facts
    sampler = "svi"
    if posterior.guide is None:
        sampler = facts.get("method", "unknown")
    attributes: dict[str, str | float] = {
        "inference_library": "pyro",
        "inference_library_version": version("pyro-ppl"),
        "modeling_interface": "pyro-bnn",
        "sampler": sampler,
        "facts": json.dumps(facts, default=str),
    }
    if "seconds" in facts:
        attributes["sampling_time"] = float(facts["seconds"])
    for name, reason in reasons.items():
        attributes[f"{name}_left_out"] = reason
    return attributes
