r"""Posteriors of dropout: Gaussian and binary noise on the weights."""

from __future__ import annotations

from typing import ClassVar, NoReturn

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from .log_uniform import LogUniform
from .shapes import Shape, broadcast_shapes
from .typed import register_kl

__all__ = ["BernoulliDropout", "GaussianDropout"]


class GaussianDropout(dist.Normal):
    r"""Posterior of Gaussian dropout: weights with multiplicative noise of variance :math:`\alpha`.

    .. math:: q(w) = N\big(k\,\theta,\ \alpha\theta^2\big), \quad k = 1 \text{ unless masked}

    This is a ``Normal`` whose scale follows its mean. The attributes ``loc`` (:math:`k\theta`) and
    ``scale`` (:math:`\sqrt\alpha\,|\theta|`, which may be 0) serve code that knows only ``Normal``.
    The divergence from :class:`LogUniform` depends on :math:`\log\alpha` alone and counts once per
    weight, also where weights share :math:`\log\alpha`.

    With ``keep``, masked weights lose their mean but keep their noise. Sparse Variational Dropout
    trains with this surrogate once it prunes. The divergence stays that of the unmasked weight, so
    the objective is then *not* the exact ELBO.

    Args:
        loc: The mean :math:`\theta`; also the attribute ``theta``.
        log_alpha: The log noise variance, finite and broadcastable with ``loc``: per weight, per
            unit or per layer.
        keep: A boolean mask broadcastable with ``loc``, True where the mean is kept. By default
            it is kept everywhere.

    References:
        Kingma, Salimans & Welling (2015), arXiv:1506.02557, section 3; Molchanov, Ashukha &
        Vetrov (2017), arXiv:1701.05369, section 4, for :math:`\alpha` per weight.

    Example:
        >>> from pyro_bnn.distributions import LogUniform
        >>> q = GaussianDropout(torch.tensor([1.0, -2.0, 0.0]), torch.tensor(0.0))
        >>> q.scale
        tensor([1., 2., 0.])
        >>> torch.distributions.kl_divergence(q, LogUniform())
        tensor([0.4267, 0.4267, 0.4267])
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real,
        "scale": constraints.nonnegative,
        "log_alpha": constraints.real,
    }

    def __init__(
        self,
        loc: Tensor,
        log_alpha: Tensor,
        keep: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.theta, self.log_alpha, self.keep = loc, log_alpha, keep
        self.loc = loc if keep is None else loc * keep
        shape = broadcast_shapes(loc.shape, log_alpha.shape)
        # not Normal's constructor, which sets the scale
        super(torch.distributions.Normal, self).__init__(shape, validate_args=validate_args)

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        """The standard deviation."""
        # |θ| √α rather than √(α θ²): the gradient at θ = 0 is 0, not NaN
        return (0.5 * self.log_alpha).exp() * self.theta.abs()

    @property
    def variance(self) -> Tensor:
        """The variance, computed without the scale: training needs it at every step."""
        return self.log_alpha.exp() * self.theta.square()

    def expand(self, batch_shape: Shape, _instance: None = None) -> GaussianDropout:
        """Return the same posterior over a larger batch.

        ``log_alpha`` and ``keep`` broadcast as before.
        """
        theta = self.theta.expand(batch_shape)
        return GaussianDropout(theta, self.log_alpha, self.keep, self._validate_args)


@register_kl(GaussianDropout, LogUniform)
def _kl_gaussian_dropout_log_uniform(q: GaussianDropout, p: LogUniform) -> Tensor:
    return p.kl(q.log_alpha).expand(broadcast_shapes(q.batch_shape, p.batch_shape))


class BernoulliDropout(TorchDistribution):
    r"""Posterior of binary dropout: each group of weights is zero with a fixed probability.

    .. math:: q(w_g) = r\,\delta(w_g) + (1 - r)\,\delta(w_g - \theta_g),
        \quad \text{independently for each group } g

    With probability :math:`1 - r` a group has its learned value :math:`\theta_g`. Draws are not
    rescaled by 1/(1 - r): the mean is :math:`(1 - r)\theta`. They are reparameterized: gradients
    flow to ``loc``, not to ``rate``. The whole weight is one event, with batch shape ``()`` and
    event shape ``loc.shape``.

    The divergence from ``Independent(Normal(m, s))`` is that of a mixture of Gaussians of width
    :math:`\epsilon` around the two points as :math:`\epsilon \to 0`, less the diverging constant
    :math:`-\log\epsilon - \tfrac12` per weight:

    .. math::
        \sum_i \Big[\log s_i + \frac{r\, m_i^2 + (1 - r)(\theta_i - m_i)^2}{2 s_i^2}\Big]
        - \sum_g H(r), \quad H(r) = -r \log r - (1 - r) \log(1 - r).

    It may therefore be negative. It serves to learn :math:`\theta`, m and s, not to compare with
    other posteriors. The limit takes the two points as distinct, :math:`\theta_g \ne 0`.

    Args:
        loc: The value :math:`\theta` of a weight that is not dropped.
        rate: The probability r of being dropped, in [0, 1]: a number, or a tensor that broadcasts
            over the groups (the shape of ``loc`` with size 1 on every axis but ``group_dim``).
        group_dim: The axis whose indices are dropped as a whole (the input units of a dense layer:
            1). By default each weight is dropped alone.

    Raises:
        ValueError: If ``rate`` is outside [0, 1] or ``loc`` has no axis ``group_dim``.

    References:
        Gal & Ghahramani (2016), arXiv:1506.02142, section 3; its appendix (arXiv:1506.02157) for
        the divergence.

    Example:
        >>> q = BernoulliDropout(torch.ones(2, 3), rate=0.25, group_dim=1)
        >>> q.mean[0]
        tensor([0.7500, 0.7500, 0.7500])
        >>> p = dist.Normal(torch.zeros(2, 3), 1.0).to_event(2)
        >>> torch.distributions.kl_divergence(q, p)  # 6 * 0.75 / 2 - 3 * 0.5623
        tensor(0.5630)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real,
        "rate": constraints.unit_interval,
    }
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        rate: float | Tensor,
        group_dim: int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(rate, Tensor) and not 0 <= rate <= 1:
            raise ValueError(
                "BernoulliDropout: expected rate, the probability of being dropped, in [0, 1]; "
                f"got {rate}"
            )
        self._mask_shape = _mask_shape(loc, group_dim)
        self.loc, self.group_dim = loc, group_dim
        self.rate = torch.as_tensor(rate, dtype=loc.dtype, device=loc.device)
        super().__init__(torch.Size(), loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """Real tensors of the shape of the weight."""
        axes = self.loc.dim()
        return constraints.independent(constraints.real, axes)

    @property
    def mean(self) -> Tensor:
        """The mean (1 - r) θ, of the shape of ``loc``."""
        return (1 - self.rate) * self.loc

    @property
    def variance(self) -> Tensor:
        """The variance r (1 - r) θ² of each weight, of the shape of ``loc``."""
        return self.rate * (1 - self.rate) * self.loc.square()

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Return draws of shape ``sample_shape + loc.shape``; a group is dropped as a whole."""
        shape = torch.Size(sample_shape) + self._mask_shape
        uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc * (uniform >= self.rate)

    def log_prob(self, value: Tensor) -> NoReturn:
        """Raise ``NotImplementedError``: two points have no density."""
        raise NotImplementedError(
            "BernoulliDropout puts its mass on two points and has no density. Its divergence from "
            "an independent Normal prior has a closed form: use torch.distributions.kl_divergence, "
            "or an ELBO that does."
        )


def _mask_shape(loc: Tensor, group_dim: int | None) -> torch.Size:
    """Return the shape of one coin per group."""
    if group_dim is None:
        return loc.shape
    if not -loc.dim() <= group_dim < loc.dim():
        raise ValueError(
            "BernoulliDropout: expected group_dim to be an axis of loc, whose shape is "
            f"{tuple(loc.shape)}; got {group_dim}"
        )
    shape = [1] * loc.dim()
    shape[group_dim] = loc.shape[group_dim]
    return torch.Size(shape)


@register_kl(BernoulliDropout, torch.distributions.Independent)
def _kl_bernoulli_dropout_normal(
    q: BernoulliDropout, p: torch.distributions.Independent[torch.distributions.Distribution]
) -> Tensor:
    prior = p.base_dist
    if not isinstance(prior, torch.distributions.Normal):
        raise NotImplementedError(
            "BernoulliDropout has a closed divergence from an independent Normal prior only, "
            f"not from an independent {type(prior).__name__}."
        )
    if p.event_shape != q.event_shape:
        raise ValueError(
            "BernoulliDropout: expected a prior of the event shape of the weight, "
            f"{tuple(q.event_shape)}, got {tuple(p.event_shape)}"
        )
    # E (w - m)² = r m² + (1 - r) (θ - m)²
    square = q.rate * prior.loc.square() + (1 - q.rate) * (q.loc - prior.loc).square()
    cross_entropy = prior.scale.log() + square / (2 * prior.scale.square())
    # the entropy of the mixture: one coin per group, whatever the number of weights in it
    entropy = -(torch.xlogy(q.rate, q.rate) + torch.xlogy(1 - q.rate, 1 - q.rate))
    return cross_entropy.reshape(*p.batch_shape, -1).sum(-1) - entropy.expand(q._mask_shape).sum()
