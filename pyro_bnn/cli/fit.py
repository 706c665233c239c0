"""``pyro-bnn fit`` and ``pyro-bnn demo``: train a network, evaluate it, keep everything in a folder."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import DataDir, Draws, Epochs, Seed, Threads, free_folder, option, prepare

if TYPE_CHECKING:
    from pyro_bnn.datasets import Dataset
    from pyro_bnn.runs.evaluation import Evaluation
    from pyro_bnn.runs.settings import ExecutionConfig, Settings

__all__ = ["demo", "fit"]


def fit(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="lenet-300-100, lenet-5, mlp, mlp-regression or vgg."),
    ] = None,
    out: Annotated[Path | None, option("Folder of the run, new or empty.  [required]")] = None,
    data: Annotated[
        str, typer.Option(help="digits (needs no file), mnist, cifar10, or a UCI set.")
    ] = "digits",
    prior: Annotated[
        str, typer.Option(help="Prior over the weights; pyro-bnn list shows all.")
    ] = "log-uniform",
    guide: Annotated[
        str, typer.Option(help="Variational family; pyro-bnn list shows all.")
    ] = "sparse-vd",
    split: Annotated[
        int, typer.Option(min=0, max=19, help="Which published split of a UCI set.")
    ] = 0,
    hold_out: Annotated[
        int,
        typer.Option(min=0, help="Keep so many training examples aside, to choose thresholds on."),
    ] = 0,
    hidden: Annotated[
        str, option("Widths of the hidden layers of the mlp models, as 100,50.")
    ] = "",
    prior_scale: Annotated[
        float, typer.Option(help="Scale s of the prior (horseshoe: its global scale).")
    ] = 1.0,
    dropout: Annotated[
        float,
        typer.Option(
            min=0.0, max=0.99, help="Rate p of the dropout guides (Gaussian: alpha = p/(1-p))."
        ),
    ] = 0.5,
    tricks: Annotated[
        bool,
        typer.Option(
            help="sparse-vd: clip the noise, mask the means; --no-tricks is the plain ELBO."
        ),
    ] = True,
    epochs: Epochs = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a minibatch.")] = 100,
    learning_rate: Annotated[float, typer.Option(help="Adam's step size at the start.")] = 1e-3,
    schedule: Annotated[
        str,
        typer.Option(
            help="constant; linear, to zero; half-linear, constant for half of the epochs, then to zero."
        ),
    ] = "half-linear",
    kl_warmup: Annotated[
        str,
        typer.Option(
            help="A:B, weight of the KL term: 0 up to epoch A, then linear, 1 from epoch B; or none."
        ),
    ] = "5:20",
    seed: Seed = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out; its options are known.")
    ] = False,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Epochs between checkpoints.")] = 1,
    snapshots: Annotated[
        int, typer.Option(min=0, help="Keep the pruned weights every so many epochs; 0: never.")
    ] = 0,
    data_dir: DataDir = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch MNIST if it is not there.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, cuda:1, ...")] = "cpu",
    threads: Threads = None,
    draws: Draws = 50,
) -> None:
    """Train a Bayesian network, evaluate it on test data, keep everything in a folder.

    lenet-300-100 --data mnist, all other options as they stand, is the recipe with which Sparse Variational Dropout was
    published: 200 epochs in batches of 100, Adam at 1e-3 for half of them and then linearly down to 0, no KL term
    before epoch 5, all of it from epoch 20.

    \b
    Examples:
      pyro-bnn fit lenet-300-100 --data mnist --out runs/sparse
      pyro-bnn fit lenet-5 --data mnist --schedule linear --out runs/lenet-5
      pyro-bnn fit mlp --prior normal --guide mean-field --hidden 100,100 --out runs/mlp
      pyro-bnn fit mlp-regression --data concrete --prior normal --guide mean-field --out runs/concrete
      pyro-bnn fit --out runs/sparse --resume

    \b
    Written to --out:
      run.json         the settings, and the versions of what computed it
      checkpoint/      the state of the training; --resume goes on from it, bit for bit
      posterior.json   the posterior, with the safetensors file that it names
      metrics.json     test metrics of the last epoch (test data select nothing)
      loss_terms.png   the terms of the loss over the epochs
      snapshots/       with --snapshots: the pruned weights over the epochs, for the animation of pyro-bnn compress

    Ctrl-C ends the run after the present step; what was learned until then is evaluated and kept (exit status 130), and
    --resume goes on. A folder that holds another run is never overwritten.
    """
    from pyro_bnn import runs
    from pyro_bnn.runs import registry

    if out is None:
        raise ValueError("fit: expected --out DIR, the folder of the run")
    asked = _spelt(ctx.params)
    there = resume and (out / "run.json").exists()
    if there:
        named = {
            key
            for key in asked
            if getattr(ctx.get_parameter_source(key), "name", "") == "COMMANDLINE"
        }
        settings, place = runs.resumed(out, asked, named)
    elif model is None:
        raise ValueError(
            f"{out}: there is no run to resume"
            if resume
            else "fit: expected a MODEL; see pyro-bnn list"
        )
    else:
        settings = runs.Settings(
            **{field.name: asked[field.name] for field in fields(runs.Settings)}
        )
        place = runs.ExecutionConfig(
            **{field.name: asked[field.name] for field in fields(runs.ExecutionConfig)}
        )
        registry.require_read(settings)
    evaluation, _ = _train(out, settings, place, claim=not there, download=download, draws=draws)
    typer.echo(
        f"{evaluation}\n\nwritten to {out}: run.json, posterior.json, metrics.json, loss_terms.png"
    )
    _leave_if_interrupted(out, evaluation)


def demo(
    out: Annotated[
        Path | None,
        option("Folder of the run; if left out runs/demo, or the next free runs/demo-2."),
    ] = None,
    seed: Seed = 0,
    epochs: Epochs = 150,
    threads: Threads = None,
) -> None:
    """See a network become sparse, in less than a minute and without any download.

    LeNet-300-100 learns the handwritten digits that ship with scikit-learn, under a log-uniform prior, with Sparse
    Variational Dropout: every weight learns its own noise, and weights that are nothing but noise are set to zero.

    \b
    Example:
      pyro-bnn demo --out runs/demo

    \b
    Written, besides what pyro-bnn fit writes:
      weights.png      the first layer before and after pruning, and what its units see
      draws.png        accuracy and NLL against the number of posterior draws
      digits.png       the digits that it is most and least certain of
      summary.png      the run in one strip
    """
    from tqdm import tqdm

    from pyro_bnn import runs
    from pyro_bnn.runs import demo as journey

    out = out or free_folder(Path("runs/demo"))
    settings = journey.settings(epochs, seed)
    watch = journey.Watch(epochs, lambda line: tqdm.write(line, file=sys.stderr))
    place = runs.ExecutionConfig(threads=threads, checkpoint_every=max(epochs // 4, 1))
    typer.echo(
        "LeNet-300-100 learns 1,437 digits of 8x8 pixels: log-uniform prior, Sparse Variational Dropout"
    )
    evaluation, (result, data) = _train(out, settings, place, claim=True, callbacks=[watch])
    typer.echo(f"\n{evaluation}\n")
    pictures = journey.draw(out, result.posterior, evaluation, data, watch)
    typer.echo(
        f"written to {out}: run.json, posterior.json, metrics.json, loss_terms.png, {', '.join(pictures)}"
    )
    _leave_if_interrupted(out, evaluation)


# --- pieces -----------------------------------------------------------------------------------------------------------


def _spelt(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options with the names of things as they are spelt in the lists."""
    from pyro_bnn.runs import registry

    lists: dict[str, Callable[[], Iterable[str]]] = {
        "model": registry.models_by_name,
        "prior": registry.priors_by_name,
        "guide": registry.guides_by_name,
        "data": registry.data_by_name,
    }
    spelt = dict(given)
    for kind, listed in lists.items():
        if given[kind] is not None:
            spelt[kind] = registry.known(
                "data set" if kind == "data" else kind, given[kind], listed()
            )
    return spelt


def _train(
    out: Path,
    settings: Settings,
    place: ExecutionConfig,
    claim: bool,
    download: bool = False,
    draws: int = 50,
    callbacks: Sequence[Any] = (),
) -> tuple[Evaluation, tuple[Any, Dataset]]:
    """Train and evaluate in the folder, claiming it first unless the run is there already."""
    from pyro_bnn import runs
    from pyro_bnn.runs import registry

    prepare(place.threads)
    data, _ = runs.data_of(settings, place.data_dir, download)
    model, guide = registry.build(settings, data)
    runs.schedules(settings)  # what is wrong with them is said before a folder is made
    with runs.claimed(out, settings, place) if claim else contextlib.nullcontext():
        result = runs.train(
            out, model, guide, data, settings, place, callbacks, progress=sys.stderr.isatty()
        )
    return runs.finish(out, result, data, draws), (result, data)


def _leave_if_interrupted(out: Path, evaluation: Evaluation) -> None:
    training = evaluation.metrics["training"]
    if training["interrupted"]:
        typer.echo(
            f"pyro-bnn: stopped in epoch {training['epochs'] + 1}; go on with: pyro-bnn fit --out {out} --resume",
            err=True,
        )
        raise typer.Exit(130)
