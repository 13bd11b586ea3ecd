from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_infer.imagery import Tile
from edge_infer.sampler import sample

ROUNDING = 0.5
SINGLE_PRECISION = 2e-6
"""Sums of a few products in float32, relative to the largest source value."""


def make_tile(seed: int, shape: tuple[int, int, int], dtype: Any = np.uint8, invalid: float = 0.0) -> Tile:
    """Noise of the whole value range, or two values only: the hardest for a filter's rounding."""
    random = np.random.default_rng(seed)
    limit = np.iinfo(dtype).max
    pixels = random.integers(0, limit, shape, dtype, endpoint=True)
    if seed % 3 == 0:
        pixels = np.where(pixels > limit // 2, limit, 0).astype(dtype)
    valid = (random.random(shape[1:]) >= invalid).astype(np.uint8) if invalid else None
    return Tile(pixels, valid, 0.0, 0.0, 1.0, 1.0)


def chips_of(tile: Tile, boxes: np.ndarray, side: int, **options) -> tuple[np.ndarray, np.ndarray]:
    chips = np.full((len(boxes), side, side, len(tile.pixels)), 77, np.uint8)
    valid_fraction = np.full(len(boxes), np.nan, np.float32)
    sample(tile, boxes, chips, valid_fraction, **options)
    return chips, valid_fraction


def filter_matrix(origin: float, extent: float, side: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights (side, size) in float64 and the tile pixels under the centres, -1 outside."""
    step = extent / side
    centres = origin + (np.arange(side) + 0.5) * step
    distances = np.abs(np.arange(size) + 0.5 - centres[:, None]) / max(step, 1.0)
    weights = np.maximum(0.0, 1.0 - distances)
    inside = (centres >= 0) & (centres < size)
    weights[inside] /= weights[inside].sum(axis=1, keepdims=True)
    return weights * inside[:, None], np.where(inside, np.floor(centres), -1).astype(int)


def reference(
    tile: Tile, box: np.ndarray, side: int, value_range: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """The chip in float64, not rounded, and which of its pixels are valid."""
    _, height, width = tile.pixels.shape
    across, columns = filter_matrix((box[0] - tile.column) / tile.scale_x, box[2] / tile.scale_x, side, width)
    down, rows = filter_matrix((box[1] - tile.row) / tile.scale_y, box[3] / tile.scale_y, side, height)
    mask = np.ones((height, width)) if tile.valid is None else tile.valid.astype(float)
    valid = (rows >= 0)[:, None] & (columns >= 0) & (mask[rows[:, None], columns] > 0)
    sums = down @ (tile.pixels * mask) @ across.T
    shares = down @ mask @ across.T
    values = np.divide(sums, shares, out=np.zeros_like(sums), where=valid)
    low, high = value_range
    levels = np.clip((values - low) * 255 / (high - low), 0, 255)
    return np.moveaxis(np.where(valid, levels, 0.0), 0, -1), valid


shapes = st.tuples(st.integers(1, 16), st.integers(1, 80), st.integers(1, 80))
seeds = st.integers(0, 2**32)
sides = st.integers(1, 60)


@settings(max_examples=200, deadline=None)
@given(seed=seeds, shape=shapes, side=sides, fractions=st.tuples(*[st.floats(0, 1)] * 4))
def test_agrees_with_pillow_within_one_level(seed, shape, side, fractions):
    # Pillow rounds to 8 bits between its two passes, so two exact roundings may differ by one.
    tile = make_tile(seed, shape)
    _, height, width = shape

    def span(
        start: float, length: float, size: int
    ) -> tuple[float, float]:  # steps that float32 holds exactly
        first = math.floor(start * (size * 64 - 1))
        return first / 64, max(1, math.floor(length * (size * 64 - first))) / 64

    x, box_width = span(fractions[0], fractions[1], width)
    y, box_height = span(fractions[2], fractions[3], height)
    chips, valid_fraction = chips_of(tile, np.array([[x, y, box_width, box_height]]), side)
    for band, plane in enumerate(tile.pixels):
        expected = Image.fromarray(plane).resize(
            (side, side), Image.Resampling.BILINEAR, box=(x, y, x + box_width, y + box_height)
        )
        np.testing.assert_allclose(chips[0, :, :, band].astype(int), np.asarray(expected, int), atol=1)
    assert valid_fraction.tolist() == [1.0]


@settings(max_examples=300, deadline=None)
@given(
    seed=seeds,
    shape=shapes,
    dtype=st.sampled_from([np.uint8, np.uint16]),
    invalid=st.sampled_from([0.0, 0.02, 0.5, 0.98]),
    side=sides,
    place=st.tuples(st.floats(-90, 90), st.floats(-90, 90)),
    size=st.tuples(st.floats(0.01, 200), st.floats(0.01, 200)),
    frame=st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(0.5, 16), st.floats(0.5, 16)),
    value_range=st.none() | st.tuples(st.integers(-100, 40_000), st.integers(200, 30_000)),
)
def test_agrees_with_the_filter_in_float64(
    seed, shape, dtype, invalid, side, place, size, frame, value_range
):
    column, row, scale_x, scale_y = frame
    tile = replace(
        make_tile(seed, shape, dtype, invalid), column=column, row=row, scale_x=scale_x, scale_y=scale_y
    )
    low, high = (0.0, 255.0) if value_range is None else (value_range[0], sum(value_range))
    box = np.array(
        [column + place[0] * scale_x, row + place[1] * scale_y, size[0] * scale_x, size[1] * scale_y]
    )
    chips, valid_fraction = chips_of(tile, box[None], side, value_range=(low, high))
    levels, valid = reference(tile, box, side, (low, high))
    slack = SINGLE_PRECISION * np.iinfo(dtype).max * 255 / (high - low)
    np.testing.assert_allclose(chips[0].astype(float), levels, rtol=0, atol=ROUNDING + slack)
    assert not chips[0][~valid].any()
    assert valid_fraction[0] == np.float32(valid.mean())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("bands", [1, 3, 16])
def test_whole_pixels_are_copied(dtype, bands):
    tile = make_tile(1, (bands, 50, 61), dtype)
    top = np.iinfo(dtype).max
    chips, _ = chips_of(tile, np.array([[7.0, 5, 40, 40], [21, 10, 40, 40]]), 40, value_range=(0, top))
    for chip, column, row in zip(chips, (7, 21), (5, 10), strict=True):
        copied = np.moveaxis(tile.pixels[:, row : row + 40, column : column + 40], 0, -1)
        np.testing.assert_array_equal(chip, np.rint(copied * (255 / top)))


def test_noise_of_a_transform_does_not_blur():
    tile = make_tile(0, (1, 30, 30))
    boxes = np.array([[4.0, 6.0, 20.0, 20.0], [4 + 3e-7, 6 - 3e-7, 20 - 2e-7, 20 + 2e-7]])
    chips, _ = chips_of(tile, boxes, 20)
    np.testing.assert_array_equal(chips[0], chips[1])


def test_window_that_leaves_the_tile():
    tile = Tile(np.full((2, 40, 40), 200, np.uint8), None, 100.0, 50.0, 1.0, 1.0)
    boxes = np.array([[90, 50, 20, 20], [130, 80, 20, 20], [0, 0, 20, 20], [2e9, -2e9, 20, 20]], float)
    chips, valid_fraction = chips_of(tile, boxes, 20)
    assert valid_fraction.tolist() == [0.5, 0.25, 0, 0]
    assert not chips[0, :, :10].any()
    assert (chips[0, :, 10:] == 200).all()
    assert (chips[1, :10, :10] == 200).all()
    assert chips[1].sum() == 2 * 10 * 10 * 200
    assert not chips[2:].any()


def test_invalid_pixels_weigh_nothing():
    clean = make_tile(4, (3, 60, 60), invalid=0.3)
    assert clean.valid is not None
    dirty = replace(clean, pixels=np.where(clean.valid == 0, 255 - clean.pixels, clean.pixels))
    box = np.array([[3.3, 4.4, 50.1, 48.8]])
    np.testing.assert_array_equal(chips_of(clean, box, 32)[0], chips_of(dirty, box, 32)[0])


def test_any_mask_value_but_zero_is_valid():
    tile = make_tile(4, (3, 60, 60), invalid=0.3)
    assert tile.valid is not None
    box = np.array([[3.3, 4.4, 50.1, 48.8]])
    np.testing.assert_array_equal(
        chips_of(tile, box, 32)[0], chips_of(replace(tile, valid=tile.valid * np.uint8(255)), box, 32)[0]
    )


def test_the_widest_window_there_is():
    tile = make_tile(2, (3, 300, 200))
    box = np.array([[-30_000.0, -32_768.0, 65_536.0, 65_536.0]])
    for side in (1, 3):
        chips, _ = chips_of(tile, box, side)
        levels, _ = reference(tile, box[0], side, (0, 255))
        np.testing.assert_allclose(chips[0], levels, rtol=0, atol=ROUNDING + 0.01)


def test_threads_and_callers_share_the_work():
    tile = make_tile(7, (3, 200, 200), invalid=0.01)
    random = np.random.default_rng(7)
    boxes = np.column_stack([random.uniform(-20, 180, (64, 2)), random.uniform(5, 90, (64, 2))])
    alone = chips_of(tile, boxes, 48)
    with ThreadPoolExecutor(4) as pool:
        for together in pool.map(lambda threads: chips_of(tile, boxes, 48, threads=threads), (1, 2, 3, 200)):
            np.testing.assert_array_equal(together[0], alone[0])
            np.testing.assert_array_equal(together[1], alone[1])


def test_no_windows():
    chips, valid_fraction = chips_of(make_tile(1, (3, 9, 9)), np.empty((0, 4)), 8, threads=4)
    assert chips.shape == (0, 8, 8, 3)
    assert valid_fraction.shape == (0,)


def test_boxes_may_be_any_view():
    tile = make_tile(1, (3, 50, 50))
    boxes = np.array([[1.5, 2.5, 30, 31], [3.5, 4.5, 20, 21.5]])
    np.testing.assert_array_equal(
        chips_of(tile, boxes, 16)[0], chips_of(tile, np.asfortranarray(boxes), 16)[0]
    )


@pytest.mark.parametrize(
    "box",
    [
        *[
            [*([5.0] * at), bad, *([5.0] * (3 - at))]
            for at in range(4)
            for bad in (np.nan, np.inf, -np.inf, 1e300)
        ],
        [0, 0, 0, 5],
        [0, 0, 5, -5],
        [0, 0, 65_537, 5],
        [-3e9, 0, 5, 5],
    ],
)
def test_refuses_windows_that_cannot_be_meant(box):
    tile = make_tile(1, (1, 9, 9))
    boxes = np.array([[1.0, 1.0, 4.0, 4.0], box])
    chips, valid_fraction = np.full((2, 8, 8, 1), 77, np.uint8), np.full(2, 7, np.float32)
    with pytest.raises(ValueError, match="window 1 starts at"):
        sample(tile, boxes, chips, valid_fraction)
    assert (chips == 77).all()
    assert (valid_fraction == 7).all()


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def changed(**changes: Any) -> Tile:
    return replace(TILE, **changes)


PIXELS = np.zeros((3, 20, 30), np.uint8)
TILE = Tile(PIXELS, None, 0.0, 0.0, 1.0, 1.0)
BOXES = np.array([[1.0, 2.0, 10.0, 10.0]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tile": changed(pixels=PIXELS.astype(np.int16))},
            "tile.pixels must be an array of uint8 or uint16",
        ),
        (
            {"tile": changed(pixels=PIXELS.astype(">u2"))},
            "tile.pixels must be an array of uint8 or uint16",
        ),
        (
            {"tile": changed(pixels=PIXELS.tolist())},
            "tile.pixels must be an array of uint8 or uint16, got list",
        ),
        ({"tile": changed(pixels=PIXELS[0])}, r"must have shape \(any, any, any\), got \(20, 30\)"),
        ({"tile": changed(pixels=PIXELS[:, :, ::2])}, "tile.pixels must be C-contiguous"),
        ({"tile": changed(pixels=np.zeros((17, 4, 4), np.uint8))}, "1 to 16 bands"),
        ({"tile": changed(pixels=PIXELS[:, :0])}, "1 to 16 bands of pixels"),
        (
            {"tile": changed(valid=np.ones((20, 30), bool))},
            "tile.valid must be an array of uint8, got bool",
        ),
        (
            {"tile": changed(valid=np.ones((30, 20), np.uint8))},
            r"tile.valid must have shape \(20, 30\)",
        ),
        ({"tile": changed(scale_x=0.0)}, "wanted finite, positive scales"),
        ({"tile": changed(column=math.nan)}, "wanted finite"),
        ({"boxes": BOXES.astype(np.float32)}, "boxes must be an array of float64"),
        ({"boxes": BOXES[:, :3]}, r"boxes must have shape \(any, 4\), got \(1, 3\)"),
        ({"out": np.zeros((1, 8, 8, 3), np.float32)}, "out must be an array of uint8"),
        (
            {"out": np.zeros((2, 8, 8, 3), np.uint8)},
            r"out must have shape \(1, any, any, 3\), got \(2, 8, 8, 3\)",
        ),
        ({"out": np.zeros((1, 8, 8, 4), np.uint8)}, "out must have shape"),
        ({"out": np.zeros((1, 8, 9, 3), np.uint8)}, "chips must be square"),
        ({"out": np.zeros((1, 0, 0, 3), np.uint8)}, "chips must be square, of 1 to 4096 pixels"),
        ({"out": np.zeros((1, 3, 8, 8), np.uint8).transpose(0, 2, 3, 1)}, "out must be C-contiguous"),
        ({"out": read_only(np.zeros((1, 8, 8, 3), np.uint8))}, "out is read-only"),
        ({"valid_fraction": np.zeros(2, np.float32)}, r"valid_fraction must have shape \(1\)"),
        ({"valid_fraction": np.zeros(1)}, "valid_fraction must be an array of float32"),
        ({"valid_fraction": read_only(np.zeros(1, np.float32))}, "valid_fraction is read-only"),
        ({"value_range": (5.0, 5.0)}, "value_range must be finite and rise, got 5.0..5.0"),
        ({"value_range": (0.0, math.inf)}, "value_range must be finite"),
        ({"threads": 0}, "threads must be 1 or more, got 0"),
    ],
)
def test_refuses_what_does_not_fit(changes, message):
    arguments = {
        "tile": TILE,
        "boxes": BOXES,
        "out": np.zeros((1, 8, 8, 3), np.uint8),
        "valid_fraction": np.zeros(1, np.float32),
    }
    with pytest.raises(ValueError, match=message):
        sample(**{**arguments, **changes})
