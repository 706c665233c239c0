"""The programs of a posterior, and the draws that come from them or from a sampler."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from pyro_bnn.network import BayesianNet
from pyro_bnn.runtime.handlers import FixedSites
from pyro_bnn.runtime.program import Program, Site, sample_sites, shape_of
from pyro_bnn.runtime.rng import fork_rng
from pyro_bnn.runtime.tensor_dicts import concatenate
from pyro_bnn.variational.parameters import LocalParamStore

from .components import Components, components_of
from .stored_draws import StoredDraws
from .vectorized import draw_repeatedly, for_each_draw, vectorized_draws

__all__ = ["DrawSource"]

# The number of values that the draws of a chunk hold at once: large enough for efficient matrix
# products, small compared with any data set.
CHUNK = 2_000_000
MAX_DRAWS_PER_CHUNK = 1024


class DrawSource:
    """A model with its guide or with stored draws, run in isolation from the rest of the session.

    Model and guide are put into evaluation mode.

    Attributes:
        model: the model.
        guide: the guide, or ``None`` where draws are stored.
        stored: the draws of a sampler, or ``None`` for a guide.
        statements: the values of ``pyro.param`` statements in programs that are not modules.
        example: the arguments that the guide is called with.
    """

    model: Any
    guide: Any

    def __init__(
        self,
        model: Program,
        guide: Program | None = None,
        stored: StoredDraws | None = None,
        statements: LocalParamStore | None = None,
        example: tuple[Tensor, ...] = (),
    ) -> None:
        self.model = model
        self.guide = guide
        self.stored = stored
        self.statements = statements or LocalParamStore(model, guide)
        self.example = example
        for program in (model, guide):
            if isinstance(program, nn.Module):
                program.eval()

    @property
    def device(self) -> torch.device:
        """The device of the model, the guide and the draws."""
        for program in (self.model, self.guide, self.statements):
            if isinstance(program, nn.Module):
                for tensor in (*program.parameters(), *program.buffers()):
                    return tensor.device
        if self.stored is not None:
            return next(iter(self.stored.sites.values())).device
        return torch.device("cpu")

    @contextlib.contextmanager
    def isolated(self, seed: int) -> Iterator[None]:
        """Run programs with random numbers and parameters of their own, and without gradients.

        The global random state and Pyro's parameter store are unchanged afterwards.
        """
        with fork_rng(self.device, seed), torch.no_grad(), self.statements.capture():
            yield

    def guide_trace(self) -> Trace:
        """Return a trace of one call of the guide."""
        trace: Trace = poutine.trace(self.guide).get_trace(*self.example)
        return trace

    def copy_parameters_from_store(self) -> None:
        """Copy the parameters that a guide without a module of its own has in Pyro's store."""
        store = pyro.get_param_store()
        with store.scope(store.get_state()), fork_rng(self.device):
            learned = set(store.keys())
            trace = poutine.trace(self.guide, param_only=True).get_trace(*self.example)
            values = {name: store._params[name] for name in trace.param_nodes if name in learned}
        for name, value in values.items():
            self.statements.set_unconstrained(name, value)

    # --- draws of the sites -----------------------------------------------------------------------

    def choose(self, num: int) -> Tensor:
        """Return ``num`` indices for :meth:`take`, those of stored draws at random."""
        if self.stored is None:
            return torch.arange(num)
        return self.stored.choose(num)

    def take(self, index: Tensor) -> dict[str, Tensor]:
        """Return the stored draws with these indices, or as many new draws from the guide."""
        if self.stored is None:
            return self.draw_guide(len(index))
        return self.stored.take(index)

    def draw_guide(self, num: int) -> dict[str, Tensor]:
        """Return independent draws from the guide, (num, ...) for every latent site."""
        with vectorized_draws():
            return draw_repeatedly(self._draw_guide_once, num)

    def _draw_guide_once(self) -> dict[str, Tensor]:
        values = {}
        for name, site in sample_sites(self.guide_trace()):
            if not site["is_observed"] and not site["infer"].get("is_auxiliary"):
                values[name] = site["value"]
        return values

    # --- weights and predictions -----------------------------------------------------------------

    def weights_of(self, sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights that draws of the latent sites make, (draw, ...).

        The sites of a hand-written program are its weights.
        """
        if not isinstance(self.model, BayesianNet):
            return dict(sites)
        return for_each_draw(self._weights_of_one_draw, sites)

    def _weights_of_one_draw(self, sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with FixedSites(sites):
            weights: dict[str, Tensor] = self.model.weights()
        return weights

    def predict_in_chunks(self, x: Tensor, index: Tensor, seed: int) -> Iterator[Components]:
        """Yield the predictions of the draws with these indices, in chunks of bounded memory.

        Args:
            x: inputs (n, ...).
            index: the indices of the draws, as for :meth:`take`.
            seed: the seed of a guide's draws.

        Yields:
            Tensors (draw, n, ...), named as in :mod:`pyro_bnn.posterior.components`.
        """
        generator = torch.Generator().manual_seed(seed)
        with self.isolated(seed):
            sites = self.take(index[:1])
            numbers_per_draw = sum(value.numel() for value in sites.values())
        draws_per_chunk = max(1, min(MAX_DRAWS_PER_CHUNK, CHUNK // numbers_per_draw))
        numbers_per_example = max(64, x[0].numel())  # a guess at the width of a layer
        for chunk in torch.split(index, draws_per_chunk):
            examples = max(1, 4 * CHUNK // (numbers_per_example * len(chunk)))
            with self.isolated(int(torch.randint(2**62, (), generator=generator))):
                sites = self.take(chunk)
                batches = [self.predict_batch(sites, batch) for batch in torch.split(x, examples)]
            yield concatenate(batches, dim=1)

    def predict_batch(self, sites: Mapping[str, Tensor], x: Tensor) -> Components:
        """Return the predictions of each draw for a batch of inputs, (draw, n, ...)."""
        return for_each_draw(lambda draw: _predict_with(self.model, draw, x), sites)


def _predict_with(model: Program, sites: Mapping[str, Tensor], x: Tensor) -> Components:
    """Return the predictive distribution of one draw, without sampling from it."""
    distributions = []

    def record(site: Site) -> Tensor:
        distributions.append(site["fn"])
        return torch.zeros(shape_of(site["fn"]))

    with FixedSites(sites, otherwise=record):
        model(x)
    if not distributions:
        raise ValueError(
            "predict: the model has no unobserved data site; "
            "it is called as model(x) and must sample y when y is None"
        )
    return components_of(distributions[-1])
