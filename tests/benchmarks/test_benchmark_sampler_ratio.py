"""The sampler against OpenCV, as figures that can fail: processor time of one thread each, in turns."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_infer.imagery import Tile
from edge_infer.sampler import sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from pytest_benchmark.fixture import BenchmarkFixture

TILE_PIXELS, SIDE, WINDOWS, TURNS = 1500, 224, 16, 15


def cpu_seconds(work: Callable[[], None]) -> float:
    """Processor time of this thread."""
    started = time.thread_time()
    work()
    return time.thread_time() - started


# The same work: magnified or nearly 1:1, where antialiasing changes nothing. Then reduced, which OpenCV's
# bilinear does by looking at four pixels only.
@pytest.mark.parametrize(
    ("size", "wanted"), [(180, 1.0), (200, 1.0), (213, 1.0), (300, 0.5), (400, 0.5), (440, 0.5)]
)
def test_against_opencv(size: int, wanted: float, benchmark: BenchmarkFixture) -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 256, (3, TILE_PIXELS, TILE_PIXELS), np.uint8)
    interleaved = np.ascontiguousarray(np.moveaxis(planes, 0, -1))
    tile = Tile(planes, None, 0.0, 0.0, 1.0, 1.0)
    corners = rng.integers(0, TILE_PIXELS - size, (WINDOWS, 2))
    boxes = np.column_stack([corners, np.full((WINDOWS, 2), size)]).astype(np.float64)
    out: NDArray[np.uint8] = np.empty((WINDOWS, SIDE, SIDE, 3), np.uint8)
    valid = np.empty(WINDOWS, np.float32)

    def resize() -> None:
        for chip, (x, y) in zip(out, corners.tolist(), strict=True):
            crop = interleaved[y : y + size, x : x + size]
            cv2.resize(crop, (SIDE, SIDE), dst=chip, interpolation=cv2.INTER_LINEAR)

    ours, theirs = [], []

    def turn() -> None:
        ours.append(cpu_seconds(lambda: sample(tile, boxes, out, valid)))
        theirs.append(cpu_seconds(resize))

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        benchmark.pedantic(turn, rounds=TURNS)
    finally:
        cv2.setNumThreads(before)
    speed = min(theirs) / min(ours)
    benchmark.extra_info["speed_over_opencv"] = speed
    print(f"\n{size} px: {min(ours) / WINDOWS * 1e6:.0f} us, OpenCV {min(theirs) / WINDOWS * 1e6:.0f} us")
    assert speed >= wanted
