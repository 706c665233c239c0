r"""Local reparameterization: draw the output of a layer instead of its weights.

If the weights of a dense layer are independent Gaussians,
:math:`w_{ji} \sim \mathcal{N}(\mu_{ji}, \sigma_{ji}^2)`, its output is Gaussian too,

.. math::

    y_j \sim \mathcal{N}\Big(\sum_i x_i \mu_{ji},\ \sum_i x_i^2 \sigma_{ji}^2\Big),

independently for every example. Drawing y instead of w gives the same expected loss, needs fewer
random numbers, and lowers the variance of the gradient, because the noise of different examples is
independent.

:func:`local_reparameterization` wraps a guide in an effect handler. The handler answers the site of
a weight with a deferred sample: a tensor that has a distribution and no value. The operations that
the network applies to the tensor decide what is drawn, and when. A deferred sample is in one of
three states:

==============  ===================================  =========================================
State           Event                                Next state
==============  ===================================  =========================================
*undrawn*       A layer needs the weight.            *output drawn*: each example has noise of
                                                     its own.
*undrawn*       Another operation needs the value.   *materialized*: one draw, shared by all
                                                     examples, and a warning.
*output drawn*  Any use.                             :class:`WeightReuseError`: a second use
                                                     would give the weight a second value.
*materialized*  A layer needs the weight.            :class:`WeightReuseError`, likewise.
*materialized*  Another operation needs the value.   *materialized*: the same draw again.
==============  ===================================  =========================================

A deferred sample that is scaled or transposed is another sample of the same draw, and shares its
state. The operation decides what happens:

================================  ============================================================
Operation                         Effect
================================  ============================================================
``w * c``, ``w / c``              w stays undrawn if the result has the shape of w.
``w + c``                         A Gaussian w stays undrawn if the result has the shape of w.
``w.T``, ``w.transpose(0, 1)``    A matrix w stays undrawn.
``sqrt(w)``                       A log-normal w stays undrawn.
``w * z``, z deferred             w stays undrawn. If ``per_example_scales`` is set, the group
                                  scales z are drawn for each example together with the output
                                  of the layer; otherwise z is materialized.
``F.linear(x, w, b)``, ``x @ w``  The output is drawn, with the noise of a deferred bias b.
``F.conv2d(x, w, b)``, ...        The output of a convolution is drawn, likewise; so is that of
                                  a transposed convolution.
``y + b``, b a vector             The sum is drawn: b is taken for the bias of a layer.
``w.shape``, ``w.dtype``, ...     Nothing is drawn.
everything else                   w is materialized, with a warning.
================================  ============================================================

The states live in :mod:`pyro_bnn.variational.deferred`, the operations in
:mod:`pyro_bnn.variational.deferred_operations`, and how an output is drawn from the distribution of
a weight in :mod:`pyro_bnn.variational.layer_rules`.

Source: Kingma, Salimans & Welling (2015), section 2.2, https://arxiv.org/abs/1506.02557.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import nn
from torch.distributions import Distribution, LogNormal, Normal

from pyro_bnn.distributions import BernoulliDropout, TruncatedLogNormal
from pyro_bnn.distributions.independent import base_distribution
from pyro_bnn.runtime.program import Site, shape_of

from . import deferred_operations as deferred_operations  # registers what operations do
from .deferred import (
    DeferredDraw,
    DeferredSample,
    DrawOptions,
    ReparameterizationWarning,
    WeightReuseError,
)
from .guide import Guide
from .layer_rules import draw_output, flip_signs

__all__ = [
    "DeferredSample",
    "ReparameterizationWarning",
    "Reparameterized",
    "WeightReuseError",
    "draw_output",
    "flipout",
    "local_reparameterization",
]


def local_reparameterization(
    guide: Guide, hide: Collection[str] = (), per_example_scales: bool = False
) -> Reparameterized:
    r"""Return the guide with its weights deferred, so that layers draw their outputs.

    The reparameterization is exact if each weight is used once per example, in a dense layer. In a
    convolution, and in a dense layer that sees several positions of one example, every output of a
    Gaussian weight has its exact marginal distribution, but the covariances between positions are
    dropped. Use it for training only: predictions draw real weights, one network for the whole
    batch.

    Args:
        guide: any guide. Sites with a Normal distribution are deferred, and sites with a
            ``BernoulliDropout`` distribution that has groups; sites with other distributions,
            sites of a single number and sites inside a plate are sampled as usual.
        hide: names of sites to sample as usual.
        per_example_scales: whether the group scales of a scale mixture are drawn for each example,
            as in Bayesian compression: scales of input units on the inputs of a layer, scales of
            output channels on its outputs. A scale of one weight, a scale of the whole layer and
            scales under a slab are drawn once.

    Returns:
        A guide, as a module that owns the given one.

    Raises:
        WeightReuseError: at the first forward pass that uses a deferred weight twice.
        ValueError: at the first forward pass, if ``hide`` names a site that the guide does not
            sample.
    """
    options = DrawOptions("local_reparameterization", draw_output, per_example_scales)
    return Reparameterized(guide, options, hide)


def flipout(guide: Guide, hide: Collection[str] = ()) -> Reparameterized:
    r"""Return the guide with its weights deferred, so that layers flip the signs of their noise.

    Every Gaussian weight is drawn once, and each example has random signs of its own,

    .. math::

        y = x \mu^T + ((x \circ r)\, \Delta^T) \circ s, \qquad
        \Delta = w - \mu,\quad r, s \in \{-1, 1\}.

    Unlike local reparameterization, this keeps the covariances between the positions of one
    example.

    Args:
        guide: any guide.
        hide: names of sites to sample as usual.

    Returns:
        A guide, as a module that owns the given one.

    Raises:
        WeightReuseError: at the first forward pass that uses a deferred weight twice.
        ValueError: at the first forward pass, if ``hide`` names a site that the guide does not
            sample.

    Source: Wen et al. (2018), equation 4, https://arxiv.org/abs/1803.04386.
    """
    return Reparameterized(guide, DrawOptions("flipout", flip_signs), hide)


class Reparameterized(nn.Module):
    """A guide whose weights are deferred; its parameters are those of the guide.

    Args:
        guide: the guide.
        options: how its sites are drawn.
        hide: names of sites to sample as usual.
    """

    def __init__(self, guide: Guide, options: DrawOptions, hide: Collection[str]) -> None:
        super().__init__()
        self.guide = guide
        self.handler = DeferWeights(options, frozenset(hide))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the guide; its trace holds deferred samples."""
        with self.handler:
            result = self.guide(*args, **kwargs)
        self.handler.require_hidden_sites_seen()
        return result


class DeferWeights(Messenger):
    """Answer the sites of weights with deferred samples.

    Args:
        options: how the sites are drawn.
        hide: names of sites to sample as usual.
    """

    def __init__(self, options: DrawOptions, hide: frozenset[str]) -> None:
        super().__init__()
        self.options = options
        self.hide = hide
        self.unseen = set(hide)

    def require_hidden_sites_seen(self) -> None:
        """Check that the guide has sampled every hidden site.

        Raises:
            ValueError: if it has not.
        """
        if self.unseen:
            names = ", ".join(map(repr, sorted(self.unseen)))
            raise ValueError(
                f"{self.options.function}: hide names {names}, which the guide does not sample; "
                "expected a collection of names of its sites"
            )

    def _pyro_sample(self, msg: Site) -> None:
        name = msg["name"]
        self.unseen.discard(name)
        if name in self.hide or not _is_weight(msg):
            return
        distribution = base_distribution(msg["fn"])
        if self._has_rule(distribution) and shape_of(distribution).numel() > 1:
            draw = DeferredDraw(name, distribution, self.options)
            msg["value"] = DeferredSample.of(draw)
            msg["done"] = True

    def _has_rule(self, distribution: Distribution) -> bool:
        if isinstance(distribution, BernoulliDropout):
            return distribution.group_dim is not None
        if isinstance(distribution, LogNormal | TruncatedLogNormal):
            return self.options.per_example_scales
        return isinstance(distribution, Normal)


def _is_weight(site: Site) -> bool:
    """Return whether a site is latent, not drawn yet, and may be the weight of a layer."""
    if site["done"] or site["is_observed"] or site["value"] is not None:
        return False
    # A site inside a plate is local to the data; an auxiliary site is there to be transformed.
    return not site["cond_indep_stack"] and not site["infer"].get("is_auxiliary")
