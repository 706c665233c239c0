"""Figures of compression."""

import math

import pytest
import torch

from pyro_bnn import plotting
from pyro_bnn.compression.latency import Latency
from tests.plotting.figures import is_drawn, pixels


def heights(axes):
    """Return the total heights of the bars of each color."""
    totals = {}
    for bar in axes.patches:
        color = bar.get_facecolor()
        totals[color] = totals.get(color, 0) + bar.get_height()
    return list(totals.values())


def test_histograms_separate_kept_and_pruned_weights_at_the_threshold():
    generator = torch.Generator().manual_seed(0)
    measures = {
        "a": torch.randn(1000, generator=generator),
        "b": torch.randn(50, 2, generator=generator),
    }
    measures["a"][:3] = torch.inf
    measures["b"][0] = 1e6
    limits = {"a": 0.7, "b": -0.2}
    figure = plotting.plot_pruning_histograms(measures, limits, "measure", "groups")
    for axes, (name, values) in zip(figure.axes, measures.items(), strict=True):
        kept = int((values < limits[name]).sum())
        assert heights(axes) == [kept, values.numel() - kept]
        assert f"{kept:,} of {values.numel():,} groups" in axes.get_title("left")
        assert axes.lines[0].get_xdata()[0] == limits[name]
        # no bar lies on both sides of the threshold
        for bar in axes.patches:
            left, right = bar.get_x(), bar.get_x() + bar.get_width()
            assert not left < limits[name] - 1e-6 < limits[name] + 1e-6 < right
    assert "3 lie further right" in figure.axes[0].get_title("left")
    assert "2 lie further right" in figure.axes[1].get_title("left")
    assert is_drawn(figure)


@pytest.mark.parametrize("threshold", [math.inf, -math.inf])
def test_histograms_take_infinite_thresholds(threshold):
    figure = plotting.plot_pruning_histograms({"a": torch.tensor([1.0, 2.0])}, threshold)
    assert f"{2 if threshold > 0 else 0} of 2 weights" in figure.axes[0].get_title("left")
    assert is_drawn(figure)


def test_receptive_fields_show_each_weight_at_its_pixel():
    weight = torch.zeros(5, 81)
    weight[1, 80], weight[3, 0], weight[3, 1], weight[3, 80] = -2.0, 3.0, 1.0, 1.0
    used, fields = plotting.plot_receptive_fields(weight, name="fc1").axes[:2]
    counts = torch.tensor(pixels(used))
    assert counts[8, 8] == 2
    assert counts.sum() == 4
    assert "3 of 81 pixels" in used.get_title("left")
    assert "2 of 5 units are left" in fields.get_title("left")
    sheet = torch.tensor(pixels(fields))
    assert sheet[1, 1] == 3  # unit 3, of the larger norm, comes first; frames are one wide
    assert sheet[1, 2] == sheet[9, 9] == 1
    assert sheet[9, 19] == -2
    masked = plotting.plot_receptive_fields(weight, weight > 0).axes[1].get_title("left")
    assert "1 of 5 units" in masked
    assert is_drawn(plotting.plot_receptive_fields(weight))
    assert is_drawn(plotting.plot_receptive_fields(torch.zeros(3, 16)))
    with pytest.raises(ValueError, match=r"images \(3, 3\)"):
        plotting.plot_receptive_fields(torch.zeros(3, 10))


def test_filters_are_drawn_as_the_sum_over_their_channels():
    weight = torch.zeros(4, 2, 3, 3)
    weight[2, 0, 1, 2], weight[2, 1, 1, 2] = 1.0, 2.0
    figure = plotting.plot_receptive_fields(weight, name="conv1")
    (axes,) = figure.axes
    assert "1 of 4 filters" in axes.get_title("left")
    sheet = torch.tensor(pixels(axes))
    assert (sheet[5:9, 9:13] == 3).all()  # the sum over channels; a pixel is four by four
    assert sheet.sum() == 3 * 16
    assert is_drawn(figure)


def test_acceleration_shows_the_ratios_of_operations_and_of_latencies():
    latencies = [Latency("torch", 1, 2e-4, 4e-4), Latency("onnxruntime", 8192, 1.5, 0.25)]
    figure = plotting.plot_acceleration({"a": 1000, "b": 200}, {"a": 90, "b": 10}, latencies)
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([12, 0.5, 6])
    words = " ".join(text.get_text() for text in axes.texts)
    for expected in ("1,200 → 100", "200 µs → 400 µs", "1.5 s → 250 ms"):
        assert expected in words
    assert "12.0 times less to multiply, up to 6.0 times as fast" in axes.get_title("left")
    assert is_drawn(figure)
    assert is_drawn(plotting.plot_acceleration({"a": 4}, {"a": 2}, []))
