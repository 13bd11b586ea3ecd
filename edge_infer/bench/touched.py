"""Which blocks of the imagery a set of windows touches: what must be decoded once, and not more often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import rasterio
from rasterio.errors import RasterioError

from edge_infer.imagery.environment import gdal_environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edge_infer.imagery import Image
    from edge_infer.plan import TileJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Touched:
    """Blocks that at least one window needs, each counted once."""

    blocks: int
    pixels: int
    """Of these blocks, each whole, at the level that they are read from; bands counted once."""
    bytes: int | None
    """That they take in their files; None where GDAL does not tell (only GeoTIFF does)."""


def find_touched(jobs: Sequence[TileJob], images: Sequence[Image], chip_pixels: int) -> Touched:
    """Count the blocks under the windows of `jobs`, with what the sampler's filter reaches beyond them."""
    windows: dict[tuple[int, int], list[TileJob]] = {}
    for job in jobs:
        windows.setdefault((job.image, _factor(images[job.image], job.decimation)), []).append(job)
    blocks = pixels = 0
    size: int | None = 0
    with gdal_environment():
        for (number, factor), those in windows.items():
            image = images[number]
            reach = [
                np.maximum(job.decimation, job.boxes[:, 2:] / (2 * chip_pixels)) + job.decimation
                for job in those
            ]
            boxes = np.concatenate([job.boxes for job in those])
            sides = _sides(image, factor)
            places = _blocks(boxes, np.concatenate(reach), image, np.array(sides) * factor)
            blocks += len(places)
            pixels += len(places) * sides[0] * sides[1]
            taken = _bytes(image, factor, places)
            size = None if size is None or taken is None else size + taken
    return Touched(blocks=blocks, pixels=pixels, bytes=size)


def _factor(image: Image, decimation: int) -> int:
    """Factor of the coarsest overview that is no coarser than wanted; 1 for the image itself."""
    return max((factor for factor in image.overviews if factor <= decimation), default=1)


def _blocks(
    boxes: NDArray[np.float64], reach: NDArray[np.float64], image: Image, side: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Column and row, (m, 2), of each block of `side` touched by windows, (n, 4); full-resolution pixels."""
    last = -(-np.array([image.grid.width, image.grid.height]) // side) - 1
    low = np.clip(np.floor((boxes[:, :2] - reach) / side), 0, last).astype(np.int64)
    high = np.clip(np.ceil((boxes[:, :2] + boxes[:, 2:] + reach) / side) - 1, low, last).astype(np.int64)
    most = (high - low).max(axis=0)
    found = [
        np.unique(place[(place <= high).all(axis=1)], axis=0)
        for column in range(int(most[0]) + 1)
        for row in range(int(most[1]) + 1)
        for place in [low + np.array([column, row])]
    ]
    return np.unique(np.concatenate(found), axis=0)


def _sides(image: Image, factor: int) -> tuple[int, int]:
    """Columns and rows of a block, in pixels of the level."""
    if factor == 1:
        return image.block_width, image.block_height
    with rasterio.open(image.path, overview_level=image.overviews.index(factor)) as dataset:
        height, width = dataset.block_shapes[image.band_indexes[0] - 1]
    return int(width), int(height)


def _bytes(image: Image, factor: int, places: NDArray[np.int64]) -> int | None:
    """Bytes of blocks in the file; GDAL tells them as metadata of GeoTIFF's first band."""
    level = None if factor == 1 else image.overviews.index(factor)
    total = 0
    try:
        with rasterio.open(image.path) as dataset:
            planes = image.band_indexes if dataset.interleaving.name == "band" else image.band_indexes[:1]
            for column, row in places.tolist():
                for band in planes:
                    told = dataset.get_tag_item(f"BLOCK_SIZE_{column}_{row}", "TIFF", bidx=band, ovr=level)
                    total += int(told or 0)
    except (RasterioError, ValueError, AttributeError):
        return None
    return total or None
