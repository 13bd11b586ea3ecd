"""Whether files lie in the system's page cache, and how to get them out of it, without root (Linux)."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

MOST_COLD_SHARE = 0.05
"""What may stay in memory of files that are called cold."""

_FAILED = ctypes.c_void_p(-1).value
"""What mmap gives where it cannot."""


def drop(files: Sequence[Path]) -> str | None:
    """Ask the system to forget these files; why it did not, or None where it did as far as can be told."""
    if not hasattr(os, "posix_fadvise"):
        return "this system has no way to empty its cache of files without root"
    for path in files:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            return f"{path} cannot be opened ({error.strerror})"
        try:
            os.fsync(descriptor)  # pages that are not yet written are kept
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            return f"{path} cannot be put out of memory ({error.strerror})"
        finally:
            os.close(descriptor)
    share = cached_share(files)
    if share is not None and share > MOST_COLD_SHARE:
        return f"{share:.0%} of the imagery stays there (it lies in memory only, or a program maps it)"
    return None


def cached_share(files: Sequence[Path]) -> float | None:
    """Share of the pages of these files that lie in memory, 0 to 1; None where the system does not tell.

    Linux tells those who own a file or may write to it (mincore); others would be told that all of it does.
    Nothing is read: a look must not bring in what it looks for.
    """
    resident = pages = 0
    for path in files:
        status = path.stat()
        if not hasattr(os, "geteuid") or not (status.st_uid == os.geteuid() or os.access(path, os.W_OK)):
            return None
        if status.st_size:
            flags = _pages_in_memory(path, status.st_size)
            if flags is None:
                return None
            resident, pages = resident + int(flags.sum()), pages + len(flags)
    return resident / pages if pages else None


def _pages_in_memory(path: Path, size: int) -> npt.NDArray[np.bool_] | None:
    """Tell of each page of a file whether it lies in memory; None where that cannot be asked."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mincore"):
        return None
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    flags = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    finally:
        os.close(descriptor)
    if address == _FAILED:
        return None
    try:
        failed = libc.mincore(address, size, flags.ctypes.data)
    finally:
        libc.munmap(address, size)
    return None if failed else flags % 2 == 1
