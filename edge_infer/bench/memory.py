"""The most memory that this process has held since a moment."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_SELF = Path("/proc/self")


def forget_peak() -> None:
    """Let the peak begin anew, where the system can (Linux)."""
    try:
        (_SELF / "clear_refs").write_text("5")
    except OSError:
        return


def peak_bytes() -> int | None:
    """Most resident memory since `forget_peak`, or the start; None where the system does not tell."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", (_SELF / "status").read_text(), re.MULTILINE)
        if found is not None:
            return int(found[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
