"""Chips from a decoded tile, beside OpenCV's bilinear resize of the same windows (which does not antialias).

Each test cuts WINDOWS windows with one thread; divide the times by it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge_infer._native import _ext
from edge_infer.imagery import Tile
from edge_infer.sampler import sample

WINDOWS = 16
SIDE = 224
TILE_PIXELS = 1500
SIZES = [200.0, 213.3, 224.0, 300.0, 400.0, 440.0]


def make_tile(bands: int = 3, dtype: Any = np.uint8) -> Tile:
    random = np.random.default_rng(0)
    shape = (bands, TILE_PIXELS, TILE_PIXELS)
    pixels = random.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    return Tile(pixels, None, 0.0, 0.0, 1.0, 1.0)


def make_boxes(size: float) -> np.ndarray:
    corners = np.random.default_rng(1).uniform(0, TILE_PIXELS - size, (WINDOWS, 2))
    return np.column_stack([corners, np.full((WINDOWS, 2), size)])


def run(benchmark, tile: Tile, size: float, **options) -> None:
    out = np.empty((WINDOWS, SIDE, SIDE, len(tile.pixels)), np.uint8)
    valid_fraction = np.empty(WINDOWS, np.float32)
    benchmark(sample, tile, make_boxes(size), out, valid_fraction, **options)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_sampler(benchmark, bands, size):
    benchmark.group = f"{bands} bands, {size:g} to {SIDE} px"
    run(benchmark, make_tile(bands), size)


@pytest.mark.parametrize("layout", ["interleaved", "planar"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_opencv(benchmark, bands, size, layout):
    """From pixels as OpenCV wants them, and from planes, as GDAL reads them and as a tile holds them."""
    cv2 = pytest.importorskip("cv2")
    benchmark.group = f"{bands} bands, {size:g} to {SIDE} px"
    planes = make_tile(bands).pixels
    pixels = np.ascontiguousarray(np.moveaxis(planes, 0, -1))
    out = np.empty((WINDOWS, SIDE, SIDE, bands), np.uint8)
    corners = make_boxes(size)[:, :2].astype(int)
    length = int(size)

    def resize_all() -> None:
        for chip, (x, y) in zip(out, corners, strict=True):
            if layout == "planar":
                crop = np.ascontiguousarray(np.moveaxis(planes[:, y : y + length, x : x + length], 0, -1))
            else:
                crop = pixels[y : y + length, x : x + length]
            chip[...] = cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR).reshape(chip.shape)

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        benchmark(resize_all)
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize("path", _ext.PATHS[1:])
def test_path(benchmark, path):
    benchmark.group = "ways to the same chip, 3 bands, 200 px"
    out = np.empty((WINDOWS, SIDE, SIDE, 3), np.uint8)
    valid_fraction = np.empty(WINDOWS, np.float32)
    benchmark(
        _ext.sample, make_tile().pixels, None, make_boxes(200), out, valid_fraction, 0.0, 255.0, 1, path
    )


@pytest.mark.parametrize("kind", ["uint8", "uint16", "half masked", "mask of ones", "two threads"])
def test_kind(benchmark, kind):
    benchmark.group = "kinds of tile, 3 bands, 300 px"
    tile = make_tile(dtype=np.uint16 if kind == "uint16" else np.uint8)
    if "mask" in kind:
        valid = np.ones((TILE_PIXELS, TILE_PIXELS), np.uint8)
        valid[:, ::2] = kind == "mask of ones"
        tile = Tile(tile.pixels, valid, 0.0, 0.0, 1.0, 1.0)
    value_range = (0.0, 4095.0) if kind == "uint16" else (0.0, 255.0)
    run(benchmark, tile, 300, value_range=value_range, threads=2 if kind == "two threads" else 1)
