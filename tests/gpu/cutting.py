"""Chips cut by the CUDA kernels alone, without TensorRT; and random tiles and windows to cut.

python tests/gpu/cutting.py      cuts some, for compute-sanitizer; status 1 where they differ from the CPU's
"""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from edge_infer.device.cuda import CudaDevice
from edge_infer.device.cuda_sampler import CudaSampler
from edge_infer.device.gpu import probe_gpu
from edge_infer.imagery import Tile
from edge_infer.sampler import sample, sound_windows
from edge_infer.shelf import TileShelf

if TYPE_CHECKING:
    from numpy.typing import NDArray


def cut_on_gpu(
    device: CudaDevice, tile: Tile, boxes: NDArray[np.float64], side: int, value_range: tuple[float, float]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Chips (k, S, S, C) and valid fractions (k,) as the engine's sampler makes them."""
    bands, driver = len(tile.pixels), device.driver
    shape = (len(boxes), side, side, bands)
    sampler = CudaSampler(device, shape[1:], value_range)
    shelf = TileShelf(np.zeros(tile.pixels.nbytes * 2 + 4096, np.uint8))
    shelved = shelf.put(tile, len(boxes))
    assert shelved is not None
    stream, chips, counts = device.stream(), np.full(shape, 0xA5, np.uint8), np.empty(len(boxes), np.uint32)
    windows = sound_windows(tile, boxes)
    memories = [device.device_memory(a.nbytes) for a in (shelf.memory, windows, chips, counts)]
    on_shelf, on_windows, on_chips, on_counts = map(int, memories)
    try:
        driver.memcpy_htod_async(on_shelf, shelf.memory, stream)
        driver.memcpy_htod_async(on_windows, windows, stream)
        driver.memcpy_htod_async(on_chips, chips, stream)
        driver.memset_d32_async(on_counts, 0, len(boxes), stream)
        sampler.launch(shelved, on_shelf, on_windows, len(boxes), on_chips, on_counts, stream)
        driver.memcpy_dtoh_async(chips, on_chips, stream)
        driver.memcpy_dtoh_async(counts, on_counts, stream)
        stream.synchronize()
    finally:
        for memory in memories:
            memory.free()
        sampler.close()
    return chips, (counts.astype(np.float64) / side**2).astype(np.float32)


def cut_on_cpu(
    tile: Tile, boxes: NDArray[np.float64], side: int, value_range: tuple[float, float]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    chips = np.empty((len(boxes), side, side, len(tile.pixels)), np.uint8)
    valid = np.empty(len(boxes), np.float32)
    sample(tile, boxes, chips, valid, value_range=value_range)
    return chips, valid


def random_tile(rng: np.random.Generator, *, bands: int, wide: bool, masked: bool) -> Tile:
    height, width = rng.integers(1, 400, 2)
    dtype = np.uint16 if wide else np.uint8
    pixels = rng.integers(0, np.iinfo(dtype).max, (bands, height, width), dtype, endpoint=True)
    valid = None
    if masked:
        valid = (rng.random((height, width)) < rng.choice([0.05, 0.5, 0.95])).astype(np.uint8)
        pixels *= valid
    column, row = rng.uniform(-1e5, 1e5, 2)
    scale_x, scale_y = rng.uniform(0.25, 4, 2)
    return Tile(pixels, valid, column=column, row=row, scale_x=scale_x, scale_y=scale_y)


def random_boxes(rng: np.random.Generator, tile: Tile, count: int, side: int) -> NDArray[np.float64]:
    """Windows on, across and off the tile, from magnified to 8 times reduced, some without resampling."""
    _, height, width = tile.pixels.shape
    extents = side * 2 ** rng.uniform(-3, 3, (count, 2))
    extents[::5] = side
    corners = rng.uniform(-0.5, 1, (count, 2)) * [width, height] - extents * rng.uniform(0, 0.5, (count, 2))
    corners[::5] = np.round(corners[::5])
    scale = np.array([tile.scale_x, tile.scale_y])
    origin = np.array([tile.column, tile.row])
    return np.ascontiguousarray(np.hstack([corners * scale + origin, extents * scale]))


def main() -> int:
    rng = np.random.default_rng(0)
    differing = 0
    with closing(CudaDevice(probe_gpu())) as device:
        for number in range(8):
            bands, wide, masked = (1, 3, 4, 16)[number % 4], number % 2 == 1, number >= 4
            tile = random_tile(rng, bands=bands, wide=wide, masked=masked)
            boxes = random_boxes(rng, tile, 9, 37)
            value_range = (100.0, 40_000.0) if wide else (0.0, 255.0)
            found = cut_on_gpu(device, tile, boxes, 37, value_range)
            expected = cut_on_cpu(tile, boxes, 37, value_range)
            differing += int((found[0] != expected[0]).sum()) + int((found[1] != expected[1]).sum())
    print(f"{differing} values differ")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
