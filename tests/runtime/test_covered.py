"""The share of a footprint that lies on valid pixels, held against shapely's exact areas."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import shapely
from pyproj import CRS
from rasterio.transform import from_origin
from shapely.affinity import rotate

from edge_infer.coverage import cover
from edge_infer.covered import covered_fraction
from edge_infer.errors import ReadError
from edge_infer.footprints import Footprints, read_footprints
from edge_infer.grid import Grid
from edge_infer.imagery import Image, Imagery, Reader, Tile, open_imagery
from edge_infer.manifest import ChipContract
from edge_infer.outlines import cover_own, write_outlines

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

UTM = CRS(32615)
WEST, NORTH, GSD, SIDE = 360_000.0, 4_100_000.0, 0.5, 200
CONTRACT = ChipContract(
    ground_metres=100, chip_pixels=16, bands=("red", "green", "blue"), coarsest_gsd_metres=1
)
GROUND = shapely.box(WEST, NORTH - SIDE * GSD, WEST + SIDE * GSD, NORTH)


def footprints(*geometries: shapely.Geometry) -> Footprints:
    array = np.empty(len(geometries), dtype=object)
    array[:] = geometries
    return Footprints(np.arange(len(geometries)), array, UTM, np.ones(len(geometries), dtype=bool))


def image(*, has_mask: bool) -> Image:
    grid = Grid(UTM, from_origin(WEST, NORTH, GSD, GSD), SIDE, SIDE)
    return Image("never opened.tif", grid, (1, 2, 3), "uint8", has_mask, 256, 256, None, GSD)


class Blind(Reader):
    """Every part of a footprint lies in its window: nothing else is to be read."""

    def read_valid(self, image: Image, **rectangle: int) -> Any:
        raise AssertionError(f"{image} was read at {rectangle}")


def measure(one: Image, valid: NDArray[np.uint8] | None, *geometries: shapely.Geometry) -> list[float]:
    coverage = cover(footprints(*geometries), Imagery((replace(one, has_mask=False),)), CONTRACT)
    assert set(coverage.status) == {"pending"}
    tile = Tile(np.zeros((3, SIDE, SIDE), np.uint8), valid, 0.0, 0.0, 1.0, 1.0)
    rows = np.arange(len(geometries))
    with Blind() as reader:
        return list(covered_fraction(coverage, rows, one, tile, reader).tolist())


def place(x: float, y: float) -> tuple[float, float]:
    return WEST + x, NORTH - y


@pytest.mark.parametrize("edge", [None, 0.0, 19.0, 50.5, 97.0])
def test_the_share_is_that_of_the_area(edge: float | None) -> None:
    """Houses of all shapes, turned, over the image's edges and over a line (metres east) where data ends."""
    random = np.random.default_rng(7)
    houses = []
    for x, y, width, height, angle in random.uniform((1, 1, 3, 3, 0), (99, 99, 60, 60, 90), (300, 5)):
        middle = place(x, y)
        plain = shapely.box(
            middle[0] - width / 2, middle[1] - height / 2, middle[0] + width / 2, middle[1] + height / 2
        )
        houses.append(rotate(plain, angle))
    valid, ground = None, GROUND
    if edge is not None:
        valid = np.zeros((SIDE, SIDE), np.uint8)
        valid[:, : round(edge / GSD)] = 1
        ground = shapely.box(WEST, NORTH - SIDE * GSD, WEST + edge, NORTH)
    shares = measure(image(has_mask=edge is not None), valid, *houses)
    error = np.abs(
        [share - h.intersection(ground).area / h.area for share, h in zip(shares, houses, strict=True)]
    )
    assert error.mean() < 0.01
    assert error.max() < 0.06  # of a long, thin house across a corner of its bounds


def test_whole_footprints_are_covered_exactly() -> None:
    houses = [shapely.box(*place(x, 50), *place(x + 10, 40)) for x in (0, 20, 90)]
    assert measure(image(has_mask=False), None, *houses) == [1, 1, 1]
    valid = np.ones((SIDE, SIDE), np.uint8)
    valid[0, 0] = 0
    assert measure(image(has_mask=True), valid, *houses) == [1, 1, 1]


def test_points_and_lines_are_covered_by_their_middle() -> None:
    valid = np.ones((SIDE, SIDE), np.uint8)
    valid[:, :100] = 0
    line = shapely.LineString([place(20, 50), place(90, 50)])  # its middle lies 5 m east of the hole
    shares = measure(
        image(has_mask=True), valid, shapely.Point(place(49.9, 50)), shapely.Point(place(50.1, 50)), line
    )
    assert shares == [0, 1, 1]


def test_a_courtyard_is_no_part_of_its_house() -> None:
    yard = shapely.box(*place(45, 55), *place(55, 45))
    house = shapely.box(*place(40, 60), *place(60, 40)).difference(yard)
    valid = np.ones((SIDE, SIDE), np.uint8)
    valid[90:110, 90:110] = 0  # just the yard
    assert measure(image(has_mask=True), valid, house, yard) == [1, 0]


def test_what_lies_beyond_the_window_is_looked_up(write_raster: Any) -> None:
    """A hall of 80 m and windows of 10 m: only the file knows that the west of the hall has no data."""
    pixels = np.full((3, SIDE, SIDE), 90, np.uint8)
    pixels[:, :, :60] = 0
    narrow = replace(CONTRACT, ground_metres=10)
    imagery = open_imagery([write_raster("hall.tif", pixels, nodata=0)], narrow)
    hall = shapely.box(*place(10, 60), *place(90, 40))
    coverage = cover(footprints(hall), imagery, narrow)
    tile = Tile(np.zeros((3, 20, 20), np.uint8), None, 90.0, 90.0, 1.0, 1.0)
    (one,) = imagery.images
    with Reader() as reader:
        (share,) = covered_fraction(coverage, np.array([0]), one, tile, reader)
    assert share == pytest.approx(60 / 80, abs=0.02)

    with pytest.MonkeyPatch.context() as patch, Blind() as reader:
        patch.setattr("edge_infer.covered.MOST_PIXELS", 1000)  # of a district only the window is looked at
        assert covered_fraction(coverage, np.array([0]), one, tile, reader).tolist() == [1]

    class Broken(Reader):
        def read_valid(self, image: Image, **rectangle: int) -> Any:
            raise ReadError(f"{image.path} is broken at {rectangle}")

    with Broken() as reader:
        assert covered_fraction(coverage, np.array([0]), one, tile, reader).tolist() == [0]


def test_an_image_that_is_the_object_is_covered_by_its_middle(write_raster: Any, tmp_path: Path) -> None:
    """A photograph that lies askew has empty corners, half of its raster even."""
    rows, columns = np.indices((SIDE, SIDE)) + 0.5 - SIDE / 2
    valid = np.abs(rows) + np.abs(columns) < SIDE / 2 - 4
    path = write_raster("askew.tif", np.full((3, SIDE, SIDE), 90, np.uint8) * valid, nodata=0)
    imagery = open_imagery([path], CONTRACT)
    write_outlines(imagery, tmp_path / "outlines.geojson")
    coverage = cover_own(read_footprints(tmp_path / "outlines.geojson"), imagery, CONTRACT)
    tile = Tile(np.zeros((3, SIDE, SIDE), np.uint8), valid.astype(np.uint8), 0.0, 0.0, 1.0, 1.0)
    with Blind() as reader:
        (share,) = covered_fraction(coverage, np.array([0]), imagery.images[0], tile, reader)
    assert share == 1
