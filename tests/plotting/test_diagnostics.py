"""Pictures of comparisons and simulations show the numbers behind them."""

import pytest
import torch

from pyro_bnn import Posterior, compare
from pyro_bnn.diagnostics import Simulation
from pyro_bnn.plotting import plot_comparison, plot_simulation
from tests.diagnostics.comparisons import AT, TRUE, classifier, exact_draws
from tests.diagnostics.regression import DATA


def test_a_comparison_of_functions_of_one_input_is_drawn_over_it(tmp_path):
    posteriors = {"half": exact_draws(scale=0.5), "exact": exact_draws()}
    comparison = compare(posteriors, AT, TRUE, "exact", data=DATA)
    figure = plot_comparison(comparison)
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    ratios = figure.axes[-1].lines[0].get_ydata()
    assert ratios == pytest.approx(0.5)
    means = figure.axes[0].lines[0].get_ydata()
    assert means == pytest.approx(comparison.curves["half"].mean.numpy())


def test_a_comparison_of_classes_has_a_dot_for_each_test_value():
    x, y = torch.randn(12, 2), torch.arange(12) % 3
    posteriors = {}
    for name in "ab":
        draws = {"0.weight": torch.randn(2, 30, 3, 2)}
        posteriors[name] = Posterior.from_draws(classifier(), draws)
    figure = plot_comparison(compare(posteriors, x, y, "b"))
    assert len(figure.axes) == 3
    assert len(figure.axes[0].lines[1].get_xdata()) == 36


def test_a_simulation_shows_the_smallest_p_value_first(tmp_path):
    generator = torch.Generator().manual_seed(0)
    ranks = {f"w[{index}]": torch.randint(64, (50,), generator=generator) for index in range(6)}
    ranks["w[4]"] = ranks["w[4]"] // 2
    simulation = Simulation(ranks, 63)
    figure = plot_simulation(simulation)
    figure.savefig(tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").read_bytes().startswith(b"\x89PNG")
    assert figure.axes[0].get_title(loc="left").startswith("w[4]")
    assert sum(bool(axes.lines) for axes in figure.axes) == 6
