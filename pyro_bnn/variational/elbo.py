r"""The evidence lower bound, with KL divergences in closed form.

.. math::

    \mathcal{L} = \mathbb{E}_{q(w)} \log p(y \mid x, w) - \mathrm{KL}(q(w) \,\|\, p(w))
        \le \log p(y \mid x)

Pyro's estimators evaluate every log-density of a program. This one evaluates the log-density of the
data and, for each latent site, the KL divergence that is registered for the two distributions of
the site; it estimates the divergence by Monte Carlo only if none is registered. Therefore weights
may stay undrawn (:mod:`pyro_bnn.variational.reparameterization`), and priors may be improper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeVar, overload

import pyro
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from pyro_bnn.distributions import ImproperPriorError
from pyro_bnn.runtime.program import Program

from .guide import Guide
from .matching import missing_site_error, require_match
from .parameters import LocalParamStore
from .terms import Terms, terms_of_traces

__all__ = ["ELBO", "ELBOEstimator", "ELBOModule"]

Arguments = ParamSpec("Arguments")
"""The arguments that a model and its guide are called with, the same for both."""
M = TypeVar("M")
G = TypeVar("G")


@overload
def ELBO(*, kl_weight: float | Tensor = ..., num_particles: int = ...) -> ELBOEstimator: ...


@overload
def ELBO(
    model: Program, guide: Guide, *, kl_weight: float | Tensor = ..., num_particles: int = ...
) -> ELBOModule: ...


def ELBO(  # noqa: N802
    model: Program | None = None,
    guide: Guide | None = None,
    *,
    kl_weight: float | Tensor = 1.0,
    num_particles: int = 1,
) -> ELBOEstimator | ELBOModule:
    r"""Return the negative evidence lower bound as a loss.

    .. math:: \mathbb{E}_q[-\log p(y \mid x, w)] + \beta\,\mathrm{KL}(q \,\|\, p)

    There are two ways to use it:

    - ``loss = ELBO(model, guide)`` is an :class:`ELBOModule`. ``loss(x, y)`` returns nats for the
      whole data set, ``loss.terms(x, y)`` their parts, and ``loss.parameters()`` lists what is to
      be learned. Pyro's global parameter store stays empty.
    - ``pyro.infer.SVI(model, guide, optim, loss=ELBO())``: without a model and a guide, it is an
      :class:`ELBOEstimator`, the kind of loss that Pyro's loops accept.

    The KL divergence of a site is computed in closed form under three conditions: one is registered
    with :func:`torch.distributions.register_kl`; the guide samples its sites in the order of the
    model (then the closed form is exact for hierarchical posteriors as well); both programs scale
    and mask the site alike. Otherwise it is estimated from one draw.

    Args:
        model: a ``BayesianNet`` or any other Pyro program.
        guide: a guide for this model.
        kl_weight: :math:`\beta`, one for Bayes' rule. It may be changed between steps.
        num_particles: number of draws from the guide to average over.

    Returns:
        The loss of this model and guide, or an estimator if neither is given.

    Raises:
        ValueError: if only one of model and guide is given. The loss raises it as well: if the
            guide lacks a latent site of the model (it was built for another model), if the shapes
            of a site differ, if the guide samples a site that the model observes, or if data do not
            have the shape of their distribution.

    Example:
        >>> from pyro_bnn import BayesianNet, guides, likelihoods, priors
        >>> net = nn.Linear(3, 1)
        >>> model = BayesianNet(net, priors.Normal(), likelihoods.Gaussian(0.1), num_data=100)
        >>> loss = ELBO(model, guides.MeanField(model))
        >>> sorted(loss.terms(torch.zeros(5, 3), torch.zeros(5)).kl)
        ['weight']
    """
    estimator = ELBOEstimator(kl_weight, num_particles)
    if model is None and guide is None:
        return estimator
    if model is None or guide is None:
        raise ValueError(
            "ELBO: expected a model and a guide, ELBO(model, guide), or neither of them, ELBO(); "
            "got one alone"
        )
    return estimator(model, guide)


class Traces(NamedTuple):
    """The traces of one draw from a guide and of the model replayed on it."""

    model: Trace
    guide: Trace


class ELBOEstimator(pyro.infer.ELBO):
    r"""An estimator of the negative ELBO, as Pyro's loops use it.

    Args:
        kl_weight: :math:`\beta`, the weight of the KL terms.
        num_particles: number of draws from the guide to average over.
    """

    def __init__(self, kl_weight: float | Tensor = 1.0, num_particles: int = 1) -> None:
        super().__init__(num_particles=num_particles)  # type: ignore[no-untyped-call]
        self.kl_weight = kl_weight
        # The programs that were checked against each other, so that each pair is checked once.
        self._checked_model: Program | None = None
        self._checked_guide: Guide | None = None

    def __call__(self, model: Program, guide: Guide) -> ELBOModule:
        """Return the loss of a model and a guide as a module."""
        return ELBOModule(model, guide, self)

    def terms(
        self,
        model: Callable[Arguments, M],
        guide: Callable[Arguments, G],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Terms:
        """Return the terms of one draw of the loss."""
        traces = self._get_trace(model, guide, args, kwargs)
        return terms_of_traces(traces.model, traces.guide)

    def differentiable_loss(
        self,
        model: Callable[Arguments, M],
        guide: Callable[Arguments, G],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Tensor:
        """Return the loss in nats, differentiable with respect to the parameters."""
        loss = self.terms(model, guide, *args, **kwargs).loss(self.kl_weight)
        for _ in range(self.num_particles - 1):
            loss = loss + self.terms(model, guide, *args, **kwargs).loss(self.kl_weight)
        mean: Tensor = loss / self.num_particles
        return mean

    def loss(
        self,
        model: Callable[Arguments, M],
        guide: Callable[Arguments, G],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> float:
        """Return the loss in nats as a number."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(
        self,
        model: Callable[Arguments, M],
        guide: Callable[Arguments, G],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> float:
        """Return the loss in nats as a number and add its gradient to that of the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            torch.autograd.backward(loss)
        return loss.item()

    def _get_trace(
        self, model: Program, guide: Guide, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Traces:
        """Run the guide and replay the model on it; the name is that of Pyro's interface."""
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        try:
            model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
        except ImproperPriorError as error:
            # A site that the guide lacks is drawn from its prior.
            weight = "for a weight under an improper prior"
            raise missing_site_error([weight], guide_trace) from error
        self._require_match(model, guide, Traces(model_trace, guide_trace))
        return Traces(prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace))

    def _require_match(self, model: Program, guide: Guide, traces: Traces) -> None:
        if not is_validation_enabled():
            return
        if self._checked_model is model and self._checked_guide is guide:
            return
        require_match(traces.model, traces.guide)
        self._checked_model = model
        self._checked_guide = guide


class ELBOModule(pyro.infer.elbo.ELBOModule):
    """The loss of one model and one guide; :func:`ELBO` creates it.

    Args:
        model: the model.
        guide: the guide.
        elbo: estimates the loss.
    """

    elbo: ELBOEstimator

    def __init__(self, model: Program, guide: Guide, elbo: ELBOEstimator) -> None:
        super().__init__(model, guide, elbo)  # type: ignore[arg-type]
        self.param_store = LocalParamStore(model, guide)

    @property
    def kl_weight(self) -> float | Tensor:
        """The weight of the KL terms."""
        return self.elbo.kl_weight

    @kl_weight.setter
    def kl_weight(self, value: float | Tensor) -> None:
        self.elbo.kl_weight = value

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss in nats for the whole data set.

        Args:
            args: the arguments of the model and the guide, ``(x, y)`` for a ``BayesianNet``.
            kwargs: likewise, by keyword.
        """
        with self.param_store.capture():
            return self.elbo.differentiable_loss(self.model, self.guide, *args, **kwargs)

    def trace(self, *args: Any, **kwargs: Any) -> Trace:
        """Return the trace of the model, replayed on one draw from the guide."""
        with self.param_store.capture():
            return self.elbo._get_trace(self.model, self.guide, args, kwargs).model

    def terms(self, *args: Any, **kwargs: Any) -> Terms:
        """Return the terms of one draw of the loss."""
        with self.param_store.capture():
            return self.elbo.terms(self.model, self.guide, *args, **kwargs)

    def terms_at(self, tensors: Mapping[str, Tensor], *args: Tensor) -> Terms:
        """Return the terms of one draw as a function of parameters and buffers.

        Args:
            tensors: values to use in place of the module's own, by the names of its state.
            args: the arguments of the model and the guide.
        """
        values = {f"loss.{name}": tensor for name, tensor in tensors.items()}
        with self.param_store.substituted(tensors.values()):
            terms: Terms = torch.func.functional_call(_TermsModule(self), values, args)
        return terms


class _TermsModule(nn.Module):
    """A module that returns the terms of a loss, for ``functional_call`` to replace its tensors."""

    def __init__(self, loss: ELBOModule) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, *args: Tensor) -> Terms:
        return self.loss.terms(*args)
