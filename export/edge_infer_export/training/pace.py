"""Progress of a training: a bar on a terminal, else a plain line every few seconds."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from edge_infer.progress import SECONDS_BETWEEN_LINES, hours

if TYPE_CHECKING:
    from collections.abc import Callable

    from tqdm import tqdm


class Pace:
    """Counts steps and says how fast they go and how long the rest will take."""

    def __init__(
        self, say: Callable[[str], None], *, steps: int, done: int, batch: int, bar: bool = False
    ) -> None:
        """Start the clock.

        Args:
            say: is given every line.
            steps: of the whole training.
            done: of them, before this start.
            batch: chips in a step.
            bar: draw a bar on standard error.

        """
        self._say = say
        self._steps, self._first, self._done, self._batch = steps, done, done, batch
        self._started = self._said = time.monotonic()
        self._bar: tqdm[Any] | None = None
        if bar:
            from tqdm import tqdm

            self._bar = tqdm(
                total=steps * batch, initial=done * batch, unit="chip", file=sys.stderr, smoothing=0.1
            )

    def step(self, words: Callable[[], str]) -> None:
        """Count a step; `words` are asked for only when they will be shown."""
        self._done += 1
        now = time.monotonic()
        if self._bar is not None:
            if now - self._said > 1:
                self._said = now
                self._bar.set_postfix_str(words(), refresh=False)
            self._bar.update(self._batch)
        elif now - self._said > SECONDS_BETWEEN_LINES:
            self._said = now
            self._say(f"  {words()}, {self.chips_per_second():,.0f} chips/s, {hours(self.left())} to go")

    def line(self, text: str) -> None:
        """Say a line, above the bar where there is one."""
        if self._bar is not None:
            self._bar.clear()
        self._say(text)
        if self._bar is not None:
            self._bar.refresh()

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def seconds(self) -> float:
        """Since this start, above 0."""
        return max(time.monotonic() - self._started, 1e-9)

    def chips_per_second(self) -> float:
        """Chips learned from since this start, over all the time it took, validation included."""
        return (self._done - self._first) * self._batch / self.seconds()

    def left(self) -> float:
        """Seconds that the rest will take at the pace so far."""
        each = self.seconds() / max(self._done - self._first, 1)
        return each * (self._steps - self._done)
