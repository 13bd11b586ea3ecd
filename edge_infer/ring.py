"""The ring of batch slots: the only place where chip buffers change hands.

A slot goes round: free -> filling -> ready -> in flight -> free. Feeder threads claim places and fill
them; one engine thread takes ready slots and gives them back. Waiting for a free slot is the
back-pressure that bounds memory: nothing else in a run holds chips.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from edge_infer.device import Memory
    from edge_infer.shelf import Piece

SPARE_SLOTS = 2
"""A run's slots beyond those in flight: one being filled while one stands ready."""


@dataclass(slots=True, eq=False)
class BatchSlot:
    """One batch of chips and whose they are. Places from `count` on hold no chip (padding)."""

    chips: npt.NDArray[np.uint8]
    """uint8, (B, S, S, C)."""
    rows: npt.NDArray[np.int64]
    """int64, (B,): position of each chip's footprint."""
    valid_fraction: npt.NDArray[np.float32]
    """float32, (B,): share of each chip that the image covers with valid pixels."""
    covered_fraction: npt.NDArray[np.float32]
    """float32, (B,): share of each footprint itself that lies on valid pixels."""
    count: int = 0
    """Places that hold a chip, from the first on."""
    pieces: list[Piece] = field(default_factory=list)
    """Chips that the engine's device is to cut; `chips` and `valid_fraction` are not filled there.

    An engine that sends such chips back takes the pieces away."""

    @classmethod
    def allocate(cls, batch: int, chip_shape: tuple[int, int, int], memory: Memory) -> BatchSlot:
        """Make a slot of `batch` places for chips of `chip_shape` (S, S, C)."""
        return cls(
            chips=memory.allocate((batch, *chip_shape), np.uint8),
            rows=np.zeros(batch, np.int64),
            valid_fraction=np.zeros(batch, np.float32),
            covered_fraction=np.zeros(batch, np.float32),
        )

    @property
    def size(self) -> int:
        """Number of places B."""
        return len(self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Places `start:stop` of one slot, owned by the claimer until it calls `BatchRing.fill`."""

    slot: BatchSlot
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class RingClosedError(Exception):
    """The ring was stopped while a feeder waited for a place; the feeder ends."""


@dataclass(slots=True)
class RingWaits:
    """Seconds spent waiting at the ring, summed over threads."""

    feeders_seconds: float = 0.0
    """Waiting for a free place: near zero when the engine is faster than reading."""
    engine_seconds: float = 0.0
    """Waiting for a ready batch: near zero when reading is faster than the engine."""


@dataclass(slots=True, eq=False)
class _Filling:
    slot: BatchSlot
    claimed: int = 0
    filled: int = 0


@dataclass(slots=True, eq=False, repr=False)
class BatchRing:
    """A fixed set of slots shared by many feeder threads and one engine thread."""

    slots: tuple[BatchSlot, ...]
    waits: RingWaits = field(default_factory=RingWaits)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _free: deque[BatchSlot] = field(default_factory=deque)
    _ready: deque[BatchSlot] = field(default_factory=deque)
    _filling: list[_Filling] = field(default_factory=list)
    _closing: bool = False
    _stopped: bool = False

    def __post_init__(self) -> None:
        """All slots begin free."""
        if len(self.slots) < 2:
            raise ValueError(f"a ring needs at least 2 slots, got {len(self.slots)}")
        self._free.extend(self.slots)

    @classmethod
    def allocate(cls, depth: int, batch: int, chip_shape: tuple[int, int, int], memory: Memory) -> BatchRing:
        """Make a ring of `depth` slots of `batch` places for chips of `chip_shape` (S, S, C)."""
        return cls(tuple(BatchSlot.allocate(batch, chip_shape, memory) for _ in range(depth)))

    # --- feeders ---

    def claim(self, at_most: int) -> Span:
        """Own the next 1 to `at_most` places of one slot; waits for a free slot where none is open.

        Raises:
            RingClosedError: the ring was stopped.

        """
        with self._changed:
            started = time.perf_counter()
            while not self._stopped and not self._open() and not self._free:
                self._changed.wait()
            self.waits.feeders_seconds += time.perf_counter() - started
            if self._stopped:
                raise RingClosedError
            if not self._open():
                self._filling.append(_Filling(self._free.popleft()))
            filling = self._filling[-1]
            start = filling.claimed
            filling.claimed = min(start + at_most, filling.slot.size)
            return Span(filling.slot, start, filling.claimed)

    def fill(self, span: Span) -> None:
        """Say that every place of `span` holds its chip, row and valid fraction."""
        with self._changed:
            filling = next(f for f in self._filling if f.slot is span.slot)
            filling.filled += len(span)
            self._hand_over(filling, part_filled=self._closing)

    def flush(self) -> None:
        """Hand a part-filled slot over as it is, unless some of its places are still being filled.

        Where ready slots wait for the engine it stays open: more chips come into it, and the engine gets on.
        """
        with self._changed:
            if self._open() and not self._ready:
                self._hand_over(self._filling[-1], part_filled=True)

    def close(self) -> None:
        """Say that nothing more will be claimed; a part-filled slot becomes ready as it is."""
        with self._changed:
            self._closing = True
            for filling in tuple(self._filling):
                self._hand_over(filling, part_filled=True)
            self._changed.notify_all()

    # --- the engine thread ---

    def take(self) -> BatchSlot | None:
        """Own the oldest ready slot; waits for one; None once the ring is closed or stopped, and empty."""
        with self._changed:
            started = time.perf_counter()
            while not self._ready and not self._ended():
                self._changed.wait()
            self.waits.engine_seconds += time.perf_counter() - started
            return self._ready.popleft() if self._ready else None

    def wait(self, most_seconds: float) -> bool:
        """Whether `take` would answer at once; waits for that, at most `most_seconds`."""
        with self._changed:
            started = time.perf_counter()
            answer = self._changed.wait_for(lambda: bool(self._ready) or self._ended(), most_seconds)
            self.waits.engine_seconds += time.perf_counter() - started
            return answer

    def give_back(self, slot: BatchSlot) -> None:
        """Free a slot that `take` gave."""
        with self._changed:
            slot.count = 0
            slot.pieces.clear()
            self._free.append(slot)
            self._changed.notify_all()

    # --- either side ---

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def stop(self) -> None:
        """End early: waiting feeders get `RingClosedError`; slots that are ready can still be taken."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    # --- with the lock held ---

    def _open(self) -> bool:
        return bool(self._filling) and self._filling[-1].claimed < self._filling[-1].slot.size

    def _ended(self) -> bool:
        return self._stopped or (self._closing and not self._filling)

    def _hand_over(self, filling: _Filling, *, part_filled: bool) -> None:
        complete = filling.filled == filling.claimed
        if complete and (filling.claimed == filling.slot.size or part_filled):
            self._filling.remove(filling)
            filling.slot.count = filling.filled
            self._ready.append(filling.slot)
            self._changed.notify_all()
