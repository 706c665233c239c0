"""Posteriors in ArviZ: whatever the inference was, draws, log-likelihoods and predictions under ArviZ's names.

ArviZ's own converter for Pyro knows MCMC objects alone and leaves out the log-likelihood of most networks; ArviZ 1.x
has none. This one takes a :class:`~pyro_bnn.Posterior`.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_bnn.distributions import ImproperPriorError
from pyro_bnn.network import BayesianNet
from pyro_bnn.posterior import Posterior
from pyro_bnn.runtime.minibatches import TensorBatches

from . import arviz_versions
from .densities import Densities, Run, log_densities, variational_draws, vectorized

__all__ = ["require_same_data", "save_netcdf", "summary", "to_arviz"]

VARIATIONAL_DRAWS = 500


def to_arviz(
    posterior: Posterior,
    data: tuple[Tensor, ...],
    *,
    draws: int | None = None,
    prior_draws: int = 200,
    seed: int = 0,
) -> Any:
    r"""Return the posterior as ArviZ has it: an ``InferenceData`` of ArviZ 0.x, a ``DataTree`` of 1.x.

    Groups: ``posterior``, the sites and the weights that they make; ``sample_stats``, what the sampler noted, with
    ``lp``, :math:`\log p(y, w \mid x)`, where it noted none, and ``log_q`` of a guide, both in nats;
    ``log_likelihood``, of each example and unscaled, in nats; ``posterior_predictive``; ``prior`` and
    ``prior_predictive``; ``observed_data``. What cannot be there is not, and an attribute ``NAME_left_out`` says why.

    A guide's draws are independent: one chain, attribute ``sampler`` "svi". R-hat and effective numbers of draws say
    nothing of them, and :func:`summary` leaves them out.

    Args:
        posterior: of any inference.
        data: all training data, as the program is called with them: (x, y).
        draws: for each chain the last so many; of a guide so many, 500 by default.
        prior_draws: draws from the prior; 0 for none.
        seed: of a guide's draws, of the prior's, and of the predictions.

    Raises:
        ValueError: other data than the model or the posterior was made for; more draws than there are, or none.

    >>> from pyro_bnn.models import linear_regression
    >>> draws = {"weight": torch.randn(2, 50, 1), "bias": torch.randn(2, 50)}
    >>> posterior = Posterior.from_draws(linear_regression(3), draws)
    >>> data = to_arviz(posterior, (torch.ones(3, 1), torch.zeros(3)))
    >>> dict(data["log_likelihood"]["y"].sizes)
    {'chain': 2, 'draw': 50, 'example': 3}
    """
    require_same_data(posterior, data)
    data = tuple(part.to(posterior.source.device) for part in data)
    sites, statistics, reasons = _draws(posterior, draws, seed)
    chains, num = next(iter(sites.values())).shape[:2]
    pooled = {name: value.flatten(0, 1) for name, value in sites.items()}
    found = log_densities(posterior, pooled, data)
    _require_all_examples(found)
    statistics.setdefault("lp", found.log_joint.unflatten(0, (chains, num)))
    with posterior.source.isolated(seed):
        weights = posterior.source.weights_of(pooled)
    groups: dict[str, Mapping[str, Tensor]] = {
        "posterior": {
            name: value.unflatten(0, (chains, num)) for name, value in (pooled | weights).items()
        },
        "sample_stats": statistics,
        "observed_data": _observations(posterior, pooled, data, set(found.num_data)),
    }
    pointwise = {
        name: value
        for name, value in found.log_likelihood.items()
        if value.shape[1] == len(data[0])
    }
    groups["log_likelihood"] = {
        name: value.unflatten(0, (chains, num)) for name, value in pointwise.items()
    }
    if not pointwise:
        reasons["log_likelihood"] = (
            "the model has all examples as one event; it needs a plate over the data"
        )
        warnings.warn(f"to_arviz: no log_likelihood: {reasons['log_likelihood']}", stacklevel=2)
    if len(data) < 2:
        reasons |= dict.fromkeys(
            ("prior", "prior_predictive", "posterior_predictive"), "the model has no inputs x"
        )
    else:
        predicted = _predictions(posterior, pooled, data[:-1], set(found.num_data), seed)
        groups["posterior_predictive"] = {
            name: value.unflatten(0, (chains, num)) for name, value in predicted.items()
        }
        if prior_draws > 0:
            try:
                groups |= _prior(posterior, data[:-1], set(found.num_data), prior_draws, seed)
            except (ImproperPriorError, NotImplementedError) as error:
                reasons |= dict.fromkeys(
                    ("prior", "prior_predictive"), f"the prior is improper ({error})"
                )
    arrays = {
        group: {name: value.detach().cpu().numpy() for name, value in values.items()}
        for group, values in groups.items()
        if values
    }
    dims, coords = _axes(posterior, arrays, len(data[0]))
    return arviz_versions.to_inference_data(arrays, dims, coords, _attributes(posterior, reasons))


def summary(data: Any, **options: Any) -> Any:
    """Return ArviZ's table of :func:`to_arviz`'s result as a ``pandas.DataFrame``.

    Of independent draws from a guide it has no R-hat and no effective numbers of draws: both are about chains.

    Args:
        data: what :func:`to_arviz` returns.
        options: of ArviZ's ``summary``, such as ``var_names``.
    """
    independent = data["posterior"].attrs.get("sampler") == "svi"
    return arviz_versions.summary(data, kind="stats" if independent else "all", **options)


def save_netcdf(data: Any, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Write what :func:`to_arviz` returns as a NetCDF file and return its path.

    The file is there when it is whole: it is written beside its place and moved.

    Args:
        data: an ``InferenceData`` or a ``DataTree``.
        path: of the file.
        overwrite: whether a file that is there may be replaced.

    Raises:
        FileExistsError: there is such a file, and ``overwrite`` is not set.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path}: is there already; choose another name or pass overwrite=True"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        data.to_netcdf(str(beside), engine="h5netcdf")
        if overwrite:
            beside.replace(path)
        else:
            os.link(beside, path)  # unlike a rename it fails where a file has come in between
    finally:
        beside.unlink(missing_ok=True)
    return path


def require_same_data(posterior: Posterior, data: tuple[Tensor, ...]) -> None:
    """Refuse data that are not those that the posterior was made from, where it knows them.

    Raises:
        ValueError: a single tensor; other data.
    """
    if isinstance(data, Tensor) or not all(isinstance(part, Tensor) for part in data):
        raise ValueError("expected the training data as a tuple of tensors, data=(x, y)")
    known = posterior.facts.get("data", "")
    if len(known) == 64 and TensorBatches(tuple(data), None, 0).fingerprint() != known:
        raise ValueError(
            "the data are not those that the posterior was trained on (their SHA-256 differs); "
            "pass the training data, all of them, in the same order and of the same dtype"
        )


# --- pieces -----------------------------------------------------------------------------------------------------------


def _draws(
    posterior: Posterior, draws: int | None, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """Return the sites and the statistics of each draw, (chain, draw, ...), and what is left out for which reason."""
    if posterior.guide is not None:
        num = VARIATIONAL_DRAWS if draws is None else draws
        if num < 1:
            raise ValueError(f"to_arviz: expected at least one draw, got {num}")
        sites, log_q, reason = variational_draws(posterior, num, seed)
        statistics = {} if log_q is None else {"log_q": log_q[None]}
        return (
            {name: value[None] for name, value in sites.items()},
            statistics,
            {"log_q": reason} if reason else {},
        )
    there = next(iter(posterior.draws.values())).shape[1]
    num = there if draws is None else draws
    if not 1 <= num <= there:
        raise ValueError(f"to_arviz: expected draws from 1 to {there}, got {num}")
    last = slice(there - num, None)
    parts = (
        {name: value[:, last] for name, value in part.items()}
        for part in (posterior.draws, posterior.statistics)
    )
    return *parts, {}  # type: ignore[return-value]


def _require_all_examples(found: Densities) -> None:
    for name, expected in found.num_data.items():
        received = found.log_likelihood[name][0].numel()
        if expected not in (0, received):
            raise ValueError(
                f"to_arviz: the model stands for {expected} examples at site {name!r}, the data have {received}; "
                "pass all the training data"
            )


def _observations(
    posterior: Posterior, sites: Mapping[str, Tensor], data: tuple[Tensor, ...], names: set[str]
) -> dict[str, Tensor]:
    """Return what each observed site has seen."""
    if len(names) == 1 and len(data) == 2:
        return {next(iter(names)): data[1]}
    with (
        posterior.source.isolated(0),
        Run({name: value[0] for name, value in sites.items()}) as run,
    ):
        posterior.model(*data)
    return {name: site["value"] for name, site in run.observed().items()}


def _predictions(
    posterior: Posterior,
    sites: Mapping[str, Tensor],
    inputs: tuple[Tensor, ...],
    names: set[str],
    seed: int,
) -> dict[str, Tensor]:
    """Return one data set for each draw, (S, N, ...)."""

    def one(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with Run(values) as run:
            posterior.model(*inputs)
        return {name: run.sites[name]["value"] for name in names}

    with posterior.source.isolated(seed):
        return vectorized(one, sites, 64)


def _prior(
    posterior: Posterior, inputs: tuple[Tensor, ...], names: set[str], num: int, seed: int
) -> dict[str, dict[str, Tensor]]:
    """Return draws of the sites from the prior, and the data that follow from them, (1, num, ...)."""

    def one(_: Any = None) -> dict[str, Tensor]:
        with Run({}) as run:
            posterior.model(*inputs)
        return {name: site["value"] for name, site in run.sites.items() if not site["is_observed"]}

    with posterior.source.isolated(seed):
        drawn = vectorized(one, {"draw": torch.empty(num)}, 64)
        weights = posterior.source.weights_of(
            {name: value for name, value in drawn.items() if name not in names}
        )
    values = {name: value[None] for name, value in (drawn | weights).items()}
    return {
        "prior": {name: value for name, value in values.items() if name not in names},
        "prior_predictive": {name: value for name, value in values.items() if name in names},
    }


def _axes(
    posterior: Posterior, arrays: arviz_versions.Groups, num_data: int
) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
    """Return names for the axes behind chain and draw, and labels along them."""
    dims = {name: ["example"] for name in arrays.get("log_likelihood", {})}
    if isinstance(posterior.model, BayesianNet):
        layers = dict(posterior.model._network.named_modules())
        for name in posterior.model.names:
            owner, _, attribute = name.rpartition(".")
            layer = layers.get(owner)
            if attribute == "weight" and isinstance(layer, nn.Linear):
                dims[name] = [f"{name}.output", f"{name}.input"]
            elif attribute == "weight" and isinstance(layer, nn.Conv2d):
                dims[name] = [f"{name}.{axis}" for axis in ("output", "input", "row", "column")]
    return dims, {"example": np.arange(num_data)}


def _attributes(posterior: Posterior, reasons: Mapping[str, str]) -> dict[str, Any]:
    from importlib.metadata import version

    facts = posterior.facts
    method = "svi" if posterior.guide is not None else facts.get("method", "unknown")
    found: dict[str, Any] = {
        "inference_library": "pyro",
        "inference_library_version": version("pyro-ppl"),
        "modeling_interface": "pyro-bnn",
        "sampler": method,
        "facts": json.dumps(facts, default=str),
    }
    if "seconds" in facts:
        found["sampling_time"] = float(facts["seconds"])
    return found | {f"{name}_left_out": reason for name, reason in reasons.items() if reason}
