"""What a power cut must not undo."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def make_durable(path: Path) -> None:
    """Return when a file and its name have reached the disk."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
    with contextlib.suppress(PermissionError):  # Windows opens no folders, and needs none of this
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
