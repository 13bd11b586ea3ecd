"""What a power cut must not undo."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
"""What file systems say that cannot sync a folder, some SMB, 9p and FUSE mounts: nothing more can be done."""


def make_durable(path: Path) -> None:
    """Return when a file and its name have reached the disk."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
    with contextlib.suppress(PermissionError):  # Windows opens no folders, and needs none of this
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        except OSError as error:
            if error.errno not in NO_FOLDER_SYNC:
                raise
        finally:
            os.close(folder)


def replace_durably(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and return when it has reached the disk.

    What stood at `path` is replaced; other programs see the old content or the new. `OSError` where it cannot
    be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    make_durable(path)
