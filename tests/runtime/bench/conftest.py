"""A clock that stands still, and an engine whose speed is known."""

from __future__ import annotations

import io
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_infer.bundle import open_bundle, write_bundle
from edge_infer.device.host import HostMemory
from edge_infer.engine import EngineFacts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_infer.engine import Precision

ENQUEUE_SECONDS = 0.001


@dataclass
class FakeClock:
    """Goes on only when told to."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeEngine:
    """Takes batches in at once, works on one at a time, each for `seconds_of(number)`."""

    clock: FakeClock
    batch: int = 4
    depth: int = 3
    precision: Precision = "fp32"
    device: str = "paper"
    answer: Callable[[np.ndarray], np.ndarray] = lambda probabilities: probabilities
    seconds_of: Callable[[int], float] = lambda _: 0.010
    submitted: list[Any] = field(default_factory=list)
    most_in_flight: int = 0
    closed: bool = False
    _running: deque[tuple[Any, float]] = field(default_factory=deque)
    _free_at: float = 0.0

    def __post_init__(self) -> None:
        self.memory, self.cutter = HostMemory(), None

    @property
    def facts(self) -> EngineFacts:
        return EngineFacts(
            name="openvino",
            version="0",
            precision=self.precision,
            device=self.device,
            batch=self.batch,
            why="test",
        )

    @property
    def in_flight(self) -> int:
        return len(self._running)

    def submit(self, slot: Any) -> None:
        self.clock.now += ENQUEUE_SECONDS
        self._free_at = max(self.clock.now, self._free_at) + self.seconds_of(len(self.submitted))
        self.submitted.append(slot)
        self._running.append((slot, self._free_at))
        self.most_in_flight = max(self.most_in_flight, len(self._running))

    def collect(self) -> tuple[Any, np.ndarray]:
        slot, at = self._running.popleft()
        self.clock.now = max(self.clock.now, at)
        bright = slot.chips[: slot.count].mean(axis=(1, 2, 3), dtype=np.float32)[:, None] / 255
        return slot, self.answer(np.hstack([1 - bright, bright]))

    def close(self) -> None:
        assert not self.closed
        self.closed = True


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def fake_engine(clock: FakeClock) -> Callable[..., FakeEngine]:
    return lambda **options: FakeEngine(clock, **options)


@pytest.fixture
def golden_bundle(make_bundle: Callable[..., Path]) -> Path:
    """A bundle whose 10 golden chips get the answers that are stored with them."""
    path = make_bundle()
    bundle = open_bundle(path)
    chips = np.random.default_rng(1).integers(0, 256, (10, *bundle.manifest.contract.chip_shape), np.uint8)
    bright = chips.mean(axis=(1, 2, 3), dtype=np.float64)[:, None] / 255
    expected = np.hstack([1 - bright, bright]).astype(np.float32)
    members = {"model.onnx": bundle.read("model.onnx")}
    for name, array in (("golden/chips.npy", chips), ("golden/expected.npy", expected)):
        content = io.BytesIO()
        np.save(content, array)
        members[name] = content.getvalue()
    path.unlink()
    write_bundle(path, bundle.manifest, members)
    return path
