r"""Codebooks: the nonzero weights of a layer take few distinct values, chosen by how well the posterior knows them.

Moving a weight from its mean costs about :math:`(w - c)^2 / (2\sigma^2)` nats of data fit, :math:`\sigma^2` being its
posterior variance; telling which of K values it has costs :math:`-\log_2 p_k` bits. Both are description lengths, so
they add:

.. math:: \sum_i \frac{(w_i - c_{k_i})^2}{2 \sigma_i^2} + \beta \ln 2 \Big( \sum_i -\log_2 p_{k_i} + 16 K \Big)

Without the second term (:math:`\beta = 0`) this is weighted k-means, solved exactly; with it, entropy-constrained
quantisation, which alternates assignments, centroids and frequencies, and drops the values that are not worth their
place in the table. :math:`\beta = 1` is the two-part code that describes weights and data together.

Zero stays zero and is no entry of a codebook. Centroids are numbers that half precision can hold, 2 bytes each.

Source: Chou, Lookabaugh & Gray (1989), section III, for the entropy constraint; Han, Mao & Dally (2016), section 3,
for codebooks; Grønlund et al. (2017), section 3, for exact k-means on a line; Hinton & van Camp (1993) for the nats.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pyro_bnn.compression.pruning.pruned_network import Pruned
from pyro_bnn.compression.rates import entropy

__all__ = ["Code", "Distortion", "codes", "k_means", "quantize", "value_bits"]

Distortion = Literal["posterior", "equal"]
_ENTRY_BITS = 16  # of a value in the table
_EXACT = 2**16  # more values than this are merged into so many before k-means


class Code(NamedTuple):
    """A tensor's codebook: ascending values, and how many of its nonzero entries have each."""

    values: Tensor
    counts: Tensor

    @property
    def bits(self) -> float:
        """The entropy of the code in bits per nonzero entry."""
        return entropy(self.counts.tolist())


def codes(pruned: Pruned) -> dict[str, Code]:
    """Return the code of each parameter of the pruned network that has nonzero entries."""
    nonzero = {name: p.detach()[p.detach() != 0] for name, p in pruned.module.named_parameters()}
    return {
        name: Code(*values.unique(return_counts=True))
        for name, values in nonzero.items()
        if len(values)
    }


def value_bits(pruned: Pruned) -> float:
    """Return the bits that the nonzero numbers of the pruned network need on average, by their empirical entropy.

    Neither positions nor tables are counted.
    """
    found = codes(pruned).values()
    total = sum(int(code.counts.sum()) for code in found)
    return sum(code.bits * int(code.counts.sum()) for code in found) / total if total else 0.0


def k_means(values: Tensor, levels: int, weights: Tensor | None = None) -> Tensor:
    r"""Return the ascending centroids that minimise :math:`\sum_i a_i \min_k (x_i - c_k)^2`, exactly.

    On a line the clusters are intervals, and the last one of the first j points moves right with j; so each further
    cluster is found by divide and conquer: :math:`O(K n \log n)`. Up to 65,536 points; more are merged into so many
    of equal count first.

    Args:
        values: x (n,).
        levels: K; fewer come back if there are fewer distinct values.
        weights: a (n,) above zero, one by default.

    Raises:
        ValueError: no values, or levels below one.

    >>> k_means(torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0]), 2).tolist()
    [0.5, 11.0]
    """
    if levels < 1 or not len(values):
        raise ValueError(
            f"k_means: expected values and levels of at least one, got {len(values)} and {levels}"
        )
    mass = torch.ones_like(values) if weights is None else weights
    points, mass = _distinct(
        values.double().cpu(), mass.double().cpu()
    )  # many small steps: nothing for a GPU
    n = len(points)
    if n <= levels:
        return points.to(values)
    centre = (mass * points).sum() / mass.sum()  # differences of sums lose fewer digits near zero
    x = points - centre
    sums = torch.stack(
        [torch.cat([x.new_zeros(1), (mass * x**power).cumsum(0)]) for power in range(3)]
    )
    starts = _optimal_starts(sums, levels)
    edges = [n]
    for row in reversed(starts):
        edges.append(int(row[edges[-1]]))
    low, high = torch.tensor(edges[:0:-1]), torch.tensor(edges[-2::-1])
    first = sums[:, high] - sums[:, low]
    return (first[1] / first[0] + centre).to(values)


def _distinct(values: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Return distinct ascending points and their masses; too many become means of neighbours."""
    points, place = values.unique(return_inverse=True)
    total = torch.zeros_like(points).index_add_(0, place, mass)
    if len(points) <= _EXACT:
        return points, total
    place = torch.arange(len(points)) * _EXACT // len(points)
    merged = torch.zeros(_EXACT, dtype=points.dtype)
    first, second = merged.index_add(0, place, total), merged.index_add(0, place, total * points)
    return second / first, first


def _optimal_starts(sums: Tensor, levels: int) -> list[Tensor]:
    """Return for each number of clusters where the last of them starts, for the first j points, j = 0 ... n."""
    n = sums.shape[1] - 1
    best = _spread(sums, torch.zeros(n + 1, dtype=torch.long), torch.arange(n + 1))
    starts = [torch.zeros(n + 1, dtype=torch.long)]
    for clusters in range(2, levels + 1):
        best, start = _add_cluster(sums, best, clusters)
        starts.append(start)
    return starts


def _add_cluster(sums: Tensor, best: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Return the least cost of the first j points in one cluster more, and where the last one starts.

    All j of one depth of the recursion are solved together: the candidates of each are laid end to end.
    """
    n = len(best) - 1
    cost, start = best.new_full((n + 1,), math.inf), torch.zeros(n + 1, dtype=torch.long)
    spans = torch.tensor(
        [[clusters, n, clusters - 1, n - 1]]
    )  # j from, to; where the last cluster may start
    while len(spans):
        low, high, left, right = spans.unbind(1)
        middle = (low + high) // 2
        last = torch.minimum(right, middle - 1)
        counts = last - left + 1
        owner = torch.arange(len(spans)).repeat_interleave(counts)
        begin = counts.cumsum(0) - counts
        candidate = left[owner] + torch.arange(len(owner)) - begin[owner]
        found = best[candidate] + _spread(sums, candidate, middle[owner])
        least = found.new_full((len(spans),), math.inf).scatter_reduce_(0, owner, found, "amin")
        places = torch.where(found == least[owner], candidate, n)
        chosen = places.new_full((len(spans),), n).scatter_reduce_(0, owner, places, "amin")
        cost[middle], start[middle] = least, chosen
        halves = [
            torch.stack([low, middle - 1, left, chosen], 1),
            torch.stack([middle + 1, high, chosen, right], 1),
        ]
        spans = torch.cat(halves)
        spans = spans[spans[:, 0] <= spans[:, 1]]
    return cost, start


def _spread(sums: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the weighted squared deviations of the points low ... high - 1 from their mean."""
    mass, first, second = sums[:, high] - sums[:, low]
    return (second - first.square() / mass.clamp_min(torch.finfo(mass.dtype).tiny)).clamp_min(0)


@torch.no_grad()
def quantize(
    pruned: Pruned,
    levels: int | Mapping[str, int] = 16,
    rule: Distortion = "posterior",
    bits_weight: float = 0.0,
) -> Pruned:
    r"""Return the pruned network with few distinct values per parameter; zeros stay zero.

    Args:
        pruned: the network.
        levels: the most values in each parameter, biases included; or a mapping from name pattern to that number, of
            which the first that fits counts and what none fits stays as it is.
        rule: ``"posterior"``: distortion :math:`(w - c)^2 / (2\sigma_i^2)` with the posterior variance of each weight;
            ``"equal"``: one variance per parameter, the harmonic mean, so plain k-means at ``bits_weight=0``. A
            parameter whose variance is not known, a bias, has that of its layer, or else of the network.
        bits_weight: :math:`\beta`, how much distortion, in units of ln 2 nats, a bit is worth.

    Raises:
        ValueError: levels below one; a pattern that fits no parameter; a negative ``bits_weight``; another rule;
            variances that are not known where they are needed; a value that half precision cannot hold.
        TypeError: something that was not pruned; a posterior, say.
    """
    if not isinstance(pruned, Pruned):
        raise TypeError(f"quantize: expected what prune returns, got a {type(pruned).__name__}")
    if rule not in ("posterior", "equal"):
        raise ValueError(f"quantize: expected the rule 'posterior' or 'equal', got {rule!r}")
    if not bits_weight >= 0:
        raise ValueError(f"quantize: expected a bits_weight of at least 0, got {bits_weight}")
    if not pruned.variances and (rule == "posterior" or bits_weight):
        raise ValueError(
            "quantize: the variances of the weights are not known; prune a posterior, which has them, or take "
            "rule='equal' and bits_weight=0"
        )
    parameters = dict(pruned.module.named_parameters())
    most = _levels(levels, parameters)
    values = {}
    for name, precision in precisions(pruned, rule).items():
        weight = parameters[name].detach()
        if name in most and bool((kept := weight != 0).any()):
            half(weight[kept])  # what it cannot hold is refused before it overflows elsewhere
            table, nats = k_means(weight[kept], most[name], precision[kept]), weight.new_zeros(())
            if bits_weight:
                table, nats = _entropy_constrained(
                    weight[kept], precision[kept], table, bits_weight
                )
            table = half(table)
            values[name] = weight.clone()
            values[name][kept] = table[_costs(weight[kept], precision[kept], table, nats).argmin(1)]
    return pruned.with_values(values)


def precisions(pruned: Pruned, rule: Distortion) -> dict[str, Tensor]:
    r"""Return :math:`1/\sigma^2` for every number of every parameter, as ``quantize`` takes it under this rule."""
    parameters = {name: p.detach() for name, p in pruned.module.named_parameters()}
    known = {
        name: _capped(variance, parameters[name] != 0)
        for name, variance in pruned.variances.items()
    }
    kept = {name: precision[parameters[name] != 0] for name, precision in known.items()}
    kept = {name: precision for name, precision in kept.items() if len(precision)}
    together = torch.cat(list(kept.values())).mean() if kept else torch.tensor(1.0)
    layers = {name.rpartition(".")[0]: precision.mean() for name, precision in kept.items()}
    found = {}
    for name, parameter in parameters.items():
        shared = (
            kept[name].mean() if name in kept else layers.get(name.rpartition(".")[0], together)
        )
        own = known[name] if name in kept and rule == "posterior" else shared
        found[name] = own.to(parameter).expand_as(parameter)
    return found


def _capped(variance: Tensor, kept: Tensor) -> Tensor:
    """Return precisions; a variance of zero, or below a millionth of the median, would fix its weight: it is raised."""
    usual = variance[kept & (variance > 0)]
    return variance.clamp_min(1e-6 * usual.median() if len(usual) else 1.0).reciprocal()


def _levels(levels: int | Mapping[str, int], parameters: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the most values of each parameter that is to have a codebook."""
    patterns = {"*": levels} if isinstance(levels, int) else levels
    for pattern, number in patterns.items():
        if number < 1:
            raise ValueError(
                f"quantize: expected levels of at least one, got {number} for {pattern!r}"
            )
        if not fnmatch.filter(parameters, pattern):
            raise ValueError(
                f"quantize: {pattern!r} fits no parameter; there are {', '.join(parameters)}"
            )
    fits = {
        name: [n for pattern, n in patterns.items() if fnmatch.fnmatchcase(name, pattern)]
        for name in parameters
    }
    return {name: numbers[0] for name, numbers in fits.items() if numbers}


def _entropy_constrained(
    values: Tensor, precision: Tensor, table: Tensor, bits_weight: float
) -> tuple[Tensor, Tensor]:
    """Return the codebook at which alternating settles, without the levels that are not worth their entry, and what
    the code of each level costs in nats."""
    best = _alternate(values, precision, table, bits_weight)
    while len(best.table) > 1:
        shorter = (torch.cat([best.table[:k], best.table[k + 1 :]]) for k in range(len(best.table)))
        tried = min(
            (_alternate(values, precision, s, bits_weight, steps=3) for s in shorter),
            key=lambda t: t.cost,
        )
        tried = _alternate(values, precision, tried.table, bits_weight)
        if tried.cost >= best.cost:
            break
        best = tried
    return best.table, best.nats


class _Settled(NamedTuple):
    """A codebook, what the code of each of its levels costs in nats, and the objective."""

    table: Tensor
    nats: Tensor
    cost: float


def _alternate(
    values: Tensor, precision: Tensor, table: Tensor, bits_weight: float, steps: int = 100
) -> _Settled:
    """Minimise the objective over assignments, centroids and frequencies in turn."""
    code = (values[:, None] - table).abs().argmin(1)
    cost = math.inf
    for _ in range(steps):
        counts = code.bincount(minlength=len(table))
        used = counts > 0
        table = _means(values, precision, code, len(table))[used]
        nats = -bits_weight * (counts[used] / len(values)).log()
        each, code = _costs(values, precision, table, nats).min(1)
        before, cost = (
            cost,
            float(each.double().sum()) + bits_weight * _ENTRY_BITS * math.log(2) * len(table),
        )
        if cost >= before * (1 - 1e-9):
            break
    return _Settled(table, nats, cost)


def _means(values: Tensor, precision: Tensor, code: Tensor, number: int) -> Tensor:
    """Return the centroid of each level, NaN where nobody has it."""
    zero = values.new_zeros(number, dtype=torch.double)
    mass = precision.double()
    return (zero.index_add(0, code, mass * values) / zero.index_add(0, code, mass)).to(values.dtype)


def _costs(values: Tensor, precision: Tensor, table: Tensor, nats: Tensor) -> Tensor:
    """Return what each weight costs at each level, in nats: distortion and code length, (n, levels)."""
    return (values[:, None] - table).square() * (precision[:, None] / 2) + nats


def half(values: Tensor) -> Tensor:
    """Return the nearest numbers that half precision can hold, other than zero.

    Raises:
        ValueError: a number beyond 65504.
    """
    rounded = values.to(torch.float16).to(values.dtype)
    if bool(rounded.isinf().any()):
        raise ValueError(
            f"codebooks hold numbers up to 65504, got {float(values.abs().max()):g}; scale the inputs"
        )
    least = torch.finfo(torch.float16).smallest_normal / 1024
    return torch.where(
        rounded == 0, torch.copysign(torch.full_like(values, least), values), rounded
    )
