"""The system's files and commands, behind one root that can be another folder."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Command = Callable[[Sequence[str]], "str | None"]
    """Runs a command; what it prints, or None where it is not there or fails."""

COMMAND_SECONDS = 3.0
"""No question to the system may hang on a driver that does not answer."""

MAX_FILE_BYTES = 1 << 20
"""Files of /proc and /sys are small."""


def run_command(arguments: Sequence[str]) -> str | None:
    """Run a program without a shell, input or root; its output, or None where it is not there or fails."""
    places = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    try:
        done = subprocess.run(  # noqa: S603 - the callers' arguments are constants
            list(arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_SECONDS,
            check=True,
            env={**os.environ, "PATH": places, "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Tree:
    """Where the system's files are read, and how its commands are run. Nothing is ever written."""

    root: Path = Path("/")
    run: Command = run_command

    def text(self, path: str) -> str | None:
        """Read a file, stripped of white space and null bytes at its ends; None where it cannot be read.

        Files of /sys may exist and still refuse: a sensor that is switched off (EAGAIN), or only for root.
        """
        try:
            with (self.root / path).open("rb") as stream:
                content = stream.read(MAX_FILE_BYTES)
        except OSError:
            return None
        return content.decode(errors="replace").strip("\0 \t\r\n")

    def number(self, path: str) -> int | None:
        """Read a file that holds one whole number; None where it does not."""
        try:
            return int(self.text(path) or "")
        except ValueError:
            return None

    def folders(self, pattern: str) -> list[str]:
        """List what matches a pattern such as `sys/class/hwmon/*`, 2 before 10; paths below the root."""
        try:
            found = [str(path.relative_to(self.root)) for path in self.root.glob(pattern)]
        except OSError:
            return []
        return sorted(found, key=lambda path: (len(path), path))

    def exists(self, path: str) -> bool:
        """Whether there is such a file or folder."""
        return os.path.lexists(self.root / path)
