r"""The terms of the negative ELBO, from the traces of a model and its guide.

.. math::

    -\mathcal{L} = \underbrace{-\mathbb{E}_q \log p(y \mid x, w)}_{\text{data}}
        + \sum_s \underbrace{\mathrm{KL}\big(q(w_s) \,\|\, p(w_s)\big)}_{\text{one for each site}}
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_bnn.runtime.program import Site, sample_sites

from .deferred import DeferredSample
from .matching import is_deterministic, missing_site_error

__all__ = ["Terms", "terms_of_traces"]


@dataclass
class Terms:
    """The terms of the negative ELBO, in nats for the whole data set.

    Attributes:
        data: minus the expected log-likelihood.
        kl: the KL divergence of each latent site, by name. Auxiliary sites and factors of the guide
            have terms of their own.
        score: log q of the sites without a reparameterized sampler, ``None`` if there are none.
    """

    data: Tensor
    kl: dict[str, Tensor]
    score: Tensor | None = None

    def loss(self, kl_weight: float | Tensor = 1.0) -> Tensor:
        """Return the negative ELBO in nats, its KL terms multiplied by ``kl_weight``."""
        loss = self.data + kl_weight * _total(self.kl.values(), self.data)
        if self.score is None:
            return loss
        # If q has no reparameterized sampler, d E_q[f] = E_q[df + f d log q]. The second part is
        # added as a number that is zero and whose gradient is f d log q.
        return loss + loss.detach() * (self.score - self.score.detach())


def terms_of_traces(model_trace: Trace, guide_trace: Trace) -> Terms:
    """Return the terms of one draw.

    Args:
        model_trace: trace of the model, replayed on the guide.
        guide_trace: trace of the guide.

    Raises:
        ValueError: if the guide lacks a latent site of the model.
    """
    data = _data_term(model_trace)
    kl = _kl_terms(model_trace, guide_trace)
    return Terms(data, kl, _score_term(guide_trace, data))


def _data_term(model_trace: Trace) -> Tensor:
    data: Tensor | float = 0.0
    for _, site in sample_sites(model_trace):
        if site["is_observed"] and not is_deterministic(site):
            data = data - _log_prob(site, site["value"])
    return torch.as_tensor(data)


def _kl_terms(model_trace: Trace, guide_trace: Trace) -> dict[str, Tensor]:
    guide_sites = dict(sample_sites(guide_trace))
    latent_sites = {}
    for name, site in sample_sites(model_trace):
        if not site["is_observed"]:
            latent_sites[name] = site
    ordered = _same_order(latent_sites, guide_sites)
    kl: dict[str, Tensor] = {}
    for name, site in latent_sites.items():
        if name not in guide_sites:
            raise missing_site_error([name], guide_trace)
        kl[name] = _kl_term(guide_sites[name], site, ordered)
    for name, site in guide_sites.items():
        if name not in kl and not is_deterministic(site):
            kl[name] = _log_prob(site, site["value"])  # an auxiliary site, or a factor
    return kl


def _same_order(latent_sites: Iterable[str], guide_sites: Iterable[str]) -> bool:
    """Return whether the guide samples the latent sites in the order of the model.

    If so, no parent of a site in the model is its descendant in the guide, and each KL divergence
    may be taken by itself, given the parents.
    """
    names = dict.fromkeys(latent_sites)
    return list(names) == [name for name in guide_sites if name in names]


def _kl_term(guide_site: Site, model_site: Site, ordered: bool) -> Tensor:
    """Return the KL divergence of a site: in closed form if possible, else estimated at a draw."""
    q, p = guide_site["fn"], model_site["fn"]
    # Pyro's closed form for a Delta leaves out its log_density, the Jacobian of an autoguide.
    if ordered and not isinstance(q, Delta) and _weighted_alike(guide_site, model_site):
        try:
            return _scaled_sum(kl_divergence(q, p), model_site)
        except NotImplementedError:
            pass
    value = _value_of(guide_site)
    return _log_prob(guide_site, value) - _log_prob(model_site, value)


def _value_of(guide_site: Site) -> Tensor:
    """Return the value of a site at which its KL divergence is estimated.

    An undrawn weight stays undrawn: the estimate uses a draw of its own. A materialized one has the
    value that other sites may depend on.
    """
    value: Tensor = guide_site["value"]
    if not isinstance(value, DeferredSample):
        return value
    if value.draw.value is not None:
        return value.draw.value
    return guide_site["fn"].rsample()


def _weighted_alike(guide_site: Site, model_site: Site) -> bool:
    """Return whether both programs scale and mask a site alike.

    Only then is the difference of log q and log p a scaled and masked KL divergence.
    """
    return _same_weight(guide_site["scale"], model_site["scale"]) and _same_weight(
        guide_site["mask"], model_site["mask"]
    )


def _same_weight(first: Tensor | float | None, second: Tensor | float | None) -> bool:
    """Return whether two scales or masks are equal; tensors are compared by identity."""
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return first is second
    return first == second


def _score_term(guide_trace: Trace, like: Tensor) -> Tensor | None:
    """Return log q of the sites without a reparameterized sampler.

    It is the density of the draw, neither scaled nor masked, whatever the KL term of the site.
    """
    scores = []
    for _, site in sample_sites(guide_trace):
        if not site["fn"].has_rsample:
            scores.append(_elementwise_log_prob(site, site["value"]).sum())
    if not scores:
        return None
    return _total(scores, like)


def _log_prob(site: Site, value: Tensor) -> Tensor:
    """Return the scaled and masked log-density of a site at a value, summed."""
    return _scaled_sum(_elementwise_log_prob(site, value), site)


def _elementwise_log_prob(site: Site, value: Tensor) -> Tensor:
    log_prob: Tensor = site["fn"].log_prob(value, *site["args"], **site["kwargs"])
    return log_prob


def _scaled_sum(values: Tensor, site: Site) -> Tensor:
    weighted: Tensor = scale_and_mask(values, site["scale"], site["mask"])
    return weighted.sum()


def _total(values: Iterable[Tensor], like: Tensor) -> Tensor:
    """Return the sum of scalars, as a tensor like the given one even if there are none."""
    return sum(values, torch.zeros_like(like))
