"""Two ways to load an engine, after MLPerf Inference: SingleStream (latency) and Offline (throughput).

MLPerf's rules (inference_rules.adoc) ask for 600 s of either, and Offline for 24,576 samples; 1,024 queries
of SingleStream were a rule of its earlier versions and are kept here, so that p99.9 exists.
"""

from __future__ import annotations

import math
import time
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_infer.engine.load import BatchTimes, keep_full, time_batch
from edge_infer.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from edge_infer.engine import Engine
    from edge_infer.ring import BatchSlot

MLPERF_QUERIES, MLPERF_SAMPLES, MLPERF_SECONDS = 1024, 24_576, 600.0
SAMPLES_A_QUERY = MLPERF_SAMPLES // MLPERF_QUERIES

COMPONENTS = ("h2d", "compute", "d2h", "host_latency", "enqueue", "wall")
"""trtexec's, and the whole time by the host's clock, which is what a caller waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How long to measure each: until all of it is reached."""

    queries: int = MLPERF_QUERIES
    """Batches, one at a time."""
    samples: int = MLPERF_SAMPLES
    """Chips, as many at once as the engine takes."""
    seconds: float = MLPERF_SECONDS
    warm_up_seconds: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what measures nothing."""
        if self.queries < 1 or self.samples < 1:
            raise Refused(f"a measurement takes at least one batch, got {min(self.queries, self.samples)}")
        if not 0 <= self.seconds < math.inf or not 0 <= self.warm_up_seconds < math.inf:
            raise Refused(f"seconds are 0 or more, got {self.seconds} and {self.warm_up_seconds} of warm-up")

    @classmethod
    def asked(cls, *, queries: int | None, seconds: float | None, warm_up_seconds: float) -> Rule:
        """Make the rule of a command line: MLPerf's where nothing is said; one bound alone stands alone."""
        if queries is None and seconds is not None:
            return cls(queries=1, samples=1, seconds=seconds, warm_up_seconds=warm_up_seconds)
        if queries is None:
            queries = MLPERF_QUERIES
        elif seconds is None:
            seconds = 0.0
        return cls(
            queries=queries,
            samples=queries * SAMPLES_A_QUERY,
            seconds=MLPERF_SECONDS if seconds is None else seconds,
            warm_up_seconds=warm_up_seconds,
        )

    @property
    def mlperf(self) -> bool:
        """Whether it is no shorter than MLPerf's."""
        return (
            self.queries >= MLPERF_QUERIES
            and self.samples >= MLPERF_SAMPLES
            and self.seconds >= MLPERF_SECONDS
        )


def warm_up(
    engine: Engine,
    slots: Sequence[BatchSlot],
    rule: Rule,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Run every slot both ways, so that nothing is set up later, and keep the engine full for a while."""
    for slot in slots:
        time_batch(engine, slot, clock)
    keep_full(engine, slots, batches=len(slots), seconds=rule.warm_up_seconds, clock=clock)


def one_at_a_time(
    engine: Engine,
    slots: Sequence[BatchSlot],
    rule: Rule,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[BatchTimes, npt.NDArray[np.float64]]:
    """Send the next batch when the last is done; the slots take turns.

    Returns:
        Times of the batches, and when each was done: float64 (n,), seconds since the first was sent.

    """
    parts = {name: array("d") for name in ("h2d", "compute", "d2h", "enqueue", "wall")}
    ends = array("d")
    started = clock()
    while len(ends) < rule.queries or clock() - started < rule.seconds:
        times = time_batch(engine, slots[len(ends) % len(slots)], clock)
        for name, column in parts.items():
            value = getattr(times, name)
            if value is not None:
                column.append(value[0])
        ends.append(clock() - started)
    columns = {name: np.array(column) if column else None for name, column in parts.items()}
    return BatchTimes(**columns), np.array(ends)  # type: ignore[arg-type]  # enqueue and wall are never None


def all_at_once(
    engine: Engine,
    slots: Sequence[BatchSlot],
    rule: Rule,
    clock: Callable[[], float] = time.perf_counter,
) -> npt.NDArray[np.float64]:
    """Keep the engine full; when each batch was done, float64 (n,), seconds since the first was sent."""
    batches = math.ceil(rule.samples / engine.facts.batch)
    return keep_full(engine, slots, batches=batches, seconds=rule.seconds, clock=clock)
