"""The lock file beside an output, whoever else touches it."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING

import pytest

from edge_infer.errors import OutputError
from edge_infer.lock import sole_run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.gpkg"


@pytest.fixture
def lock(out: Path) -> Path:
    return out.with_name("out.gpkg.lock")


def refusal(out: Path) -> str:
    with pytest.raises(OutputError) as caught, sole_run(out):
        pass
    return str(caught.value)


def test_what_a_killed_run_left_is_taken_over(out: Path, lock: Path) -> None:
    lock.touch()
    with sole_run(out):
        assert "another run is writing" in refusal(out)
    assert not lock.exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_disk_without_locks(out: Path, lock: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(_descriptor: int, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    assert "the file system knows no locks; write to a local disk" in refusal(out)
    assert not lock.exists()


def test_a_file_of_that_name_with_content_is_not_ours(out: Path, lock: Path) -> None:
    lock.write_text("somebody's")
    assert f"{lock} is no lock of edge-infer's; move it" in refusal(out)
    assert lock.read_text() == "somebody's"


def test_a_lock_that_cannot_be_opened_is_named(
    out: Path, lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock.mkdir()
    assert str(lock) in refusal(out)
    lock.rmdir()

    def fail(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("edge_infer.lock.os.open", fail)
    assert f"{lock} cannot be opened (Permission denied); remove it if no run uses it" in refusal(out)


def test_a_lock_that_was_removed_is_not_taken_from_the_next(out: Path, lock: Path) -> None:
    with sole_run(out):
        lock.unlink()
        lock.touch()  # the next run's
    assert lock.exists()


def test_a_lock_that_cannot_be_removed_is_no_obstacle(
    out: Path, lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, *, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, f"Read-only file system: {path}, {missing_ok}")

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.unlink", fail)
        with sole_run(out):
            pass
    assert lock.exists()
    with sole_run(out):
        pass
    assert not lock.exists()
