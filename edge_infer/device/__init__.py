"""Where the memory of batch slots comes from; one module a kind of device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Memory(Protocol):
    """Hands out arrays that an engine can take its input from without a copy of its own."""

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray[Any, Any]:
        """Give a zeroed C-contiguous array; it lives until the engine that has the memory is closed."""
        ...
