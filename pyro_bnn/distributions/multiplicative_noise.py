r"""The variance :math:`\alpha` of multiplicative noise, by which dropout rules prune."""

from __future__ import annotations

from torch import Tensor

__all__ = ["MEAN_OFFSET", "log_alpha"]

MEAN_OFFSET = 1e-8
r"""Added to :math:`\theta^2` by the published code of Sparse Variational Dropout."""


def log_alpha(mean: Tensor, log_variance: Tensor, offset: float = 0.0) -> Tensor:
    r"""Return the log variance of a weight seen as its mean times noise.

    A Gaussian weight :math:`w \sim N(\theta, \sigma^2)` is a product :math:`w = \theta\,\xi` with
    noise :math:`\xi \sim N(1, \alpha)`, where

    .. math:: \log\alpha = \log\sigma^2 - \log(\theta^2 + \epsilon), \qquad \epsilon = 0.

    Args:
        mean: The mean :math:`\theta`, any shape.
        log_variance: The log variance :math:`\log\sigma^2`, broadcastable with ``mean``.
        offset: A small :math:`\epsilon \ge 0`. At 0 the result is infinite where the mean is 0. A
            positive offset keeps the value and its gradient finite there: :data:`MEAN_OFFSET` as
            published, or the smallest positive number of the dtype.

    Returns:
        :math:`\log\alpha`, elementwise, of the broadcast shape.

    References:
        Molchanov, Ashukha & Vetrov (2017), arXiv:1701.05369, section 4.2 (additive noise
        reparameterization).

    Example:
        >>> log_alpha(torch.tensor([1.0, 0.5, 0.0]), torch.tensor(0.0))
        tensor([0.0000, 1.3863,    inf])
    """
    return log_variance - (mean.square() + offset).log()
