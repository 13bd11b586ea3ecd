"""What a run takes of a machine."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_infer import sizes
from edge_infer.sizes import Sizes, available_cores, choose_cache_bytes, choose_sizes, installed_memory_bytes

GIGABYTE = 2**30
MACHINES = {"cores": st.integers(1, 256), "memory_bytes": st.integers(GIGABYTE // 4, 2048 * GIGABYTE)}


@pytest.mark.parametrize(
    ("engine", "cores", "gigabytes", "pixel_bytes", "wanted", "cache_megabytes"),
    [
        ("tensorrt", 6, 7.4, 3, (6, 4_194_304), 360),  # Jetson Orin Nano
        ("openvino", 2, 23, 3, (2, 4_194_304), 120),
        ("openvino", 2, 23, 8, (2, 4_194_304), 320),
        ("openvino", 4, 1, 3, (4, 1_048_576), 64),  # a Raspberry Pi
        ("tensorrt", 64, 512, 3, (16, 4_194_304), 960),
    ],
)
def test_machines(
    engine: str,
    cores: int,
    gigabytes: float,
    pixel_bytes: int,
    wanted: tuple[int, int],
    cache_megabytes: int,
) -> None:
    memory = int(gigabytes * GIGABYTE)
    chosen = choose_sizes(engine, cores=cores, memory_bytes=memory)
    assert (chosen.threads, chosen.tile_pixels) == wanted
    cache = choose_cache_bytes(threads=chosen.threads, pixel_bytes=pixel_bytes, memory_bytes=memory)
    assert cache == cache_megabytes * 2**20


@given(engine=st.sampled_from(sorted(sizes.MOST_READERS)), **MACHINES)
def test_more_of_a_machine_never_means_less(engine: str, cores: int, memory_bytes: int) -> None:
    chosen = choose_sizes(engine, cores=cores, memory_bytes=memory_bytes)
    assert 1 <= chosen.threads <= cores
    wider = choose_sizes(engine, cores=cores, memory_bytes=2 * memory_bytes)
    assert wider.tile_pixels >= chosen.tile_pixels
    cache = choose_cache_bytes(threads=chosen.threads, pixel_bytes=3, memory_bytes=memory_bytes)
    assert cache <= choose_cache_bytes(
        threads=chosen.threads + 1, pixel_bytes=4, memory_bytes=2 * memory_bytes
    )
    assert cache <= max(sizes.LEAST_CACHE_BYTES, memory_bytes / 16)


def test_what_is_given_is_taken() -> None:
    chosen = choose_sizes("openvino", cores=2, memory_bytes=GIGABYTE, threads=9, tile_pixels=2_000_000)
    assert chosen == Sizes(threads=9, tile_pixels=2_000_000)


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"tile_pixels": 1000}])
def test_sizes_that_cannot_work_are_refused(wrong: dict[str, int]) -> None:
    right = {"threads": 1, "tile_pixels": 2**20}
    with pytest.raises(ValueError, match="at least"):
        Sizes(**(right | wrong))


def test_this_machine() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
    assert installed_memory_bytes() > GIGABYTE // 4
