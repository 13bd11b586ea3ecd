"""How much a run takes of a machine: threads, tiles, cache. Pure arithmetic, and two look-ups.

A Jetson Orin Nano (6 cores, 8 GB that its GPU shares) gets 6 readers, tiles of 4 Mpx and 360 MB of cache for
images of three bytes a pixel.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

MOST_READERS = {"openvino": 4, "tensorrt": 16, "instant": 16}
"""Reader threads by engine: with OpenVINO more only wait for it."""
TILE_PIXELS = 4_194_304
"""Larger tiles gained nothing; 12 MB of RGB."""
LEAST_TILE_PIXELS = 1_048_576
"""Holds a window at any decimation."""
PIXEL_BYTES = 16
"""Of one tile at work: 4 bands of 16 bit, and as much again while GDAL's pieces are put together."""
READER_CACHE_PIXELS = 20 * 2**20
"""How far back the blocks lie that a reader's next row of tiles needs again: a stripe of the plan, two tiles
high. That follows from the plan's order, not from the size of the scene; more cache is not used."""
LEAST_CACHE_BYTES = 32 * 2**20
MOST_SHARE = 16
"""Cache, and tiles at work, take one part in so many of the memory each, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What one run takes."""

    threads: int
    """Reader threads."""
    tile_pixels: int
    """Most pixels of a tile, bands counted once."""

    def __post_init__(self) -> None:
        """Refuse sizes that no run can work with."""
        if self.threads < 1 or self.tile_pixels < LEAST_TILE_PIXELS:
            raise ValueError(
                f"wanted a thread and {LEAST_TILE_PIXELS} pixels a tile at least, got {self.threads} and "
                f"{self.tile_pixels}"
            )


def choose_sizes(
    engine: str,
    *,
    cores: int,
    memory_bytes: int,
    threads: int | None = None,
    tile_pixels: int | None = None,
) -> Sizes:
    """Choose for an engine of this name what is not given."""
    threads = threads or max(1, min(cores, MOST_READERS[engine]))
    fitting = memory_bytes // (MOST_SHARE * threads * PIXEL_BYTES)
    return Sizes(
        threads=threads,
        tile_pixels=tile_pixels or max(LEAST_TILE_PIXELS, min(TILE_PIXELS, fitting)),
    )


def choose_cache_bytes(*, threads: int, pixel_bytes: int, memory_bytes: int) -> int:
    """Choose the size of GDAL's cache of decoded blocks, which all `threads` readers share.

    pixel_bytes: of a decoded pixel, all bands together.
    """
    wanted = READER_CACHE_PIXELS * pixel_bytes * threads
    return max(LEAST_CACHE_BYTES, min(wanted, memory_bytes // MOST_SHARE))


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def installed_memory_bytes() -> int:
    """Memory of the machine; 8 GB where the system does not tell (Windows)."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 8 * 10**9
