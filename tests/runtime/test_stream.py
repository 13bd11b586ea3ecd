"""Chips through an engine that is kept full."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_infer.device.host import HostMemory
from edge_infer.engine.stream import classify_batches, keep_full

SHAPE = (2, 2, 3)


class Echo:
    """Answers each chip with its first value, and watches what is done to it.

    A slot is read when it is collected, as an engine may: whoever writes into it before spoils the answer.
    """

    def __init__(self, batch: int, depth: int) -> None:
        self.facts = SimpleNamespace(batch=batch)
        self.memory, self.depth, self.most = HostMemory(), depth, 0
        self.running: deque[Any] = deque()

    @property
    def in_flight(self) -> int:
        return len(self.running)

    def submit(self, slot) -> None:
        assert slot not in self.running
        self.running.append(slot)
        self.most = max(self.most, len(self.running))
        assert self.most <= self.depth

    def collect(self):
        slot = self.running.popleft()
        return slot, slot.chips[: slot.count, 0, 0, :1].astype(np.float32)


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    batch=st.integers(1, 5),
    depth=st.integers(1, 4),
)
def test_every_chip_is_answered_in_order(sizes: list[int], batch: int, depth: int) -> None:
    sizes[0] += 1  # there is a chip
    engine: Any = Echo(batch, depth)
    chips = np.zeros((sum(sizes), *SHAPE), np.uint8)
    chips[:, 0, 0, 0] = np.arange(len(chips))
    batches = np.split(chips, np.cumsum(sizes)[:-1])
    found = classify_batches(engine, SHAPE, batches)
    np.testing.assert_array_equal(found[:, 0], np.arange(len(chips)))
    pieces = sum(-(-size // batch) for size in sizes)
    assert engine.in_flight == 0
    assert engine.most == min(depth, pieces)


def test_the_next_batch_is_filled_while_the_engine_is_full() -> None:
    engine: Any = Echo(batch=2, depth=3)
    left = iter(range(8))
    waiting = []

    def fill(slot) -> bool:
        waiting.append(engine.in_flight)
        number = next(left, None)
        slot.count, slot.chips[:] = 1, number or 0
        return number is not None

    slots = [id(slot) for slot, _ in keep_full(engine, SHAPE, fill)]
    assert waiting == [0, 1, 2, 3, 3, 3, 3, 3, 3]
    assert len(slots) == 8
    assert len(set(slots)) == engine.depth + 1


def test_what_goes_wrong_while_filling_is_raised() -> None:
    engine: Any = Echo(batch=2, depth=2)

    def batches():
        yield np.zeros((2, *SHAPE), np.uint8)
        raise OSError("no such chip")

    with pytest.raises(OSError, match="no such chip"):
        classify_batches(engine, SHAPE, batches())
