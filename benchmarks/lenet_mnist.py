"""LeNet-300-100 on MNIST: Sparse VD with the recipe of its original code, and a deterministic baseline, in one table.

    python benchmarks/lenet_mnist.py run sparse-vd [--seed 0] [--epochs 200] [--data-dir data] [--out runs]
    python benchmarks/lenet_mnist.py table

Rows: ``sparse-vd`` (log alpha clipped, means masked while training), ``sparse-vd-elbo`` (the plain ELBO), ``map`` (a point estimate under a
standard normal prior). Recipe: weights start at N(0, 0.01^2), log sigma^2 at -10; Adam; batches of 100 of all 60,000 images; learning rate
1e-3 for the first half, then linearly to zero; KL weight 0 for five epochs, then linearly to one in fifteen. What is reported is the last
epoch; nothing is selected on test data. A killed run goes on where it stopped. ``table`` writes benchmarks/results/lenet_mnist.md.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch

from pyro_bnn import compression, data, fit, linear_warmup, priors
from pyro_bnn.guides import PointEstimate, SparseVariationalDropout
from pyro_bnn.models import lenet_300_100

RESULTS = Path(__file__).parent / "results"
ROWS: dict[str, tuple[Any, Any]] = {
    "sparse-vd": (priors.LogUniform(), SparseVariationalDropout),
    "sparse-vd-elbo": (priors.LogUniform(), lambda model: SparseVariationalDropout(model, clip=None, mask=None)),
    "map": (priors.Normal(1.0), PointEstimate),
}


def run(row: str, seed: int, epochs: int, data_dir: str, out: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    mnist = data.mnist(data_dir)
    prior, guide = ROWS[row]
    model = lenet_300_100(len(mnist.x_train), prior=prior)
    warmup = linear_warmup(5, 20)
    result = fit(
        model,
        guide(model),
        mnist.train,
        epochs=epochs,
        batch_size=100,
        learning_rate=lambda epoch: 1e-3 * min(2 - 2 * math.floor(epoch) / epochs, 1.0),
        kl_weight=lambda epoch: warmup(math.floor(epoch)),
        seed=seed,
        checkpoint=Path(out) / f"{row}-{seed}",
        checkpoint_every=5,
        resume=True,
    )
    facts = evaluate(result, mnist, row) | {"row": row, "seed": seed, "epochs": epochs, "minutes": result.history["seconds"][-1] / 60}
    file = RESULTS / "lenet_mnist" / f"{row}-{seed}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))


@torch.no_grad()
def evaluate(result: Any, mnist: Any, row: str) -> dict[str, Any]:
    """Return test error (%), NLL (nats per image) and what is left of the network."""
    facts: dict[str, Any] = {}
    if row == "map":
        network, kept = result.posterior.mean_network(), None
    else:
        pruned = compression.prune(result.posterior)
        network, kept = pruned.module, {layer.name: layer.kept for layer in pruned.report}
        facts |= {"ratio": pruned.ratio, "kept": kept}
        draws = result.posterior.predict(mnist.x_test, draws=50)
        facts |= {"draws_error": error(draws.mean, mnist.y_test), "draws_nll": -draws.log_prob(mnist.y_test).mean().item()}
    log_probs = network(mnist.x_test).log_softmax(1)
    nll = -log_probs.gather(1, mnist.y_test[:, None]).mean().item()
    return facts | {"error": error(log_probs, mnist.y_test), "nll": nll}


def error(scores: torch.Tensor, labels: torch.Tensor) -> float:
    return 100 * (scores.argmax(1) != labels).double().mean().item()


def table() -> str:
    """Return the committed results as a markdown table: means, and ranges where there are several seeds."""
    names = {
        "sparse-vd": "Sparse VD, clip and mask (original code's recipe)",
        "sparse-vd-elbo": "Sparse VD, plain ELBO",
        "map": "deterministic (MAP, no sparsity)",
    }
    lines = [
        "| LeNet-300-100, MNIST, last epoch | seeds | epochs | test error of the pruned mean network | weights / nonzero weights | kept per layer "
        "(first seed) | error, NLL of 50 averaged draws | minutes each (1 thread) |",
        "|---|---|---|---|---|---|---|---|",
        "| Molchanov et al. 2017, Sparse VD (published) | | 200 | 1.92 % | 68x | | | |",
    ]
    for row, name in names.items():
        runs = [json.loads(file.read_text()) for file in sorted((RESULTS / "lenet_mnist").glob(f"{row}-[0-9]*.json"))]
        if runs:
            ratio = spread([r["ratio"] for r in runs], "{:.1f}x") if "ratio" in runs[0] else "1x"
            kept = " + ".join(f"{k:,}" for k in runs[0]["kept"].values()) if "kept" in runs[0] else "266,200"
            draws = f"{spread([r['draws_error'] for r in runs], '{:.2f} %')}, {runs[0]['draws_nll']:.4f}" if "ratio" in runs[0] else ""
            seeds, minutes = ", ".join(str(r["seed"]) for r in runs), spread([r["minutes"] for r in runs], "{:.0f}")
            errors = spread([r["error"] for r in runs], "{:.2f} %")
            lines.append(f"| {name} | {seeds} | {runs[0]['epochs']} | {errors} | {ratio} | {kept} | {draws} | {minutes} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float], form: str) -> str:
    mean = form.format(sum(values) / len(values))
    return mean if len(values) == 1 else f"{mean} ({form.format(min(values))} to {form.format(max(values))})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
