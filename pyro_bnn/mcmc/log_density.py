r"""The joint log-density of a Pyro program as a function of one flat, unconstrained vector.

.. math::

    U(q) = \log p(y, w(q) \mid x) + \log\left|\det \frac{\partial w}{\partial q}\right|,
    \qquad q \in \mathbb{R}^D

Every latent site takes its stretch of q, through a bijection from the real line to its support. What plates and
``poutine.scale`` say about a minibatch is kept: with B of N examples the log-likelihood is multiplied by N/B, so U is
an unbiased estimate of its full-data value. In nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor, nn
from torch.distributions import biject_to

from pyro_bnn.distributions import ImproperPriorError, LogUniform
from pyro_bnn.network import BayesianNet
from pyro_bnn.runtime.compile import without_validation
from pyro_bnn.runtime.copying import deepcopy_together
from pyro_bnn.runtime.rng import fork_rng
from pyro_bnn.variational.parameters import LocalParamStore

__all__ = ["LogDensity", "NonFiniteDensityError"]


class NonFiniteDensityError(RuntimeError):
    """The log-density is infinite or NaN where sampling was to start; the message names the site."""


class LatentSite(NamedTuple):
    """One latent site: the shape of its value, the bijection from the real line, and its stretch of the vector."""

    shape: torch.Size
    transform: Any
    unconstrained_shape: torch.Size
    start: int
    stop: int


class LogDensity:
    r"""The joint log-density :math:`U(q)` of a model and its gradient, for one chain or many.

    The model is copied and put in evaluation mode, as for prediction: dropout layers pass everything, batch
    normalisation uses its running moments.

    Args:
        model: a ``BayesianNet`` or any Pyro program without parameters to learn.
        data: the arguments of the program, ``(x, y)``: all the data or a minibatch.

    Attributes:
        trace: one run of the program, latent sites drawn from the prior.
        sites: the latent sites in the order of the program.
        size: D, the length of the vector.
        vectorized: whether chains are computed together; if not, one by one.

    Raises:
        ImproperPriorError: a latent site under an improper prior, which has no posterior to sample.
        ValueError: parameters that are still free, no latent site, or a plate that draws its own minibatch.

    >>> def program(x, y):
    ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", 3, subsample=range(len(x))):
    ...         pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
    >>> density = LogDensity(program, (torch.ones(3), torch.zeros(3)))
    >>> value, gradient = density.value_and_grad(torch.ones(1, 1), *density.data)
    >>> print(round(float(gradient), 3))  # of -q^2/2 - 3 q^2/2 at 1
    -4.0
    """

    def __init__(self, model: Callable[..., Any], data: tuple[Tensor, ...]) -> None:
        (self.model,) = deepcopy_together(model)
        self.data = tuple(data)
        if isinstance(self.model, nn.Module):
            self.model.eval()
        if isinstance(self.model, BayesianNet):
            self.model.subsample_size = None  # the minibatch is an argument
        self.statements = LocalParamStore(self.model)
        self.trace = trace = self._trace()
        self.discrete = [name for name, site in trace.nodes.items() if _is_discrete(site)]
        _require_samplable(self.model, trace)
        self.sites: dict[str, LatentSite] = {}
        for name, site in trace.nodes.items():
            if _is_latent(site) and name not in self.discrete:
                transform = biject_to(site["fn"].support)
                free = transform.inv(site["value"]).shape
                start = self.size
                self.sites[name] = LatentSite(
                    site["value"].shape, transform, free, start, start + free.numel()
                )
        like = next((trace.nodes[name]["value"] for name in self.sites), None)
        if like is None:
            raise ValueError("the model has no continuous latent site: there is nothing to sample")
        self.dtype, self.device = like.dtype, like.device
        self.plain = None if not self.discrete else _summed_out(self.model, self.data)
        self.vectorized = self.plain is None and self._vectorizes()

    @property
    def size(self) -> int:
        """D, the length of the unconstrained vector."""
        return max((site.stop for site in self.sites.values()), default=0)

    # --- values -------------------------------------------------------------------------------------------------------

    def __call__(self, position: Tensor, *batch: Tensor) -> Tensor:
        """Return the log-density at one position (D,), a scalar in nats."""
        if self.plain is not None:
            return -self.plain(self.free(position))
        values, jacobian = self._values(position)
        trace = poutine.trace(poutine.condition(self.model, data=values)).get_trace(*batch)
        return trace.log_prob_sum() + jacobian

    def value_and_grad(self, positions: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-density (chains,) and its gradient (chains, D) at positions (chains, D), on one batch."""
        return self._over_chains(positions, batch, shared=True)

    def value_and_grad_each(self, positions: Tensor, *batches: Tensor) -> tuple[Tensor, Tensor]:
        """The same with a minibatch for each chain, (chains, B, ...)."""
        return self._over_chains(positions, batches, shared=False)

    def _over_chains(
        self, positions: Tensor, batches: tuple[Tensor, ...], shared: bool
    ) -> tuple[Tensor, Tensor]:
        if self.plain is not None:  # Pyro's sum over discrete sites does not go through torch.func
            leaves = positions.detach().requires_grad_()
            with self.statements.capture(), torch.enable_grad():
                values = torch.stack([self(leaf) for leaf in leaves])
            return values.detach(), torch.autograd.grad(values.sum(), leaves)[0]
        one = torch.func.grad_and_value(self)
        with self.statements.capture(), without_validation():
            if self.vectorized:
                axes = (0, *((None if shared else 0,) * len(batches)))
                gradients, values = torch.vmap(one, in_dims=axes, randomness="different")(
                    positions, *batches
                )
                return values, gradients
            each = [
                one(position, *(batch if shared else batch[chain] for batch in batches))
                for chain, position in enumerate(positions)
            ]
        gradients, values = (torch.stack(parts) for parts in zip(*each, strict=True))
        return values, gradients

    # --- positions ----------------------------------------------------------------------------------------------------

    def constrain(self, positions: Tensor) -> dict[str, Tensor]:
        """Return the values of the sites at positions (..., D)."""
        lead = positions.shape[:-1]
        flat = self.free(positions)
        return {
            name: site.transform(flat[name]).reshape(lead + site.shape)
            for name, site in self.sites.items()
        }

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the positions (..., D) at which the sites have these values, each (..., *shape).

        Raises:
            ValueError: a site that is missing, or whose value has another shape.
        """
        parts = []
        for name, site in self.sites.items():
            value = values.get(name)
            rank = len(site.shape)
            if value is None or value.shape[value.dim() - rank :] != site.shape:
                got = "none" if value is None else f"one of shape {tuple(value.shape)}"
                raise ValueError(
                    f"expected a value of shape {tuple(site.shape)} for site {name!r}, got {got}"
                )
            lead = value.shape[: value.dim() - rank]
            free = site.transform.inv(value.to(self.dtype))
            parts.append(free.reshape((*lead, site.stop - site.start)))
        return torch.cat(parts, -1)

    def prior_draw(self) -> Tensor:
        """Return a position (D,) drawn from the prior."""
        trace = self._trace()
        return self.unconstrain({name: trace.nodes[name]["value"] for name in self.sites})

    def require_finite(self, position: Tensor) -> None:
        """Refuse a start without a finite density.

        Raises:
            NonFiniteDensityError: naming the sites.
        """
        if self.plain is not None:
            return
        values, jacobian = self._values(position)
        with self.statements.capture(), without_validation():
            trace = poutine.trace(poutine.condition(self.model, data=values)).get_trace(*self.data)
            trace.compute_log_prob()
        bad = [
            name
            for name, site in trace.nodes.items()
            if "log_prob" in site and not _finite(site["log_prob"])
        ]
        if bad or not _finite(jacobian):
            raise NonFiniteDensityError(
                f"the log-density is not finite at the start, at site {', '.join(bad) or 'none: the transforms are'}; "
                "check the data and the scales of the priors there, or give another start"
            )

    def _values(self, position: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the sites' values and the log-determinant of all transforms at one position."""
        values, jacobian = {}, position.new_zeros(())
        for name, free in self.free(position).items():
            site = self.sites[name]
            values[name] = value = site.transform(free)
            if not _is_identity(site.transform):
                jacobian = jacobian + site.transform.log_abs_det_jacobian(free, value).sum()
        return values, jacobian

    def free(self, positions: Tensor) -> dict[str, Tensor]:
        """Cut positions (..., D) into one unconstrained tensor per site."""
        lead = positions.shape[:-1]
        sizes = [site.stop - site.start for site in self.sites.values()]
        parts = positions.split(sizes, -1)
        return {
            name: part.reshape(lead + site.unconstrained_shape)
            for (name, site), part in zip(self.sites.items(), parts, strict=True)
        }

    # --- how it was made ----------------------------------------------------------------------------------------------

    def _trace(self) -> Any:
        """Run the program once; a ``BayesianNet`` under an improper prior shows its sites without being sampled."""
        with self.statements.capture(), torch.no_grad():
            if isinstance(self.model, BayesianNet):
                _require_proper(poutine.trace(self.model.initialize).get_trace())
            return poutine.trace(self.model).get_trace(*self.data)

    def _vectorizes(self) -> bool:
        """Return whether the chains can be computed together by ``vmap``."""
        self.vectorized = True
        try:
            self.value_and_grad(
                torch.zeros(2, self.size, dtype=self.dtype, device=self.device), *self.data
            )
        except Exception:  # an operation that vmap does not know, or a decision by a value
            return False
        return True


def _require_samplable(model: Any, trace: Any) -> None:
    """Refuse programs whose posterior is not that of their sites alone."""
    _require_proper(trace)
    if isinstance(model, BayesianNet):
        free = list(model.free_parameters())
    else:
        free = list(trace.param_nodes)
        free += (
            [name for name, p in model.named_parameters() if p.requires_grad]
            if isinstance(model, nn.Module)
            else []
        )
    if free:
        raise ValueError(
            f"the parameters {', '.join(sorted(set(free)))} are free: a sampler would leave them where they are, and "
            'its posterior would be of another model than that of fit. Give them a prior (BayesianNet(net, {"*": '
            "prior}), Gaussian(scale=distribution)), or hold them at their present values by model.freeze()"
        )
    for name, site in trace.nodes.items():
        if type(site.get("fn")).__name__ == "_Subsample" and site["fn"].subsample_size not in (
            None,
            site["fn"].size,
        ):
            raise ValueError(
                f"the plate {name!r} draws its own minibatch of {site['fn'].subsample_size}; a sampler hands the "
                f"examples in: pyro.plate({name!r}, {site['fn'].size}, subsample=range(len(x)))"
            )


def _require_proper(trace: Any) -> None:
    for name, site in trace.nodes.items():
        if _is_latent(site) and isinstance(
            _base(site["fn"]), LogUniform | pyro.distributions.ImproperUniform
        ):
            raise ImproperPriorError(
                f"site {name!r} has the improper prior {type(_base(site['fn'])).__name__}: its posterior need not "
                "exist, and cannot be sampled. Proper relatives: priors.Horseshoe(slab=...), priors.LearnedNormal "
                "(ARD, by fit alone), a Student-t, or a truncated log-uniform"
            )


def _base(distribution: Any) -> Any:
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return distribution


def _is_latent(site: Any) -> bool:
    return (
        site["type"] == "sample"
        and not site["is_observed"]
        and type(site["fn"]).__name__ != "_Subsample"
        and not site["infer"].get("_deterministic")
    )


def _is_discrete(site: Any) -> bool:
    return _is_latent(site) and site["fn"].has_enumerate_support


def _is_identity(transform: Any) -> bool:
    while hasattr(transform, "base_transform"):
        transform = transform.base_transform
    return transform == torch.distributions.identity_transform


def _finite(value: Any) -> bool:
    return bool(torch.as_tensor(value).isfinite().all())


def _summed_out(model: Any, data: tuple[Tensor, ...]) -> Callable[[dict[str, Tensor]], Tensor]:
    """Return Pyro's own potential, which sums discrete sites out; the sites must be marked for enumeration."""
    with fork_rng(torch.device("cpu"), 0):
        return initialize_model(model, model_args=data, max_plate_nesting=1)[1]
