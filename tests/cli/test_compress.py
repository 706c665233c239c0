"""``pyro-bnn compress`` from end to end, and ``pyro-bnn evaluate`` of the file that it wrote."""

import dataclasses
import json
import shutil

import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from pyro_bnn import compression
from pyro_bnn.compression.pbnn.codec import load, save
from pyro_bnn.datasets import digits
from pyro_bnn.metrics import error_of
from pyro_bnn.models import LeNet300100
from pyro_bnn.runs import compression as compression_run
from tests.cli.commands import assert_refused, call, succeed

QUICK = ["--no-latency", "--fine-tune-epochs", "0"]
RATE = "4 bytes per original weight / bytes of the file"


@pytest.fixture(scope="session")
def compressed(sparse_run, tmp_path_factory):
    """Return the folder of a compressed run, latencies measured, and what was printed."""
    out = tmp_path_factory.mktemp("compressed") / "out"
    options = ("--choose", "--tolerance", 0.01, "--fine-tune-epochs", 2)
    return out, succeed("compress", sparse_run, "--out", out, *options)


@pytest.fixture(scope="module")
def quickly_compressed(sparse_run, tmp_path_factory):
    """Return the copy of a run, compressed into the run's own folder without the slow steps."""
    folder = shutil.copytree(sparse_run, tmp_path_factory.mktemp("quick") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression_run, "onnx_is_available", lambda: False)
        succeed("compress", folder, *QUICK)
    return folder


@pytest.fixture
def without_onnx(monkeypatch):
    """Write no ONNX file, which takes seconds."""
    monkeypatch.setattr(compression_run, "onnx_is_available", lambda: False)


def read_report(folder):
    return json.loads((folder / "report.json").read_text())


def test_the_help_names_the_files_and_the_options():
    text = succeed("compress", "--help").stdout
    for words in ("network.pbnn", "--choose", "--bits-weight", "weights.gif"):
        assert words in text


def test_compress_writes_the_network_a_report_and_figures(compressed):
    out, result = compressed
    written = {path.name for path in out.iterdir()}
    assert written == {
        *("network.pbnn", "network.onnx", "report.md", "report.json"),
        *("log_alpha.png", "receptive_fields.png", "acceleration.png", "weights.gif"),
    }
    for name in written:
        assert name in result.stdout
    with Image.open(out / "weights.gif") as gif:
        assert gif.n_frames == 2
    assert "pruning ...\n" in result.stderr


def test_the_report_has_sizes_errors_latencies_and_thresholds(compressed):
    out, result = compressed
    report = read_report(out)
    size = (out / "network.pbnn").stat().st_size
    assert report["file_bytes"] == size
    assert report["rates"][RATE] == pytest.approx(4 * 50_200 / size)
    assert list(report["errors"]) == [
        *("posterior mean", "pruned", "quantized", "fine-tuned", "decoded from network.pbnn")
    ]
    for name, error in report["errors"].items():
        assert f"{error:.2%}" in result.stdout
        assert error < 0.2, name  # the network has learned, and lost little of it on the way
    assert [(row["runtime"], row["batch"]) for row in report["latencies"]] == [
        *(("torch", 1), ("torch", 8192), ("onnxruntime", 1), ("onnxruntime", 8192))
    ]
    assert report["options"]["choose"] is True
    assert set(report["thresholds"]["weights"]) == {"fc1.weight", "fc2.weight", "fc3.weight"}
    assert "chosen on 200 held-out examples" in result.stdout


def test_the_file_the_report_and_onnx_describe_one_network(compressed):
    out, _ = compressed
    report = read_report(out)
    errors, layers = report["errors"], report["layers"]
    x, y = digits().test
    network = load(out / "network.pbnn")
    assert error_of(network, (x, y)) == errors["decoded from network.pbnn"] == errors["fine-tuned"]
    session = onnxruntime.InferenceSession(
        str(out / "network.onnx"), providers=["CPUExecutionProvider"]
    )
    outputs = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    assert torch.allclose(outputs, network(x), atol=1e-4, rtol=1e-5)
    weights = [layer.weight for layer in network.modules() if isinstance(layer, nn.Linear)]
    for weight, layer in zip(weights, layers, strict=True):
        assert list(weight.shape) == layer["new_shape"]
        assert int(weight.count_nonzero()) == layer["kept"]
        assert layer["values"] <= 16


def test_thresholds_are_chosen_on_held_out_examples_and_values_tuned_on_the_others(
    sparse_run, without_onnx, monkeypatch, tmp_path
):
    seen = {}
    whole = digits()

    def choose(posterior, held_out, tolerance):
        seen["choose"] = held_out
        seen["num_data"] = posterior.model.num_data
        thresholds = dict.fromkeys(posterior.model.names, 1.5)
        return compression.ChosenThresholds(thresholds, {}, 1, 0.0, 0.0, [])

    def tune(quantized, train, **options):
        seen["tune"] = train
        return quantized

    monkeypatch.setattr(compression, "choose_thresholds", choose)
    monkeypatch.setattr(compression_run, "fine_tune", tune)
    succeed("compress", sparse_run, "--choose", "--no-latency", "--out", "out")
    assert torch.equal(seen["choose"][0], whole.x_train[-200:])
    assert torch.equal(seen["choose"][1], whole.y_train[-200:])
    assert torch.equal(seen["tune"][0], whole.x_train[:-200])
    assert seen["num_data"] == len(whole.x_train) - 200
    assert read_report(tmp_path / "out")["thresholds"]["weights"]["fc2.weight"] == 1.5


def test_a_folder_that_holds_something_is_not_overwritten(sparse_run, compressed):
    out, _ = compressed
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    refused = call("compress", sparse_run, "--out", out, *QUICK)
    assert_refused(refused, "holds something already", "--out")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_failure_leaves_no_folder(sparse_run, tmp_path):
    refused = call("compress", sparse_run, "--out", "new", "--threshold", -100, *QUICK)
    assert_refused(refused, "no weight remains")
    assert not (tmp_path / "new").exists()
    assert_refused(call("compress", "nowhere"), "nowhere: holds no run")
    assert_refused(call("compress", sparse_run, "--levels", 0), "--levels")
    assert not (sparse_run / "compressed").exists()


def test_a_damaged_snapshot_is_found_before_the_work_is_done(sparse_run, tmp_path):
    folder = shutil.copytree(sparse_run, tmp_path / "damaged")
    (folder / "snapshots" / "epoch-0007.safetensors").write_bytes(b"thesis")
    result = call("compress", folder, *QUICK)
    assert_refused(result, "epoch-0007.safetensors: not a safetensors file")
    assert "pruning" not in result.stderr
    assert not (folder / "compressed").exists()


def test_without_onnx_the_network_is_compressed_all_the_same(sparse_run, without_onnx, tmp_path):
    result = succeed("compress", sparse_run, *QUICK, "--levels", 4, "--out", "out")
    assert 'pip install "pyro-bnn[onnx]"' in result.stderr
    report = read_report(tmp_path / "out")
    assert not (tmp_path / "out" / "network.onnx").exists()
    assert "fine-tuned" not in report["errors"]
    assert all(row["values"] <= 4 for row in report["layers"])
    assert report["latencies"] == []


@pytest.mark.parametrize(
    ("prior", "guide", "drawn"),
    [("normal-jeffreys", "group", {"groups.png"}), ("normal", "mean-field", {"log_alpha.png"})],
)
def test_runs_with_other_priors_are_compressed_in_the_same_way(
    prior, guide, drawn, without_onnx, tmp_path
):
    training = ("--hidden", "12", "--epochs", 3, "--draws", 2, "--out", "run")
    succeed("fit", "mlp", "--prior", prior, "--guide", guide, *training)
    succeed("compress", "run", *QUICK, "--threshold", 6)
    compressed = tmp_path / "run" / "compressed"
    assert {path.name for path in compressed.glob("*.png")} == drawn | {"receptive_fields.png"}
    text = succeed("evaluate", compressed / "network.pbnn", "--data", "digits").stdout
    assert "4 bytes for each of the 888 weights of mlp" in text
    refused = call("compress", "run", "--choose", "--out", "more")
    assert_refused(refused, "held out no examples", "--hold-out")


def test_point_estimates_and_regressions_are_refused(tmp_path, monkeypatch):
    training = ("--epochs", 1, "--draws", 1, "--out", "point")
    succeed("fit", "mlp", "--prior", "normal", "--guide", "point", *training)
    assert_refused(call("compress", "point", *QUICK), "no variance")
    real = dataclasses.replace(digits(), classes=None, name="a regression")
    monkeypatch.setattr(compression_run, "load_data", lambda settings, directory: (real, ()))
    assert_refused(call("compress", "point", *QUICK), "expected a run on classes")


def test_thresholds_are_either_chosen_or_given(sparse_run):
    refused = call("compress", sparse_run, "--choose", "--threshold", 2)
    assert_refused(refused, "give either --choose or thresholds")
    refused = call("compress", sparse_run, "--tolerance", 0.1)
    assert_refused(refused, "--tolerance belongs to --choose")


# --- evaluating the file


def test_evaluate_prints_error_size_and_rate_of_the_file(compressed):
    out, _ = compressed
    file = out / "network.pbnn"
    size = file.stat().st_size
    text = succeed("evaluate", file, "--data", "digits").stdout
    assert f"{size:,} bytes" in text
    assert f"test error {read_report(out)['errors']['fine-tuned']:.2%}" in text
    assert f"compression rate {4 * 50_200 / size:,.1f}: " in text
    assert "4 bytes for each of the 50,200 weights of lenet-300-100" in text
    named = succeed("evaluate", file, "--data", "digits", "--model", "lenet-300-100")
    assert named.stdout == text


def test_a_file_beside_its_report_needs_no_other_options(quickly_compressed):
    out = quickly_compressed / "compressed"
    printed = succeed("evaluate", out / "network.pbnn").output
    assert "weights of lenet-300-100" in printed
    assert f"compression rate {read_report(out)['rates'][RATE]:,.1f}:" in printed


def test_a_file_without_its_report_needs_the_name_of_the_data(quickly_compressed, tmp_path):
    file = quickly_compressed / "compressed" / "network.pbnn"
    alone = shutil.copy(file, tmp_path / "alone.pbnn")
    assert_refused(call("evaluate", alone), "expected --data", "mnist")
    text = succeed("evaluate", alone, "--data", "digits").stdout
    assert "compression rate: not known" in text
    # a report beside the file that belongs to another file does not count
    shutil.copy(file.with_name("report.json"), tmp_path)
    other = tmp_path / "other.pbnn"
    save(LeNet300100(64, (5, 4)), other)
    assert_refused(call("evaluate", other), "expected --data")


def test_a_file_refuses_data_models_and_options_that_do_not_fit(quickly_compressed):
    file = quickly_compressed / "compressed" / "network.pbnn"
    refused = call("evaluate", file, "--data", "mnist")
    assert_refused(refused, "was made of a run on digits", "leave --data out")
    refused = call("evaluate", file, "--data", "digits", "--model", "lenet-5")
    assert_refused(refused, "no smaller lenet-5")
    assert_refused(call("evaluate", file, "--ood", "notmnist"), "--ood is for runs")
    assert_refused(call("evaluate", file.with_name("no.pbnn")), "there is no such file")
    assert_refused(call("compress", file), "expected the folder of a run, got a file")


def test_a_file_is_refused_for_data_with_other_inputs(tmp_path):
    save(LeNet300100(784, (5, 4)), tmp_path / "net.pbnn")
    refused = call("evaluate", tmp_path / "net.pbnn", "--data", "digits")
    assert_refused(refused, "does not take the inputs of digits, 64 numbers")


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: b"thesis"])
def test_a_damaged_file_is_refused_by_its_name(damage, quickly_compressed, tmp_path):
    file = quickly_compressed / "compressed" / "network.pbnn"
    broken = tmp_path / "broken.pbnn"
    broken.write_bytes(damage(file.read_bytes()))
    assert_refused(call("evaluate", broken, "--data", "digits"), "broken.pbnn")
