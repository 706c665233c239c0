r"""Pareto-smoothed importance sampling: leave-one-out densities, and how far a guide is from its posterior.

The shape k-hat of the Pareto distribution that fits the largest importance weights says how heavy their tail is: below
0.5 the variance of the weights is finite, above 0.7 no practical number of draws is enough.

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


@dataclass(frozen=True)
class LeaveOneOut:
    """Leave-one-out predictive densities.

    Attributes:
        pointwise: :math:`\\log p(y_n \\mid x_n, \\mathcal{D}_{-n})`, (N,), in nats.
        k: the Pareto shape of each example, (N,).
        threshold: the shape above which an estimate is not to be relied on, :math:`\\min(1 - 1/\\log_{10} S, 0.7)`.
    """

    pointwise: Tensor
    k: Tensor
    threshold: float

    @property
    def elpd(self) -> float:
        """The sum over the examples, in nats."""
        return float(self.pointwise.sum())

    @property
    def standard_error(self) -> float:
        """Of the sum, from the spread of the examples."""
        return float((len(self.pointwise) * self.pointwise.var(correction=0)).sqrt())


def leave_one_out(log_likelihood: Tensor, independent: bool = False) -> LeaveOneOut:
    r"""Return the leave-one-out predictive density of each example, without fitting again.

    .. math:: p(y_n \mid x_n, \mathcal{D}_{-n}) \approx \frac{\sum_s r_{ns}\, p(y_n \mid x_n, w_s)}{\sum_s r_{ns}},
        \qquad r_{ns} = \frac{1}{p(y_n \mid x_n, w_s)}\ \text{(smoothed)}

    For draws of a guide this takes the guide for the posterior: it is the approximation's own predictive density that
    is estimated, the one that is compared.

    Args:
        log_likelihood: of each draw and example, (chain, draw, N), in nats.
        independent: whether the draws are; otherwise their effective number widens the tail that is fitted.

    Raises:
        ValueError: fewer than 25 draws.

    Source: Vehtari, Gelman & Gabry (2017), section 2.1; Magnusson et al. (2019) for draws of a guide.
    """
    pooled = log_likelihood.double().flatten(0, 1)
    num = len(pooled)
    _require_draws("leave_one_out", num)
    efficiency = 1.0 if independent else _relative_efficiency(log_likelihood)
    weights, k = pareto_smoothed(-pooled.T.cpu().numpy(), efficiency)
    smoothed = torch.as_tensor(weights)
    pointwise = (smoothed + pooled.T.cpu()).logsumexp(1) - smoothed.logsumexp(1)
    return LeaveOneOut(pointwise, torch.as_tensor(k), min(1 - 1 / math.log10(num), 0.7))


def pareto_k(log_joint: Tensor, log_q: Tensor) -> float:
    r"""Return k-hat of the importance ratios :math:`p(y, w \mid x) / q(w)` of draws from a guide.

    In the space of the weights: the many equal modes of a network make it large for any guide that knows one of them,
    also where the functions are right. Ratios that are equal but for rounding, those of the exact posterior, count
    as 0.

    Args:
        log_joint: (S,), in nats; its constant does not matter.
        log_q: (S,), in nats.

    Raises:
        ValueError: fewer than 25 draws; numbers that are not finite.

    Source: Yao, Vehtari, Simpson & Gelman (2018), section 3.1, https://arxiv.org/abs/1802.02538.
    """
    ratios = (log_joint - log_q).double()
    _require_draws("pareto_k", len(ratios))
    if not bool(torch.isfinite(ratios).all()):
        raise ValueError("pareto_k: the log-densities have numbers that are not finite")
    if float(ratios.max() - ratios.min()) < 1e-4 * (1 + float(log_joint.abs().max()) / 100):
        return 0.0
    return float(pareto_smoothed(ratios[None].cpu().numpy())[1][0])


def _relative_efficiency(log_likelihood: Tensor) -> float:
    """Return the effective number of draws for the likelihoods over the number of draws, at a hundred examples."""
    columns = torch.linspace(
        0, log_likelihood.shape[-1] - 1, min(100, log_likelihood.shape[-1])
    ).long()
    some = log_likelihood[..., columns.to(log_likelihood.device)].double()
    values = (some - some.flatten(0, 1).amax(0)).exp().cpu().numpy()
    found = mean_ess(values) / (values.shape[0] * values.shape[1])
    found = found[np.isfinite(found)]
    return float(np.clip(found.mean(), 0.01, 1.0)) if len(found) else 1.0


def _require_draws(what: str, num: int) -> None:
    if num < MIN_DRAWS:
        raise ValueError(
            f"{what}: {num} draws are too few to fit the tail of their weights; expected {MIN_DRAWS}"
        )
