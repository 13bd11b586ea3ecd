"""Blackened chips, held against shapely's own point-in-polygon on every pixel."""

from __future__ import annotations

from dataclasses import replace

import fiona
import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS, Transformer
from rasterio.transform import Affine, from_origin

from edge_infer.blacken import blacken
from edge_infer.classify import classify
from edge_infer.coverage import cover
from edge_infer.footprints import Footprints
from edge_infer.grid import Grid
from edge_infer.imagery import Image, Imagery
from edge_infer.manifest import ChipContract
from edge_infer.request import RunRequest

WEST, NORTH = 500_000.0, 4_100_000.0
UTM = CRS(32615)
CONTRACT = ChipContract(
    ground_metres=20, chip_pixels=48, bands=("red", "green", "blue"), coarsest_gsd_metres=1, blacken=True
)


def image(turn=0.0):
    transform = from_origin(WEST, NORTH, 0.5, 0.4) @ Affine.rotation(turn)
    grid = Grid(UTM, transform, 800, 800)
    return Image("never opened.tif", grid, (1, 2, 3), "uint8", False, 256, 256, None, 0.5)


def footprints(*geometries, crs=UTM):
    array = np.empty(len(geometries), object)
    array[:] = geometries
    return Footprints(np.arange(len(geometries)), array, crs, np.ones(len(geometries), bool))


def star(x, y, corners, seed):
    """Draw a polygon with ragged edges, and a hole where it is wide enough."""
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radius = rng.uniform(3, 9, corners)
    shell = np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)
    return shapely.Polygon(shell).difference(shapely.box(x - 1, y - 1, x + 1, y + 1))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 9999),
    corners=st.integers(3, 9),
    turn=st.sampled_from([0.0, 30.0]),
    degrees=st.booleans(),
)
def test_pixels_outside_of_the_footprint_are_black(seed, corners, turn, degrees):
    picture = image(turn)
    x, y = picture.grid.transform * (400, 400)
    shapes = [
        star(x, y, corners, seed),
        shapely.union(star(x, y, corners, seed + 1), shapely.box(x, y, x + 1, y + 9)),
    ]
    known = shapes
    if degrees:
        move = Transformer.from_crs(UTM, 4326, always_xy=True)
        known = [shapely.transform(s, lambda p: np.stack(move.transform(*p.T), axis=1)) for s in shapes]
    people = footprints(*known, crs=CRS(4326) if degrees else UTM)
    coverage = cover(people, Imagery((picture,)), CONTRACT)
    chips = np.random.default_rng(seed).integers(1, 256, (2, 48, 48, 3), dtype=np.uint8)
    before = chips.copy()
    blacken(chips, coverage.boxes, np.arange(2), coverage, picture)
    steps = (np.arange(48) + 0.5) / 48
    for chip, old, box, shape in zip(chips, before, coverage.boxes, shapes, strict=True):
        column, row = np.meshgrid(box[0] + steps * box[2], box[1] + steps * box[3])
        east, north = picture.grid.transform * (column, row)
        inside = shapely.contains_xy(shape, east, north)
        clear = shapely.distance(shape.boundary, shapely.points(east, north)) > 1e-3  # degrees are rounded
        assert ((chip == old) | (chip == 0)).all()
        assert (chip[inside & clear] == old[inside & clear]).all()
        assert not chip[~inside & clear].any()


def test_what_has_no_area_is_not_judged():
    line = shapely.LineString([(WEST + 50, NORTH - 50), (WEST + 60, NORTH - 60)])
    people = footprints(
        line, shapely.Point(WEST + 50, NORTH - 50), shapely.box(WEST + 50, NORTH - 60, WEST + 60, NORTH - 50)
    )
    coverage = cover(people, Imagery((image(),)), CONTRACT)
    assert coverage.status.tolist() == ["bad_geometry", "bad_geometry", "pending"]
    assert "no area" in coverage.reason[0]
    seen = cover(people, Imagery((image(),)), replace(CONTRACT, blacken=False))
    assert seen.status.tolist() == ["pending"] * 3


@pytest.mark.parametrize("black", [False, True])
def test_a_run_blackens_as_the_contract_says(tmp_path, make_bundle, black):
    """The model gives the mean grey level: with all around black, that is the footprint's share of it."""
    path = tmp_path / "image.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=200, height=200, count=3, dtype="uint8", crs=UTM, photometric="RGB",
        transform=from_origin(WEST, NORTH, 0.5, 0.5),
    ) as dataset:  # fmt: skip
        dataset.write(np.full((3, 200, 200), 255, np.uint8))
    squares = [
        shapely.box(WEST + k, NORTH - k - side, WEST + k + side, NORTH - k) for k, side in ((30, 10), (50, 5))
    ]
    schema = {"geometry": "Polygon", "properties": {}}
    with fiona.open(tmp_path / "houses.gpkg", "w", driver="GPKG", crs="EPSG:32615", schema=schema) as sink:
        sink.writerecords([{"geometry": shapely.geometry.mapping(s), "properties": {}} for s in squares])
    bundle = make_bundle(replace(CONTRACT, blacken=black))
    request = RunRequest(
        bundle=bundle, imagery=(path,), footprints=tmp_path / "houses.gpkg", out=tmp_path / "out.gpkg"
    )
    classify(request, quiet=True)
    with fiona.open(tmp_path / "out.gpkg") as rows:
        bright = [row.properties["p_bright"] for row in rows]
    assert bright == pytest.approx([(10 / 20) ** 2, (5 / 20) ** 2] if black else [1, 1], abs=0.01)
