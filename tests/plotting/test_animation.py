"""The animation of weights."""

import pytest
import torch
from PIL import Image

from pyro_bnn import plotting
from pyro_bnn.plotting.animation import _cells


def test_the_animation_has_a_frame_for_every_snapshot(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(120, 600, generator=generator)
    frames = [
        (
            epoch,
            {"fc1.weight": weight * (torch.rand(weight.shape, generator=generator) < 1 / epoch)},
        )
        for epoch in (1, 5, 9)
    ]
    plotting.animate_weights(frames, tmp_path / "weights.gif", fps=5)
    with Image.open(tmp_path / "weights.gif") as gif:
        durations = []
        for index in range(gif.n_frames):
            gif.seek(index)
            durations.append(gif.info["duration"])
        assert gif.n_frames == 3
        assert durations == [200, 200, 2000]
    with pytest.raises(ValueError, match="--snapshots"):
        plotting.animate_weights([], tmp_path / "none.gif")


def test_each_cell_shows_its_largest_weight():
    weight = torch.zeros(250, 1000)
    weight[249, 999], weight[0, 0], weight[0, 1] = -0.5, 0.25, -0.75
    cells = _cells(weight)
    assert cells.shape == (84, 250)  # three by four
    assert cells[83, 249] == -0.5
    assert cells[0, 0] == -0.75
    assert int(cells.count_nonzero()) == 2
