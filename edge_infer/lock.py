"""One run at a time writes to an output.

A lock of the operating system on a file beside the output. It goes with the process, however that ends: what
a killed run leaves is an empty file, which the next run takes over. SQLite's own locks would not do, as they
are there only while a transaction is written, and the output itself is replaced.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edge_infer.errors import OutputError
from edge_infer.geopackage import reporting

try:
    import fcntl
except ImportError:  # Windows: SQLite's locks keep the file sound, two runs only waste time
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def sole_run(out: Path) -> Iterator[None]:
    """Be the only run that writes to `out`, existing or not, while entered.

    `OutputError` where another run is.
    """
    path = out.with_name(f"{out.name}.lock")
    with reporting(out):
        lock = _take(out, path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still ours, else it may be the next one's
        os.close(lock)


def _take(out: Path, path: Path) -> int:
    """Return the descriptor that holds the lock."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_named(lock, path):
                return lock
        except BlockingIOError:
            os.close(lock)
            raise OutputError(
                f"another run is writing to {out}; wait for it, stop it, or name another output"
            ) from None
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # its last holder removed it between our two steps


def _is_named(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False
