"""Codebooks: few values per parameter, zeros that stay zero, and weights by their precision."""

import math

import pytest
import torch

from pyro_bnn.compression.quantization.codebooks import codes, half, quantize
from pyro_bnn.compression.quantization.exact_k_means import k_means
from tests.compression.quantization.pruned_networks import parameter, pruned_net, value_bits


@pytest.mark.parametrize(
    ("rule", "bits_weight"), [("equal", 0.0), ("posterior", 0.0), ("posterior", 0.5)]
)
def test_zeros_stay_and_nonzero_weights_have_few_values(rule, bits_weight):
    pruned = pruned_net()
    small = quantize(pruned, 6, rule, bits_weight)
    for (name, before), after in zip(
        pruned.module.named_parameters(), small.module.parameters(), strict=True
    ):
        assert torch.equal(after != 0, before != 0)
        used = after[after != 0].unique()
        assert (name == "0.weight") + 1 <= len(used) <= 6
        assert torch.equal(used, used.half().float())
        assert torch.equal(codes(small)[name].values, used)
    assert bool((parameter(pruned, "0.bias") == 0).any())
    assert {
        name: torch.equal(mask, small.masks[name]) for name, mask in pruned.masks.items()
    } == dict.fromkeys(pruned.masks, True)
    again = quantize(pruned, 6, rule, bits_weight)
    assert all(
        torch.equal(a, b)
        for a, b in zip(small.module.parameters(), again.module.parameters(), strict=True)
    )


def test_codebooks_without_a_price_of_bits_are_k_means():
    pruned = pruned_net()
    weight = parameter(pruned, "0.weight").detach()
    table = half(k_means(weight[weight != 0], 5))
    small = parameter(quantize(pruned, 5, "equal"), "0.weight")
    assert torch.equal(codes(quantize(pruned, 5, "equal"))["0.weight"].values, table)
    nearest = table[(weight[..., None] - table).abs().argmin(-1)]
    assert torch.equal(small, torch.where(weight == 0, 0, nearest))


def test_precise_weights_attract_the_centroid():
    """Of two weights in one cluster, ten times the precision has a hundred times the influence."""
    pruned = pruned_net(sizes=(4, 2, 2), dropped=0.0)
    weight, variance = parameter(pruned, "0.weight"), pruned.variances["0.weight"]
    values, scales = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.1, 0.01, 0.1])
    with torch.no_grad():
        weight.zero_().view(-1)[:3] = values
        variance.view(-1)[:3] = scales.square()
    posterior, equal = (
        codes(quantize(pruned, {"0.weight": 2}, rule))["0.weight"]
        for rule in ("posterior", "equal")
    )
    assert equal.values.tolist() == [1.5, 9.0]
    assert posterior.values.tolist() == half(torch.tensor([201 / 101, 9.0])).tolist()
    assert posterior.counts.tolist() == [2, 1]


def test_a_variance_of_zero_gives_finite_codebooks():
    pruned = pruned_net()
    pruned.variances["0.weight"][0] = 0.0
    small = quantize(pruned, 4, "posterior", 0.1)
    assert all(bool(torch.isfinite(p).all()) for p in small.module.parameters())


def test_the_first_matching_pattern_gives_the_levels():
    pruned = pruned_net()
    small = quantize(pruned, {"0.weight": 3, "0.*": 5, "2.weight": 1})
    counts = {name: len(code.values) for name, code in codes(small).items()}
    assert counts == {"0.weight": 3, "0.bias": 5, "2.weight": 1, "2.bias": 3}
    assert torch.equal(
        parameter(small, "2.bias"), parameter(pruned, "2.bias")
    )  # no pattern fits it


def test_the_bits_of_a_code_are_its_entropy():
    pruned = pruned_net(sizes=(4, 2, 2), dropped=0.0)
    with torch.no_grad():
        for tensor in pruned.module.parameters():
            tensor.zero_()
        parameter(pruned, "0.weight").view(-1)[:4] = torch.tensor([1.0, 2.0, 3.0, 4.0])
        parameter(pruned, "2.weight").view(-1)[:2] = torch.tensor([1.0, 1.0])
    by_name = codes(pruned)
    assert list(by_name) == ["0.weight", "2.weight"]  # the others have no nonzero entries
    assert by_name["0.weight"].bits == pytest.approx(2)
    assert by_name["2.weight"].bits == 0
    assert value_bits(pruned) == pytest.approx(8 / 6)


def test_impossible_settings_and_numbers_are_errors():
    pruned = pruned_net()
    for bad, match in (
        ({"levels": 0}, "levels of at least one, got 0"),
        (
            {"levels": {"1.*": 4}},
            r"'1.\*' matches no parameter; the parameters are 0.weight, 0.bias",
        ),
        ({"rule": "median"}, "'posterior' or 'equal', got 'median'"),
        ({"bits_weight": -1.0}, "bits_weight of at least 0"),
        ({"bits_weight": math.nan}, "bits_weight of at least 0"),
    ):
        with pytest.raises(ValueError, match=match):
            quantize(pruned, **bad)
    unknown = pruned_net()
    unknown.variances.clear()
    for options in ({}, {"rule": "equal", "bits_weight": 0.1}):
        with pytest.raises(ValueError, match="take rule='equal' and bits_weight=0"):
            quantize(unknown, **options)
    assert len(codes(quantize(unknown, 4, "equal"))["0.weight"].values) == 4
    for factor in (1e6, 1e20):  # the second one overflows when it is squared
        with torch.no_grad():
            parameter(unknown, "0.weight").mul_(factor)
        with pytest.raises(ValueError, match="numbers up to 65504"):
            quantize(unknown, 4, "equal")


def test_half_is_never_zero():
    values = torch.tensor([1e-9, -1e-12, 0.1, -3.0001])
    rounded = half(values)
    assert torch.equal(rounded, rounded.half().float())
    assert torch.equal(rounded.sign(), values.sign())
    assert float((rounded - values).abs().max()) < 1e-3
