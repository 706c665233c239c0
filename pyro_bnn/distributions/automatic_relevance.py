"""Automatic relevance determination: a Gaussian prior whose variances are fitted to the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import softplus

from .dropout import GaussianDropout
from .improper import refusing
from .multiplicative_noise import MEAN_OFFSET
from .shapes import Shape, broadcast_shapes
from .typed import register_kl

__all__ = ["AutomaticRelevance", "kl_automatic_relevance"]

_LARGEST_RATIO = 1e18  # its square is within single precision

_refuse = refusing(
    "AutomaticRelevance has neither a density nor draws: its variances are those that suit the "
    "posterior best, so there is no prior before there is a posterior. It has a KL divergence "
    "from Gaussians, for variational inference alone. Where a proper prior is needed, use a "
    "relative: LearnedNormal (one fitted variance for the whole tensor), Horseshoe (a "
    "half-Cauchy instead of a fitted scale), or Normal."
)


def kl_automatic_relevance(log_alpha: Tensor) -> Tensor:
    r"""Return the divergence of a Gaussian from the zero-mean Gaussian nearest to it.

    .. math:: \min_\tau \mathrm{KL}\big(N(\theta, \alpha\theta^2) \,\|\, N(0, 1/\tau)\big)
        = \tfrac12 \log(1 + \alpha^{-1})

    Args:
        log_alpha: :math:`\log(\sigma^2/\theta^2)`, any shape.

    Returns:
        The divergence in nats, elementwise, of the shape of ``log_alpha``.

    References:
        Kharitonov, Molchanov & Vetrov (2018), arXiv:1811.00596, section 3.

    Example:
        >>> kl_automatic_relevance(torch.tensor([-5.0, 0.0, 3.0]))
        tensor([2.5034, 0.3466, 0.0243])
    """
    return 0.5 * softplus(-log_alpha)  # log(1 + 1/α), without overflow


class AutomaticRelevance(TorchDistribution):
    r"""Zero-mean Gaussian weights whose precisions maximize the ELBO (empirical Bayes).

    .. math:: p(w_i) = N(w_i; 0, 1/\tau_g), \qquad
        1/\tau_g = \frac{1}{|g|} \sum_{i \in g} \mathbb{E}_q w_i^2
        \quad \text{for the weights of a group } g

    The precisions are eliminated in closed form, so they are no parameters. A group of one weight
    has the divergence :func:`kl_automatic_relevance`. Unlike the log-uniform prior this one is
    proper for every :math:`\tau`; but :math:`\tau` is known only once there is a posterior, so the
    prior has neither draws nor a density.

    Args:
        batch_shape: The shape of the batch; the event shape is ``()``.
        groups: The shape of :math:`\tau`: the batch shape, with size 1 for every axis that a group
            runs over. By default each weight has its own precision.
        weight: A factor of the divergence; 1 for Bayes' rule.

    Raises:
        ImproperPriorError: For a draw, a moment or a density.

    References:
        MacKay 1994; Tipping 2001, "Sparse Bayesian learning and the relevance vector machine";
        Kharitonov, Molchanov & Vetrov (2018), arXiv:1811.00596.

    Example:
        >>> q = dist.Normal(torch.tensor([0.1, -2.0]), torch.tensor([0.1, 2.0]))
        >>> torch.distributions.kl_divergence(q, AutomaticRelevance())
        tensor([0.3466, 0.3466])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real

    def __init__(
        self,
        batch_shape: Shape = (),
        groups: Sequence[int] | None = None,
        weight: float = 1.0,
        validate_args: bool | None = None,
    ) -> None:
        self.groups = None if groups is None else tuple(groups)
        self.weight = weight
        super().__init__(torch.Size(batch_shape), validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: None = None) -> AutomaticRelevance:
        """Return the same prior over a larger batch."""
        return AutomaticRelevance(batch_shape, self.groups, self.weight, self._validate_args)

    def divergence(self, second_moment: Tensor, log_variance: Tensor) -> Tensor:
        r"""Return the divergence of Gaussians from this prior, weight by weight.

        .. math:: \tfrac12 \log s_g^2 - \tfrac12 \log\sigma_i^2
            + \frac{\mathbb{E} w_i^2}{2 s_g^2} - \tfrac12, \qquad s_g^2 = 1/\tau_g

        Args:
            second_moment: :math:`\mathbb{E} w_i^2`, of the batch shape.
            log_variance: :math:`\log\sigma_i^2`, of the batch shape.

        Returns:
            The divergence in nats, of the batch shape.
        """
        pooled = second_moment
        for axis, size in enumerate(self.groups or ()):
            if size == 1:
                pooled = pooled.mean(axis, keepdim=True)
        kl = 0.5 * (pooled.log() - log_variance + second_moment / pooled - 1)
        return self.weight * kl.expand(broadcast_shapes(kl.shape, self.batch_shape))

    log_prob = _refuse
    sample = _refuse
    rsample = _refuse
    entropy = _refuse
    mean = property(_refuse)
    variance = property(_refuse)


@register_kl(torch.distributions.Normal, AutomaticRelevance)
def _kl_normal_automatic_relevance(q: torch.distributions.Normal, p: AutomaticRelevance) -> Tensor:
    if p.groups is not None:
        return p.divergence(q.loc.square() + q.variance, 2 * q.scale.log())
    # log(1 + θ²/σ²) keeps its precision and its slope at θ = 0, where log α would be infinite
    ratio = (q.loc / q.scale).clamp(-_LARGEST_RATIO, _LARGEST_RATIO)
    kl = 0.5 * p.weight * ratio.square().log1p()
    return kl.expand(broadcast_shapes(q.batch_shape, p.batch_shape))


@register_kl(GaussianDropout, AutomaticRelevance)
def _kl_gaussian_dropout_automatic_relevance(q: GaussianDropout, p: AutomaticRelevance) -> Tensor:
    if p.groups is None:
        kl = p.weight * kl_automatic_relevance(q.log_alpha)
        return kl.expand(broadcast_shapes(q.batch_shape, p.batch_shape))
    # the inverse of log_alpha, with the offset that guides use: no variance is lost at θ = 0
    log_variance = q.log_alpha + (q.theta.square() + MEAN_OFFSET).log()
    return p.divergence(q.theta.square() + log_variance.exp(), log_variance)
