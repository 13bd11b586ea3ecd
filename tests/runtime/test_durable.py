"""File systems that cannot sync a folder."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest

from edge_infer.durable import make_durable

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EIO])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_only_a_folder_may_be_impossible_to_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: str
) -> None:
    fsync, synced = os.fsync, []

    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == (kind == "folder"):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)
        synced.append(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    path = tmp_path / "out.gpkg"
    path.write_bytes(b"rows")
    if kind == "file" or number == errno.EIO:
        with pytest.raises(OSError, match=os.strerror(number)):
            make_durable(path)
    else:
        make_durable(path)
        assert len(synced) == 1
