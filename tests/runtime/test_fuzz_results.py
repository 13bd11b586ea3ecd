"""Any rows at all into an output: it stores them exactly or refuses them whole, and is never spoilt."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import fiona
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_infer.errors import OutputChanged
from edge_infer.footprints import read_footprints
from edge_infer.output import create_output
from edge_infer.results import DECIMALS, ImageInfo, ResultRows, Results, RunInfo
from edge_infer.schema import STATUSES, quoted

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = ('it\'s "odd"', "x'); DROP TABLE edge_runs; --", "屋根 🏠 ?1 :a @b $c")
LAYER = "hou\"ses'; --é"
COUNT = 30
NAMED = ("model", "model_sha256", "engine", "precision", "device", "why")
FACTS: dict[str, Any] = dict.fromkeys(NAMED, "x'\"; --")
RUN = RunInfo(**FACTS, versions={"'": '"'}, options={"where": "a = 'b' --"})
IMAGES = [
    ImageInfo(path=path, crs="EPSG:26915", gsd_metres=0.5, date=None)
    for path in ('/it\'s "here".tif', "/ünï 🛰.tif")
]
COLUMNS = (
    *(
        "class_label",
        "confidence",
        "status",
        "reason",
        "valid_fraction",
        "covered_fraction",
        "image",
        "gsd_m",
    ),
    *(f"p_{name}" for name in CLASSES),
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd names")
    features = [
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [n, n]}, "properties": {"n": n}}
        for n in range(COUNT)
    ]
    source = folder / "houses.geojson"
    source.write_text(json.dumps({"type": "FeatureCollection", "name": LAYER, "features": features}))
    create_output(
        folder / 'o\'ut "1" ?#%.gpkg',
        source,
        read_footprints(source),
        class_names=CLASSES,
        class_colors=("#d62728", "#2ca02c", "#1f77b4"),
    )
    return folder / 'o\'ut "1" ?#%.gpkg'


numbers = (
    st.floats(width=32) | st.floats(0, 1, width=32) | st.sampled_from([float("nan"), float("inf"), -0.0])
)


@st.composite
def columns(draw: st.DrawFn) -> dict[str, Any]:
    """Columns for `ResultRows`: most fit together, and in some one value does not."""
    fids = draw(st.lists(st.integers(1, COUNT), unique=True, max_size=8))
    count = len(fids)
    class_index = draw(hnp.arrays(np.int64, count, elements=st.integers(-1, len(CLASSES) - 1)))
    status = ["ok" if index >= 0 else draw(st.sampled_from(STATUSES[1:])) for index in class_index]
    reason = [None if one in ("ok", "pending") else draw(st.text(max_size=9)) for one in status]
    shares = st.floats(0, 1, width=32) | st.just(float("nan"))
    values: dict[str, Any] = {
        "fids": np.array(fids, np.int64),
        "class_index": class_index,
        "probabilities": draw(
            hnp.arrays(np.float32, (count, len(CLASSES)), elements=st.floats(0, 1, width=32))
        ),
        "status": np.array(status, dtype=object),
        "reason": np.array(reason, dtype=object),
        "valid_fraction": draw(hnp.arrays(np.float32, count, elements=shares)),
        "covered_fraction": draw(hnp.arrays(np.float32, count, elements=shares)),
        "image_index": draw(hnp.arrays(np.int64, count, elements=st.integers(-1, 1))),
        "gsd_m": draw(hnp.arrays(np.float64, count, elements=st.floats(0.01, 100) | st.just(float("nan")))),
    }
    if count and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(values)))
        odd: st.SearchStrategy[Any] = {
            "fids": st.integers(-(2**63), 2**63 - 1) | st.integers(0, COUNT + 1),
            "class_index": st.integers(-3, 2**40),
            "status": st.text(max_size=9) | st.sampled_from(STATUSES),
            "reason": st.none() | st.text(st.characters(), max_size=9),  # lone surrogates and NUL included
            "image_index": st.integers(-3, 2**40),
        }.get(name, numbers)
        column = values[name].reshape(-1)
        column[draw(st.integers(0, len(column) - 1))] = draw(odd)
    return values


def expected(values: dict[str, Any], k: int) -> tuple[Any, ...]:
    """The result columns of row k, in the order of `COLUMNS`."""
    ok = values["status"][k] == "ok"
    p = [round(float(value), DECIMALS) if ok else None for value in values["probabilities"][k]]
    index, image = int(values["class_index"][k]), int(values["image_index"][k])
    shares = [float(values[name][k]) for name in ("valid_fraction", "covered_fraction", "gsd_m")]
    valid, covered, gsd = (None if np.isnan(share) else share for share in shares)
    return (
        CLASSES[index] if ok else None,
        p[index] if ok else None,
        values["status"][k],
        values["reason"][k],
        None if valid is None else round(valid, DECIMALS),
        None if covered is None else round(covered, DECIMALS),
        IMAGES[image].path if image >= 0 else None,
        gsd,
        *p,
    )


def stored(path: Path, names: list[str]) -> dict[int, tuple[Any, ...]]:
    listed = ", ".join(map(quoted, names))
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = database.execute(f"SELECT fid, {listed} FROM {quoted(LAYER)}").fetchall()
    return {fid: tuple(row) for fid, *row in rows}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commits=st.lists(columns(), max_size=5))
def test_rows_are_stored_exactly_or_refused(out: Path, commits: list[dict[str, Any]]) -> None:
    with Results.open(out) as results:
        names = [results.schema.columns[name] for name in COLUMNS]
        after = stored(out, names)
        results.start_run(RUN, IMAGES)
        for values in commits:
            try:
                results.commit(ResultRows(**values))
            except (ValueError, OutputChanged):
                continue
            after |= {int(fid): expected(values, k) for k, fid in enumerate(values["fids"])}
        assert stored(out, names) == after
    assert stored(out, names) == after
    assert len(after) == COUNT
    with fiona.open(out, layer=LAYER) as source:
        found = {int(feature.id): feature.properties for feature in source}
    for fid, row in after.items():
        read = tuple(found[fid][name] for name in names)
        assert read[:3] == row[:3]
        assert read[4:] == row[4:]
        if row[3] is None or "\0" not in row[3]:
            assert read[3] == row[3]


def test_a_huge_group_and_none_at_all(out: Path) -> None:
    fids = np.arange(1, COUNT + 1)
    count = 100_000

    def rows(fids: Any) -> ResultRows:
        k = len(fids)
        return ResultRows(
            fids=fids,
            class_index=np.zeros(k, np.int64),
            probabilities=np.full((k, len(CLASSES)), 0.25, np.float32),
            status=np.full(k, "ok"),
            reason=np.full(k, None, dtype=object),
            valid_fraction=np.ones(k, np.float32),
            covered_fraction=np.ones(k, np.float32),
            image_index=np.full(k, -1),
            gsd_m=np.ones(k),
        )

    with Results.open(out) as results:
        names = [results.schema.columns[name] for name in COLUMNS]
        before = stored(out, names)
        results.start_run(RUN, IMAGES)
        with pytest.raises(OutputChanged, match=f"has lost {count - COUNT} of its footprints"):
            results.commit(rows(np.arange(1, count + 1)))
        results.commit(rows(np.arange(0)))
        assert stored(out, names) == before
        results.commit(rows(fids))
        after = stored(out, names)
        assert {row[0] for row in after.values()} == {CLASSES[0]}
    with pytest.raises(OutputChanged, match="lost its log"):  # it goes with the last that has the file open
        results.commit(rows(fids))
    assert stored(out, names) == after
