"""Run by tests/runtime/test_fake_gpu.py in a process of its own, whose libcuda.so.1 is fake_cuda.cpp."""

from __future__ import annotations

import ctypes
import gc
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import tensorrt

from edge_infer.device.cuda import CudaDevice
from edge_infer.device.gpu import probe_gpu
from edge_infer.engine import GpuOptions
from edge_infer.engine.tensorrt.bindings import load_tensorrt
from edge_infer.engine.tensorrt.runtime import TensorRtEngine
from edge_infer.manifest import ChipContract

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIDE, BANDS, MEMORY_BYTES = 12, 3, 8 << 30
HELD = ("contexts", "stack", "device", "pinned", "streams", "events", "graphs", "executables", "modules")


class Fake:
    """The controls of the stand-in for CUDA."""

    def __init__(self):
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._cuda.fake_count.restype = ctypes.c_long

    def count(self, what: str) -> int:
        return int(self._cuda.fake_count(what.encode()))

    def fail(self, function: str, *, after: int, code: int) -> None:
        self._cuda.fake_fail(function.encode(), after, code)

    def set(self, *, integrated: bool = False, memory_bytes: int = MEMORY_BYTES) -> None:
        self._cuda.fake_set(int(integrated), ctypes.c_size_t(memory_bytes))

    def held(self) -> dict[str, int]:
        return {what: self.count(what) for what in HELD if self.count(what)}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """After each test nothing is left: no memory, no stream, no context."""
    monkeypatch.setattr("edge_infer.engine.tensorrt.runtime.SHELF_BYTES", 1 << 20)
    fake = Fake()
    fake.set()
    yield fake
    gc.collect()
    assert fake.held() == {}
    assert not any(tensorrt.live.values()), tensorrt.live


@pytest.fixture
def contract() -> ChipContract:
    return ChipContract(
        ground_metres=6, chip_pixels=SIDE, bands=("red", "green", "blue"), coarsest_gsd_metres=2
    )


@pytest.fixture
def open_engine(fake: Fake, contract: ChipContract) -> Callable[..., closing[TensorRtEngine]]:
    def open_it(*, batch: int = 4, plan: str = "", **options) -> closing[TensorRtEngine]:
        facts = probe_gpu()
        device = CudaDevice(facts)
        try:
            engine = TensorRtEngine(
                device,
                load_tensorrt(facts.driver),
                (plan or f"brightness {SIDE} {BANDS} {batch}").encode(),
                contract,
                2,
                batch=batch,
                precision="fp32",
                why="a test",
                options=GpuOptions(**options),
            )
        except BaseException:
            device.close()
            raise
        return closing(engine)

    return open_it
