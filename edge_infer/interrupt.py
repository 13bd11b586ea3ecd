"""SIGINT and SIGTERM as a wish to stop, not as an exception in the middle of something."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(slots=True)
class StopSignals:
    """While entered, the first signal calls `stop`; a second one ends the process as it always did.

    Python delivers signals to the main thread only; entered elsewhere this does nothing.
    """

    stop: Callable[[], None]
    received: str | None = None
    """Name of the signal, such as SIGTERM."""
    _before: dict[int, Any] = field(default_factory=dict)

    def __enter__(self) -> StopSignals:
        """Take the signals."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        self._restore()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self._restore()
        self.stop()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
