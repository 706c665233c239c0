"""Signs that draws do not represent the posterior."""

from __future__ import annotations

from collections.abc import Mapping

from pyro.ops.stats import split_gelman_rubin
from torch import Tensor

from .sampler import SamplingError

__all__ = ["convergence_warnings", "require_valid_draws"]

LARGEST_R_HAT = 1.05
FEWEST_DRAWS = 8  # for R-hat


def require_valid_draws(caller: str, statistics: Mapping[str, Tensor]) -> None:
    """Raise an error if every draw of every chain ended in a divergence.

    Raises:
        SamplingError: All draws diverged; the message begins with ``caller``.
    """
    diverging = statistics.get("diverging")
    if diverging is not None and bool(diverging.all()):
        raise SamplingError(
            f"{caller}: all {len(diverging)} chains diverged at every draw: the step size does not "
            "fit where they are; use a longer warm-up, or another start (start=fit(...))"
        )


def convergence_warnings(statistics: Mapping[str, Tensor]) -> list[str]:
    r"""Return a sentence for each sign that draws do not represent the posterior.

    Divergent draws are counted, and the chains are compared by the split :math:`\hat R` of the
    log density (Gelman et al., 2013, section 11.4), which is one if they agree.

    Args:
        statistics: Of each draw, (chain, draw): ``lp``, and ``diverging`` where a sampler has it.
    """
    warnings = []
    if "diverging" in statistics:
        warnings += _divergence_warnings(statistics["diverging"])
    log_density = statistics["lp"]
    chains, draws = log_density.shape
    if chains > 1 and draws >= FEWEST_DRAWS:
        r_hat = float(split_gelman_rubin(log_density.double()))
        if not r_hat < LARGEST_R_HAT:  # NaN as well
            warnings.append(
                f"the chains do not agree: R-hat of the log density is {r_hat:.2f}; run longer"
            )
    return warnings


def _divergence_warnings(diverging: Tensor) -> list[str]:
    warnings = []
    chains, divergent = len(diverging), int(diverging.sum())
    stuck = int(diverging.all(1).sum())
    if stuck:
        warnings.append(
            f"{stuck} of {chains} chains diverged at every draw: they are stuck; use a longer "
            "warm-up"
        )
    if divergent:
        fraction = float(diverging.double().mean())
        warnings.append(
            f"{divergent} divergent draws ({fraction:.1%}): regions of high curvature are missed; "
            "raise target_acceptance, or write the model non-centred"
        )
    return warnings
