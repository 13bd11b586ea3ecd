"""A GeoPackage as an SQLite file: connections, transactions, durability, and errors in plain words."""

from __future__ import annotations

import errno
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edge_infer.durable import make_durable
from edge_infer.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK_WAIT_SECONDS = 30.0
"""How long a write waits for another program that is writing to the same file."""

SIDECARS = ("-wal", "-shm", "-journal")
"""Files that SQLite keeps beside a database while it is in use."""

RTREE_FUNCTIONS = ("ST_IsEmpty", "ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY")
"""Called by the triggers that keep a GeoPackage's spatial index in step with its geometries."""


def connect(path: Path) -> sqlite3.Connection:
    """Open an existing GeoPackage for writing attributes; transactions are explicit.

    Geometries are never written here, but SQLite looks up every function of an UPDATE's triggers, so
    stand-ins are registered. Should a geometry ever be touched, they fail instead of spoiling the index.
    """
    database = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=LOCK_WAIT_SECONDS,
        isolation_level=None,
        check_same_thread=False,  # one thread at a time, not always the one that opened it
    )
    for name in RTREE_FUNCTIONS:
        database.create_function(name, 1, _refuse_geometry)
    return database


def _refuse_geometry(_geometry: object) -> None:
    raise RuntimeError("geometries are never written by this connection")


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing of it reaches the file."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # a full disk has already rolled back
            database.execute("ROLLBACK")
        raise


@contextmanager
def reporting(path: Path) -> Iterator[None]:
    """Turn errors of SQLite and of the file system into one line."""
    try:
        yield
    except sqlite3.Error as error:
        raise OutputError(_explain(path, str(error))) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "full" if full else error.strerror or str(error)
        raise OutputError(_explain(path, reason)) from error


def _explain(path: Path, reason: str) -> str:
    """Say what to do; `reason` is SQLite's or the system's own text, without the path."""
    if "locked" in reason:
        return f"{path} is locked by another program; close it there"
    if "full" in reason:
        return f"the disk that holds {path} is full; make room there"
    if "readonly" in reason.replace("-", "").lower():  # SQLite's word and the system's
        return f"{path} is read-only; make it writable"
    return f"{path} cannot be written: {reason}"


def remove(path: Path) -> None:
    """Remove a database with its sidecars, as far as they are there."""
    for suffix in ("", *SIDECARS):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def replace(new: Path, path: Path) -> None:
    """Put the closed database `new` in the place of `path`, durably and in one step."""
    if any(path.with_name(path.name + suffix).exists() for suffix in SIDECARS):
        # A log left behind would be taken for the new file's; and without it the old file is not whole.
        remove(path)
    make_durable(new)  # and, with its folder, that the log is gone
    new.replace(path)
    make_durable(path)
