import io
import json
import math

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from pyro_bnn import BayesianNet, Posterior, compression, likelihoods, priors
from pyro_bnn.compression.latency import Latency
from pyro_bnn.compression.pbnn.codec import save
from pyro_bnn.compression.quantization.codebooks import quantize
from pyro_bnn.compression.report import report_on
from pyro_bnn.guides import MeanField, PointEstimate
from pyro_bnn.models import LeNet5, LeNet300100
from pyro_bnn.plotting import compression as pictures
from pyro_bnn.runs.snapshots import Snapshots, masked_means, read_snapshots
from pyro_bnn.runtime.tensor_files import CheckpointError
from pyro_bnn.training import Progress


def posterior_of(net, masks):
    """Weights of the masks have a log alpha of -5, the others of 5."""
    torch.manual_seed(0)
    model = BayesianNet(net, priors.LogUniform(), likelihoods.Categorical(), num_data=10)
    guide = MeanField(model)
    with torch.no_grad():
        for name, mask in masks.items():
            site = guide.sites.get_submodule(name)
            # away from zero and from each other, so that no weight is lost by chance
            site.loc.copy_(
                torch.where(torch.rand_like(site.loc) < 0.5, -1.0, 1.0)
                * (0.5 + torch.rand_like(site.loc))
            )
            site.log_scale.copy_(site.loc.abs().log() + torch.where(mask, -2.5, 2.5))
    return Posterior.from_guide(model, guide)


def block(shape, rows, columns):
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[:rows, :columns] = True
    return mask


def dense(i, h1, h2, inputs=784, hidden=(300, 100)):
    """The masks that leave i inputs, h1 and h2 hidden units."""
    return {
        "fc1.weight": block((hidden[0], inputs), h1, i),
        "fc2.weight": block((hidden[1], hidden[0]), h2, h1),
        "fc3.weight": block((10, hidden[1]), 10, h2),
    }


# --- the table


def test_a_published_row_comes_out():
    """278-98-13: 10.8% of the weights are left, the smaller network is 9.29 times smaller; published as 9."""
    pruned = compression.prune(posterior_of(LeNet300100(), dense(278, 98, 13)))
    report = report_on(pruned, torch.zeros(1, 784))
    assert report.architecture == "278-98-13"
    assert report.weights == 266_200
    left = 278 * 98 + 98 * 13 + 13 * 10
    assert sum(math.prod(row.new_shape) for row in report.layers) == left
    assert report.rates["weights / weights of the smaller network"] == pytest.approx(266_200 / left)
    assert report.rates["weights / weights of the smaller network"] == pytest.approx(9.29, abs=0.01)
    assert report.macs == (266_200, left)
    assert [row.shape for row in report.layers] == [(300, 784), (100, 300), (10, 100)]
    assert report.file_bytes is None
    assert not [name for name in report.rates if "file" in name]


def test_a_small_network_counted_by_hand(tmp_path):
    masks = dense(5, 4, 3, inputs=16, hidden=(8, 6))
    masks["fc1.weight"][1, 2] = False  # a zero inside
    pruned = compression.prune(posterior_of(LeNet300100(16, (8, 6)), masks))
    final = quantize(pruned, 4)
    sizes = save(final, tmp_path / "net.pbnn")
    errors = {"pruned": 0.25, "decoded": 0.125}
    latencies = [Latency("torch", 8192, 0.2, 0.05, ("contiguous", "channels-last"))]
    report = report_on(pruned, torch.zeros(1, 16), final, sizes, errors, latencies)
    weights, kept, left = 16 * 8 + 8 * 6 + 60, 19 + 12 + 30, 20 + 12 + 30
    assert report.weights == weights
    assert [row.kept for row in report.layers] == [19, 12, 30]
    assert [row.values for row in report.layers] == [
        final.module.get_submodule(name)
        .weight[final.module.get_submodule(name).weight != 0]
        .unique()
        .numel()
        for name in ("fc1", "fc2", "fc3")
    ]
    assert max(row.values for row in report.layers) <= 4
    file = (tmp_path / "net.pbnn").stat().st_size
    assert report.file_bytes == file
    # every byte of the file is accounted for
    assert sum(row.bytes for row in report.layers) + sum(
        report.other_bytes.values()
    ) == pytest.approx(file)
    assert report.rates["weights / nonzero weights"] == pytest.approx(weights / kept)
    assert report.rates["weights / weights of the smaller network"] == pytest.approx(weights / left)
    pointers = (4 + 1) + (3 + 1) + (10 + 1)
    rate = report.rates["published formula: pruning, compressed sparse rows"]
    assert rate == pytest.approx(weights / (2 * kept + pointers))
    bits = [row.bits for row in report.layers]
    fast = 32 * weights / (20 * bits[0] + 12 * bits[1] + 30 * bits[2])
    assert report.rates["published formula: fast prediction, dense"] == pytest.approx(fast)
    assert report.rates["4 bytes per original weight / bytes of the file"] == pytest.approx(
        4 * weights / file
    )
    for text in (str(report), report.to_markdown()):
        for words in (
            *report.rates,
            "25.00%",
            "12.50%",
            f"{4 * weights / file:,.1f}",
            "5-4-3",
            "4.0",
            "50 ms",
        ):
            assert words in text
    data = json.loads(json.dumps(report.to_json()))
    assert data["macs"] == {"before": weights, "after": left}
    assert data["errors"] == errors
    assert data["latencies"][0]["speedup"] == pytest.approx(4)
    assert data["layers"][0]["new_shape"] == [4, 5]


def test_macs_of_convolutions_are_in_the_table():
    masks = {
        "conv1.weight": block((20, 1, 5, 5), 5, 1),
        "conv2.weight": block((50, 20, 5, 5), 10, 5),
        "fc1.weight": torch.zeros(500, 800, dtype=torch.bool),
        "fc2.weight": block((10, 500), 10, 16),
    }
    masks["fc1.weight"][:16, :160] = True  # ten filters of sixteen positions
    report = report_on(compression.prune(posterior_of(LeNet5(), masks)), torch.zeros(1, 784))
    assert report.architecture == "5-10-160-16"
    assert [row.macs for row in report.layers] == [288_000, 1_600_000, 400_000, 5_000]
    assert [row.new_macs for row in report.layers] == [
        25 * 5 * 576,
        25 * 5 * 10 * 64,
        160 * 16,
        160,
    ]


def test_the_markdown_is_made_of_tables():
    report = report_on(
        compression.prune(posterior_of(LeNet300100(16, (8, 6)), dense(5, 4, 3, 16, (8, 6)))),
        torch.zeros(1, 16),
    )
    tables = [
        part.splitlines() for part in report.to_markdown().split("\n\n") if part.startswith("|")
    ]
    assert len(tables) == 2
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
        assert set(table[1]) <= set("|-:")
    assert tables[0][1].count("---:") == 8


# --- pictures


def is_drawn(figure):
    assert isinstance(figure, Figure)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=50)
    return len(stream.getvalue()) > 2000


def heights(axes):
    """The numbers under the bars, by colour."""
    found = {}
    for bar in axes.patches:
        colour = bar.get_facecolor()
        found[colour] = found.get(colour, 0) + bar.get_height()
    return list(found.values())


def test_histograms_count_what_is_kept_and_what_is_not():
    generator = torch.Generator().manual_seed(0)
    measures = {
        "a": torch.randn(1000, generator=generator),
        "b": torch.randn(50, 2, generator=generator),
    }
    measures["a"][:3] = torch.inf
    measures["b"][0] = 1e6
    limits = {"a": 0.7, "b": -0.2}
    figure = pictures.histograms(measures, limits, "measure", "groups")
    for axes, (name, values) in zip(figure.axes, measures.items(), strict=True):
        kept = int((values < limits[name]).sum())
        assert heights(axes) == [kept, values.numel() - kept]
        assert f"{kept:,} of {values.numel():,} groups" in axes.get_title("left")
        assert axes.lines[0].get_xdata()[0] == limits[name]
        # no bar lies on both sides of the threshold
        edges = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches]
        assert not [
            edge for edge in edges if edge[0] < limits[name] - 1e-6 < limits[name] + 1e-6 < edge[1]
        ]
    assert "3 lie further right" in figure.axes[0].get_title("left")
    assert "2 lie further right" in figure.axes[1].get_title("left")
    assert is_drawn(figure)


@pytest.mark.parametrize("threshold", [math.inf, -math.inf])
def test_histograms_take_thresholds_that_keep_or_drop_everything(threshold):
    figure = pictures.histograms({"a": torch.tensor([1.0, 2.0])}, threshold)
    assert f"{2 if threshold > 0 else 0} of 2 weights" in figure.axes[0].get_title("left")
    assert is_drawn(figure)


def test_receptive_fields_put_weights_back_in_their_places():
    weight = torch.zeros(5, 81)
    weight[1, 80], weight[3, 0], weight[3, 1], weight[3, 80] = -2.0, 3.0, 1.0, 1.0
    pixels, fields = pictures.receptive_fields(weight, name="fc1").axes[:2]
    counts = torch.tensor(pixels.images[0].get_array().filled(0))
    assert counts[8, 8] == 2
    assert counts.sum() == 4
    assert "3 of 81 pixels" in pixels.get_title("left")
    assert "2 of 5 units are left" in fields.get_title("left")
    sheet = torch.tensor(fields.images[0].get_array().filled(0))
    assert sheet[1, 1] == 3  # unit 3, of the larger norm, comes first; frames are one wide
    assert sheet[1, 2] == sheet[9, 9] == 1
    assert sheet[9, 19] == -2
    masked = pictures.receptive_fields(weight, weight > 0).axes[1].get_title("left")
    assert "1 of 5 units" in masked
    assert is_drawn(pictures.receptive_fields(weight))
    assert is_drawn(pictures.receptive_fields(torch.zeros(3, 16)))
    with pytest.raises(ValueError, match=r"images \(3, 3\)"):
        pictures.receptive_fields(torch.zeros(3, 10))


def test_filters_are_drawn_as_they_are():
    weight = torch.zeros(4, 2, 3, 3)
    weight[2, 0, 1, 2], weight[2, 1, 1, 2] = 1.0, 2.0
    figure = pictures.receptive_fields(weight, name="conv1")
    (axes,) = figure.axes
    assert "1 of 4 filters" in axes.get_title("left")
    sheet = torch.tensor(axes.images[0].get_array().filled(0))
    assert (sheet[5:9, 9:13] == 3).all()  # the sum over channels; a pixel is four by four
    assert sheet.sum() == 3 * 16
    assert is_drawn(figure)


def test_acceleration_draws_the_ratios():
    latencies = [Latency("torch", 1, 2e-4, 4e-4), Latency("onnxruntime", 8192, 1.5, 0.25)]
    figure = pictures.acceleration({"a": 1000, "b": 200}, {"a": 90, "b": 10}, latencies)
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([12, 0.5, 6])
    words = " ".join(text.get_text() for text in axes.texts)
    for expected in ("1,200 → 100", "200 µs → 400 µs", "1.5 s → 250 ms"):
        assert expected in words
    assert "12.0 times less to multiply, up to 6.0 times as fast" in axes.get_title("left")
    assert is_drawn(figure)
    assert is_drawn(pictures.acceleration({"a": 4}, {"a": 2}, []))


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
    pictures.animate(frames, tmp_path / "weights.gif", fps=5)
    with Image.open(tmp_path / "weights.gif") as gif:
        durations = []
        for index in range(gif.n_frames):
            gif.seek(index)
            durations.append(gif.info["duration"])
        assert gif.n_frames == 3
        assert durations == [200, 200, 2000]
    with pytest.raises(ValueError, match="--snapshots"):
        pictures.animate([], tmp_path / "none.gif")


def test_cells_never_lose_a_weight():
    weight = torch.zeros(250, 1000)
    weight[249, 999], weight[0, 0], weight[0, 1] = -0.5, 0.25, -0.75
    cells = pictures._cells(weight)
    assert cells.shape == (84, 250)  # three by four
    assert cells[83, 249] == -0.5
    assert cells[0, 0] == -0.75
    assert int(cells.count_nonzero()) == 2


# --- snapshots


def seen(posterior, epoch):
    return Progress(epoch, {}, lambda: posterior)


def test_snapshots_hold_the_pruned_weights(tmp_path):
    posterior = posterior_of(LeNet300100(16, (8, 6)), dense(5, 4, 3, 16, (8, 6)))
    callback = Snapshots(tmp_path / "snapshots", 4)
    for epoch in range(1, 13):
        callback(seen(posterior, epoch))
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == [
        f"epoch-{epoch:04d}.safetensors" for epoch in (4, 8, 12)
    ]
    found = read_snapshots(tmp_path / "snapshots")
    assert [epoch for epoch, _ in found] == [4, 8, 12]
    full = compression.prune(posterior).masked.state_dict()
    for name, weight in found[0][1].items():
        assert weight.dtype == torch.float16
        assert torch.equal(weight, full[name].half())
    assert set(found[0][1]) == {"fc1.weight", "fc2.weight", "fc3.weight"}


def test_snapshots_are_ordered_by_their_epoch(tmp_path):
    posterior = posterior_of(nn.Linear(2, 2), {"weight": torch.ones(2, 2, dtype=torch.bool)})
    for epoch in (9, 10_000, 2000):
        Snapshots(tmp_path, 1)(seen(posterior, epoch))
    assert [epoch for epoch, _ in read_snapshots(tmp_path)] == [9, 2000, 10_000]
    assert read_snapshots(tmp_path / "nowhere") == []


def test_point_estimates_have_snapshots_too():
    model = BayesianNet(nn.Linear(3, 2), priors.Normal(1.0), likelihoods.Categorical(), num_data=10)
    posterior = Posterior.from_guide(model, PointEstimate(model))
    assert torch.equal(masked_means(posterior)["weight"], posterior.mean_network().weight)


def test_damaged_snapshots_are_one_error(tmp_path):
    (tmp_path / "epoch-0005.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="epoch-0005"):
        read_snapshots(tmp_path)
    with pytest.raises(ValueError, match="at least one epoch"):
        Snapshots(tmp_path, 0)
