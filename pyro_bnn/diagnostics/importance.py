r"""Pareto-smoothed importance sampling: leave-one-out densities, and the quality of a guide.

The shape k-hat of the Pareto distribution that fits the largest importance weights measures how
heavy their tail is. Below 0.5 the variance of the weights is finite; above 0.7 no practical number
of draws is enough.

Source: Vehtari, Simpson, Gelman, Yao & Gabry (2024), https://arxiv.org/abs/1507.02646.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .arviz_versions import mean_ess, pareto_smoothed

__all__ = ["LeaveOneOut", "leave_one_out", "pareto_k"]

MIN_DRAWS = 25  # the tail is a fifth of the draws, and a fit needs five
MAX_EXAMPLES_FOR_EFFICIENCY = 100


@dataclass(frozen=True)
class LeaveOneOut:
    r"""Leave-one-out predictive densities.

    Attributes:
        pointwise: :math:`\log p(y_n \mid x_n, \mathcal{D}_{-n})`, (N,), in nats.
        k: the Pareto shape of each example, (N,).
        threshold: the shape above which an estimate is unreliable,
            :math:`\min(1 - 1/\log_{10} S, 0.7)`.
    """

    pointwise: Tensor
    k: Tensor
    threshold: float

    @property
    def elpd(self) -> float:
        """The expected log predictive density: the sum over the examples, in nats."""
        return float(self.pointwise.sum())

    @property
    def standard_error(self) -> float:
        """The standard error of the sum, from the spread of the examples."""
        return float((len(self.pointwise) * self.pointwise.var(correction=0)).sqrt())


def leave_one_out(log_likelihood: Tensor, independent: bool = False) -> LeaveOneOut:
    r"""Return the leave-one-out predictive density of each example, without refitting.

    .. math::

        p(y_n \mid x_n, \mathcal{D}_{-n})
            \approx \frac{\sum_s r_{ns}\, p(y_n \mid x_n, w_s)}{\sum_s r_{ns}},
        \qquad r_{ns} = \frac{1}{p(y_n \mid x_n, w_s)}\ \text{(smoothed)}

    Draws of a guide are treated as draws of the posterior: the estimate is of the approximation's
    own predictive density, which is the one that is compared.

    Args:
        log_likelihood: of each draw and example, (chain, draw, N), in nats.
        independent: whether the draws are independent. Otherwise the tail that is fitted is wider,
            according to the effective sample size.

    Raises:
        ValueError: if there are fewer than 25 draws.

    Source: Vehtari, Gelman & Gabry (2017), section 2.1; Magnusson et al. (2019) for a guide.
    """
    pooled = log_likelihood.double().flatten(0, 1)
    num = len(pooled)
    _require_draws("leave_one_out", num)
    efficiency = 1.0 if independent else _relative_efficiency(log_likelihood)
    by_example = pooled.T.cpu()
    smoothed = pareto_smoothed(-by_example.numpy(), efficiency)
    weights = torch.as_tensor(smoothed.log_weights)
    pointwise = (weights + by_example).logsumexp(1) - weights.logsumexp(1)
    threshold = min(1 - 1 / math.log10(num), 0.7)
    return LeaveOneOut(pointwise, torch.as_tensor(smoothed.shapes), threshold)


def pareto_k(log_joint: Tensor, log_q: Tensor) -> float:
    r"""Return k-hat of the importance ratios :math:`p(y, w \mid x) / q(w)` of a guide's draws.

    It is measured in the space of the weights. The many equivalent modes of a network make it large
    for any guide that covers one of them, even where the functions are right. Ratios that are equal
    up to rounding, those of the exact posterior, have the shape 0.

    Args:
        log_joint: (S,), in nats, up to a constant.
        log_q: (S,), in nats.

    Raises:
        ValueError: if there are fewer than 25 draws, or if the ratios contain NaN or infinity.

    Source: Yao, Vehtari, Simpson & Gelman (2018), section 3.1, https://arxiv.org/abs/1802.02538.
    """
    ratios = (log_joint - log_q).double()
    _require_draws("pareto_k", len(ratios))
    if not bool(torch.isfinite(ratios).all()):
        raise ValueError("pareto_k: expected finite log-densities, got NaN or infinity")
    rounding = 1e-4 * (1 + float(log_joint.abs().max()) / 100)
    if float(ratios.max() - ratios.min()) < rounding:
        return 0.0
    return float(pareto_smoothed(ratios[None].cpu().numpy()).shapes[0])


def _relative_efficiency(log_likelihood: Tensor) -> float:
    """Return the effective sample size of the likelihoods over the number of draws.

    It is averaged over up to a hundred examples.
    """
    examples = log_likelihood.shape[-1]
    columns = torch.linspace(0, examples - 1, min(MAX_EXAMPLES_FOR_EFFICIENCY, examples)).long()
    selected = log_likelihood[..., columns.to(log_likelihood.device)].double()
    likelihood = (selected - selected.flatten(0, 1).amax(0)).exp().cpu().numpy()
    efficiency = mean_ess(likelihood) / (likelihood.shape[0] * likelihood.shape[1])
    efficiency = efficiency[np.isfinite(efficiency)]
    if not len(efficiency):
        return 1.0
    return float(np.clip(efficiency.mean(), 0.01, 1.0))


def _require_draws(caller: str, num: int) -> None:
    if num < MIN_DRAWS:
        raise ValueError(
            f"{caller}: expected at least {MIN_DRAWS} draws to fit the tail of their weights, "
            f"got {num}"
        )
