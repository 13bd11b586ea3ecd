from __future__ import annotations

import math

import numpy as np
import pytest
from pyproj import CRS, Transformer
from rasterio import Affine

from edge_infer.grid import Grid
from edge_infer_export.chips.bearing import bearings


@pytest.mark.parametrize("turn", [0.0, 30.0, -75.0, 180.0])
def test_up_is_true_north_turned_by_image_and_grid(turn):
    crs = CRS.from_epsg(32615)
    transform = Affine.translation(300_000, 5_000_000) * Affine.rotation(turn) * Affine.scale(0.5, -0.5)
    centre = np.array([[100.0, 200.0]])
    longitude, latitude = Transformer.from_crs(crs, 4326, always_xy=True).transform(*(transform * centre[0]))
    # Grid north of a transverse Mercator, as textbooks have it: west of true north, west of the middle.
    convergence = math.degrees(
        math.atan(math.tan(math.radians(longitude + 93)) * math.sin(math.radians(latitude)))
    )
    assert convergence < -1.5
    (found,) = bearings(Grid(crs, transform, 400, 400), centre)
    # `Affine.rotation` turns against the clock.
    assert (found - (convergence - turn) + 180) % 360 - 180 == pytest.approx(0, abs=0.01)


def test_degrees_over_the_meridian_of_the_date():
    grid = Grid(CRS.from_epsg(4326), Affine(1e-5, 0, 179.999, 0, -1e-5, 50.0), 400, 400)
    np.testing.assert_allclose(bearings(grid, np.array([[0.0, 0.0], [300.0, 100.0]])), 0, atol=1e-9)


def test_nowhere_is_not_known():
    grid = Grid(CRS.from_epsg(32615), Affine(0.5, 0, 1e12, 0, -0.5, 0), 4, 4)
    assert np.isnan(bearings(grid, np.array([[2.0, 2.0]]))).all()
