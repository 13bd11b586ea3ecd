"""The table of a folder of chips, one row a chip: a GeoPackage layer or a GeoParquet file.

Columns: chip (file), id, source and source_fid (footprints and feature), class, place, event, image, gsd_m,
ground_m, bearing, valid_fraction, x, y (degrees), and the point itself in EPSG:4326; no point where none is
known.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import shapely

from edge_infer.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

TableFormat = Literal["gpkg", "parquet"]

_TEXTS = ("chip", "source", "class", "place", "event", "image")
_INTEGERS = ("id", "source_fid")
_NUMBERS = ("gsd_m", "ground_m", "bearing", "valid_fraction", "x", "y")
FIELDS = ("chip", "id", "source", "source_fid", "class", "place", "event", "image", *_NUMBERS)
_ADDED = "bearing"
"""Tables that were written before it was thought of lack it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipRecord:
    """Where one chip comes from."""

    id: int
    """Its number within the folder, which names its file."""
    source_fid: int
    """Feature id of its footprint."""
    label: str
    """Its class."""
    image: str
    """The image it shows a part of."""
    gsd_metres: float
    """Of the image there, coarser axis."""
    ground_metres: float
    """Side of the window."""
    valid_fraction: float
    longitude: float
    """Of the window's centre, degrees; NaN where nobody knows."""
    latitude: float
    source: str = ""
    """Where its footprint was read from."""
    bearing: float = math.nan
    """What is up in the chip, degrees clockwise from true north; NaN where nobody knows."""
    place: str = ""
    """Name of the area it lies in; may be empty."""
    event: str = ""
    """Name of the disaster; may be empty."""


def table_file(form: TableFormat) -> str:
    """Name the table's file within its folder."""
    return f"chips.{form}"


def write_table(path: Path, form: TableFormat, records: Sequence[ChipRecord], files: Sequence[str]) -> None:
    """Write the table of the chips that lie in `files` (names relative to their folder)."""
    columns: dict[str, NDArray[Any]] = {
        "chip": np.array(files, object),
        "id": np.array([record.id for record in records], np.int64),
        "source": np.array([record.source for record in records], object),
        "source_fid": np.array([record.source_fid for record in records], np.int64),
        "class": np.array([record.label for record in records], object),
        "place": np.array([record.place for record in records], object),
        "event": np.array([record.event for record in records], object),
        "image": np.array([record.image for record in records], object),
        "gsd_m": np.array([record.gsd_metres for record in records], np.float64),
        "ground_m": np.array([record.ground_metres for record in records], np.float64),
        "bearing": np.array([record.bearing for record in records], np.float64),
        "valid_fraction": np.array([record.valid_fraction for record in records], np.float64),
        "x": np.array([record.longitude for record in records], np.float64),
        "y": np.array([record.latitude for record in records], np.float64),
    }
    points = np.full(len(records), None, object)
    placed = np.isfinite(columns["x"]) & np.isfinite(columns["y"])
    points[placed] = shapely.to_wkb(shapely.points(columns["x"][placed], columns["y"][placed]))
    (_write_geopackage if form == "gpkg" else _write_geoparquet)(path, columns, points)


def _write_geopackage(path: Path, columns: dict[str, NDArray[Any]], points: NDArray[Any]) -> None:
    import pyogrio.raw

    pyogrio.raw.write(
        path,
        points,
        list(columns.values()),
        list(columns),
        layer="chips",
        driver="GPKG",
        geometry_type="Point",
        crs="EPSG:4326",
    )


def _write_geoparquet(path: Path, columns: dict[str, NDArray[Any]], points: NDArray[Any]) -> None:
    """Write GeoParquet 1.1 (https://geoparquet.org/releases/v1.1.0): pyogrio's wheels come without it."""
    import pyarrow as pa
    import pyarrow.parquet

    # No `crs` means longitude and latitude on WGS 84.
    geometry = {"encoding": "WKB", "geometry_types": ["Point"]}
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    table = pa.table({**columns, "geometry": pa.array(points, pa.binary())})
    pyarrow.parquet.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), path)


def read_table(path: Path) -> dict[str, NDArray[Any]]:
    """Read the columns of `FIELDS`, (n,) each: object for texts, int64 and float64 for numbers.

    Raises:
        Refused: the table cannot be read, or lacks columns.

    """
    columns = _read_geoparquet(path) if path.suffix == ".parquet" else _read_geopackage(path)
    columns.setdefault(_ADDED, np.full(len(columns.get("id", ())), math.nan))
    missing = [name for name in FIELDS if name not in columns]
    if missing:
        raise Refused(f"{path} lacks the columns {', '.join(missing)}; cut the chips again")
    try:
        for name in _TEXTS:
            column = columns[name].astype(object)
            column[column == None] = ""  # noqa: E711 - element by element
            columns[name] = column
        return {
            **{name: columns[name] for name in _TEXTS},
            **{name: columns[name].astype(np.int64) for name in _INTEGERS},
            **{name: columns[name].astype(np.float64) for name in _NUMBERS},
        }
    except (TypeError, ValueError) as error:
        raise Refused(f"{path} holds other things than chips ({error}); cut the chips again") from error


def _read_geopackage(path: Path) -> dict[str, NDArray[Any]]:
    import pyogrio.raw

    try:
        facts, _, _, columns = pyogrio.raw.read(
            path, layer="chips", read_geometry=False, columns=list(FIELDS)
        )
    except Exception as error:  # pyogrio's errors have no common root
        reason = " ".join(str(error).split())
        raise Refused(f"{path} cannot be read ({reason}); cut the chips again") from error
    return dict(zip(facts["fields"].tolist(), columns, strict=True))


def _read_geoparquet(path: Path) -> dict[str, NDArray[Any]]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise Refused(f"{path} cannot be read ({reason}); cut the chips again") from error
    return {
        name: table.column(name).to_numpy(zero_copy_only=False)
        for name in FIELDS
        if name in table.column_names
    }
