"""How much of a footprint itself, not only of its window, lies on valid pixels of its image.

The share of its own area, measured at a lattice of points over its bounds: of those inside the footprint, how
many lie on a valid pixel. Points and lines have no area: they are covered if the middle of their bounds is.
Footprints that lie wholly on the image and on no hole are seen to be covered without any of this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from edge_infer.errors import ReadError
from edge_infer.imagery import Mask
from edge_infer.windows import pixel_geometries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_infer.coverage import Coverage
    from edge_infer.imagery import Image, Reader, Tile

LATTICE = 32
"""Points a side: the share is right to half a per cent on average, to a few for long thin shapes askew."""

MOST_PIXELS = 2**24
"""Of a larger footprint (a district, not a building) only what its window shows is looked at."""

PIECE = 256
"""Footprints measured at a time: a quarter of a million points."""


def covered_fraction(
    coverage: Coverage, rows: NDArray[np.int64], image: Image, tile: Tile, reader: Reader
) -> NDArray[np.float32]:
    """Measure the footprints at `rows`, (k,), all judged on `image`, whose windows lie on `tile`.

    What of a footprint lies beyond its window is looked up with `reader`; what cannot be read is not valid.
    Result: float32, (k,), 0 to 1.
    """
    bounds = coverage.bounds[rows]
    size = np.array([image.grid.width, image.grid.height] * 2)
    on_image = np.clip(bounds, 0, size)
    partly = (on_image != bounds).any(axis=1)
    masks: list[tuple[Mask, NDArray[np.intp]]] = []
    beyond = np.zeros(len(rows), dtype=bool)
    if image.has_mask:
        # Its own window, not the tile: that depends on which footprints are still to do.
        low, high = coverage.boxes[rows, :2], coverage.boxes[rows, :2] + coverage.boxes[rows, 2:]
        beyond |= ((on_image[:, :2] < low) | (on_image[:, 2:] > high)).any(axis=1)
        huge = beyond & ((on_image[:, 2:] - on_image[:, :2]).prod(axis=1) > MOST_PIXELS)
        bounds[huge] = on_image[huge] = np.clip(on_image, np.tile(low, 2), np.tile(high, 2))[huge]
        beyond &= ~huge
        here = Mask(tile.valid, tile.column, tile.row, tile.scale_x, tile.scale_y)
        if tile.valid is not None:
            partly |= _holed(on_image, here)
        masks += [(_read_mask(reader, image, on_image[k]), np.array([k])) for k in np.flatnonzero(beyond)]
    else:
        here = Mask(None, 0, 0, 1, 1)
    masks.append((here, np.flatnonzero(partly & ~beyond)))

    share = np.ones(len(rows), dtype=np.float32)
    crs, geometries = coverage.footprints.crs, coverage.footprints.geometries
    for mask, looked_at in masks:
        for start in range(0, len(looked_at), PIECE):
            piece = looked_at[start : start + PIECE]
            shapes = pixel_geometries(geometries[rows[piece]], crs, image.grid)
            share[piece] = _measure(shapes, bounds[piece], mask, size[:2])
    return share


def _holed(bounds: NDArray[np.float64], mask: Mask) -> NDArray[np.bool_]:
    """Mark bounds, (k, 4), with an invalid pixel inside them."""
    assert mask.valid is not None
    height, width = mask.valid.shape
    scaled = (bounds - [mask.column, mask.row] * 2) / ([mask.scale_x, mask.scale_y] * 2)
    low = np.clip(np.floor(scaled[:, :2]), 0, (width - 1, height - 1)).astype(np.intp)
    high = np.ceil(scaled[:, 2:]).astype(np.intp)
    return np.array(
        [
            not mask.valid[top : max(bottom, top + 1), left : max(right, left + 1)].all()
            for (left, top), (right, bottom) in zip(low.tolist(), high.tolist(), strict=True)
        ],
        dtype=bool,
    )


def _read_mask(reader: Reader, image: Image, bounds: NDArray[np.float64]) -> Mask:
    """Read what is valid within bounds, (4,), on the image, no finer than the lattice can tell."""
    size = np.array([image.grid.width, image.grid.height])
    low = np.minimum(np.floor(bounds[:2]).astype(np.int64), size - 1)
    high = np.maximum(np.ceil(bounds[2:]).astype(np.int64), low + 1)
    (column, row), (width, height) = low.tolist(), (high - low).tolist()
    decimation = 1 << max(0, (max(width, height) // (2 * LATTICE)).bit_length() - 1)
    try:
        return reader.read_valid(
            image, column=column, row=row, width=width, height=height, decimation=decimation
        )
    except ReadError:
        return Mask(np.zeros((1, 1), dtype=np.uint8), column, row, width, height)


def _valid_at(mask: Mask, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Look up points, in pixels of the image, that lie in the rectangle of the mask."""
    if mask.valid is None:
        return np.ones(x.shape, dtype=bool)
    height, width = mask.valid.shape
    column = np.clip((x - mask.column) / mask.scale_x, 0, width - 1).astype(np.intp)
    row = np.clip((y - mask.row) / mask.scale_y, 0, height - 1).astype(np.intp)
    return np.asarray(mask.valid[row, column] > 0)


def _measure(
    shapes: NDArray[Any], bounds: NDArray[np.float64], mask: Mask, size: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Share of each shape, (k,) in pixels, that lies on the image and there on valid pixels."""
    steps = (np.arange(LATTICE) + 0.5) / LATTICE
    right, down = (axis.ravel() for axis in np.meshgrid(steps, steps))
    extent = bounds[:, 2:] - bounds[:, :2]
    x = bounds[:, :1] + extent[:, :1] * right
    y = bounds[:, 1:2] + extent[:, 1:] * down
    shapely.prepare(shapes)
    inside = shapely.contains_xy(shapes[:, None], x, y)
    inside[shapely.get_dimensions(shapes) < 2] = False
    without = ~inside.any(axis=1)  # no area, or a sliver between the points
    x[without, 0], y[without, 0] = (bounds[without, :2] + bounds[without, 2:]).T / 2
    inside[without, 0] = True
    valid = inside & (x >= 0) & (y >= 0) & (x < size[0]) & (y < size[1])
    valid[valid] = _valid_at(mask, x[valid], y[valid])
    return np.asarray(valid.sum(axis=1) / inside.sum(axis=1))
