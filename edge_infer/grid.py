"""The pixel space of one image, and what its pixels measure on the ground.

Pixel coordinates are (column, row) with the corner of the first pixel at (0, 0), as GDAL counts them.
Pure arithmetic: nothing here opens a file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from pyproj import CRS, Geod, Transformer
from pyproj.crs import GeographicCRS
from pyproj.exceptions import ProjError
from pyproj.network import set_network_enabled  # type: ignore[attr-defined]

from edge_infer.errors import ImageryError

if TYPE_CHECKING:
    from affine import Affine
    from numpy.typing import NDArray

# The runtime works without a network: PROJ takes the best transformation it can do with the grids at hand.
set_network_enabled(active=False)


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the pixels of one image lie."""

    crs: CRS
    """Reference system of the image; geographic or projected."""
    transform: Affine
    """(column, row) in pixels to (x, y) in `crs`."""
    width: int
    """Columns."""
    height: int
    """Rows."""

    def __post_init__(self) -> None:
        """Refuse a grid that has no pixels, or no place on the ground."""
        if self.width < 1 or self.height < 1:
            raise ImageryError(f"an image has at least one pixel, got {self.width} x {self.height}")
        a, b, c, d, e, f = self.transform[:6]
        if a * e == b * d or not all(math.isfinite(term) for term in (a * e - b * d, c, f)):
            raise ImageryError(f"the geotransform {self.transform[:6]} cannot be inverted")
        if self.crs.get_geod() is None or not (self.crs.is_geographic or self.crs.is_projected):
            raise ImageryError(f"the reference system {self.crs.name!r} is neither geographic nor projected")

    def to_crs(
        self, column: NDArray[np.float64], row: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Pixel coordinates to (x, y) in `crs`; any shape."""
        a, b, c, d, e, f = self.transform[:6]
        return a * column + b * row + c, d * column + e * row + f

    def to_pixels(
        self, x: NDArray[np.float64], y: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(x, y) in `crs` to pixel coordinates (column, row); any shape."""
        a, b, c, d, e, f = self.transform[:6]
        # Offsets first: adding the inverse's huge constant terms afterwards would cost digits.
        x, y, determinant = x - c, y - f, a * e - b * d
        return (e * x - b * y) / determinant, (a * y - d * x) / determinant


def transform_points(
    source: CRS, target: CRS, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Transform points (easting or longitude first) by the best transformation that needs no network.

    x, y: shape (n,). What cannot be transformed becomes NaN in both results.
    """
    try:
        transformer = _transformer(source.srs, target.srs)
        to_x, to_y = (x.copy(), y.copy()) if transformer is None else transformer.transform(x, y)
    except ProjError:  # no transformation at all between the two, say from the Earth to the Moon
        return np.full(x.shape, np.nan), np.full(y.shape, np.nan)
    failed = ~(np.isfinite(to_x) & np.isfinite(to_y))
    to_x[failed] = np.nan
    to_y[failed] = np.nan
    return to_x, to_y


def transformation_accuracy(source: CRS, target: CRS, x: float, y: float) -> float | None:
    """Say to how many metres PROJ's transformation at a point is right, by PROJ's own register.

    None where PROJ knows no transformation between the two datums and takes one for the other.
    """
    try:
        transformer = _transformer(source.srs, target.srs)
        if transformer is None:
            return 0.0
        transformer.transform(x, y)
        accuracy = float(transformer.get_last_used_operation().accuracy)
    except ProjError:  # none that holds at this point
        return None
    return None if accuracy < 0 else accuracy


def full_turn(crs: CRS) -> float | None:
    """Give the whole circle in the units of a geographic reference system; None for others."""
    return 2 * math.pi / crs.axis_info[0].unit_conversion_factor if crs.is_geographic else None


def unwrap(x: NDArray[np.float64], crs: CRS, middle: float) -> NDArray[np.float64]:
    """Bring longitudes within half a turn of `middle`: 179.9 and -180.1 are one meridian."""
    turn = full_turn(crs)
    return x if turn is None else x - turn * np.round((x - middle) / turn)


def metres_per_pixel(grid: Grid, centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Measure the true ground metres of one step along the columns and one along the rows.

    centres: shape (n, 2), (column, row) in pixels. Result: float64, shape (n, 2), in the same order:
    geodesic length on the ellipsoid of the image's reference system of a step of one pixel around each
    centre. NaN where a step leaves the domain of the projection.
    """
    column, row = centres[:, 0], centres[:, 1]
    x, y = grid.to_crs(
        np.stack([column - 0.5, column + 0.5, column, column]),
        np.stack([row, row, row - 0.5, row + 0.5]),
    )
    degrees, geod = _ellipsoid(grid.crs.srs)
    longitude, latitude = transform_points(grid.crs, degrees, x.ravel(), y.ravel())
    longitude, latitude = longitude.reshape(x.shape), latitude.reshape(x.shape)
    metres = np.full(centres.shape, np.nan)
    usable = np.isfinite(longitude).all(axis=0)
    for axis in (0, 1):
        start, stop = 2 * axis, 2 * axis + 1
        metres[usable, axis] = geod.inv(
            longitude[start, usable], latitude[start, usable], longitude[stop, usable], latitude[stop, usable]
        )[2]
    return metres


# By the definition's text: a CRS itself is hashed and compared by writing it out as WKT each time.


@lru_cache(maxsize=64)
def _ellipsoid(srs: str) -> tuple[CRS, Geod]:
    """Longitude and latitude in degrees on the datum of a system, whatever unit that counts in; its lines."""
    crs = CRS(srs)
    geod = crs.get_geod()
    assert geod is not None, "a Grid has an ellipsoid"
    return GeographicCRS(datum=crs.datum), geod


@lru_cache(maxsize=64)
def _transformer(source: str, target: str) -> Transformer | None:
    """From one system to another; None where they are the same."""
    if CRS(source) == CRS(target):
        return None
    return Transformer.from_crs(source, target, always_xy=True)
