r"""Simulation-based calibration: whether an inference recovers what was drawn from the prior.

Draw :math:`\theta_0 \sim p(\theta)` and :math:`y \sim p(y \mid \theta_0, x)`, and run the inference
on (x, y). If it returns the posterior, :math:`\theta_0` is one more draw from it, and its rank
among L independent draws is uniform on 0 ... L.

An inference that returns the prior passes this test, too, for every quantity that the data do not
enter. Therefore the log-likelihood of the data, :math:`\log p(y \mid x, \theta_0)` among
:math:`\log p(y \mid x, \theta_l)`, is ranked as well: its rank is uniform for the posterior only.

Source: Talts et al. (2018), https://arxiv.org/abs/1804.06788, algorithm 2; Yao et al. (2018),
https://arxiv.org/abs/1802.02538, section 3.2, for the variational form; Säilynoja, Bürkner &
Vehtari (2022), https://arxiv.org/abs/2103.10522, for the band; Modrák et al. (2023),
https://arxiv.org/abs/2211.02383, for the log-likelihood.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_bnn.distributions import ImproperPriorError
from pyro_bnn.network import BayesianNet
from pyro_bnn.posterior import Posterior
from pyro_bnn.posterior.components import function_values
from pyro_bnn.posterior.draw_source import DrawSource
from pyro_bnn.runtime.copying import deepcopy_together
from pyro_bnn.runtime.program import Program, values_of
from pyro_bnn.runtime.tensor_dicts import map_tensors

from .densities import log_densities
from .rank_statistics import LIKELIHOOD, Simulation
from .recording import record

__all__ = ["Inference", "Simulation", "simulate"]

Inference = Callable[[Any, tuple[Tensor, Tensor], int], Posterior]
"""Called with a model, data (x, y) and a seed."""


def simulate(
    model: Program,
    inference: Inference,
    x: Tensor,
    num_simulations: int = 100,
    seed: int = 0,
    *,
    sites: Iterable[str] | None = None,
    functions_at: Tensor | None = None,
    draws: int = 63,
    progress: bool = True,
) -> Simulation:
    """Run simulation-based calibration of any inference on any model with a proper prior.

    Args:
        model: a program, called as ``model(x)`` and ``model(x, y)``.
        inference: called as ``inference(model, (x, y), seed)``; returns a
            :class:`~pyro_bnn.Posterior`.
        x: inputs of the simulated data sets, (n, ...).
        num_simulations: the number of data sets; each needs one inference.
        seed: the seed of everything; each simulation has seeds of its own.
        sites: the latent sites whose elements are ranked: all by default, none for ``()``. The
            likelihood is always ranked.
        functions_at: inputs x*, (m, ...), whose f(x*) is ranked too, because the weights of
            networks are not identifiable.
        draws: the number L of draws of each posterior among which the true value is ranked. Those
            of a sampler are taken at equal distances over all chains. L + 1 should have small
            divisors.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if the prior is improper and cannot be simulated, if parameters have no prior,
            if the inference returns fewer than L draws, or if a site does not exist.

    Example:
        >>> from pyro_bnn.models import linear_regression
        >>> def prior(model, data, seed):  # the prior in place of the posterior
        ...     torch.manual_seed(seed)
        ...     draws = {"weight": torch.randn(1, 99, 1), "bias": torch.randn(1, 99)}
        ...     return Posterior.from_draws(model, draws)
        >>> x = torch.randn(8, 1)
        >>> simulation = simulate(linear_regression(8), prior, x, 20, draws=9, progress=False)
        >>> simulation.ranks["bias"].shape
        torch.Size([20])
    """
    site_names = None if sites is None else list(sites)
    _require_proper(model, num_simulations, draws)
    program = DrawSource(deepcopy_together(model)[0])
    ranks: dict[str, list[Tensor]] = {}
    correlations: list[Tensor] = []
    first_seed = seed * 1_000_003
    for index in tqdm(range(num_simulations), desc="simulations", disable=not progress):
        simulated = _simulate_data(program, x, first_seed + 2 * index)
        data = (x, simulated.y)
        try:
            posterior = inference(model, data, first_seed + 2 * index + 1)
        except Exception as error:
            error.add_note(f"simulate: in simulation {index} of {num_simulations}, seed {seed}")
            raise
        generator = torch.Generator().manual_seed(first_seed + index)
        names = list(simulated.latent) if site_names is None else site_names
        for quantity in _quantities(posterior, simulated, data, names, functions_at, draws):
            ranks.setdefault(quantity.name, []).append(_rank(quantity, generator))
            correlations.append(_neighbor_correlation(quantity.draws))
    correlation = float(torch.cat(correlations).nanmean())
    return Simulation(_by_element(ranks), draws, correlation)


# --- pieces ---------------------------------------------------------------------------------------


class _SimulatedData(NamedTuple):
    """Values of the latent sites drawn from the prior, and data drawn given them."""

    latent: dict[str, Tensor]
    y: Tensor


class _Quantity(NamedTuple):
    """A quantity that is ranked: its true value (...) and L draws of it (L, ...)."""

    name: str
    truth: Tensor
    draws: Tensor


def _require_proper(model: Program, num_simulations: int, draws: int) -> None:
    if num_simulations < 10 or draws < 1:
        raise ValueError(
            "simulate: expected at least 10 simulations and 1 draw, "
            f"got {num_simulations} and {draws}"
        )
    if isinstance(model, BayesianNet) and model.free_parameters():
        raise ValueError(
            f"simulate: {', '.join(model.free_parameters())} have no prior to be drawn from; give "
            "them one, {'*': prior}, or hold them fixed, model.freeze()"
        )


def _simulate_data(program: DrawSource, x: Tensor, seed: int) -> _SimulatedData:
    try:
        with program.isolated(seed):
            run = record(program.model, {}, (x,))
    except (ImproperPriorError, NotImplementedError) as error:
        raise ValueError(f"simulate: the prior cannot be drawn from: {error}") from error
    values = values_of(run.latent)
    if len(values) < 2:
        raise ValueError(
            "simulate: expected latent sites and data, unobserved, in model(x); "
            f"got {', '.join(values)}"
        )
    _, y = values.popitem()  # the last statement draws the data
    return _SimulatedData(values, y)


def _quantities(
    posterior: Posterior,
    simulated: _SimulatedData,
    data: tuple[Tensor, Tensor],
    sites: list[str],
    functions_at: Tensor | None,
    num: int,
) -> list[_Quantity]:
    """Return the quantities of one simulation: sites, the likelihood, and function values."""
    truth = simulated.latent
    for name in sites:
        if name not in truth:
            raise ValueError(
                f"simulate: the model has no site {name!r}; its sites are {', '.join(truth)}"
            )
    stored = posterior.source.stored
    if stored is None:
        index = torch.arange(num)
        drawn = posterior.sample(num)
    else:
        if len(stored) < num:
            raise ValueError(
                f"simulate: expected posteriors of at least {num} draws, got one of "
                f"{len(stored)}; choose a smaller number with draws="
            )
        index = stored.evenly_spaced(num)
        drawn = stored.take(index)
    quantities = [_Quantity(name, truth[name], drawn[name]) for name in sites]
    quantities.append(_likelihood(posterior, truth, drawn, data))
    if functions_at is not None:
        values = posterior.functions(functions_at, num if stored is None else None)
        pooled = function_values(values).flatten(0, 1)[index]
        true_value = _true_function(posterior, truth, functions_at)
        quantities.append(_Quantity("f(x)", true_value, pooled))
    return quantities


def _likelihood(
    posterior: Posterior,
    truth: dict[str, Tensor],
    drawn: dict[str, Tensor],
    data: tuple[Tensor, Tensor],
) -> _Quantity:
    """Return the log-likelihood of the data under the draws and under the true values."""
    stacked = {}
    for name, value in truth.items():
        if name in drawn:
            stacked[name] = torch.cat([drawn[name], value[None].to(drawn[name])])
    log_likelihood = log_densities(posterior, stacked, data).all_terms().sum(1)
    return _Quantity(LIKELIHOOD, log_likelihood[-1], log_likelihood[:-1])


def _true_function(posterior: Posterior, truth: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return f(x) of the true weights, (m, ...)."""
    single = map_tensors(lambda value: value[None, None], truth)
    values = Posterior.from_draws(posterior.model, single).functions(x)
    return function_values(values)[0, 0]


def _rank(quantity: _Quantity, generator: torch.Generator) -> Tensor:
    """Return the rank of each element among its draws, ties being broken at random."""
    below = (quantity.draws < quantity.truth).sum(0)
    equal = (quantity.draws == quantity.truth).sum(0)
    uniform = torch.rand(below.shape, generator=generator)
    return (below + (uniform * (equal + 1)).long()).cpu()


def _neighbor_correlation(draws: Tensor) -> Tensor:
    """Return the correlation of neighboring draws of each element.

    It is unbiased for independent draws, to order 1/L.
    """
    values = draws.double().reshape(len(draws), -1)
    centered = values - values.mean(0)
    return (centered[1:] * centered[:-1]).sum(0) / centered.square().sum(0) + 1 / len(draws)


def _by_element(ranks: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """Return the ranks of each scalar element, (simulations,), by names like ``weight[0,3]``."""
    elements = {}
    for name, simulations in ranks.items():
        stacked = torch.stack(simulations)
        if stacked.dim() == 1:
            elements[name] = stacked
            continue
        for index in np.ndindex(*stacked.shape[1:]):
            elements[f"{name}[{','.join(map(str, index))}]"] = stacked[:, *index]
    return elements
