"""Which rectangles of the imagery to decode, in which order, and whose chips each of them holds.

Windows of one image that want the same decimation are sorted along a Z-curve over its blocks. On that curve
every node of a binary tree of cells (halved by turns along columns and rows) is one run of windows. From the
leaves up, two siblings become one job where decoding them together costs no more than apart and the result
fits the budget. Dense scenes end in few large jobs, scattered footprints in small ones. Pure arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edge_infer.sizes import TILE_PIXELS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edge_infer.imagery import Image

JOB_COST_PIXELS = 32_768
"""What a job costs beyond its pixels (calls, seeks), in pixels that could be decoded in that time."""

STRIPE_PIXELS = 8_192
"""Jobs run row by row down stripes of so many tile columns, so that what two rows of jobs share of a stripe
(20 Mpx) is still in GDAL's block cache when the second one needs it."""


class Placed(Protocol):
    """Footprints with the image and the window that each is judged on."""

    @property
    def image(self) -> NDArray[np.int32]:
        """(n,): index of the image, -1 for none."""

    @property
    def boxes(self) -> NDArray[np.float64]:
        """(n, 4): x, y, width, height in full-resolution pixels of that image."""


@dataclass(frozen=True, slots=True, eq=False)
class TileJob:
    """One rectangle to decode, and the windows to cut from it."""

    image: int
    """Index of the image."""
    column: int
    """Left edge in full-resolution pixels; the rectangle lies inside the image."""
    row: int
    """Upper edge."""
    width: int
    """Columns at full resolution."""
    height: int
    """Rows at full resolution."""
    decimation: int
    """Power of two: about so many pixels of the image per pixel of the tile, along each axis; with overviews
    it may be fewer, down to half."""
    rows: NDArray[np.int64]
    """(k,): positions of the footprints."""
    boxes: NDArray[np.float64]
    """(k, 4): their windows, x, y, width, height in full-resolution pixels."""


def plan(
    coverage: Placed,
    images: Sequence[Image],
    chip_pixels: int,
    rows: NDArray[np.int64],
    *,
    budget_pixels: int = TILE_PIXELS,
) -> list[TileJob]:
    """Group windows into tile jobs, in an order in which neighbours follow each other.

    The decimation of a job is the largest power of two that leaves its windows at least `chip_pixels` wide
    and high; larger only for a window that does not fit the budget otherwise. A rectangle holds the
    parts of its windows that lie inside the image, with a margin for the sampler's filter.

    Args:
        coverage: image and window of every footprint.
        images: the images that `coverage` refers to.
        chip_pixels: side of a chip.
        rows: (k,), positions of the footprints to plan for; each has an image.
        budget_pixels: most pixels of one tile.

    Returns:
        The jobs; each of `rows` stands in exactly one.

    """
    if len(rows) == 0:
        return []
    image = coverage.image[rows].astype(np.int64)
    boxes = coverage.boxes[rows]
    if (image < 0).any() or not np.isfinite(boxes).all():
        raise ValueError("only footprints that have an image and a window can be planned for")
    decimation, rectangles = _decimate(boxes, _sizes(images)[image], chip_pixels, budget_pixels)
    block = _blocks(images)[image] * decimation[:, None]
    cell = _cells(images, chip_pixels, budget_pixels)[image] * decimation[:, None]
    order, starts = _group(image, decimation, rectangles, block, cell, budget_pixels)
    rows, boxes, rectangles = rows[order], boxes[order], _unite(rectangles[order], starts)
    stops = np.append(starts[1:], len(order))
    first = order[starts]
    left, top = rectangles[:, 0], rectangles[:, 1]
    stripe = np.maximum(STRIPE_PIXELS * decimation, block[:, 0])[first]
    scan = np.lexsort((left, top // cell[first, 1], left // stripe, image[first]))
    return [
        TileJob(
            image=int(image[first[job]]),
            column=int(rectangles[job, 0]),
            row=int(rectangles[job, 1]),
            width=int(rectangles[job, 2] - rectangles[job, 0]),
            height=int(rectangles[job, 3] - rectangles[job, 1]),
            decimation=int(decimation[first[job]]),
            rows=rows[starts[job] : stops[job]],
            boxes=boxes[starts[job] : stops[job]],
        )
        for job in scan
    ]


def _decimate(
    boxes: NDArray[np.float64], sizes: NDArray[np.int64], chip_pixels: int, budget_pixels: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose the decimation of each window, and the rectangle it needs at that: (n,) and (n, 4)."""
    ratio = np.maximum(boxes[:, 2:].min(axis=1) / chip_pixels, 1.0)
    decimation = np.int64(1) << np.minimum(np.frexp(ratio)[1] - 1, 31).astype(np.int64)
    while True:
        rectangles = _rectangles(boxes, sizes, decimation, chip_pixels)
        large = _tile_pixels(rectangles, decimation) > budget_pixels
        if not large.any():
            return decimation, rectangles
        decimation[large] *= 2


def _rectangles(
    boxes: NDArray[np.float64], sizes: NDArray[np.int64], decimation: NDArray[np.int64], chip_pixels: int
) -> NDArray[np.int64]:
    """Left, top, right, bottom of what each window needs, on its tile's pixel grid, inside the image."""
    step = decimation[:, None].astype(np.float64)
    # A triangle filter reaches half a chip pixel beyond the box, or one tile pixel; one more for rounding.
    margin = step + np.maximum(step, boxes[:, 2:] / (2 * chip_pixels))
    low = np.floor((boxes[:, :2] - margin) / step) * step
    high = np.ceil((boxes[:, :2] + boxes[:, 2:] + margin) / step) * step
    low = np.clip(low, 0, (sizes - 1) // decimation[:, None] * step)
    high = np.clip(high, np.minimum(low + step, sizes), sizes)
    return np.hstack([low, high]).astype(np.int64)


def _group(
    image: NDArray[np.int64],
    decimation: NDArray[np.int64],
    rectangles: NDArray[np.int64],
    block: NDArray[np.int64],
    cell: NDArray[np.int64],
    budget_pixels: int,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Order the windows and cut the order into jobs.

    Returns the order, (n,), and where in it each job begins.
    """
    place = rectangles[:, :2] // cell
    curve = _spread_bits(place[:, 0]) | _spread_bits(place[:, 1]) << np.uint64(1)
    order = np.lexsort((curve, decimation, image))
    layer = np.cumsum(_changes(image[order], decimation[order]))
    leaves = np.flatnonzero(_changes(layer, curve[order]))

    layer, curve = layer[leaves], curve[order][leaves]
    block, decimation = block[order][leaves], decimation[order]
    bounds = _unite(rectangles[order], leaves)
    node_decimation = decimation[leaves]
    begins = np.ones(len(leaves), dtype=bool)
    first = np.arange(len(leaves))  # of each node of the present level, its first leaf
    best = _cost(bounds, block, node_decimation)
    crowded = _tile_pixels(bounds, node_decimation) > budget_pixels
    best[crowded] = np.inf
    while curve.any():
        curve = curve >> np.uint64(1)
        parents = np.flatnonzero(_changes(layer, curve))
        bounds = _unite(bounds, parents)
        apart = np.add.reduceat(best, parents)
        first, layer, curve = first[parents], layer[parents], curve[parents]
        together = _cost(bounds, block[first], node_decimation[first])
        merge = (together <= apart) & (_tile_pixels(bounds, node_decimation[first]) <= budget_pixels)
        best = np.where(merge, together, apart)
        inside = np.repeat(merge, np.diff(first, append=len(begins)))
        inside[first] = False
        begins &= ~inside

    cut = np.zeros(len(order), dtype=bool)
    cut[leaves[begins]] = True
    # Windows of one cell that do not fit the budget together, though each does: a job each.
    cut |= np.repeat(crowded, np.diff(leaves, append=len(order)))
    return order, np.flatnonzero(cut)


def _cost(
    bounds: NDArray[np.int64], block: NDArray[np.int64], decimation: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Pixels to decode for each rectangle, which is by whole blocks, and the cost of a job."""
    blocks = (bounds[:, 2:] - 1) // block - bounds[:, :2] // block + 1
    pixels = (blocks * (block / decimation[:, None])).prod(axis=1)
    return np.asarray(pixels + JOB_COST_PIXELS, dtype=np.float64)


def _tile_pixels(rectangles: NDArray[np.int64], decimation: NDArray[np.int64]) -> NDArray[np.int64]:
    size = -(-(rectangles[:, 2:] - rectangles[:, :2]) // decimation[:, None])
    return np.asarray(size[:, 0] * size[:, 1], dtype=np.int64)


def _unite(rectangles: NDArray[np.int64], starts: NDArray[np.intp]) -> NDArray[np.int64]:
    """Bounds of runs of rectangles."""
    return np.hstack(
        [
            np.minimum.reduceat(rectangles[:, :2], starts, axis=0),
            np.maximum.reduceat(rectangles[:, 2:], starts, axis=0),
        ]
    )


def _changes(*keys: NDArray[Any]) -> NDArray[np.bool_]:
    """Mark where any of the keys, (n,) each, differs from its predecessor, and the first."""
    changed = np.ones(len(keys[0]), dtype=bool)
    changed[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return changed


def _spread_bits(values: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Put a zero bit between any two of 32 bits, which interleaves columns and rows to a Z-curve."""
    bits = values.astype(np.uint64)
    for shift, mask in (
        (16, 0x0000FFFF0000FFFF),
        (8, 0x00FF00FF00FF00FF),
        (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    ):
        bits = (bits | bits << np.uint64(shift)) & np.uint64(mask)
    return bits


def _sizes(images: Sequence[Image]) -> NDArray[np.int64]:
    return np.array([(image.grid.width, image.grid.height) for image in images], dtype=np.int64)


def _blocks(images: Sequence[Image]) -> NDArray[np.int64]:
    return np.array([(image.block_width, image.block_height) for image in images], dtype=np.int64)


def _cells(images: Sequence[Image], chip_pixels: int, budget_pixels: int) -> NDArray[np.int64]:
    """Columns and rows of the least cells, in tile pixels."""
    return np.array(
        [_least_cell(image.block_width, image.block_height, chip_pixels, budget_pixels) for image in images],
        dtype=np.int64,
    )


@lru_cache(maxsize=256)
def _least_cell(block_width: int, block_height: int, chip_pixels: int, budget_pixels: int) -> tuple[int, int]:
    """Whole blocks of at least 64 pixels a side; parts of them where a tile cannot hold one and a window."""
    cell = [-(-64 // side) * side for side in (block_width, block_height)]
    reach = 2 * chip_pixels + 4  # of a window below the next decimation, with its margins
    while (cell[0] + reach) * (cell[1] + reach) > budget_pixels and max(cell) > 64:
        wider = cell.index(max(cell))
        cell[wider] = -(-cell[wider] // 2)
    return cell[0], cell[1]
