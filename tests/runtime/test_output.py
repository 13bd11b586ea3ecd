"""The output as a copy of its source: fiona reads both and finds the same."""

from __future__ import annotations

import csv
import datetime as dt
import json
import os
import sqlite3
import subprocess
import sys
import xml.etree.ElementTree as ET
from contextlib import closing
from typing import TYPE_CHECKING, Any

import fiona
import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_infer import output
from edge_infer.errors import FootprintsError, OutputError
from edge_infer.footprints import open_layer, read_footprints
from edge_infer.geopackage import connect
from edge_infer.output import create_output, refuse_output
from edge_infer.schema import Schema, ascii_lower, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

CLASSES = ("destroyed", "no visible damage")
COLORS = ("#d62728", "#2ca02c")
RESULTS = [
    "source_fid", "class_label", "confidence", "p_destroyed", "p_no visible damage", "status",
    "reason", "valid_fraction", "covered_fraction", "image", "gsd_m",
]  # fmt: skip
SQUARE: dict[str, Any] = {"type": "Polygon", "coordinates": [[[0, 50], [1, 50], [1, 51], [0, 51], [0, 50]]]}
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


def copy(
    source: Path,
    out: Path,
    *,
    layer: str | None = None,
    where: str | None = None,
    crs: str | None = None,
    overwrite: bool = False,
) -> Schema:
    """Make an output of a source, as a run does, and return its schema."""
    footprints = read_footprints(source, layer=layer, where=where, crs=crs)
    create_output(
        out,
        source,
        footprints,
        layer=layer,
        where=where,
        class_names=CLASSES,
        class_colors=COLORS,
        overwrite=overwrite,
    )
    with closing(sqlite3.connect(out)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (text,) = database.execute("SELECT schema FROM edge_schema").fetchone()
    return Schema.from_json(text)


def write_geojson(path: Path, rows: Sequence[Mapping[str, Any]], **members: Any) -> Path:
    features = [{"type": "Feature", "geometry": SQUARE, "properties": row} for row in rows]
    content = {"type": "FeatureCollection", "features": features} | members
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def query(path: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(sql).fetchall()


def assert_same_features(source: Path, out: Path, *, layer: str | None = None) -> None:
    """Every source column, every geometry, the order and the CRS are the source's."""
    with fiona.open(source, layer=layer) as theirs, fiona.open(out) as ours:
        assert ours.name == theirs.name
        assert pyproj.CRS(ours.crs_wkt) == pyproj.CRS(theirs.crs_wkt)
        assert len(ours) == len(theirs)
        names = list(theirs.schema["properties"])
        assert list(ours.schema["properties"]) == [*names, *RESULTS]
        for row, (a, b) in enumerate(zip(theirs, ours, strict=True), start=1):
            assert {name: b.properties[name] for name in names} == dict(a.properties)
            assert b.geometry == a.geometry
            assert int(b.id) == row
            assert b.properties["source_fid"] == int(a.id)
            assert b.properties["status"] == "pending"
            empty = set(RESULTS) - {"source_fid", "status"}
            assert all(b.properties[name] is None for name in empty)


@pytest.mark.parametrize(
    "name",
    [
        "joplin/footprints/joplin.geojson",
        "footprints_real/buildings.shp",
        "geotiff_cases/skai/building_centroids.geojson",
    ],
)
def test_real_footprints_are_copied_to_the_letter(shared_data: Path, tmp_path: Path, name: str) -> None:
    copy(shared_data / name, tmp_path / "out.gpkg")
    assert_same_features(shared_data / name, tmp_path / "out.gpkg")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.gpkg"]


def test_a_zip_of_thousands_is_copied(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "footprints_real/boulder_buildings.zip"
    footprints = read_footprints(source)
    copy(source, tmp_path / "out.gpkg")
    again = read_footprints(tmp_path / "out.gpkg")
    assert len(again) == 13_491
    assert (again.fids == np.arange(1, 13_492)).all()
    assert shapely.equals_exact(again.geometries[:], footprints.geometries[:]).all()


def test_every_readable_case_becomes_a_whole_output(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "vector_cases"
    with (folder / "index.csv").open(encoding="utf-8") as stream:
        layers = [
            (folder / row["path"], layer["layer"])
            for row in csv.DictReader(stream)
            if row["pyogrio_result"].startswith("[")
            for layer in json.loads(row["pyogrio_result"])
        ]
    out = tmp_path / "out.gpkg"
    copied = [layer for path, layer in layers if copies_whole(path, layer, out)]
    assert len(copied) > 85


def copies_whole(source: Path, layer: str, out: Path) -> bool:
    try:
        footprints = read_footprints(source, layer=layer, crs="EPSG:4326")
    except FootprintsError:
        return False
    create_output(
        out, source, footprints, layer=layer, class_names=CLASSES, class_colors=COLORS, overwrite=True
    )
    again = read_footprints(out)
    assert len(again) == len(footprints)
    assert (again.usable == footprints.usable).all()
    assert shapely.to_wkb(again.geometries[:]).tolist() == shapely.to_wkb(footprints.geometries[:]).tolist()
    with closing(sqlite3.connect(out)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        source_fids = database.execute(f"SELECT source_fid FROM {quoted(layer)}").fetchall()
    assert [fid for (fid,) in source_fids] == footprints.fids.tolist()
    return True


COLUMN_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "INTEGER": st.integers(-(2**63), 2**63 - 1),
    "REAL": st.floats(allow_nan=False),
    "TEXT": TEXTS,
    "BOOLEAN": st.booleans(),
    "DATE": st.dates(dt.date(1000, 1, 1)).map(str),
    "BLOB": st.binary(max_size=20),
}


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_attributes_survive(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("copy")
    kinds = data.draw(st.lists(st.sampled_from(sorted(COLUMN_VALUES)), min_size=1, max_size=6))
    columns = {f"{kind} {number}": st.none() | COLUMN_VALUES[kind] for number, kind in enumerate(kinds)}
    rows = data.draw(st.lists(st.fixed_dictionaries(columns), min_size=1, max_size=4))
    copy(write_geojson(folder / "in.geojson", [{"n": 0}] * len(rows)), folder / "in.gpkg")
    with closing(connect(folder / "in.gpkg")) as database:
        for kind, name in zip(kinds, columns, strict=True):
            database.execute(f"ALTER TABLE 'in' ADD COLUMN {quoted(name)} {kind}")
            values = [(row[name], fid) for fid, row in enumerate(rows, start=1)]
            database.executemany(f"UPDATE 'in' SET {quoted(name)} = ? WHERE fid = ?", values)
    copy(folder / "in.gpkg", folder / "out.gpkg")
    with fiona.open(folder / "out.gpkg") as result:
        assert [{name: row.properties[name] for name in columns} for row in result] == rows


@settings(max_examples=25, deadline=None)
@given(names=st.lists(TEXTS, min_size=1, max_size=6, unique=True), layer=TEXTS.filter(str.strip))
def test_names_survive(names: list[str], layer: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("names")
    row = {name: number for number, name in enumerate(names)}
    source = write_geojson(folder / "in.geojson", [row], name=layer)
    schema = copy(source, folder / "out.gpkg")
    found = read_footprints(folder / "out.gpkg", layer=schema.layer)
    assert len(found) == 1
    table = query(folder / "out.gpkg", f"PRAGMA table_info({quoted(schema.layer)})")
    written = [name for _, name, *_ in table][2 : 2 + len(names)]
    taken: set[str] = set()
    for ours, theirs in zip(written, open_layer(source).fields, strict=True):
        assert ours == theirs or ascii_lower(theirs) in taken
        taken.add(ascii_lower(ours))
    columns = ", ".join(quoted(name) for name in written)
    assert query(folder / "out.gpkg", f"SELECT {columns} FROM {quoted(schema.layer)}") == [
        tuple(row.values())
    ]


def test_times_keep_their_zone_and_lists_their_values(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"seen": "2011-05-24T10:00:00.125-05:00", "hour": "10:20:30", "tags": ["a", "b"], "n": [1, 2]},
        {"seen": "2011-05-24T10:00:00Z", "hour": None, "tags": None, "n": None},
        {"seen": "2011-05-24T10:00:00", "hour": "00:00:00", "tags": [], "n": []},
    ]
    copy(write_geojson(tmp_path / "in.geojson", rows), tmp_path / "out.gpkg")
    found = query(tmp_path / "out.gpkg", "SELECT seen, hour, tags, n FROM 'in'")
    assert [seen for seen, *_ in found] == [
        "2011-05-24T10:00:00.125-05:00", "2011-05-24T10:00:00Z", "2011-05-24T10:00:00",
    ]  # fmt: skip
    assert [hour for _, hour, *_ in found] == ["10:20:30", None, "00:00:00"]
    assert [json.loads(tags) if tags else tags for *_, tags, _ in found] == [["a", "b"], None, []]
    assert [json.loads(n) if n else n for *_, n in found] == [[1, 2], None, []]


def test_columns_that_meet_are_told_apart(tmp_path: Path) -> None:
    row = {
        "Name": "N", "name": "n", "status": "theirs", "FID": 7, "geom": "g", "OGC_FID": 8,
        "wkb_geometry": "w", "edge_status": "e", "big": 2**62, "flag": True,
    }  # fmt: skip
    source = write_geojson(tmp_path / "in.geojson", [row])
    schema = copy(source, tmp_path / "out.gpkg")
    assert schema.columns["status"] == "edge_status_2"
    assert (schema.fid_column, schema.geometry_column) == ("edge_fid", "edge_geom")
    with closing(sqlite3.connect(tmp_path / "out.gpkg")) as database:
        database.row_factory = sqlite3.Row
        (found,) = [dict(row) for row in database.execute("SELECT * FROM 'in'")]
    expected = {(f"{name}_2" if name == "name" else name): value for name, value in row.items()}
    assert {name: found[name] for name in expected} == expected
    assert (found["edge_fid"], found["source_fid"], found["edge_status_2"]) == (1, 0, "pending")
    with fiona.open(tmp_path / "out.gpkg") as result:
        properties = result.schema["properties"]
    assert (properties["big"], properties["flag"], properties["name_2"]) == ("int", "bool", "str")


def test_feature_ids_of_the_source_are_kept_beside_the_new_ones(tmp_path: Path) -> None:
    features = [
        {"type": "Feature", "id": fid, "geometry": SQUARE, "properties": {"n": fid}} for fid in (70, 3, 500)
    ]
    source = tmp_path / "in.geojson"
    source.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")
    copy(source, tmp_path / "out.gpkg")
    found = query(tmp_path / "out.gpkg", "SELECT fid, source_fid, n FROM 'in' ORDER BY fid")
    assert found == [(1, 70, 70), (2, 3, 3), (3, 500, 500)]


def test_where_copies_what_it_chooses(tmp_path: Path) -> None:
    for source in (
        write_geojson(tmp_path / "in.geojson", [{"n": n} for n in range(6)]),
        tmp_path / "in.gpkg",
    ):
        if not source.exists():
            copy(tmp_path / "in.geojson", source)
        copy(source, tmp_path / "out.gpkg", where="n > 3", overwrite=True)
        assert query(tmp_path / "out.gpkg", "SELECT fid, n FROM 'in'") == [(1, 4), (2, 5)]


def test_an_empty_layer_gives_an_output_with_no_rows(tmp_path: Path) -> None:
    source = write_geojson(tmp_path / "in.geojson", [{"n": 1}])
    schema = copy(source, tmp_path / "out.gpkg", where="n > 1")
    with fiona.open(tmp_path / "out.gpkg") as result:
        assert list(result) == []
        assert list(result.schema["properties"]) == ["n", *RESULTS]
    assert schema.layer == "in"


def test_a_given_crs_becomes_that_of_the_output(tmp_path: Path) -> None:
    source = write_geojson(tmp_path / "in.geojson", [{"n": 1}])
    copy(source, tmp_path / "out.gpkg", crs="EPSG:26915")
    assert read_footprints(tmp_path / "out.gpkg").crs == "EPSG:26915"


def test_measures_are_kept(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "vector_cases/gdal-shp/testpointm.shp"
    copy(source, tmp_path / "out.gpkg", crs="EPSG:4326")
    ((blob,),) = query(tmp_path / "out.gpkg", "SELECT geom FROM testpointm")
    wkb_type = int.from_bytes(blob[9:13], "little")  # after a header of 8 bytes and the byte order
    assert wkb_type == 2001  # Point M


def test_mixed_single_and_multi_geometries_stay_what_they_are(tmp_path: Path) -> None:
    # A shapefile says Polygon for both; a GeoPackage that did so would be invalid.
    schema = {"geometry": "Polygon", "properties": {}}
    multi = {
        "type": "MultiPolygon",
        "coordinates": [SQUARE["coordinates"], [[[5, 5], [6, 5], [6, 6], [5, 5]]]],
    }
    with fiona.open(
        tmp_path / "in.shp", "w", driver="ESRI Shapefile", crs="EPSG:4326", schema=schema
    ) as source:
        source.writerecords({"geometry": geometry, "properties": {}} for geometry in (SQUARE, multi))
    copy(tmp_path / "in.shp", tmp_path / "out.gpkg")
    assert query(tmp_path / "out.gpkg", "SELECT geometry_type_name FROM gpkg_geometry_columns") == [
        ("GEOMETRY",)
    ]
    kinds = [geometry.geom_type for geometry in read_footprints(tmp_path / "out.gpkg").geometries[:]]
    assert kinds == ["Polygon", "MultiPolygon"]


def test_the_style_is_the_default_and_is_registered(tmp_path: Path) -> None:
    source = write_geojson(tmp_path / "in.geojson", [{"status": 1}], name='a "quoted" <layer> & more')
    schema = copy(source, tmp_path / "out.gpkg")
    out = tmp_path / "out.gpkg"
    listed = query(out, "SELECT table_name, data_type FROM gpkg_contents ORDER BY rowid")
    assert listed == [
        (schema.layer, "features"),
        ("edge_runs", "attributes"),
        ("edge_images", "attributes"),
        ("layer_styles", "attributes"),
    ]
    ((table, column, default, qml, sld),) = query(
        out, "SELECT f_table_name, f_geometry_column, useAsDefault, styleQML, styleSLD FROM layer_styles"
    )
    assert (table, column, default) == (schema.layer, "geom", 1)
    filters = [rule.attrib["filter"] for rule in ET.fromstring(qml).iter("rule")]
    assert filters[0] == "\"edge_status\" = 'ok' AND \"class_label\" = 'destroyed'"
    assert ET.fromstring(sld).findtext(".//{http://www.opengis.net/se}Name") == schema.layer
    # GDAL knows the tables of the standard and ours, and nothing else.
    assert {name for name, _ in pyogrio.list_layers(out)} == {name for name, _ in listed}


def test_the_spatial_index_is_whole(tmp_path: Path) -> None:
    source = write_geojson(tmp_path / "in.geojson", [{}] * 50)
    copy(source, tmp_path / "out.gpkg")
    assert query(tmp_path / "out.gpkg", "SELECT rtreecheck('rtree_in_geom')") == [("ok",)]
    assert query(tmp_path / "out.gpkg", "SELECT COUNT(*) FROM rtree_in_geom") == [(50,)]


def test_an_output_is_never_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_geojson(tmp_path / "in.geojson", [{"n": 1}])
    out = tmp_path / "out.gpkg"
    copy(source, out)
    before = out.read_bytes()

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(output, "_add_style", fail)
        with pytest.raises(OutputError, match="is full"):
            copy(source, out, overwrite=True)
        with pytest.raises(OutputError, match="is full"):
            copy(source, tmp_path / "other.gpkg")
    assert out.read_bytes() == before
    assert {entry.name for entry in tmp_path.iterdir()} == {"in.geojson", "out.gpkg"}
    copy(write_geojson(source, [{"n": 2}]), out, overwrite=True)
    assert query(out, "SELECT n FROM 'in'") == [(2,)]


def test_what_an_earlier_crash_left_is_no_obstacle(tmp_path: Path) -> None:
    source = write_geojson(tmp_path / "in.geojson", [{"n": 1}])
    for name in ("out.gpkg.partial.gpkg", "out.gpkg.partial.gpkg-journal", "out.gpkg-wal"):
        (tmp_path / name).write_bytes(b"left behind")
    copy(source, tmp_path / "out.gpkg")
    assert {entry.name for entry in tmp_path.iterdir()} == {"in.geojson", "out.gpkg"}


def test_a_source_that_changed_meanwhile_is_noticed(tmp_path: Path) -> None:
    source = write_geojson(tmp_path / "in.geojson", [{"n": 1}])
    footprints = read_footprints(source)
    write_geojson(source, [{"n": 1}, {"n": 2}])
    with pytest.raises(OutputError, match="1 footprints were read, but 2 copied"):
        create_output(tmp_path / "out.gpkg", source, footprints, class_names=CLASSES, class_colors=COLORS)
    assert not (tmp_path / "out.gpkg").exists()


def test_reasons_to_refuse_are_found_before_anything_is_written(tmp_path: Path) -> None:
    source = write_geojson(tmp_path / "in.geojson", [{"n": 1}])
    out = tmp_path / "out.gpkg"
    (tmp_path / "folder.gpkg").mkdir()
    copy(source, out)
    before = sorted(tmp_path.rglob("*"))
    for path, said in [
        (tmp_path / "out.geojson", "does not end in .gpkg"),
        (tmp_path / "nowhere" / "out.gpkg", "there is no folder"),
        (tmp_path / "in.geojson" / "out.gpkg", "there is no folder"),
        (tmp_path / "folder.gpkg", "is no file"),
        (out, r"exists; go on with it \(--resume\), replace it \(--overwrite\)"),
    ]:
        with pytest.raises(OutputError, match=said):
            refuse_output(path, [source], overwrite=False)
    with pytest.raises(OutputError, match="is an input of this run"):
        copy(out, out, overwrite=True)
    refuse_output(out, [source], overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_not_writable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # permissions do not bind root
    with pytest.raises(OutputError, match="is not writable"):
        refuse_output(tmp_path / "out.gpkg", [tmp_path / "in.gpkg"], overwrite=False)


SCRIPT = """
import resource, sys
from pathlib import Path
sys.modules["pyarrow"] = sys.modules["pandas"] = None  # importing them fails from here on
from edge_infer.errors import OutputError
from edge_infer.footprints import read_footprints
from edge_infer.output import create_output
source, out = Path(sys.argv[1]), Path(sys.argv[2])
def copy():
    create_output(out, source, read_footprints(source), class_names=("a",), class_colors=("#000000",))
copy()
size = out.stat().st_size
out.unlink()
resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
try:
    copy()
except OutputError as error:
    print(error)
"""


def test_neither_pyarrow_nor_room_on_the_disk_is_taken_for_granted(tmp_path: Path) -> None:
    source = write_geojson(tmp_path / "in.geojson", [{"n": n} for n in range(2000)])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(source), str(tmp_path / "out.gpkg")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "is there room on that disk?" in done.stdout
    assert done.stderr == ""
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.geojson"]
