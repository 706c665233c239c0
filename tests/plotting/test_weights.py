"""Figures of weights."""

import pytest
import torch

from pyro_bnn import compression, plotting
from tests.plotting.figures import is_drawn, pixels, titles


def test_every_remaining_weight_of_a_sparse_matrix_is_a_dot():
    before = torch.randn(10, 16, generator=torch.Generator().manual_seed(0))
    after = torch.zeros(10, 16)
    after[2, 3], after[7, 15] = 0.5, -0.25
    figure = plotting.plot_weight_matrices(before, after)
    dense, sparse, units = figure.axes
    assert dense.images[0].get_array().shape == (10, 16)
    assert sparse.collections[0].get_offsets().tolist() == [[3, 2], [15, 7]]
    assert (pixels(units) != 0).sum() == 2
    assert "2 of 160" in figure.get_suptitle()
    assert is_drawn(figure)


@pytest.mark.parametrize(("inputs", "panels"), [(9, 3), (10, 2)])
def test_units_are_drawn_as_images_only_for_square_inputs(inputs, panels):
    figure = plotting.plot_weight_matrices(torch.ones(4, inputs), torch.zeros(4, inputs))
    assert len(figure.axes) == panels
    assert is_drawn(figure)


def test_the_summary_of_a_run_starts_at_the_dense_network(posterior, images):
    x, y = images
    after = compression.prune(posterior).module.weight
    prediction = posterior.predict(x, 5)
    figure = plotting.plot_run_summary([(1, 30), (2, 20)], after, prediction, x, y, 48, 0.5)
    line = figure.axes[0].lines[0]
    assert line.get_xydata().tolist() == [[0, 48], [1, 30], [2, 20]]
    assert "48 weights become 20" in titles(figure)
    assert is_drawn(figure)
