"""LeNet-300-100 on MNIST: Sparse VD with the recipe of its original code, and a deterministic baseline, in one table.

    python benchmarks/lenet_mnist.py run sparse-vd [--seed 0] [--epochs 200] [--data-dir data] [--out runs/lenet_mnist]
    python benchmarks/lenet_mnist.py table

Rows: ``sparse-vd`` (log alpha clipped, means masked while training), ``sparse-vd-elbo`` (the plain ELBO), ``map`` (a
point estimate under a standard normal prior). Each is one ``pyro-bnn fit lenet-300-100 --data mnist``, whose defaults
are the recipe: weights start at N(0, 0.01^2), log sigma^2 at -10; Adam; batches of 100 of all 60,000 images; learning
rate 1e-3 for the first half, then linearly to zero; KL weight 0 for five epochs, then linearly to one in fifteen. What
is reported is the last epoch; nothing is selected on test data. A killed run goes on where it stopped. Results are kept
in benchmarks/results/lenet_mnist/, and ``table`` makes benchmarks/results/lenet_mnist.md of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
ROWS: dict[str, list[str]] = {
    "sparse-vd": [],
    "sparse-vd-elbo": ["--no-tricks"],
    "map": ["--prior", "normal", "--guide", "point"],
}


def run(row: str, seed: int, epochs: int, data_dir: str, out: str) -> None:
    """Fit by the command line, and keep its figures."""
    folder = Path(out) / f"{row}-{seed}"
    options = [
        "--data",
        "mnist",
        "--seed",
        str(seed),
        "--epochs",
        str(epochs),
        "--out",
        str(folder),
        "--threads",
        "1",
    ]
    options += ["--checkpoint-every", "5", *(["--data-dir", data_dir] if data_dir else [])]
    command = ["pyro-bnn", "fit", "lenet-300-100", *options, *ROWS[row]]
    command += ["--resume"] if (folder / "run.json").exists() else []
    subprocess.run([str(Path(sys.executable).with_name("pyro-bnn")), *command[1:]], check=True)
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
        facts |= {
            "ratio": metrics["sparsity"]["ratio"],
            "kept": {layer["name"]: layer["kept"] for layer in metrics["sparsity"]["layers"]},
            "draws_error": 100 * metrics["draws"]["error"],
            "draws_nll": metrics["draws"]["nll"],
        }
    file = RESULTS / "lenet_mnist" / f"{row}-{seed}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(facts, indent=1) + "\n")


def table() -> str:
    """Return the committed results as a markdown table: means, and ranges where there are several seeds."""
    names = {
        "sparse-vd": "Sparse VD, clip and mask (original code's recipe)",
        "sparse-vd-elbo": "Sparse VD, plain ELBO",
        "map": "deterministic (MAP, no sparsity)",
    }
    lines = [
        "| LeNet-300-100, MNIST, last epoch | seeds | epochs | test error of the pruned mean network "
        "| weights / nonzero weights | kept per layer (first seed) | error, NLL of 50 averaged draws "
        "| minutes each, 1 thread, machine shared |",
        "|---|---|---|---|---|---|---|---|",
        "| Molchanov et al. 2017, Sparse VD (published) | | 200 | 1.92 % | 68x | | | |",
    ]
    for row, name in names.items():
        runs = [
            json.loads(file.read_text())
            for file in sorted((RESULTS / "lenet_mnist").glob(f"{row}-[0-9]*.json"))
        ]
        if runs:
            ratio = spread([r["ratio"] for r in runs], "{:.1f}x") if "ratio" in runs[0] else "1x"
            kept = (
                " + ".join(f"{k:,}" for k in runs[0]["kept"].values())
                if "kept" in runs[0]
                else "266,200"
            )
            draws = ""
            if "ratio" in runs[0]:
                nll = spread([r["draws_nll"] for r in runs], "{:.4f}")
                draws = f"{spread([r['draws_error'] for r in runs], '{:.2f} %')}, {nll}"
            seeds, minutes = (
                ", ".join(str(r["seed"]) for r in runs),
                spread([r["minutes"] for r in runs], "{:.0f}"),
            )
            errors = spread([r["error"] for r in runs], "{:.2f} %")
            if any(
                "provenance" in r for r in runs
            ):  # not made by this command as it stands: see the record
                name += " (provisional)"
            cells = [name, seeds, str(runs[0]["epochs"]), errors, ratio, kept, draws, minutes]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float], form: str) -> str:
    mean = form.format(sum(values) / len(values))
    return (
        mean
        if len(values) == 1
        else f"{mean} ({form.format(min(values))} to {form.format(max(values))})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("row", nargs="?", choices=list(ROWS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--out", default="runs/lenet_mnist")
    arguments = parser.parse_args()
    if arguments.what == "run":
        run(arguments.row, arguments.seed, arguments.epochs, arguments.data_dir, arguments.out)
    (RESULTS / "lenet_mnist.md").write_text(table())
    print(table())


if __name__ == "__main__":
    main()
