from __future__ import annotations

import errno
import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest

from edge_infer.errors import OutputError
from edge_infer.geopackage import SIDECARS, connect, remove, replace, reporting, transaction

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database in a file whose name needs escaping in a URI."""
    path = tmp_path / "a b?#%41.gpkg"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE t (n INTEGER)")
    return path


def rows(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as database:
        return [n for (n,) in database.execute("SELECT n FROM t ORDER BY n")]


def test_a_transaction_is_all_or_nothing(path: Path) -> None:
    with closing(connect(path)) as database:
        with transaction(database):
            database.execute("INSERT INTO t VALUES (1)")
        with suppress(KeyboardInterrupt), transaction(database):
            database.execute("INSERT INTO t VALUES (2)")
            raise KeyboardInterrupt
        with transaction(database):
            database.execute("INSERT INTO t VALUES (3)")
    assert rows(path) == [1, 3]


def test_nothing_is_created_by_connecting(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="cannot be written: unable to open"),
        reporting(tmp_path / "a.gpkg"),
    ):
        connect(tmp_path / "a.gpkg")
    assert list(tmp_path.iterdir()) == []


def test_a_geometry_cannot_be_touched(path: Path) -> None:
    with closing(connect(path)) as database, pytest.raises(sqlite3.OperationalError):
        database.execute("SELECT ST_MinX(n) FROM (SELECT 1 AS n)").fetchone()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (sqlite3.OperationalError("database is locked"), "locked by another program"),
        (sqlite3.OperationalError("database or disk is full"), "is full; make room"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "is read-only"),
        (OSError(errno.EROFS, "Read-only file system"), "is read-only"),
        (OSError(errno.EIO, "Input/output error"), "cannot be written: .*Input/output error"),
    ],
)
def test_errors_are_said_in_plain_words(path: Path, error: Exception, said: str) -> None:
    with pytest.raises(OutputError, match=said), reporting(path):
        raise error


def test_a_lock_is_reported(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other, closing(connect(path)) as database:
        other.execute("BEGIN EXCLUSIVE")
        database.execute("PRAGMA busy_timeout = 0")
        with pytest.raises(OutputError, match="locked"), reporting(path), transaction(database):
            database.execute("INSERT INTO t VALUES (1)")
        other.execute("ROLLBACK")
        with transaction(database):
            database.execute("INSERT INTO t VALUES (2)")
    assert rows(path) == [2]


def test_a_replaced_file_does_not_inherit_an_old_log(path: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.gpkg"
    new.write_bytes(path.read_bytes())
    for suffix in SIDECARS:
        path.with_name(path.name + suffix).write_bytes(b"left behind")
    replace(new, path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert rows(path) == []


def test_remove_takes_the_sidecars_and_nothing_else(path: Path, tmp_path: Path) -> None:
    for suffix in (*SIDECARS, ".aux.xml"):
        path.with_name(path.name + suffix).write_bytes(b"")
    remove(path)
    remove(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name + ".aux.xml"]
