"""ArviZ as it is installed: 0.x with its ``InferenceData``, or 1.x with xarray's ``DataTree``.

Everything that differs between the two is here; the rest of the library knows groups of numpy arrays. ArviZ 1.x is
three packages, of which two, ``arviz_base`` and ``arviz_stats``, serve as well without the third.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["bulk_ess", "to_inference_data", "mean_ess", "pareto_smoothed", "rank_rhat", "summary"]

Groups = Mapping[str, Mapping[str, np.ndarray]]


def to_inference_data(
    groups: Groups,
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, np.ndarray],
    attrs: Mapping[str, Any],
) -> Any:
    """Return an ``InferenceData`` or a ``DataTree`` of these groups.

    Args:
        groups: for each group its variables, (chain, draw, ...); those of ``observed_data`` have neither axis.
        dims: names of the axes of a variable behind chain and draw.
        coords: labels along named axes.
        attrs: of the whole and of the group ``posterior``.
    """
    arrays = {group: dict(variables) for group, variables in groups.items()}
    named = {name: list(axes) for name, axes in dims.items()}
    if _new():
        inner = {"/": dict(attrs), "posterior": dict(attrs)}
        return _module("arviz_base").from_dict(arrays, dims=named, coords=dict(coords), attrs=inner)
    module: Any = _module("arviz")
    return module.from_dict(
        **arrays,
        dims=named,
        coords=dict(coords),
        attrs=dict(attrs),
        posterior_attrs=dict(attrs),
        save_warmup=False,
    )


def summary(data: Any, kind: str, **options: Any) -> Any:
    """Return ArviZ's own table of means, intervals and, for the kind ``"all"``, diagnostics."""
    return _module("arviz_stats" if _new() else "arviz").summary(data, kind=kind, **options)


def rank_rhat(values: np.ndarray) -> np.ndarray:
    """Return the rank-normalised split R-hat of each quantity, (k,), of values (chain, draw, k)."""
    return _each(values, lambda one: _array_statistics("rhat", one, "rank"))


def bulk_ess(values: np.ndarray) -> np.ndarray:
    """Return the bulk effective number of draws of each quantity, (k,), of values (chain, draw, k)."""
    return _each(values, lambda one: _array_statistics("ess", one, "bulk"))


def mean_ess(values: np.ndarray) -> np.ndarray:
    """Return the effective number of draws for the mean of each quantity, (k,), of values (chain, draw, k)."""
    return _each(values, lambda one: _array_statistics("ess", one, "mean"))


def pareto_smoothed(
    log_ratios: np.ndarray, relative_efficiency: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return Pareto-smoothed log-weights (k, S) and the shapes k-hat (k,) of log-ratios (k, S).

    Ratios that are all equal have no tail: their shape is 0. A tail of equal ratios cannot be fitted: infinity.
    """
    rows = [_smoothed(row, relative_efficiency) for row in np.asarray(log_ratios, dtype=float)]
    return np.stack([weights for weights, _ in rows]), np.array([shape for _, shape in rows])


# --- pieces -----------------------------------------------------------------------------------------------------------


def _smoothed(ratios: np.ndarray, relative_efficiency: float) -> tuple[np.ndarray, float]:
    if np.ptp(ratios) == 0:
        return np.zeros_like(ratios), 0.0
    with np.errstate(all="ignore"):  # the fit tries shapes whose likelihoods overflow
        if not _new():
            weights, shape = _module("arviz").psislw(ratios, relative_efficiency)
            return np.asarray(weights), float(shape)
        try:
            # what it calls ary are log-likelihoods, whose negatives are the log-ratios of leaving one out
            weights, shape = _module("arviz_stats.base").array_stats.psislw(
                -ratios, r_eff=relative_efficiency
            )
        except ValueError:
            return ratios, np.inf
        return np.asarray(weights), float(shape)


def _array_statistics(name: str, values: np.ndarray, method: str) -> float:
    if _new():
        return float(getattr(_module("arviz_stats.base").array_stats, name)(values, method=method))
    return float(getattr(_module("arviz"), name)(values, method=method))


def _each(values: np.ndarray, function: Any) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.array(
            [
                function(np.ascontiguousarray(values[..., index]))
                for index in range(values.shape[-1])
            ]
        )


def _new() -> bool:
    """Return whether the interface of ArviZ 1.x is there: that of 0.x knows no DataTree."""
    try:
        return not hasattr(_module("arviz"), "InferenceData") or not hasattr(
            _module("arviz"), "psislw"
        )
    except ImportError:
        return True


def _module(name: str) -> Any:
    """Import a part of ArviZ; what it announces of its future, once a day, is nothing to a user of this library."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)
