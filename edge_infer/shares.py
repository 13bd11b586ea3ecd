"""Deals tile jobs to reader threads so that each of them works through neighbours."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_infer.plan import TileJob


class JobShares:
    """Jobs in order, one contiguous share a thread; a thread without work takes half of the largest rest.

    Neighbouring jobs touch the same blocks of the file, and GDAL keeps decoded blocks for the one dataset of
    one thread. Dealt one by one, two threads decode a fifth to a half too much; in shares, a tenth.
    """

    def __init__(self, jobs: Sequence[TileJob], threads: int) -> None:
        self._jobs = jobs
        edges = [len(jobs) * thread // threads for thread in range(threads + 1)]
        self._next = edges[:-1]
        self._end = edges[1:]
        self._lock = threading.Lock()

    def take(self, thread: int) -> TileJob | None:
        """Give the next job of a thread (numbered from 0); None when all jobs are taken."""
        with self._lock:
            if self._next[thread] == self._end[thread]:
                self._take_over(thread)
            if self._next[thread] == self._end[thread]:
                return None
            job = self._jobs[self._next[thread]]
            self._next[thread] += 1
            return job

    def _take_over(self, thread: int) -> None:
        rests = [end - begin for begin, end in zip(self._next, self._end, strict=True)]
        other = rests.index(max(rests))
        middle = self._end[other] - (rests[other] + 1) // 2
        self._next[thread], self._end[thread] = middle, self._end[other]
        self._end[other] = middle
