"""Multiply-accumulates are those of the literature; smaller networks are measured fairly."""

import pytest
import torch
from torch import nn

from pyro_bnn.compression import latency
from pyro_bnn.compression.latency import Latency, macs, measure
from pyro_bnn.compression.rates import layer_sizes
from pyro_bnn.models import LeNet5, LeNet300100


def test_macs_are_those_of_the_literature():
    assert sum(macs(LeNet300100(), torch.zeros(1, 784)).values()) == 266_200
    counts = macs(LeNet5(), torch.zeros(3, 784))
    assert counts == {
        "conv1": 25 * 20 * 576,
        "conv2": 25 * 20 * 50 * 64,
        "fc1": 800 * 500,
        "fc2": 5000,
    }
    assert sum(counts.values()) == 2_293_000


@pytest.mark.parametrize(
    ("architecture", "published"), [("3-18-284-283", 213e3), ("5-10-76-16", 153e3)]
)
def test_macs_of_small_networks_are_the_published_ones(architecture, published):
    """The tables print thousands; the second is 15 times less than the original."""
    c1, c2, f1, f2 = (int(part) for part in architecture.split("-"))
    sizes = layer_sizes(architecture, convolutions=2)
    formula = 25 * c1 * 576 + 25 * c1 * c2 * 64 + f1 * f2 + 10 * f2
    net = nn.Sequential(
        nn.Conv2d(1, c1, 5), nn.MaxPool2d(2), nn.Conv2d(c1, c2, 5), nn.MaxPool2d(2), nn.Flatten()
    )
    dense = nn.Sequential(nn.Linear(f1, f2), nn.Linear(f2, 10))
    convolutions = sum(macs(net, torch.zeros(1, 1, 28, 28)).values())
    assert convolutions + sum(macs(dense, torch.zeros(1, f1)).values()) == formula
    assert sum(macs(dense, torch.zeros(1, f1)).values()) == sum(sizes[2:])
    assert formula == pytest.approx(published, rel=0.02)


def test_macs_count_strides_groups_positions_and_layers_used_twice():
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    assert macs(conv, torch.zeros(5, 4, 9, 9)) == {"": 6 * 2 * 9 * 25}
    assert macs(nn.Conv1d(2, 3, 4), torch.zeros(1, 2, 10)) == {"": 3 * 2 * 4 * 7}
    shared = nn.Linear(4, 4)
    assert macs(nn.Sequential(shared, nn.ReLU(), shared), torch.zeros(2, 4)) == {"0": 32}
    assert macs(nn.Linear(4, 3), torch.zeros(2, 5, 4)) == {"": 60}  # five positions


def halves():
    """Return a network with dead units, and the same function without them."""
    torch.manual_seed(0)
    large = nn.Sequential(
        nn.Conv2d(1, 64, 5), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 64, 10)
    ).eval()
    small = nn.Sequential(nn.Conv2d(1, 2, 5), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 64, 10)).eval()
    with torch.no_grad():
        large[0].weight[2:], large[0].bias[2:] = 0, 0
        small[0].weight[:], small[0].bias[:] = large[0].weight[:2], large[0].bias[:2]
        small[3].weight[:], small[3].bias[:] = large[3].weight[:, :128], large[3].bias
    return large, small


def test_a_network_of_a_thirtieth_of_the_size_is_faster():
    large, small = halves()
    threads = torch.get_num_threads()
    latencies = measure(large, small, torch.randn(10, 1, 12, 12), batches=(1, 64), rounds=3)
    assert torch.get_num_threads() == threads
    assert [(row.runtime, row.batch) for row in latencies] == [
        ("torch", 1), ("torch", 64), ("onnxruntime", 1), ("onnxruntime", 64)
    ]  # fmt: skip
    for row in latencies:
        assert row.before > 0
        assert row.speedup == row.before / row.after
        if row.batch == 64:  # 32 times fewer multiplications; other tests run beside this one
            assert row.speedup > 1.2
    assert {row.layouts for row in latencies if row.runtime == "onnxruntime"} == {("", "")}
    for row in latencies[:2]:
        assert set(row.layouts) <= {"contiguous", "channels-last"}


def test_each_network_is_timed_in_its_best_layout(monkeypatch):
    medians = {
        ("before", "contiguous"): 4.0,
        ("before", "channels-last"): 3.0,
        ("after", "contiguous"): 0.5,
    }
    monkeypatch.setattr(
        latency, "_medians", lambda calls, rounds: {key: medians.get(key, 1.0) for key in calls}
    )
    large, small = halves()
    (row,) = measure(large, small, torch.randn(2, 1, 12, 12), batches=(2,), onnx=False)
    assert row == Latency("torch", 2, 3.0, 0.5, ("channels-last", "contiguous"))


def test_comparing_networks_of_different_functions_is_an_error():
    large, small = halves()
    with torch.no_grad():
        small[3].bias[0] += 1e-3
    with pytest.raises(ValueError, match=r"same function.*differ by 1\.0e-03"):
        measure(large, small, torch.randn(10, 1, 12, 12), batches=(1,), onnx=False)
