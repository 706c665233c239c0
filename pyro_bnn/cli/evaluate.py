"""``pyro-bnn evaluate``: test a run, or a compressed file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pyro_bnn.runs.names import DataName, ModelName, OutOfDistributionName

from .app import DataDir, Draws, Threads, name_parser, option, prepare

if TYPE_CHECKING:
    from pyro_bnn.posterior import Prediction

__all__ = ["evaluate"]


def evaluate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run, or a compressed file (.pbnn).")
    ],
    draws: Draws = 50,
    ood: Annotated[
        str | None,
        option(
            "Also measure the uncertainty about inputs of another kind: notmnist.",
            parser=name_parser(OutOfDistributionName),
            metavar="TEXT",
        ),
    ] = None,
    data: Annotated[
        str | None,
        option(
            "Of a file: what to test it on; not needed beside its run.",
            parser=name_parser(DataName),
            metavar="TEXT",
        ),
    ] = None,
    model: Annotated[
        str | None,
        option(
            "Of a file: the original; if left out, that of its run, or a LeNet.",
            parser=name_parser(ModelName),
            metavar="TEXT",
        ),
    ] = None,
    data_dir: DataDir = None,
    threads: Threads = None,
) -> None:
    """Evaluate the posterior of a run, or a compressed file, on test data.

    For a run, print what pyro-bnn fit printed, for any number of posterior draws. With --ood
    notmnist, for networks trained on mnist, also print the mean entropies of digits and of letters,
    and the area under the ROC curve when uncertainty separates the two (0.5 is chance).

    For a file, print the test error of the network that it decodes, its bytes, and the compression
    rate: 4 bytes for each weight of the original network, over the bytes of the file. Nothing is
    written.

    \b
    Examples:
      pyro-bnn evaluate runs/demo --draws 200
      pyro-bnn evaluate runs/sparse --ood notmnist
      pyro-bnn evaluate runs/sparse/compressed/network.pbnn --data mnist
    """
    from pyro_bnn.runs.compressed_files import evaluate_compressed

    prepare(threads)
    if run.is_file():
        if ood is not None:
            raise ValueError(
                f"{run}: --ood is for runs; a compressed file has one network without uncertainty "
                "about its weights"
            )
        typer.echo(str(evaluate_compressed(run, data, data_dir, model)))
    elif run.suffix == ".pbnn" and not run.exists():
        raise ValueError(f"{run}: expected a compressed file, but there is no such file")
    elif data is not None or model is not None:
        raise ValueError(f"{run}: --data and --model are for compressed files; a run has its own")
    else:
        _evaluate_run(run, draws, ood, data_dir, threads)


def _evaluate_run(
    folder: Path, draws: int, ood: str | None, data_dir: str | None, threads: int | None
) -> None:
    """Print the metrics of the posterior of a run."""
    from pyro_bnn.datasets import not_mnist
    from pyro_bnn.runs import run
    from pyro_bnn.runs.evaluation import evaluate as evaluate_posterior

    settings, execution = run.load_settings(folder)
    run.require_finished(folder)
    typer.echo(run.interruption_note(folder), err=True, nl=False)
    prepare(threads or execution.threads)
    directory = execution.data_dir if data_dir is None else data_dir
    data, _ = run.load_data(settings, directory)
    posterior = run.load_posterior(folder, settings, data)
    evaluation = evaluate_posterior(posterior, data, draws)
    typer.echo(str(evaluation))
    if ood is not None:
        letters, _ = not_mnist(directory, like=data)
        _compare_uncertainty(data.name, evaluation.prediction, posterior.predict(letters, draws))


def _compare_uncertainty(name: str, prediction: Prediction, unfamiliar: Prediction) -> None:
    """Print how well uncertainty separates test data from unfamiliar inputs."""
    from pyro_bnn.metrics import out_of_distribution

    for kind, detection in out_of_distribution(prediction, unfamiliar).items():
        typer.echo(
            f"{kind} uncertainty in nats: {detection.test_mean:.4f} on {name}, "
            f"{detection.other_mean:.4f} on notMNIST; AUROC {detection.auroc:.4f}"
        )
