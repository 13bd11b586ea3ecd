from __future__ import annotations

import fiona
import numpy as np
import pytest
import rasterio
import rasterio.warp
import rasterio.windows
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyproj import CRS
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from edge_infer.grid import Grid, metres_per_pixel
from edge_infer_export.town.files import LABEL_FIELD, TOWN_CRS, write_town
from edge_infer_export.town.layout import Extent, House, plan_town, smooth_noise, turn
from edge_infer_export.town.paint import Camera, paint
from edge_infer_export.town.shapes import GROUND, SHADOW, SOOT, STANDING, _convex_hull, draw_shapes

EXTENT = Extent(500.0, 170.0)


@pytest.fixture(scope="module")
def town():
    return plan_town(EXTENT, seed=7)


@pytest.fixture(scope="module")
def shapes(town):
    return draw_shapes(town)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_town(tmp_path_factory.mktemp("town"), EXTENT)


def test_the_whole_town_has_the_houses_it_promises():
    extent = Extent()
    houses = [h for h in plan_town(extent, seed=7).houses if extent.holds(h.x, h.y, margin=0)]
    assert 900 <= len(houses) <= 1200
    for district in ("west", "east"):
        burnt = np.array([h.state != "intact" for h in houses if h.district == district])
        assert 0.2 < burnt.mean() < 0.5
    roofs = np.array([h.tone for h in houses if h.state == "intact"]).mean(axis=1)
    assert np.quantile(roofs, 0.2) < 80  # dark roofs, so that dark is not the same as burnt
    assert np.quantile(roofs, 0.8) > 130


def test_the_same_seed_gives_the_same_town(town, shapes):
    again = plan_town(EXTENT, seed=7)
    assert again.houses == town.houses
    np.testing.assert_array_equal(draw_shapes(again).points, shapes.points)
    assert plan_town(EXTENT, seed=8).houses != town.houses


def test_districts_lie_further_apart_than_a_window_reaches():
    houses = plan_town(Extent(), seed=7).houses
    places = {d: np.array([(h.x, h.y) for h in houses if h.district == d]) for d in ("west", "east")}
    gaps = np.abs(places["west"][:, None] - places["east"][None])
    assert gaps.max(axis=2).min() > 32 + 10  # windows of 32 m, and footprints some metres off their houses


@pytest.mark.parametrize("wing", [None, (3.0, 5.0, 2.5), (-3.0, 4.0, 4.0), (4.5, 5.0, 3.0)])
def test_outline_is_body_and_wing(wing):
    house = House(
        x=100.0, y=50.0, angle=0.7, length=14.0, depth=9.0, wing=wing, height=3.0, roof="hip",
        tone=(90, 90, 90), state="intact", built=1980, address="1 Elm Street", district="west",
    )  # fmt: skip
    outline = shapely.Polygon(house.outline)
    assert outline.is_valid
    assert len(np.unique(house.outline.round(6), axis=0)) == len(house.outline)
    assert outline.area == pytest.approx(14 * 9 + (0 if wing is None else wing[1] * wing[2]))
    assert outline.contains(shapely.Point(100, 50))


@given(st.floats(-7, 7))
def test_turning_there_and_back(angle):
    points = np.array([(3.0, 1.0), (-2.0, 5.0), (0.0, 0.0)])
    turned = turn(points, angle)
    np.testing.assert_allclose(np.hypot(*turned.T), np.hypot(*points.T))
    np.testing.assert_allclose(turn(turned, -angle), points, atol=1e-9)


def test_smooth_noise_is_smooth_and_scaled():
    noise = smooth_noise(np.random.default_rng(0), (120, 200), (20.0, 8.0))
    assert noise.shape == (120, 200)
    assert noise.std() == pytest.approx(1, rel=1e-3)
    assert np.abs(np.diff(noise, axis=1)).max() < 0.6


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=3, max_size=12, unique=True))
def test_convex_hull_is_shapelys(points):
    wanted = shapely.MultiPoint(points).convex_hull
    if wanted.geom_type != "Polygon":
        return
    assert shapely.Polygon(_convex_hull(np.array(points, float))).equals(wanted)


def test_shapes_are_whole(town, shapes):
    assert shapes.starts[0] == 0
    assert shapes.starts[-1] == len(shapes.points)
    assert np.diff(shapes.starts).min() >= 3
    assert np.isfinite(shapes.points).all()
    assert {GROUND, SOOT, SHADOW, STANDING} == set(shapes.layers.tolist())


def test_two_grids_show_the_same_town(files):
    with (
        rasterio.open(files.imagery / "west.tif") as west,
        rasterio.open(files.imagery / "east.tif") as east,
        WarpedVRT(
            east, crs=west.crs, transform=west.transform, width=west.width, height=west.height,
            resampling=Resampling.bilinear, add_alpha=True,
        ) as warped,
    ):  # fmt: skip
        window = rasterio.windows.Window(west.width - 45, 100, 40, 350)
        one, other = west.read(window=window).mean(axis=0), warped.read([1, 2, 3], window=window).mean(axis=0)
        assert warped.read(4, window=window).all()

    def blur(values):
        picture = Image.fromarray(values.astype(np.float32))
        return np.asarray(picture.resize((20, 175), Image.Resampling.BOX))

    def agreement(shift):
        a, b = blur(one), np.roll(blur(other), shift, axis=0)
        return np.corrcoef(a[4:-4].ravel(), b[4:-4].ravel())[0, 1]

    assert agreement(0) > 0.75  # grain and the second camera are what differs
    assert agreement(0) == max(agreement(shift) for shift in range(-4, 5))


def test_drawing_in_tiles_leaves_no_seams(town, shapes, monkeypatch):
    monkeypatch.setattr("edge_infer_export.town.paint._TILE", 64)
    image = paint(
        town,
        shapes,
        lambda ground: (ground - (150, 40)) / 0.4,
        width=256,
        height=256,
        camera=Camera(noise=0.0),
        seed=1,
    ).astype(int)
    for steps in (
        np.abs(np.diff(image, axis=0)).mean(axis=(1, 2)),
        np.abs(np.diff(image, axis=1)).mean(axis=(0, 2)),
    ):
        assert steps[63::64].mean() < 1.4 * np.median(steps)


def test_west_is_a_jpeg_cog_in_utm(files):
    with rasterio.open(files.imagery / "west.tif") as image:
        assert image.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert image.compression.name == "jpeg"
        assert image.photometric.name == "ycbcr"
        assert image.block_shapes[0] == (512, 512)
        assert image.overviews(1)
        assert image.crs.to_epsg() == 32611
        assert image.res == (0.3, 0.3)
        assert image.tags()["TIFFTAG_DATETIME"].startswith("2024")


def test_east_has_degrees_that_are_not_square_on_the_ground(files):
    with rasterio.open(files.imagery / "east.tif") as image:
        assert image.crs.to_epsg() == 4326
        grid = Grid(CRS.from_epsg(4326), image.transform, image.width, image.height)
        with rasterio.open(files.imagery / "west.tif") as west:
            bounds = rasterio.warp.transform_bounds(image.crs, west.crs, *image.bounds)
            assert west.bounds.left < bounds[0] < west.bounds.right < bounds[2]
    along, down = metres_per_pixel(grid, np.array([[grid.width / 2, grid.height / 2]]))[0]
    assert 0.25 < along < 0.29
    assert 0.32 < down < 0.35


def test_footprints_have_labels_and_the_odd_rows_of_real_layers(files):
    with fiona.open(files.footprints) as layer:
        assert layer.crs.to_epsg() == 4326
        rows = list(layer)
    kinds = ["null" if row.geometry is None else row.geometry.type for row in rows]
    assert sorted(set(kinds)) == ["Point", "Polygon", "null"]
    assert kinds.count("Point") == kinds.count("null") == 1
    assert {row.properties[LABEL_FIELD] for row in rows} == {"damaged", "no_visible_damage"}
    assert len({row.properties["id"] for row in rows}) == len(rows)
    north = max(
        row.geometry.coordinates[0][0][1] for row in rows if row.geometry and row.geometry.type == "Polygon"
    )
    with rasterio.open(files.imagery / "east.tif") as image:
        assert north > image.bounds.top + 0.003  # one lies beyond the imagery


def test_footprints_lie_a_little_off_the_houses(town, files):
    from pyproj import Transformer

    with fiona.open(files.footprints) as layer:
        traced = [shapely.geometry.shape(row.geometry) for row in layer if row.geometry is not None]
    traced = [shape for shape in traced if shape.geom_type == "Polygon"]
    to_ground = Transformer.from_crs("EPSG:4326", TOWN_CRS, always_xy=True)
    x, y = to_ground.transform(*np.array([shape.centroid.coords[0] for shape in traced]).T)
    middles = np.array([shapely.Polygon(house.outline).centroid.coords[0] for house in town.houses])
    offsets = np.hypot(x[:, None] - 420_000 - middles[:, 0], y[:, None] - 3_850_000 - middles[:, 1]).min(
        axis=1
    )
    near = offsets[offsets < 100]
    assert len(near) == len(traced) - 1
    assert 0.8 < np.median(near) < 4
    assert near.max() < 7
