"""Decoded pixels of one rectangle of an image, one reader a thread."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.enums import MaskFlags, Resampling
from rasterio.windows import Window

from edge_infer.errors import ReadError
from edge_infer.imagery.environment import GDAL_ERRORS, gdal_environment, gdal_words
from edge_infer.imagery.trust import open_raster

if TYPE_CHECKING:
    import rasterio
    from numpy.typing import NDArray

    from edge_infer.imagery.header import Image


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
    """Full-resolution columns per column of the tile."""
    scale_y: float
    """Full-resolution rows per row of the tile."""


class Reader:
    """Reads tiles; it is entered, used and left in one thread.

    The `open_limit` datasets used last stay open, because GDAL's decoded blocks live with their dataset.
    """

    def __init__(self, open_limit: int = 8) -> None:
        self._open_limit = open_limit
        self._datasets: OrderedDict[str, rasterio.DatasetReader] = OrderedDict()
        self._environment = gdal_environment()
        self._thread: int | None = None

    def __enter__(self) -> Reader:
        """Bind to the calling thread."""
        self._environment.__enter__()
        self._thread = threading.get_ident()
        return self

    def __exit__(self, *_: object) -> None:
        """Close all datasets."""
        while self._datasets:
            self._datasets.popitem()[1].close()
        self._thread = None
        self._environment.__exit__()

    def read(
        self, image: Image, *, column: int, row: int, width: int, height: int, decimation: int = 1
    ) -> Tile:
        """Read one rectangle, averaged over `decimation` x `decimation` pixels (overviews are used).

        Args:
            image: the image.
            column: left edge of the rectangle, which lies inside the image.
            row: upper edge.
            width: columns at full resolution.
            height: rows at full resolution.
            decimation: a power of two.

        Returns:
            A tile of ceil(width / decimation) x ceil(height / decimation) pixels, the caller's to keep.

        Raises:
            ReadError: the file is gone, changed, broken or truncated.

        """
        rectangle = _rectangle(image, column, row, width, height)
        try:
            dataset = self._dataset(image)
            options = _read_options(rectangle, decimation)
            pixels = dataset.read(list(image.band_indexes), **options)
            valid = _read_valid(dataset, image, options)
        except GDAL_ERRORS as error:
            raise _read_error(image, rectangle, error) from error
        _, rows, columns = pixels.shape
        return Tile(pixels, valid, float(column), float(row), width / columns, height / rows)

    def read_valid(
        self, image: Image, *, column: int, row: int, width: int, height: int, decimation: int = 1
    ) -> NDArray[np.uint8] | None:
        """Read which pixels of a rectangle hold data; arguments and errors as `read`.

        Returns:
            uint8, (ceil(height / decimation), ceil(width / decimation)), as `Tile.valid`.

        """
        rectangle = _rectangle(image, column, row, width, height)
        try:
            return _read_valid(self._dataset(image), image, _read_options(rectangle, decimation))
        except GDAL_ERRORS as error:
            raise _read_error(image, rectangle, error) from error

    def _dataset(self, image: Image) -> rasterio.DatasetReader:
        if threading.get_ident() != self._thread:
            raise RuntimeError("a Reader is used in the thread that entered it, and only there")
        dataset = self._datasets.pop(image.path, None)
        if dataset is None:
            dataset = open_raster(image.path)
            if (dataset.width, dataset.height) != (image.grid.width, image.grid.height):
                dataset.close()
                raise OSError("its size has changed since the run began")
        self._datasets[image.path] = dataset
        if len(self._datasets) > self._open_limit:
            self._datasets.popitem(last=False)[1].close()
        return dataset


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


def _read_options(rectangle: Window, decimation: int) -> dict[str, Any]:
    return {
        "window": rectangle,
        "out_shape": (-(-rectangle.height // decimation), -(-rectangle.width // decimation)),
        "resampling": Resampling.average if decimation > 1 else Resampling.nearest,
    }


def _read_valid(
    dataset: rasterio.DatasetReader, image: Image, options: dict[str, Any]
) -> NDArray[np.uint8] | None:
    """Averaged pixels count as valid by the share of their mask; those of nodata as soon as one pixel is."""
    if not image.has_mask:
        return None
    first, *others = image.band_indexes
    valid = dataset.read_masks(first, **options) >= 128
    if MaskFlags.per_dataset not in dataset.mask_flag_enums[first - 1]:
        # Nodata is a plain value of each band (a black roof may lack red): without data all bands have it.
        for band in others:
            valid |= dataset.read_masks(band, **options) >= 128
    return None if valid.all() else valid.astype(np.uint8)


def _read_error(image: Image, rectangle: Window, error: Exception) -> ReadError:
    column, row, width, height = rectangle.flatten()
    place = f"{width} x {height} pixels at column {column}, row {row}"
    return ReadError(f"{image.path}: {place} cannot be read: {gdal_words(error)}")
