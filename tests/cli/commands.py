"""Run the command line inside the test process."""

import json

from typer.testing import CliRunner

from pyro_bnn.cli.entry import app

SPARSE = (
    *("lenet-300-100", "--learning-rate", "3e-3", "--kl-warmup", "2:16", "--draws", "2"),
    *("--epochs", "20", "--hold-out", "200", "--snapshots", "7"),
)


def call(*words):
    """Run ``pyro-bnn`` with these words."""
    return CliRunner().invoke(app, [str(word) for word in words])


def succeed(*words):
    """Run ``pyro-bnn`` and require that it succeeds."""
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result


def assert_refused(result, *expected, code=2):
    """Require an error whose last line on stderr contains these words."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("pyro-bnn: ")
    for words in expected:
        assert str(words) in last


def assert_refused_at_once(result, *expected, code=2):
    """Require an error in one line, and nothing else on stderr."""
    assert_refused(result, *expected, code=code)
    assert result.stderr.count("\n") == 1


def fit_small(out, *options, epochs=2):
    """Fit a small network to the digits."""
    settings = ["--hidden", 8, "--prior", "normal", "--guide", "mean-field", "--kl-warmup", "0:1"]
    return call("fit", "mlp", *settings, "--draws", 5, "--epochs", epochs, "--out", out, *options)


def results(folder):
    """Return metrics, number of epochs and hash of the posterior, without the run times."""
    metrics = json.loads((folder / "metrics.json").read_text())
    training = metrics.pop("training")
    record = json.loads((folder / "posterior.json").read_text())
    return metrics, training["epochs"], record["sha256"]
