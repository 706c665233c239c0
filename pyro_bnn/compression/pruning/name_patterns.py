"""Settings by parameter name: of several patterns that match a name, the first one counts."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

__all__ = ["first_matches", "unmatched"]

Setting = TypeVar("Setting")


def first_matches(patterns: Mapping[str, Setting], names: Iterable[str]) -> dict[str, Setting]:
    """Return the setting of each name; names that no pattern matches are left out.

    Example:
        >>> first_matches({"fc1.*": 3, "*.weight": 5}, ["fc1.weight", "fc2.weight", "fc2.bias"])
        {'fc1.weight': 3, 'fc2.weight': 5}
    """
    settings = {}
    for name in names:
        for pattern, setting in patterns.items():
            if fnmatch.fnmatchcase(name, pattern):
                settings[name] = setting
                break
    return settings


def unmatched(patterns: Iterable[str], names: Collection[str]) -> list[str]:
    """Return the patterns that match none of the names, which are most often misspelled."""
    return [pattern for pattern in patterns if not fnmatch.filter(names, pattern)]
