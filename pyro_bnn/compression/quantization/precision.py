r"""Fixed point with as many bits as the posterior variances ask for: noise need not be stored.

A number is written with t binary places, as a multiple of :math:`2^{-t}`; rounding moves it
by at most :math:`2^{-(t+1)}`. Two rules choose t for a weight:

``"variance"``
    The published rule, the largest t with :math:`2 \mathrm{Var}\,w < 2^{-t}`.
``"standard deviation"``
    The largest t with :math:`\mathrm{sd}\,w < 2^{-t}`: the step is the width of the posterior.

The published rule compares a variance with a step, which have different units. It asks for about
twice as many bits: 5, 8 and 12 for variances of 1e-2, 1e-3 and 1e-4, for which the other rule asks
for 3, 4 and 6.

Source: Louizos, Ullrich & Welling (2017), section 4.3 and their code; Federici, Ullrich & Welling
(2017) for codes from variances.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from pyro_bnn.compression.pruning.pruned_network import Pruned

from .codebooks import layer_name

__all__ = [
    "FixedPoint",
    "Precision",
    "Rule",
    "bits_per_layer",
    "exponent_bits",
    "fixed_point",
    "rounded",
    "significand_bits",
]

Rule: TypeAlias = Literal["variance", "standard deviation"]
_MAX_BITS = 23  # bits of a float32 significand


class Precision(NamedTuple):
    """The bits of exponent and significand of the numbers of one layer."""

    exponent: int
    significand: int

    @property
    def total(self) -> int:
        """The bits of one number, those of its sign, exponent and significand."""
        return 1 + self.exponent + self.significand


def significand_bits(variance: Tensor, rule: Rule = "variance") -> Tensor:
    r"""Return the number t of binary places of each weight, from 0 to 23.

    .. math:: t = \#\{s \in 1 \ldots 23 : v < 2^{-s}\}, \qquad
        v = 2 \mathrm{Var}\,w \text{ or } v = \mathrm{sd}\,w

    Args:
        variance: Posterior variances, any shape.
        rule: ``"variance"`` (as published) or ``"standard deviation"``.

    Raises:
        ValueError: If the rule is unknown.

    Example:
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
    steps = torch.exp2(-torch.arange(1, _MAX_BITS + 1, dtype=noise.dtype, device=noise.device))
    return (noise[..., None] < steps).sum(-1)


def exponent_bits(weights: Tensor) -> int:
    r"""Return the bits of the exponent, :math:`\lceil \log_2(\log_2 \max|w| + 1) + 1 \rceil`.

    The published formula takes the logarithm of zero or of a negative number if all weights are at
    most one half, and gives less than one bit if all are below one. Here these layers have one bit,
    as the formula gives for a largest weight of 1.

    Args:
        weights: The weights of one layer.
    """
    if not weights.numel():
        return 1
    largest = float(weights.detach().abs().max())
    if largest <= 0.5:
        return 1
    return max(1, math.ceil(math.log2(math.log2(largest) + 1) + 1))


def rounded(values: Tensor, significand: int) -> Tensor:
    r"""Return the nearest multiples of :math:`2^{-t}`.

    .. math:: \lfloor w / 2^{-t} + \tfrac12 \rfloor\, 2^{-t}

    Args:
        values: Any shape.
        significand: t.
    """
    step = 2.0**-significand
    return torch.floor(values / step + 0.5) * step


def bits_per_layer(pruned: Pruned, rule: Rule = "variance") -> dict[str, Precision]:
    """Return the precision of each weight of the pruned network, by its name.

    The significand has the mean of the bits of its nonzero weights, rounded up.

    Args:
        pruned: A network with the variances of its weights.
        rule: ``"variance"`` (as published) or ``"standard deviation"``.

    Raises:
        ValueError: If the variances or the rule are unknown.
    """
    return _precisions(pruned, rule, "bits_per_layer")


class FixedPoint(NamedTuple):
    """A network in fixed point, and the precision of each of its weights."""

    pruned: Pruned
    precisions: dict[str, Precision]


@torch.no_grad()
def fixed_point(pruned: Pruned, rule: Rule = "variance") -> FixedPoint:
    """Return the pruned network in fixed point, with which its error can be measured.

    Biases, whose variances are unknown, are rounded as the weights of their layer. Parameters of
    other layers stay as they are. The bits are those of :func:`bits_per_layer`, which the rate of
    :func:`~pyro_bnn.compression.fast_prediction_rate` counts.

    Args:
        pruned: A network with the variances of its weights.
        rule: ``"variance"`` (as published) or ``"standard deviation"``.

    Raises:
        ValueError: If the variances or the rule are unknown.
    """
    precisions = _precisions(pruned, rule, "fixed_point")
    by_layer = {layer_name(name): precision for name, precision in precisions.items()}
    values = {}
    for name, parameter in pruned.module.named_parameters():
        precision = precisions.get(name, by_layer.get(layer_name(name)))
        if precision is not None:
            values[name] = rounded(parameter, precision.significand)
    return FixedPoint(pruned.with_values(values), precisions)


def _precisions(pruned: Pruned, rule: Rule, caller: str) -> dict[str, Precision]:
    if not pruned.variances:
        raise ValueError(
            f"{caller}: the variances of the weights are unknown; prune a posterior, which has "
            "them, not a network that was loaded"
        )
    weights = dict(pruned.module.named_parameters())
    precisions = {}
    for name, variance in pruned.variances.items():
        nonzero = weights[name] != 0
        bits = significand_bits(variance[nonzero], rule).double()
        significand = math.ceil(bits.mean()) if len(bits) else 0
        precisions[name] = Precision(exponent_bits(weights[name][nonzero]), significand)
    return precisions
