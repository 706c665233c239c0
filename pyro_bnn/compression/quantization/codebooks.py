r"""Codebooks: few distinct values for the nonzero weights of a layer, chosen by the posterior.

Moving a weight from its mean costs about :math:`(w - c)^2 / (2\sigma^2)` nats of data fit, where
:math:`\sigma^2` is its posterior variance. Naming which of K values it has costs
:math:`-\log_2 p_k` bits. Both are description lengths, so they add:

.. math:: \sum_i \frac{(w_i - c_{k_i})^2}{2 \sigma_i^2} + \beta \ln 2 \Big( \sum_i -\log_2 p_{k_i}
    + 16 K \Big)

Without the second term (:math:`\beta = 0`) this is weighted k-means, solved exactly by
:func:`~pyro_bnn.compression.quantization.exact_k_means.k_means`. With it, it is entropy-constrained
quantization: see :mod:`~pyro_bnn.compression.quantization.entropy_constraint`. :math:`\beta = 1` is
the two-part code that describes weights and data together.

Zeros stay zero and have no entry in a codebook. The values of a codebook are numbers that half
precision can represent, of 2 bytes each.

Source: Chou, Lookabaugh & Gray (1989), section III, for the entropy constraint; Han, Mao & Dally
(2016), section 3, for codebooks; Hinton & van Camp (1993) for the nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from pyro_bnn.compression.pruning.name_patterns import first_matches, unmatched
from pyro_bnn.compression.pruning.pruned_network import Pruned
from pyro_bnn.compression.rates import entropy

from .entropy_constraint import WeightsToCode, constrain_entropy, costs
from .exact_k_means import k_means

__all__ = ["Code", "Distortion", "codes", "half", "layer_name", "precisions", "quantize"]

Distortion: TypeAlias = Literal["posterior", "equal"]


class Code(NamedTuple):
    """The codebook of a tensor: ascending values, and the number of nonzero entries of each."""

    values: Tensor
    counts: Tensor

    @property
    def bits(self) -> float:
        """The entropy of the code, in bits per nonzero entry."""
        return entropy(self.counts.tolist())


def codes(pruned: Pruned) -> dict[str, Code]:
    """Return the code of each parameter of the pruned network that has nonzero entries."""
    by_name = {}
    for name, parameter in pruned.module.named_parameters():
        nonzero = parameter.detach()[parameter.detach() != 0]
        if len(nonzero):
            values, counts = torch.unique(nonzero, return_counts=True)
            by_name[name] = Code(values, counts)
    return by_name


@torch.no_grad()
def quantize(
    pruned: Pruned,
    levels: int | Mapping[str, int] = 16,
    rule: Distortion = "posterior",
    bits_weight: float = 0.0,
) -> Pruned:
    r"""Return the pruned network with few distinct values per parameter; zeros stay zero.

    Args:
        pruned: The network.
        levels: The most values in each parameter, biases included; or a mapping from name patterns
            to numbers. The first pattern that matches counts, and a parameter that none matches
            stays as it is.
        rule: ``"posterior"``: the distortion :math:`(w - c)^2 / (2\sigma_i^2)` with the posterior
            variance of each weight; ``"equal"``: with one variance per parameter, the harmonic mean
            of its variances, so that ``bits_weight=0`` is plain k-means. A parameter of unknown
            variance, such as a bias, has that of its layer, or else that of the network.
        bits_weight: :math:`\beta`, the distortion that a bit is worth, in units of ln 2 nats.

    Raises:
        TypeError: If ``pruned`` is not the result of :func:`~pyro_bnn.compression.prune`.
        ValueError: If ``levels`` is below one, a pattern matches no parameter, ``rule`` is unknown
            or ``bits_weight`` is negative; if the variances are needed and unknown; if half
            precision cannot represent a value.
    """
    _require_settings(pruned, rule, bits_weight)
    parameters = dict(pruned.module.named_parameters())
    most = _levels(levels, parameters)
    values = {}
    for name, precision in precisions(pruned, rule).items():
        weight = parameters[name].detach()
        nonzero = weight != 0
        if name not in most or not bool(nonzero.any()):
            continue
        weights = WeightsToCode(weight[nonzero], precision[nonzero], bits_weight)
        values[name] = weight.clone()
        values[name][nonzero] = _quantized(weights, most[name])
    return pruned.with_values(values)


def _require_settings(pruned: Pruned, rule: Distortion, bits_weight: float) -> None:
    if not isinstance(pruned, Pruned):
        raise TypeError(
            f"quantize: expected a Pruned, as prune returns it, got a {type(pruned).__name__}"
        )
    if rule not in ("posterior", "equal"):
        raise ValueError(f"quantize: expected the rule 'posterior' or 'equal', got {rule!r}")
    if not bits_weight >= 0:
        raise ValueError(f"quantize: expected a bits_weight of at least 0, got {bits_weight}")
    if not pruned.variances and (rule == "posterior" or bits_weight):
        raise ValueError(
            "quantize: the variances of the weights are unknown; prune a posterior, which has "
            "them, or take rule='equal' and bits_weight=0"
        )


def _levels(levels: int | Mapping[str, int], parameters: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the most values of each parameter that gets a codebook."""
    patterns = {"*": levels} if isinstance(levels, int) else levels
    for pattern, number in patterns.items():
        if number < 1:
            raise ValueError(
                f"quantize: expected levels of at least one, got {number} for {pattern!r}"
            )
    for pattern in unmatched(patterns, parameters):
        raise ValueError(
            f"quantize: {pattern!r} matches no parameter; the parameters are "
            f"{', '.join(parameters)}"
        )
    return first_matches(patterns, parameters)


def _quantized(weights: WeightsToCode, levels: int) -> Tensor:
    """Return the value of each weight, one of few."""
    half(weights.values, "quantize")  # refuse large numbers before they overflow elsewhere
    table = k_means(weights.values, levels, weights.precision)
    nats = torch.zeros_like(table)
    if weights.bits_weight:
        table, nats, _ = constrain_entropy(weights, table)
    table = half(table, "quantize")
    return table[costs(weights.values, weights.precision, table, nats).argmin(1)]


def precisions(pruned: Pruned, rule: Distortion) -> dict[str, Tensor]:
    r"""Return :math:`1/\sigma^2` of every number of every parameter.

    Args:
        pruned: The network.
        rule: The rule, as for :func:`quantize`.
    """
    elementwise: dict[str, Tensor] = {}
    means: dict[str, Tensor] = {}
    layer_means: dict[str, Tensor] = {}
    all_nonzero = []
    parameters = dict(pruned.module.named_parameters())
    for name, variance in pruned.variances.items():
        nonzero = parameters[name].detach() != 0
        if nonzero.any():
            elementwise[name] = _capped_precision(variance, nonzero)
            all_nonzero.append(elementwise[name][nonzero])
            means[name] = layer_means[layer_name(name)] = all_nonzero[-1].mean()
    network_mean = torch.cat(all_nonzero).mean() if all_nonzero else torch.tensor(1.0)
    by_name = {}
    for name, parameter in parameters.items():
        if name in elementwise and rule == "posterior":
            precision = elementwise[name]
        elif name in means:
            precision = means[name]
        else:
            precision = layer_means.get(layer_name(name), network_mean)
        by_name[name] = precision.to(parameter.detach()).expand_as(parameter)
    return by_name


def layer_name(parameter: str) -> str:
    """Return the name of the layer of a parameter: ``"fc1"`` for ``"fc1.bias"``."""
    return parameter.rpartition(".")[0]


def _capped_precision(variance: Tensor, nonzero: Tensor) -> Tensor:
    """Return the inverse of variances, raised to at least a millionth of their median.

    A weight of variance zero could not be moved at all.
    """
    positive = variance[nonzero & (variance > 0)]
    if not len(positive):
        return variance.clamp_min(1.0).reciprocal()
    return variance.clamp_min(1e-6 * positive.median()).reciprocal()


def half(values: Tensor, caller: str = "half") -> Tensor:
    """Return the nearest numbers other than zero that half precision can represent.

    Args:
        values: Nonzero numbers, any shape.
        caller: The function that an error message begins with.

    Raises:
        ValueError: If the magnitude of a number exceeds 65504.
    """
    rounded = values.to(torch.float16).to(values.dtype)
    if bool(rounded.isinf().any()):
        raise ValueError(
            f"{caller}: codebooks hold numbers up to 65504, got {float(values.abs().max()):g}; "
            "scale the inputs"
        )
    smallest = torch.full_like(values, torch.finfo(torch.float16).smallest_normal / 1024)
    return torch.where(rounded == 0, torch.copysign(smallest, values), rounded)
