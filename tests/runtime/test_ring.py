from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_infer.device.host import ALIGNMENT_BYTES, HostMemory
from edge_infer.ring import BatchRing, BatchSlot, RingClosedError, Span


def make_ring(depth: int = 3, batch: int = 4) -> BatchRing:
    return BatchRing.allocate(depth, batch, (2, 2, 1), HostMemory())


class RingMachine(RuleBasedStateMachine):
    """Any order of calls from any side: no slot in two hands, no chip lost, none twice."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = make_ring()
        self.claimed: list[tuple[Span, np.ndarray]] = []
        self.taken: list[BatchSlot] = []
        self.next_row = 0
        self.filled: set[int] = set()
        self.seen: list[int] = []
        self.closed = False

    def places_left(self) -> bool:
        return bool(self.ring._free) or self.ring._open()

    @precondition(lambda self: not self.closed and self.places_left())
    @rule(wanted=st.integers(1, 9))
    def claim(self, wanted: int) -> None:
        span = self.ring.claim(wanted)
        assert 1 <= len(span) <= wanted
        rows = np.arange(self.next_row, self.next_row + len(span))
        self.next_row += len(span)
        self.claimed.append((span, rows))

    @precondition(lambda self: self.claimed)
    @rule(data=st.data())
    def fill(self, data: st.DataObject) -> None:
        span, rows = self.claimed.pop(data.draw(st.integers(0, len(self.claimed) - 1)))
        span.slot.rows[span.start : span.stop] = rows
        self.filled.update(rows.tolist())
        self.ring.fill(span)

    @precondition(lambda self: self.ring._ready)
    @rule()
    def take(self) -> None:
        slot = self.ring.take()
        assert slot is not None
        self.taken.append(slot)

    @precondition(lambda self: self.taken)
    @rule()
    def give_back(self) -> None:
        slot = self.taken.pop(0)
        assert 1 <= slot.count <= slot.size
        self.seen.extend(slot.rows[: slot.count].tolist())
        self.ring.give_back(slot)

    @precondition(lambda self: not self.closed and not self.claimed)
    @rule()
    def close(self) -> None:
        self.ring.close()
        self.closed = True

    @rule()
    def flush(self) -> None:
        """A part-filled slot goes on, unless someone is still filling it or others wait; no place is lost."""
        last = self.ring._filling[-1] if self.ring._open() else None
        ready = len(self.ring._ready)
        self.ring.flush()
        handed_over = last is not None and last.filled == last.claimed and not ready
        assert len(self.ring._ready) == ready + handed_over

    @rule()
    def look(self) -> None:
        ended = self.closed and not self.ring._filling
        assert self.ring.wait(0) == (bool(self.ring._ready) or ended)

    @invariant()
    def every_slot_is_in_one_place(self) -> None:
        places = [*self.ring._free, *self.ring._ready, *(f.slot for f in self.ring._filling), *self.taken]
        assert sorted(map(id, places)) == sorted(map(id, self.ring.slots))

    @invariant()
    def spans_do_not_overlap(self) -> None:
        held = [(id(s.slot), place) for s, _ in self.claimed for place in range(s.start, s.stop)]
        assert len(held) == len(set(held))

    def teardown(self) -> None:
        for span, rows in self.claimed:
            span.slot.rows[span.start : span.stop] = rows
            self.filled.update(rows.tolist())
            self.ring.fill(span)
        if not self.closed:
            self.ring.close()
        while self.taken:
            self.give_back()
        while (slot := self.ring.take()) is not None:
            self.taken.append(slot)
            self.give_back()
        assert sorted(self.seen) == sorted(self.filled)


TestRing = RingMachine.TestCase
TestRing.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_threads_pass_every_row_once() -> None:
    ring = make_ring(depth=3, batch=5)
    rows = iter(range(2000))
    lock = threading.Lock()
    left = [4]

    def feed() -> None:
        while True:
            with lock:
                mine = [row for _, row in zip(range(7), rows, strict=False)]
            if not mine:
                break
            while mine:
                span = ring.claim(len(mine))
                span.slot.rows[span.start : span.stop] = mine[: len(span)]
                del mine[: len(span)]
                ring.fill(span)
        with lock:
            left[0] -= 1
            if left[0] == 0:
                ring.close()

    threads = [threading.Thread(target=feed) for _ in range(4)]
    for thread in threads:
        thread.start()
    seen: list[int] = []
    while (slot := ring.take()) is not None:
        seen.extend(slot.rows[: slot.count].tolist())
        ring.give_back(slot)
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(2000))


def test_stop_wakes_a_waiting_feeder_and_lets_ready_slots_be_taken() -> None:
    ring = make_ring(depth=2, batch=1)
    for _ in range(2):
        ring.fill(ring.claim(1))
    raised = threading.Event()

    def feed() -> None:
        with pytest.raises(RingClosedError):
            ring.claim(1)
        raised.set()

    thread = threading.Thread(target=feed)
    thread.start()
    ring.stop()
    thread.join(5)
    assert raised.is_set()
    assert ring.take() is not None
    assert ring.take() is not None
    assert ring.take() is None


def test_a_ring_of_one_slot_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 slots, got 1"):
        make_ring(depth=1)


def test_host_memory_is_zeroed_aligned_and_contiguous() -> None:
    array = HostMemory().allocate((3, 5, 7), np.float32)
    assert array.ctypes.data % ALIGNMENT_BYTES == 0
    assert array.flags.c_contiguous
    assert array.shape == (3, 5, 7)
    assert not array.any()
