"""The installed version of ArviZ: 0.x with ``InferenceData``, or 1.x with xarray's ``DataTree``.

All differences between the two are handled here; the rest of the library passes groups of numpy
arrays. ArviZ 1.x consists of three packages, of which two, ``arviz_base`` and ``arviz_stats``, are
used and are enough.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "Array",
    "Groups",
    "SmoothedWeights",
    "bulk_ess",
    "mean_ess",
    "pareto_smoothed",
    "rank_rhat",
    "summary_table",
    "to_inference_data",
]

Array = NDArray[Any]
Groups = Mapping[str, Mapping[str, Array]]


class SmoothedWeights(NamedTuple):
    """Pareto-smoothed log-weights (k, S), and the shape k-hat of each row (k,)."""

    log_weights: Array
    shapes: Array


def to_inference_data(
    groups: Groups,
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Array],
    attrs: Mapping[str, str | float],
) -> Any:
    """Return an ``InferenceData`` or a ``DataTree`` of these groups.

    Args:
        groups: for each group its variables, (chain, draw, ...); those of ``observed_data`` have
            neither of the two axes.
        dims: the names of the axes of a variable behind chain and draw.
        coords: labels along named axes.
        attrs: attributes of the result and of its group ``posterior``.
    """
    arrays = {group: dict(variables) for group, variables in groups.items()}
    names = {variable: list(axes) for variable, axes in dims.items()}
    if is_version_1():
        attributes = {"/": dict(attrs), "posterior": dict(attrs)}
        convert = _import_quietly("arviz_base").from_dict
        return convert(arrays, dims=names, coords=dict(coords), attrs=attributes)
    return _import_quietly("arviz").from_dict(
        **arrays,
        dims=names,
        coords=dict(coords),
        attrs=dict(attrs),
        posterior_attrs=dict(attrs),
        save_warmup=False,
    )


def summary_table(data: Any, kind: str, **options: Any) -> DataFrame:
    """Return ArviZ's table of means and intervals and, for the kind ``"all"``, diagnostics."""
    module = _import_quietly("arviz_stats" if is_version_1() else "arviz")
    table: DataFrame = module.summary(data, kind=kind, **options)
    return table


def rank_rhat(values: Array) -> Array:
    """Return the rank-normalized split R-hat (k,) of k quantities, values (chain, draw, k)."""
    return _for_each_quantity("rhat", values, "rank")


def bulk_ess(values: Array) -> Array:
    """Return the bulk effective sample size (k,) of k quantities, values (chain, draw, k)."""
    return _for_each_quantity("ess", values, "bulk")


def mean_ess(values: Array) -> Array:
    """Return the effective sample size for means (k,) of k quantities, values (chain, draw, k)."""
    return _for_each_quantity("ess", values, "mean")


def pareto_smoothed(log_ratios: Array, relative_efficiency: float = 1.0) -> SmoothedWeights:
    """Return Pareto-smoothed log-weights and the shapes k-hat of log-ratios (k, S).

    Ratios that are all equal have no tail: their shape is 0. A tail of equal ratios cannot be
    fitted: its shape is infinite.
    """
    smooth = _smooth_with_version_1 if is_version_1() else _smooth_with_version_0
    log_weights, shapes = [], []
    for row in np.asarray(log_ratios, dtype=float):
        if np.ptp(row) == 0:
            weights, shape = np.zeros_like(row), 0.0
        else:
            with np.errstate(all="ignore"):  # the fit tries shapes whose likelihoods overflow
                weights, shape = smooth(row, relative_efficiency)
        log_weights.append(weights)
        shapes.append(shape)
    return SmoothedWeights(np.stack(log_weights), np.array(shapes))


# --- pieces ---------------------------------------------------------------------------------------


def _smooth_with_version_0(row: Array, relative_efficiency: float) -> tuple[Array, float]:
    weights, shape = _statistics().psislw(row, relative_efficiency)
    return np.asarray(weights), float(shape)


def _smooth_with_version_1(row: Array, relative_efficiency: float) -> tuple[Array, float]:
    try:
        # it expects log-likelihoods; the log-ratios of leaving one out are their negatives
        weights, shape = _statistics().psislw(-row, r_eff=relative_efficiency)
    except ValueError:
        return row, np.inf
    return np.asarray(weights), float(shape)


def _for_each_quantity(statistic: str, values: Array, method: str) -> Array:
    """Return a statistic of ArviZ for each quantity along the last axis."""
    function = getattr(_statistics(), statistic)
    results = []
    with np.errstate(all="ignore"):
        for quantity in np.moveaxis(values, -1, 0):
            results.append(float(function(np.ascontiguousarray(quantity), method=method)))
    return np.array(results)


def _statistics() -> Any:
    """Return the object that has ArviZ's statistics of arrays."""
    if is_version_1():
        return _import_quietly("arviz_stats.base").array_stats
    return _import_quietly("arviz")


def is_version_1() -> bool:
    """Return whether ArviZ 1.x is installed, as a whole or in parts, rather than 0.x."""
    try:
        version = importlib.metadata.version("arviz")
    except importlib.metadata.PackageNotFoundError:
        return True
    return not version.startswith("0.")


def _import_quietly(name: str) -> ModuleType:
    """Import a part of ArviZ without the announcements of future changes that it prints."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)
