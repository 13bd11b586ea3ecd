from __future__ import annotations

from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.windows
import shapely
import shapely.geometry
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pyproj import CRS, Geod, Transformer
from rasterio.transform import from_origin
from rasterio.warp import transform_geom

from edge_infer.grid import Grid, metres_per_pixel
from edge_infer.imagery import open_imagery
from edge_infer.manifest import ChipContract
from edge_infer.windows import Windows, ground_windows, pixel_bounds

LONGITUDE_LATITUDE = CRS("OGC:CRS84")
GEOD = Geod(ellps="WGS84")


def contract(**changes: Any) -> ChipContract:
    values: dict[str, Any] = {
        "ground_metres": 30.0,
        "chip_pixels": 64,
        "bands": ("red", "green", "blue"),
        "coarsest_gsd_metres": 10.0,
    }
    return ChipContract(**{**values, **changes})


def lay(geometries: np.ndarray, crs: CRS, grid: Grid, **changes: Any) -> Windows:
    bounds = pixel_bounds(geometries, crs, grid)
    centres = (bounds[:, :2] + bounds[:, 2:]) / 2
    return ground_windows(bounds, metres_per_pixel(grid, centres), contract(**changes))


@pytest.fixture(scope="module")
def joplin(shared_data) -> tuple[np.ndarray, CRS]:
    meta, _, geometry, _ = pyogrio.raw.read(shared_data / "joplin/footprints/joplin.geojson")
    return shapely.from_wkb(geometry), CRS(meta["crs"])


# ---- bounds


def test_bounds_in_the_same_reference_system_are_those_of_rasterio(joplin, shared_data):
    geometries, _ = joplin
    with rasterio.open(shared_data / "joplin/post/tile_31500-5137.tif") as dataset:
        grid = Grid(LONGITUDE_LATITUDE, dataset.transform, dataset.width, dataset.height)
        found = pixel_bounds(geometries, LONGITUDE_LATITUDE, grid)
        for bounds, geometry in zip(found[::97], geometries[::97], strict=True):
            window = rasterio.windows.from_bounds(*geometry.bounds, dataset.transform)
            wanted = (
                window.col_off,
                window.row_off,
                window.col_off + window.width,
                window.row_off + window.height,
            )
            assert bounds == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("code", [26915, 3857, 32615, 2263])
def test_bounds_in_another_reference_system_are_those_of_every_vertex(joplin, code):
    geometries, crs = joplin
    geometries = geometries[::20]
    moved = [shapely.geometry.shape(transform_geom("OGC:CRS84", f"EPSG:{code}", g)) for g in geometries]
    west, _, _, north = shapely.total_bounds(moved)
    grid = Grid(CRS(code), from_origin(west, north, 0.5, 0.25), 100, 100)
    wanted = [((w - west) / 0.5, (north - n) / 0.25, (e - west) / 0.5, (north - s) / 0.25)
              for w, s, e, n in (g.bounds for g in moved)]  # fmt: skip
    assert pixel_bounds(geometries, crs, grid) == pytest.approx(np.array(wanted), abs=1e-5)


def test_bounds_in_a_rotated_image_are_of_the_rotated_shape():
    square = shapely.box(500_000, 4_100_000, 500_010, 4_100_010)
    transform = Affine.translation(500_000, 4_100_000) @ Affine.rotation(45) @ Affine.scale(1, -1)
    bounds = pixel_bounds(np.array([square]), CRS(32615), Grid(CRS(32615), transform, 50, 50))
    assert bounds[0] == pytest.approx([0, -np.sqrt(50), np.sqrt(200), np.sqrt(50)])


def test_geometries_of_every_kind_and_none_at_all():
    geometries = np.array(
        [
            None,
            shapely.Point(),
            shapely.Point(500_001, 4_099_998),
            shapely.LineString([(500_000, 4_100_000), (500_004, 4_099_999)]),
            shapely.Polygon([(500_000, 4_100_000, 9), (500_002, 4_100_000, 9), (500_002, 4_099_998, 9)]),
            shapely.MultiPolygon(),
            shapely.MultiPoint([(500_000, 4_100_000), (500_006, 4_099_990), (500_008, 4_099_992)]),
            shapely.Point(np.inf, 0),
            shapely.MultiPoint([(500_000, 4_100_000), (np.inf, 4_100_000)]),
        ],
        dtype=object,
    )
    grid = Grid(CRS(32615), from_origin(500_000, 4_100_000, 1, 1), 10, 10)
    bounds = pixel_bounds(geometries, CRS(32615), grid)
    assert bounds[[2, 3, 4, 6]] == pytest.approx(
        np.array([[1, 2, 1, 2], [0, 0, 4, 1], [0, 0, 2, 2], [0, 0, 8, 10]])
    )
    assert np.isnan(bounds[[0, 1, 5, 7, 8]]).all()
    assert pixel_bounds(geometries[:2], CRS(32615), grid).shape == (2, 4)
    assert pixel_bounds(geometries[:0], CRS(32615), grid).shape == (0, 4)


def test_a_geometry_that_leaves_the_projection_has_no_bounds():
    geometries = np.array([shapely.box(-93.1, 37, -93, 37.1), shapely.box(-93.1, 37, -93, 95)])
    bounds = pixel_bounds(
        geometries, LONGITUDE_LATITUDE, Grid(CRS(32615), from_origin(5e5, 4.1e6, 1, 1), 9, 9)
    )
    assert np.isfinite(bounds[0]).all()
    assert np.isnan(bounds[1]).all()


@pytest.mark.parametrize("shift", [-360, 0, 360])
def test_the_date_line_is_no_border(shift):
    """Fiji: the image counts on beyond 180 degrees, the footprints do as they like."""
    grid = Grid(CRS(4326), from_origin(179.99, -16.5, 1e-5, 1e-5), 2000, 1000)
    square = shapely.box(-179.9965 + shift, -16.5021, -179.9955 + shift, -16.5011)
    bounds = pixel_bounds(np.array([square]), LONGITUDE_LATITUDE, grid)
    assert bounds[0] == pytest.approx([1350, 110, 1450, 210], abs=1e-6)


def test_a_footprint_across_the_date_line_is_small():
    across = shapely.Polygon(
        [(179.9999, -16.5), (-179.9999, -16.5), (-179.9999, -16.5002), (179.9999, -16.5002)]
    )
    for code, size in ((4326, 1e-5), (32660, 1.0), (3832, 1.0)):
        x, y = Transformer.from_crs(4326, code, always_xy=True).transform(180.0, -16.5)
        grid = Grid(CRS(code), from_origin(x - 100 * size, y + 100 * size, size, size), 200, 200)
        ((left, _, right, _),) = pixel_bounds(np.array([across]), LONGITUDE_LATITUDE, grid)
        assert 0 < right - left < 30
        assert 80 < left < 110


# ---- windows


@given(
    bounds=arrays(np.float64, (5, 4), elements=st.floats(-1e5, 1e5)),
    metres=arrays(np.float64, (5, 2), elements=st.floats(0.03, 10)),
    mode=st.sampled_from(["fixed", "footprint"]),
    factor=st.floats(0.5, 4),
    buffer=st.floats(0, 200),
)
def test_windows_are_square_on_the_ground_and_centred(bounds, metres, mode, factor, buffer):
    bounds = np.hstack([np.minimum(bounds[:, :2], bounds[:, 2:]), np.maximum(bounds[:, :2], bounds[:, 2:])])
    meant = contract(window_mode=mode, context_factor=factor, buffer_metres=buffer)
    windows = ground_windows(bounds, metres, meant)
    sides = windows.boxes[:, 2:] * metres
    assert sides[:, 0] == pytest.approx(sides[:, 1])
    assert (sides[:, 0] >= 30 * (1 - 1e-9)).all()
    middle = windows.boxes[:, :2] + windows.boxes[:, 2:] / 2
    assert middle == pytest.approx((bounds[:, :2] + bounds[:, 2:]) / 2, abs=1e-6)
    extent = ((bounds[:, 2:] - bounds[:, :2]) * metres).max(axis=1)
    wanted = np.full(5, 30.0) if mode == "fixed" else np.maximum(30, extent * factor + 2 * buffer)
    assert sides[:, 0] == pytest.approx(wanted)
    assert (windows.gsd_metres == metres.max(axis=1)).all()


def test_no_place_gives_no_window():
    windows = ground_windows(np.full((1, 4), np.nan), np.full((1, 2), np.nan), contract())
    assert np.isnan(windows.boxes).all()
    assert np.isnan(windows.gsd_metres).all()


CITIES = {
    "Quito": (-78.5, -0.2),
    "Joplin": (-94.5, 37.1),
    "Tromsø": (18.95, 69.65),
    "Ushuaia": (-68.3, -54.8),
}


@pytest.mark.parametrize("city", CITIES)
@pytest.mark.parametrize(
    "kind", ["degrees", "narrow degrees", "web mercator", "utm", "rotated utm", "state plane"]
)
def test_a_window_measures_its_metres_on_the_ellipsoid(city, kind):
    longitude, latitude = CITIES[city]
    grid = grid_around(longitude, latitude, kind)
    footprint = np.array([shapely.Point(longitude, latitude).buffer(1e-5)])
    ((x, y, width, height),) = lay(footprint, LONGITUDE_LATITUDE, grid, ground_metres=32).boxes
    middle = x + width / 2, y + height / 2
    for ends in (
        [(x, middle[1]), (x + width, middle[1])],
        [(middle[0], y), (middle[0], y + height)],
    ):
        assert length(grid, ends) == pytest.approx(32, rel=1e-4)
    back = ground(grid, [middle])[0]
    assert GEOD.inv(*back, longitude, latitude)[2] < 0.01


def grid_around(longitude: float, latitude: float, kind: str) -> Grid:
    zone = int((longitude + 180) // 6) + 1
    codes = {"degrees": 4326, "narrow degrees": 4326, "web mercator": 3857, "state plane": 2263}
    crs = CRS(codes.get(kind, (32700 if latitude < 0 else 32600) + zone))
    if kind == "state plane":  # feet, centred on the city
        crs = CRS(f"+proj=tmerc +lat_0={latitude} +lon_0={longitude} +units=us-ft +datum=WGS84")
    x, y = Transformer.from_crs(LONGITUDE_LATITUDE, crs, always_xy=True).transform(longitude, latitude)
    size = {"degrees": (6e-6, 6e-6), "narrow degrees": (2e-6, 7e-6)}.get(kind, (0.3, 0.3))
    turn = Affine.rotation(31) if kind == "rotated utm" else Affine.identity()
    pixel = turn @ Affine.scale(size[0], -size[1])
    return Grid(crs, Affine.translation(x, y) @ pixel @ Affine.translation(-50, -60), 100, 120)


def ground(grid: Grid, pixels: list[tuple[float, float]]) -> list[tuple[float, float]]:
    columns, rows = np.array(pixels).T
    back = Transformer.from_crs(grid.crs, LONGITUDE_LATITUDE, always_xy=True)
    return list(zip(*back.transform(*grid.to_crs(columns, rows)), strict=True))


def length(grid: Grid, ends: list[tuple[float, float]]) -> float:
    (a, b), (c, d) = ground(grid, ends)
    return float(GEOD.inv(a, b, c, d)[2])


def test_one_footprint_has_the_same_ground_in_both_joplin_images(joplin, shared_data):
    """The tile in degrees and its copy in UTM: their windows are the same square on the ground."""
    geometries, crs = joplin
    degrees, utm = (
        open_imagery([shared_data / "joplin" / path], contract()).images[0].grid
        for path in ("post/tile_31500-5137.tif", "reprojected/post_tile_31500-5137_epsg32615.tif")
    )
    boxes = lay(geometries, crs, degrees).boxes
    inside = ((boxes[:, :2] >= 0) & (boxes[:, :2] + boxes[:, 2:] <= 1024)).all(axis=1)
    assert inside.sum() > 100
    footprints = geometries[inside]
    for mode in ("fixed", "footprint"):
        one, two = (
            [
                shapely.Polygon(ground(grid, corners(box)))
                for box in lay(footprints, crs, grid, window_mode=mode).boxes
            ]
            for grid in (degrees, utm)
        )
        shared = shapely.area(shapely.intersection(one, two)) / shapely.area(shapely.union(one, two))
        assert shared.min() > 0.96  # true north and grid north differ by 0.9 degrees here
        areas = [abs(GEOD.geometry_area_perimeter(square)[0]) for square in one]
        if mode == "fixed":
            assert areas == pytest.approx([900] * len(one), rel=1e-3)


def corners(box: np.ndarray) -> list[tuple[float, float]]:
    x, y, width, height = box
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def test_a_warehouse_gets_a_larger_window():
    grid = Grid(CRS(32615), from_origin(500_000, 4_100_000, 0.5, 0.5), 1000, 1000)
    shed, warehouse = (
        shapely.box(500_100, 4_099_900, 500_105, 4_099_905),
        shapely.box(500_200, 4_099_700, 500_320, 4_099_740),
    )
    boxes = lay(
        np.array([shed, warehouse]), CRS(32615), grid, window_mode="footprint", context_factor=1.5
    ).boxes
    assert boxes[0, 2:] == pytest.approx([60, 60], rel=1e-3)
    assert boxes[1, 2:] == pytest.approx([360, 360], rel=1e-3)
    assert boxes[1, :2] + boxes[1, 2:] / 2 == pytest.approx([520, 560])


def test_a_place_at_a_pole_has_no_window():
    # Half a pixel off the pole the columns are some 1e-13 m wide; at 80 degrees a sixth of their height.
    bounds = np.array([[100.0, row, 100.0, row] for row in (0.0, 1e-9, 0.5, 100.0)])
    grid = Grid(CRS("EPSG:4326"), from_origin(-180, 90, 0.1, 0.1), 3600, 1800)
    windows = ground_windows(bounds, metres_per_pixel(grid, bounds[:, :2]), contract())
    assert np.isnan(windows.boxes).all(axis=1).tolist() == [True, True, True, False]
