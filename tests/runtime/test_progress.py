"""Progress is for people; nothing depends on it."""

from __future__ import annotations

import errno
import gc
import io
import time

import pytest

from edge_infer.progress import Progress


class Broken(io.StringIO):
    """A log on a full disk, or a terminal that is gone."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal
        self.tries = 0

    def isatty(self) -> bool:
        return self.terminal

    def write(self, _text: str) -> int:
        self.tries += 1
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("terminal", [True, False])
def test_where_nothing_can_be_written_it_falls_silent(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_infer.progress.SECONDS_BETWEEN_LINES", 0.0)
    stream = Broken(terminal=terminal)
    progress = Progress(10, stream=stream)
    time.sleep(0.15)  # until then the bar waits
    progress.update({"damaged": 1})
    assert stream.tries == 1
    progress.update({"damaged": 1})
    progress.close()
    del progress
    gc.collect()
    assert stream.tries == 1
