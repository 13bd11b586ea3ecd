"""Footprints, held against fiona as an independent reader."""

from __future__ import annotations

import csv
import json
import sqlite3
import zipfile
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any

import fiona
import numpy as np
import pyogrio.raw
import pyproj
import pytest
import shapely
from shapely.geometry import shape

from edge_infer import footprints as footprints_module
from edge_infer.errors import FootprintsError
from edge_infer.footprints import EncodedGeometries, Footprints, open_layer, read_field, read_footprints

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SQUARES = [shapely.box(x, 50.0, x + 0.5, 50.5) for x in range(6)]


def write(
    path: Path,
    geometries: Sequence[shapely.Geometry | None] = SQUARES,
    *,
    driver: str = "GPKG",
    layer: str | None = None,
    kind: str = "Polygon",
    **columns: NDArray[Any],
) -> Path:
    """Write a vector file; `columns` are its attributes."""
    pyogrio.raw.write(
        path,
        shapely.to_wkb(np.array(geometries, dtype=object)),
        list(columns.values()),
        list(columns),
        driver=driver,
        crs="EPSG:4326",
        layer=layer,
        geometry_type=kind,
        append=path.exists(),
    )
    return path


def write_geojson(path: Path, features: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> Path:
    """`features` are (geometry, properties) pairs."""
    content = {
        "type": "FeatureCollection",
        "features": [
            {"type": "Feature", "geometry": geometry, "properties": properties}
            for geometry, properties in features
        ],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def point(x: float, y: float) -> dict[str, Any]:
    return {"type": "Point", "coordinates": [x, y]}


FORMATS = {"GPKG": "a.gpkg", "GeoJSON": "a.geojson", "ESRI Shapefile": "a.shp", "FlatGeobuf": "a.fgb"}


@pytest.mark.parametrize("driver", FORMATS)
def test_geometries_and_ids_are_those_that_fiona_reads(tmp_path, driver):
    path = write(tmp_path / FORMATS[driver], driver=driver, number=np.arange(6))
    footprints = read_footprints(path)
    with fiona.open(path) as source:
        features = list(source)
    assert footprints.fids.tolist() == [int(feature.id) for feature in features]
    assert footprints.fids.dtype == np.int64
    for geometry, feature in zip(footprints.geometries[:], features, strict=True):
        assert geometry.equals(shape(feature.geometry))
    assert footprints.usable.all()
    assert footprints.crs == "EPSG:4326"
    assert len(footprints) == 6


@pytest.mark.parametrize("name", ["joplin/footprints/joplin.geojson", "footprints_real/buildings.shp"])
def test_real_footprints_are_those_that_fiona_reads(shared_data, name):
    footprints = read_footprints(shared_data / name)
    with fiona.open(shared_data / name) as source:
        features = list(source)
    assert footprints.fids.tolist() == [int(feature.id) for feature in features]
    theirs = shapely.from_geojson([json.dumps(feature.geometry.__geo_interface__) for feature in features])
    assert shapely.equals_exact(footprints.geometries[:], theirs, tolerance=1e-12).all()


def test_every_case_gives_footprints_or_a_footprints_error(shared_data):
    folder = shared_data / "vector_cases"
    with (folder / "index.csv").open(encoding="utf-8") as stream:
        paths = [folder / row["path"] for row in csv.DictReader(stream)]
    outcomes = Counter(outcome_of(path, layer) for path in paths for layer in (None, *layers_of(path)))
    assert outcomes["read"] > 100
    assert outcomes["refused"] > 10


def outcome_of(path: Path, layer: str | None) -> str:
    try:
        footprints = read_footprints(path, layer=layer, crs="EPSG:4326")
    except FootprintsError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return "refused"
    usable = footprints.geometries[footprints.usable]
    assert np.isfinite(shapely.bounds(usable)).all()
    assert not shapely.is_empty(usable).any()
    return "read"


def layers_of(path: Path) -> list[str]:
    try:
        return [open_layer(path).name]
    except FootprintsError as error:
        _, listed, names = str(error).partition("--layer: ")
        return names.split(", ") if listed else []


@pytest.mark.parametrize("driver", FORMATS)
def test_where_chooses_rows_in_every_format(tmp_path, driver):
    # Drivers other than GeoPackage find nothing where the column of the filter is not read.
    path = write(tmp_path / FORMATS[driver], driver=driver, number=np.arange(6), other=np.arange(6) * 2)
    for where in ("number >= 4", '"number" >= 4 AND other > 0', "NUMBER > 3"):
        assert shapely.equals(read_footprints(path, where=where).geometries[:], SQUARES[4:]).all()
        assert read_field(path, "other", where=where).tolist() == [8, 10]
    assert len(read_footprints(path, where="number > 99")) == 0


@pytest.mark.parametrize("driver", FORMATS)
@pytest.mark.parametrize("where", ["nothing = 1", "number >", "'; DROP TABLE a; --"])
def test_a_wrong_where_is_refused_and_the_columns_named(tmp_path, driver, where):
    path = write(tmp_path / FORMATS[driver], driver=driver, number=np.arange(6))
    with pytest.raises(FootprintsError, match=r"--where .* fails .* its columns are: number$"):
        read_footprints(path, where=where)


@pytest.mark.parametrize(
    ("wkt", "usable"),
    [
        ("POINT (1 1)", True),
        ("LINESTRING (0 0, 1 1)", True),
        ("POLYGON ((0 0, 1 0, 1 1, 0 0))", True),
        ("POLYGON Z ((0 0 NaN, 1 0 NaN, 1 1 NaN, 0 0 NaN))", True),
        ("MULTIPOLYGON (((0 0, 1 0, 1 1, 0 0)), EMPTY)", True),
        ("GEOMETRYCOLLECTION (POINT (1 1), POLYGON ((0 0, 1 0, 1 1, 0 0)))", True),
        ("POLYGON ((0 0, 1 1, 1 0, 0 1, 0 0))", False),
        ("POLYGON ((0 0, 0 0, 0 0, 0 0))", False),
        ("POLYGON ((0 0, 1 0, Infinity 1, 0 0))", False),
        ("POLYGON ((0 0, 1 0, NaN 1, 0 0))", False),
        ("POINT (NaN 1)", False),
        ("POINT (Infinity 1)", False),
        ("POINT EMPTY", False),
        ("POLYGON EMPTY", False),
        ("GEOMETRYCOLLECTION EMPTY", False),
        (None, False),
    ],
)
def test_usable_means_there_valid_and_finite(tmp_path, wkt, usable):
    with np.errstate(invalid="ignore"):
        geometry = None if wkt is None else shapely.from_wkt(wkt)
    path = write(tmp_path / "a.gpkg", [geometry], kind="Unknown")
    footprints = read_footprints(path)
    assert footprints.usable.tolist() == [usable]


def test_geometries_that_shapely_does_not_know_are_none(shared_data):
    footprints = read_footprints(shared_data / "vector_cases/gdal-shp/multipatch.shp", crs="EPSG:4326")
    assert footprints.geometries[:].tolist() == [None]
    assert footprints.usable.tolist() == [False]


def test_curves_are_read_as_lines(shared_data):
    footprints = read_footprints(shared_data / "vector_cases/pyogrio/multisurface.gpkg")
    assert footprints.usable.tolist() == [True]
    assert footprints.geometries[:1][0].area > 0


def test_an_empty_layer_is_no_error(tmp_path):
    path = write(tmp_path / "a.gpkg", [], number=np.array([], dtype=np.int64))
    footprints = read_footprints(path)
    assert len(footprints) == 0
    assert footprints.geometries[:].shape == footprints.usable.shape == footprints.fids.shape == (0,)


@pytest.mark.parametrize("folder", ["", "some folder/", "a/b/"])
def test_a_zip_is_looked_into(tmp_path, folder):
    write(tmp_path / "a.shp", driver="ESRI Shapefile", number=np.arange(6))
    with zipfile.ZipFile(tmp_path / "buildings.zip", "w") as archive:
        archive.writestr("__MACOSX/._a.shp", b"no shapefile")
        for suffix in (".shp", ".shx", ".dbf", ".prj"):
            archive.write((tmp_path / "a").with_suffix(suffix), f"{folder}a{suffix}")
    assert shapely.equals(read_footprints(tmp_path / "buildings.zip").geometries[:], SQUARES).all()


def test_a_geodatabase_in_a_zip_of_another_name_is_found(shared_data, tmp_path):
    case = shared_data / "vector_cases/gdal-filegdb/empty_polygon.gdb"
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for member in case.iterdir():
            archive.write(member, f"export/empty_polygon.gdb/{member.name}")
    assert read_footprints(tmp_path / "export.zip").usable.tolist() == [False]


def test_gpx_needs_a_layer_and_names_them(tmp_path):
    path = tmp_path / "a.gpx"
    path.write_text('<gpx version="1.1" creator="test"><wpt lat="50.5" lon="1.25"/></gpx>', encoding="utf-8")
    with pytest.raises(FootprintsError, match=r"several layers; choose one with --layer: waypoints, "):
        read_footprints(path)
    assert read_footprints(path, layer="waypoints").geometries[:].tolist() == [shapely.Point(1.25, 50.5)]


def test_the_only_spatial_layer_is_chosen_among_plain_tables(tmp_path):
    path = write(tmp_path / "a.gpkg", layer="buildings")
    pyogrio.raw.write(path, None, [np.arange(3)], ["n"], driver="GPKG", layer="notes", append=True)
    assert len(read_footprints(path)) == 6
    with pytest.raises(FootprintsError, match=r"notes is a table without geometry"):
        read_footprints(path, layer="notes")
    with pytest.raises(FootprintsError, match=r"has no layer 'houses'; its layers are: buildings$"):
        read_footprints(path, layer="houses")


def test_what_is_no_vector_file_is_refused(tmp_path):
    with pytest.raises(FootprintsError, match="there is no file"):
        read_footprints(tmp_path / "nothing.gpkg")
    for name, content in [("a.gpkg", b""), ("b.geojson", b"{"), ("c.tif", b"II*\0"), ("d.zip", b"PK")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FootprintsError, match="cannot be read as a vector layer"):
            read_footprints(tmp_path / name)
    (tmp_path / "table.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(FootprintsError, match="is a table without geometry"):
        read_footprints(tmp_path / "table.csv")


@pytest.mark.parametrize("path", ["https://example.org/a.geojson", "/vsicurl/https://example.org/a.geojson"])
def test_nothing_is_fetched(path):
    with pytest.raises(FootprintsError, match="on this machine"):
        read_footprints(path)


def test_a_missing_crs_is_refused_and_can_be_given(tmp_path):
    path = write(tmp_path / "a.shp", driver="ESRI Shapefile")
    path.with_suffix(".prj").unlink()
    with pytest.raises(FootprintsError, match="--footprints-crs"):
        read_footprints(path)
    assert read_footprints(path, crs="EPSG:26915").crs == "EPSG:26915"


def test_a_given_crs_takes_the_place_of_the_stated_one(tmp_path):
    # GeoJSON claims longitude and latitude even where its coordinates are metres.
    path = write_geojson(tmp_path / "a.geojson", [(point(500000, 4100000), {})])
    assert read_footprints(path, crs="EPSG:26915").crs == "EPSG:26915"


def test_a_crs_that_is_none_is_refused(tmp_path):
    path = write(tmp_path / "a.gpkg")
    with pytest.raises(FootprintsError, match="no coordinate reference system"):
        read_footprints(path, crs="EPSG:nonsense")
    with pytest.raises(FootprintsError, match="no place on the ground"):
        read_footprints(path, crs='LOCAL_CS["site plan", UNIT["metre", 1]]')


@pytest.mark.parametrize("srs_id", [-1, 0])
def test_the_undefined_crs_of_a_geopackage_is_none(tmp_path, srs_id):
    path = write(tmp_path / "a.gpkg")
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE gpkg_geometry_columns SET srs_id = ?", (srs_id,))
    with pytest.raises(FootprintsError, match="does not say its coordinate reference system"):
        read_footprints(path)


def test_fields_are_values_in_order_with_none_for_null(tmp_path):
    rows: list[dict[str, Any]] = [
        {"label": "intact", "grade": 1, "share": 0.5, "done": True, "day": "2011-05-24"},
        {"label": None, "grade": None, "share": None, "done": None, "day": None},
        {"label": "é'\"", "grade": 2**53 - 1, "share": -1.5, "done": False, "day": "2011-05-25"},
    ]
    path = write_geojson(tmp_path / "a.geojson", [(point(x, 50), row) for x, row in enumerate(rows)])
    for name in ("label", "grade", "share", "done", "day"):
        values = read_field(path, name)
        assert values.dtype == object
        assert values.tolist() == [row[name] for row in rows]
    assert type(read_field(path, "grade")[0]) is int


def test_a_field_that_gives_no_single_value_is_refused(tmp_path):
    path = write_geojson(tmp_path / "a.geojson", [(point(1, 50), {"label": "a", "list": [1, 2]})])
    with pytest.raises(FootprintsError, match=r"has no column 'class'; its columns are: label, list$"):
        read_field(path, "class")
    with pytest.raises(FootprintsError, match="holds lists"):
        read_field(path, "list")


def test_columns_of_different_length_are_refused():
    crs = pyproj.CRS("EPSG:4326")
    with pytest.raises(FootprintsError, match="one shape"):
        Footprints(np.arange(2), np.full(3, None, dtype=object), crs, np.zeros(2, dtype=bool))


def test_geometries_become_objects_only_when_asked_for():
    shapes = np.array([shapely.Point(0, 1), None, shapely.Point(np.nan, 2), SQUARES[0]], dtype=object)
    wkb: Any = shapely.to_wkb(shapes)
    wkb[0] = b"broken"
    encoded = EncodedGeometries(wkb)
    assert len(encoded) == 4
    for rows in (slice(1, None), np.array([3, 1]), np.array([False, True, True, False])):
        assert shapely.to_wkb(encoded[rows]).tolist() == wkb[rows].tolist()
    assert encoded[:1].tolist() == [None]


@pytest.mark.parametrize("count", [0, 1, 7])
def test_all_are_measured_piece_by_piece(monkeypatch, count):
    monkeypatch.setattr(footprints_module, "PIECE", 3)
    shapes = shapely.buffer(shapely.points(np.arange(count), 0), 1 + np.arange(count))
    crs = pyproj.CRS("EPSG:4326")
    footprints = Footprints(np.arange(count), shapes, crs, np.ones(count, dtype=bool))
    assert footprints.measure(shapely.area).tolist() == shapely.area(shapes).tolist()
