"""Progress on standard error: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


def hours(seconds: float) -> str:
    """Write a duration as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def tally(counts: Mapping[str, int]) -> str:
    """Write counts as `damaged 12, no_data 3`, without the zeros."""
    return ", ".join(f"{name} {number:,}" for name, number in counts.items() if number)


@dataclass(slots=True)
class Progress:
    """Counts footprints as their results are committed; silent where `quiet`.

    A terminal that is gone, or a log on a full disk, ends the progress and not the run.
    """

    total: int
    quiet: bool = False
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    _counts: Counter[str] = field(default_factory=Counter)
    _done: int = 0
    _started: float = field(default_factory=time.monotonic)
    _said: float = field(default_factory=time.monotonic)
    _bar: tqdm[Any] | None = None

    def __post_init__(self) -> None:
        """Draw the bar where there is a terminal to draw it on."""
        if not self.quiet and self.stream.isatty():
            from tqdm import tqdm

            # With a delay nothing is written, and nothing can fail, before there is a bar.
            self._bar = tqdm(total=self.total, unit="footprint", file=self.stream, smoothing=0.1, delay=0.1)

    def update(self, counts: Mapping[str, int]) -> None:
        """Add footprints by class (where classified) or status (where not)."""
        self._counts.update(counts)
        self._done += sum(counts.values())
        with self._fallible():
            if self._bar is not None:
                self._bar.set_postfix_str(tally(self._counts), refresh=False)
                self._bar.update(sum(counts.values()))
            elif not self.quiet and time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
                self._said = time.monotonic()
                self.stream.write(self._line() + "\n")
                self.stream.flush()

    def close(self) -> None:
        """Leave the bar as it stands."""
        with self._fallible():
            if self._bar is not None:
                self._bar.close()

    @contextmanager
    def _fallible(self) -> Iterator[None]:
        """Fall silent for good where nothing can be written."""
        try:
            yield
        except OSError:
            self.quiet, bar, self._bar = True, self._bar, None
            if bar is not None:
                bar.disable = True  # or it would try again when it is tidied up

    def _line(self) -> str:
        rate = self._done / max(time.monotonic() - self._started, 1e-9)
        left = hours((self.total - self._done) / rate) if rate else "?"
        return (
            f"{self._done:,} of {self.total:,} footprints, {rate:,.0f}/s, {left} to go "
            f"({tally(self._counts)})"
        )
