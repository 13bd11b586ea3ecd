from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS

from edge_infer.grid import Grid
from edge_infer.imagery import Image, Reader, Tile, open_imagery
from edge_infer.manifest import ChipContract
from edge_infer.plan import TileJob, plan
from edge_infer.sampler import sample
from edge_infer.shares import JobShares

UTM = CRS(32615)
CACHE_BYTES = 256 * 2**20


def image_of(width: int, height: int, block_width: int, block_height: int) -> Image:
    grid = Grid(UTM, Affine(0.5, 0, 5e5, 0, -0.5, 4e6), width, height)
    return Image("a.tif", grid, (1, 2, 3), "uint8", False, block_width, block_height, None, 0.5)


def placed(boxes: np.ndarray, image: np.ndarray | None = None) -> Any:
    return SimpleNamespace(image=np.zeros(len(boxes), np.int32) if image is None else image, boxes=boxes)


images = st.builds(
    lambda width, height, block: image_of(width, height, block[0] or width, block[1]),
    st.integers(1, 6000),
    st.integers(1, 6000),
    st.sampled_from([(128, 128), (256, 512), (512, 512), (400, 300), (0, 1), (0, 16), (0, 6000), (64, 4096)]),
)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Any, list[Image]]:
    rasters = draw(st.lists(images, min_size=1, max_size=3))
    count = draw(st.integers(1, 60))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    image = generator.integers(0, len(rasters), count).astype(np.int32)
    size = np.array([(r.grid.width, r.grid.height) for r in rasters])[image]
    centre = generator.random((count, 2)) * size
    spread = draw(st.sampled_from([1.0, 4.0, 100.0]))
    side = draw(st.sampled_from([0.5, 20.0, 63.9, 300.0])) * spread ** generator.random((count, 2))
    return placed(np.hstack([centre - side / 2, side]), image), rasters


@settings(max_examples=150)
@given(scenes(), st.sampled_from([8, 32, 64]), st.sampled_from([5_000, 40_000, 1_000_000]), st.randoms())
def test_every_plan_keeps_its_promises(scene, chip, budget, random):
    coverage, rasters = scene
    rows = np.array(sorted(random.sample(range(len(coverage.boxes)), k=(len(coverage.boxes) + 1) // 2)))
    jobs = plan(coverage, rasters, chip, rows, budget_pixels=budget)

    assert sorted(np.concatenate([job.rows for job in jobs])) == rows.tolist()
    assert [job.image for job in jobs] == sorted(job.image for job in jobs)
    for job in jobs:
        assert (coverage.image[job.rows] == job.image).all()
        assert np.array_equal(job.boxes, coverage.boxes[job.rows])
        assert_rectangle(job, rasters[job.image].grid, budget)
        assert_decimation(job, rasters[job.image].grid, chip, budget)


def assert_rectangle(job: TileJob, grid: Grid, budget: int) -> None:
    right, bottom = job.column + job.width, job.row + job.height
    assert 0 <= job.column < right <= grid.width
    assert 0 <= job.row < bottom <= grid.height
    assert job.column % job.decimation == job.row % job.decimation == 0
    assert right % job.decimation == 0 or right == grid.width
    assert bottom % job.decimation == 0 or bottom == grid.height
    assert -(-job.width // job.decimation) * -(-job.height // job.decimation) <= budget
    margin = 2 * job.decimation
    low = np.clip(job.boxes[:, :2] - margin, 0, (grid.width, grid.height))
    high = np.clip(job.boxes[:, :2] + job.boxes[:, 2:] + margin, 0, (grid.width, grid.height))
    assert (low >= (job.column, job.row)).all()
    assert (high <= (right, bottom)).all()


def assert_decimation(job: TileJob, grid: Grid, chip: int, budget: int) -> None:
    assert job.decimation & (job.decimation - 1) == 0
    ratio = job.boxes[:, 2:].min(axis=1) / chip / job.decimation
    assert (ratio < 2).all()
    if job.decimation > 1 and (ratio < 1).any():  # only because the window does not fit otherwise
        for x, y, width, height in job.boxes[ratio < 1]:
            step = job.decimation // 2
            low = np.clip(np.array([x, y]) - 4 * step - width / chip, 0, None)
            high = np.minimum(
                np.array([x + width, y + height]) + 4 * step + width / chip, (grid.width, grid.height)
            )
            assert np.prod(np.ceil((high - low) / step) + 1) > budget / 4


def test_nothing_to_do():
    assert plan(placed(np.empty((0, 4))), [], 64, np.empty(0, np.int64)) == []


def test_footprints_without_a_window_cannot_be_planned_for():
    image = image_of(100, 100, 64, 64)
    with pytest.raises(ValueError, match="an image and a window"):
        plan(placed(np.ones((1, 4)), np.array([-1], np.int32)), [image], 64, np.array([0]))
    with pytest.raises(ValueError, match="an image and a window"):
        plan(placed(np.full((1, 4), np.nan)), [image], 64, np.array([0]))


@pytest.mark.parametrize(
    ("side", "decimation"), [(10, 1), (64, 1), (127.9, 1), (128, 2), (255, 2), (256, 4), (1024, 16)]
)
def test_the_remaining_ratio_lies_between_one_and_two(side, decimation):
    (job,) = plan(
        placed(np.array([[1000.0, 1000, side, side]])), [image_of(4000, 4000, 256, 256)], 64, np.array([0])
    )
    assert job.decimation == decimation


def test_the_narrow_axis_of_oblong_pixels_decides():
    (job,) = plan(
        placed(np.array([[1000.0, 1000, 300, 130]])), [image_of(4000, 4000, 256, 256)], 64, np.array([0])
    )
    assert job.decimation == 2
    assert job.column <= 1000 - 300 / 128 - 2  # the filter of the wide axis reaches further


def test_one_window_larger_than_the_budget_is_read_more_coarsely():
    box = np.array([[100.0, 100, 8000, 8000], [200, 200, 60, 60]])
    jobs = plan(
        placed(box), [image_of(10_000, 10_000, 256, 256)], 2048, np.arange(2), budget_pixels=1_100_000
    )
    assert sorted((job.decimation, len(job.rows)) for job in jobs) == [(1, 1), (8, 1)]


def test_absurd_windows_are_cut_to_the_image():
    boxes = np.array([[-1e300, -1e300, 2e300, 2e300], [1e18, 1e18, 1, 1], [5, 5, 1e-300, 1e-300]])
    jobs = plan(placed(boxes), [image_of(1000, 500, 128, 128)], 64, np.arange(3))
    assert sum(len(job.rows) for job in jobs) == 3
    for job in jobs:
        assert job.column + job.width <= 1000
        assert job.row + job.height <= 500


def test_a_small_image_is_one_job():
    boxes = np.hstack([np.random.default_rng(0).random((500, 2)) * 1000, np.full((500, 2), 45.0)])
    (job,) = plan(placed(boxes), [image_of(1024, 1024, 1024, 2)], 64, np.arange(500))
    assert job.width >= 1000
    assert len(job.rows) == 500


def test_windows_far_apart_are_apart():
    boxes = np.array([[100.0, 100, 64, 64], [110, 110, 64, 64], [9000, 9000, 64, 64], [100, 9000, 64, 64]])
    jobs = plan(placed(boxes), [image_of(10_000, 10_000, 512, 512)], 64, np.arange(4))
    assert [sorted(job.rows.tolist()) for job in jobs] == [[0, 1], [3], [2]]


# ---- what is decoded

LAYOUTS = {
    "dense, blocks of 512": (12_288, 12_288, 512, 512, 20_000, 150),
    "dense, blocks of 256, windows of 320": (12_288, 12_288, 256, 256, 4_000, 320),
    "dense, decimated": (24_576, 24_576, 512, 512, 4_000, 640),
    "loose": (12_288, 12_288, 512, 512, 400, 150),
    "sparse": (12_288, 12_288, 512, 512, 60, 150),
    "clusters": (12_288, 12_288, 512, 512, 1_000, 150),
    "strips": (10_000, 10_000, 10_000, 1, 10_000, 150),
    "wide": (60_000, 8_192, 512, 512, 50_000, 150),
}


def layout(name: str) -> tuple[Image, np.ndarray]:
    width, height, block_width, block_height, count, side = LAYOUTS[name]
    generator = np.random.default_rng(3)
    centre = generator.random((count, 2)) * (width, height)
    if name == "clusters":
        towns = generator.random((20, 2)) * (width, height)
        centre = np.clip(
            towns[generator.integers(0, 20, count)] + generator.normal(0, 300, (count, 2)), 0, 12_287
        )
    return image_of(width, height, block_width, block_height), np.hstack(
        [centre - side / 2, np.full((count, 2), float(side))]
    )


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("threads", [1, 2])
def test_little_is_decoded_in_vain(name, threads):
    """Blocks decoded with GDAL's block cache over blocks that hold any part of a window."""
    image, boxes = layout(name)
    jobs = plan(placed(boxes), [image], 224, np.arange(len(boxes)))
    needed = touched(image, jobs)
    capacity = CACHE_BYTES // (image.block_width * image.block_height * 3)
    assert decoded(image, shares(jobs, threads), capacity) <= 1.2 * needed


@pytest.mark.parametrize(("name", "factor"), [("sparse", 1.2), ("clusters", 1.5), ("loose", 1.5)])
def test_scattered_footprints_hardly_need_the_cache(name, factor):
    image, boxes = layout(name)
    jobs = plan(placed(boxes), [image], 224, np.arange(len(boxes)))
    assert sum(len(blocks(image, job)) for job in jobs) <= factor * touched(image, jobs)


def shares(jobs: list[TileJob], threads: int) -> list[tuple[int, TileJob]]:
    dealt, dealer = [], JobShares(jobs, threads)
    alive = list(range(threads))
    while alive:
        for thread in tuple(alive):
            job = dealer.take(thread)
            if job is None:
                alive.remove(thread)
            else:
                dealt.append((thread, job))
    return dealt


def blocks(image: Image, job: TileJob) -> list[tuple[int, int, int]]:
    width, height = image.block_width * job.decimation, image.block_height * job.decimation
    return [
        (job.decimation, x, y)
        for y in range(job.row // height, (job.row + job.height - 1) // height + 1)
        for x in range(job.column // width, (job.column + job.width - 1) // width + 1)
    ]


def touched(image: Image, jobs: list[TileJob]) -> int:
    found: set[tuple[int, int, int]] = set()
    for job in jobs:
        step = np.array([image.block_width, image.block_height]) * job.decimation
        last = (np.array([image.grid.width, image.grid.height]) - 1) // step
        low = np.clip(job.boxes[:, :2] // step, 0, last).astype(int)
        high = np.clip((job.boxes[:, :2] + job.boxes[:, 2:]) // step, 0, last).astype(int)
        for (left, top), (right, bottom) in {(tuple(a), tuple(b)) for a, b in zip(low, high, strict=True)}:
            found.update(
                (job.decimation, x, y) for x in range(left, right + 1) for y in range(top, bottom + 1)
            )
    return len(found)


def decoded(image: Image, dealt: list[tuple[int, TileJob]], capacity: int) -> int:
    """Count the blocks that a least-recently-used cache, whose blocks belong to one thread each, misses."""
    cache: OrderedDict[tuple[int, ...], None] = OrderedDict()
    missed = 0
    for thread, job in dealt:
        for block in blocks(image, job):
            if (key := (thread, *block)) in cache:
                cache.move_to_end(key)
                continue
            missed += 1
            cache[key] = None
            if len(cache) > capacity:
                cache.popitem(last=False)
    return missed


# ---- what the sampler makes of it


@pytest.mark.parametrize("side", [20.0, 33.3, 64.0, 100.0])
def test_chips_are_those_of_the_whole_image(write_raster, side):
    """No chip shows where the tiles were cut."""
    pixels = np.random.default_rng(1).integers(0, 255, (3, 512, 768), dtype=np.uint8)
    contract = ChipContract(
        ground_metres=16, chip_pixels=32, bands=("red", "green", "blue"), coarsest_gsd_metres=1
    )
    path = write_raster("a.tif", pixels, tiled=True, blockxsize=64, blockysize=64)
    (image,) = open_imagery([path], contract).images
    centre = np.random.default_rng(2).uniform(0, 1, (60, 2)) * (768, 512)
    boxes = np.hstack([centre - side / 2, np.full((60, 2), side)])
    jobs = plan(placed(boxes), [image], 32, np.arange(60), budget_pixels=40_000)
    assert len(jobs) > 2
    with Reader() as reader:
        for job in jobs:
            place = {"column": job.column, "row": job.row, "width": job.width, "height": job.height}
            tile = reader.read(image, **place, decimation=job.decimation)
            whole = reader.read(image, column=0, row=0, width=768, height=512, decimation=job.decimation)
            found, wanted = cut(tile, job.boxes), cut(whole, job.boxes)
            assert np.array_equal(found[0], wanted[0])
            assert np.array_equal(found[1], wanted[1])


def cut(tile: Tile, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    chips = np.zeros((len(boxes), 32, 32, 3), np.uint8)
    valid_fraction = np.zeros(len(boxes), np.float32)
    sample(tile, boxes, chips, valid_fraction)
    return chips, valid_fraction
