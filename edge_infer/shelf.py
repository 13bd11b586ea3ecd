"""Decoded tiles that wait for a device to cut their chips: a fixed piece of memory, shared out by ranges.

Reader threads put tiles in; the engine's thread says which windows have been cut. A tile leaves when the last
of its windows has. What fits on the shelf is all that can wait, so memory is bounded.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge_infer.imagery import Tile

ALIGNMENT_BYTES = 256
"""What a GPU's memory transactions start on."""


@dataclass(slots=True, eq=False)
class ShelvedTile:
    """A tile on the shelf: where its bytes lie, and how many of its windows are still to be cut."""

    start: int
    """Offset in bytes of the pixels, (C, h, w), from the shelf's start."""
    mask_start: int | None
    """Offset of the mask, uint8 (h, w), 0 = invalid; None: all pixels are valid."""
    stop: int
    """Offset of the end of its bytes."""
    bands: int
    height: int
    width: int
    value_bytes: int
    """1 for uint8, 2 for uint16."""
    windows_left: int
    on_device: bool = False
    """Whether its bytes were sent; the engine's thread alone reads and writes this."""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Windows of one shelved tile whose chips fill a run of places of one slot."""

    tile: ShelvedTile
    windows: npt.NDArray[np.float64]
    """float64, (k, 4): x, y, width, height in pixels of the tile; sound."""
    start: int
    """First of their k places in the slot."""


@dataclass(slots=True, eq=False, repr=False)
class TileShelf:
    """Shares `memory` out among tiles; first fit."""

    memory: npt.NDArray[np.uint8]
    """uint8, (bytes,): host memory, which the device can read or is sent ranges of."""
    _tiles: list[ShelvedTile] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def bytes_in_use(self) -> int:
        """Bytes of all tiles on the shelf, gaps for alignment included."""
        with self._changed:
            return sum(tile.stop - tile.start for tile in self._tiles)

    def takes(self, tile: Tile) -> bool:
        """Whether the tile would fit on the empty shelf."""
        return _place(tile, 0, 1).stop <= len(self.memory)

    def put(self, tile: Tile, windows: int) -> ShelvedTile | None:
        """Copy a tile that has `windows` windows onto the shelf; None where there is no room just now."""
        with self._changed:
            shelved = self._fit(tile, windows)
            if shelved is None:
                return None
            self._tiles.append(shelved)
            self._tiles.sort(key=lambda other: other.start)
        _copy(tile.pixels, self.memory, shelved.start)
        if tile.valid is not None and shelved.mask_start is not None:
            _copy(tile.valid, self.memory, shelved.mask_start)
        return shelved

    def cut(self, tile: ShelvedTile, windows: int) -> None:
        """Say that the chips of so many more windows are made; the last one's tile leaves the shelf."""
        with self._changed:
            tile.windows_left -= windows
            if tile.windows_left == 0:
                self._tiles.remove(tile)
                self._changed.notify_all()

    def wait(self, most_seconds: float) -> None:
        """Wait until a tile leaves, at most so long."""
        with self._changed:
            self._changed.wait(most_seconds)

    def _fit(self, tile: Tile, windows: int) -> ShelvedTile | None:
        """Find the first gap that is large enough; with the lock held."""
        start = 0
        for limit in (*(other.start for other in self._tiles), len(self.memory)):
            placed = _place(tile, start, windows)
            if placed.stop <= limit:
                return placed
            start = next((other.stop for other in self._tiles if other.start == limit), limit)
        return None


def _place(tile: Tile, start: int, windows: int) -> ShelvedTile:
    bands, height, width = tile.pixels.shape
    mask_start = _aligned(start + tile.pixels.nbytes)
    masked = tile.valid is not None
    return ShelvedTile(
        start=start,
        mask_start=mask_start if masked else None,
        stop=_aligned(mask_start + height * width) if masked else mask_start,
        bands=bands,
        height=height,
        width=width,
        value_bytes=tile.pixels.itemsize,
        windows_left=windows,
    )


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _copy(
    array: npt.NDArray[np.uint8] | npt.NDArray[np.uint16], memory: npt.NDArray[np.uint8], start: int
) -> None:
    np.copyto(memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape), array)
