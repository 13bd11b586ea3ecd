"""Who cuts the chips of a decoded tile: this thread at once, or the engine's device when the batch is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edge_infer.ring import RingClosedError, Span
from edge_infer.sampler import sample, sound_windows
from edge_infer.shelf import Piece

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge_infer.imagery import Tile
    from edge_infer.ring import BatchRing
    from edge_infer.shelf import TileShelf

FULL_SHELF_SECONDS = 0.05
"""How long a reader waits for room before it looks whether the run has ended."""

Cut = Callable[["npt.NDArray[np.float64]", Span], None]
"""Sees to the chips of boxes, float64 (k, 4) in full-resolution pixels, for a span of k places."""


class Cutter(Protocol):
    """Readers call it from their threads."""

    def open(self, tile: Tile, windows: int, ring: BatchRing) -> Cut:
        """Begin with a tile that has `windows` windows, each of which is handed to the result once.

        Raises:
            RingClosedError: the ring was stopped while the tile waited for room.

        """
        ...


@dataclass(frozen=True, slots=True)
class HostCutter:
    """Cuts at once, on the reader's own core."""

    value_range: tuple[float, float]
    """Source values that become 0 and 255."""

    def open(self, tile: Tile, windows: int, ring: BatchRing) -> Cut:  # noqa: ARG002
        """See `Cutter`; nothing is kept."""

        def cut(boxes: npt.NDArray[np.float64], span: Span) -> None:
            places = slice(span.start, span.stop)
            sample(
                tile,
                boxes,
                span.slot.chips[places],
                span.slot.valid_fraction[places],
                value_range=self.value_range,
            )

        return cut


@dataclass(frozen=True, slots=True)
class ShelfCutter:
    """Puts tiles on a shelf and leaves the cutting to whoever runs the slots' `pieces`.

    Where the shelf is full of tiles whose chips wait in a part-filled slot, and the engine has nothing else
    to do, that slot is handed over as it is: so room always comes. A tile too large for the shelf is cut on
    the reader's core.
    """

    shelf: TileShelf
    value_range: tuple[float, float]

    def open(self, tile: Tile, windows: int, ring: BatchRing) -> Cut:
        """See `Cutter`; waits until there is room."""
        if not self.shelf.takes(tile):
            return HostCutter(self.value_range).open(tile, windows, ring)
        while (shelved := self.shelf.put(tile, windows)) is None:
            if ring.stopped:
                raise RingClosedError
            ring.flush()
            self.shelf.wait(FULL_SHELF_SECONDS)
        place = shelved

        def cut(boxes: npt.NDArray[np.float64], span: Span) -> None:
            span.slot.pieces.append(Piece(place, sound_windows(tile, boxes), span.start))

        return cut
