"""Posterior: the common result of every inference.

A posterior draws networks, predicts with them, knows the moments of its weights, and is saved and
loaded.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_bnn import priors
from pyro_bnn.network import BayesianNet
from pyro_bnn.runtime.copying import deepcopy_together
from pyro_bnn.runtime.program import Program, sample_sites
from pyro_bnn.runtime.tensor_dicts import concatenate, map_tensors
from pyro_bnn.runtime.tensor_files import restore_tensors, save_tensors
from pyro_bnn.variational.elbo import ELBOModule
from pyro_bnn.variational.guide import GuideWithMoments, Moments
from pyro_bnn.variational.reparameterization import Reparameterized

from .components import Components
from .draw_source import DrawSource
from .prediction import Prediction, summarize
from .storage import named_tensors, read_posterior
from .stored_draws import StoredDraws, require_rectangular

__all__ = ["Posterior"]

GUIDE_DRAWS = 100
GUIDE_DRAWS_FOR_MOMENTS = 200


class Posterior:
    """A distribution over the weights of a model: a trained guide, or draws from a sampler.

    A posterior owns copies of the model, with every parameter that was learned, and of the guide:
    further training changes no earlier posterior. Methods that draw take a seed and leave the
    global random state unchanged.

    Attributes:
        model: the model, in evaluation mode.
        guide: the guide, or ``None`` for draws.
        source: runs model and guide in isolation from the rest of the session.
        statistics: numbers that the sampler noted with each draw, (chain, draw): ``lp`` (the
            log-density in nats), ``acceptance_rate``, ``diverging``, ``step_size`` and others;
            empty for a guide.
        facts: how the posterior was made, as far as it is known: ``method``, ``seconds``,
            ``gradients`` (evaluations of the gradient, over all chains), ``data`` (a SHA-256 of
            the training data), ``settings``, ``warnings``.
    """

    model: Any
    guide: Any

    def __init__(
        self,
        source: DrawSource,
        statistics: Mapping[str, Tensor] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.source = source
        self.model = source.model
        self.guide = source.guide
        self.statistics = dict(statistics or {})
        self.facts = dict(facts or {})

    @classmethod
    def from_guide(cls, model: Program, guide: Program, *example: Tensor) -> Self:
        """Return the posterior that a guide describes, made of copies.

        Args:
            model: the model that the guide was built for.
            guide: a module or a function.
            example: the arguments of the guide, if it needs any.
        """
        model, guide = deepcopy_together(model, _guide_inside(guide))
        source = DrawSource(model, guide, example=copy.deepcopy(example))
        if not isinstance(guide, nn.Module):
            source.copy_parameters_from_store()
        return cls(source)

    @classmethod
    def from_draws(
        cls,
        model: Program,
        draws: Mapping[str, Tensor],
        statistics: Mapping[str, Tensor] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return the posterior that consists of draws.

        Args:
            model: the model that was sampled.
            draws: for each latent site a tensor (chain, draw, ...).
            statistics: numbers noted with each draw, (chain, draw).
            facts: how the draws were made.

        Raises:
            ValueError: if a site of the network is missing or has another shape, if the tensors
                disagree on the numbers of chains and draws or have none, or if they contain NaN
                or infinity.
        """
        require_rectangular(draws)
        if isinstance(model, BayesianNet):
            _require_sites(model, draws)
        copies = map_tensors(lambda value: value.detach().clone(), draws)
        source = DrawSource(copy.deepcopy(model), stored=StoredDraws(copies))
        return cls(source, statistics, facts)

    @classmethod
    def from_loss(
        cls, loss: ELBOModule, device: torch.device, example: tuple[Tensor, ...] = ()
    ) -> Self:
        """Return the posterior of a trained loss, whose model and guide it takes over.

        Pass a copy of the loss where it is still needed.
        """
        loss = loss.to(device)
        guide = _guide_inside(loss.guide)
        arguments = tuple(argument.to(device) for argument in example)
        return cls(DrawSource(loss.model, guide, None, loss.param_store, arguments))

    # --- draws ------------------------------------------------------------------------------------

    @property
    def draws(self) -> dict[str, Tensor]:
        """Draws of every latent site, (chain, draw, ...); of a guide, one chain of 100 draws."""
        if self.source.stored is not None:
            return self.source.stored.sites
        with self.source.isolated(0):
            sites = self.source.draw_guide(GUIDE_DRAWS)
        return map_tensors(lambda value: value[None], sites)

    def sample(self, num: int, seed: int = 0) -> dict[str, Tensor]:
        """Return draws of every weight and of the sites it is made of, (num, ...).

        Args:
            num: the number of draws. A sampler's draws are pooled over chains and chosen at
                random, each at most once while there are enough.
            seed: the seed of the draws.

        Raises:
            ValueError: if ``num`` is below one.
        """
        if num < 1:
            raise ValueError(f"sample: expected at least one draw, got {num}")
        with self.source.isolated(seed):
            sites = self.source.take(self.source.choose(num))
            return sites | self.source.weights_of(sites)

    # --- moments ----------------------------------------------------------------------------------

    def moments(self) -> dict[str, Moments]:
        """Return mean and variance of every weight.

        They are in closed form where the guide knows them, and else taken over draws.
        """
        if isinstance(self.guide, GuideWithMoments):
            moments = {}
            for name, (mean, variance) in self.guide.moments().items():
                moments[name] = Moments(mean.detach().clone(), variance.detach())
            return moments
        stored = self.source.stored
        num = GUIDE_DRAWS_FOR_MOMENTS if stored is None else len(stored)
        return self._moments_over_draws(num)

    def _moments_over_draws(self, num: int) -> dict[str, Moments]:
        moments = {}
        for name, values in self.sample(num).items():
            if values.is_floating_point():
                variance = values.var(0, correction=min(1, num - 1))
                moments[name] = Moments(values.mean(0), variance)
        return moments

    def mean_network(self) -> nn.Module:
        """Return the network with every weight at its posterior mean, as a plain module.

        Raises:
            TypeError: if the model is a hand-written program, which has no network.
        """
        if not isinstance(self.model, BayesianNet):
            raise TypeError(
                "mean_network: a hand-written program has no network; average posterior.sample(n)"
            )
        means = {name: moments.mean for name, moments in self.moments().items()}
        return self.model.network_with(means)

    def as_prior(self) -> dict[str, priors.Normal]:
        """Return this posterior as a prior for the next task.

        The prior of every weight is a Gaussian of the same mean and variance. That is exact for a
        factorized Gaussian posterior; of scale mixtures and draws the two moments are retained.

        Raises:
            ValueError: if a weight has no variance, as in a point estimate.
        """
        moments = self.moments()
        names = list(moments)
        if isinstance(self.model, BayesianNet):
            names = self.model.names
        gaussians = {}
        for name in names:
            mean, variance = moments[name]
            if not bool((variance > 0).all()):
                raise ValueError(
                    f"as_prior: the posterior of {name!r} has no variance, so it cannot be a prior"
                )
            gaussians[name] = priors.Normal(variance.sqrt(), mean)
        return gaussians

    # --- predictions ------------------------------------------------------------------------------

    def predict(self, x: Tensor, draws: int = 50, seed: int = 0) -> Prediction:
        r"""Return the predictive distribution, the average over drawn networks.

        .. math::

            p(y \mid x, \mathcal{D}) \approx \frac1S \sum_{s=1}^{S} p(y \mid x, w_s),
            \qquad w_s \sim q(w)

        Draws are streamed, so memory does not grow with their number. Every draw is one network
        for all examples.

        Args:
            x: inputs (n, ...).
            draws: the number of draws S.
            seed: the seed of the draws.

        Raises:
            ValueError: if there are no draws or no inputs, or if x contains NaN or infinity.
        """
        if draws < 1:
            raise ValueError(f"predict: expected at least one draw, got {draws}")
        if len(x) < 1:
            raise ValueError("predict: expected at least one example, but x is empty")
        if not bool(torch.isfinite(x).all()):
            raise ValueError("predict: expected finite inputs, but x contains NaN or infinity")
        return summarize(lambda: self.components(x, draws, seed))

    @torch.no_grad()
    def components(self, x: Tensor, draws: int = 50, seed: int = 0) -> Iterator[Components]:
        """Yield the predictions of the drawn networks, some draws at a time.

        Args:
            x: inputs (n, ...).
            draws: the number of draws in all.
            seed: the seed of the draws; the same seed gives the same draws.

        Yields:
            Tensors (draw, n, ...), named as in :mod:`pyro_bnn.posterior.components`.
        """
        with self.source.isolated(seed):
            index = self.source.choose(draws)
        yield from self.source.predict_in_chunks(x, index, seed)

    @torch.no_grad()
    def functions(self, x: Tensor, draws: int | None = None, seed: int = 0) -> dict[str, Tensor]:
        """Return the predictions of every draw at x, chain by chain.

        Function values, unlike weights, can be compared between chains: a network whose hidden
        units are permuted is the same function. All draws are held at once, so memory grows with
        their number.

        Args:
            x: inputs (n, ...).
            draws: the last n draws of each chain, all by default; of a guide, n independent draws,
                100 by default.
            seed: the seed of a guide's draws.

        Returns:
            Tensors (chain, draw, n, ...), named as in :mod:`pyro_bnn.posterior.components`.

        Raises:
            ValueError: if ``draws`` is below one or above the number of available draws.
        """
        stored = self.source.stored
        if stored is None:
            chains = 1
            num = GUIDE_DRAWS if draws is None else draws
            if num < 1:
                raise ValueError(f"functions: expected at least one draw, got {num}")
            index = torch.arange(num)
        else:
            chains = stored.chains
            num = stored.per_chain if draws is None else draws
            if not 1 <= num <= stored.per_chain:
                raise ValueError(
                    f"functions: expected draws from 1 to {stored.per_chain}, got {num}"
                )
            index = stored.last(num)
        pooled = concatenate(list(self.source.predict_in_chunks(x, index, seed)))
        return map_tensors(lambda value: torch.unflatten(value, 0, (chains, num)), pooled)

    # --- disk -------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tensors and facts, ``path.json`` and a safetensors file beside it.

        The programs are not saved; pass them to :meth:`load` again.

        Raises:
            CheckpointError: if the disk is full or cannot be written to.
        """
        facts = {
            "kind": "guide" if self.source.stored is None else "draws",
            "num_data": getattr(self.model, "num_data", None),
            "made": self.facts,
        }
        save_tensors(path, self._named_tensors(), facts)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: Program, guide: Program | None = None
    ) -> Self:
        """Return the posterior that was saved.

        Args:
            path: as passed to :meth:`save`.
            model: the model, built as before; it is copied.
            guide: the guide, built as before (not for draws); it is copied.

        Raises:
            CheckpointError: if a file is missing or damaged, or belongs to another model or guide.
        """
        saved = read_posterior(path, has_guide=guide is not None)
        stored = None
        if saved.draws:
            guide, stored = None, StoredDraws(saved.draws)
        model, guide = deepcopy_together(model, guide)
        source = DrawSource(model, guide, stored, example=saved.example)
        if guide is not None:
            # a first call, in which functions declare parameters and stock autoguides are built
            with source.isolated(0):
                source.guide_trace()
        posterior = cls(source, saved.statistics, saved.facts)
        restore_tensors(posterior._named_tensors(), saved.tensors, path)
        return posterior

    def _named_tensors(self) -> dict[str, Tensor]:
        source = self.source
        draws = {} if source.stored is None else source.stored.sites
        programs = {"model": self.model, "guide": self.guide, "statements": source.statements}
        return named_tensors(draws, self.statistics, source.example, programs)


def _guide_inside(guide: Program) -> Program:
    """Return the guide itself, where it is wrapped for local reparameterization."""
    return guide.guide if isinstance(guide, Reparameterized) else guide


def _require_sites(model: BayesianNet, draws: Mapping[str, Tensor]) -> None:
    """Raise unless draws have the names and shapes of the latent sites of the network."""
    shapes = {name: tuple(value.shape[2:]) for name, value in draws.items()}
    expected = {}
    for name, site in sample_sites(poutine.trace(model.initialize).get_trace()):
        if not site["is_observed"]:
            expected[name] = tuple(site["value"].shape)
    for name in sorted(expected.keys() | shapes.keys()):
        if expected.get(name) != shapes.get(name):
            raise ValueError(
                f"Posterior.from_draws: site {name!r}: "
                f"expected draws of shape {expected.get(name, 'none')}, "
                f"got {shapes.get(name, 'none')}; "
                f"the sites of the model are {', '.join(expected)}"
            )
