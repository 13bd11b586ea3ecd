"""Which image each footprint is judged on.

An image covers a footprint when the middle of the footprint's bounds lies on it. Among the images that cover
one and are fine enough for the model, the order of preference is

1. the largest valid share of the footprint's window (shares within one per cent count as equal),
2. the finer ground sample distance (again within one per cent),
3. the newer date (an image without one counts as oldest),
4. the image named first, those of a folder in the order of their paths.

The valid share is what lies on the image and, where images with nodata, alpha or a mask compete, what holds
data by a coarse look at those masks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from edge_infer import reasons
from edge_infer.errors import ReadError
from edge_infer.footprints import PIECE
from edge_infer.grid import full_turn, metres_per_pixel, transform_points, transformation_accuracy, unwrap
from edge_infer.imagery import GSD_TOLERANCE, Reader
from edge_infer.plan import TileJob, plan
from edge_infer.windows import ground_windows, pixel_bounds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from pyproj import CRS

    from edge_infer.footprints import Footprints
    from edge_infer.imagery import Grid, Image, Imagery, Mask
    from edge_infer.manifest import ChipContract

SHARE_TOLERANCE = 0.01
"""Valid shares that differ by no more count as equal."""

DOUBTFUL_METRES = 5.0
"""A house is some ten metres wide: where datums fit no better than this, a window may show the neighbour."""

MOST_OF_IMAGE = 16_384
"""A window so many times as wide or high as its image would be judged on next to nothing."""

WHOLE_PLANE = 1e300
"""Reaches beyond every coordinate, and can be added and halved as infinity cannot."""

PREVIEW_PIXELS = 16
"""Masks are looked at with windows of 16 to 32 pixels a side."""


@dataclass(frozen=True, slots=True, eq=False)
class Coverage:
    """For n footprints, the image and the window that each is judged on."""

    image: NDArray[np.int32]
    """(n,): index of the image; -1 where none covers the footprint."""
    boxes: NDArray[np.float64]
    """(n, 4): window in that image, x, y, width, height in full-resolution pixels; NaN without an image."""
    gsd_metres: NDArray[np.float64]
    """(n,): true ground metres a pixel there, along the coarser axis; NaN without an image."""
    status: NDArray[Any]
    """(n,), object: `pending`, `outside_imagery`, `too_coarse` (with the image that is) or `bad_geometry`."""
    reason: NDArray[Any]
    """(n,), object: why, in a few words; None where the status is `pending`."""
    bounds: NDArray[np.float64]
    """(n, 4): of the footprint itself, as `pixel_bounds`; NaN without an image."""
    footprints: Footprints
    """The n footprints."""


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """Footprints with the images that cover them, m pairs sorted by footprint, then image."""

    footprint: NDArray[np.int64]
    """(m,)"""
    image: NDArray[np.int32]
    """(m,)"""
    boxes: NDArray[np.float64]
    """(m, 4)"""
    gsd_metres: NDArray[np.float64]
    """(m,)"""
    bounds: NDArray[np.float64]
    """(m, 4)"""

    def take(self, chosen: NDArray[Any]) -> _Pairs:
        return _Pairs(*(getattr(self, field.name)[chosen] for field in fields(self)))


def cover(footprints: Footprints, imagery: Imagery, contract: ChipContract) -> Coverage:
    """Choose the image of each footprint by the rule at the top of this module."""
    count = len(footprints.geometries)
    pairs = _pair(footprints, imagery.images, contract)
    # False for NaN, too.
    known = np.all(pairs.boxes[:, 2:] <= _sizes(pairs, imagery.images) * MOST_OF_IMAGE, axis=1)
    nowhere, pairs = pairs.footprint[~known], pairs if known.all() else pairs.take(known)
    fine = pairs.gsd_metres <= contract.coarsest_gsd_metres * GSD_TOLERANCE
    chosen = _choose(pairs, fine, imagery.images)
    best = pairs.take(chosen)

    coverage = Coverage(
        image=np.full(count, -1, dtype=np.int32),
        boxes=np.full((count, 4), np.nan),
        gsd_metres=np.full(count, np.nan),
        status=np.full(count, "outside_imagery", dtype=object),
        reason=np.full(count, reasons.outside(len(imagery.skipped)), dtype=object),
        bounds=np.full((count, 4), np.nan),
        footprints=footprints,
    )
    coverage.reason[nowhere] = reasons.NO_WINDOW
    coverage.image[best.footprint] = best.image
    coverage.boxes[best.footprint] = best.boxes
    coverage.gsd_metres[best.footprint] = best.gsd_metres
    coverage.bounds[best.footprint] = best.bounds
    coverage.status[best.footprint] = "pending"
    coverage.reason[best.footprint] = None
    coarse = best.take(~fine[chosen])
    coverage.status[coarse.footprint] = "too_coarse"
    coverage.reason[coarse.footprint] = [
        reasons.too_coarse(gsd, contract.coarsest_gsd_metres) for gsd in coarse.gsd_metres.tolist()
    ]
    coverage.status[~footprints.usable] = "bad_geometry"
    coverage.reason[~footprints.usable] = reasons.bad_geometries(footprints.geometries[~footprints.usable])
    if contract.blacken:
        flat = footprints.usable & (footprints.measure(shapely.get_dimensions) < 2)
        coverage.status[flat] = "bad_geometry"
        coverage.reason[flat] = reasons.NO_AREA
    return coverage


def doubtful_places(coverage: Coverage, images: Sequence[Image]) -> list[str]:
    """Say where footprints are placed on images no better than `DOUBTFUL_METRES`, as datums differ.

    Judged at one footprint for each reference system of the images.
    """
    notes: dict[str, str | None] = {}
    source = coverage.footprints.crs
    rows = np.flatnonzero(coverage.image >= 0)
    used, first = np.unique(coverage.image[rows], return_index=True)
    for number, row in zip(used.tolist(), rows[first].tolist(), strict=True):
        crs = images[number].grid.crs
        if crs.srs in notes:
            continue
        ((west, south, east, north),) = shapely.bounds(coverage.footprints.geometries[row : row + 1])
        accuracy = transformation_accuracy(source, crs, (west + east) / 2, (south + north) / 2)
        doubtful = accuracy is None or accuracy > DOUBTFUL_METRES
        notes[crs.srs] = reasons.doubtful_place(source.name, crs.name, accuracy) if doubtful else None
    return [note for note in notes.values() if note]


def _pair(footprints: Footprints, images: Sequence[Image], contract: ChipContract) -> _Pairs:
    """Find all images whose pixels hold the middle of a footprint, with its window there."""
    nothing = np.empty((0, 4))
    found = [_Pairs(np.empty(0, np.int64), np.empty(0, np.int32), nothing, np.empty(0), nothing)]
    for index, near in _near(footprints, [image.grid for image in images]):
        for start in range(0, len(near), PIECE):
            piece = near[start : start + PIECE]
            found.append(_place(footprints, piece, index, images[index].grid, contract))
    footprint, image = (
        np.concatenate([getattr(part, name) for part in found]) for name in ("footprint", "image")
    )
    order = np.lexsort((image, footprint))
    return _Pairs(
        *(np.concatenate([getattr(part, field.name) for part in found])[order] for field in fields(_Pairs))
    )


def _place(
    footprints: Footprints, rows: NDArray[np.int64], index: int, grid: Grid, contract: ChipContract
) -> _Pairs:
    """Give the windows of those footprints whose middle lies on one image; NaN where none makes sense."""
    bounds = pixel_bounds(footprints.geometries[rows], footprints.crs, grid)
    centre = (bounds[:, :2] + bounds[:, 2:]) / 2
    inside = ((centre >= 0) & (centre < (grid.width, grid.height))).all(axis=1)
    windows = ground_windows(bounds[inside], metres_per_pixel(grid, centre[inside]), contract)
    covered = rows[inside]
    return _Pairs(
        covered,
        np.full(len(covered), index, dtype=np.int32),
        windows.boxes,
        windows.gsd_metres,
        bounds[inside],
    )


def _near(footprints: Footprints, grids: Sequence[Grid]) -> list[tuple[int, NDArray[np.int64]]]:
    """For each image that may cover some footprints, which these are, by rough bounds only."""
    usable = np.flatnonzero(footprints.usable)
    turn = full_turn(footprints.crs)
    shifts = np.array([[0.0, 0, 0, 0]] if turn is None else [[s, 0, s, 0] for s in (0, turn, -turn)])
    outlines = np.concatenate([_outline(grid, footprints.crs) + shifts for grid in grids])
    tree = shapely.STRtree(shapely.box(*outlines.T))
    found = [np.empty((2, 0), dtype=np.int64)]
    for start in range(0, len(usable), PIECE):
        piece = usable[start : start + PIECE]
        row, box = tree.query(footprints.geometries[piece])
        found.append(np.stack([box // len(shifts), piece[row]]))
    image, row = np.concatenate(found, axis=1)
    order = np.lexsort((row, image))
    image, row = image[order], row[order]
    fresh = (np.diff(image, prepend=-1) > 0) | (np.diff(row, prepend=-1) > 0)  # not its other turn once more
    image, row = image[fresh], row[fresh]
    starts = np.flatnonzero(np.diff(image, prepend=-1))
    return list(zip(image[starts].tolist(), np.split(row, starts[1:]), strict=False))


def _outline(grid: Grid, crs: CRS) -> NDArray[np.float64]:
    """Generous bounds of an image in another reference system: (4,), the whole plane where that fails."""
    column, row = np.meshgrid(np.linspace(0, grid.width, 21), np.linspace(0, grid.height, 21))
    x, y = transform_points(grid.crs, crs, *grid.to_crs(column.ravel(), row.ravel()))
    if np.isnan(x).any():
        return np.array([-WHOLE_PLANE, -WHOLE_PLANE, WHOLE_PLANE, WHOLE_PLANE])
    x = unwrap(x, crs, float(x[len(x) // 2]))
    low, high = np.array([x.min(), y.min()]), np.array([x.max(), y.max()])
    margin = (high - low) / 20
    return np.concatenate([low - margin, high + margin])


def _choose(pairs: _Pairs, fine: NDArray[np.bool_], images: Sequence[Image]) -> NDArray[np.intp]:
    """Give the place in `pairs` of the best pair of each footprint that has one."""
    kept = np.flatnonzero(fine == _greatest(pairs.footprint, fine))  # coarse ones only where all are

    share = _valid_share(pairs.take(kept), images)
    kept = kept[share >= _greatest(pairs.footprint[kept], share) - SHARE_TOLERANCE]

    fineness = 1 / pairs.gsd_metres[kept]
    kept = kept[fineness * GSD_TOLERANCE >= _greatest(pairs.footprint[kept], fineness)]

    ranks = np.unique([image.date or "" for image in images], return_inverse=True)[1]
    newness = ranks[pairs.image[kept]]
    kept = kept[newness == _greatest(pairs.footprint[kept], newness)]

    first = np.unique(pairs.footprint[kept], return_index=True)[1]
    return np.asarray(kept[first])


def _greatest(footprint: NDArray[np.int64], values: NDArray[Any]) -> NDArray[Any]:
    """Spread the greatest value of each footprint over its pairs, which stand together."""
    if len(footprint) == 0:
        return values
    starts = np.flatnonzero(np.diff(footprint, prepend=-1))
    greatest: NDArray[Any] = np.maximum.reduceat(values, starts)
    return np.repeat(greatest, np.diff(starts, append=len(footprint)))


def _valid_share(pairs: _Pairs, images: Sequence[Image]) -> NDArray[np.float64]:
    """Share of each window that lies on its image and, where it matters, holds data."""
    size = _sizes(pairs, images)
    low = np.clip(pairs.boxes[:, :2], 0, size)
    high = np.clip(pairs.boxes[:, :2] + pairs.boxes[:, 2:], 0, size)
    share = np.asarray(((high - low) / pairs.boxes[:, 2:]).prod(axis=1), dtype=np.float64)

    masked = np.array([image.has_mask for image in images])[pairs.image]
    rivals = _greatest(pairs.footprint, pairs.image) != pairs.image
    contested = _greatest(pairs.footprint, rivals)
    looked_at = np.flatnonzero(masked & contested)
    if looked_at.size:
        with Reader() as reader:
            _look_at_masks(reader, pairs, images, looked_at, share)
    return share


def _sizes(pairs: _Pairs, images: Sequence[Image]) -> NDArray[np.int64]:
    """Columns and rows of the image of each pair, (m, 2)."""
    return np.array([(image.grid.width, image.grid.height) for image in images], dtype=np.int64)[pairs.image]


def _look_at_masks(
    reader: Reader,
    pairs: _Pairs,
    images: Sequence[Image],
    rows: NDArray[np.int64],
    share: NDArray[np.float64],
) -> None:
    """Write the share that holds data: none where it cannot be read, so that another image is preferred."""
    for job in plan(pairs, images, PREVIEW_PIXELS, rows):
        seen = _try_valid_means(reader, images[job.image], job, share[job.rows])
        if seen is not None:
            share[job.rows] = seen
        elif len(job.rows) == 1:
            share[job.rows] = 0
        else:
            middle = len(job.rows) // 2
            _look_at_masks(reader, pairs, images, job.rows[:middle], share)
            _look_at_masks(reader, pairs, images, job.rows[middle:], share)


def _try_valid_means(
    reader: Reader, image: Image, job: TileJob, all_valid: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    try:
        mask = reader.read_valid(
            image,
            column=job.column,
            row=job.row,
            width=job.width,
            height=job.height,
            decimation=job.decimation,
        )
    except ReadError:
        return None
    return all_valid if mask.valid is None else _mean_valid(mask, job)


def _mean_valid(mask: Mask, job: TileJob) -> NDArray[np.float64]:
    """Mean of a tile's mask over each window of the job; outside of the tile nothing is valid."""
    assert mask.valid is not None
    rows, columns = mask.valid.shape
    total = np.zeros((rows + 1, columns + 1))
    total[1:, 1:] = mask.valid.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    scale = mask.scale_x, mask.scale_y
    low = (job.boxes[:, :2] - (mask.column, mask.row)) / scale
    size = job.boxes[:, 2:] / scale
    high = low + size
    summed = (
        _interpolate(total, high[:, 0], high[:, 1])
        - _interpolate(total, low[:, 0], high[:, 1])
        - _interpolate(total, high[:, 0], low[:, 1])
        + _interpolate(total, low[:, 0], low[:, 1])
    )
    return np.asarray(summed / size.prod(axis=1))


def _interpolate(
    total: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Bilinear look-up in a table of running sums, which is exact between its nodes."""
    x = np.clip(x, 0, total.shape[1] - 1)
    y = np.clip(y, 0, total.shape[0] - 1)
    column = np.minimum(x.astype(np.intp), total.shape[1] - 2)
    row = np.minimum(y.astype(np.intp), total.shape[0] - 2)
    right, down = x - column, y - row
    return np.asarray(
        (1 - down) * ((1 - right) * total[row, column] + right * total[row, column + 1])
        + down * ((1 - right) * total[row + 1, column] + right * total[row + 1, column + 1])
    )
