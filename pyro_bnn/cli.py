"""The command line, ``pyro-bnn``: fit, evaluate and show Bayesian networks without writing a program.

torch, Pyro and matplotlib are imported by the commands that need them, so that this module adds nothing to the time of
``pyro-bnn --help``.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from .data import Dataset
    from .evaluation import Evaluation
    from .runs import Place, Settings

__all__ = ["app", "main"]


class _OneLineErrors(TyperGroup):
    """Commands that answer a user's mistake with one line on stderr.

    The exit status is 2, or 1 where the run itself failed, or 130 after Ctrl-C.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            typer.echo("pyro-bnn: stopped", err=True)
            raise typer.Exit(130) from None
        except Exception as error:
            code = _exit_code(error)
            if code is None:  # a defect of this program: its traceback is wanted
                raise
            text = error.format_message() if hasattr(error, "format_message") else str(error)
            typer.echo(f"pyro-bnn: {' '.join(text.split()) or type(error).__name__}", err=True)
            raise typer.Exit(code) from error


def _exit_code(error: Exception) -> int | None:
    if hasattr(error, "format_message"):  # typer's own: a wrong option
        return 2
    from torch import OutOfMemoryError

    from .checkpoint import CheckpointError
    from .training import NonFiniteError

    if isinstance(error, NonFiniteError | MemoryError | OutOfMemoryError):
        return 1
    return 2 if isinstance(error, ValueError | OSError | CheckpointError) else None


app = typer.Typer(
    name="pyro-bnn",
    cls=_OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line."""
    app()


@app.callback()
def _about() -> None:
    """Bayesian deep learning as Pyro programs.

    Start with "pyro-bnn demo": in less than a minute it trains a network that throws away more than 99% of its weights.
    """


def _option(text: str, *names: str, **limits: Any) -> Any:
    """Return an option whose text says what happens when it is left out."""
    return typer.Option(*names, help=text, show_default=False, **limits)


Seed = Annotated[int, typer.Option(min=0, help="Of the first weights, the batches and all noise.")]
Epochs = Annotated[int, typer.Option(min=1, help="How many times the training data are gone through.")]
Draws = Annotated[int, typer.Option(min=1, help="Posterior draws that predictions are averaged over.")]
Threads = Annotated[int | None, _option("CPU threads; if left out, torch decides.", min=1)]
DataDir = Annotated[
    str | None, _option("Folder that holds MNIST/raw, notMNIST/raw, uci; if left out, $PYRO_BNN_DATA, else ./data.")
]


@app.command()
def fit(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="lenet-300-100, lenet-5, mlp or mlp-regression.")
    ] = None,
    out: Annotated[Path | None, _option("Folder of the run, new or empty.  [required]")] = None,
    data: Annotated[str, typer.Option(help="digits (needs no file), mnist, or a UCI set.")] = "digits",
    prior: Annotated[str, typer.Option(help="Prior over the weights; pyro-bnn list shows all.")] = "log-uniform",
    guide: Annotated[str, typer.Option(help="Variational family; pyro-bnn list shows all.")] = "sparse-vd",
    split: Annotated[int, typer.Option(min=0, max=19, help="Which published split of a UCI set.")] = 0,
    hidden: Annotated[str, _option("Widths of the hidden layers of the mlp models, as 100,50.")] = "",
    prior_scale: Annotated[float, typer.Option(help="Scale s of the prior (horseshoe: its global scale).")] = 1.0,
    dropout: Annotated[
        float, typer.Option(min=0.0, max=0.99, help="Rate p of the dropout guides (Gaussian: alpha = p/(1-p)).")
    ] = 0.5,
    tricks: Annotated[
        bool, typer.Option(help="sparse-vd: clip the noise, mask the means; --no-tricks is the plain ELBO.")
    ] = True,
    epochs: Epochs = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a minibatch.")] = 100,
    learning_rate: Annotated[float, typer.Option(help="Adam's step size at the start.")] = 1e-3,
    schedule: Annotated[
        str, typer.Option(help="constant; linear, to zero; half-linear, constant for half of the epochs, then to zero.")
    ] = "half-linear",
    kl_warmup: Annotated[
        str, typer.Option(help="A:B, weight of the KL term: 0 up to epoch A, then linear, 1 from epoch B; or none.")
    ] = "5:20",
    seed: Seed = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out; its options are known.")
    ] = False,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Epochs between checkpoints.")] = 1,
    data_dir: DataDir = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch MNIST if it is not there.")] = False,
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, cuda:1, ...")] = "cpu",
    threads: Threads = None,
    draws: Draws = 50,
) -> None:
    """Train a Bayesian network, evaluate it on test data, keep everything in a folder.

    As they stand the options train lenet-300-100 on mnist by the recipe with which Sparse Variational Dropout was
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

    Ctrl-C ends the run after the present step; what was learned until then is evaluated and kept (exit status 130), and
    --resume goes on. A folder that holds another run is never overwritten.
    """
    from . import runs

    if out is None:
        raise ValueError("fit: expected --out DIR, the folder of the run")
    asked = _spelt(ctx.params)
    there = resume and (out / "run.json").exists()
    if there:
        named = {key for key in asked if getattr(ctx.get_parameter_source(key), "name", "") == "COMMANDLINE"}
        settings, place = runs.resumed(out, asked, named)
    elif model is None:
        raise ValueError(f"{out}: there is no run to resume" if resume else "fit: expected a MODEL; see pyro-bnn list")
    else:
        settings = runs.Settings(**{field.name: asked[field.name] for field in fields(runs.Settings)})
        place = runs.Place(**{field.name: asked[field.name] for field in fields(runs.Place)})
    evaluation, _ = _train(out, settings, place, claim=not there, download=download, draws=draws)
    typer.echo(f"{evaluation}\n\nwritten to {out}: run.json, posterior.json, metrics.json, loss_terms.png")
    _leave_if_interrupted(out, evaluation)


@app.command()
def demo(
    out: Annotated[
        Path | None, _option("Folder of the run; if left out runs/demo, or the next free runs/demo-2.")
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

    from . import demo as journey
    from . import runs

    out = out or _free(Path("runs/demo"))
    settings = journey.settings(epochs, seed)
    watch = journey.Watch(epochs, lambda line: tqdm.write(line, file=sys.stderr))
    place = runs.Place(threads=threads, checkpoint_every=max(epochs // 4, 1))
    typer.echo("LeNet-300-100 learns 1,437 digits of 8x8 pixels: log-uniform prior, Sparse Variational Dropout")
    evaluation, (result, data) = _train(out, settings, place, claim=True, callbacks=[watch])
    typer.echo(f"\n{evaluation}\n")
    pictures = journey.draw(out, result.posterior, evaluation, data, watch)
    typer.echo(f"written to {out}: run.json, posterior.json, metrics.json, loss_terms.png, {', '.join(pictures)}")
    _leave_if_interrupted(out, evaluation)


@app.command()
def compare(
    out: Annotated[
        Path | None, _option("Folder, new or empty; if left out runs/compare, or the next free runs/compare-2.")
    ] = None,
    seed: Seed = 0,
    progress: Annotated[bool, typer.Option(help="Show a bar for each inference.")] = True,
    threads: Threads = None,
) -> None:
    """See how far each inference is from the posterior, in less than three minutes.

    A small network learns 40 points of a sine with a gap in the middle: by mean-field and by full-rank variational
    inference, by SGLD, NUTS and HMC. Each is compared with HMC in the space of functions: its distance, its standard
    deviations (in the gap mean field is too sure), its test log-likelihood, its convergence and its cost.

    \b
    Example:
      pyro-bnn compare --out runs/compare

    \b
    Written to --out:
      comparison.png   what each method says of the function, side by side, and the ratio of its sds to HMC's
      comparison.md    the table; comparison.json has its numbers
      NAME.nc          the draws of each method for ArviZ, as NetCDF
    """
    from . import comparison_demo as journey

    out = out or _free(Path("runs/compare"))
    journey.claim(out)
    _prepare(threads)
    settings = journey.Settings(seed=seed)
    found, names = journey.run(out, settings, progress and sys.stderr.isatty(), lambda line: typer.echo(line, err=True))
    typer.echo(f"{found}\n\nwritten to {out}: {', '.join(names)}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    draws: Draws = 50,
    ood: Annotated[str | None, _option("Also show how uncertain it is of inputs of another kind: notmnist.")] = None,
    data_dir: DataDir = None,
    threads: Threads = None,
) -> None:
    """Evaluate the posterior of a run on its test data.

    Prints what pyro-bnn fit printed, for as many posterior draws as you like. With --ood notmnist, for networks trained
    on mnist, also the mean entropies of digits and of letters, and the area under the ROC curve where uncertainty is to
    tell the two apart (0.5 is chance). Writes nothing.

    \b
    Examples:
      pyro-bnn evaluate runs/demo --draws 200
      pyro-bnn evaluate runs/sparse --ood notmnist
    """
    from . import cli_names as names
    from . import evaluation as metrics
    from . import runs
    from .data import not_mnist
    from .posterior import Posterior

    if ood is not None:
        names.known("out-of-distribution set", ood, ["notmnist"])
    settings, place = runs.load(run)
    runs.require_posterior(run)
    _prepare(threads or place.threads)
    folder = place.data_dir if data_dir is None else data_dir
    data = names.data_by_name()[settings.data][1](settings.split, folder, False)
    model, guide = names.build(settings, data)
    posterior = Posterior.load(run / "posterior", model, guide=guide)
    evaluation = metrics.evaluate(posterior, data, draws)
    typer.echo(str(evaluation))
    if ood is not None:
        letters = not_mnist(folder, like=data)[0]
        found = metrics.out_of_distribution(evaluation.prediction, posterior.predict(letters, draws))
        for key in ("total", "epistemic"):
            means = f"{found[f'{key}_test']:.4f} on {data.name}, {found[f'{key}_ood']:.4f} on notMNIST"
            typer.echo(f"{key} uncertainty in nats: {means}; AUROC {found[f'{key}_auroc']:.4f}")


@app.command("list")
def list_names() -> None:
    """Show the names of models, priors, guides and data sets, with what each of them is."""
    from . import cli_names as names

    for kind, listed in (
        ("models", names.models_by_name()),
        ("priors", names.priors_by_name()),
        ("guides", names.guides_by_name()),
        ("data sets", names.data_by_name()),
    ):
        typer.echo(f"{kind}:")
        for name, (described, _) in listed.items():
            text = described if isinstance(described, str) else names.first_sentence(described)
            typer.echo(f"  {name.ljust(22)}  {text}")


# --- pieces -----------------------------------------------------------------------------------------------------------


def _spelt(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options with the names of things as they are spelt in the lists."""
    from . import cli_names as names

    lists: dict[str, Callable[[], Iterable[str]]] = {
        "model": names.models_by_name,
        "prior": names.priors_by_name,
        "guide": names.guides_by_name,
        "data": names.data_by_name,
    }
    spelt = dict(given)
    for kind, listed in lists.items():
        if given[kind] is not None:
            spelt[kind] = names.known("data set" if kind == "data" else kind, given[kind], listed())
    return spelt


def _train(
    out: Path,
    settings: Settings,
    place: Place,
    claim: bool,
    download: bool = False,
    draws: int = 50,
    callbacks: Sequence[Any] = (),
) -> tuple[Evaluation, tuple[Any, Dataset]]:
    """Train and evaluate in the folder, claiming it first unless the run is there already."""
    from . import cli_names as names
    from . import runs

    _prepare(place.threads)
    data = names.data_by_name()[settings.data][1](settings.split, place.data_dir, download)
    model, guide = names.build(settings, data)
    runs.schedules(settings)  # what is wrong with them is said before a folder is made
    with runs.claimed(out, settings, place) if claim else contextlib.nullcontext():
        result = runs.train(out, model, guide, data, settings, place, callbacks, progress=sys.stderr.isatty())
    return runs.finish(out, result, data, draws), (result, data)


def _leave_if_interrupted(out: Path, evaluation: Evaluation) -> None:
    training = evaluation.metrics["training"]
    if training["interrupted"]:
        typer.echo(
            f"pyro-bnn: stopped in epoch {training['epochs'] + 1}; go on with: pyro-bnn fit --out {out} --resume",
            err=True,
        )
        raise typer.Exit(130)


def _free(folder: Path) -> Path:
    """Return the folder, or the first of its name with a number that is free."""
    free, number = folder, 1
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _prepare(threads: int | None) -> None:
    """Set the number of threads, and keep freed memory."""
    import torch

    from .memory import keep_freed_memory

    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
