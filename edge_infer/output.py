"""Make the output: a whole copy of the footprints' layer, with empty result columns.

The copy goes through Arrow from driver to driver, so geometries (curves and measures too) and
attributes never pass through Python. It is made under another name and put in its place when it is
complete: an output exists whole or not at all.
"""

from __future__ import annotations

import os
import warnings
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import pyogrio.raw
import shapely

from edge_infer import geopackage
from edge_infer.errors import OutputError
from edge_infer.footprints import open_layer
from edge_infer.schema import OWN_TABLES, Schema, ascii_lower, quoted
from edge_infer.style import Family, legend, qml, sld

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from edge_infer.footprints import Footprints, VectorLayer

UNNAMED_GEOMETRY = "wkb_geometry"
"""Arrow's name of the geometry column where the format has none."""

TABLES = """
CREATE TABLE edge_schema (schema TEXT NOT NULL);
CREATE TABLE edge_runs (
    run_id INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, model_sha256 TEXT NOT NULL,
    engine TEXT NOT NULL, precision TEXT NOT NULL, device TEXT NOT NULL, why TEXT NOT NULL,
    versions TEXT NOT NULL, options TEXT NOT NULL, images TEXT NOT NULL, columns TEXT NOT NULL,
    footprints TEXT NOT NULL, skipped_images TEXT NOT NULL, overridden TEXT NOT NULL,
    notes TEXT NOT NULL,
    started DATETIME NOT NULL, ended DATETIME, counts TEXT, times TEXT, drift TEXT);
CREATE TABLE edge_images (
    image_id INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT NOT NULL UNIQUE, crs TEXT NOT NULL,
    gsd_m REAL NOT NULL, date TEXT, size_bytes INTEGER, modified TEXT, content TEXT, footprints INTEGER);
CREATE TABLE layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT, f_table_catalog TEXT, f_table_schema TEXT, f_table_name TEXT,
    f_geometry_column TEXT, styleName TEXT, styleQML TEXT, styleSLD TEXT, useAsDefault BOOLEAN,
    description TEXT, owner TEXT, ui TEXT,
    update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')));
"""

UNLISTED_TABLES = ("edge_schema",)
"""Of no interest to a GIS; the other tables are registered, as QGIS ignores what is not."""


def refuse_output(out: Path, inputs: Iterable[str | os.PathLike[str]], *, overwrite: bool) -> None:
    """Raise `OutputError` for every reason not to write `out` that can be seen beforehand.

    `inputs` are the files that the run reads; none of them may be replaced.
    """
    refuse_place(out)
    with _looking(out):
        _refuse(out, inputs, overwrite=overwrite)


def refuse_place(out: Path) -> None:
    """Raise `OutputError` where `out` cannot lie, whether it exists or not."""
    folder = out.absolute().parent
    with _looking(out):
        if out.suffix.lower() != ".gpkg":
            raise OutputError(f"the output is a GeoPackage, but {out} does not end in .gpkg; name it so")
        if not folder.is_dir():
            raise OutputError(f"there is no folder {folder} for the output; make it first")
        if not os.access(folder, os.W_OK):
            raise OutputError(f"the folder {folder} is not writable; choose another place for the output")


@contextmanager
def _looking(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a folder that may not be looked into, a name that is too long
        raise OutputError(f"{out} cannot be written: {error.strerror}; choose another place") from error


def _refuse(out: Path, inputs: Iterable[str | os.PathLike[str]], *, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_file():
        raise OutputError(f"{out} is no file; choose another name for the output")
    if any(Path(path).exists() and out.samefile(path) for path in inputs):
        raise OutputError(f"{out} is an input of this run; choose another name for the output")
    if not overwrite:
        raise OutputError(f"{out} exists; go on with it (--resume), replace it (--overwrite) or name another")


def create_output(
    out: Path,
    source: str | os.PathLike[str],
    footprints: Footprints,
    *,
    layer: str | None = None,
    where: str | None = None,
    class_names: Sequence[str],
    class_colors: Sequence[str],
    overwrite: bool = False,
) -> None:
    """Copy every footprint to the GeoPackage `out`, all of them pending.

    `footprints` is what `read_footprints` gave for the same `source`, `layer` and `where`: row k of it
    gets the feature id k + 1. The output has its CRS. Colours are #rrggbb, one for each class.
    `OutputError` where `out` cannot be written, or exists and `overwrite` is not set.
    """
    refuse_output(out, [source], overwrite=overwrite)
    found = open_layer(source, layer)
    schema = Schema.plan(
        found.name,
        geometry_column=found.geometry_column,
        fields=_column_names(found),
        classes=tuple(class_names),
    )
    types, dimensions = footprints.measure(_kinds).T
    partial = out.with_name(f"{out.name}.partial.gpkg")
    with geopackage.reporting(out):
        geopackage.remove(partial)
        try:
            _copy(found, where, partial, schema, footprints, types)
            with closing(geopackage.connect(partial)) as database:
                # The file is thrown away if anything fails, so it needs no journal of its own.
                database.execute("PRAGMA journal_mode = OFF")
                database.execute("PRAGMA synchronous = OFF")
                with geopackage.transaction(database):
                    _add_columns(database, schema, footprints)
                    _add_tables(database, schema)
                    _add_style(database, schema, class_colors, _family(dimensions))
            geopackage.replace(partial, out)
        finally:
            geopackage.remove(partial)


def _copy(
    found: VectorLayer,
    where: str | None,
    partial: Path,
    schema: Schema,
    footprints: Footprints,
    types: NDArray[np.int64],
) -> None:
    """Stream the layer into a new GeoPackage; `types`, (n,), are the geometries' type ids."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on single features; the copy is counted afterwards
            with pyogrio.raw.open_arrow(
                _stream_source(found), layer=found.name, where=where or None, datetime_as_string=True
            ) as (meta, stream):
                pyogrio.raw.write_arrow(
                    stream,
                    partial,
                    driver="GPKG",
                    layer=schema.layer,
                    geometry_name=meta["geometry_name"] or UNNAMED_GEOMETRY,
                    geometry_type=_geometry_type(found, types),
                    crs=footprints.crs.srs,
                    layer_options={"FID": schema.fid_column, "GEOMETRY_NAME": schema.geometry_column},
                )
    except Exception as error:  # their errors have no common root
        reason = " ".join(str(error).split())
        raise OutputError(
            f"the footprints cannot be copied to {partial.parent} ({reason}); is there room on that disk?"
        ) from error


def _column_names(found: VectorLayer) -> list[str]:
    """Name the source's columns in the output.

    Some formats tell `Name` from `name`, a GeoPackage does not: the later one becomes `name_2`.
    """
    names: list[str] = []
    taken: set[str] = set()
    for field in found.fields:
        name, number = field, 2
        while ascii_lower(name) in taken:
            name, number = f"{field}_{number}", number + 1
        taken.add(ascii_lower(name))
        names.append(name)
    return names


def _stream_source(found: VectorLayer) -> str:
    """Return the name to open the layer by; one that renames columns where two would meet.

    Renaming is the work of GDAL's virtual format, as an Arrow stream cannot be changed on its way.
    """
    names = _column_names(found)
    geometry_meets = not found.geometry_column and UNNAMED_GEOMETRY in names
    if tuple(names) == found.fields and not geometry_meets:
        return found.dataset
    columns = "".join(
        f'<Field name={quoteattr(name)} src={quoteattr(field)} type="{field_type}" subtype="{subtype}"/>'
        for name, field, field_type, subtype in zip(
            names, found.fields, found.field_types, found.field_subtypes, strict=True
        )
    )
    geometry = UNNAMED_GEOMETRY
    while geometry in names:
        geometry += "_"
    return (
        f"<OGRVRTDataSource><OGRVRTLayer name={quoteattr(found.name)}>"
        f"<SrcDataSource>{escape(found.dataset)}</SrcDataSource><SrcLayer>{escape(found.name)}</SrcLayer>"
        f"<GeometryField name={quoteattr(geometry)}/>{columns}</OGRVRTLayer></OGRVRTDataSource>"
    )


def _kinds(geometries: NDArray[np.object_]) -> NDArray[np.int64]:
    """Give type id and dimension of each geometry, (k, 2); -1 where there is none."""
    kinds = shapely.get_type_id(geometries), shapely.get_dimensions(geometries)
    return np.stack(kinds, axis=1).astype(np.int64)


def _geometry_type(found: VectorLayer, types: NDArray[np.int64]) -> str:
    """Return the declared type if every geometry has it, else "Unknown", which allows all.

    Shapefiles declare Polygon and hold multipolygons; a GeoPackage must not.
    """
    declared = found.geometry_type.split()[0]
    names = {shapely.GeometryType(number).name for number in np.unique(types) if number >= 0}
    return found.geometry_type if names <= {declared.upper()} else "Unknown"


def _family(dimensions: NDArray[np.int64]) -> Family:
    """Return the kind of symbol that most footprints need; `dimensions`, (n,), are theirs."""
    counts = np.bincount(dimensions[dimensions >= 0], minlength=3)
    families: tuple[Family, ...] = ("point", "line", "polygon")
    return families[int(counts.argmax())] if counts.any() else "polygon"


def _add_columns(database: sqlite3.Connection, schema: Schema, footprints: Footprints) -> None:
    """Add the result columns and fill in the source's feature ids."""
    layer, fid = quoted(schema.layer), quoted(schema.fid_column)
    source_fid = quoted(schema.columns["source_fid"])
    for declaration in schema.declarations():
        database.execute(f"ALTER TABLE {layer} ADD COLUMN {declaration}")
    count, last = database.execute(f"SELECT COUNT(*), MAX({fid}) FROM {layer}").fetchone()  # noqa: S608
    if count != len(footprints) or (last or 0) != count:
        raise OutputError(
            f"{len(footprints)} footprints were read, but {count} copied; did the source change meanwhile?"
        )
    steps = footprints.fids - np.arange(1, count + 1)
    if count and (steps == steps[0]).all():
        database.execute(f"UPDATE {layer} SET {source_fid} = {fid} + ?", (int(steps[0]),))  # noqa: S608
        return
    database.executemany(
        f"UPDATE {layer} SET {source_fid} = ? WHERE {fid} = ?",  # noqa: S608
        zip(footprints.fids.tolist(), range(1, count + 1), strict=True),
    )


def _add_tables(database: sqlite3.Connection, schema: Schema) -> None:
    for statement in TABLES.strip().split(";\n"):
        database.execute(statement)
    database.execute("INSERT INTO edge_schema (schema) VALUES (?)", (schema.to_json(),))
    database.executemany(
        "INSERT INTO gpkg_contents (table_name, data_type, identifier) VALUES (?, 'attributes', ?)",
        [(table, table) for table in OWN_TABLES if table not in UNLISTED_TABLES],
    )


def _add_style(
    database: sqlite3.Connection, schema: Schema, class_colors: Sequence[str], family: Family
) -> None:
    rules = legend(schema, class_colors)
    database.execute(
        "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column,"
        " styleName, styleQML, styleSLD, useAsDefault, description, owner)"
        " VALUES ('', '', ?, ?, ?, ?, ?, 1, ?, '')",
        (
            schema.layer,
            schema.geometry_column,
            "edge-infer",
            qml(rules, family),
            sld(rules, family, schema.layer),
            "Classes of the model, and every other status",
        ),
    )
