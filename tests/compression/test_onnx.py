import sys
import warnings

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from pyro_bnn import BayesianNet, Posterior, likelihoods, priors
from pyro_bnn.compression import onnx as export
from pyro_bnn.compression.latency import Latency, macs, measure
from pyro_bnn.compression.onnx import ExportError, ensemble_to_onnx, example_for, to_onnx
from pyro_bnn.compression.rates import layer_sizes
from pyro_bnn.guides import MeanField
from pyro_bnn.models import LeNet5, LeNet300100


def computed(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


class Residual(nn.Module):
    """Batch norm, padding, a residual addition, average pooling."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        h = torch.relu(self.one(x))
        return self.last((h + torch.tanh(self.norm(self.two(h)))).mean((2, 3)))


NETWORKS = {
    "dense": (lambda: LeNet300100(16, (6, 5), 4), (16,)),
    "convolutions": (lambda: LeNet5(size=16, filters=(2, 3), hidden=4), (256,)),
    "residual": (Residual, (2, 5, 5)),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_onnxruntime_computes_the_network(kind, tmp_path):
    torch.manual_seed(0)
    make, shape = NETWORKS[kind]
    net = make()
    net(torch.randn(64, *shape))  # statistics for batch norm
    net.eval()
    to_onnx(net, tmp_path / "net.onnx", torch.zeros(1, *shape))
    onnx.checker.check_model(str(tmp_path / "net.onnx"), full_check=True)
    for batch in (1, 9):
        x = torch.randn(batch, *shape)
        assert torch.allclose(computed(tmp_path / "net.onnx", x), net(x), atol=1e-5, rtol=1e-5)


def test_the_batch_axis_is_free_and_the_names_are_known(tmp_path):
    to_onnx(LeNet300100(16, (6, 5), 4), tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx").graph
    (x,), (y,) = graph.input, graph.output
    assert (x.name, y.name) == ("x", "y")
    assert [axis.dim_param or axis.dim_value for axis in x.type.tensor_type.shape.dim] == [
        "batch",
        16,
    ]
    assert [axis.dim_param or axis.dim_value for axis in y.type.tensor_type.shape.dim] == [
        "batch",
        4,
    ]


def model_of(kind):
    torch.manual_seed(0)
    outputs = 3 if kind == "classes" else 1
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs))
    likelihood = {
        "classes": likelihoods.Categorical(),
        "yes or no": likelihoods.Bernoulli(),
        "real": likelihoods.Gaussian(),
    }[kind]
    return BayesianNet(net, priors.Normal(1.0), likelihood, num_data=30)


@pytest.mark.parametrize("kind", ["classes", "yes or no", "real"])
def test_an_ensemble_averages_what_its_networks_predict(kind, tmp_path):
    model = model_of(kind)
    posterior = Posterior.from_guide(model, MeanField(model, init_scale=0.7))
    x = torch.randn(7, 4)
    before = torch.random.get_rng_state()
    ensemble_to_onnx(posterior, tmp_path / "net.onnx", x, draws=4, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    found = computed(tmp_path / "net.onnx", x)
    drawn = posterior.sample(4, seed=3)
    one_by_one = Posterior.from_draws(
        posterior.model, {name: drawn[name][None] for name in model.names}
    )
    expected = one_by_one.predict(x, draws=4).mean  # all four of them, in whatever order
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-5)
    mean = one_by_one.mean_network()(
        x
    ).detach()  # the average of predictions is no prediction of average weights
    assert (
        found
        - {"classes": mean.softmax(-1), "yes or no": mean.sigmoid()[:, 0]}.get(kind, mean[:, 0])
    ).abs().max() > 0.01


def test_what_no_ensemble_can_be_made_of(tmp_path):
    net = nn.Linear(4, 1)
    model = BayesianNet(
        net,
        priors.Normal(1.0),
        lambda outputs: torch.distributions.Poisson(outputs.exp()),
        num_data=30,
    )
    posterior = Posterior.from_guide(model, MeanField(model))
    with pytest.raises(TypeError, match="Categorical, Bernoulli or Gaussian, got function"):
        ensemble_to_onnx(posterior, tmp_path / "net.onnx", torch.zeros(1, 4), draws=2)
    model = model_of("real")
    with pytest.raises(ValueError, match="at least one draw"):
        ensemble_to_onnx(
            Posterior.from_guide(model, MeanField(model)),
            tmp_path / "a",
            torch.zeros(1, 4),
            draws=0,
        )


# --- refusals


def test_nothing_is_overwritten_silently(tmp_path):
    net = nn.Linear(4, 2)
    path = tmp_path / "net.onnx"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        to_onnx(net, path)
    assert path.read_text() == "mine"
    to_onnx(net, path, overwrite=True)
    assert computed(path, torch.ones(2, 4)).shape == (2, 2)


def test_a_file_that_computes_something_else_is_never_written(tmp_path, monkeypatch):
    net = nn.Linear(4, 2)
    right = export._exported

    def wrong(module, example, output):
        content = onnx.load_from_string(right(module, example, output))
        bias = next(tensor for tensor in content.graph.initializer if list(tensor.dims) == [2])
        values = onnx.numpy_helper.to_array(bias).copy()
        values[0] += 3e-5
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return content.SerializeToString()

    monkeypatch.setattr(export, "_exported", wrong)
    with pytest.raises(ExportError, match=r"differ by 3\.0e-05; no file was written"):
        to_onnx(net, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_onnx_cannot_express_is_one_error(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match="Odd: torch cannot write it"):
        to_onnx(Odd(), tmp_path / "net.onnx", torch.ones(1, 4))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_without_onnx_the_error_says_what_to_install(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r'pip install "pyro-bnn\[onnx\]"'):
        to_onnx(nn.Linear(4, 2), tmp_path / "net.onnx")


def test_examples_are_made_where_the_network_tells_their_shape():
    assert example_for(LeNet300100(16)).shape == (2, 16)
    assert example_for(LeNet5(size=20)).shape == (2, 400)
    assert example_for(nn.Sequential(nn.Flatten(), nn.Linear(3, 1).double())).dtype == torch.float64
    with pytest.raises(ValueError, match="pass example="):
        example_for(nn.Conv2d(1, 2, 3))


def test_the_exporter_is_quiet_and_our_own_warnings_are_not(tmp_path):
    class Warns(nn.Linear):
        def forward(self, x):
            warnings.warn("mine", UserWarning, stacklevel=1)
            return super().forward(x)

    with pytest.warns(UserWarning, match="mine"):
        to_onnx(Warns(4, 2), tmp_path / "net.onnx", torch.zeros(1, 4))


# --- multiply-accumulates


def test_macs_are_those_of_the_literature():
    assert sum(macs(LeNet300100(), torch.zeros(1, 784)).values()) == 266_200
    found = macs(LeNet5(), torch.zeros(3, 784))
    assert found == {
        "conv1": 25 * 20 * 576,
        "conv2": 25 * 20 * 50 * 64,
        "fc1": 800 * 500,
        "fc2": 5000,
    }
    assert sum(found.values()) == 2_293_000


@pytest.mark.parametrize(
    ("architecture", "published"), [("3-18-284-283", 213e3), ("5-10-76-16", 153e3)]
)
def test_macs_of_published_small_networks(architecture, published):
    """Their tables print them in thousands; the second is 15 times less than the original."""
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


def test_macs_of_strides_groups_and_layers_used_twice():
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    assert macs(conv, torch.zeros(5, 4, 9, 9)) == {"": 6 * 2 * 9 * 25}
    assert macs(nn.Conv1d(2, 3, 4), torch.zeros(1, 2, 10)) == {"": 3 * 2 * 4 * 7}
    shared = nn.Linear(4, 4)
    assert macs(nn.Sequential(shared, nn.ReLU(), shared), torch.zeros(2, 4)) == {"0": 32}
    assert macs(nn.Linear(4, 3), torch.zeros(2, 5, 4)) == {"": 60}  # five positions


# --- latency


def halves():
    """A network with dead units, and the same function without them."""
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
    found = measure(large, small, torch.randn(10, 1, 12, 12), batches=(1, 64), rounds=3)
    assert torch.get_num_threads() == threads
    assert [(row.runtime, row.batch) for row in found] == [
        ("torch", 1), ("torch", 64), ("onnxruntime", 1), ("onnxruntime", 64)
    ]  # fmt: skip
    for row in found:
        assert row.before > 0
        assert row.speedup == row.before / row.after
        if row.batch == 64:  # 32 times fewer multiplications; other tests run beside this one
            assert row.speedup > 1.2
    assert {row.layouts for row in found if row.runtime == "onnxruntime"} == {("", "")}
    assert all(
        set(row.layouts) <= {"contiguous", "channels-last"}
        for row in found
        if row.runtime == "torch"
    )


def test_each_network_is_timed_in_its_best_layout(monkeypatch):
    from pyro_bnn.compression import latency

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


def test_networks_that_differ_are_not_compared():
    large, small = halves()
    with torch.no_grad():
        small[3].bias[0] += 1e-3
    with pytest.raises(ValueError, match=r"same function.*differ by 1\.0e-03"):
        measure(large, small, torch.randn(10, 1, 12, 12), batches=(1,), onnx=False)
