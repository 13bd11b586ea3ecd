"""A thread of its own for what has to wait for the disk, fed through a bounded queue.

What is handed over while a write is under way goes out together in the next one: the slower the disk, the
larger the writes. The bound is what a power cut or a kill can cost.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from edge_infer.interrupt import join_all

if TYPE_CHECKING:
    from collections.abc import Callable

Item = TypeVar("Item")


@dataclass(slots=True, eq=False, repr=False)
class Committer(Generic[Item]):
    """While entered, writes what it is given, in order, in a thread; leaving it writes what is left.

    All methods are for one thread. What a write raises ends the writing, and is raised again, once, by
    the next of them; what waited by then is not written.
    """

    write: Callable[[list[Item]], None]
    """Takes all that waits, at least one item; called in the committer's thread alone."""
    least: int
    """Write as soon as so much waits ..."""
    seconds: float
    """... or so long after the last write, whichever comes first."""
    most: int
    """Where so much waits, `put` waits: beside what is being written there never is more than this and
    one item."""
    busy_seconds: float = 0.0
    """Spent writing."""
    idle_seconds: float = 0.0
    """Spent waiting for something to write."""
    stalled_seconds: float = 0.0
    """That callers spent waiting for room, or for all to be written."""
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _waiting: list[Item] = field(default_factory=list)
    _size: int = 0
    _writing: bool = False
    _flushing: bool = False
    _ended: bool = False
    _error: BaseException | None = None
    _told: bool = False
    _thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        """Refuse bounds under which nothing would ever be written."""
        if not 1 <= self.least <= self.most:
            raise ValueError(f"wanted 1 <= least <= most, got {self.least} and {self.most}")

    def __enter__(self) -> Committer[Item]:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="committer")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Write what is left and end the thread; raises what a write raised, unless that was told."""
        join_all(() if self._thread is None else (self._thread,), self._end)
        self.check()

    def put(self, item: Item, size: int) -> None:
        """Hand over an item that counts `size`; waits while too much waits."""
        with self._changed:
            self._wait(lambda: self._size < self.most)
            if self._error is None:
                self._waiting.append(item)
                self._size += size
                self._changed.notify_all()
        self.check()

    def flush(self) -> None:
        """Wait until all that was handed over is written."""
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            try:
                self._wait(lambda: not self._waiting and not self._writing)
            finally:
                self._flushing = False
        self.check()

    def check(self) -> None:
        """Raise what a write raised, unless that was told."""
        if self._error is not None and not self._told:
            self._told = True
            raise self._error

    def _end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _wait(self, ready: Callable[[], bool]) -> None:
        """Wait with the lock held until `ready`, or nothing will be written any more."""
        started = time.perf_counter()
        self._changed.wait_for(lambda: ready() or self._error is not None)
        self.stalled_seconds += time.perf_counter() - started

    def _run(self) -> None:
        last = time.monotonic()
        while (items := self._take(last)) is not None:
            started = time.perf_counter()
            try:
                self.write(items)
            except BaseException as error:  # it is raised again in the thread that hands over
                self._fail(error)
                return
            last = time.monotonic()
            with self._changed:
                self.busy_seconds += time.perf_counter() - started
                self._writing = False
                self._changed.notify_all()

    def _take(self, last: float) -> list[Item] | None:
        """Wait until something is due, and give it; None at the end."""
        with self._changed:
            started = time.perf_counter()
            while not self._due(last):
                left = last + self.seconds - time.monotonic() if self._waiting else None
                self._changed.wait(left)
            self.idle_seconds += time.perf_counter() - started
            items, self._waiting, self._size = self._waiting, [], 0
            self._writing = bool(items)
            self._changed.notify_all()  # there is room
            return items or None

    def _due(self, last: float) -> bool:
        if self._waiting:
            hurried = self._flushing or self._ended or self._size >= self.least
            return hurried or time.monotonic() - last >= self.seconds
        return self._ended

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._writing = False
            self._waiting.clear()
            self._changed.notify_all()
