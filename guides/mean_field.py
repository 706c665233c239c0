"""MeanField: the automatic guide, for any model."""

from __future__ import annotations

from typing import Any

from torch import nn

from pyro_bnn.runtime.program import Program

from .factorized import Factorized
from .families import default_family
from .latent import latent_sites, slab_widths

__all__ = ["MeanField"]


class MeanField(Factorized):
    r"""The fully factorized posterior: Gaussian for real sites, log-normal for positive ones.

    .. math::

        q(w) = \prod_i \mathcal{N}(w_i; \mu_i, \sigma_i^2) \prod_j \mathrm{LogNormal}(z_j; m_j, v_j)

    Its sites have plain distributions, so that KL divergences have closed forms and weights can
    stay undrawn. Means start at the weights of the network: to start from a trained network, give
    it to ``BayesianNet``.

    Args:
        model: a ``BayesianNet``, or any Pyro program together with example arguments,
            ``MeanField(model, x, y)``.
        args: example arguments.
        init_scale: initial standard deviation, of the logarithm for positive sites.
        kwargs: example arguments by keyword.

    Raises:
        ValueError: if a site is neither real nor positive, if ``init_scale`` is not above zero, or
            if a program needs example arguments and gets none.

    Example:
        >>> from pyro_bnn import BayesianNet, likelihoods, priors
        >>> net = nn.Linear(3, 2)
        >>> model = BayesianNet(net, priors.Horseshoe(), likelihoods.Categorical(), num_data=10)
        >>> for name, family in MeanField(model).families().items():
        ...     print(name, type(family).__name__)
        weight.global_scale LogNormal
        weight.scale LogNormal
        weight.unit Gaussian
    """

    def __init__(self, model: Program, *args: Any, init_scale: float = 1e-2, **kwargs: Any) -> None:
        if not init_scale > 0:
            raise ValueError(f"MeanField: expected init_scale above zero, got {init_scale}")
        families: dict[str, nn.Module] = {}
        plates = {}
        for name, site in latent_sites("MeanField", model, *args, **kwargs).items():
            families[name] = default_family("MeanField", name, site, init_scale)
            plates[name] = site.plates
        super().__init__(families, slab_widths(model), plates)
