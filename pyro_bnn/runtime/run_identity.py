"""The identity of a run: the settings, data and shapes that must not change when it is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .tensor_files import CheckpointError

__all__ = ["require_same_run"]


def require_same_run(folder: Path, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse to resume a run whose settings, data or parameters have changed.

    Args:
        folder: folder of the saved run, for the error message.
        saved: the identity that was saved with the run.
        current: the identity of the run that is to continue; it is compared in the form that it has
            after a round trip through JSON.

    Raises:
        CheckpointError: a setting differs; the message names every such setting, and the first
            differing entry of a mapping.
    """
    current = json.loads(json.dumps(current))
    differences = []
    for key in {**current, **saved}:
        before, now = saved.get(key), current.get(key)
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            differences.append(f"{key} {_first_difference(before, now)}")
        else:
            differences.append(f"{key} (saved {before}, now {now})")
    if differences:
        raise CheckpointError(
            f"{folder}: the checkpoint is of another run: {'; '.join(differences)} differ"
        )


def _first_difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Return the first entry whose value differs between two mappings."""
    for name in {**now, **before}:
        if before.get(name) != now.get(name):
            return name
    return None
