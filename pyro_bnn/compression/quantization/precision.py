r"""Fixed-point precision per layer, read off the posterior variances: noise need not be stored.

A number is written with t bits after the point, a multiple of :math:`2^{-t}`; rounding moves it by at most
:math:`2^{-(t+1)}`. Two rules choose t for a weight:

``"variance"``            the published rule: the largest t with :math:`2 \mathrm{Var}\,w < 2^{-t}`
``"standard deviation"``  the largest t with :math:`\mathrm{sd}\,w < 2^{-t}`: the step is the posterior's own width

The published rule compares a variance with a step, which are not of one unit. It asks for about twice as many bits:
5, 8, 12 for variances of 1e-2, 1e-3, 1e-4, where the other asks for 3, 4, 6.

Source: Louizos, Ullrich & Welling (2017), section 4.3 and their code; Federici, Ullrich & Welling (2017) for codes
from variances.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pyro_bnn.compression.pruning.pruned_network import Pruned

__all__ = [
    "Precision",
    "Rule",
    "bits_per_layer",
    "exponent_bits",
    "fixed_point",
    "rounded",
    "significand_bits",
]

Rule = Literal["variance", "standard deviation"]
_MOST = 23  # bits of a float32 significand


class Precision(NamedTuple):
    """The bits of the numbers of one layer; ``total`` has the sign as well."""

    exponent: int
    significand: int

    @property
    def total(self) -> int:
        """The bits of one number: sign, exponent and significand."""
        return 1 + self.exponent + self.significand


def significand_bits(variance: Tensor, rule: Rule = "variance") -> Tensor:
    r"""Return t for each weight, from 0 to 23: :math:`\#\{t \in 1 \ldots 23 : v < 2^{-t}\}` with
    :math:`v = 2 \mathrm{Var}\,w` or :math:`v = \mathrm{sd}\,w`.

    Args:
        variance: posterior variances, any shape.
        rule: ``"variance"`` (as published) or ``"standard deviation"``.

    Raises:
        ValueError: another rule.

    >>> significand_bits(torch.tensor([1e-2, 1e-3, 1e-4])).tolist()
    [5, 8, 12]
    >>> significand_bits(torch.tensor([1e-2, 1e-3, 1e-4]), rule="standard deviation").tolist()
    [3, 4, 6]
    """
    if rule not in ("variance", "standard deviation"):
        raise ValueError(
            f"significand_bits: expected the rule 'variance' or 'standard deviation', got {rule!r}"
        )
    noise = 2 * variance.double() if rule == "variance" else variance.double().sqrt()
    steps = torch.exp2(-torch.arange(1, _MOST + 1, dtype=noise.dtype, device=noise.device))
    return (noise[..., None] < steps).sum(-1)


def exponent_bits(weights: Tensor) -> int:
    r"""Return :math:`\lceil \log_2(\log_2 \max|w| + 1) + 1 \rceil`, at least one.

    As published, where numbers of at most one half make it the logarithm of a number that is not positive, and those
    below one a number below one: here all of them get one bit, which the formula gives for 1.

    Args:
        weights: of one layer.
    """
    largest = float(weights.detach().abs().max()) if weights.numel() else 0.0
    return max(1, math.ceil(math.log2(math.log2(largest) + 1) + 1)) if largest > 0.5 else 1


def rounded(values: Tensor, significand: int) -> Tensor:
    r"""Return the nearest multiples of :math:`2^{-t}`, :math:`\lfloor w / 2^{-t} + \tfrac12 \rfloor\, 2^{-t}`.

    Args:
        values: any shape.
        significand: t.
    """
    step = 2.0**-significand
    return torch.floor(values / step + 0.5) * step


def bits_per_layer(pruned: Pruned, rule: Rule = "variance") -> dict[str, Precision]:
    """Return the precision of each weight of the pruned network, by its name.

    The significand has the mean of its kept weights' bits, rounded up.

    Args:
        pruned: with the variances of its weights.
        rule: ``"variance"`` (as published) or ``"standard deviation"``.

    Raises:
        ValueError: variances that are not known; another rule.
    """
    if not pruned.variances:
        raise ValueError(
            "bits_per_layer: the variances of the weights are not known; prune a posterior, which has them, not a "
            "network that was loaded"
        )
    weights = dict(pruned.module.named_parameters())
    found = {}
    for name, variance in pruned.variances.items():
        kept = weights[name] != 0
        bits = significand_bits(variance[kept], rule).double()
        found[name] = Precision(
            exponent_bits(weights[name][kept]), math.ceil(bits.mean()) if len(bits) else 0
        )
    return found


@torch.no_grad()
def fixed_point(pruned: Pruned, rule: Rule = "variance") -> tuple[Pruned, dict[str, Precision]]:
    """Return the pruned network in fixed point, and the precision of each of its weights.

    Biases, whose variance is not known, are rounded as the weights of their layer; what belongs to no such layer stays
    as it is. The bits are for :func:`~pyro_bnn.compression.rates.fast_prediction_rate`.

    Args:
        pruned: with the variances of its weights.
        rule: ``"variance"`` (as published) or ``"standard deviation"``.

    Raises:
        ValueError: variances that are not known; another rule.
    """
    precisions = bits_per_layer(pruned, rule)
    layers = {_layer(name): precision for name, precision in precisions.items()} | precisions
    values = {
        name: rounded(parameter, precision.significand)
        for name, parameter in pruned.module.named_parameters()
        if (precision := layers.get(name, layers.get(_layer(name)))) is not None
    }
    return pruned.with_values(values), precisions


def _layer(name: str) -> str:
    """Return the name of the layer that a parameter belongs to."""
    return name.rpartition(".")[0]
