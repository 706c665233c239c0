"""``pyro-bnn reproduce``: run the published tables again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .app import DataDir, Seed, Threads, option, prepare

__all__ = ["reproduce"]


def reproduce(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="sparse-vd, bayesian-compression, random-labels."),
    ],
    network: Annotated[
        str, typer.Option(help="lenet-300-100, lenet-5, vgg, vgg-sixteenth; mlp for random-labels.")
    ] = "lenet-300-100",
    out: Annotated[
        Path, typer.Option(help="Folder of the fits; a recipe that was stopped resumes.")
    ] = Path("runs/reproduce"),
    results: Annotated[Path | None, option("Folder of the rows; if left out, OUT/results.")] = None,
    seed: Seed = 0,
    data_dir: DataDir = None,
    device: Annotated[
        str, typer.Option(help="Where posteriors are fitted: cpu, cuda, cuda:1, ...")
    ] = "cpu",
    threads: Threads = None,
) -> None:
    """Run a published table again, on MNIST or, for VGG, CIFAR-10: one seed of one network.

    The last 5,000 training images are held out for the choice of thresholds; nothing is chosen on
    the test images, and the last epoch is reported. Each row is written to --results as soon as it
    is known; the table of all available rows is printed, and written to table.md beside them. It
    takes minutes to hours (vgg: on a GPU; vgg-sixteenth tries the same program on any machine); a
    recipe that was stopped resumes where it was.

    \b
    Examples:
      pyro-bnn reproduce sparse-vd
      pyro-bnn reproduce bayesian-compression --network lenet-5 --seed 1
      pyro-bnn reproduce random-labels --network mlp --threads 1
    """
    from pyro_bnn.reproduction import tables
    from pyro_bnn.reproduction.experiment import Experiment
    from pyro_bnn.runtime.devices import require_device

    prepare(threads)
    tables.require_recipe(recipe, network)
    require_device(device, caller="reproduce")
    data, held_out = tables.data_for(network, data_dir)
    folder = out / recipe / network / f"seed-{seed}"
    experiment = Experiment(
        folder, data, held_out, seed, progress=sys.stderr.isatty(), device=device
    )
    rows = out / "results" if results is None else results
    for row in tables.reproduce(recipe, network, experiment, rows):
        typer.echo(
            f"{row.method}: {row.test_error:.2f} % test error, {row.minutes:.0f} minutes so far",
            err=True,
        )
    table = tables.format_rows(recipe, network, rows)
    (rows / recipe / network / "table.md").write_text(table)
    typer.echo(table)
