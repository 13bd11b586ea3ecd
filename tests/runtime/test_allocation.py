"""Memory that was freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from edge_infer import allocation

TILES_AMONG_BLOCKS = """
import re, sys
from pathlib import Path
from edge_infer.allocation import give_back_freed
resident = lambda: int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10
if sys.argv[1] == "told":
    assert give_back_freed()
bytearray(30 << 20)  # from now on, glibc thinks, so much is not large
before, kept, freed = resident(), [], []
for _ in range(20):
    freed.append(bytearray(4 << 20))
    kept.append(bytearray(64 << 10))
del freed
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_pieces_go_back_at_once() -> None:
    left = {
        how: int(subprocess.check_output([sys.executable, "-c", TILES_AMONG_BLOCKS, how]))
        for how in ("told", "untold")
    }
    assert left["told"] < 10 < 60 < left["untold"]  # MB, of 80


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert not allocation.give_back_freed()
