"""``pyro-bnn fit`` and ``pyro-bnn demo``: train a network, evaluate it, save the results."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from pyro_bnn.runs.names import DataName, GuideName, ModelName, PriorName

from .app import DataDir, Draws, Epochs, Seed, Threads, free_folder, name_parser, option, prepare

if TYPE_CHECKING:
    from pyro_bnn.datasets import Dataset
    from pyro_bnn.posterior import Posterior
    from pyro_bnn.runs.evaluation import Evaluation
    from pyro_bnn.runs.settings import ExecutionConfig, Settings
    from pyro_bnn.training import Progress

__all__ = ["demo", "fit"]


def fit(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            parser=name_parser(ModelName),
            metavar="MODEL",
            help="lenet-300-100, lenet-5, mlp, mlp-regression or vgg.",
        ),
    ] = None,
    out: Annotated[Path | None, option("Folder of the run, new or empty.  [required]")] = None,
    data: Annotated[
        str,
        typer.Option(
            parser=name_parser(DataName),
            metavar="TEXT",
            help="digits (needs no file), mnist, cifar10, or a UCI set.",
        ),
    ] = "digits",
    prior: Annotated[
        str,
        typer.Option(
            parser=name_parser(PriorName),
            metavar="TEXT",
            help="Prior over the weights; pyro-bnn list shows all.",
        ),
    ] = "log-uniform",
    guide: Annotated[
        str,
        typer.Option(
            parser=name_parser(GuideName),
            metavar="TEXT",
            help="Variational family; pyro-bnn list shows all.",
        ),
    ] = "sparse-vd",
    split: Annotated[
        int, typer.Option(min=0, max=19, help="Which published split of a UCI set.")
    ] = 0,
    hold_out: Annotated[
        int,
        typer.Option(min=0, help="Training examples to hold out, for the choice of thresholds."),
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
            help="constant; linear, to zero; half-linear, constant for half of the epochs, "
            "then to zero."
        ),
    ] = "half-linear",
    kl_warmup: Annotated[
        str,
        typer.Option(
            help="A:B, weight of the KL term: 0 up to epoch A, then linear, 1 from epoch B; "
            "or none."
        ),
    ] = "5:20",
    seed: Seed = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run in --out with its settings.")
    ] = False,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Epochs between checkpoints.")] = 1,
    snapshots: Annotated[
        int, typer.Option(min=0, help="Epochs between snapshots of the pruned weights; 0: none.")
    ] = 0,
    data_dir: DataDir = None,
    download: Annotated[
        bool, typer.Option("--download", help="Download MNIST if it is missing.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, cuda:1, ...")] = "cpu",
    threads: Threads = None,
    draws: Draws = 50,
) -> None:
    """Train a Bayesian network, evaluate it on test data, and save everything in a folder.

    lenet-300-100 --data mnist, with the defaults of all other options, is the published recipe of
    Sparse Variational Dropout: 200 epochs in batches of 100, Adam at 1e-3 for half of them and then
    linearly down to 0, no KL term before epoch 5, all of it from epoch 20.

    \b
    Examples:
      pyro-bnn fit lenet-300-100 --data mnist --out runs/sparse
      pyro-bnn fit lenet-5 --data mnist --schedule linear --out runs/lenet-5
      pyro-bnn fit mlp --prior normal --guide mean-field --hidden 100,100 --out runs/mlp
      pyro-bnn fit mlp-regression --data concrete --prior normal --guide mean-field --out runs/uci
      pyro-bnn fit --out runs/sparse --resume

    \b
    Written to --out:
      run.json         the settings, and the versions of the packages
      checkpoint/      the state of the training; --resume continues from it, bit for bit
      posterior.json   the posterior, with its safetensors file
      metrics.json     test metrics of the last epoch (test data select nothing)
      loss_terms.png   the terms of the loss over the epochs
      snapshots/       with --snapshots: the pruned weights, for the animation of pyro-bnn compress

    Ctrl-C ends the run after the present step; the posterior at that point is evaluated and saved
    (exit status 130), and --resume continues. A folder that holds another run is never overwritten.
    """
    from pyro_bnn.runs.registry import require_used_options
    from pyro_bnn.runs.run import settings_to_resume
    from pyro_bnn.runs.settings import ExecutionConfig, Settings

    if out is None:
        raise ValueError("fit: expected --out DIR, the folder of the run")
    exists = resume and (out / "run.json").exists()
    if exists:
        settings, execution = settings_to_resume(out, ctx.params, _explicit_options(ctx))
    elif resume and model is None:
        raise ValueError(f"{out}: there is no run to resume")
    elif model is None:
        raise ValueError("fit: expected a MODEL; see pyro-bnn list")
    else:
        settings = Settings(**_select(ctx.params, Settings))
        execution = ExecutionConfig(**_select(ctx.params, ExecutionConfig))
        require_used_options(settings)
    trained = _train(out, settings, execution, is_new=not exists, download=download, draws=draws)
    typer.echo(
        f"{trained.evaluation}\n\n"
        f"written to {out}: run.json, posterior.json, metrics.json, loss_terms.png"
    )
    _exit_if_interrupted(out, trained.evaluation)


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

    LeNet-300-100 learns the handwritten digits that ship with scikit-learn, under a log-uniform
    prior, with Sparse Variational Dropout: every weight learns its own noise, and weights that are
    nothing but noise are set to zero.

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

    from pyro_bnn.runs.demo import SparsityMonitor, demo_settings, draw_run
    from pyro_bnn.runs.settings import ExecutionConfig

    out = out or free_folder(Path("runs/demo"))
    monitor = SparsityMonitor(epochs, lambda line: tqdm.write(line, file=sys.stderr))
    execution = ExecutionConfig(threads=threads, checkpoint_every=max(epochs // 4, 1))
    typer.echo(
        "LeNet-300-100 learns 1,437 digits of 8x8 pixels: "
        "log-uniform prior, Sparse Variational Dropout"
    )
    trained = _train(out, demo_settings(epochs, seed), execution, is_new=True, callbacks=[monitor])
    typer.echo(f"\n{trained.evaluation}\n")
    figures = draw_run(out, trained.posterior, trained.evaluation, trained.data, monitor)
    typer.echo(
        f"written to {out}: run.json, posterior.json, metrics.json, loss_terms.png, "
        f"{', '.join(figures)}"
    )
    _exit_if_interrupted(out, trained.evaluation)


# --- pieces ---------------------------------------------------------------------------------------


def _explicit_options(ctx: typer.Context) -> set[str]:
    """Return the parameters that the user named on the command line."""
    explicit = set()
    for name in ctx.params:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            explicit.add(name)
    return explicit


def _select(params: Mapping[str, Any], config: type[Settings | ExecutionConfig]) -> dict[str, Any]:
    """Return the parameters that are fields of a dataclass."""
    return {field.name: params[field.name] for field in fields(config)}


class _Trained(NamedTuple):
    """The result of a command that trains."""

    evaluation: Evaluation
    posterior: Posterior
    data: Dataset


def _train(
    out: Path,
    settings: Settings,
    execution: ExecutionConfig,
    is_new: bool,
    download: bool = False,
    draws: int = 50,
    callbacks: Sequence[Callable[[Progress], None]] = (),
) -> _Trained:
    """Train and evaluate in a folder, which is created for a new run."""
    from pyro_bnn.runs import run
    from pyro_bnn.runs.registry import build
    from pyro_bnn.runs.settings import schedules

    prepare(execution.threads)
    data, _ = run.load_data(settings, execution.data_dir, download)
    program = build(settings, data)
    schedules(settings)  # raises its errors before a folder is made
    folder: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if is_new:
        folder = run.claim_folder(out, settings, execution)
    with folder:
        result = run.train(
            out, program, data, settings, execution, callbacks, progress=sys.stderr.isatty()
        )
    evaluation = run.evaluate_and_save(out, result, data, draws)
    return _Trained(evaluation, result.posterior, data)


def _exit_if_interrupted(out: Path, evaluation: Evaluation) -> None:
    """Exit with status 130 after a run that Ctrl-C ended."""
    training = evaluation.metrics["training"]
    if training["interrupted"]:
        typer.echo(
            f"pyro-bnn: stopped in epoch {training['epochs'] + 1}; "
            f"resume with: pyro-bnn fit --out {out} --resume",
            err=True,
        )
        raise typer.Exit(130)
