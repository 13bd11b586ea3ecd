"""Which way an image lies: the direction on the ground that is up in its pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pyproj import CRS, Geod

from edge_infer.grid import transform_points

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_infer.grid import Grid

_DEGREES = CRS.from_epsg(4326)
_EARTH = Geod(ellps="WGS84")

_STEP_PIXELS = 4.0


def bearings(grid: Grid, centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Find the direction that is up in an image at some pixels.

    Args:
        grid: of the image.
        centres: float64, (n, 2): column and row.

    Returns:
        float64, (n,): degrees clockwise from true north, -180 to 180; NaN where that cannot be told.

    """
    up = np.array([0.0, _STEP_PIXELS])
    (west, south), (east, north) = (
        transform_points(grid.crs, _DEGREES, *grid.to_crs(*points.T))
        for points in (centres + up, centres - up)
    )
    angles = np.full(len(centres), np.nan)
    known = np.isfinite([west, south, east, north]).all(axis=0)
    angles[known], _, _ = _EARTH.inv(west[known], south[known], east[known], north[known])
    return angles
