"""From footprints to windows: float rectangles in the pixel space of one image.

Footprints are transformed, imagery never. Everything is vectorised; nothing here opens a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from edge_infer.grid import transform_points, unwrap

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pyproj import CRS

    from edge_infer.grid import Grid
    from edge_infer.manifest import ChipContract

LONGEST_PIXELS = 24_576
"""Longer side of a window where the shorter one has `chip_pixels`. Where pixels are stretched beyond that (in
images in degrees half a degree off a pole, for chips of 224) they show nothing that a chip could hold."""

SIDES_PIXELS = (2.0**-20, 2.0**31)
"""A window of less, or of more than any raster has, comes from absurd figures and not from a building."""


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """What the chips of n footprints cover in one image; NaN where a footprint has no place in it."""

    boxes: NDArray[np.float64]
    """(n, 4): x, y (upper left corner), width, height, in full-resolution pixels; may leave the image."""
    gsd_metres: NDArray[np.float64]
    """(n,): true ground metres a pixel along the coarser axis."""


def pixel_bounds(geometries: NDArray[Any], source_crs: CRS, grid: Grid) -> NDArray[np.float64]:
    """Find the bounds of geometries in the pixel space of an image.

    geometries: object, (n,), shapely geometries or None, in `source_crs`. Result: float64, (n, 4): least
    column, least row, greatest column, greatest row over all vertices; NaN where a geometry is null or empty
    or one of its vertices cannot be transformed.
    """
    bounds = np.full((len(geometries), 4), np.nan)
    counts = shapely.get_num_coordinates(geometries)
    filled = np.flatnonzero(counts)
    if filled.size == 0:
        return bounds
    column, row = _to_pixels(shapely.get_coordinates(geometries), source_crs, grid).T
    starts = np.concatenate([[0], np.cumsum(counts[filled])[:-1]])
    bounds[filled, 0] = np.minimum.reduceat(column, starts)
    bounds[filled, 1] = np.minimum.reduceat(row, starts)
    bounds[filled, 2] = np.maximum.reduceat(column, starts)
    bounds[filled, 3] = np.maximum.reduceat(row, starts)
    bounds[np.isnan(bounds).any(axis=1)] = np.nan
    return bounds


def pixel_geometries(geometries: NDArray[Any], source_crs: CRS, grid: Grid) -> NDArray[Any]:
    """Bring geometries, object (n,), into the pixel space of an image: x is the column, y the row."""
    moved: NDArray[Any] = shapely.transform(geometries, lambda points: _to_pixels(points, source_crs, grid))
    return moved


def _to_pixels(points: NDArray[np.float64], source_crs: CRS, grid: Grid) -> NDArray[np.float64]:
    """(m, 2) coordinates in `source_crs` to (m, 2) columns and rows; NaN where there is no way."""
    x, y = (np.ascontiguousarray(axis) for axis in points.T)
    x, y = transform_points(source_crs, grid.crs, x, y)
    middle, _ = grid.to_crs(np.array(grid.width / 2), np.array(grid.height / 2))
    return np.column_stack(grid.to_pixels(unwrap(x, grid.crs, float(middle)), y))


def ground_windows(
    bounds: NDArray[np.float64], metres: NDArray[np.float64], contract: ChipContract
) -> Windows:
    """Lay windows that are square on the ground, centred on the middle of the bounds.

    bounds: (n, 4), as `pixel_bounds`; metres: (n, 2), as `metres_per_pixel` at the middle of the bounds.
    `fixed` mode: side `ground_metres`. `footprint` mode: the longer side of the bounds on the ground times
    `context_factor`, with `buffer_metres` on each side, and at least `ground_metres`. NaN where that is not
    within `LONGEST_PIXELS` and `SIDES_PIXELS`, so that every window is one that the sampler takes.
    """
    smallest, largest = SIDES_PIXELS
    stretch = LONGEST_PIXELS / contract.chip_pixels
    side = np.full(len(bounds), contract.ground_metres)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        if contract.window_mode == "footprint":
            extent = ((bounds[:, 2:] - bounds[:, :2]) * metres).max(axis=1)
            side = np.maximum(side, extent * contract.context_factor + 2 * contract.buffer_metres)
        size = side[:, None] / metres
        least, greatest = size.min(axis=1), size.max(axis=1)
        sound = (smallest <= least) & (greatest <= np.minimum(least * stretch, largest))
    size[~sound] = np.nan
    centre = (bounds[:, :2] + bounds[:, 2:]) / 2
    return Windows(np.hstack([centre - size / 2, size]), metres.max(axis=1))
