"""The command line, ``pyro-bnn``: fit, evaluate and show Bayesian networks without writing a program.

torch, Pyro and matplotlib are imported by the commands that need them, so that this module adds nothing to the time of
``pyro-bnn --help``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .app import Seed, Threads, app, free_folder, option, prepare
from .compress import compress
from .evaluate import evaluate
from .fit import demo, fit
from .reproduce import reproduce

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line."""
    app()


@app.callback()
def _about() -> None:
    """Bayesian deep learning as Pyro programs.

    Start with "pyro-bnn demo": in less than a minute it trains a network that throws away more than 99% of its weights.
    """


def compare(
    out: Annotated[
        Path | None,
        option("Folder, new or empty; if left out runs/compare, or the next free runs/compare-2."),
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
    from pyro_bnn.runs import comparison as journey
    from pyro_bnn.runs.folders import claimed

    out = out or free_folder(Path("runs/compare"))
    prepare(threads)
    settings = journey.Settings(seed=seed)
    with claimed(out):
        found, names = journey.run(
            out, settings, progress and sys.stderr.isatty(), lambda line: typer.echo(line, err=True)
        )
    typer.echo(f"{found}\n\nwritten to {out}: {', '.join(names)}")


def list_names() -> None:
    """Show the names of models, priors, guides and data sets, with what each of them is."""
    from pyro_bnn.runs import registry

    for kind, listed in (
        ("models", registry.models_by_name()),
        ("priors", registry.priors_by_name()),
        ("guides", registry.guides_by_name()),
        ("data sets", registry.data_by_name()),
    ):
        typer.echo(f"{kind}:")
        for name, (described, _) in listed.items():
            text = described if isinstance(described, str) else registry.first_sentence(described)
            typer.echo(f"  {name.ljust(22)}  {text}")


for _command in (fit, demo, compress, evaluate, compare, reproduce):
    app.command()(_command)
app.command("list")(list_names)
