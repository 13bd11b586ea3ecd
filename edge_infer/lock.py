"""One run at a time writes to an output.

A lock of the operating system on a file beside the output. It goes with the process, however that ends: what
a killed run leaves is an empty file, which the next run takes over. SQLite's own locks would not do, as they
are there only while a transaction is written, and the output itself is replaced.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from edge_infer.errors import OutputError

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

    `OutputError` where another run is, or where no lock can be had.
    """
    path = out.with_name(f"{out.name}.lock")
    try:
        if path.exists() and path.stat().st_size:  # ours are empty
            raise OutputError(f"{path} is no lock of edge-infer's; move it, or name another output")
        lock = _take(out, path)
    except OSError as error:
        raise OutputError(f"{out} cannot be locked: {_explain(error, path)}") from error
    try:
        yield
    finally:
        with suppress(OSError):  # an empty file that stays is no obstacle
            if _is_named(lock, path):  # else it is another run's
                path.unlink()
        os.close(lock)


def _explain(error: OSError, path: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk that holds {path} is full; make room there"
    if error.errno == errno.EROFS:
        return f"the disk that holds {path} is read-only; make it writable, or copy the output to another"
    if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
        return "the file system knows no locks; write to a local disk, and copy the file when it is done"
    return f"{path} cannot be opened ({error.strerror}); remove it if no run uses it"


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
        except BaseException as error:
            if isinstance(error, OSError):
                with suppress(OSError):
                    path.unlink()
            os.close(lock)
            raise
        os.close(lock)  # its last holder removed it between our two steps


def _is_named(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False
