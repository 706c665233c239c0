"""LeNet-300-100 on MNIST: Sparse VD with the recipe of its original code, beside a MAP estimate.

    python benchmarks/lenet_mnist.py run sparse-vd [--seed 0] [--epochs 200] [--data-dir data]
    python benchmarks/lenet_mnist.py table

Rows: ``sparse-vd`` (log alpha clipped, means masked while training), ``sparse-vd-elbo`` (the plain
ELBO), ``map`` (a point estimate under a standard normal prior). Each is one ``pyro-bnn fit
lenet-300-100 --data mnist``, whose defaults are the recipe: weights start at N(0, 0.01^2), log
sigma^2 at -10; Adam; batches of 100 of all 60,000 images; learning rate 1e-3 for the first half,
then linearly to zero; KL weight 0 for five epochs, then linearly to one in fifteen. The last epoch
is reported; nothing is selected on test data. A killed run resumes where it stopped. Results are
written to benchmarks/results/lenet_mnist/, and ``table`` collects them in
benchmarks/results/lenet_mnist.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interleaved import RESULTS, argument_parser

ROWS: dict[str, list[str]] = {
    "sparse-vd": [],
    "sparse-vd-elbo": ["--no-tricks"],
    "map": ["--prior", "normal", "--guide", "point"],
}
NAMES = {
    "sparse-vd": "Sparse VD, clip and mask (original code's recipe)",
    "sparse-vd-elbo": "Sparse VD, plain ELBO",
    "map": "deterministic (MAP, no sparsity)",
}
HEAD = (
    "| LeNet-300-100, MNIST, last epoch | seeds | epochs | test error of the pruned mean network "
    "| weights / nonzero weights | kept per layer (first seed) | error, NLL of 50 averaged draws "
    "| minutes each, 1 thread, machine shared |\n"
    "|---|---|---|---|---|---|---|---|\n"
    "| Molchanov et al. 2017, Sparse VD (published) | | 200 | 1.92 % | 68x | | | |\n"
)


def fit_command(row: str, seed: int, epochs: int, data_dir: str | None, folder: Path) -> list[str]:
    """Return the command as a list of arguments."""
    command = ["pyro-bnn", "fit", "lenet-300-100", "--data", "mnist", "--seed", str(seed)]
    command += ["--epochs", str(epochs), "--out", str(folder), "--threads", "1"]
    command += ["--checkpoint-every", "5", *ROWS[row]]
    if data_dir is not None:
        command += ["--data-dir", data_dir]
    if (folder / "run.json").exists():
        command.append("--resume")
    return command


def run(row: str, seed: int, epochs: int, data_dir: str | None, out: str) -> None:
    """Fit with the command line, and save the metrics."""
    folder = Path(out) / f"{row}-{seed}"
    command = fit_command(row, seed, epochs, data_dir, folder)
    program = Path(sys.executable).with_name("pyro-bnn")
    subprocess.run([str(program), *command[1:]], check=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    facts = {
        "command": " ".join(command),
        "row": row,
        "seed": seed,
        "epochs": metrics["training"]["epochs"],
        "minutes": metrics["training"]["minutes"],
        "error": 100 * metrics["mean_network"]["error"],
        "nll": metrics["mean_network"]["nll"],
    }
    if "sparsity" in metrics:
        layers = metrics["sparsity"]["layers"]
        facts["ratio"] = metrics["sparsity"]["ratio"]
        facts["kept"] = {layer["name"]: layer["kept"] for layer in layers}
        facts["draws_error"] = 100 * metrics["draws"]["error"]
        facts["draws_nll"] = metrics["draws"]["nll"]
    file = RESULTS / "lenet_mnist" / f"{row}-{seed}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(facts, indent=1) + "\n")


def table() -> str:
    """Return the committed results as a Markdown table: means, and ranges over several seeds."""
    text = HEAD
    for row, name in NAMES.items():
        runs = []
        for file in sorted((RESULTS / "lenet_mnist").glob(f"{row}-[0-9]*.json")):
            runs.append(json.loads(file.read_text()))
        if runs:
            text += f"| {' | '.join(cells(name, runs))} |\n"
    return text


def cells(name: str, runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the cells of a row, from the runs of its seeds."""
    first = runs[0]
    ratio, kept, draws = "1x", "266,200", ""
    if "ratio" in first:
        ratio = spread(runs, "ratio", "{:.1f}x")
        kept = " + ".join(f"{number:,}" for number in first["kept"].values())
        draws = f"{spread(runs, 'draws_error', '{:.2f} %')}, {spread(runs, 'draws_nll', '{:.4f}')}"
    if any("provenance" in run for run in runs):  # made in another way: see the record
        name += " (provisional)"
    return [
        name,
        ", ".join(str(run["seed"]) for run in runs),
        str(first["epochs"]),
        spread(runs, "error", "{:.2f} %"),
        ratio,
        kept,
        draws,
        spread(runs, "minutes", "{:.0f}"),
    ]


def spread(runs: Sequence[dict[str, Any]], key: str, form: str) -> str:
    """Return the mean, and the range if there are several runs."""
    values = [run[key] for run in runs]
    mean = form.format(sum(values) / len(values))
    if len(values) == 1:
        return mean
    return f"{mean} ({form.format(min(values))} to {form.format(max(values))})"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("row", nargs="?", choices=list(ROWS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--out", default="runs/lenet_mnist")
    arguments = parser.parse_args()
    if arguments.action == "run":
        if arguments.row is None:
            parser.error(f"run: expected one of {', '.join(ROWS)}")
        run(arguments.row, arguments.seed, arguments.epochs, arguments.data_dir, arguments.out)
    (RESULTS / "lenet_mnist.md").write_text(table())
    print(table())


if __name__ == "__main__":
    main()
