"""What the commands of ``pyro-bnn`` share: the program itself, its one-line errors, and options that several have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

__all__ = [
    "DataDir",
    "Draws",
    "Epochs",
    "OneLineErrors",
    "Seed",
    "Threads",
    "app",
    "free_folder",
    "option",
    "prepare",
]


class OneLineErrors(TyperGroup):
    """Commands that answer a user's mistake with one line on stderr.

    The exit status is 2, or 1 where the run itself failed, or 130 after Ctrl-C.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
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

    from pyro_bnn.compression.onnx import ExportError
    from pyro_bnn.runtime.tensor_files import CheckpointError
    from pyro_bnn.training import NonFiniteError

    if isinstance(error, NonFiniteError | ExportError | MemoryError | OutOfMemoryError):
        return 1
    return 2 if isinstance(error, ValueError | OSError | CheckpointError) else None


app = typer.Typer(
    name="pyro-bnn",
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def option(text: str, *names: str, **limits: Any) -> Any:
    """Return an option whose text says what happens when it is left out."""
    return typer.Option(*names, help=text, show_default=False, **limits)


Seed = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Of the first weights, the batches and all noise.")
]
Epochs = Annotated[
    int, typer.Option(min=1, help="How many times the training data are gone through.")
]
Draws = Annotated[
    int, typer.Option(min=1, help="Posterior draws that predictions are averaged over.")
]
Threads = Annotated[int | None, option("CPU threads; if left out, torch decides.", min=1)]
DataDir = Annotated[
    str | None,
    option(
        "Folder that holds MNIST/raw, notMNIST/raw, uci; if left out, $PYRO_BNN_DATA, else ./data."
    ),
]


def free_folder(folder: Path) -> Path:
    """Return the folder, or the first of its name with a number that is free."""
    free, number = folder, 1
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def prepare(threads: int | None) -> None:
    """Set the number of threads, and keep freed memory."""
    import torch

    from pyro_bnn.runtime.malloc import retain_freed_memory

    retain_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
