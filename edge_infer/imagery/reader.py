"""Decoded pixels of one rectangle of an image, one reader a thread.

What a pixel of a tile shows depends on its place alone, not on the rectangle that it was read with, as that
depends on which footprints are still to do.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.enums import MaskFlags, Resampling
from rasterio.windows import Window

from edge_infer.errors import ReadError
from edge_infer.imagery.environment import GDAL_ERRORS, gdal_environment, gdal_words
from edge_infer.imagery.levels import Level, Span, open_level
from edge_infer.imagery.trust import FULL_LEVEL

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from edge_infer.imagery.header import Image

STRIP_PIXELS = 2**24
"""Pixels of a mask that are held at a time to be averaged."""


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """The decoded pixels of one rectangle of an image."""

    pixels: NDArray[np.uint8] | NDArray[np.uint16]
    """(C, h, w), C-contiguous, bands in the order of the contract."""
    valid: NDArray[np.uint8] | None
    """uint8, (h, w), 1 where the pixel holds data and 0 elsewhere; None: all of them do."""
    column: float
    """Left edge, in pixels of the full-resolution image."""
    row: float
    """Upper edge, in pixels of the full-resolution image."""
    scale_x: float
    """Full-resolution columns per column of the tile; the last one may hold fewer, at the image's edge."""
    scale_y: float
    """Full-resolution rows per row of the tile; the last one may hold fewer."""


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """Which pixels of one rectangle of an image hold data; the fields are those of a `Tile`."""

    valid: NDArray[np.uint8] | None
    column: float
    row: float
    scale_x: float
    scale_y: float


class Reader:
    """Reads tiles; it is entered, used and left in one thread.

    The `open_limit` levels used last stay open, because GDAL's decoded blocks live with their dataset.
    """

    def __init__(self, open_limit: int = 8) -> None:
        self._open_limit = open_limit
        self._levels: OrderedDict[tuple[str, int], Level] = OrderedDict()
        self._environment = gdal_environment(placed=False)  # the header has told
        self._thread: int | None = None

    def __enter__(self) -> Reader:
        """Bind to the calling thread."""
        self._environment.__enter__()
        self._thread = threading.get_ident()
        return self

    def __exit__(self, *_: object) -> None:
        """Close all levels."""
        while self._levels:
            self._levels.popitem()[1].dataset.close()
        self._thread = None
        self._environment.__exit__()

    def read(
        self, image: Image, *, column: int, row: int, width: int, height: int, decimation: int = 1
    ) -> Tile:
        """Read a tile that covers one rectangle, each pixel an average of about `decimation` squared ones.

        It lies on the grid of the coarsest overview that is no coarser than wanted, or of the image itself,
        and averages as many whole pixels there, along each axis, as fit in `decimation`. Without overviews
        its scales are just `decimation`; with them what fits, mostly a little less.

        Args:
            image: the image.
            column: left edge of the rectangle, which lies inside the image.
            row: upper edge.
            width: columns at full resolution.
            height: rows at full resolution.
            decimation: a power of two.

        Returns:
            The tile, which reaches less than one of its pixels beyond the rectangle; the caller's to keep.

        Raises:
            ReadError: the file is gone, changed, broken or truncated.

        """
        rectangle = _rectangle(image, column, row, width, height)
        try:
            level, x, y = self._place(image, rectangle, decimation)
            pixels = _assemble(level, level.dataset.read, list(image.band_indexes), image.dtype, x, y)
            valid = _read_valid(level, image, x, y)
        except GDAL_ERRORS as error:
            raise _read_error(image, rectangle, error) from error
        return Tile(pixels, valid, x.origin, y.origin, float(x.scale), float(y.scale))

    def read_valid(
        self, image: Image, *, column: int, row: int, width: int, height: int, decimation: int = 1
    ) -> Mask:
        """Read which pixels of a rectangle hold data; arguments and errors as `read`."""
        rectangle = _rectangle(image, column, row, width, height)
        try:
            level, x, y = self._place(image, rectangle, decimation)
            valid = _read_valid(level, image, x, y)
        except GDAL_ERRORS as error:
            raise _read_error(image, rectangle, error) from error
        return Mask(valid, x.origin, y.origin, float(x.scale), float(y.scale))

    def _place(self, image: Image, rectangle: Window, decimation: int) -> tuple[Level, Span, Span]:
        """Choose the level that a tile is read from, and its place there along the columns and the rows."""
        level = self._choose(image, decimation)
        column, row, width, height = rectangle.flatten()
        return (
            level,
            Span.covering(column, width, decimation, level.across, level.dataset.width),
            Span.covering(row, height, decimation, level.down, level.dataset.height),
        )

    def _choose(self, image: Image, decimation: int) -> Level:
        full = self._open(image, FULL_LEVEL)
        for number, factor in sorted(enumerate(image.overviews), key=itemgetter(1), reverse=True):
            if 1 < factor <= decimation and (level := self._open(image, number)).suits(image, decimation):
                return level
        return full

    def _open(self, image: Image, number: int) -> Level:
        if threading.get_ident() != self._thread:
            raise RuntimeError("a Reader is used in the thread that entered it, and only there")
        key = image.path, number
        level = self._levels.pop(key, None) or open_level(image, number)
        self._levels[key] = level
        if len(self._levels) > self._open_limit:
            self._levels.popitem(last=False)[1].dataset.close()
        return level


def _rectangle(image: Image, column: int, row: int, width: int, height: int) -> Window:
    """Insist on a rectangle inside the image, because rasterio stretches what remains of one that is not."""
    if not (
        0 <= column < column + width <= image.grid.width and 0 <= row < row + height <= image.grid.height
    ):
        raise ValueError(
            f"{width} x {height} pixels at column {column}, row {row} do not lie inside "
            f"the {image.grid.width} x {image.grid.height} pixels of {image.path}"
        )
    return Window(column, row, width, height)


def _assemble(
    level: Level, read: Callable[..., NDArray[Any]], bands: list[int] | int, dtype: str, x: Span, y: Span
) -> NDArray[Any]:
    """Read the pixels of a tile, (..., h, w), in pieces in which GDAL has nothing to round."""
    shape = (len(bands),) if isinstance(bands, list) else ()
    largest = max(x.step, y.step)
    square = largest >= level.squares_from
    read_x = x.whole_squares(level.dataset.width) if square else x
    read_y = y.whole_squares(level.dataset.height) if square else y
    rows = []
    for row, height in read_y.pieces(square):
        parts = [
            read(
                bands,
                window=Window(column, row, width, height),
                # Zeros, so that what GDAL may leave unwritten does not show what was in memory.
                out=np.zeros((*shape, -(-height // y.step), -(-width // x.step)), dtype),
                resampling=Resampling.average if largest > 1 else Resampling.nearest,
            )
            for column, width in read_x.pieces(square)
        ]
        rows.append(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1))
    pixels = rows[0] if len(rows) == 1 else np.concatenate(rows, axis=-2)
    return np.ascontiguousarray(pixels[..., y.within(read_y), x.within(read_x)])


def _read_valid(level: Level, image: Image, x: Span, y: Span) -> NDArray[np.uint8] | None:
    """Averaged pixels count as valid by the share of their mask; those of nodata as soon as one pixel is."""
    if not image.has_mask:
        return None
    dataset = level.dataset
    by_share = MaskFlags.per_dataset in dataset.mask_flag_enums[image.band_indexes[0] - 1]
    # Nodata is a plain value of each band (a black roof may lack red): without data all bands have it.
    bands = image.band_indexes[:1] if by_share else image.band_indexes
    valid = np.logical_or.reduce([_read_mask(level, band, x, y, by_share=by_share) for band in bands])
    return None if valid.all() else valid.astype(np.uint8)


def _read_mask(level: Level, band: int, x: Span, y: Span, *, by_share: bool) -> NDArray[np.bool_]:
    """Read which pixels of a tile one band holds data for, (h, w)."""
    read = level.dataset.read_masks
    largest = max(x.step, y.step)
    if largest == 1 or largest >= level.squares_from:
        return np.asarray(_assemble(level, read, band, "uint8", x, y) >= 128)
    # GDAL would average a coarser mask than this one, though the level has no overviews of its own.
    width = x.stop - x.start
    rows = max(1, STRIP_PIXELS // (width * y.step)) * y.step
    strips = []
    for start in range(y.start, y.stop, rows):
        height = min(rows, y.stop - start)
        mask = read(band, window=Window(x.start, start, width, height))
        down, across = np.arange(0, height, y.step), np.arange(0, width, x.step)
        total = np.add.reduceat(np.add.reduceat(mask, down, axis=0, dtype=np.int64), across, axis=1)
        count = np.outer(np.diff(down, append=height), np.diff(across, append=width))
        strips.append(2 * total >= 255 * count if by_share else total > 0)
    return np.concatenate(strips)


def _read_error(image: Image, rectangle: Window, error: Exception) -> ReadError:
    column, row, width, height = rectangle.flatten()
    place = f"{width} x {height} pixels at column {column}, row {row}"
    return ReadError(f"{image.path}: {place} cannot be read: {gdal_words(error)}")
