"""A GeoPackage as an SQLite file: connections, transactions, durability, and errors in plain words."""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import quote

from edge_infer.durable import make_durable
from edge_infer.errors import OutputError
from edge_infer.schema import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOCK_WAIT_SECONDS = 30.0
"""How long a write waits for another program that is writing to the same file."""

PATIENCE_SECONDS = 1.0
"""How long that is done without a word, at the start."""

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


def columns(database: sqlite3.Connection, table: str) -> list[str]:
    """Name the columns of a table, in their order; none where there is no such table."""
    return [name for (name,) in database.execute("SELECT name FROM pragma_table_info(?)", (table,))]


def wait_for_writers(database: sqlite3.Connection, path: Path, say: Callable[[str], None] | None) -> None:
    """Return when no other program writes to `path`; `say` is told, where that takes a while."""
    if say is not None and LOCK_WAIT_SECONDS > PATIENCE_SECONDS:
        database.execute(f"PRAGMA busy_timeout = {round(PATIENCE_SECONDS * 1000)}")
        try:
            with transaction(database):
                return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            say(f"{path} is locked by another program; waiting for {LOCK_WAIT_SECONDS:g} s at most")
        finally:
            database.execute(f"PRAGMA busy_timeout = {round(LOCK_WAIT_SECONDS * 1000)}")
    with transaction(database):
        pass


def hash_layer(path: Path, table: str) -> str | None:
    """Hash every row of a table of a GeoPackage or another SQLite file, as a reader sees it now.

    What is still in its log counts; styles and other tables do not. None where it is no such file, or the
    table cannot be read without functions of its own.
    """
    name = quote(os.path.realpath(path))
    for still in ("", "&immutable=1"):  # the second way leads into read-only folders
        digest = hashlib.sha256()
        with (
            suppress(sqlite3.Error),
            closing(sqlite3.connect(f"file:{name}?mode=ro{still}", uri=True)) as database,
        ):
            database.text_factory = bytes  # others write text of any encoding
            for row in database.execute(f"SELECT * FROM {quoted(table)} ORDER BY 1"):  # noqa: S608
                digest.update(repr(row).encode())
            return digest.hexdigest()
    return None


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
