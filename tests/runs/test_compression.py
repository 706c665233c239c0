"""``pyro-bnn compress`` from end to end, and ``pyro-bnn evaluate`` of what it wrote."""

import dataclasses
import json
import shutil

import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from pyro_bnn import BayesianNet, Posterior, compression, likelihoods, priors, runs
from pyro_bnn.cli.entry import app
from pyro_bnn.compression.pbnn.codec import load, save
from pyro_bnn.datasets import Dataset, digits
from pyro_bnn.guides import MeanField
from pyro_bnn.metrics import error_of
from pyro_bnn.models import LeNet5, LeNet300100
from pyro_bnn.runs import compression as compression_run
from pyro_bnn.runs.evaluation import evaluate, evaluate_file
from pyro_bnn.runs.snapshots import read_snapshots

SPARSE = ["lenet-300-100", "--learning-rate", "3e-3", "--kl-warmup", "2:16", "--draws", "2"]
QUICK = ["--no-latency", "--fine-tune-epochs", "0"]


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.delenv("PYRO_BNN_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def done(*words):
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result


def refused(result, *expected, code=2):
    """The answer is one line on stderr that has these words in it, after what was said on the way."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("pyro-bnn: ")
    for words in expected:
        assert str(words) in last


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    done("fit", *SPARSE, "--epochs", 20, "--hold-out", 200, "--snapshots", 7, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def compressed(run, tmp_path_factory):
    """The whole command, latencies and all."""
    out = tmp_path_factory.mktemp("compressed") / "out"
    return out, done(
        "compress", run, "--out", out, "--choose", "--tolerance", 0.01, "--fine-tune-epochs", 2
    )


def test_compress_explains_itself():
    text = done("compress", "--help").stdout
    assert all(
        words in text
        for words in (
            "pyro-bnn compress",
            "network.pbnn",
            "--choose",
            "--bits-weight",
            "weights.gif",
        )
    )
    assert "\n  compress " in done("--help").stdout


def test_compress_writes_what_it_promises(run, compressed):
    out, result = compressed
    written = {path.name for path in out.iterdir()}
    assert written == {
        *("network.pbnn", "network.onnx", "report.md", "report.json"),
        *("log_alpha.png", "receptive_fields.png", "acceleration.png", "weights.gif"),
    }
    assert all(name in result.stdout for name in written)
    report = json.loads((out / "report.json").read_text())
    size = (out / "network.pbnn").stat().st_size
    assert report["file_bytes"] == size
    assert report["rates"]["4 bytes per original weight / bytes of the file"] == pytest.approx(
        4 * 50_200 / size
    )
    assert list(report["errors"]) == [
        *("posterior mean", "pruned", "quantised", "fine-tuned", "decoded from network.pbnn")
    ]
    for name, error in report["errors"].items():
        assert f"{error:.2%}" in result.stdout
        assert error < 0.2, name  # it has learned, and lost little of it on the way
    assert [(row["runtime"], row["batch"]) for row in report["latencies"]] == [
        *(("torch", 1), ("torch", 8192), ("onnxruntime", 1), ("onnxruntime", 8192))
    ]
    assert report["options"]["choose"] is True
    assert set(report["thresholds"]["weights"]) == {"fc1.weight", "fc2.weight", "fc3.weight"}
    assert "chosen on 200 held-out examples" in result.stdout
    with Image.open(out / "weights.gif") as gif:
        assert gif.n_frames == 2
    assert "pruning ...\n" in result.stderr


def test_the_file_the_report_and_onnx_are_one_network(compressed):
    out, _ = compressed
    report = json.loads((out / "report.json").read_text())
    x, y = digits().test
    network = load(out / "network.pbnn")
    errors = report["errors"]
    assert error_of(network, (x, y)) == errors["decoded from network.pbnn"] == errors["fine-tuned"]
    session = onnxruntime.InferenceSession(
        str(out / "network.onnx"), providers=["CPUExecutionProvider"]
    )
    found = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    assert torch.allclose(found, network(x), atol=1e-4, rtol=1e-5)
    weights = [layer.weight for layer in network.modules() if isinstance(layer, nn.Linear)]
    assert [list(weight.shape) for weight in weights] == [
        row["new_shape"] for row in report["layers"]
    ]
    assert [int(weight.count_nonzero()) for weight in weights] == [
        row["kept"] for row in report["layers"]
    ]
    assert all(row["values"] <= 16 for row in report["layers"])


def test_evaluate_measures_the_file(compressed, tmp_path):
    out, _ = compressed
    report = json.loads((out / "report.json").read_text())
    file = out / "network.pbnn"
    text = done("evaluate", file, "--data", "digits").stdout
    assert f"{file.stat().st_size:,} bytes" in text
    assert f"test error {report['errors']['fine-tuned']:.2%}" in text
    assert f"compression rate {4 * 50_200 / file.stat().st_size:,.1f}: " in text
    assert "4 bytes for each of the 50,200 weights of lenet-300-100" in text
    assert done("evaluate", file, "--data", "digits", "--model", "lenet-300-100").stdout == text
    alone = shutil.copy(file, tmp_path / "alone.pbnn")
    refused(call("evaluate", alone), "expected --data", "mnist")
    assert "compression rate: not known" in done("evaluate", alone, "--data", "digits").stdout
    refused(call("evaluate", file, "--data", "digits", "--model", "lenet-5"), "no smaller lenet-5")
    refused(
        call("evaluate", file, "--data", "digits", "--model", "lenet-6"), "did you mean lenet-5?"
    )
    broken = tmp_path / "broken.pbnn"
    broken.write_bytes(file.read_bytes()[:-9])
    refused(call("evaluate", broken, "--data", "digits"), "broken.pbnn")
    broken.write_bytes(b"thesis")
    refused(call("evaluate", broken, "--data", "digits"), "broken.pbnn")


def test_thresholds_are_chosen_on_what_was_held_out_and_values_on_the_rest(
    run, monkeypatch, tmp_path
):
    seen = {}
    whole = digits()

    def choose(posterior, held_out, tolerance):
        seen["choose"] = held_out
        seen["num_data"] = posterior.model.num_data
        return compression.ChosenThresholds(
            dict.fromkeys(posterior.model.names, 1.5), {}, 1, 0.0, 0.0, []
        )

    def tune(quantized, train, **options):
        seen["tune"] = train
        return quantized

    monkeypatch.setattr(compression, "choose_thresholds", choose)
    monkeypatch.setattr(compression_run, "fine_tune", tune)
    done("compress", run, "--choose", "--no-latency", "--out", "out")
    assert torch.equal(seen["choose"][0], whole.x_train[-200:])
    assert torch.equal(seen["choose"][1], whole.y_train[-200:])
    assert torch.equal(seen["tune"][0], whole.x_train[:-200])
    assert seen["num_data"] == len(whole.x_train) - 200
    assert (
        json.loads((tmp_path / "out" / "report.json").read_text())["thresholds"]["weights"][
            "fc2.weight"
        ]
        == 1.5
    )


def test_nothing_is_overwritten_and_failures_leave_nothing(run, compressed, tmp_path):
    out, _ = compressed
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    refused(call("compress", run, "--out", out, *QUICK), "holds something already", "--out")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    refused(call("compress", run, "--out", "new", "--threshold", -100, *QUICK), "no weight is left")
    assert not (tmp_path / "new").exists()
    refused(call("compress", "nowhere"), "nowhere: holds no run")
    refused(call("compress", run, "--levels", 0), "--levels")
    assert not (run / "compressed").exists()


def test_a_damaged_snapshot_is_found_before_the_work_is_done(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "damaged")
    (folder / "snapshots" / "epoch-0007.safetensors").write_bytes(b"thesis")
    result = call("compress", folder, *QUICK)
    refused(result, "epoch-0007.safetensors: not a safetensors file")
    assert "pruning" not in result.stderr
    assert not (folder / "compressed").exists()


def test_the_first_folder_lies_in_the_run_and_onnx_may_be_missing(run, tmp_path, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "copy")
    monkeypatch.setattr(compression_run, "onnx_is_there", lambda: False)
    result = done("compress", copy, *QUICK, "--levels", 4)
    assert 'pip install "pyro-bnn[onnx]"' in result.stderr
    report = json.loads((copy / "compressed" / "report.json").read_text())
    assert not (copy / "compressed" / "network.onnx").exists()
    assert "fine-tuned" not in report["errors"]
    assert all(row["values"] <= 4 for row in report["layers"])
    assert report["latencies"] == []


@pytest.mark.parametrize(
    ("prior", "guide", "drawn"),
    [("normal-jeffreys", "group", {"groups.png"}), ("normal", "mean-field", {"log_alpha.png"})],
)
def test_other_priors_and_models_go_the_same_way(prior, guide, drawn, tmp_path):
    words = [
        "mlp",
        "--hidden",
        "12",
        "--prior",
        prior,
        "--guide",
        guide,
        "--epochs",
        3,
        "--draws",
        2,
    ]
    done("fit", *words, "--out", "run")
    done("compress", "run", *QUICK, "--threshold", 6)
    pictures = {path.name for path in (tmp_path / "run" / "compressed").glob("*.png")}
    assert pictures == drawn | {"receptive_fields.png"}
    text = done(
        "evaluate", tmp_path / "run" / "compressed" / "network.pbnn", "--data", "digits"
    ).stdout
    assert "4 bytes for each of the 888 weights of mlp" in text
    refused(
        call("compress", "run", "--choose", "--out", "more"), "held out no examples", "--hold-out"
    )


def test_what_cannot_be_compressed_is_refused(tmp_path, monkeypatch):
    done(
        "fit",
        "mlp",
        "--prior",
        "normal",
        "--guide",
        "point",
        "--epochs",
        1,
        "--draws",
        1,
        "--out",
        "point",
    )
    refused(call("compress", "point", *QUICK), "no variance")
    real = dataclasses.replace(digits(), classes=None, name="a regression")
    monkeypatch.setattr(compression_run.runs, "data_of", lambda settings, directory: (real, ()))
    refused(call("compress", "point", *QUICK), "expected a run on classes")


# --- evaluating files


def like_mnist():
    x = torch.zeros(4, 784)
    y = torch.zeros(4, dtype=torch.long)
    return Dataset("MNIST", x, y, x, y, torch.tensor(0.0), torch.tensor(1.0), classes=10)


def test_the_original_is_known_by_its_layers():
    mnist = like_mnist()
    assert compression_run.original_of(LeNet300100(97, (71, 33)), mnist, None) == (
        266_200,
        "lenet-300-100",
    )
    assert compression_run.original_of(LeNet5(filters=(5, 10), hidden=16), mnist, None) == (
        430_500,
        "lenet-5",
    )
    assert compression_run.original_of(LeNet300100(97, (301, 33)), mnist, None) == (None, "")
    assert compression_run.original_of(nn.Linear(784, 10), mnist, None) == (None, "")
    with pytest.raises(ValueError, match="no smaller lenet-300-100"):
        compression_run.original_of(LeNet5(), mnist, "lenet-300-100")


def test_errors_of_files_are_counted(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 10))
    save(net, tmp_path / "net.pbnn")
    x, y = torch.randn(2500, 3), torch.randint(10, (2500,))
    data = Dataset("some", x, y, x, y, torch.tensor(0.0), torch.tensor(1.0), classes=10)
    found = evaluate_file(
        tmp_path / "net.pbnn", data, load(tmp_path / "net.pbnn"), 1000, "a network"
    )
    wrong = sum(int(net(x[i : i + 1]).argmax() != y[i]) for i in range(2500))
    assert found.error == wrong / 2500
    assert found.rate == 4000 / (tmp_path / "net.pbnn").stat().st_size
    assert f"{wrong:,} of 2,500" in str(found)
    other = dataclasses.replace(data, x_test=torch.zeros(2, 5), y_test=y[:2])
    with pytest.raises(ValueError, match="does not take the inputs of some"):
        evaluate_file(tmp_path / "net.pbnn", other, load(tmp_path / "net.pbnn"), None, "")


def test_the_original_of_other_images_is_not_guessed():
    assert compression_run.original_of(LeNet300100(20, (30, 20)), digits(), None) == (None, "")


def test_a_file_beside_its_run_knows_its_data_and_its_original(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "kept")
    done("compress", folder, *QUICK)
    file = folder / "compressed" / "network.pbnn"  # with report.json beside it
    printed = done("evaluate", file).output
    total = json.loads((folder / "compressed" / "report.json").read_text())
    assert f"weights of {runs.load(folder)[0].model}" in printed
    assert (
        f"compression rate {total['rates']['4 bytes per original weight / bytes of the file']:,.1f}:"
        in printed
    )
    refused(
        call("evaluate", file, "--data", "mnist"), "was made of a run on digits", "leave --data out"
    )
    refused(call("evaluate", file, "--ood", "notmnist"), "--ood is for runs")
    refused(call("evaluate", folder / "compressed" / "no.pbnn"), "there is no such file")
    refused(call("compress", file), "expected the folder of a run, got a file")
    save(
        LeNet300100(64, (5, 4)), file.with_name("another.pbnn")
    )  # the report is not about this one
    refused(call("evaluate", file.with_name("another.pbnn")), "expected --data")


def test_a_file_that_is_of_other_data_is_refused_in_one_line(tmp_path):
    save(LeNet300100(784, (5, 4)), tmp_path / "net.pbnn")
    refused(
        call("evaluate", tmp_path / "net.pbnn", "--data", "digits"),
        "does not take the inputs of digits, 64 numbers",
    )


def test_thresholds_are_chosen_or_given(run):
    refused(
        call("compress", run, "--choose", "--threshold", 2), "give either --choose or thresholds"
    )
    refused(call("compress", run, "--tolerance", 0.1), "--tolerance belongs to --choose")


def test_an_interrupted_run_says_so(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "stopped")
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["training"] |= {"interrupted": True, "epochs": 3}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert runs.interruption(run) == ""
    assert "interrupted after 3 epochs" in runs.interruption(folder)


def test_files_and_runs_have_their_own_options(run):
    refused(call("evaluate", run, "--data", "digits"), "are for compressed files")


# --- runs


def test_a_run_knows_what_it_holds_out(run):
    settings, place = runs.load(run)
    assert (settings.hold_out, place.snapshots) == (200, 7)
    refused(
        call("fit", *SPARSE, "--hold-out", 1437, "--out", "new"),
        "fewer than the 1437 training examples",
    )


def test_snapshots_change_nothing_and_a_resumed_run_goes_on_with_them(run, tmp_path, monkeypatch):
    def kill(seen):
        if seen.epoch == 10:
            raise MemoryError("killed")

    train = runs.train
    words = ["fit", *SPARSE, "--epochs", 20, "--hold-out", 200, "--snapshots", 7, "--out", "again"]
    with monkeypatch.context() as patch:
        patch.setattr(
            runs, "train", lambda *args, **options: train(*args[:6], [kill], progress=False)
        )
        refused(call(*words), "killed", code=1)
    assert [epoch for epoch, _ in read_snapshots(tmp_path / "again" / "snapshots")] == [7]
    done("fit", "--out", "again", "--resume", "--draws", 2)
    for one, other in zip(
        *(read_snapshots(folder / "snapshots") for folder in (run, tmp_path / "again")), strict=True
    ):
        assert one[0] == other[0]
        assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])
    sums = [
        json.loads((folder / "posterior.json").read_text())["sha256"]
        for folder in (run, tmp_path / "again")
    ]
    assert sums[0] == sums[1]


def test_runs_of_an_older_release_are_read(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "copy")
    record = json.loads((folder / "run.json").read_text())
    del record["place"]["snapshots"], record["settings"]["hold_out"]
    (folder / "run.json").write_text(json.dumps(record))
    settings, place = runs.load(folder)
    assert (settings.hold_out, place.snapshots) == (0, 0)
    record["settings"]["colour"] = "blue"
    (folder / "run.json").write_text(json.dumps(record))
    refused(call("evaluate", folder), "other settings than this release has")


def test_a_posterior_that_is_nothing_but_noise_is_still_evaluated():
    """As after training on random labels: pruning would leave a constant, and says so."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 10))
    model = BayesianNet(net, priors.LogUniform(), likelihoods.Categorical(), num_data=1437)
    found = evaluate(
        Posterior.from_guide(model, MeanField(model, init_scale=10.0)), digits(), draws=2
    )
    assert found.pruned is None
    assert found.metrics["network"] == "posterior mean"
    assert "sparsity" not in found.metrics
    assert "no weight is left" in found.metrics["not_pruned"]
    assert f"not pruned: {found.metrics['not_pruned']}" in str(found)
