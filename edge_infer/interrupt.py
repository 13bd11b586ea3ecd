"""SIGINT, SIGTERM and SIGHUP as a wish to stop in a clean state, and threads that outlast an interruption."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edge_infer.errors import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""SIGHUP comes when a terminal is closed or a connection breaks; Windows has none."""


def join_all(threads: Iterable[threading.Thread], end: Callable[[], None]) -> None:
    """Call `end`, which tells threads to end, and wait until they have.

    What they use may be closed after this, so signals have to wait; the first of them is raised at the end.
    (A `Thread.join` that a signal breaks off takes the thread for ended.)
    """
    heard: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, lambda number, _: heard.append(number)) for number in SIGNALS}
    try:
        end()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if heard:
        signal.raise_signal(heard[0])


class _Interruption(BaseException):
    """No `Exception`: what turns those of GDAL and others into words must not take it for one."""


@dataclass(slots=True)
class StopSignals:
    """While entered, the first signal ends it with `Stopped`, or calls what `told` names instead.

    A second signal ends the process as it always did. Python delivers signals to the main thread only;
    entered elsewhere this does nothing.
    """

    received: str | None = None
    """Name of the signal, such as SIGTERM."""
    changed: bool = False
    """To be set once the output is in place: it says what to do after an early end."""
    _tell: Callable[[], None] | None = None
    _before: dict[int, Any] = field(default_factory=dict)

    def __enter__(self) -> StopSignals:
        """Take the signals."""
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._receive)
                for number in SIGNALS
                if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) != signal.SIG_IGN
            }  # under nohup, SIGHUP stays ignored
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """Give the signals back; `Stopped` where one came."""
        self._restore()
        if isinstance(error, _Interruption):
            rest = (
                "anything was classified; the same command with --resume goes on"
                if self.changed
                else "anything was changed; run the same command again"
            )
            raise Stopped(f"stopped by {self.received} before {rest}") from None

    @contextmanager
    def told(self, tell: Callable[[], None]) -> Iterator[None]:
        """While entered, a signal calls `tell` (from the main thread, between two of its steps)."""
        self._tell = tell
        if self.received is not None:  # Python drops what is raised while it tidies up objects
            tell()
        try:
            yield
        finally:
            self._tell = None

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self._restore()
        if self._tell is None:
            raise _Interruption
        self._tell()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
