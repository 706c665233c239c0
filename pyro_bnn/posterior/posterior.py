"""Posterior: what every inference returns. It draws networks, predicts with them, and goes to disk."""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_bnn import priors
from pyro_bnn.network import BayesianNet
from pyro_bnn.runtime.copying import deepcopy_together
from pyro_bnn.runtime.rng import fork_rng
from pyro_bnn.runtime.tensor_files import (
    CheckpointError,
    load_tensors,
    restore_tensors,
    save_tensors,
    tensors_under,
)
from pyro_bnn.variational.elbo import ELBOModule
from pyro_bnn.variational.parameters import LocalParamStore
from pyro_bnn.variational.reparameterization import Reparameterized

from .prediction import Predict, Prediction, components_of, summarize
from .vectorized import VectorizedDraws, for_each_draw

__all__ = ["Posterior"]


class Posterior:
    """A distribution over the weights of a model: a trained guide, or draws from a sampler, behind one interface.

    It owns copies of the model, with every parameter that was learned, and of the guide: training on changes no
    earlier posterior. What is random here takes a seed and leaves the global random state alone.

    Attributes:
        model: the model, in evaluation mode.
        guide: the guide, or ``None`` for draws.
        statistics: what the sampler noted with each draw, (chain, draw): ``lp`` (the log-density in nats),
            ``acceptance_rate``, ``diverging``, ``step_size`` and others; empty for a guide.
        facts: how the posterior was made, as far as it is known: ``method``, ``seconds``, ``gradients`` (evaluations of
            the gradient, over all chains), ``data`` (a SHA-256 of the training data), ``settings``, ``warnings``.
    """

    def __init__(
        self,
        model: Any,
        guide: Any = None,
        draws: Mapping[str, Tensor] | None = None,
        statements: Any = None,
        example: tuple = (),
        statistics: Mapping[str, Tensor] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.guide = model, guide
        self.statistics, self.facts = dict(statistics or {}), dict(facts or {})
        self._draws = None if draws is None else dict(draws)
        self._statements = statements or LocalParamStore(model, guide)
        self._example = example
        for part in (model, guide):
            if isinstance(part, nn.Module):
                part.eval()

    @classmethod
    def from_guide(
        cls, model: Callable[..., Any], guide: Callable[..., Any], *example: Any
    ) -> Posterior:
        """Return the posterior that a guide describes, made of copies.

        Args:
            model: the model the guide was built for.
            guide: a module or a function.
            example: arguments to call a guide with that needs some.
        """
        model, guide = deepcopy_together(
            model, guide.guide if isinstance(guide, Reparameterized) else guide
        )
        posterior = cls(model, guide, example=copy.deepcopy(example))
        if not isinstance(guide, nn.Module):
            posterior._adopt_from_store()
        return posterior

    @classmethod
    def from_draws(
        cls,
        model: Callable[..., Any],
        draws: Mapping[str, Tensor],
        statistics: Mapping[str, Tensor] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Posterior:
        """Return the posterior made of draws.

        Args:
            model: the model that was sampled.
            draws: for each latent site a tensor (chain, draw, ...).
            statistics: of each draw, (chain, draw).
            facts: how the draws were made.

        Raises:
            ValueError: a site of the network that is missing or of another shape; tensors that disagree on chains and
                draws, or none; numbers that are not finite.
        """
        counts = {name: tuple(value.shape[:2]) for name, value in draws.items()}
        if (
            len(set(counts.values())) != 1
            or 0 in (shape := next(iter(counts.values())))
            or len(shape) != 2
        ):
            raise ValueError(
                f"Posterior.from_draws: expected one (chain, draw) for all sites, got {counts}"
            )
        if isinstance(model, BayesianNet):
            _require_sites(model, {name: tuple(value.shape[2:]) for name, value in draws.items()})
        for name, value in draws.items():
            if not bool(torch.isfinite(value).all()):
                raise ValueError(
                    f"Posterior.from_draws: the draws of {name!r} have numbers that are not finite"
                )
        own = {name: value.detach().clone() for name, value in draws.items()}
        return cls(copy.deepcopy(model), draws=own, statistics=statistics, facts=facts)

    @classmethod
    def from_loss(cls, loss: ELBOModule, device: torch.device, example: tuple = ()) -> Posterior:
        """Return the posterior of a loss that was trained; it takes the parts over, so pass a copy."""
        loss = loss.to(device)
        guide = loss.guide.guide if isinstance(loss.guide, Reparameterized) else loss.guide
        return cls(
            loss.model,
            guide,
            statements=loss.statements,
            example=tuple(part.to(device) for part in example),
        )

    # --- draws --------------------------------------------------------------------------------------------------------

    @property
    def draws(self) -> dict[str, Tensor]:
        """Draws of every latent site, (chain, draw, ...); a guide answers with one chain of 100."""
        if self._draws is not None:
            return self._draws
        with self._quietly(0):
            return {name: value[None] for name, value in self._guide_draws(100).items()}

    def sample(self, num: int, seed: int = 0) -> dict[str, Tensor]:
        """Return ``num`` draws of every weight, and of the sites it is made of, (num, ...), pooled over chains.

        Args:
            num: how many; of a sampler's draws that many are picked at random, each at most once while there are
                enough.
            seed: of the draws.

        Raises:
            ValueError: fewer than one draw.
        """
        if num < 1:
            raise ValueError(f"sample: expected at least one draw, got {num}")
        with self._quietly(seed):
            sites = self._guide_draws(num) if self._draws is None else self._kept(self._pick(num))
            return sites | self._weights(sites)

    def _pick(self, num: int) -> Tensor:
        """Return which of a sampler's draws to take: all of them, as often as needed, before one comes again."""
        assert self._draws is not None
        there = next(iter(self._draws.values())).shape[:2].numel()
        return torch.cat([torch.randperm(there) for _ in range(math.ceil(num / there))])[:num]

    def _kept(self, index: Tensor) -> dict[str, Tensor]:
        assert self._draws is not None
        return {
            name: value.flatten(0, 1)[index.to(value.device)] for name, value in self._draws.items()
        }

    def _guide_draws(self, num: int) -> dict[str, Tensor]:
        with VectorizedDraws():
            return for_each_draw(lambda _: self._guide_sites(), {"": torch.empty(num)})

    def _guide_sites(self) -> dict[str, Tensor]:
        trace = poutine.trace(self.guide).get_trace(*self._example)
        latent = {name: site for name, site in _samples(trace) if not site["is_observed"]}
        return {
            name: site["value"]
            for name, site in latent.items()
            if not site["infer"].get("is_auxiliary")
        }

    def _weights(self, sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights that the sites make; for a hand-written program the sites are the weights."""
        if not isinstance(self.model, BayesianNet):
            return dict(sites)

        def one(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return poutine.condition(self.model.weights, data=dict(values))()

        return for_each_draw(one, sites)

    def _adopt_from_store(self) -> None:
        """Copy what a plain function learned under Pyro's own SVI: its parameters lie in the global store."""
        store = pyro.get_param_store()
        with store.scope(store.get_state()), fork_rng(self._device):
            known = set(store.keys())
            trace = poutine.trace(self.guide, param_only=True).get_trace(*self._example)
            learned = {name: store._params[name] for name in trace.param_nodes if name in known}
        for name, value in learned.items():
            self._statements.set_unconstrained(name, value)

    @property
    def _device(self) -> torch.device:
        modules = [part for part in (self.model, self.guide) if isinstance(part, nn.Module)]
        tensors = [
            tensor for module in modules for tensor in (*module.parameters(), *module.buffers())
        ]
        tensors += [*self._statements.parameters(), *(self._draws or {}).values()]
        return tensors[0].device if tensors else torch.device("cpu")

    @contextlib.contextmanager
    def _quietly(self, seed: int) -> Iterator[None]:
        """A seed of its own, the parameters of its own, no gradients; outside nothing changes."""
        with fork_rng(self._device, seed), torch.no_grad(), self._statements.capture():
            yield

    # --- moments ------------------------------------------------------------------------------------------------------

    def moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return mean and variance of every weight: in closed form where the guide knows them, else over draws."""
        if hasattr(self.guide, "moments"):
            return {
                name: (mean.detach().clone(), variance.detach())
                for name, (mean, variance) in self.guide.moments().items()
            }
        num = 200 if self._draws is None else next(iter(self._draws.values())).shape[:2].numel()
        weights = {
            name: value for name, value in self.sample(num).items() if value.is_floating_point()
        }
        return {
            name: (value.mean(0), value.var(0, correction=min(1, num - 1)))
            for name, value in weights.items()
        }

    def mean_network(self) -> nn.Module:
        """Return the network with every weight at its posterior mean: a plain module, as it was before it became
        Bayesian.

        Raises:
            TypeError: the model is a hand-written program and has no network.
        """
        if not isinstance(self.model, BayesianNet):
            raise TypeError(
                "mean_network: a hand-written program has no network; average posterior.sample(n)"
            )
        return self.model.network_with({name: mean for name, (mean, _) in self.moments().items()})

    def as_prior(self) -> dict[str, priors.Normal]:
        """Return this posterior as a prior for the next task: a Gaussian of the same mean and variance for every
        weight.

        Exact for a factorised Gaussian posterior; of scale mixtures and draws it keeps the two moments.

        Raises:
            ValueError: a weight without variance, as a point estimate has.
        """
        found = {
            name: moments
            for name, moments in self.moments().items()
            if not isinstance(self.model, BayesianNet) or name in self.model.names
        }
        for name, (_, variance) in found.items():
            if not bool((variance > 0).all()):
                raise ValueError(
                    f"as_prior: the posterior of {name!r} has no variance, so it cannot be a prior"
                )
        return {
            name: priors.Normal(variance.sqrt(), mean) for name, (mean, variance) in found.items()
        }

    # --- predictions --------------------------------------------------------------------------------------------------

    def predict(self, x: Tensor, draws: int = 50, seed: int = 0) -> Prediction:
        r"""Return the predictive distribution, the average of the distributions that the drawn networks predict.

        .. math:: p(y \mid x, \mathcal{D}) \approx \frac1S \sum_{s=1}^{S} p(y \mid x, w_s), \qquad w_s \sim q(w)

        Draws are streamed, so memory does not grow with their number; a whole batch sees one network per draw.

        Args:
            x: inputs (n, ...).
            draws: S.
            seed: of the draws.

        Raises:
            ValueError: no draws; inputs that are not finite.
        """
        if draws < 1:
            raise ValueError(f"predict: expected at least one draw, got {draws}")
        if len(x) < 1:
            raise ValueError("predict: there are no examples in x")
        if not bool(torch.isfinite(x).all()):
            raise ValueError("predict: x has numbers that are not finite")
        return summarize(lambda: self.components(x, draws, seed))

    @torch.no_grad()
    def components(self, x: Tensor, draws: int = 50, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        """Yield what the drawn networks predict, some draws at a time: see :func:`~pyro_bnn.posterior.prediction.components_of`.

        Args:
            x: inputs (n, ...).
            draws: in all.
            seed: of the draws; the same seed gives the same draws.
        """
        with self._quietly(seed):
            chosen = None if self._draws is None else self._pick(draws)
        yield from self._stream(x, draws, chosen, seed)

    @torch.no_grad()
    def functions(self, x: Tensor, draws: int | None = None, seed: int = 0) -> dict[str, Tensor]:
        """Return what every draw predicts at x, chain by chain: (chain, draw, n, ...).

        Function values, unlike weights, can be compared between chains: a network whose hidden units are permuted is
        the same function. The names are those of :func:`~pyro_bnn.posterior.prediction.components_of`. All draws are kept, so
        memory grows with their number.

        Args:
            x: inputs (n, ...).
            draws: for each chain the last so many; of a guide, so many independent draws, 100 by default.
            seed: of a guide's draws.

        Raises:
            ValueError: more draws than there are, or none.
        """
        chains, there = (
            (1, draws or 100) if self._draws is None else next(iter(self._draws.values())).shape[:2]
        )
        num = there if draws is None else draws
        if not 1 <= num <= there:
            raise ValueError(f"functions: expected draws from 1 to {there}, got {num}")
        rows = torch.arange(chains * there).view(chains, there)[:, there - num :].flatten()
        parts = list(self._stream(x, chains * num, None if self._draws is None else rows, seed))
        together = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {name: value.unflatten(0, (chains, num)) for name, value in together.items()}

    def _stream(
        self, x: Tensor, draws: int, chosen: Tensor | None, seed: int
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the predictions of the chosen draws, or of fresh ones, some at a time."""
        generator = torch.Generator().manual_seed(seed)
        with self._quietly(seed):
            one = self._guide_draws(1) if chosen is None else self._kept(chosen[:1])
            size = sum(value.numel() for value in one.values())
        step = max(1, min(1024, _CHUNK // size))
        width = max(64, x[0].numel())  # a guess at the numbers per example in a layer
        for start in range(0, draws, step):
            num = min(step, draws - start)
            with self._quietly(int(torch.randint(2**62, (), generator=generator))):
                sites = (
                    self._guide_draws(num)
                    if chosen is None
                    else self._kept(chosen[start : start + num])
                )
                parts = [
                    self._predictive(sites, part)
                    for part in x.split(max(1, 4 * _CHUNK // (width * num)))
                ]
            yield {key: torch.cat([part[key] for part in parts], dim=1) for key in parts[0]}

    def _predictive(self, sites: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        """Return the parameters of the predictive distribution of each draw for a batch."""

        def one(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            with Predict(values) as seen:
                self.model(x)
            return components_of(seen.predicted())

        return for_each_draw(one, sites)

    # --- disk ---------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and facts, ``path.json`` and a safetensors file beside it; the program itself stays with the
        caller.

        Raises:
            CheckpointError: the disk is full or cannot be written.
        """
        kind = "guide" if self._draws is None else "draws"
        facts = {
            "kind": kind,
            "num_data": getattr(self.model, "num_data", None),
            "made": self.facts,
        }
        save_tensors(path, self._state(), facts)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: Callable[..., Any],
        guide: Callable[..., Any] | None = None,
    ) -> Posterior:
        """Return the posterior that was saved.

        Args:
            path: as given to :meth:`save`.
            model: the model, built as before; it is copied.
            guide: the guide, built as before (not for draws); it is copied.

        Raises:
            CheckpointError: a file is missing or damaged, or belongs to another model or guide.
        """
        tensors, facts = load_tensors(path)
        if facts.get("kind") not in ("guide", "draws"):
            raise CheckpointError(f"{path}: expected a saved posterior, found something else")
        if facts["kind"] == "guide" and guide is None:
            raise CheckpointError(
                f"{path}: holds a variational posterior; pass the guide to load it into, guide=..."
            )
        parts = {part: tensors_under(part, tensors) for part in ("draws", "statistics", "example")}
        example = tuple(parts["example"][str(index)] for index in range(len(parts["example"])))
        model, guide = deepcopy_together(model, guide if facts["kind"] == "guide" else None)
        posterior = cls(
            model,
            guide,
            parts["draws"] or None,
            None,
            example,
            parts["statistics"],
            facts.get("made"),
        )
        if posterior.guide is not None:
            with posterior._quietly(
                0
            ):  # functions declare their parameters, stock autoguides are built
                posterior._guide_sites()
        restore_tensors(posterior._state(), tensors, path)
        return posterior

    def _state(self) -> dict[str, Tensor]:
        state = {f"draws.{name}": value for name, value in (self._draws or {}).items()}
        state |= {f"statistics.{name}": value for name, value in self.statistics.items()}
        state |= {f"example.{index}": value for index, value in enumerate(self._example)}
        for prefix, part in (
            ("model", self.model),
            ("guide", self.guide),
            ("statements", self._statements),
        ):
            if isinstance(part, nn.Module):
                state |= {f"{prefix}.{name}": value for name, value in part.state_dict().items()}
        return state


def _require_sites(model: BayesianNet, found: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse draws that are not those of the latent sites of the network."""
    trace = poutine.trace(model.initialize).get_trace()
    expected = {
        name: tuple(site["value"].shape)
        for name, site in _samples(trace)
        if not site["is_observed"]
    }
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"Posterior.from_draws: site {name!r}: expected draws of shape {expected.get(name, 'none')}, "
                f"got {found.get(name, 'none')}; the sites of the model are {', '.join(expected)}"
            )


def _samples(trace: Any) -> Iterator[tuple[str, Any]]:
    """Yield the sample statements of a trace, those by which plates draw their indices left out."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample":
            yield name, site


# Numbers in flight per draw and batch: large enough for the matrix products, small beside any data set.
_CHUNK = 2_000_000
