"""Results as a checkpoint: whole at every moment, for this process and for others."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import fiona
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_infer.errors import OutputChanged, OutputError
from edge_infer.footprints import read_footprints
from edge_infer.output import create_output
from edge_infer.results import ImageInfo, ResultRows, Results, RunInfo, read_last_run, read_schema
from edge_infer.schema import STATUSES, UNREASONED, quoted

CLASSES = ("destroyed", "no visible damage", 'it\'s "odd"')
IMAGES = [
    ImageInfo(path="/imagery/north.tif", crs="EPSG:26915", gsd_metres=0.5, date="2011-05-24"),
    ImageInfo(path="/imagery/south.tif", crs="EPSG:4326", gsd_metres=0.66, date=None),
]
RUN = RunInfo(
    model="town",
    model_sha256="ab" * 32,
    engine="openvino",
    precision="fp32",
    device="a laptop",
    why="asked for",
    versions={"edge-infer": "0.1.0"},
    options={"batch": 64, "bands": [1, 2, 3], "where": None},
)
COUNT = 600


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output with `COUNT` pending footprints, whose source has a column named status."""
    folder = tmp_path_factory.mktemp("made")
    features = [
        {"type": "Feature", "geometry": square(n % 30, 50 + n // 30), "properties": {"status": f"s{n}"}}
        for n in range(COUNT)
    ]
    source = folder / "houses.geojson"
    source.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")
    create_output(
        folder / "out.gpkg",
        source,
        read_footprints(source),
        class_names=CLASSES,
        class_colors=("#d62728", "#2ca02c", "#1f77b4"),
    )
    return folder / "out.gpkg"


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy of that output to write to."""
    shutil.copy(made, tmp_path / "out.gpkg")
    return tmp_path / "out.gpkg"


def square(x: float, y: float) -> dict[str, Any]:
    ring = [[x, y], [x + 0.5, y], [x + 0.5, y + 0.5], [x, y + 0.5], [x, y]]
    return {"type": "Polygon", "coordinates": [ring]}


def ok_rows(fids: list[int]) -> ResultRows:
    """Rows that are all classified, with probabilities that tell them apart."""
    count = len(fids)
    first = np.linspace(0.1, 0.9, count, dtype=np.float32)
    probabilities = np.stack([first, (1 - first) * 0.75, (1 - first) * 0.25], axis=1)
    return ResultRows(
        fids=np.array(fids, dtype=np.int64),
        class_index=probabilities.argmax(axis=1),
        probabilities=probabilities,
        status=np.full(count, "ok"),
        reason=np.full(count, None, dtype=object),
        valid_fraction=np.full(count, 1, dtype=np.float32),
        covered_fraction=np.full(count, 1, dtype=np.float32),
        image_index=np.arange(count) % 2,
        gsd_m=np.full(count, 0.5),
    )


def failed_rows(fids: list[int], status: str) -> ResultRows:
    count = len(fids)
    return ResultRows(
        fids=np.array(fids, dtype=np.int64),
        class_index=np.full(count, -1),
        probabilities=np.zeros((count, len(CLASSES)), np.float32),
        status=np.full(count, status),
        reason=np.full(count, f"there is a reason for {status}", dtype=object),
        valid_fraction=np.full(count, np.nan, dtype=np.float32),
        covered_fraction=np.full(count, np.nan, dtype=np.float32),
        image_index=np.full(count, -1),
        gsd_m=np.full(count, np.nan),
    )


def statuses_seen_by(database: sqlite3.Connection) -> dict[str, int]:
    return dict(database.execute("SELECT edge_status, COUNT(*) FROM houses GROUP BY 1").fetchall())


def statuses(path: Path) -> dict[str, int]:
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT rtreecheck('rtree_houses_geom')").fetchone() == ("ok",)
        return statuses_seen_by(database)


def test_what_is_committed_is_what_fiona_reads(out: Path) -> None:
    rows = ok_rows([3, 1, 600])
    assert rows.probabilities is not None
    with fiona.open(out) as before:
        geometries = [feature.geometry for feature in before]
    with Results.open(out) as results:
        assert results.pending_rows().tolist() == list(range(1, COUNT + 1))
        results.start_run(RUN, IMAGES)
        results.commit(rows)
        results.commit(failed_rows([2, 4], "no_data"))
        assert results.pending_rows().tolist() == list(range(5, COUNT))
        assert results.finish()
    with fiona.open(out) as after:
        features = {int(feature.id): feature for feature in after}
    assert [feature.geometry for feature in features.values()] == geometries
    for k, fid in enumerate(rows.fids.tolist()):
        found = dict(features[fid].properties)
        p = [round(float(value), 6) for value in rows.probabilities[k]]
        assert found == {
            "status": f"s{fid - 1}",
            "source_fid": fid - 1,
            "class_label": CLASSES[int(np.argmax(p))],
            "confidence": max(p),
            **{f"p_{name}": value for name, value in zip(CLASSES, p, strict=True)},
            "edge_status": "ok",
            "reason": None,
            "valid_fraction": 1.0,
            "covered_fraction": 1.0,
            "image": IMAGES[k % 2].path,
            "gsd_m": 0.5,
        }
    assert features[2].properties["edge_status"] == "no_data"
    assert features[2].properties["reason"] == "there is a reason for no_data"
    assert features[2].properties["confidence"] is None
    assert features[5].properties["edge_status"] == "pending"
    assert statuses(out) == {"ok": 3, "no_data": 2, "pending": COUNT - 5}


def test_pending_footprints_are_read_back_from_the_output(out: Path) -> None:
    with Results.open(out) as results:
        results.start_run(RUN, IMAGES)
        results.commit(ok_rows(list(range(1, 500))))
        pending = results.pending_rows()
    footprints = read_footprints(out, layer=read_schema(out).layer, where="edge_status = 'pending'")
    assert (footprints.fids == pending).all()
    whole = read_footprints(out)
    assert footprints.geometries[:].tolist() == whole.geometries[499:].tolist()
    assert footprints.crs == whole.crs


@pytest.mark.parametrize("begun", [False, True])
def test_a_log_that_was_taken_away_is_noticed(out: Path, begun: bool) -> None:
    # GDAL's SQLite drops the locks of ours, and then takes the log for a forgotten one.
    with Results.open(out) as results:
        if begun:
            results.start_run(RUN, IMAGES)
            results.commit(ok_rows([1]))
        read_footprints(out)
        if not begun:
            results.start_run(RUN, IMAGES)
        with pytest.raises(OutputChanged, match="lost its log to another program"):
            results.commit(ok_rows([2]))
    assert statuses(out).get("ok", 0) == int(begun)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_was_moved_is_noticed(out: Path, replaced: bool) -> None:
    copy = Path(shutil.copy(out, out.with_name("copy.gpkg")))
    with Results.open(out) as results:
        results.start_run(RUN, IMAGES)
        results.commit(ok_rows([1]))
        out.rename(out.with_name("moved.gpkg"))
        if replaced:
            copy.rename(out)
        for step in (lambda: results.commit(ok_rows([2])), lambda: results.end_run({})):
            with pytest.raises(OutputChanged, match="was moved, removed or replaced") as caught:
                step()
            assert caught.value.exit_code == 1


def test_rows_to_be_tried_again_are_empty(out: Path) -> None:
    with Results.open(out) as results:
        results.start_run(RUN, IMAGES)
        rows = ok_rows([1, 2, 3])
        status = np.array(["ok", "read_error", "outside_imagery"], object)
        reason = np.array([None, "torn", "beside it"], object)
        places = np.array([0, -1, -1])
        results.commit(replace(rows, status=status, reason=reason, class_index=places))
        results.retry("read_error")
        assert results.pending_rows()[:1].tolist() == [2]
        results.retry("outside_imagery")
        assert results.pending_rows().tolist() == list(range(2, COUNT + 1))
        assert results.finish()
    with fiona.open(out) as rows_left:
        for row in list(rows_left)[1:3]:
            names = ("reason", "image", "gsd_m", "valid_fraction", "covered_fraction")
            assert [row.properties[name] for name in names] == [None] * 5


def test_what_others_wrote_is_counted(out: Path) -> None:
    with Results.open(out) as results:
        results.start_run(RUN, IMAGES)
        results.commit(ok_rows([1]))
        schema = results.schema
        results._database.execute(
            f"UPDATE {quoted(schema.layer)} SET {quoted(schema.columns['status'])} = 'seen',"
            f" {quoted(schema.columns['class_label'])} = 'mine' WHERE fid <= 2"
        )
        counts = results.counts()
    assert counts.statuses == {"pending": COUNT - 2, "seen": 2}
    assert counts.classes == {**dict.fromkeys(CLASSES, 0), "mine": 2}


def test_who_is_waited_for_is_told(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_infer.geopackage.PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr("edge_infer.geopackage.LOCK_WAIT_SECONDS", 0.2)
    told: list[str] = []
    with closing(sqlite3.connect(out, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OutputError, match="is locked by another program; close it there"):
            Results.open(out, told.append)
    assert told == [f"{out} is locked by another program; waiting for 0.2 s at most"]
    with Results.open(out, told.append):
        assert len(told) == 1


def test_a_lost_column_is_named(out: Path) -> None:
    with closing(sqlite3.connect(out)) as database, database:
        database.execute("ALTER TABLE houses DROP COLUMN reason")
    with pytest.raises(OutputError, match="has lost the columns reason; take a copy"):
        read_schema(out)


def test_a_commit_is_all_or_nothing(out: Path) -> None:
    with Results.open(out) as results:
        results.start_run(RUN, IMAGES)
        with pytest.raises(OutputChanged, match="has lost 1 of its footprints"):
            results.commit(ok_rows([1, 2, COUNT + 1]))
        assert len(results.pending_rows()) == COUNT
        results.commit(ok_rows([]))
        results.commit(ok_rows([1, 2]))
    assert statuses(out) == {"ok": 2, "pending": COUNT - 2}


def test_other_programs_read_while_the_run_goes_on(out: Path) -> None:
    script = (
        "import pyogrio.raw, sys; _, _, _, (status,) = pyogrio.raw.read(sys.argv[1], layer='houses',"
        " columns=['edge_status']); print((status == 'ok').sum(), len(status))"
    )
    with Results.open(out) as results:
        results.start_run(RUN, IMAGES)
        results.commit(ok_rows(list(range(1, 51))))
        seen = subprocess.run(
            [sys.executable, "-c", script, str(out)], capture_output=True, text=True, check=True
        )
        assert seen.stdout.split() == ["50", str(COUNT)]
        assert seen.stderr == ""
        with closing(sqlite3.connect(out)) as reader:
            reader.execute("BEGIN")
            assert statuses_seen_by(reader) == {"ok": 50, "pending": COUNT - 50}
            results.commit(ok_rows([51]))  # a reader does not hold up a commit, nor see half of it
            assert statuses_seen_by(reader)["ok"] == 50
            reader.execute("COMMIT")
            assert statuses_seen_by(reader)["ok"] == 51
        assert results.finish()


KILLED = """
import sys
from pathlib import Path
import numpy as np
from edge_infer.results import ImageInfo, ResultRows, Results, RunInfo, read_last_run
results = Results.open(Path(sys.argv[1]))
facts = dict.fromkeys(("model", "model_sha256", "engine", "precision", "device", "why"), "x")
run = RunInfo(**facts, versions={}, options={})
results.start_run(run, [])
fids = results.pending_rows()
for start in range(0, len(fids), 10):
    part = fids[start : start + 10]
    k = len(part)
    results.commit(ResultRows(
        part, np.zeros(k, np.int64), np.full((k, 3), 1 / 3, np.float32), np.full(k, "ok"), np.full(k, None),
        np.ones(k, np.float32), np.ones(k, np.float32), np.full(k, -1), np.ones(k)))
    print(start, flush=True)
"""


def test_a_killed_run_loses_no_commit_and_leaves_no_half_one(out: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(out)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(7):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        confirmed = 7 + len(process.stdout.readlines())
    with Results.open(out) as results:
        done = COUNT - len(results.pending_rows())
        assert done % 10 == 0
        assert done >= 10 * confirmed
        assert (read_last_run(out) or {})["ended"] is None
        assert results.finish()
    assert statuses(out)["ok"] == done
    assert [entry.name for entry in out.parent.iterdir()] == ["out.gpkg"]


def test_finish_leaves_one_plain_file(out: Path) -> None:
    with Results.open(out) as results:
        results.start_run(RUN, IMAGES)
        results.commit(ok_rows([1]))
        assert {entry.name for entry in out.parent.iterdir()} == {"out.gpkg", "out.gpkg-wal", "out.gpkg-shm"}
        assert results.finish()
    assert [entry.name for entry in out.parent.iterdir()] == ["out.gpkg"]
    assert out.read_bytes()[18:20] == b"\x01\x01"  # SQLite's mark of a file without write-ahead log


def test_finish_gives_up_on_a_reader_without_losing_anything(out: Path) -> None:
    with closing(sqlite3.connect(out)) as reader:
        with Results.open(out) as results:
            results.start_run(RUN, IMAGES)
            reader.execute("BEGIN")
            assert statuses_seen_by(reader) == {"pending": COUNT}
            results.commit(ok_rows([1, 2]))
            assert not results.finish(wait_seconds=0.3)
        reader.execute("COMMIT")
        assert statuses_seen_by(reader)["ok"] == 2
    assert statuses(out)["ok"] == 2
    with Results.open(out) as results:
        assert results.finish()
    assert [entry.name for entry in out.parent.iterdir()] == ["out.gpkg"]


def test_a_lock_by_another_writer_is_an_output_error(out: Path) -> None:
    with Results.open(out) as results, closing(sqlite3.connect(out, isolation_level=None)) as other:
        results.start_run(RUN, IMAGES)
        results._database.execute("PRAGMA busy_timeout = 50")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OutputError, match="locked by another program"):
            results.commit(ok_rows([1]))
        other.execute("ROLLBACK")
        results.commit(ok_rows([1]))
    assert statuses(out)["ok"] == 1


def test_runs_and_images_are_on_record(out: Path) -> None:
    with Results.open(out) as results:
        assert read_last_run(out) is None
        assert results.start_run(RUN, IMAGES[:1]) == 1
        results.commit(failed_rows([9], "read_error"))
        results.close()
    with Results.open(out) as results:
        first = read_last_run(out)
        assert first is not None
        assert first["images"] == ["/imagery/north.tif"]
        assert (first["ended"], first["counts"], first["times"]) == (None, None, None)
        assert results.start_run(RUN, IMAGES) == 2
        results.commit(ok_rows([1, 2, 3]))
        counts = results.end_run({"total": 1.5})
        last = read_last_run(out)
        assert results.finish()
    assert counts.statuses == {"ok": 3, "pending": COUNT - 4, "read_error": 1}
    assert list(counts.classes) == list(CLASSES)
    assert sum(counts.classes.values()) == 3
    assert counts.images == {"/imagery/north.tif": 2, "/imagery/south.tif": 1}
    assert last is not None
    assert (last["run_id"], last["model"], last["model_sha256"]) == (2, "town", "ab" * 32)
    assert (last["versions"], last["options"]) == (RUN.versions, RUN.options)
    assert last["columns"]["status"] == "edge_status"
    assert last["counts"] == {"statuses": counts.statuses, "classes": counts.classes}
    assert last["times"] == {"total": 1.5}
    assert last["started"] <= last["ended"]
    with closing(sqlite3.connect(out)) as database:
        images = database.execute("SELECT path, crs, gsd_m, date, footprints FROM edge_images").fetchall()
        (changed,) = database.execute(
            "SELECT last_change FROM gpkg_contents WHERE table_name = 'houses'"
        ).fetchone()
    assert images == [
        ("/imagery/north.tif", "EPSG:26915", 0.5, "2011-05-24", 2),
        ("/imagery/south.tif", "EPSG:4326", 0.66, None, 1),
    ]
    assert changed == last["ended"]
    with fiona.open(out, layer="edge_runs") as runs:
        assert len(runs) == 2


@st.composite
def any_rows(draw: st.DrawFn) -> ResultRows:
    fids = draw(st.lists(st.integers(1, COUNT), unique=True, max_size=12))
    count, known = len(fids), len(CLASSES)
    class_index = draw(hnp.arrays(np.int64, count, elements=st.integers(-1, known - 1)))
    failures = st.sampled_from([status for status in STATUSES if status != "ok"])
    shares = st.floats(0, 1, width=32) | st.just(float("nan"))
    status = np.array(["ok" if index >= 0 else draw(failures) for index in class_index], dtype=object)
    reasons = [None if one in UNREASONED else draw(st.text(max_size=20)) for one in status]
    return ResultRows(
        fids=np.array(fids, dtype=np.int64),
        class_index=class_index,
        probabilities=draw(hnp.arrays(np.float32, (count, known), elements=st.floats(0, 1, width=32))),
        status=status,
        reason=np.array(reasons, dtype=object),
        valid_fraction=draw(hnp.arrays(np.float32, count, elements=shares)),
        covered_fraction=draw(hnp.arrays(np.float32, count, elements=shares)),
        image_index=draw(hnp.arrays(np.int64, count, elements=st.integers(-1, 1))),
        gsd_m=draw(hnp.arrays(np.float64, count, elements=st.floats(0.01, 100) | st.just(float("nan")))),
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=any_rows())
def test_any_rows_come_back(out: Path, rows: ResultRows) -> None:
    assert rows.probabilities is not None
    with Results.open(out) as results:
        results.start_run(RUN, IMAGES)
        results.commit(rows)
        names = [
            *(results.schema.columns[name] for name in ("status", "class_label", "confidence", "image")),
            *(
                results.schema.columns[name]
                for name in ("reason", "valid_fraction", "covered_fraction", "gsd_m")
            ),
            *results.schema.probabilities,
        ]
    sql = f"SELECT {', '.join(map(quoted, names))} FROM houses WHERE fid = ?"
    with closing(sqlite3.connect(out)) as database:
        for k, fid in enumerate(rows.fids.tolist()):
            status, label, confidence, image, reason, valid, covered, gsd, *p = database.execute(
                sql, (fid,)
            ).fetchone()
            index = int(rows.class_index[k])
            assert (status, reason) == (rows.status[k], rows.reason[k])
            assert image == (IMAGES[rows.image_index[k]].path if rows.image_index[k] >= 0 else None)
            known = [rows.valid_fraction[k], rows.covered_fraction[k], rows.gsd_m[k]]
            np.testing.assert_allclose(np.array([valid, covered, gsd], dtype=float), known, atol=1e-6)
            if index < 0:
                assert [label, confidence, *p] == [None] * (2 + len(CLASSES))
            else:
                assert (label, confidence) == (CLASSES[index], p[index])
                np.testing.assert_allclose(p, rows.probabilities[k], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": np.array(["ok", "fine", "ok"])}, "status must be one of"),
        ({"status": np.array(["ok", "no_data", "ok"])}, "exactly if its status is ok"),
        ({"class_index": np.array([0, -1, 1])}, "exactly if its status is ok"),
        ({"reason": np.array([None, "none", None])}, "neither ok nor pending"),
        ({"gsd_m": np.zeros(2)}, r"gsd_m must have shape \(3,\), got \(2,\)"),
        ({"probabilities": np.zeros((2, 3), np.float32)}, "must have 3 rows, got 2"),
    ],
)
def test_rows_that_do_not_fit_together_are_refused(change: dict[str, Any], said: str) -> None:
    rows = ok_rows([1, 2, 3])
    values = {name: getattr(rows, name) for name in ResultRows.__dataclass_fields__}
    with pytest.raises(ValueError, match=said):
        ResultRows(**(values | change))


def test_probabilities_of_another_model_are_refused(out: Path) -> None:
    rows = ok_rows([1])
    assert rows.probabilities is not None
    other = replace(rows, probabilities=rows.probabilities[:, :2])
    with Results.open(out) as results, pytest.raises(ValueError, match="3 probabilities wanted, got 2"):
        results.commit(other)


def test_what_is_no_output_is_refused(tmp_path: Path, out: Path) -> None:
    with pytest.raises(OutputError, match="there is no output"):
        Results.open(tmp_path / "nothing.gpkg")
    (tmp_path / "text.gpkg").write_text("no database at all, but long enough to look like one " * 20)
    with pytest.raises(OutputError, match="is no output of edge-infer"):
        Results.open(tmp_path / "text.gpkg")
    with closing(sqlite3.connect(tmp_path / "other.gpkg")) as database, database:
        database.execute("CREATE TABLE t (n INTEGER)")
    with pytest.raises(OutputError, match="is no output of edge-infer"):
        Results.open(tmp_path / "other.gpkg")
    with closing(sqlite3.connect(out)) as database, database:
        database.execute("DELETE FROM edge_schema")
    with pytest.raises(OutputError, match="does not say what its columns are"):
        Results.open(out)
    assert "text.gpkg-wal" not in {entry.name for entry in tmp_path.iterdir()}
