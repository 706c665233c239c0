"""``pyro-bnn evaluate``: how a run, or a compressed file, does on test data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import DataDir, Draws, Threads, option, prepare

__all__ = ["evaluate"]


def evaluate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run, or a compressed file (.pbnn).")
    ],
    draws: Draws = 50,
    ood: Annotated[
        str | None, option("Also show how uncertain it is of inputs of another kind: notmnist.")
    ] = None,
    data: Annotated[
        str | None, option("Of a file: what to test it on; not needed beside its run.")
    ] = None,
    model: Annotated[
        str | None, option("Of a file: the original; if left out, that of its run, or a LeNet.")
    ] = None,
    data_dir: DataDir = None,
    threads: Threads = None,
) -> None:
    """Evaluate the posterior of a run, or a compressed file, on test data.

    Of a run it prints what pyro-bnn fit printed, for as many posterior draws as you like. With --ood notmnist, for
    networks trained on mnist, also the mean entropies of digits and of letters, and the area under the ROC curve where
    uncertainty is to tell the two apart (0.5 is chance). Writes nothing.

    Of a file it prints the test error of the network that it decodes, its bytes, and the compression rate: 4 bytes for
    each weight of the original network, over the bytes of the file.

    \b
    Examples:
      pyro-bnn evaluate runs/demo --draws 200
      pyro-bnn evaluate runs/sparse --ood notmnist
      pyro-bnn evaluate runs/sparse/compressed/network.pbnn --data mnist
    """
    from pyro_bnn.runs import registry
    from pyro_bnn.runs.compression import evaluate_compressed

    if ood is not None:
        registry.known("out-of-distribution set", ood, ["notmnist"])
    prepare(threads)
    if run.is_file():
        if ood is not None:
            raise ValueError(
                f"{run}: --ood is for runs; a compressed file has one network, sure of all it says"
            )
        typer.echo(str(evaluate_compressed(run, data, data_dir, model)))
    elif run.suffix == ".pbnn" and not run.exists():
        raise ValueError(f"{run}: there is no such file")
    elif data is not None or model is not None:
        raise ValueError(f"{run}: --data and --model are for compressed files; a run knows its own")
    else:
        _evaluate_run(run, draws, ood, data_dir, threads)


def _evaluate_run(
    run: Path, draws: int, ood: str | None, data_dir: str | None, threads: int | None
) -> None:
    """Print how the posterior of a run does."""
    from pyro_bnn import runs
    from pyro_bnn.datasets import not_mnist
    from pyro_bnn.metrics import out_of_distribution
    from pyro_bnn.posterior import Posterior
    from pyro_bnn.runs import evaluation as metrics
    from pyro_bnn.runs import registry

    settings, place = runs.load(run)
    runs.require_posterior(run)
    typer.echo(runs.interruption(run), err=True, nl=False)
    prepare(threads or place.threads)
    folder = place.data_dir if data_dir is None else data_dir
    data, _ = runs.data_of(settings, folder)
    model, guide = registry.build(settings, data)
    posterior = Posterior.load(run / "posterior", model, guide=guide)
    evaluation = metrics.evaluate(posterior, data, draws)
    typer.echo(str(evaluation))
    if ood is not None:
        letters = not_mnist(folder, like=data)[0]
        found = out_of_distribution(evaluation.prediction, posterior.predict(letters, draws))
        for key in ("total", "epistemic"):
            row = found[key]
            means = f"{row.test_mean:.4f} on {data.name}, {row.other_mean:.4f} on notMNIST"
            typer.echo(f"{key} uncertainty in nats: {means}; AUROC {row.auroc:.4f}")
