"""Reports count weights, rates, bytes and multiply-accumulates as a reader does by hand."""

import json
import math
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch

from pyro_bnn import BayesianNet, Posterior, compression, likelihoods, priors
from pyro_bnn.compression.latency import Latency
from pyro_bnn.compression.pbnn.codec import LayerSize, Sizes, save
from pyro_bnn.compression.quantization.codebooks import quantize
from pyro_bnn.compression.report import report_on
from pyro_bnn.guides import MeanField
from pyro_bnn.models import LeNet5, LeNet300100


def posterior_of(net, masks):
    """Return a posterior: weights of the masks have a log alpha of -5, the others of 5."""
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
    """Return masks that keep i inputs, h1 and h2 hidden units."""
    return {
        "fc1.weight": block((hidden[0], inputs), h1, i),
        "fc2.weight": block((hidden[1], hidden[0]), h2, h1),
        "fc3.weight": block((10, hidden[1]), 10, h2),
    }


def test_a_published_row_is_reproduced():
    """278-98-13: 10.8 % of the weights remain, 9.29 times fewer; published as 9."""
    pruned = compression.prune(posterior_of(LeNet300100(), dense(278, 98, 13)))
    report = report_on(pruned, torch.zeros(1, 784))
    assert report.architecture == "278-98-13"
    assert report.weights == 266_200
    remaining = 278 * 98 + 98 * 13 + 13 * 10
    assert sum(math.prod(row.new_shape) for row in report.layers) == remaining
    rate = report.rates["weights / weights of the smaller network"]
    assert rate == pytest.approx(266_200 / remaining)
    assert rate == pytest.approx(9.29, abs=0.01)
    assert report.macs == (266_200, remaining)
    assert [row.shape for row in report.layers] == [(300, 784), (100, 300), (10, 100)]
    assert report.file_bytes is None
    assert not [name for name in report.rates if "file" in name]


WEIGHTS = 16 * 8 + 8 * 6 + 60  # of the small network
KEPT = [19, 12, 30]
REMAINING = 20 + 12 + 30


class Written(NamedTuple):
    """A small network that was written to a file, and its report."""

    final: compression.Pruned
    file_bytes: int
    report: compression.Report


@pytest.fixture
def written(tmp_path):
    masks = dense(5, 4, 3, inputs=16, hidden=(8, 6))
    masks["fc1.weight"][1, 2] = False  # a zero inside
    pruned = compression.prune(posterior_of(LeNet300100(16, (8, 6)), masks))
    final = quantize(pruned, 4)
    sizes = save(final, tmp_path / "net.pbnn")
    errors = {"pruned": 0.25, "decoded": 0.125}
    latencies = [Latency("torch", 8192, 0.2, 0.05, ("contiguous", "channels-last"))]
    report = report_on(pruned, torch.zeros(1, 16), final, sizes, errors, latencies)
    return Written(final, (tmp_path / "net.pbnn").stat().st_size, report)


def test_the_weights_of_a_small_network_counted_by_hand(written):
    report = written.report
    assert report.weights == WEIGHTS
    assert [row.kept for row in report.layers] == KEPT
    for row in report.layers:
        weight = written.final.module.get_parameter(row.name)
        assert row.values == len(weight[weight != 0].unique()) <= 4


def test_every_byte_of_the_file_is_accounted_for(written):
    report = written.report
    assert report.file_bytes == written.file_bytes
    layers = sum(row.bytes for row in report.layers)
    assert layers + sum(report.other_bytes.values()) == pytest.approx(written.file_bytes)


def test_the_rates_of_a_small_network_counted_by_hand(written):
    rates, kept = written.report.rates, sum(KEPT)
    assert rates["weights / nonzero weights"] == pytest.approx(WEIGHTS / kept)
    assert rates["weights / weights of the smaller network"] == pytest.approx(WEIGHTS / REMAINING)
    pointers = (4 + 1) + (3 + 1) + (10 + 1)
    rows = rates["published formula: pruning, compressed sparse rows"]
    assert rows == pytest.approx(WEIGHTS / (2 * kept + pointers))
    indices = rates["published formula: pruning, 32-bit indices"]
    assert indices == pytest.approx(WEIGHTS / (2 * kept))
    bits = [row.bits for row in written.report.layers]
    fast = 32 * WEIGHTS / (20 * bits[0] + 12 * bits[1] + 30 * bits[2])
    assert rates["published formula: fast prediction, dense"] == pytest.approx(fast)
    file_rate = rates["4 bytes per original weight / bytes of the file"]
    assert file_rate == pytest.approx(4 * WEIGHTS / written.file_bytes)


def test_text_markdown_and_json_hold_the_whole_report(written):
    report = written.report
    file_rate = f"{4 * WEIGHTS / written.file_bytes:,.1f}"
    expected = [*report.rates, "25.00%", "12.50%", file_rate, "5-4-3", "4.0", "50 ms"]
    for text in (str(report), report.to_markdown()):
        for words in expected:
            assert words in text
    data = json.loads(json.dumps(report.to_json()))
    assert data["macs"] == {"before": WEIGHTS, "after": REMAINING}
    assert data["errors"] == report.errors
    assert data["latencies"][0]["speedup"] == pytest.approx(4)
    assert data["layers"][0]["new_shape"] == [4, 5]


def test_the_bytes_of_several_selections_are_added():
    layer = LayerSize("index0", 5, 3.0, 0.0, 0.0, 0.0)
    sizes = Sizes((layer, replace(layer, name="index1", positions=4.0)), 2.0, 7.0, 16)
    pruned = compression.prune(posterior_of(LeNet300100(16, (8, 6)), dense(5, 4, 3, 16, (8, 6))))
    report = report_on(pruned, torch.zeros(1, 16), sizes=sizes)
    expected = {"inputs that are read": 7.0, "graph": 2.0, "header, checksum": 7.0}
    assert report.other_bytes == expected


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
    after = [25 * 5 * 576, 25 * 5 * 10 * 64, 160 * 16, 160]
    assert [row.new_macs for row in report.layers] == after


def test_the_markdown_is_made_of_tables():
    masks = dense(5, 4, 3, 16, (8, 6))
    pruned = compression.prune(posterior_of(LeNet300100(16, (8, 6)), masks))
    parts = report_on(pruned, torch.zeros(1, 16)).to_markdown().split("\n\n")
    tables = [part.splitlines() for part in parts if part.startswith("|")]
    assert len(tables) == 2
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
        assert set(table[1]) <= set("|-:")
    assert tables[0][1].count("---:") == 8
