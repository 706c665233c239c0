"""The command line, ``pyro-bnn``: fit, evaluate, compress and compare without writing a program.

torch, Pyro and matplotlib are imported by the commands that need them, so that this module adds
nothing to the time of ``pyro-bnn --help``.
"""

from __future__ import annotations

import typer

from pyro_bnn.runs.names import DataName, GuideName, ModelName, Name, PriorName

from .app import app
from .compare import compare
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

    Start with "pyro-bnn demo": in less than a minute it trains a network that throws away more than
    99% of its weights.
    """


def list_names() -> None:
    """Show the names of models, priors, guides and data sets, each with a description."""
    kinds: tuple[type[Name], ...] = (ModelName, PriorName, GuideName, DataName)
    for names in kinds:
        typer.echo(f"{names.kind()}s:")
        for name in names:
            typer.echo(f"  {name:<22}  {name.description}")


for _command in (fit, demo, compress, evaluate, compare, reproduce):
    app.command()(_command)
app.command("list")(list_names)
