r"""The guide that samples every site from a family of its own.

.. math:: q(w) = \prod_s q_s(w_s)
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import Independent

from pyro_bnn.posterior.scale_mixture_moments import weight_moments
from pyro_bnn.variational.guide import Moments

from .families import as_event
from .latent import Plate

__all__ = ["Factorized"]


class Factorized(PyroModule):
    """A guide that factorizes over the sites.

    ``guide.sites`` mirrors the names of the sites: the mean of the site ``fc1.weight`` is
    ``guide.sites.fc1.weight.loc``.

    Args:
        families: the family of each site, in the order of the model.
        slabs: the slab width of each weight with a regularized horseshoe prior, for
            :meth:`moments`.
        plates: the plates that contain each site of a hand-written program.
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
        self.plates = dict(plates or {})
        self.sites = nn.Module()
        for name, family in families.items():
            _add_family(self.sites, name, family)

    def families(self) -> dict[str, nn.Module]:
        """Return the family of each site."""
        sites = self.sites  # read once: each reading is a parameter statement
        return {name: sites.get_submodule(name) for name in self.names}

    def distributions(self) -> dict[str, dist.TorchDistribution]:
        """Return the distribution of each site."""
        return {name: family() for name, family in self.families().items()}

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every site; the arguments are those of the model and have no effect."""
        draws = {}
        open_plates: dict[Plate, pyro.plate] = {}
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
    def moments(self) -> dict[str, Moments]:
        """Return mean and variance of every weight, the scales of scale mixtures marginalized."""
        return weight_moments(self.distributions(), self.slabs)


def _in_plate(q: dist.TorchDistribution, plate: Plate) -> dist.TorchDistribution:
    """Return q with the axes of the plate in its batch shape instead of its event shape."""
    base = q
    if isinstance(q, Independent):
        base = q.base_dist
    axes = len(q.batch_shape) + len(q.event_shape)
    batch_axes = max(-plate.dim, len(q.batch_shape))
    return as_event(base, axes - batch_axes)


def _add_family(tree: nn.Module, name: str, family: nn.Module) -> None:
    """Register a family under the dotted name of its site."""
    *path, last = name.split(".")
    for part in path:
        if part not in tree._modules:
            tree.add_module(part, nn.Module())
        tree = tree.get_submodule(part)
    # If "w.scale" is a site as well as "w", it may have created a container at "w" before.
    container = tree._modules.pop(last, None)
    if container is not None:
        for child, module in container.named_children():
            family.add_module(child, module)
    tree.add_module(last, family)
