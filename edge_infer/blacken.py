"""Chips that show the footprint and nothing around it, for models that were trained so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import shapely

from edge_infer.windows import pixel_geometries

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge_infer.coverage import Coverage
    from edge_infer.imagery import Image


def blacken(
    chips: npt.NDArray[np.uint8],
    boxes: npt.NDArray[np.float64],
    rows: npt.NDArray[np.int64],
    coverage: Coverage,
    image: Image,
) -> None:
    """Set every pixel to 0 whose centre does not lie within the chip's own footprint.

    Args:
        chips: uint8, (k, S, S, C); changed in place.
        boxes: float64, (k, 4): their windows in the image, x, y, width, height.
        rows: int64, (k,): positions of their footprints in `coverage`.
        coverage: knows the footprints.
        image: the one that all of these chips are cut from.

    """
    footprints = coverage.footprints
    outlines = pixel_geometries(footprints.geometries[rows], footprints.crs, image.grid)
    shapely.prepare(outlines)
    side = chips.shape[1]
    # Not by rasterio's geometry_mask: how it silences a warning of its own is not safe among threads.
    column, row = np.meshgrid(*2 * [(np.arange(side) + 0.5) / side])
    for chip, (x, y, width, height), outline in zip(chips, boxes.tolist(), outlines, strict=True):
        chip[~shapely.intersects_xy(outline, x + column * width, y + row * height)] = 0
