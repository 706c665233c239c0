r"""The log density of a Pyro program as a function of one flat, unconstrained vector.

.. math::

    \log p(q) = \log p(y, w(q) \mid x) + \log\left|\det \frac{\partial w}{\partial q}\right|,
    \qquad q \in \mathbb{R}^D

Every latent site occupies an interval of q, which a bijection maps to its support. Plates and
``poutine.scale`` keep their meaning: with a minibatch of B out of N examples the log likelihood is
multiplied by N/B, so the result is an unbiased estimate of the log density on all the data. Units
are nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from pyro_bnn.network import BayesianNet
from pyro_bnn.runtime.compile import without_validation
from pyro_bnn.runtime.copying import deepcopy_together
from pyro_bnn.runtime.program import Program, sample_sites
from pyro_bnn.runtime.rng import fork_rng
from pyro_bnn.variational.parameters import LocalParamStore

from .latent_sites import (
    continuous_sites,
    discrete_sites,
    is_identity,
    require_proper_priors,
    require_samplable,
)

__all__ = ["LogDensity", "NonFiniteDensityError"]

Potential = Callable[[dict[str, Tensor]], Tensor]


class NonFiniteDensityError(RuntimeError):
    """The log density is NaN or infinite at a starting point; the message names the site."""


class LogDensity:
    r"""The log density :math:`\log p(q)` of a model and its gradient, for one chain or many.

    The model is copied and put in evaluation mode, as for prediction: dropout layers are inactive,
    and batch normalisation uses its running moments.

    Args:
        model: A ``BayesianNet`` or any Pyro program without free parameters.
        data: The arguments of the program, ``(x, y)``: all the data or a minibatch.
        caller: Name of the function that the user called, with which messages begin.

    Attributes:
        trace: One run of the program, with latent sites drawn from the prior.
        sites: The latent sites in the order of the program.
        size: D, the length of the vector.
        vectorized: Whether all chains are computed together; if not, one after the other.

    Raises:
        ImproperPriorError: A latent site has an improper prior, so there may be no posterior.
        ValueError: Parameters are free, there is no latent site, or a plate draws its own
            minibatch.

    Example:
        >>> def program(x, y):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", 3, subsample=range(len(x))):
        ...         pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
        >>> log_density = LogDensity(program, (torch.ones(3), torch.zeros(3)))
        >>> value, gradient = log_density.value_and_grad(torch.ones(1, 1), *log_density.data)
        >>> print(round(float(gradient), 3))  # of -q^2/2 - 3 q^2/2 at 1
        -4.0
    """

    def __init__(
        self, model: Program, data: tuple[Tensor, ...], caller: str = "LogDensity"
    ) -> None:
        self.model: Program = deepcopy_together(model)[0]
        self.data, self.caller = tuple(data), caller
        if isinstance(self.model, nn.Module):
            self.model.eval()
        if isinstance(self.model, BayesianNet):
            self.model.subsample_size = None  # the minibatch is an argument
        self.parameters = LocalParamStore(self.model)
        self.trace = self._run()
        require_samplable(self.model, self.trace, caller)
        self.sites = continuous_sites(self.trace)
        if not self.sites:
            raise ValueError(
                f"{caller}: the model has no continuous latent site, so there is nothing to sample"
            )
        first_value = self._site_values(self.trace)[next(iter(self.sites))]
        self.dtype, self.device = first_value.dtype, first_value.device
        self.enumerating_potential: Potential | None = None
        if discrete_sites(self.trace):
            self.enumerating_potential = _potential(self.model, self.data)
        self.vectorized = self.enumerating_potential is None and self._can_be_vectorized()

    @property
    def size(self) -> int:
        """D, the length of the unconstrained vector."""
        return max(site.stop for site in self.sites.values())

    # --- values -------------------------------------------------------------------------------

    def __call__(self, position: Tensor, *batch: Tensor) -> Tensor:
        """Return the log density at one position (D,), a scalar in nats."""
        if self.enumerating_potential is not None:
            return -self.enumerating_potential(self.split(position))
        values, jacobian = self._values(position)
        trace = poutine.trace(poutine.condition(self.model, data=values)).get_trace(*batch)
        return trace.log_prob_sum() + jacobian

    def value_and_grad(self, positions: Tensor, /, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return log density and gradient of all chains on one batch.

        Args:
            positions: (chains, D).
            batch: The arguments of the program.

        Returns:
            The log density, (chains,), and its gradient, (chains, D).
        """
        if self.enumerating_potential is not None:
            return self._value_and_grad_by_autograd(positions)
        with self.parameters.capture(), without_validation():
            if self.vectorized:
                return self._vmap(positions, batch, batch_axis=None)
            results = []
            for position in positions:
                results.append(torch.func.grad_and_value(self)(position, *batch))
        return _stacked(results)

    def value_and_grad_each(self, positions: Tensor, /, *batches: Tensor) -> tuple[Tensor, Tensor]:
        """Return log density and gradient with a minibatch (B, ...) for each chain.

        Args:
            positions: (chains, D).
            batches: The arguments of the program, (chains, B, ...).

        Returns:
            The log density, (chains,), and its gradient, (chains, D).
        """
        if self.enumerating_potential is not None:
            return self._value_and_grad_by_autograd(positions)
        with self.parameters.capture(), without_validation():
            if self.vectorized:
                return self._vmap(positions, batches, batch_axis=0)
            results = []
            for position, *batch in zip(positions, *batches, strict=True):
                results.append(torch.func.grad_and_value(self)(position, *batch))
        return _stacked(results)

    def _vmap(
        self, positions: Tensor, batch: tuple[Tensor, ...], batch_axis: int | None
    ) -> tuple[Tensor, Tensor]:
        """Return log density and gradient of all chains, computed together."""
        axes = (0,) + (batch_axis,) * len(batch)
        function = torch.func.grad_and_value(self)
        each = torch.vmap(function, in_dims=axes, randomness="different")
        gradients, values = each(positions, *batch)
        return values, gradients

    def _value_and_grad_by_autograd(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same without torch.func, with which Pyro cannot sum over discrete sites."""
        leaves = positions.detach().requires_grad_()
        with self.parameters.capture(), torch.enable_grad():
            values = torch.stack([self(leaf) for leaf in leaves])
        return values.detach(), torch.autograd.grad(values.sum(), leaves)[0]

    # --- positions ----------------------------------------------------------------------------

    def split(self, positions: Tensor) -> dict[str, Tensor]:
        """Split positions (..., D) into one unconstrained tensor for each site."""
        lead = positions.shape[:-1]
        sizes = [site.stop - site.start for site in self.sites.values()]
        # one split, whose derivative is one concatenation; slices would add up D numbers each
        intervals = torch.split(positions, sizes, dim=-1)
        unconstrained = {}
        for (name, site), interval in zip(self.sites.items(), intervals, strict=True):
            unconstrained[name] = interval.reshape(lead + site.unconstrained_shape)
        return unconstrained

    def constrain(self, positions: Tensor) -> dict[str, Tensor]:
        """Return the values of the sites, each ``(..., *shape)``, at positions (..., D)."""
        lead = positions.shape[:-1]
        values = {}
        for name, unconstrained in self.split(positions).items():
            site = self.sites[name]
            values[name] = site.transform(unconstrained).reshape(lead + site.shape)
        return values

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the positions (..., D) at which the sites have the given values.

        Args:
            values: The value of each site, ``(..., *shape)``.

        Raises:
            ValueError: A site has no value, or a value of another shape.
        """
        intervals = []
        for name, site in self.sites.items():
            value = values.get(name)
            expected = f"{self.caller}: expected a value of shape {tuple(site.shape)}"
            if value is None:
                raise ValueError(f"{expected} for site {name!r}, got none")
            lead = value.shape[: value.dim() - len(site.shape)]
            if value.shape != lead + site.shape:
                raise ValueError(
                    f"{expected} for site {name!r}, got one of shape {tuple(value.shape)}"
                )
            unconstrained = site.transform.inv(value.to(self.dtype))
            intervals.append(unconstrained.reshape((*lead, site.stop - site.start)))
        return torch.cat(intervals, -1)

    def prior_draw(self) -> Tensor:
        """Return a position (D,) drawn from the prior."""
        return self.unconstrain(self._site_values(self._run()))

    def require_finite(self, position: Tensor) -> None:
        """Raise an error if the density at a position (D,) is zero or not a number.

        Raises:
            NonFiniteDensityError: Naming the sites.
        """
        if self.enumerating_potential is not None:
            return
        values, jacobian = self._values(position)
        with self.parameters.capture(), without_validation():
            trace = poutine.trace(poutine.condition(self.model, data=values)).get_trace(*self.data)
            trace.compute_log_prob()
        places = []
        for name, node in trace.nodes.items():
            if "log_prob" in node and not _is_finite(node["log_prob"]):
                places.append(f"at site {name}")
        if not _is_finite(jacobian):
            places.append("in the Jacobian of the transforms")
        if places:
            raise NonFiniteDensityError(
                f"{self.caller}: the log density is NaN or infinite at the start, "
                f"{', '.join(places)}; check the data and the scales of the priors, or give "
                "another start (start=...)"
            )

    def _values(self, position: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the values of the sites and the log-determinant of all transforms."""
        values, jacobian = {}, position.new_zeros(())
        for name, unconstrained in self.split(position).items():
            transform = self.sites[name].transform
            values[name] = value = transform(unconstrained)
            if not is_identity(transform):
                log_det = transform.log_abs_det_jacobian(unconstrained, value)
                jacobian = jacobian + log_det.sum()
        return values, jacobian

    # --- construction -------------------------------------------------------------------------

    def _run(self) -> Trace:
        """Run the program once.

        The sites of a ``BayesianNet`` are listed first without being sampled, because an improper
        prior cannot be.
        """
        with self.parameters.capture(), torch.no_grad():
            if isinstance(self.model, BayesianNet):
                sites = poutine.trace(self.model.initialize).get_trace()
                require_proper_priors(sites, self.caller)
            return poutine.trace(self.model).get_trace(*self.data)

    def _site_values(self, trace: Trace) -> dict[str, Tensor]:
        """Return the values of the continuous latent sites in a run of the program."""
        values = {}
        for name, site in sample_sites(trace):
            if name in self.sites:
                values[name] = site["value"]
        return values

    def _can_be_vectorized(self) -> bool:
        """Return whether ``vmap`` can compute all chains together."""
        positions = torch.zeros(2, self.size, dtype=self.dtype, device=self.device)
        try:
            with self.parameters.capture(), without_validation():
                self._vmap(positions, self.data, batch_axis=None)
        except Exception:  # an operation that vmap does not support, or a branch on a value
            return False
        return True


def _is_finite(value: Tensor | float) -> bool:
    return bool(torch.as_tensor(value).isfinite().all())


def _stacked(results: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return values and gradients of all chains, from pairs of gradient and value."""
    gradients = [gradient for gradient, _ in results]
    values = [value for _, value in results]
    return torch.stack(values), torch.stack(gradients)


def _potential(model: Program, data: tuple[Tensor, ...]) -> Potential:
    """Return Pyro's own potential, -log p.

    It sums over the discrete sites, which must be marked for enumeration.
    """
    with fork_rng(torch.device("cpu"), 0):
        _, potential, _, _ = initialize_model(model, model_args=data, max_plate_nesting=1)
    return cast(Potential, potential)
