"""The application ``pyro-bnn`` with its errors, and the options that its commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pyro_bnn.runs.names import Name

__all__ = [
    "DataDir",
    "Draws",
    "Epochs",
    "OneLineErrors",
    "Seed",
    "Threads",
    "app",
    "free_folder",
    "name_parser",
    "option",
    "prepare",
]


class OneLineErrors(TyperGroup):
    """Commands that report an expected error in one line on stderr.

    The exit status is 2 for a user's mistake, 1 if the run itself failed, and 130 after Ctrl-C.
    Unexpected errors keep their traceback.
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
            if code is None:
                raise
            typer.echo(f"pyro-bnn: {_one_line(error)}", err=True)
            raise typer.Exit(code) from error


def _one_line(error: Exception) -> str:
    """Return the message of an error in one line."""
    text = str(error)
    if hasattr(error, "format_message"):  # an error of typer
        text = error.format_message()
    return " ".join(text.split()) or type(error).__name__


def _exit_code(error: Exception) -> int | None:
    """Return the exit status of an expected error; ``None`` for a defect of this program."""
    if hasattr(error, "format_message"):  # an error of typer: a wrong option
        return 2
    from torch import OutOfMemoryError

    from pyro_bnn.compression import ExportError
    from pyro_bnn.runtime.tensor_files import CheckpointError
    from pyro_bnn.training import NonFiniteError

    if isinstance(error, NonFiniteError | ExportError | MemoryError | OutOfMemoryError):
        return 1
    if isinstance(error, ValueError | OSError | CheckpointError):
        return 2
    return None


app = typer.Typer(
    name="pyro-bnn",
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def option(text: str, *flags: str, **settings: Any) -> Any:
    """Return an option without a default in its help; the text explains what happens without it.

    Args:
        text: the help.
        flags: names of the option, if they do not follow from the parameter.
        settings: of :func:`typer.Option`.
    """
    return typer.Option(*flags, help=text, show_default=False, **settings)


def name_parser(names: type[Name]) -> Callable[[str], str]:
    """Return a parser of one kind of names, for ``typer.Option(parser=...)``.

    Case does not matter; an unknown name is an error with the nearest name as a hint.
    """

    def parse(text: str) -> str:
        try:
            return str(names(text))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return parse


Seed = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Of the first weights, the batches and all noise.")
]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the training data.")]
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
    """Return the folder, or the first of ``FOLDER-2``, ``FOLDER-3``, ... that does not exist."""
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def prepare(threads: int | None) -> None:
    """Set the number of threads, and let the allocator keep freed memory."""
    import torch

    from pyro_bnn.runtime.malloc import retain_freed_memory

    retain_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
