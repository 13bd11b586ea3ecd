"""Runs a command on a disk that is too small, makes room and resumes, for one size of disk after the other.

Needs a mount namespace of its own, in which mounting harms nobody:

    unshare --user --map-root-user --mount python full_disk.py FOLDER LOGS < {cases, sizes} > outcomes

The cases are as in `warm_runs.py`: the run, and its resumption. FOLDER is where the disk is mounted; what
stood on it in the end is copied to LOGS.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

run_all = import_module("warm_runs").run_all

ROOM = "size=64m"


def fill(folder: Path, cases: list[dict[str, Any]], size: int, logs: Path) -> dict[str, Any]:
    """What the run and its resumption said, and which files each of them left."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    found: dict[str, Any] = {"size": size}
    for name, case in zip(("run", "resumed"), cases, strict=True):
        (outcome,) = run_all([case], 1, 60, logs)
        found[name] = outcome | {"files": {path.name: path.stat().st_size for path in folder.iterdir()}}
        subprocess.run(["mount", "-o", f"remount,{ROOM}", folder], check=True)
    for path in folder.iterdir():
        (logs / f"{size} {path.name}").write_bytes(path.read_bytes())
    subprocess.run(["umount", folder], check=True)
    return found


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    logs = Path(sys.argv[2])
    json.dump([fill(Path(sys.argv[1]), asked["cases"], size, logs) for size in asked["sizes"]], sys.stdout)
