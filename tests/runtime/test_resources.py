"""What a run may take: memory, open files, room on the disk; and locks of others."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyogrio.raw
import pytest
import rasterio
import shapely
from rasterio.transform import from_origin

if TYPE_CHECKING:
    from collections.abc import Callable


def every_value(path: Path) -> str:
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return repr(database.execute("SELECT * FROM houses ORDER BY fid").fetchall())


# ---- a full disk


@pytest.fixture
def mounts() -> list[str]:
    """The command before a command that may mount disks of its own; skips where that is forbidden."""
    unshare = shutil.which("unshare")
    prefix = [str(unshare), "--user", "--map-root-user", "--mount"]
    trial = "mount -t tmpfs -o size=64k tmpfs /mnt"
    if (
        unshare is None
        or subprocess.run([*prefix, "sh", "-c", trial], capture_output=True, check=False).returncode
    ):
        pytest.skip("no mount namespace may be made here")
    return prefix


def test_a_disk_that_fills_up(
    tmp_path: Path, town: Any, mounts: list[str], run_warm: Callable[..., list[dict[str, Any]]]
) -> None:
    reference, disk, logs = town.folder / "whole.gpkg", tmp_path / "disk", tmp_path / "full"
    disk.mkdir()
    logs.mkdir()
    (whole,) = run_warm([town.case(reference)])
    assert whole["status"] == 0
    size = reference.stat().st_size
    shares = (0.01, 0.2, 0.5, 0.9, 1.2, 1.35, 2.0, 3.0, 6.0, 7.0, 7.5)
    out = disk / "out.gpkg"
    asked = {
        "cases": [town.case(out), town.case(out, "--resume")],
        "sizes": [round(size * share) for share in shares],
    }
    done = subprocess.run(
        [*mounts, sys.executable, str(Path(__file__).with_name("full_disk.py")), str(disk), str(logs)],
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seen = []
    for found in json.loads(done.stdout):
        first, resumed = found["run"], found["resumed"]
        committed = sum(first["committed"])
        seen.append((first["status"], committed))
        if first["status"]:
            assert first["stderr"].startswith("edge-infer: "), first
            assert len(first["stderr"].splitlines()) == 1
        if first["status"] == 2:
            assert first["files"] == {}  # nothing of the copy is left
            assert "is there room on that disk?" in first["stderr"] or "is full" in first["stderr"]
        elif first["status"] == 4:
            assert "out.gpkg is full; make room there; what was committed stays" in first["stderr"]
            assert set(first["files"]) <= {"out.gpkg", "out.gpkg-wal", "out.gpkg-shm"}
        assert resumed["status"] == 0, resumed["stderr"]
        assert sum(resumed["committed"]) == town.count - committed
        assert set(resumed["files"]) == {"out.gpkg"}
        assert every_value(logs / f"{found['size']} out.gpkg") == every_value(reference)
    assert {2, 4} <= {status for status, _ in seen} <= {0, 2, 4}
    assert (4, 0) in seen  # there was room for the copy, and for nothing else
    assert any(status == 4 and committed for status, committed in seen)


READ_ONLY = """
import json, shutil, subprocess, sys
from importlib import import_module
from pathlib import Path
run_all = import_module("warm_runs").run_all
folder, logs, *outs = map(Path, sys.argv[1:])
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
for out in outs:
    shutil.copy(out, folder)
subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
print(json.dumps(run_all(json.load(sys.stdin), 2, 25, logs)))
"""


def test_a_disk_that_is_read_only(
    tmp_path: Path, town: Any, mounts: list[str], run_warm: Callable[..., list[dict[str, Any]]]
) -> None:
    """A run that was killed, on a disk that was mounted read-only afterwards."""
    killed, disk, logs = town.folder / "killed.gpkg", tmp_path / "disk", tmp_path / "read-only"
    disk.mkdir()
    logs.mkdir()
    strike = {
        "signal": signal.SIGKILL,
        "point": "edge_infer.results:Results.commit",
        "call": 5,
        "after": True,
    }
    assert run_warm([town.case(killed, strikes=[strike])])[0]["status"] == -signal.SIGKILL
    out = disk / killed.name
    cases = [*(town.case(out, *option) for option in ((), ("--resume",), ("--overwrite",)))]
    cases.append({"arguments": ["info", str(out)]})
    script = [sys.executable, "-c", READ_ONLY, disk, logs, killed, f"{killed}-wal"]
    told = subprocess.run(
        [*mounts, *map(str, script)],
        input=json.dumps(cases), stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent,
    )  # fmt: skip
    for outcome in json.loads(told.stdout):
        assert outcome["status"] == 2, outcome
        assert len(outcome["stderr"].splitlines()) == 1
        assert "overwrite" not in outcome["stderr"]  # there are results in it
    *runs, info = json.loads(told.stdout)
    assert all("not writable" in run["stderr"] or "is read-only" in run["stderr"] for run in runs)
    assert "left killed.gpkg-wal; open it in a place that can be written to" in info["stderr"]


def test_a_file_that_may_not_grow(town: Any, run_warm: Callable[..., list[dict[str, Any]]]) -> None:
    """Another disk that is full, one that can be had without mounting."""
    reference = town.folder / "whole.gpkg"
    (whole,) = run_warm([town.case(reference)])
    assert whole["status"] == 0
    size = reference.stat().st_size
    outs = [town.folder / f"{share}.gpkg" for share in (0.3, 0.98, 2.0)]
    limited = [town.case(out, file_bytes=round(float(out.stem) * size)) for out in outs]
    copying, _, committing = stopped = run_warm(limited)
    assert copying["status"] == 2
    assert committing["status"] == 4
    assert sum(committing["committed"]) > 0
    for out, outcome in zip(outs, stopped, strict=True):
        assert outcome["stderr"].startswith("edge-infer: "), outcome
        assert len(outcome["stderr"].splitlines()) == 1
        assert (outcome["status"] == 4) == out.exists()
    for out, outcome in zip(outs, run_warm([town.case(out, "--resume") for out in outs]), strict=True):
        assert outcome["status"] == 0, outcome["stderr"]
        assert every_value(out) == every_value(reference)
        assert [path.name for path in out.parent.glob(f"{out.name}*")] == [out.name]


# ---- another writer


def test_another_writer_is_waited_for_and_then_named(
    town: Any, run_warm: Callable[..., list[dict[str, Any]]]
) -> None:
    reference, out = town.folder / "whole.gpkg", town.folder / "out.gpkg"
    begun = [
        {"signal": signal.SIGTERM, "point": "edge_infer.results:Results.commit", "call": 3, "after": True}
    ]
    whole, stopped = run_warm([town.case(reference), town.case(out, strikes=begun)])
    assert (whole["status"], stopped["status"]) == (0, 4)
    impatient = {"edge_infer.geopackage:LOCK_WAIT_SECONDS": 0.3}
    slow = replace(town, group=1, batch=1)
    with ThreadPoolExecutor(1) as pool, closing(sqlite3.connect(out, isolation_level=None)) as other:
        # From the start, for too long.
        other.execute("BEGIN IMMEDIATE")
        (early,) = run_warm([town.case(out, "--resume", settings=impatient)])
        assert early["status"] == 2
        assert early["committed"] == []
        # From the start, for a while.
        patient = {"edge_infer.geopackage:LOCK_WAIT_SECONDS": 3}
        waiting = pool.submit(run_warm, [slow.case(out, "--resume", settings=patient)])
        while not out.with_name("out.gpkg.lock").exists():
            time.sleep(0.005)
        time.sleep(0.5)
        other.execute("ROLLBACK")
        # In the middle, for too long.
        begun_with = done(other)
        while done(other) == begun_with and not waiting.done():
            time.sleep(0.005)
        other.execute("PRAGMA busy_timeout = 20000")
        other.execute("BEGIN IMMEDIATE")
        (late,) = waiting.result(timeout=60)
        other.execute("ROLLBACK")
        assert late["status"] == 4
        assert 0 < sum(late["committed"]) < town.count
        for outcome in (early, late):
            assert "out.gpkg is locked by another program; close it there" in outcome["stderr"]
            assert len(outcome["stderr"].splitlines()) == 1
        # In the middle, for a while.
        waiting = pool.submit(run_warm, [slow.case(out, "--resume")])
        begun_with = done(other)
        while done(other) == begun_with and not waiting.done():
            time.sleep(0.005)
        other.execute("BEGIN IMMEDIATE")
        held = done(other)
        time.sleep(0.7)
        assert done(other) == held < town.count
        other.execute("ROLLBACK")
        other.close()
        (last,) = waiting.result(timeout=60)
    assert last["status"] == 0, last["stderr"]
    assert every_value(out) == every_value(reference)


def test_a_slow_disk_costs_time_and_nothing_else(
    town: Any, run_warm: Callable[..., list[dict[str, Any]]]
) -> None:
    """Each commit of four footprints takes 20 ms, and only four may wait: the engine waits for the disk."""
    reference, out = town.folder / "whole.gpkg", town.folder / "out.gpkg"
    slow = replace(town, group=4)
    commit = "edge_infer.results:Results.commit"
    delays = [{"signal": 0, "point": commit, "call": call} for call in range(1, 101)]
    stop = {"signal": signal.SIGTERM, "point": commit, "call": 40, "after": True}
    whole, stopped = run_warm([town.case(reference), slow.case(out, strikes=[*delays, stop])])
    assert (whole["status"], stopped["status"]) == (0, 4), stopped["stderr"]
    with closing(sqlite3.connect(out)) as database:
        assert 0 < done(database) < town.count
    (ended,) = run_warm([slow.case(out, "--resume", strikes=delays)])
    assert ended["status"] == 0, ended["stderr"]
    assert every_value(out) == every_value(reference)


def done(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT count(*) FROM houses WHERE status != 'pending'").fetchone()[0])


# ---- memory and open files

MEASURED = """
import resource, sys
from pathlib import Path
import edge_infer.classify
from edge_infer.cli import commands
most_data_mb, most_files, *arguments = sys.argv[1:]
def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) // 1024
stream = edge_infer.classify._stream
def measured(*args):
    print("begin", memory("VmRSS"))
    stream(*args)
    print("end", memory("VmRSS"))
edge_infer.classify._stream = measured
resource.setrlimit(resource.RLIMIT_DATA, (int(most_data_mb) << 20,) * 2)
resource.setrlimit(resource.RLIMIT_NOFILE, (int(most_files),) * 2)
status = commands.main(["run", "-q", *arguments], standalone_mode=False)
print("peak", memory("VmHWM"), flush=True)
sys.exit(status)
"""


def run_measured(*arguments: object, most_data_mb: int, most_files: int = 256) -> dict[str, int]:
    """Run in a process with limits; its resident MB when streaming begins and ends, and at its peak."""
    command = [sys.executable, "-c", MEASURED, *map(str, (most_data_mb, most_files, *arguments))]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"GDAL_CACHEMAX": "16"}
    )
    assert done.returncode == 0, done.stderr
    found = (line.split() for line in done.stdout.splitlines())
    return {
        words[0]: int(words[1]) for words in found if len(words) == 2 and words[0] in ("begin", "end", "peak")
    }


def write_houses(path: Path, x: Any, y: Any) -> Path:
    """Squares of 8 m around places in UTM."""
    pyogrio.raw.write(
        path,
        shapely.to_wkb(shapely.box(x - 4, y - 4, x + 4, y + 4)),
        field_data=[np.arange(len(x))],
        fields=np.array(["number"]),
        geometry_type="Polygon",
        crs="EPSG:32615",
        layer="houses",
        SPATIAL_INDEX="NO",
    )
    return path


@pytest.mark.parametrize("most", [200_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_memory_is_flat_while_windows_stream(
    tmp_path: Path, make_bundle: Callable[..., Path], most: int
) -> None:
    """A sparse image of 120 gigapixels, with footprints each 10 m.

    A footprint costs some 400 bytes: its encoded geometry, its window and its bounds, and what an allocator
    keeps. Streaming must add nothing.
    """
    image, side = tmp_path / "huge.tif", 200_000
    with rasterio.open(
        image, "w", driver="GTiff", width=side, height=side, count=3, dtype="uint8", crs="EPSG:32615",
        transform=from_origin(300_000, 4_100_000, 0.5, 0.5), tiled=True, blockxsize=512, blockysize=512,
        sparse_ok=True, bigtiff="YES", photometric="RGB",
    ):  # fmt: skip
        pass
    bundle = make_bundle()
    found = {}
    for count in (most // 10, most):
        across = math.isqrt(count)
        place = np.arange(count)
        houses = write_houses(
            tmp_path / f"{count}.gpkg", 310_010 + place % across * 10.0, 4_089_990 - place // across * 10.0
        )
        out = tmp_path / f"out {count}.gpkg"
        found[count] = run_measured(
            *("--model", bundle, "--imagery", image, "--footprints", houses, "--out", out, "--batch", 256),
            most_data_mb=2048,
        )
        with closing(sqlite3.connect(out)) as database:
            counts = database.execute("SELECT status, count(*) FROM houses GROUP BY 1").fetchall()
        assert counts == [("ok", count)]
        out.unlink()
    print(found)
    few, many = found[most // 10], found[most]
    growth = (many["end"] - many["begin"]) - (few["end"] - few["begin"])
    assert growth < 24 + 20 * most / 2**20  # MB; 20 bytes a footprint, and what an allocator keeps
    assert many["peak"] - few["peak"] < 48 + 800 * most / 2**20


@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_open_files_are_few_with_many_images(
    tmp_path: Path, make_bundle: Callable[..., Path], count: int
) -> None:
    """A house on each image of 32 pixels, in a process that may have 256 files open."""
    folder, step = tmp_path / "images", 16.0
    folder.mkdir()
    first = tmp_path / "first.tif"
    with rasterio.open(
        first, "w", driver="GTiff", width=32, height=32, count=3, dtype="uint8", crs="EPSG:32615",
        transform=from_origin(360_000, 4_100_000, 0.5, 0.5), photometric="RGB",
    ) as dataset:  # fmt: skip
        dataset.write(np.full((3, 32, 32), 200, np.uint8))
    content = first.read_bytes()
    corner = struct.pack("<dd", 360_000, 4_100_000)
    assert content.count(corner) == 1
    x, y = 360_000 + np.arange(count) % 100 * step, 4_100_000 - np.arange(count) // 100 * step
    for number, place in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
        (folder / f"{number:05}.tif").write_bytes(content.replace(corner, struct.pack("<dd", *place)))
    houses = write_houses(tmp_path / "houses.gpkg", x + step / 2, y - step / 2)
    out = tmp_path / "out.gpkg"
    run_measured(
        *("--model", make_bundle(), "--imagery", folder, "--footprints", houses, "--out", out),
        most_data_mb=2048,
    )
    with closing(sqlite3.connect(out)) as database:
        found = database.execute("SELECT status, class_label, image FROM houses ORDER BY fid").fetchall()
    assert found == [("ok", "bright", str(folder / f"{number:05}.tif")) for number in range(count)]
