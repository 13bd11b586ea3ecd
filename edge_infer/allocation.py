"""Memory that was freed goes back to the system, not only to this process."""

from __future__ import annotations

import ctypes

KEPT_BYTES = 2**20
"""Freed pieces of at least so much go back at once."""

_M_MMAP_THRESHOLD = -3


def give_back_freed() -> bool:
    """Tell glibc to return large pieces of memory as soon as they are freed.

    It raises the size that counts as large with each such piece, up to 32 MB. Then tiles lie among the
    small blocks of GDAL, and what planning took stays taken, which is dear where a GPU shares the memory.

    Returns:
        Whether there is a glibc to tell.

    """
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES))
    except (OSError, AttributeError, TypeError):  # another C library; Windows
        return False
