from __future__ import annotations

import math

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS, Geod, Transformer
from pyproj.network import is_network_enabled  # type: ignore[attr-defined]

from edge_infer.errors import ImageryError
from edge_infer.grid import (
    Grid,
    full_turn,
    metres_per_pixel,
    transform_points,
    transformation_accuracy,
    unwrap,
)

WGS84 = Geod(ellps="WGS84")


def north_up(x: float, y: float, size_x: float, size_y: float) -> Affine:
    return Affine(size_x, 0, x, 0, -size_y, y)


def test_metres_of_degrees_are_those_of_the_ellipsoid():
    grid = Grid(CRS(4326), north_up(-94.5, 37.1, 6e-6, 6e-6), 1024, 1024)
    ((x, y),) = metres_per_pixel(grid, np.array([[512.0, 512.0]]))
    longitude, latitude = -94.5 + 512 * 6e-6, 37.1 - 512 * 6e-6
    assert x == pytest.approx(WGS84.inv(longitude, latitude, longitude + 6e-6, latitude)[2], rel=1e-6)
    assert y == pytest.approx(WGS84.inv(longitude, latitude, longitude, latitude + 6e-6)[2], rel=1e-6)
    assert (x, y) == pytest.approx((0.533, 0.666), abs=1e-3)


@pytest.mark.parametrize("latitude", [0.0, 37.0, -45.0, 69.6])
def test_web_mercator_metres_shrink_towards_the_poles(latitude):
    x, y = Transformer.from_crs(4326, 3857, always_xy=True).transform(18.9, latitude)
    grid = Grid(CRS(3857), north_up(x - 50, y + 50, 1, 1), 100, 100)
    ((across, along),) = metres_per_pixel(grid, np.array([[50.0, 50.0]]))
    sine = math.sin(math.radians(latitude))
    stretch = math.sqrt(1 - 0.00669437999 * sine**2) / math.cos(math.radians(latitude))
    assert across == pytest.approx(1 / stretch, rel=1e-6)
    assert along == pytest.approx(1 / stretch, rel=7e-3)  # the projection is of a sphere, the Earth is not


@pytest.mark.parametrize(
    ("code", "x", "y", "unit_metres"),
    [
        (32615, 500_000, 4_100_000, 0.9996),
        (2263, 984_250, 200_000, 1200 / 3937),
        (26915, 370_000, 4_100_000, 0.9998),
    ],
)
def test_projected_metres(code, x, y, unit_metres):
    grid = Grid(CRS(code), north_up(x, y, 2, 3), 10, 10)
    measured = metres_per_pixel(grid, np.array([[5.0, 5.0]]))[0]
    assert measured == pytest.approx(
        np.array([2, 3]) / (0.9996 if code == 32615 else 1) * unit_metres, rel=5e-4
    )


def test_grads_from_paris():
    # One grad of latitude is a hundredth of the way from the equator to the pole: about 100 km.
    grid = Grid(CRS(4807), north_up(0.0, 52.0, 1e-3, 1e-3), 10, 10)
    assert metres_per_pixel(grid, np.array([[5.0, 5.0]]))[0, 1] == pytest.approx(100, rel=5e-3)


@given(
    angle=st.floats(0, 360),
    size=st.floats(0.01, 100),
    column=st.floats(-2000, 2000),
    row=st.floats(-2000, 2000),
)
def test_rotation_changes_no_length(angle, size, column, row):
    transform = Affine.translation(500_000, 4_100_000) @ Affine.rotation(angle) @ Affine.scale(size, -size)
    measured = metres_per_pixel(Grid(CRS(32615), transform, 10, 10), np.array([[column, row]]))
    assert measured == pytest.approx(size, rel=2e-3)  # the scale of UTM varies by less than that here


def test_metres_outside_of_the_projection_are_unknown():
    grid = Grid(CRS(4326), north_up(0, 89, 1, 1), 10, 10)
    measured = metres_per_pixel(grid, np.array([[5.0, 5.0], [5.0, -5.0], [np.nan, 1.0]]))
    assert np.isfinite(measured[0]).all()
    assert np.isnan(measured[2]).all()


@given(
    st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(0, 360), st.floats(0.01, 100), st.floats(0.01, 100)
)
def test_pixels_to_ground_and_back(column, row, angle, width, height):
    transform = Affine.translation(4e5, 5e6) @ Affine.rotation(angle) @ Affine.scale(width, -height)
    grid = Grid(CRS(32615), transform, 10, 10)
    x, y = grid.to_crs(np.array([column]), np.array([row]))
    assert (x[0], y[0]) == pytest.approx(transform @ (column, row))
    there = grid.to_pixels(x, y)
    assert (there[0][0], there[1][0]) == pytest.approx((column, row), abs=1e-5, rel=1e-6)


def test_what_cannot_be_transformed_is_nan():
    x, y = transform_points(
        CRS(4326), CRS(32615), np.array([-93.0, 0.0, np.nan, -93.0]), np.array([37.0, 100.0, 1.0, np.inf])
    )
    assert x[0] == pytest.approx(500_000)
    assert np.isnan(x[1:]).all()
    assert np.isnan(y[1:]).all()


def test_there_is_no_way_to_the_moon():
    x, y = transform_points(CRS(4326), CRS("IAU_2015:30110"), np.array([1.0]), np.array([1.0]))
    assert np.isnan([x, y]).all()


def test_the_source_is_left_as_it_was():
    x, y = np.array([1.0, np.inf]), np.array([2.0, 2.0])
    transform_points(CRS(4326), CRS(4326), x, y)
    assert x.tolist() == [1.0, np.inf]


def test_datums_are_told_apart():
    # NAD27 and WGS 84 lie about 100 m apart in Joplin.
    x, y = np.array([-94.5]), np.array([37.05])
    old, new = (np.array(transform_points(CRS(4326), CRS(code), x, y)) for code in (26715, 26915))
    assert 100 < np.hypot(*(old - new))[0] < 300


@given(st.floats(-720, 720), st.floats(-180, 180))
def test_unwrapped_longitudes_are_near(longitude, middle):
    near = unwrap(np.array([longitude]), CRS(4326), middle)[0]
    assert abs(near - middle) <= 180 + 1e-9
    assert math.remainder(near - longitude, 360) == pytest.approx(0, abs=1e-9)


def test_only_degrees_have_a_turn():
    assert full_turn(CRS(4326)) == pytest.approx(360)
    assert full_turn(CRS(4807)) == pytest.approx(400)
    assert full_turn(CRS(3857)) is None
    assert unwrap(np.array([5e6]), CRS(3857), 0.0) == 5e6


@pytest.mark.parametrize(
    ("crs", "transform", "size", "said"),
    [
        (CRS(32615), Affine(0, 0, 1, 0, 0, 1), (1, 1), "inverted"),
        (CRS(32615), Affine(1, 1, 0, 1, 1, 0), (1, 1), "inverted"),
        (CRS(32615), Affine(math.nan, 0, 0, 0, 1, 0), (1, 1), "inverted"),
        (CRS(32615), Affine(1, 0, math.inf, 0, 1, 0), (1, 1), "inverted"),
        (CRS(32615), Affine(1, 0, 0, 0, 1, 0), (0, 1), "at least one pixel"),
        (CRS(4978), Affine(1, 0, 0, 0, 1, 0), (1, 1), "neither geographic nor projected"),
        (CRS('LOCAL_CS["site",UNIT["metre",1]]'), Affine(1, 0, 0, 0, 1, 0), (1, 1), "neither geographic"),
    ],
)
def test_a_grid_has_a_place(crs, transform, size, said):
    with pytest.raises(ImageryError, match=said):
        Grid(crs, transform, *size)


def test_proj_stays_offline():
    assert not is_network_enabled()


def test_no_accuracy_where_there_is_no_transformation():
    """From the Earth to the Moon, and where PROJ tells of none that it used."""
    assert transformation_accuracy(CRS(4326), CRS.from_user_input("IAU_2015:30100"), 0.0, 0.0) is None
