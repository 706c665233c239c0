"""``pyro-bnn compare``: inference methods side by side on one small regression."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .app import Seed, Threads, free_folder, option, prepare

__all__ = ["compare"]


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

    A small network learns 40 points of a sine with a gap in the middle: by mean-field and by
    full-rank variational inference, by SGLD, NUTS and HMC. Each is compared with HMC in the space
    of functions: its distance, its standard deviations (in the gap mean field is too sure), its
    test log-likelihood, its convergence and its cost.

    \b
    Example:
      pyro-bnn compare --out runs/compare

    \b
    Written to --out:
      comparison.png   the functions of each method, and the ratio of its sds to HMC's
      comparison.md    the table; comparison.json has its numbers
      NAME.nc          the draws of each method for ArviZ, as NetCDF
    """
    from pyro_bnn.runs.comparison import ComparisonSettings, compare_methods
    from pyro_bnn.runs.folders import new_folder

    out = out or free_folder(Path("runs/compare"))
    prepare(threads)
    settings = ComparisonSettings(seed=seed)
    with new_folder(out):
        result = compare_methods(
            out, settings, progress and sys.stderr.isatty(), lambda line: typer.echo(line, err=True)
        )
    typer.echo(f"{result.comparison}\n\nwritten to {out}: {', '.join(result.files)}")
