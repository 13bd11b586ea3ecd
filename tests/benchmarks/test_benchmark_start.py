"""From the command to help, and to the first committed rows, each in a process that starts cold."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
from contextlib import closing, suppress
from pathlib import Path
from sys import executable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

COMMAND = Path(executable).with_name("edge-infer")

HELP_SECONDS = 0.4
FIRST_ROWS_SECONDS = 3.0
"""With ResNet34 of 224 pixels in FP32 by OpenVINO on two cores, which compiles it each time."""

ROUNDS = 5
LOOK_SECONDS = 0.005


def help_seconds() -> float:
    started = time.monotonic()
    subprocess.run([COMMAND, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def first_rows_seconds(folder: Path) -> tuple[float, float]:
    """Look into the output, as any other program may, until a row has a class: seconds, and those of CPU."""
    out = folder / "first.gpkg"
    for left in folder.glob("first.gpkg*"):
        left.unlink()
    inputs = [
        "--model", folder / "random.edgemodel", "--imagery", folder / "scene.tif",
        "--footprints", folder / "houses.gpkg", "--out", out, "--quiet",
    ]  # fmt: skip
    started = time.monotonic()
    with subprocess.Popen([COMMAND, "run", *map(str, inputs)], stdout=subprocess.DEVNULL) as run:
        while not classified(out):
            assert run.poll() is None, "the run ended before it committed anything"
            time.sleep(LOOK_SECONDS)
        took, computed = time.monotonic() - started, cpu_seconds(run.pid)
        run.terminate()
    assert run.returncode == 4  # told to stop, and in a clean state
    return took, computed


def cpu_seconds(pid: int) -> float:
    """User's and system's time of all threads so far (proc_pid_stat(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def classified(out: Path) -> bool:
    with (
        suppress(sqlite3.OperationalError),
        closing(sqlite3.connect(f"file:{out}?mode=ro", uri=True)) as base,
    ):
        return base.execute("SELECT 1 FROM houses WHERE status = 'ok' LIMIT 1").fetchone() is not None
    return False


def test_help(benchmark: BenchmarkFixture) -> None:
    seconds = [help_seconds() for _ in range(ROUNDS)]
    benchmark.extra_info["seconds"] = sorted(seconds)
    print(f"edge-infer --help: {min(seconds):.2f} s at best, {max(seconds):.2f} s at worst")
    benchmark.pedantic(help_seconds, rounds=1)
    assert min(seconds) < HELP_SECONDS


def test_first_rows(benchmark: BenchmarkFixture, dense_scene: Path) -> None:
    rounds = [first_rows_seconds(dense_scene) for _ in range(ROUNDS)]
    seconds, computed = (sorted(column) for column in zip(*rounds, strict=True))
    benchmark.extra_info.update(seconds=seconds, cpu_seconds=computed)
    print(
        f"first committed rows: {seconds[0]:.2f} s at best, {seconds[-1]:.2f} s at worst; "
        f"{computed[0]:.2f} s of CPU"
    )
    benchmark.pedantic(first_rows_seconds, args=(dense_scene,), rounds=1)
    assert seconds[0] < FIRST_ROWS_SECONDS, f"it took {computed[0]:.2f} s of CPU: is the machine busy?"
