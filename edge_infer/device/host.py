"""Plain host memory, aligned for the vector units that read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

ALIGNMENT_BYTES = 64
"""One cache line, and one AVX-512 register."""


class HostMemory:
    """`Memory` of machines without a GPU."""

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray[Any, Any]:
        """Give a zeroed C-contiguous array that starts on a cache line."""
        size_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        buffer = np.zeros(size_bytes + ALIGNMENT_BYTES, np.uint8)
        start = -buffer.ctypes.data % ALIGNMENT_BYTES
        return buffer[start : start + size_bytes].view(dtype).reshape(shape)
