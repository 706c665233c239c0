"""Inference data on disk, in the format of NetCDF."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

__all__ = ["save_netcdf"]


class NetCDFWritable(Protocol):
    """An ``InferenceData`` of ArviZ 0.x or a ``DataTree`` of xarray."""

    def to_netcdf(self, filepath: str, /, *, engine: str) -> object:
        """Write the file."""


def save_netcdf(
    data: NetCDFWritable, path: str | os.PathLike[str], overwrite: bool = False
) -> Path:
    """Write the result of :func:`~pyro_bnn.diagnostics.to_arviz` and return the path.

    The file is complete as soon as it exists: it is written under another name and then moved.

    Args:
        data: an ``InferenceData`` or a ``DataTree``.
        path: of the file; its folder is created where necessary.
        overwrite: whether an existing file may be replaced.

    Raises:
        FileExistsError: if the file exists and ``overwrite`` is not set.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path}: this file exists already; choose another name or pass overwrite=True"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        data.to_netcdf(str(temporary), engine="h5netcdf")
        if overwrite:
            temporary.replace(path)
        else:
            os.link(temporary, path)  # unlike a rename it fails where a file has appeared meanwhile
    finally:
        temporary.unlink(missing_ok=True)
    return path
