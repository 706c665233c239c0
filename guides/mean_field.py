"""MeanField: the automatic guide, for any model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .families import Factorized, family_for, latent_sites, slab_widths

__all__ = ["MeanField"]


class MeanField(Factorized):
    r"""The fully factorised posterior: a Gaussian for every real site, a log-normal for every positive one.

    .. math:: q(w) = \prod_i \mathcal{N}(w_i; \mu_i, \sigma_i^2) \prod_j \mathrm{LogNormal}(z_j; m_j, v_j)

    It emits plain distributions, so that KL divergences are closed and the weights can stay undrawn. Means start at the
    network's own
    weights: hand a trained network to ``BayesianNet`` to start from it.

    Args:
        model: a ``BayesianNet``, or any Pyro program together with example arguments, ``MeanField(model, x, y)``.
        init_scale: the standard deviation to start from (of the logarithm, for positive sites).

    Raises:
        ValueError: a site that is neither real nor positive, ``init_scale`` not above zero, or a program without
            example arguments.

    >>> from pyro_bnn import BayesianNet, likelihoods, priors
    >>> from torch import nn
    >>> model = BayesianNet(nn.Linear(3, 2), priors.Horseshoe(), likelihoods.Categorical(), num_data=10)
    >>> [(name, type(family).__name__) for name, family in MeanField(model).families().items()]
    [('weight.global_scale', 'LogNormal'), ('weight.scale', 'LogNormal'), ('weight.unit', 'Gaussian')]
    """

    def __init__(
        self, model: Callable[..., Any], *args: Any, init_scale: float = 1e-2, **kwargs: Any
    ) -> None:
        if not init_scale > 0:
            raise ValueError(f"MeanField: expected init_scale above zero, got {init_scale}")
        sites = latent_sites(model, *args, **kwargs)
        families = {
            name: family_for(name, site.support)(site.initial, init_scale)
            for name, site in sites.items()
        }
        super().__init__(
            families, slab_widths(model), {name: site.plates for name, site in sites.items()}
        )
