"""Ways to load an engine in order to time it: one batch at a time, or as many at once as it takes.

Any engine will do, idle at the start and at the end; whoever calls is the thread that drives it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from edge_infer.ring import BatchSlot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from edge_infer.engine import Engine

MOST_SLOTS = 16
"""Batches of different chips that take turns; enough that no cache holds the input of the next one ..."""
SLOTS_BYTES = 64 << 20
"""... but no more memory than this beyond what the engine has in flight anyway."""


@dataclass(frozen=True, slots=True, eq=False)
class BatchTimes:
    """Times of batches run one after the other, float64 (runs,), in milliseconds, as trtexec defines them.

    None where an engine has no such part: nothing is sent anywhere on a CPU.
    """

    h2d: npt.NDArray[np.float64] | None
    """Chips to the GPU, by its clock; 0 where they are mapped."""
    compute: npt.NDArray[np.float64] | None
    """From the first kernel to the last, by the GPU's clock."""
    d2h: npt.NDArray[np.float64] | None
    """Probabilities back, by the GPU's clock; 0 where they are mapped."""
    enqueue: npt.NDArray[np.float64]
    """The host's time to hand the batch over: where it exceeds `compute`, the host limits."""
    wall: npt.NDArray[np.float64]
    """By the host's clock, from submitting the batch to holding its probabilities."""

    @property
    def host_latency(self) -> npt.NDArray[np.float64]:
        """What trtexec calls host latency: H2D + compute + D2H; on a CPU all there is, from end to end."""
        if self.h2d is None or self.compute is None or self.d2h is None:
            return self.wall
        return self.h2d + self.compute + self.d2h


@runtime_checkable
class TimesItself(Protocol):
    """An engine whose device has a clock of its own."""

    def time_batches(self, slot: BatchSlot, runs: int, *, warm_up: int = 10) -> BatchTimes:
        """Run one slot again and again, one batch at a time."""
        ...


def time_batch(engine: Engine, slot: BatchSlot, clock: Callable[[], float] = time.perf_counter) -> BatchTimes:
    """Run one batch alone; timed by the engine itself where it can, else by `clock`, in seconds."""
    if isinstance(engine, TimesItself):
        return engine.time_batches(slot, 1, warm_up=0)
    started = clock()
    engine.submit(slot)
    submitted = clock()
    engine.collect()
    ended = clock()
    milliseconds = np.array([[submitted - started], [ended - started]]) * 1e3
    return BatchTimes(None, None, None, *milliseconds)


def fill_slots(engine: Engine, chips: npt.NDArray[np.uint8]) -> list[BatchSlot]:
    """Make full slots in the engine's memory: for all the chips, within bounds, and at least to keep it full.

    Args:
        engine: whose memory and batch it is.
        chips: uint8, (n, S, S, C), real ones; they follow one another through the slots, again and again.

    """
    batch = engine.facts.batch
    slot_bytes = batch * math.prod(chips.shape[1:])
    count = min(MOST_SLOTS, math.ceil(len(chips) / batch), SLOTS_BYTES // slot_bytes)
    slots = []
    for number in range(max(count, engine.depth)):
        slot = BatchSlot.allocate(batch, chips.shape[1:], engine.memory)
        slot.chips[:] = chips[(number * batch + np.arange(batch)) % len(chips)]
        slot.count = batch
        slots.append(slot)
    return slots


def keep_full(
    engine: Engine,
    slots: Sequence[BatchSlot],
    *,
    batches: int = 1,
    seconds: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> npt.NDArray[np.float64]:
    """Keep as many batches in flight as the engine takes, for so many batches and so long at least.

    Returns:
        When each batch was done, float64 (n,): seconds since the first was submitted, none of them left.

    """
    idle = deque(slots)
    ends: list[float] = []
    started = clock()
    while len(ends) + engine.in_flight < batches or clock() - started < seconds:
        while idle and engine.in_flight < engine.depth:
            engine.submit(idle.popleft())
        idle.append(engine.collect()[0])
        ends.append(clock() - started)
    while engine.in_flight:
        engine.collect()
        ends.append(clock() - started)
    return np.array(ends)


def images_per_second(engine: Engine, chips: npt.NDArray[np.uint8], seconds: float = 1.0) -> float:
    """Feed an engine with ready batches, all it takes at once, for a while.

    Args:
        engine: idle.
        chips: uint8, (n, S, S, C), real ones; repeated to fill the batches.
        seconds: how long to measure, after as long a warm-up (a GPU raises its clocks when it is used).

    Returns:
        Chips per second.

    """
    slots = fill_slots(engine, chips)
    keep_full(engine, slots, seconds=seconds)
    ends = keep_full(engine, slots, seconds=seconds)
    return len(ends) * engine.facts.batch / float(ends[-1])
