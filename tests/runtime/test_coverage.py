from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS, Transformer
from rasterio.transform import from_origin

from edge_infer.coverage import Coverage, _mean_valid, cover
from edge_infer.footprints import Footprints, read_footprints
from edge_infer.grid import Grid
from edge_infer.imagery import Image, Imagery, Mask, open_imagery
from edge_infer.manifest import ChipContract
from edge_infer.plan import TileJob

UTM = CRS(32615)
WEST, NORTH = 500_000.0, 4_100_000.0


def contract(**changes: Any) -> ChipContract:
    values: dict[str, Any] = {
        "ground_metres": 20.0,
        "chip_pixels": 32,
        "bands": ("red", "green", "blue"),
        "coarsest_gsd_metres": 1.0,
    }
    return ChipContract(**{**values, **changes})


def footprints(*geometries: Any, crs: CRS = UTM) -> Footprints:
    array = np.empty(len(geometries), dtype=object)
    array[:] = geometries
    usable = np.array([g is not None and not g.is_empty and g.is_valid for g in geometries], dtype=bool)
    return Footprints(np.arange(len(geometries)), array, crs, usable)


def image(x: float, y: float, width: int, height: int, gsd: float = 0.5, date: str | None = None) -> Image:
    """An image that lies `x` east and `y` south of the corner, in metres; it is never opened."""
    grid = Grid(UTM, from_origin(WEST + x, NORTH - y, gsd, gsd), width, height)
    return Image(f"{x}-{y}.tif", grid, (1, 2, 3), "uint8", False, 256, 256, date, gsd)


def square(x: float, y: float, side: float = 4.0) -> shapely.Polygon:
    return shapely.box(WEST + x - side / 2, NORTH - y - side / 2, WEST + x + side / 2, NORTH - y + side / 2)


def chosen(images: list[Image], *geometries: Any, **changes: Any) -> Coverage:
    return cover(footprints(*geometries), Imagery(tuple(images)), contract(**changes))


# ---- the rule, line by line


def test_every_footprint_has_a_status():
    bow_tie = shapely.Polygon([(WEST, NORTH), (WEST + 9, NORTH - 9), (WEST + 9, NORTH), (WEST, NORTH - 9)])
    coverage = chosen(
        [image(0, 0, 200, 200)], square(50, 50), square(500, 50), None, shapely.Point(), bow_tie
    )
    assert coverage.status.tolist() == ["pending", "outside_imagery", *["bad_geometry"] * 3]
    assert coverage.image.tolist() == [0, -1, -1, -1, -1]
    assert coverage.boxes[0] == pytest.approx([80, 80, 40, 40], rel=1e-3)
    assert coverage.gsd_metres[0] == pytest.approx(0.5, rel=1e-3)
    assert np.isnan(coverage.boxes[1:]).all()
    assert np.isnan(coverage.gsd_metres[1:]).all()


def test_no_footprints_at_all():
    coverage = chosen([image(0, 0, 200, 200)])
    assert coverage.boxes.shape == (0, 4)
    assert coverage.status.shape == (0,)


def test_the_middle_decides_whether_an_image_covers_a_footprint():
    coverage = chosen(
        [image(0, 0, 200, 200)], square(0.5, 50), square(-0.5, 50), square(50, 99.9), square(50, 100.1)
    )
    assert coverage.status.tolist() == ["pending", "outside_imagery", "pending", "outside_imagery"]


def test_the_larger_share_wins_even_where_the_other_is_finer_and_newer():
    whole, cut = (
        image(0, 0, 200, 200, date="2001-01-01T00:00:00"),
        image(45, 0, 400, 400, 0.25, "2020-01-01T00:00:00"),
    )
    coverage = chosen([cut, whole], square(50, 50), square(60, 50))
    assert coverage.image.tolist() == [1, 0]


def test_shares_within_a_per_cent_are_equal():
    # The window of 20 m misses 0.15 m on the finer image: less than one per cent.
    assert chosen([image(0, 0, 200, 200), image(40.15, 0, 400, 400, 0.25)], square(50, 50)).image == [1]
    assert chosen([image(0, 0, 200, 200), image(40.35, 0, 400, 400, 0.25)], square(50, 50)).image == [0]


def test_the_finer_then_the_newer_then_the_first():
    old, new, undated = (
        image(0, 0, 200, 200, date=date) for date in ("2010-05-01T00:00:00", "2011-05-01T00:00:00", None)
    )
    fine = image(0, 0, 400, 400, 0.25)
    here = square(50, 50)
    assert chosen([old, new, fine], here).image == [2]
    assert chosen([old, new, undated], here).image == [1]
    assert chosen([undated, old], here).image == [1]
    assert chosen([undated, undated], here).image == [0]
    slightly_finer = replace(image(0, 0, 202, 202, 0.497), date=None)
    assert chosen([slightly_finer, new], here).image == [1]


def test_coarse_images_are_used_for_nothing_but_the_report():
    coarse, fine = image(0, 0, 50, 50, 2.0), image(0, 0, 100, 100, 0.5)
    coverage = chosen([coarse, fine], square(25, 25), square(75, 75))
    assert coverage.status.tolist() == ["pending", "too_coarse"]
    assert coverage.image.tolist() == [1, 0]
    assert coverage.gsd_metres == pytest.approx([0.5, 2.0], rel=1e-3)


def test_a_nominal_resolution_is_fine_enough():
    assert chosen([image(0, 0, 200, 200, 0.5)], square(50, 50), coarsest_gsd_metres=0.4999).status == [
        "pending"
    ]


# ---- the rule as a whole


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["fixed", "footprint"]))
def test_the_rule_against_plain_python(seed, mode):
    generator = np.random.default_rng(seed)
    images = [
        image(
            generator.uniform(-50, 100),
            generator.uniform(-50, 100),
            int(generator.integers(20, 400)),
            int(generator.integers(20, 400)),
            gsd=float(generator.choice([0.25, 0.5, 0.502, 0.6, 1.5])),
            date=[None, "2010-01-01T00:00:00", "2011-01-01T00:00:00"][generator.integers(3)],
        )
        for _ in range(generator.integers(1, 6))
    ]
    squares = [
        square(generator.uniform(-20, 200), generator.uniform(-20, 200), generator.choice([2.0, 10, 40]))
        for _ in range(20)
    ]
    coverage = chosen(images, *squares, window_mode=mode, context_factor=1.5)
    for position, geometry in enumerate(squares):
        status, index = plain(images, geometry, mode)
        assert (coverage.status[position], coverage.image[position]) == (status, index)


def plain(images: list[Image], geometry: shapely.Polygon, mode: str) -> tuple[str, int]:
    centre = shapely.box(*geometry.bounds).centroid
    west, south, east, north = geometry.bounds
    found = []
    for index, one in enumerate(images):
        gsd = one.gsd_metres
        area = shapely.box(
            one.grid.transform.c,
            one.grid.transform.f - gsd * one.grid.height,
            one.grid.transform.c + gsd * one.grid.width,
            one.grid.transform.f,
        )
        if not area.contains(centre):
            continue
        metres = 0.9996  # of a grid metre on the central meridian
        side = 20 if mode == "fixed" else max(20, 1.5 * max(east - west, north - south) / metres)
        window = centre.buffer(side * metres / 2, cap_style="square")
        found.append((window.intersection(area).area / window.area, gsd, one.date or "", index))
    fine = [f for f in found if f[1] <= 1.01]
    left = fine or found
    if not left:
        return "outside_imagery", -1
    left = [f for f in left if f[0] >= max(f[0] for f in left) - 0.01]
    left = [f for f in left if f[1] <= min(f[1] for f in left) * 1.01]
    left = [f for f in left if f[2] == max(f[2] for f in left)]
    return ("pending" if fine else "too_coarse"), min(f[3] for f in left)


# ---- masks


def grey(write_raster: Any, name: str, size: int, gsd: float) -> Any:
    return write_raster(
        name, np.full((3, size, size), 90, np.uint8), transform=from_origin(WEST, NORTH, gsd, gsd)
    )


def masked(write_raster: Any, name: str, valid: np.ndarray, kind: str, gsd: float) -> Any:
    pixels = np.full((3, *valid.shape), 90, np.uint8)
    options: dict[str, Any] = {"transform": from_origin(WEST, NORTH, gsd, gsd)}
    if kind == "nodata":
        return write_raster(name, pixels * valid, nodata=0, **options)
    if kind == "alpha":
        return write_raster(
            name, np.concatenate([pixels, valid[None] * np.uint8(255)]), alpha="YES", **options
        )
    return write_raster(name, pixels, mask=valid, **options)


@pytest.mark.parametrize("kind", ["nodata", "alpha", "mask"])
@pytest.mark.parametrize("gsd", [0.5, 0.1])
def test_holes_lose_against_data(write_raster, kind, gsd):
    size = round(100 / gsd)
    west_half = np.zeros((size, size), bool)
    west_half[:, : size // 2] = True
    paths = [
        masked(write_raster, "fine.tif", west_half, kind, gsd),
        grey(write_raster, "whole.tif", 160, 0.625),
    ]
    imagery = open_imagery(paths, contract())
    assert imagery.images[0].has_mask
    coverage = cover(
        footprints(square(20, 50), square(39, 50), square(41, 50), square(80, 50), square(20, 12)),
        imagery,
        contract(),
    )
    # A window of 20 m around 41 m reaches a metre into the hole: a twentieth of it has no data.
    assert coverage.image.tolist() == [0, 0, 1, 1, 0]
    assert set(coverage.status) == {"pending"}


def test_an_image_without_a_rival_is_not_looked_at(tmp_path):
    alone = replace(image(0, 0, 200, 200), path=str(tmp_path / "absent.tif"), has_mask=True)
    assert chosen([alone], square(50, 50)).image == [0]


def test_what_cannot_be_read_loses_only_where_it_cannot(write_raster):
    valid = np.ones((512, 512), bool)
    valid[0, 0] = False
    broken = masked(write_raster, "broken.tif", valid, "nodata", 0.25)
    other = grey(write_raster, "other.tif", 256, 0.5)
    imagery = open_imagery([broken, other], contract())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge_infer.coverage.Reader", make_faulty_reader())
        coverage = cover(footprints(square(20, 20), square(100, 100), square(20, 100)), imagery, contract())
    assert coverage.image.tolist() == [0, 1, 0]


def make_faulty_reader() -> Any:
    from edge_infer.errors import ReadError
    from edge_infer.imagery import Reader

    class FaultyReader(Reader):
        """Cannot read what lies east of 75 m and south of 75 m."""

        def read_valid(self, image: Image, **rectangle: int) -> Any:
            if (
                rectangle["column"] + rectangle["width"] > 300
                and rectangle["row"] + rectangle["height"] > 300
            ):
                raise ReadError("broken")
            return super().read_valid(image, **rectangle)

    return FaultyReader


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 4]))
def test_the_mean_of_a_mask_over_a_window_is_exact(seed, width, height, decimation):
    generator = np.random.default_rng(seed)
    rows, columns = -(-height // decimation), -(-width // decimation)
    valid = generator.integers(0, 2, (rows, columns), dtype=np.uint8)
    boxes = np.hstack([generator.uniform(-5, 40, (8, 2)), generator.uniform(0.1, 30, (8, 2))])
    job = TileJob(0, 3, 7, width, height, decimation, np.arange(8), boxes)
    mask = Mask(valid, 3, 7, decimation, decimation)
    for mean, (x, y, w, h) in zip(_mean_valid(mask, job), boxes, strict=True):
        across = overlap(x - 3, w, columns * decimation, columns)
        down = overlap(y - 7, h, rows * decimation, rows)
        assert mean == pytest.approx(down @ valid @ across / (w * h), abs=1e-9)


def overlap(start: float, length: float, extent: int, count: int) -> np.ndarray:
    """Length of each of `count` equal parts of an extent that a stretch covers."""
    edges = np.linspace(0, extent, count + 1)
    covered = np.minimum(edges[1:], start + length) - np.maximum(edges[:-1], start)
    return np.asarray(np.maximum(covered, 0.0))


# ---- real data


def test_every_labelled_footprint_is_judged_on_its_tile(shared_data):
    joplin = shared_data / "joplin"
    imagery = open_imagery([joplin / "post"], contract())
    coverage = cover(read_footprints(joplin / "footprints/joplin.geojson"), imagery, contract())
    with (joplin / "truth.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [Path(one.path).stem for one in imagery.images]
    assert len(rows) == 301
    for row in rows:
        position = int(row["footprint"])
        assert coverage.status[position] == "pending"
        assert row["tile"].removesuffix(".tif").split("tile_")[-1] in names[coverage.image[position]]
    assert (coverage.status == "outside_imagery").sum() > 2400


def test_images_in_three_reference_systems(shared_data):
    joplin = shared_data / "joplin"
    imagery = open_imagery([joplin], contract())
    assert len({one.grid.crs.to_epsg() for one in imagery.images}) == 3
    source = read_footprints(joplin / "footprints/joplin.geojson")
    coverage = cover(source, imagery, contract())
    used = np.flatnonzero(coverage.image >= 0)
    centres = shapely.centroid(shapely.box(*shapely.bounds(source.geometries[:]).T))
    for position in used[::7]:
        grid = imagery.images[coverage.image[position]].grid
        point = centres[position]
        x, y = Transformer.from_crs(source.crs, grid.crs, always_xy=True).transform(point.x, point.y)
        x_left, y_top, width, height = coverage.boxes[position]
        assert ~grid.transform @ (x, y) == pytest.approx(
            (x_left + width / 2, y_top + height / 2), abs=0.5
        )  # the middle of the bounds, there and here
    # The finest covers most of what it can; whole windows in coarser tiles beat cut ones.
    finest = [index for index, one in enumerate(imagery.images) if "pre" in Path(one.path).parts]
    assert np.isin(coverage.image[used], finest).mean() > 0.5


def test_footprints_in_another_datum_land_on_the_same_pixels(shared_data, tmp_path):
    joplin = shared_data / "joplin"
    imagery = open_imagery([joplin / "post"], contract())
    source = read_footprints(joplin / "footprints/joplin.geojson")
    coverage = cover(source, imagery, contract())
    to_feet = Transformer.from_crs(source.crs, 26996, always_xy=True)
    moved = shapely.transform(
        source.geometries[:], lambda points: np.column_stack(to_feet.transform(points[:, 0], points[:, 1]))
    )
    again = cover(replace(source, geometries=moved, crs=CRS(26996)), imagery, contract())
    assert np.array_equal(again.image, coverage.image)
    pending = coverage.status == "pending"
    assert again.boxes[pending] == pytest.approx(coverage.boxes[pending], abs=0.01)


@pytest.mark.parametrize("shift", [0, 360])
def test_fiji(shared_data, shift):
    """Points in Fiji, at 178 degrees east or, as some write, beyond 180; the image across the date line."""
    meta, _, geometry, _ = pyogrio.raw.read(shared_data / "geotiff_cases/skai/building_centroids.geojson")
    points = shapely.from_wkb(geometry)
    assert CRS(meta["crs"]).is_geographic
    crossing = Grid(CRS(4326), Affine(1e-5, 0, 179.9995, 0, -1e-5, -16.9995), 100, 100)
    one = Image("a.tif", crossing, (1, 2, 3), "uint8", False, 256, 256, None, 1.1)
    east = shapely.Point(-179.9999 + shift, -17)
    coverage = cover(
        footprints(*points[:3], east, crs=CRS("OGC:CRS84")), Imagery((one,)), contract(coarsest_gsd_metres=2)
    )
    assert coverage.status.tolist() == ["outside_imagery"] * 3 + ["pending"]


def test_an_image_around_the_pole_covers_what_stands_there():
    grid = Grid(CRS(3413), from_origin(-50_000, 50_000, 100, 100), 1000, 1000)
    one = Image("a.tif", grid, (1, 2, 3), "uint8", False, 256, 256, None, 100)
    coverage = cover(
        footprints(
            shapely.Point(10, 89.99), shapely.Point(-170, 89.8), shapely.Point(10, 80), crs=CRS("OGC:CRS84")
        ),
        Imagery((one,)),
        contract(coarsest_gsd_metres=200, ground_metres=1000),
    )
    assert coverage.status.tolist() == ["pending", "pending", "outside_imagery"]


def test_thousands_of_images_are_few():
    images = [image(50.0 * column, 50.0 * row, 120, 120) for row in range(50) for column in range(50)]
    generator = np.random.default_rng(0)
    squares = [square(x, y) for x, y in generator.uniform(0, 2500, (5000, 2))]
    coverage = chosen(images, *squares)
    assert (coverage.status == "pending").all()
    assert len(np.unique(coverage.image)) > 1500
