from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_infer.bundle import write_bundle
from edge_infer.errors import BundleError, Refused
from edge_infer.footprints import read_footprints
from edge_infer.info import calibration_lines, describe_file, describe_lines, evaluation_lines
from edge_infer.output import create_output
from edge_infer.results import ImageInfo, ResultRows, Results, RunInfo


@pytest.fixture
def bundle(tmp_path, make_manifest):
    members = {"model.onnx": bytes(3_000_000), "evaluation.json": b'{"accuracy": 0.9}'}
    return write_bundle(tmp_path / "town.edgemodel", make_manifest(), members)


@pytest.fixture
def output(tmp_path):
    """An output of three points, one still pending, whose source has a column called status already."""
    features = [
        {
            "type": "Feature",
            "properties": {"status": "listed"},
            "geometry": {"type": "Point", "coordinates": [x, 0]},
        }
        for x in range(3)
    ]
    source = tmp_path / "houses.geojson"
    source.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    path = tmp_path / "classified.gpkg"
    create_output(
        path, source, read_footprints(source), class_names=["a", "b"], class_colors=["#000000", "#ffffff"]
    )
    return path


def fill(results: Results) -> None:
    results.start_run(
        RunInfo(
            model="town",
            model_sha256="ab" * 32,
            engine="openvino",
            precision="fp32",
            device="a CPU",
            why="asked for",
            versions={"openvino": "2026.1"},
            options={"batch": 16},
        ),
        [ImageInfo(path="west.tif", crs="EPSG:32615", gsd_metres=0.3, date=None)],
    )
    results.commit(
        ResultRows(
            fids=np.array([1, 2]),
            class_index=np.array([1, -1]),
            probabilities=np.array([[0.1, 0.9], [0, 0]], np.float32),
            status=np.array(["ok", "no_data"], object),
            reason=np.array([None, "0 % of its window is valid imagery, wanted 50 %"], object),
            valid_fraction=np.array([1, 0], np.float32),
            covered_fraction=np.array([1, 0], np.float32),
            image_index=np.array([0, 0]),
            gsd_m=np.array([0.3, 0.3]),
        )
    )


def test_bundle(bundle):
    facts = describe_file(bundle.path)
    assert facts["kind"] == "bundle"
    assert facts["sha256"] == bundle.sha256
    assert facts["classes"] == {"no visible damage": "#1a9850", "damaged": "#d73027"}
    assert facts["contract"] == bundle.manifest.contract.to_json()
    assert facts["members"] == {"model.onnx": 3_000_000, "evaluation.json": 17}
    assert facts["evaluation"] == {"accuracy": 0.9}
    assert json.loads(json.dumps(facts)) == facts


def test_lines_of_a_bundle(bundle):
    text = "\n".join(describe_lines(describe_file(bundle.path)))
    assert "town.edgemodel: model bundle, 3.0 MB" in text
    assert "no visible damage, damaged" in text
    assert "16 pixels for 30 m" in text
    assert "model.onnx, 3.0 MB" in text
    assert 'parity    {"chips": 8}' in text


ESTIMATE = {"value": 0.9, "low": 0.85, "high": 0.94}
EVALUATION = {
    "format": 1,
    "side": "test",
    "chips": 1200,
    "blocks": 60,
    "accuracy": ESTIMATE,
    "macro_f1": {"value": 0.88, "low": None, "high": None},
    "calibration": {"before": {"calibration_error": 0.08}, "after": {"calibration_error": 0.02}},
    "per_class": {
        "damaged": {"chips": 400, "precision": ESTIMATE, "recall": {"value": None, "low": None, "high": None}}
    },
    "shortcut": {"verdict": "far", "probe": {"value": 0.6, "low": None, "high": None}, "model": ESTIMATE},
    "findings": [
        {"level": "note", "words": "One\nevent\x1b[31m."},
        {"level": "alarm", "words": "Parted at random."},
    ],
}


def test_evaluation_of_a_bundle(tmp_path, make_manifest):
    members = {"model.onnx": b"x", "evaluation.json": json.dumps(EVALUATION).encode()}
    path = write_bundle(tmp_path / "town.edgemodel", make_manifest(), members).path
    lines = [line.strip() for line in describe_lines(describe_file(path))]
    probed = "far: brightness, colour and sharpness alone reach a mean recall of"
    for wanted in (
        "judged    1,200 chips in 60 blocks: test",
        "accuracy  90.0% (85.0% to 94.0%)",
        "macro-F1  88.0%",
        "ECE       2.0%, 8.0% before the temperature",
        "class     damaged: 400 chips, precision 90.0% (85.0% to 94.0%), recall unknown",
        "ALARM     Parted at random.",
        f"shortcut  {probed} 60.0%, the model 90.0% (85.0% to 94.0%)",
        "note      One event [31m.",
    ):
        assert wanted in lines
    alarm = lines.index("ALARM     Parted at random.")
    assert alarm + 1 == next(number for number, line in enumerate(lines) if line.startswith("judged"))


def test_a_model_that_was_not_probed_is_said_to_be():
    assert ("shortcut", "no probe") in evaluation_lines({**EVALUATION, "shortcut": None})


@given(
    name=st.sampled_from(sorted(EVALUATION)),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.just(10**400) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(st.sampled_from(["value", "low", "damaged", "chips"]), inner, max_size=2)
        ),
        max_leaves=4,
    ),
)
def test_evaluations_from_anywhere_never_break_off(name, value):
    lines = evaluation_lines({**EVALUATION, name: value})
    assert all(text.isprintable() for line in lines for text in line)


CALIBRATION: dict[str, Any] = {
    "int8": "passed",
    "reason": None,
    "created": "2025-06-01",
    "method": "mse",
    "bias_correction": False,
    "in_float": [],
    "gate": {"agreement": 0.995, "chips": 800, "per_class": {"damaged": {"recall_change": {"value": -0.01}}}},
    "chips": {"count": 512, "images": ["a.tif"], "events": [], "sensor": {"gsd_metres": [0.3, 0.5]}},
    "versions": {"onnx": "1.19"},
    "warnings": [],
}


def test_lines_of_a_calibration():
    lines = calibration_lines(CALIBRATION)
    assert ("int8", "agrees with FP32 on 99.50% of 800 held-out chips") in lines
    assert ("int8", "recall against FP32, points: damaged -1.0") in lines


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["value", "agreement", "chips", "gsd_metres"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(
    place=st.sampled_from([(name,) for name in CALIBRATION] + [("gate", "agreement"), ("gate", "per_class")])
    | st.sampled_from([("chips", "count"), ("chips", "images"), ("chips", "sensor", "gsd_metres")]),
    value=ANYTHING,
)
@example(("gate", "agreement"), 10**400)
@example(("chips", "sensor", "gsd_metres"), [10**400, 1])
def test_calibrations_from_anywhere_never_break_off(place, value):
    calibration = json.loads(json.dumps(CALIBRATION))
    inner = calibration
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    assert all(title == "int8" and len(text) <= 400 for title, text in calibration_lines(calibration))


def test_output(output):
    with Results.open(output) as results:
        fill(results)
        results.end_run({"total": 1.5})
        results.finish()
    before = output.read_bytes()
    facts = describe_file(output)
    assert facts["kind"] == "output"
    assert (facts["layer"], facts["footprints"]) == ("houses", 3)
    assert facts["columns"]["status"] == "edge_status"
    assert facts["statuses"] == {"no_data": 1, "ok": 1, "pending": 1}
    assert facts["classes"] == {"b": 1}
    assert [run["engine"] for run in facts["runs"]] == ["openvino"]
    assert facts["runs"][0]["options"] == {"batch": 16}
    assert [image["path"] for image in facts["images"]] == ["west.tif"]
    assert json.loads(json.dumps(facts)) == facts
    text = "\n".join(describe_lines(facts))
    assert "houses, 3 footprints" in text
    assert "status    pending 1" in text
    assert "town by openvino fp32 on a CPU" in text
    assert output.read_bytes() == before
    assert not list(output.parent.glob("classified.gpkg-*"))


def test_output_while_a_run_goes_on(output):
    with Results.open(output) as results:
        fill(results)
        facts = describe_file(output)
        assert facts["statuses"] == {"no_data": 1, "ok": 1, "pending": 1}
        assert any("to no end" in line for line in describe_lines(facts))


def test_output_that_no_run_has_touched(output):
    facts = describe_file(output)
    assert facts["statuses"] == {"pending": 3}
    assert facts["runs"] == []
    assert describe_lines(facts)


def test_a_link_to_an_output_that_is_being_written(output, tmp_path):
    link = tmp_path / "elsewhere" / "link.gpkg"
    link.parent.mkdir()
    link.symlink_to(output)
    with Results.open(output) as results:
        fill(results)
        assert describe_file(link)["statuses"] == {"no_data": 1, "ok": 1, "pending": 1}


def test_an_edit_that_was_cut_short_is_not_shown(output, tmp_path):
    """Another program was killed after it wrote half an edit into the file, whose undoing lies beside it."""
    folder = tmp_path / "killed"
    folder.mkdir()
    with closing(sqlite3.connect(output, isolation_level=None)) as editor:
        editor.execute("PRAGMA cache_size = 1")
        editor.execute("BEGIN")
        editor.execute("UPDATE edge_schema SET schema = 'half an edit'")
        editor.execute("CREATE TABLE large AS SELECT randomblob(1000000)")
        for suffix in ("", "-journal"):
            shutil.copy(f"{output}{suffix}", folder)
    assert b"half an edit" in (folder / output.name).read_bytes()
    with pytest.raises(
        Refused, match=r"left classified\.gpkg-journal; open it in a place that can be written to"
    ):
        describe_file(folder / output.name)


def test_a_column_that_was_dropped(output):
    with closing(sqlite3.connect(output)) as database, database:
        database.execute("ALTER TABLE houses DROP COLUMN edge_status")
    with pytest.raises(Refused, match="has lost the columns edge_status"):
        describe_file(output)


def test_no_such_file(tmp_path):
    with pytest.raises(Refused, match="cannot be read: No such file"):
        describe_file(tmp_path / "nothing")


def test_neither(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(BundleError, match="not a model bundle"):
        describe_file(path)


def test_another_database(tmp_path):
    path = tmp_path / "other.gpkg"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE houses (fid INTEGER)")
    with pytest.raises(Refused, match="no output of edge-infer"):
        describe_file(path)


def test_a_damaged_output(output):
    content = output.read_bytes()
    output.write_bytes(content[:2000] + bytes(len(content) - 2000))
    with pytest.raises(Refused) as caught:
        describe_file(output)
    assert "\n" not in str(caught.value)


def test_an_empty_schema(output):
    with closing(sqlite3.connect(output)) as database, database:
        database.execute("DELETE FROM edge_schema")
    with pytest.raises(Refused, match="no output"):
        describe_file(output)
