"""Times of several things, measured in turns: a busy machine then disturbs them alike, and their ratios hold."""

from __future__ import annotations

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
    """Return the median time of one step of each row, in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for round_number in range(rounds + 1):
        for name, step in rows.items():
            number = steps if isinstance(steps, int) else steps[name]
            started = time.perf_counter()
            for _ in range(number):
                step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_number:  # the first round warms up
                times[name].append((time.perf_counter() - started) / number * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def write(name: str, record: Mapping[str, Any], table: str) -> None:
    """Keep the figures of one benchmark, and show them."""
    RESULTS.mkdir(exist_ok=True)
    facts = {
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "python": platform.python_version(),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(dict(record) | facts, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(table)
    print(table)
