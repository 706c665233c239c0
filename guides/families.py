r"""Variational families of one site, and the guide that multiplies them.

A family is a module that holds the variational parameters of one site and returns its distribution; a factorised guide
samples every site from its own,

.. math:: q(w) = \prod_s q_s(w_s).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_bnn.network import BayesianNet
from pyro_bnn.posterior.scale_mixture_moments import weight_moments

__all__ = [
    "Factorized",
    "Gaussian",
    "LogNormal",
    "family_for",
    "latent_sites",
    "real_sites",
    "slab_widths",
]


class Gaussian(nn.Module):
    r"""Independent Gaussians, :math:`q(w) = \mathcal{N}(w; \mu, \sigma^2)`, with the parameters ``loc`` and
    ``log_scale``.

    Args:
        initial: where :math:`\mu` starts; its shape is the site's.
        init_scale: where :math:`\sigma` starts, the same for all weights.
    """

    def __init__(self, initial: Tensor, init_scale: float = 1e-2) -> None:
        super().__init__()
        self.loc = nn.Parameter(initial.detach().clone())
        self.log_scale = nn.Parameter(torch.full_like(initial, init_scale).log())

    def forward(self) -> dist.TorchDistribution:
        """Return q as one event."""
        return dist.Normal(self.loc, self.log_scale.exp(), validate_args=False).to_event(
            self.loc.dim()
        )


class LogNormal(nn.Module):
    r"""Independent log-normals for positive numbers, :math:`\log z \sim \mathcal{N}(\mu, \sigma^2)`.

    Args:
        initial: where the median :math:`e^\mu` starts.
        init_scale: where :math:`\sigma` starts.
    """

    def __init__(self, initial: Tensor, init_scale: float = 1e-2) -> None:
        super().__init__()
        self.loc = nn.Parameter(initial.detach().log())
        self.log_scale = nn.Parameter(torch.full_like(initial, init_scale).log())

    def forward(self) -> dist.TorchDistribution:
        """Return q as one event."""
        return dist.LogNormal(self.loc, self.log_scale.exp(), validate_args=False).to_event(
            self.loc.dim()
        )


class Plate(NamedTuple):
    """A plate that a latent site lies in."""

    name: str
    size: int
    dim: int


class Factorized(PyroModule):
    """A guide that samples each site from a family of its own.

    ``guide.sites`` mirrors the names of the sites: the mean of site ``fc1.weight`` is ``guide.sites.fc1.weight.loc``.

    Args:
        families: the family of each site, in the order of the model.
        slabs: the slab width of each weight that has a regularised horseshoe prior; :meth:`moments` needs it.
        plates: those that each site of a hand-written program lies in.
    """

    def __init__(
        self,
        families: Mapping[str, nn.Module],
        slabs: Mapping[str, Tensor] | None = None,
        plates: Mapping[str, tuple[Plate, ...]] | None = None,
    ) -> None:
        super().__init__()
        self.names = list(families)
        self.slabs = dict(slabs or {})
        self.plates = {
            name: site_plates for name, site_plates in (plates or {}).items() if site_plates
        }
        self.sites = nn.Module()
        for name, family in families.items():
            _plant(self.sites, name, family)

    def families(self) -> dict[str, Any]:
        """Return the family of each site."""
        sites = self.sites  # read once: each reading is a parameter statement
        return {name: sites.get_submodule(name) for name in self.names}

    def distributions(self) -> dict[str, dist.TorchDistribution]:
        """Return the distribution of each site."""
        return {name: family() for name, family in self.families().items()}

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every site; the arguments are the model's and are not looked at."""
        draws, open_plates = {}, {}
        for name, q in self.distributions().items():
            with contextlib.ExitStack() as stack:
                for plate in self.plates.get(name, ()):
                    if plate not in open_plates:
                        open_plates[plate] = pyro.plate(plate.name, plate.size, dim=plate.dim)
                    stack.enter_context(open_plates[plate])
                    q = _in_plate(q, plate)
                draws[name] = pyro.sample(name, q)
        return draws

    @torch.no_grad()
    def moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return mean and variance of every weight, the scales of scale mixtures marginalised."""
        return weight_moments(self.distributions(), self.slabs)


def _in_plate(q: Any, plate: Plate) -> Any:
    """Return q with the axes of the plate in its batch shape rather than in its event."""
    base = q.base_dist if isinstance(q, torch.distributions.Independent) else q
    axes = len(q.batch_shape) + len(q.event_shape)
    return base.to_event(axes - max(-plate.dim, len(q.batch_shape)))


def _plant(tree: nn.Module, name: str, family: nn.Module) -> None:
    """Put the family at its dotted name."""
    *path, last = name.split(".")
    for part in path:
        if part not in tree._modules:
            tree.add_module(part, nn.Module())
        tree = tree.get_submodule(part)
    below = tree._modules.pop(
        last, None
    )  # of sites "w.scale" and "w" the first may have made a container
    for child, module in () if below is None else below.named_children():
        family.add_module(child, module)
    tree.add_module(last, family)


class Latent(NamedTuple):
    """A latent site: where its posterior starts, its support, and its group axis (for the weights of a
    ``BayesianNet``)."""

    initial: Tensor
    support: Any
    group_dim: int | None
    plates: tuple[Plate, ...] = ()


def latent_sites(model: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Latent]:
    """Return every latent site of a model: of a ``BayesianNet`` at its initial values, else at one draw from the prior.

    Args:
        model: a ``BayesianNet``, or any Pyro program together with example arguments.

    Raises:
        ValueError: a hand-written program without example arguments; a program without latent sites; a latent site in a
            subsampled plate, whose posterior would have to know which examples it is given.
    """
    if isinstance(model, BayesianNet):
        with pyro.validation_enabled(
            False
        ):  # nothing is sampled; on the meta device there is nothing to validate
            trace = poutine.trace(model.initialize).get_trace()
        group_dims = {site.name: site.group_dim for site in model.sites}
    else:
        trace, group_dims = _prior_trace(model, args, kwargs), {}
    sites = {}
    nodes: dict[str, Any] = dict(trace.nodes)
    for name, site in nodes.items():
        if (
            site["type"] != "sample"
            or site["is_observed"]
            or type(site["fn"]).__name__ == "_Subsample"
        ):
            continue
        if any(frame.full_size not in (None, frame.size) for frame in site["cond_indep_stack"]):
            raise ValueError(
                f"site {name!r} lies in a subsampled plate: write its guide by hand, as a function of the examples"
            )
        plates = tuple(
            Plate(f.name, f.size, f.dim) for f in site["cond_indep_stack"] if f.vectorized
        )
        group_dim = group_dims.get(name.removesuffix(".unit"))
        sites[name] = Latent(site["value"].detach(), site["fn"].support, group_dim, plates)
    if not sites:
        raise ValueError("the model has no latent site: there is nothing to infer")
    return sites


def real_sites(
    owner: str, model: Callable[..., Any], *args: Any, **kwargs: Any
) -> dict[str, Latent]:
    """Return the latent sites of a model for a guide that knows real ones only.

    Args:
        owner: the guide, for the error.
        model: as for :func:`latent_sites`.

    Raises:
        ValueError: a latent site whose support is not the real line (a horseshoe's scales, an inferred noise).
    """
    sites = latent_sites(model, *args, **kwargs)
    for name, site in sites.items():
        if _elementary(site.support) is not constraints.real:
            raise ValueError(
                f"{owner}: site {name!r} has the support {site.support}, this guide is for real sites; "
                "use MeanField, or a prior on the weights themselves and a noise scale that is known or learned"
            )
    return sites


def family_for(name: str, support: Any) -> type[Gaussian] | type[LogNormal]:
    """Return the family for a support: Gaussian on the real line, LogNormal on the positive half of it.

    Raises:
        ValueError: another support.
    """
    support = _elementary(support)
    if support is constraints.real:
        return Gaussian
    if support in (constraints.positive, constraints.nonnegative):
        return LogNormal
    raise ValueError(
        f"site {name!r} has the support {support}; mean-field families are for real and positive ones. "
        "Write this guide by hand"
    )


def _elementary(support: Any) -> Any:
    """Return the support of one element."""
    while hasattr(support, "base_constraint"):  # independent(...), and that of a mixture
        support = support.base_constraint
    return support


def slab_widths(model: Callable[..., Any]) -> dict[str, Tensor]:
    """Return the slab of every weight under a regularised horseshoe."""
    if not isinstance(model, BayesianNet):
        return {}
    slabs = {name: getattr(model.prior_of(name), "slab", None) for name in model.names}
    return {name: slab for name, slab in slabs.items() if slab is not None}


def _prior_trace(model: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    try:
        inspect.signature(model).bind(*args, **kwargs)
    except TypeError as error:
        raise ValueError(
            f"a guide for a hand-written Pyro program needs example arguments, MeanField(model, x, y): {error}"
        ) from error
    with (
        torch.no_grad(),
        pyro.get_param_store().scope(),
    ):  # the caller's parameter store stays as it is
        return poutine.trace(model).get_trace(*args, **kwargs)
