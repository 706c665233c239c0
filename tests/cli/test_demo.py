"""``pyro-bnn demo``."""

import json

from tests.cli.commands import assert_refused, call, succeed


def test_demo_writes_metrics_and_figures_into_the_next_free_folder(tmp_path):
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    result = succeed("demo", "--epochs", 3)
    folder = tmp_path / "runs" / "demo-2"
    for name in ("loss_terms", "weights", "draws", "digits", "summary"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) == {
        *("data", "test_examples", "network", "mean_network", "draws"),
        *("uncertainty", "sparsity", "training"),
    }
    assert metrics["network"] == "pruned posterior mean"
    assert set(metrics["uncertainty"]) == {
        *("total", "aleatoric", "epistemic", "epistemic_right", "epistemic_wrong")
    }
    assert "50,200 weights left" in result.stderr
    succeed("evaluate", folder)
    assert_refused(call("demo", "--epochs", 3, "--out", folder), "holds a run")
