"""Tests and bands of ranks have their levels."""

import pytest
import torch

from pyro_bnn.diagnostics import Simulation


def test_the_level_is_that_of_all_quantities_together():
    ranks = torch.cat([torch.arange(192) % 64, torch.arange(20)])
    p = Simulation({"a": ranks}, 63).p_values["a"]
    assert Simulation({"a": ranks}, 63).failures(1.01 * p) == {"a": p}
    both = Simulation({"a": ranks, "b": ranks}, 63)
    assert both.failures(1.01 * p) == {}
    assert set(both.failures(2.02 * p)) == {"a", "b"}


def test_p_values_of_uniform_ranks_are_uniform():
    """Over 400 sets of uniform ranks: Kolmogorov-Smirnov at level 0.001."""
    from scipy.stats import kstest

    generator = torch.Generator().manual_seed(0)
    many = Simulation(
        {str(i): torch.randint(64, (200,), generator=generator) for i in range(400)}, 63
    )
    assert many.bins == 16
    for values in (many.p_values, many.asymmetry):
        assert kstest(list(values.values()), "uniform").pvalue > 0.001


def test_uniform_ecdfs_stay_inside_the_band_at_its_level():
    """Of 1000 ECDFs of uniform ranks 95% stay inside everywhere: 5 standard errors of 0.007."""
    generator = torch.Generator().manual_seed(1)
    many = Simulation(
        {str(i): torch.randint(64, (100,), generator=generator) for i in range(1000)}, 63
    )
    at, half = many.band(0.95)
    inside = [bool(((many.ecdf(name) - at).abs() <= half + 1e-12).all()) for name in many.ranks]
    assert sum(inside) / 1000 == pytest.approx(0.95, abs=0.035)


def uniform_ranks(names, num=50):
    generator = torch.Generator().manual_seed(2)
    return {name: torch.randint(64, (num,), generator=generator) for name in names}


def test_the_table_has_both_p_values_of_every_quantity():
    simulation = Simulation(uniform_ranks(["weight[0]", "log p(y|x,w)"]), 63)
    lines = str(simulation).splitlines()
    assert lines[0].split() == ["quantity", "p", "uniform", "p", "symmetric"]
    name, *p_values = lines[1].split()
    assert name == "weight[0]"
    assert float(p_values[0]) == pytest.approx(simulation.p_values["weight[0]"], rel=1e-3)
    assert float(p_values[1]) == pytest.approx(simulation.asymmetry["weight[0]"], rel=1e-3)
    assert lines[2].endswith("-")  # the likelihood need not be symmetric
    assert lines[-1].startswith("50 simulations, 63 draws each: nothing fails")


def test_ranks_that_never_vary_are_symmetric_only_in_the_middle():
    middle = Simulation({"a": torch.full((40,), 4)}, 8)
    assert middle.asymmetry == {"a": 1.0}
    low = Simulation({"a": torch.full((40,), 1)}, 8)
    assert low.failures(test="symmetric") == low.asymmetry


def test_an_unknown_test_is_an_error():
    with pytest.raises(ValueError, match="'uniform' or 'symmetric'"):
        Simulation(uniform_ranks(["a"]), 63).failures(test="other")
