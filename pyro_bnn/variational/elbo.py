r"""The evidence lower bound, with every KL divergence in closed form that has one.

.. math:: \mathcal{L} = \mathbb{E}_{q(w)} \log p(y \mid x, w) - \mathrm{KL}(q(w) \,\|\, p(w)) \le \log p(y \mid x)

Pyro's estimators evaluate every log-density of a program. This one evaluates those of the data and, for each latent
site, the KL divergence that is registered for its two distributions; a Monte-Carlo estimate of it only where none is.
That is what lets the weights stay undrawn (:mod:`pyro_bnn.variational.reparameterization`) and improper priors take part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_bnn.distributions import ImproperPriorError
from pyro_bnn.variational.parameters import LocalParamStore

from .deferred import DeferredSample

__all__ = ["ELBO", "Terms"]


@dataclass
class Terms:
    """The parts of the negative ELBO, in nats for the whole data set.

    ``data``: minus the expected log-likelihood. ``kl``: the divergence of each latent site (auxiliary sites and factors
    of the guide count as terms of their own). ``score``: log q of the sites that have no reparameterized sampler, where
    there are any.
    """

    data: Tensor
    kl: dict[str, Tensor]
    score: Tensor | None = None

    def loss(self, kl_weight: float | Tensor = 1.0) -> Tensor:
        """Return the negative ELBO with the KL terms weighted."""
        loss = self.data + kl_weight * _total(self.kl.values(), self.data)
        if self.score is None:
            return loss
        # d E_q[f] = E_q[df + f d log q] where a site is not reparameterized; what is added is zero, its gradient is not
        return loss + loss.detach() * (self.score - self.score.detach())


def _total(values: Any, like: Tensor) -> Tensor:
    return sum(values, torch.zeros_like(like))


class ELBO(pyro.infer.ELBO):
    r"""The negative evidence lower bound as a loss,
    :math:`\mathbb{E}_q[-\log p(y \mid x, w)] + \beta\,\mathrm{KL}(q \,\|\, p)`.

    ``ELBO()`` is an estimator for ``pyro.infer.SVI(model, guide, optim, loss=ELBO())``. ``ELBO()(model, guide)``, or in
    short ``ELBO(model, guide)``, is an :class:`torch.nn.Module`: ``loss(x, y)`` returns nats for the whole data set,
    ``loss.terms(x, y)`` the parts, ``loss.parameters()`` what is to be learned. The module keeps Pyro's global
    parameter store out of it.

    A KL divergence is taken in closed form if one is registered with :func:`torch.distributions.register_kl`, the guide
    samples its sites in the order of the model (then it is exact for hierarchical posteriors as well), and both
    programs scale and mask the site alike; else it is estimated from one draw.

    Args:
        kl_weight: :math:`\beta`; one for Bayes' rule. It may be changed between steps.
        num_particles: the number of draws from the guide that are averaged.

    Raises:
        ValueError: a latent site of the model that the guide lacks (a guide built for another model), or whose shape
            differs; a site that the model observes and the guide samples; observations that do not have the shape of
            their distribution; a guide that is missing.

    >>> from pyro_bnn import BayesianNet, guides, likelihoods, priors
    >>> model = BayesianNet(nn.Linear(3, 1), priors.Normal(), likelihoods.Gaussian(0.1), num_data=100)
    >>> loss = ELBO(model, guides.MeanField(model))
    >>> sorted(loss.terms(torch.zeros(5, 3), torch.zeros(5)).kl)
    ['weight']
    """

    kl_weight: float | Tensor

    def __new__(cls, model: Any = None, guide: Any = None, **options: Any) -> Any:
        """Return the estimator or, given a model and a guide, the loss as a module."""
        if model is None and guide is None:
            return super().__new__(cls)
        if model is None or guide is None:
            raise ValueError(
                "ELBO: expected a model and a guide, ELBO(model, guide), or neither of them, ELBO(); got one alone"
            )
        estimator = super().__new__(cls)
        cls.__init__(estimator, **options)
        return estimator(model, guide)

    def __init__(self, kl_weight: float | Tensor = 1.0, num_particles: int = 1) -> None:
        super().__init__(num_particles=num_particles)
        self.kl_weight = kl_weight
        self._checked: tuple[Any, Any] | None = None  # the programs that were found to match

    def __call__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> ELBOModule:
        """Return the loss of this model and this guide as a module."""
        return ELBOModule(model, guide, self)

    def terms(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Terms:
        """Return the parts of one draw of the loss."""
        return _terms(*self._get_trace(model, guide, args, kwargs))

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        try:
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(
                *args, **kwargs
            )
        except ImproperPriorError as error:  # a site that is not replayed is drawn from its prior
            raise _missing(["for a weight under an improper prior"], guide_trace) from error
        if is_validation_enabled() and not (
            self._checked and self._checked[0] is model and self._checked[1] is guide
        ):
            _check_match(model_trace, guide_trace)
            self._checked = (model, guide)
        return prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return the loss in nats, differentiable."""
        particles = [
            self.terms(model, guide, *args, **kwargs).loss(self.kl_weight)
            for _ in range(self.num_particles)
        ]
        return sum(particles[1:], particles[0]) / self.num_particles

    def loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """Return the loss in nats as a number; part of Pyro's interface."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """Return the loss in nats as a number and leave the gradients at the parameters; part of Pyro's interface."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()


class ELBOModule(pyro.infer.elbo.ELBOModule):
    """The loss of one model and one guide; made by :class:`ELBO`."""

    elbo: ELBO

    def __init__(self, model: Any, guide: Any, elbo: ELBO) -> None:
        super().__init__(model, guide, elbo)
        self.statements = LocalParamStore(model, guide)

    @property
    def kl_weight(self) -> float | Tensor:
        """The weight of the KL terms."""
        return self.elbo.kl_weight

    @kl_weight.setter
    def kl_weight(self, value: float | Tensor) -> None:
        self.elbo.kl_weight = value

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss in nats."""
        with self.statements.capture():
            return super().forward(*args, **kwargs)

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """Return the trace of the model, replayed on one draw from the guide."""
        with self.statements.capture():
            return self.elbo._get_trace(self.model, self.guide, args, kwargs)[0]

    def terms(self, *args: Any, **kwargs: Any) -> Terms:
        """Return the parts of one draw of the loss."""
        with self.statements.capture():
            return self.elbo.terms(self.model, self.guide, *args, **kwargs)

    def terms_at(self, tensors: dict[str, Tensor], *args: Any) -> Terms:
        """Return the terms as a function of parameters and buffers: these take the place of the module's own."""
        with self.statements.substituted(tensors.values()):
            return torch.func.functional_call(
                _TermsOf(self), {f"loss.{name}": t for name, t in tensors.items()}, args
            )


class _TermsOf(nn.Module):
    """The terms of a loss as what a module returns: so that ``functional_call`` can replace its tensors."""

    def __init__(self, loss: ELBOModule) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, *args: Any) -> Terms:
        return self.loss.terms(*args)


def _terms(model_trace: Any, guide_trace: Any) -> Terms:
    latent = [
        name
        for name, site in model_trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"]
    ]
    guide_sites = {
        name: site for name, site in guide_trace.nodes.items() if site["type"] == "sample"
    }
    # With one order, no parent of a site in the model is its descendant in the guide: each KL may be taken by itself.
    ordered = latent == [name for name in guide_sites if name in set(latent)]
    data: Any = 0.0
    kl: dict[str, Tensor] = {}
    score = []
    for name, site in model_trace.nodes.items():
        if site["type"] != "sample" or site["infer"].get("_deterministic"):
            continue
        if site["is_observed"]:
            data = data - _log_prob(site)
        elif name in guide_sites:
            kl[name] = _kl(guide_sites[name], site, ordered)
        else:
            raise _missing([name], guide_trace)
    for name, site in guide_sites.items():
        if name not in kl and not site["infer"].get("_deterministic"):
            kl[name] = _log_prob(site)  # an auxiliary variable, or a factor of the guide
        if not site[
            "fn"
        ].has_rsample:  # log q as it was drawn: neither scaled nor masked, whatever its KL term is
            score.append(site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"]).sum())
    data = torch.as_tensor(data)
    return Terms(data, kl, _total(score, data) if score else None)


def _log_prob(site: Any, value: Tensor | None = None) -> Tensor:
    value = site["value"] if value is None else value
    return _scaled_sum(site["fn"].log_prob(value, *site["args"], **site["kwargs"]), site)


def _scaled_sum(value: Tensor, site: Any) -> Tensor:
    return scale_and_mask(value, site["scale"], site["mask"]).sum()


def _kl(guide_site: Any, model_site: Any, closed: bool) -> Tensor:
    q, p = guide_site["fn"], model_site["fn"]
    # Pyro's rule for Delta leaves its log_density (a Jacobian) out
    if (
        closed
        and not isinstance(q, pyro.distributions.Delta)
        and _weighted_alike(guide_site, model_site)
    ):
        try:
            return _scaled_sum(kl_divergence(q, p), model_site)
        except NotImplementedError:
            pass
    value = guide_site["value"]
    if isinstance(value, DeferredSample):
        # The weight stays undrawn: this term draws a sample of its own, unless other sites may depend on one already
        value = q.rsample() if value.draw.value is None else value.draw.value
    return _log_prob(guide_site, value) - _log_prob(model_site, value)


def _weighted_alike(guide_site: Any, model_site: Any) -> bool:
    """Return whether log q and log p get the same scale and mask, so that their difference is a (scaled, masked) KL
    divergence."""
    pairs = ((guide_site[key], model_site[key]) for key in ("scale", "mask"))
    return all(
        a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b)
        for a, b in pairs
    )


def _missing(names: list[str], guide_trace: Any) -> ValueError:
    there = (
        ", ".join(name for name, site in guide_trace.nodes.items() if site["type"] == "sample")
        or "none"
    )
    return ValueError(
        f"ELBO: the guide has no site {', '.join(names)}; its sites are {there}. Was it built for another model? "
        "Build the guide from this model, and a model without data has its y unobserved: call loss(x, y)"
    )


def _check_match(model_trace: Any, guide_trace: Any) -> None:
    """Run Pyro's checks, and refuse what would pass silently: sites of one program alone, data that broadcast."""
    sites = {
        name: site
        for name, site in model_trace.nodes.items()
        if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample"
    }
    missing = sorted(
        name for name, site in sites.items() if not site["is_observed"] and name not in guide_trace
    )
    if missing:
        raise _missing(missing, guide_trace)
    for name, site in sites.items():
        if not site["is_observed"] or site["infer"].get("_deterministic"):
            continue
        if name in guide_trace and not guide_trace.nodes[name]["is_observed"]:
            raise ValueError(
                f"ELBO: the guide samples {name!r}, which the model observes. Was it built without the data? "
                "Give the guide the arguments that the loss will get: MeanField(model, x, y)"
            )
    check_model_guide_match(model_trace, guide_trace)
    for name, site in sites.items():
        if not site["is_observed"] or site["infer"].get("_deterministic"):
            continue
        expected, received = site["fn"].shape(), site["value"].shape
        if _broadcast(expected, received) != expected:
            raise ValueError(
                f"ELBO: the observations at site {name!r} have the shape {tuple(received)}, their distribution has "
                f"{tuple(expected)}; a trailing axis of size one is the usual reason: y.squeeze(-1)"
            )


def _broadcast(*shapes: torch.Size) -> torch.Size | None:
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        return None
