"""``pyro-bnn compress``: from a finished run to a file of a few kilobytes, and a report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .app import DataDir, Threads, option, prepare

__all__ = ["compress"]


def compress(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    out: Annotated[Path | None, option("Folder, new or empty; if left out RUN/compressed.")] = None,
    threshold: Annotated[
        float | None, option("Drop weights whose log alpha is at or above it; if left out, 3.")
    ] = None,
    group_threshold: Annotated[
        float | None,
        option("Drop groups whose measure is at or above it; if left out, as --threshold."),
    ] = None,
    choose: Annotated[
        bool,
        typer.Option(
            "--choose", help="Choose the thresholds on the examples that the run held out."
        ),
    ] = False,
    tolerance: Annotated[
        float,
        typer.Option(min=0.0, help="With --choose: by how much the error may rise; 0.001 is 0.1%."),
    ] = 0.0,
    levels: Annotated[
        int, typer.Option(min=1, help="Largest number of distinct values in each weight tensor.")
    ] = 16,
    bits_weight: Annotated[
        float,
        typer.Option(
            min=0.0, help="Price of a bit in distortion; larger values make smaller files."
        ),
    ] = 0.0,
    fine_tune_epochs: Annotated[
        int,
        typer.Option(
            min=0, help="Epochs over the training data in which the shared values are trained."
        ),
    ] = 20,
    latency: Annotated[
        bool, typer.Option(help="Measure how much faster the smaller network is.")
    ] = True,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of the batches in fine-tuning.")
    ] = 0,
    data_dir: DataDir = None,
    threads: Threads = None,
) -> None:
    """Make a trained network physically smaller, and write it to a file of a few kilobytes.

    Weights and groups that the posterior does not need are dropped, and with them units, filters
    and inputs; the remaining weights share few distinct values, which are fine-tuned on the
    training data; the file is decoded again. Test data are used for the errors in the report alone.

    \b
    Examples:
      pyro-bnn compress runs/sparse
      pyro-bnn compress runs/sparse --choose --levels 8 --out runs/sparse-8
      pyro-bnn evaluate runs/sparse/compressed/network.pbnn --data mnist

    \b
    Written to --out:
      network.pbnn          the network, in as few bytes as possible
      network.onnx          the same for other runtimes, if onnx is installed
      report.md             layer by layer, and every ratio by its name; report.json has the numbers
      log_alpha.png         the measure that weights were pruned by; groups.png: groups
      receptive_fields.png  the weights of the remaining units of the first layer
      acceleration.png      multiplications and seconds, before and after
      weights.gif           the weights over the epochs at threshold 3, if the run has --snapshots
    """
    from pyro_bnn.runs import compression
    from pyro_bnn.runs.folders import new_folder
    from pyro_bnn.runs.run import interruption_note

    if choose and (threshold is not None or group_threshold is not None):
        raise ValueError("--choose finds the thresholds: give either --choose or thresholds")
    if tolerance and not choose:
        raise ValueError("--tolerance belongs to --choose: add --choose, or leave --tolerance out")
    finished = compression.read_run(run, data_dir)
    typer.echo(interruption_note(run), err=True, nl=False)
    options = compression.CompressionOptions(
        threshold=3.0 if threshold is None else threshold,
        group_threshold=group_threshold,
        levels=levels,
        bits_weight=bits_weight,
        fine_tune_epochs=fine_tune_epochs,
        choose=choose,
        tolerance=tolerance,
        batches=(1, 8192) if latency else (),
        seed=seed,
    )
    prepare(threads)
    out = run / "compressed" if out is None else out
    with new_folder(out):
        report, files = compression.compress(
            finished, out, options, lambda line: typer.echo(line, err=True), sys.stderr.isatty()
        )
    typer.echo(f"{report}\n\nwritten to {out}: {', '.join(files)}")
