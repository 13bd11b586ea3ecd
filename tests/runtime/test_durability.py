"""A run may end at any moment, by any means: no row is lost, doubled or half-written, and it goes on.

Signals meet runs at moments of their clock, spread over their whole life, and at points of their work that no
clock would hit. fiona and SQLite, which know nothing of our modules, say what is left.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fiona
import numpy as np

from edge_infer import geopackage
from edge_infer.lock import sole_run
from edge_infer.results import Results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

TIMED_KILLS = 16
LEFTOVERS = ("", "-wal", "-shm", ".lock", ".partial.gpkg", ".partial.gpkg-journal")
"""All that may stand beside a run that was killed."""


def every_value(path: Path) -> list[tuple[Any, ...]]:
    """Each value of the layer, geometries included, as SQLite keeps it; floats are compared bit by bit."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return database.execute("SELECT * FROM houses ORDER BY fid").fetchall()


def names_beside(out: Path) -> set[str]:
    return {path.name.removeprefix(out.name) for path in out.parent.glob(f"{out.name}*")}


def rows_by_fiona(path: Path) -> dict[int, dict[str, Any]]:
    with fiona.open(path) as source:
        features = list(source)
    rows = {int(feature.id): dict(feature.properties) for feature in features}
    assert len(rows) == len(features)
    return rows


def what_is_left(out: Path, whole: dict[int, dict[str, Any]]) -> int | None:
    """Insist on a sound file or none; the number of rows that are filled in."""
    assert names_beside(out) <= set(LEFTOVERS)
    if not out.exists():
        return None
    every_value(out)
    rows = rows_by_fiona(out)
    assert list(rows) == list(range(1, len(whole) + 1))
    pending = {"number", "name", "source_fid", "status"}
    for fid, row in rows.items():
        if row["status"] == "pending":
            assert {name for name, value in row.items() if value is not None} == pending
            assert row["source_fid"] == fid
        else:
            assert row == whole[fid]
    return sum(bool(row["status"] != "pending") for row in rows.values())


def points_to_kill_at() -> list[dict[str, Any]]:
    """Moments that no clock would hit."""
    points: list[tuple[str, int, str]] = [
        ("edge_infer.classify:open_bundle", 1, "after"),
        ("edge_infer.classify:sole_run", 1, "after"),
        ("edge_infer.classify:open_engine", 1, "after"),
        ("edge_infer.output:_copy", 1, "before"),
        ("edge_infer.output:_copy", 1, "after"),
        ("edge_infer.output:_add_columns", 1, "after"),
        ("edge_infer.output:_add_style", 1, "after"),
        *(("os:fsync", call, when) for call in (1, 2, 3, 4) for when in ("before", "after")),
        ("pathlib:Path.replace", 1, "before"),
        ("pathlib:Path.replace", 1, "after"),
        ("sql:PRAGMA journal_mode = WAL", 1, "before"),
        ("sql:PRAGMA synchronous = FULL", 1, "before"),
        ("edge_infer.results:Results.start_run", 1, "before"),
        ("edge_infer.results:Results.start_run", 1, "after"),
        ("sql:UPDATE", 100, "before"),
        ("sql:UPDATE", 700, "before"),
        ("sql:COMMIT", 5, "before"),
        ("sql:COMMIT", 22, "before"),
        ("edge_infer.results:Results.commit", 1, "after"),
        ("edge_infer.results:Results.commit", 20, "after"),
        ("edge_infer.results:Results.end_run", 1, "before"),
        ("edge_infer.results:Results.finish", 1, "before"),
        ("sql:PRAGMA wal_checkpoint", 1, "before"),
        ("sql:PRAGMA journal_mode = MEMORY", 2, "before"),
        ("edge_infer.results:make_durable", 1, "before"),
        ("edge_infer.results:make_durable", 1, "after"),
    ]
    killed = [
        {"signal": signal.SIGKILL, "point": point, "call": call, "after": when == "after"}
        for point, call, when in points
    ]
    inside = [("edge_infer.output:_copy", 0.004), ("edge_infer.output:_copy", 0.012)]
    inside += [("sql:COMMIT", 0.0003), ("sql:PRAGMA wal_checkpoint", 0.0003)]
    calls = {"sql:COMMIT": 3, "sql:PRAGMA journal_mode = MEMORY": 2}
    inside += [("sql:PRAGMA journal_mode = MEMORY", seconds) for seconds in (0.0002, 0.0005, 0.001)]
    inside += [("sql:PRAGMA journal_mode = WAL", seconds) for seconds in (0.0002, 0.0005)]
    return killed + [
        {"signal": signal.SIGALRM, "point": point, "call": calls.get(point, 1), "seconds": seconds}
        for point, seconds in inside
    ]


def test_killed_at_any_moment_and_resumed(town: Any, run_warm: Callable[..., list[dict[str, Any]]]) -> None:
    reference = town.folder / "whole.gpkg"
    (uninterrupted,) = run_warm([town.case(reference)])
    assert uninterrupted["status"] == 0, uninterrupted["stderr"]
    assert sum(uninterrupted["committed"]) == town.count
    assert max(uninterrupted["committed"]) <= town.group + town.batch  # those beside the image, too
    whole, values = rows_by_fiona(reference), every_value(reference)
    assert {"ok", "bad_geometry", "outside_imagery"} <= Counter(
        row["status"] for row in whole.values()
    ).keys()

    rng = np.random.default_rng(50)
    clock = (np.arange(TIMED_KILLS) + rng.random(TIMED_KILLS)) / TIMED_KILLS * uninterrupted["seconds"]
    strikes = [{"signal": signal.SIGKILL, "seconds": float(seconds)} for seconds in clock]
    strikes += points_to_kill_at()
    assert len(strikes) >= 50
    outs = [town.folder / f"{number}.gpkg" for number in range(len(strikes))]
    killed = run_warm([town.case(out, strikes=[strike]) for out, strike in zip(outs, strikes, strict=True)])
    seen: list[int | None] = []
    for number, (out, strike, outcome) in enumerate(zip(outs, strikes, killed, strict=True)):
        if "point" in strike:
            assert outcome["status"] == -strike["signal"], (strike, outcome)
        looked_at = out
        if number % 2:  # a copy, so that the resumed run is the first to open the file itself
            looked_at = town.folder / "copy" / out.name
            looked_at.parent.mkdir(exist_ok=True)
            for path in town.folder.glob(f"{out.name}*"):
                shutil.copy(path, looked_at.parent)
        done = what_is_left(looked_at, whole)
        seen.append(done)
        # What a commit confirmed is there; at most the one that was being written is there besides.
        confirmed, started = sum(outcome["committed"]), bool(outcome["committed"])
        in_flight = town.group + town.batch if started else uninterrupted["committed"][0]
        assert confirmed <= (done or 0) <= confirmed + in_flight, strike
    assert {None, 0, town.count} < set(seen)
    assert sum(done not in (None, 0, town.count) for done in seen) >= 5

    resumed = run_warm([town.case(out, "--resume") for out in outs])
    for out, strike, done, outcome in zip(outs, strikes, seen, resumed, strict=True):
        assert outcome["status"] == 0, (strike, outcome["stderr"])
        assert sum(outcome["committed"]) == town.count - (done or 0)  # nothing is done twice
        assert names_beside(out) == {""}, strike
        assert repr(every_value(out)) == repr(values), strike


def test_the_command_itself_killed_and_resumed(
    town: Any, run_warm: Callable[..., list[dict[str, Any]]]
) -> None:
    reference, out = town.folder / "whole.gpkg", town.folder / "out.gpkg"
    slow = replace(town, batch=1)
    command = [str(Path(sys.executable).with_name("edge-infer")), *slow.case(out, "--overwrite")["arguments"]]
    for _ in range(5):  # it may be done before a slow machine looks
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and not out.with_name("out.gpkg-wal").exists():
                time.sleep(0.005)
            process.kill()
        if process.returncode:
            break
    assert process.returncode == -signal.SIGKILL
    resumed, whole = run_warm([town.case(out, "--resume"), town.case(reference)])
    assert (resumed["status"], whole["status"]) == (0, 0)
    assert names_beside(out) == {""}
    assert repr(every_value(out)) == repr(every_value(reference))


# ---- signals that can be heard


def test_signals_end_a_run_cleanly_at_any_moment(
    town: Any, run_warm: Callable[..., list[dict[str, Any]]]
) -> None:
    reference = town.folder / "whole.gpkg"
    (uninterrupted,) = run_warm([town.case(reference)])
    whole, values = rows_by_fiona(reference), every_value(reference)
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as it is under nohup
        numbers.append(signal.SIGHUP)
    strikes: list[dict[str, Any]] = [
        {
            "signal": numbers[k % len(numbers)],
            "point": "edge_infer.classify:open_bundle",
            "seconds": (k + 0.5) / 6 * uninterrupted["seconds"],
        }
        for k in range(6)
    ]
    points = [
        ("edge_infer.classify:open_bundle", 1),
        ("edge_infer.classify:read_footprints", 1),
        ("edge_infer.footprints:open_layer", 1),  # where errors of GDAL are turned into words
        ("pyogrio.raw:write_arrow", 1),
        ("edge_infer.output:_add_style", 1),
        ("pathlib:Path.replace", 1),
        ("edge_infer.results:Results.start_run", 1),
        ("edge_infer.results:Results.commit", 1),
        ("edge_infer.results:Results.commit", 12),
    ]
    strikes += [
        {"signal": numbers[k % len(numbers)], "point": point, "call": call, "after": True}
        for k, (point, call) in enumerate(points)
    ]
    outs = [town.folder / f"{number}.gpkg" for number in range(len(strikes))]
    stopped = run_warm([town.case(out, strikes=[strike]) for out, strike in zip(outs, strikes, strict=True)])
    seen = []
    for out, strike, outcome in zip(outs, strikes, stopped, strict=True):
        done = what_is_left(out, whole)
        assert names_beside(out) == ({""} if out.exists() else set()), (strike, outcome)
        too_late = done == town.count and "seconds" in strike  # Python may be on its way out
        assert outcome["status"] in ((4, 0, -strike["signal"], -signal.SIGALRM) if too_late else (4,)), (
            strike,
            outcome,
        )
        if outcome["status"] == 4 and not outcome["stdout"]:  # before the first result
            assert outcome["stderr"].strip().splitlines()[-1].startswith("edge-infer: "), outcome
        assert "Traceback" not in outcome["stderr"]
        if outcome["status"] == 4 and not out.exists():
            assert "before anything was changed; run the same command again" in outcome["stderr"]
        assert (done or 0) == sum(outcome["committed"])
        seen.append(done)
    assert {None, 0} < set(seen)
    resumed = run_warm([town.case(out, "--resume") for out in outs])
    assert {outcome["status"] for outcome in resumed} == {0}
    for out, strike in zip(outs, strikes, strict=True):
        assert names_beside(out) == {""}, strike
        assert repr(every_value(out)) == repr(values), strike


def test_a_second_signal_ends_it_at_once_and_leaves_it_sound(
    town: Any, run_warm: Callable[..., list[dict[str, Any]]]
) -> None:
    reference = town.folder / "whole.gpkg"
    first = {"signal": signal.SIGINT, "point": "edge_infer.results:Results.commit", "call": 5, "after": True}
    pairs = [
        [first, {**first, "call": 6, "after": False}],
        [
            first,
            {**first, "point": "edge_infer.results:Results.end_run", "call": 1, "signal": signal.SIGTERM},
        ],
        [first, {**first, "point": "edge_infer.results:Results.finish", "call": 1, "after": False}],
    ]
    inside = {**first, "point": "edge_infer.results:Results._values", "call": 6}
    pairs += [[inside] * 2, [inside] * 3]  # in the midst of one commit
    outs = [town.folder / f"{number}.gpkg" for number in range(len(pairs))]
    cases = [town.case(out, strikes=pair) for out, pair in zip(outs, pairs, strict=True)]
    uninterrupted, *stopped = run_warm([town.case(reference), *cases])
    assert uninterrupted["status"] == 0
    whole = rows_by_fiona(reference)
    for out, outcome in zip(outs, stopped, strict=True):
        assert (outcome["status"], outcome["stderr"].strip()) == (4, "edge-infer: interrupted")
        done = what_is_left(out, whole)
        assert done == sum(outcome["committed"])
        assert 0 < (done or 0) < town.count
        assert ".lock" not in names_beside(out)
    assert {outcome["status"] for outcome in run_warm([town.case(out, "--resume") for out in outs])} == {0}
    for out in outs:
        assert names_beside(out) == {""}
        assert repr(every_value(out)) == repr(every_value(reference))


# ---- others at the same file

READS = """
import sys, time
from pathlib import Path
import fiona, pyogrio.raw
out, stop = Path(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
reads, before = 0, -1
while not (last := stop.exists()) or not reads:
    if not out.exists():
        time.sleep(0.001)
        continue
    if reads % 2:
        with fiona.open(out) as source:
            statuses = [feature.properties["status"] for feature in source]
    else:
        statuses = pyogrio.raw.read(out, layer="houses", columns=["status"])[3][0].tolist()
    done = sum(status != "pending" for status in statuses)
    assert done >= before, (done, before)
    reads, before = reads + 1, done
    print(len(statuses), done, flush=True)
"""

HOLDS = """
import sys, time
from pathlib import Path
import fiona
out = Path(sys.argv[1])
print("ready", flush=True)
while not out.exists():
    time.sleep(0.001)
with fiona.open(out) as source:
    features = iter(source) if sys.argv[2] == "reading" else iter(())
    first = next(features, None)
    print("open", flush=True)
    sys.stdin.readline()
    rest = list(features)
    print(len(rest) + (first is not None), flush=True)
"""


@contextmanager
def start_reader(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Another process that reads; it ends with the block, whatever happens there."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def test_others_may_read_at_any_time(town: Any, run_warm: Callable[..., list[dict[str, Any]]]) -> None:
    out, stop = town.folder / "out.gpkg", town.folder / "stop"
    with start_reader(READS, out, stop) as reader:
        # No signal at all, but it holds a commit up a little, so that the reader has time.
        pauses = [
            {"signal": 0, "point": "edge_infer.results:Results.commit", "call": call} for call in range(5, 65)
        ]
        (outcome,) = run_warm([replace(town, group=4).case(out, strikes=pauses)])
        stop.touch()
        told, _ = reader.communicate(timeout=60)
    assert reader.returncode == 0
    assert outcome["status"] == 0, outcome["stderr"]
    reads = [tuple(map(int, line.split())) for line in told.splitlines()]
    assert {count for count, _ in reads} == {town.count}
    assert sum(0 < done < town.count for _, done in reads) >= 3  # while the run went on
    assert reads[-1] == (town.count, town.count)
    assert names_beside(out) == {""}


def test_readers_that_hold_on_to_the_end(town: Any, run_warm: Callable[..., list[dict[str, Any]]]) -> None:
    reference, *outs = (town.folder / f"{name}.gpkg" for name in ("whole", "reading", "idle"))
    with start_reader(HOLDS, outs[0], "reading") as reading, start_reader(HOLDS, outs[1], "idle") as idle:
        *held, free = run_warm([town.case(out) for out in (*outs, reference)], processes=3)
        assert [outcome["status"] for outcome in (*held, free)] == [0, 0, 0]
        assert "another program" not in free["stdout"]
        whole = rows_by_fiona(reference)
        for out, outcome, reader in zip(outs, held, (reading, idle), strict=True):
            assert "another program has the output open" in outcome["stdout"]
            assert reader.stdout is not None
            assert reader.stdout.readline() == "open\n"
            assert rows_by_fiona(out) == whole  # for all who open it now
        alone = shutil.copy(outs[1], town.folder / "alone.gpkg")
        assert rows_by_fiona(Path(alone)) == whole  # nobody reads: nothing is left in the log
        assert reading.communicate("\n", timeout=60)[0].split() == [str(town.count)]
        assert idle.communicate("\n", timeout=60)[0].split() == ["0"]
    assert (reading.returncode, idle.returncode) == (0, 0)
    again = run_warm([town.case(out, "--resume") for out in outs])
    for out, outcome in zip(outs, again, strict=True):
        assert (outcome["status"], sum(outcome["committed"])) == (0, 0)
        assert "another program" not in outcome["stdout"]
        assert names_beside(out) == {""}
        assert repr(every_value(out)) == repr(every_value(reference))


def test_two_runs_at_once_are_one_too_many(town: Any, run_warm: Callable[..., list[dict[str, Any]]]) -> None:
    out = town.folder / "out.gpkg"
    with sole_run(out):
        early = run_warm([town.case(out), town.case(out, "--resume")])
        assert not out.exists()
    (done,) = run_warm([town.case(out)])
    assert done["status"] == 0
    before = out.read_bytes()
    with sole_run(out):
        late = run_warm([town.case(out, option) for option in ("--resume", "--overwrite")])
    for outcome in (*early, *late):
        assert outcome["status"] == 2
        assert outcome["stderr"].startswith("edge-infer: another run is writing to ")
        assert len(outcome["stderr"].splitlines()) == 1
    assert out.read_bytes() == before
    assert names_beside(out) == {""}


# ---- a power cut, as far as it can be foreseen


def test_what_must_be_on_disk_is_there_before_what_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, out = tmp_path / "new.gpkg", tmp_path / "out.gpkg"
    for path in (new, out):
        with closing(sqlite3.connect(path)) as database, database:
            database.execute(f"CREATE TABLE t AS SELECT '{path.name}' AS name")
    for suffix in geopackage.SIDECARS:
        out.with_name(out.name + suffix).touch()
    steps: list[tuple[str, str]] = []
    fsync, rename, unlink = os.fsync, Path.replace, Path.unlink

    def tell_fsync(descriptor: int) -> None:
        steps.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def tell_rename(path: Path, target: Path) -> Path:
        steps.append(("rename", path.name))
        return rename(path, target)

    def tell_unlink(path: Path, *, missing_ok: bool = False) -> None:
        steps.append(("unlink", path.name))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(os, "fsync", tell_fsync)
    monkeypatch.setattr(Path, "replace", tell_rename)
    monkeypatch.setattr(Path, "unlink", tell_unlink)
    geopackage.replace(new, out)
    folder = ("fsync", tmp_path.name)
    assert steps == [
        ("unlink", "out.gpkg"),  # before its log, without which it is not whole
        *(("unlink", f"out.gpkg{suffix}") for suffix in geopackage.SIDECARS),
        ("fsync", "new.gpkg"),
        folder,
        ("rename", "new.gpkg"),
        ("fsync", "out.gpkg"),
        folder,
    ]


def test_commits_are_synced(town: Any, run_warm: Callable[..., list[dict[str, Any]]]) -> None:
    out = town.folder / "out.gpkg"
    (outcome,) = run_warm([town.case(out)])
    assert outcome["status"] == 0
    with Results.open(out) as results:
        assert results._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert results._database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert results.finish()
    with closing(sqlite3.connect(out)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
