"""ONNX files compute the outputs of torch, or are not written."""

import sys
import warnings

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from pyro_bnn import BayesianNet, Posterior, likelihoods, priors
from pyro_bnn.compression import onnx as export
from pyro_bnn.compression.onnx import ExportError, ensemble_to_onnx, example_for, to_onnx
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
def test_onnxruntime_computes_the_outputs_of_torch(kind, tmp_path):
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


def shape_of(value):
    """Return the sizes of an input or output; free ones by their names."""
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def test_a_file_takes_any_batch_size_and_names_its_input_x_and_its_output_y(tmp_path):
    to_onnx(LeNet300100(16, (6, 5), 4), tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx").graph
    (x,), (y,) = graph.input, graph.output
    assert (x.name, y.name) == ("x", "y")
    assert shape_of(x) == ["batch", 16]
    assert shape_of(y) == ["batch", 4]


def model_of(kind):
    torch.manual_seed(0)
    outputs = 3 if kind == "classes" else 1
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs))
    likelihood = {
        "classes": likelihoods.Categorical(),
        "binary": likelihoods.Bernoulli(),
        "real": likelihoods.Gaussian(),
    }[kind]
    return BayesianNet(net, priors.Normal(1.0), likelihood, num_data=30)


@pytest.mark.parametrize("kind", ["classes", "binary", "real"])
def test_an_ensemble_averages_the_predictions_of_its_networks(kind, tmp_path):
    model = model_of(kind)
    posterior = Posterior.from_guide(model, MeanField(model, init_scale=0.7))
    x = torch.randn(7, 4)
    before = torch.random.get_rng_state()
    ensemble_to_onnx(posterior, tmp_path / "net.onnx", x, draws=4, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    outputs = computed(tmp_path / "net.onnx", x)
    drawn = posterior.sample(4, seed=3)
    one_by_one = Posterior.from_draws(
        posterior.model, {name: drawn[name][None] for name in model.names}
    )
    expected = one_by_one.predict(x, draws=4).mean  # all four of them, in whatever order
    assert outputs.shape == expected.shape
    assert torch.allclose(outputs, expected, atol=1e-5)
    # the average of predictions is not the prediction of the average weights
    mean = one_by_one.mean_network()(x).detach()
    of_average_weights = {
        "classes": mean.softmax(-1),
        "binary": mean.squeeze(-1).sigmoid(),
        "real": mean.squeeze(-1),
    }
    assert (outputs - of_average_weights[kind]).abs().max() > 0.01


def test_an_ensemble_of_another_likelihood_or_without_draws_is_an_error(tmp_path):
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
    posterior = Posterior.from_guide(model, MeanField(model))
    with pytest.raises(ValueError, match="at least one draw"):
        ensemble_to_onnx(posterior, tmp_path / "a", torch.zeros(1, 4), draws=0)


def test_an_existing_file_is_overwritten_on_request_only(tmp_path):
    net = nn.Linear(4, 2)
    path = tmp_path / "net.onnx"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"to_onnx: .*net\.onnx exists; .*overwrite=True"):
        to_onnx(net, path)
    assert path.read_text() == "mine"
    to_onnx(net, path, overwrite=True)
    assert computed(path, torch.ones(2, 4)).shape == (2, 2)


def test_a_file_that_computes_other_outputs_is_not_written(tmp_path, monkeypatch):
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
    with pytest.raises(ExportError, match=r"^to_onnx: .*differ by 3\.0e-05; no file was written"):
        to_onnx(net, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_onnx_cannot_express_is_an_error(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match="to_onnx: Odd: torch cannot write it"):
        to_onnx(Odd(), tmp_path / "net.onnx", torch.ones(1, 4))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_packages_of_onnx_the_error_says_what_to_install(
    missing, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        ImportError,
        match=rf'to_onnx: ONNX needs the package {missing}; pip install "pyro-bnn\[onnx\]"',
    ):
        to_onnx(nn.Linear(4, 2), tmp_path / "net.onnx")


def test_an_example_is_made_if_the_first_operation_determines_its_shape():
    assert example_for(LeNet300100(16)).shape == (2, 16)
    assert example_for(LeNet5(size=20)).shape == (2, 400)
    assert example_for(nn.Sequential(nn.Flatten(), nn.Linear(3, 1).double())).dtype == torch.float64
    with pytest.raises(ValueError, match="pass example="):
        example_for(nn.Conv2d(1, 2, 3))


def test_warnings_of_the_network_pass_and_those_of_the_exporter_do_not(tmp_path):
    class Warns(nn.Linear):
        def forward(self, x):
            warnings.warn("mine", UserWarning, stacklevel=1)
            return super().forward(x)

    with pytest.warns(UserWarning, match="mine"):
        to_onnx(Warns(4, 2), tmp_path / "net.onnx", torch.zeros(1, 4))
