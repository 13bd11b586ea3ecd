"""A million footprints from their file's coordinates to tile jobs, stage by stage."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import shapely
from pyproj import CRS, Transformer
from rasterio.transform import from_origin

from edge_infer.coverage import Coverage, cover
from edge_infer.footprints import Footprints
from edge_infer.grid import Grid, metres_per_pixel
from edge_infer.imagery import Image, Imagery
from edge_infer.manifest import ChipContract
from edge_infer.plan import plan
from edge_infer.windows import ground_windows, pixel_bounds

COUNT = 1_000_000
SIDE_PIXELS = 100_000
GSD = 0.3
CONTRACT = ChipContract(
    ground_metres=32, chip_pixels=224, bands=("red", "green", "blue"), coarsest_gsd_metres=0.5
)


@pytest.fixture(scope="module")
def image() -> Image:
    grid = Grid(CRS(32615), from_origin(350_000, 4_120_000, GSD, GSD), SIDE_PIXELS, SIDE_PIXELS)
    return Image("city.tif", grid, (1, 2, 3), "uint8", False, 512, 512, None, GSD)


@pytest.fixture(scope="module")
def footprints() -> Footprints:
    """Houses of about 12 m in a city of 30 km, each of five vertices, in degrees."""
    generator = np.random.default_rng(0)
    x = 350_000 + generator.uniform(0, SIDE_PIXELS * GSD, COUNT)
    y = 4_120_000 - generator.uniform(0, SIDE_PIXELS * GSD, COUNT)
    longitude, latitude = Transformer.from_crs(32615, "OGC:CRS84", always_xy=True).transform(x, y)
    houses = shapely.box(longitude - 7e-5, latitude - 5e-5, longitude + 7e-5, latitude + 5e-5)
    return Footprints(np.arange(COUNT), houses, CRS("OGC:CRS84"), np.ones(COUNT, dtype=bool))


@pytest.fixture(scope="module")
def bounds(footprints, image) -> np.ndarray:
    return pixel_bounds(footprints.geometries[:], footprints.crs, image.grid)


@pytest.fixture(scope="module")
def coverage(footprints, image) -> Coverage:
    return cover(footprints, Imagery((image,)), CONTRACT)


def centres(bounds: np.ndarray) -> np.ndarray:
    return np.asarray((bounds[:, :2] + bounds[:, 2:]) / 2)


def test_pixel_bounds(benchmark, footprints, image):
    benchmark.pedantic(pixel_bounds, (footprints.geometries[:], footprints.crs, image.grid), rounds=3)


def test_metres_per_pixel(benchmark, bounds, image):
    benchmark.pedantic(metres_per_pixel, (image.grid, centres(bounds)), rounds=3)


def test_ground_windows(benchmark, bounds, image):
    metres = metres_per_pixel(image.grid, centres(bounds))
    benchmark.pedantic(ground_windows, (bounds, metres, CONTRACT), rounds=3)


def test_cover(benchmark, footprints, image):
    """All of the above and the choice of the image; more than once, as two images overlap."""
    benchmark.pedantic(cover, (footprints, Imagery((image, image)), CONTRACT), rounds=1)
    benchmark.extra_info["peak MB"] = peak_megabytes()


def test_plan(benchmark, coverage, image):
    rows = np.flatnonzero(coverage.status == "pending")
    jobs = benchmark.pedantic(plan, (coverage, [image], CONTRACT.chip_pixels, rows), rounds=3)
    benchmark.extra_info["jobs"] = len(jobs)
    benchmark.extra_info["peak MB"] = peak_megabytes()
    assert sum(len(job.rows) for job in jobs) == len(rows) > 0.99 * COUNT


def peak_megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
