"""Times of several steps, measured in turns.

A busy machine then disturbs all of them alike, and their ratios hold.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyro
import torch

RESULTS = Path(__file__).parent / "results"
Step = Callable[[], Any]


def milliseconds(
    rows: Mapping[str, Step], steps: Mapping[str, int] | int, rounds: int
) -> dict[str, float]:
    """Return the median time of one step of each row, in milliseconds.

    Args:
        rows: the steps by name.
        steps: the number of steps that are timed together, for all rows or for each.
        rounds: the number of times of each row; one more round warms up.
    """
    numbers = steps if isinstance(steps, Mapping) else dict.fromkeys(rows, steps)
    times: dict[str, list[float]] = {name: [] for name in rows}
    for round_number in range(rounds + 1):
        for name, step in rows.items():
            started = time.perf_counter()
            for _ in range(numbers[name]):
                step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_number > 0:
                times[name].append((time.perf_counter() - started) / numbers[name] * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def write_results(name: str, record: Mapping[str, Any], table: str) -> None:
    """Write the numbers and the Markdown table of one benchmark, and print the table."""
    RESULTS.mkdir(exist_ok=True)
    versions = {
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "python": platform.python_version(),
    }
    content = json.dumps({**record, **versions}, indent=1) + "\n"
    (RESULTS / f"{name}.json").write_text(content)
    (RESULTS / f"{name}.md").write_text(table)
    print(table)


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help shows the docstring of a script as it is written."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
