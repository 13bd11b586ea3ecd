"""Footprints: the geometries of one vector layer, with their feature ids and CRS.

Attributes are not read here: the output copies them as a stream (`edge_infer.output`).
"""

from __future__ import annotations

import os
import warnings
import zipfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyogrio.raw
import pyproj
import pyproj.exceptions
import shapely

from edge_infer.errors import FootprintsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

# A virtual source may name others on the network. curl refuses these settings before it opens a connection.
pyogrio.set_gdal_config_options(
    {
        "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".offline",
        "GDAL_HTTP_PROXY": "offline://",
        "GDAL_HTTPS_PROXY": "offline://",
    }
)

ARCHIVES_OF_ONE_DRIVER = (".shp.zip", ".gdb.zip")
"""GDAL opens these as they are; any other zip is looked into."""

PIECE = 8_192
"""Geometries looked at at a time: as objects, a million would take memory by the gigabyte."""


@dataclass(frozen=True, slots=True)
class VectorLayer:
    """What one vector layer is, without its features."""

    dataset: str
    """The name by which GDAL opens the data source."""
    name: str
    """The layer's own name."""
    crs: str | None
    """`EPSG:n` or WKT; None where the source says nothing or says "undefined"."""
    geometry_column: str
    """Empty where the format does not name it."""
    geometry_type: str
    """As declared; "Unknown" for mixed ones."""
    fields: tuple[str, ...]
    """Names of the attribute columns."""
    field_types: tuple[str, ...]
    """OGR's type of each column: Integer64, String, DateTime, ..."""
    field_subtypes: tuple[str, ...]
    """OGR's subtype of each column: Boolean, JSON, ...; None where it has none."""


class Geometries(Protocol):
    """Geometries in order; an array of them will do."""

    def __len__(self) -> int:
        """Return their number."""

    def __getitem__(self, rows: slice | NDArray[Any], /) -> NDArray[np.object_]:
        """Give those at `rows`, a slice, indexes or a mask: (k,); None where null or unreadable."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedGeometries:
    """`Geometries` that become objects only while somebody holds them: encoded they take a fifth of that."""

    wkb: NDArray[np.object_]
    """(n,): bytes; None where null."""

    def __len__(self) -> int:
        """Return their number."""
        return len(self.wkb)

    def __getitem__(self, rows: slice | NDArray[Any]) -> NDArray[np.object_]:
        """See `Geometries`."""
        with np.errstate(invalid="ignore"):  # NaN coordinates are no news here
            return np.asarray(shapely.from_wkb(self.wkb[rows], on_invalid="ignore"))


@dataclass(frozen=True, slots=True, eq=False)
class Footprints:
    """The n footprints of one layer, in file order."""

    fids: NDArray[np.int64]
    """Shape (n,): feature ids in the file read."""
    geometries: Geometries
    """n shapely geometries; None where null or unreadable."""
    crs: pyproj.CRS
    """CRS of the geometries; coordinates are x, y (east, north), whatever its axis order."""
    usable: NDArray[np.bool_]
    """Shape (n,): False for null, empty, invalid and non-finite geometries."""

    def __post_init__(self) -> None:
        """Refuse columns of different length."""
        shapes = {self.fids.shape, (len(self.geometries),), self.usable.shape}
        if len(shapes) != 1 or self.fids.ndim != 1:
            raise FootprintsError(f"footprint columns must have one shape (n,), got {sorted(shapes)}")

    def __len__(self) -> int:
        """Return the number of footprints."""
        return len(self.fids)

    def measure(self, function: Callable[[NDArray[np.object_]], NDArray[Any]]) -> NDArray[Any]:
        """Apply a function of geometries, object (k,) to (k,), to all of them, a piece at a time: (n,)."""
        return _by_pieces(self.geometries, function)


def _by_pieces(
    geometries: Geometries, function: Callable[[NDArray[np.object_]], NDArray[Any]]
) -> NDArray[Any]:
    starts = range(0, max(1, len(geometries)), PIECE)
    return np.concatenate([function(geometries[start : start + PIECE]) for start in starts])


def read_footprints(
    path: str | os.PathLike[str],
    *,
    layer: str | None = None,
    where: str | None = None,
    crs: str | None = None,
) -> Footprints:
    """Read the geometries of one layer of any OGR source, in file order.

    `where` is an attribute filter in the source's own SQL. `crs` (anything that pyproj reads) takes
    the place of what the source says of its CRS. Curves are read as line segments. `FootprintsError`
    where there is no such file or layer, no geometry, no CRS, or the filter does not fit.
    """
    found = open_layer(path, layer)
    fids, wkb, _ = _read(path, found, where, columns=[], geometry=True)
    geometries = EncodedGeometries(wkb)
    usable = _by_pieces(geometries, _usable)
    return Footprints(fids=fids, geometries=geometries, crs=_placed_crs(path, found, crs), usable=usable)


def _usable(geometries: NDArray[np.object_]) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):  # NaN coordinates again
        bounds = shapely.bounds(geometries)  # NaN for null and empty ones
        return np.asarray(shapely.is_valid(geometries) & np.isfinite(bounds).all(axis=1))


def read_field(
    path: str | os.PathLike[str], field: str, *, layer: str | None = None, where: str | None = None
) -> NDArray[np.object_]:
    """Read one attribute, shape (n,), in the order of `read_footprints`; None where it is null.

    Dates and times come as text. `FootprintsError` where the layer has no such column.
    """
    found = open_layer(path, layer)
    if field not in found.fields:
        raise FootprintsError(f"{path} has no column {field!r}; its columns are: {_listed(found.fields)}")
    field_type = found.field_types[found.fields.index(field)]
    if field_type.endswith("List"):
        raise FootprintsError(f"column {field!r} of {path} holds lists; one value a footprint is wanted")
    _, _, columns = _read(path, found, where, columns=[field], geometry=False)
    values = columns[field]
    missing = values != values  # noqa: PLR0124  (NaN stands for null in numeric columns)
    if field_type.startswith("Integer") and values.dtype.kind == "f":
        values = np.where(missing, 0, values).astype(np.int64)  # nulls had made floats of them
    result: NDArray[np.object_] = values.astype(object)
    result[missing] = None
    return result


def open_layer(path: str | os.PathLike[str], layer: str | None = None) -> VectorLayer:
    """Find the layer named, or the only one with geometry. `FootprintsError` otherwise."""
    dataset, tables = _open_dataset(path)
    spatial = [name for name, geometry_type in tables if geometry_type is not None]
    if layer is not None and layer not in (name for name, _ in tables):
        raise FootprintsError(f"{path} has no layer {layer!r}; its layers are: {_listed(spatial)}")
    if not spatial or (layer is not None and layer not in spatial):
        raise FootprintsError(f"{layer or path} is a table without geometry; footprints need one")
    if layer is None and len(spatial) > 1:
        raise FootprintsError(f"{path} has several layers; choose one with --layer: {_listed(spatial)}")
    with _reading(path):
        info = pyogrio.read_info(dataset, layer=layer or spatial[0])
    return VectorLayer(
        dataset=dataset,
        name=info["layer_name"],
        crs=None if _is_undefined(info["crs"]) else info["crs"],
        geometry_column=info["geometry_name"],
        geometry_type=info["geometry_type"],
        fields=tuple(str(name) for name in info["fields"]),
        field_types=tuple(name.removeprefix("OFT") for name in info["ogr_types"]),
        field_subtypes=tuple(name.removeprefix("OFST") for name in info["ogr_subtypes"]),
    )


def _open_dataset(path: str | os.PathLike[str]) -> tuple[str, list[tuple[str, str | None]]]:
    """Return GDAL's name of the data source, and its tables as (name, geometry type or None)."""
    text = os.fspath(path)
    if not os.path.exists(text):  # noqa: PTH110 - Path.exists raises where a folder may not be looked into
        raise FootprintsError(
            f"there is no file {text}, or it may not be read; give a vector file on this machine"
        )
    if not (os.path.isfile(text) or os.path.isdir(text)):  # noqa: PTH112, PTH113
        raise FootprintsError(
            f"{text} is neither a file nor a folder; give a vector file"
        )  # a pipe has no end
    datasets = _dataset_names(text)
    for dataset in datasets:
        with suppress(FootprintsError), _reading(path):
            return dataset, pyogrio.list_layers(dataset).tolist()
    with _reading(path):  # none fits: the error of the file itself is the one to report
        return datasets[0], pyogrio.list_layers(datasets[0]).tolist()


def _dataset_names(path: str) -> list[str]:
    """Say where the data source may lie: in the file itself; in a zip also in one of its folders."""
    lower = path.lower()
    if not lower.endswith(".zip") or lower.endswith(ARCHIVES_OF_ONE_DRIVER) or not zipfile.is_zipfile(path):
        return [path]
    with zipfile.ZipFile(path) as archive:
        folders = {parent.as_posix() for name in archive.namelist() for parent in PurePosixPath(name).parents}
    inside = sorted(folder for folder in folders - {"."} if "__MACOSX" not in folder)
    return [f"/vsizip/{path}", *(f"/vsizip/{path}/{folder}" for folder in inside)]


def _read(
    path: str | os.PathLike[str], layer: VectorLayer, where: str | None, *, columns: list[str], geometry: bool
) -> tuple[NDArray[np.int64], Any, dict[str, NDArray[Any]]]:
    """Return feature ids, WKB (object array) and at least the `columns` asked for, row by row."""
    if where:
        columns = columns + _columns_in(where, layer)
    try:
        with _reading(path):
            meta, fids, wkb, values = pyogrio.raw.read(
                layer.dataset,
                layer=layer.name,
                columns=columns,
                where=where or None,
                read_geometry=geometry,
                return_fids=True,
                datetime_as_string=True,
            )
    except FootprintsError as error:
        if where is None:
            raise
        raise FootprintsError(
            f"--where {where!r} fails on layer {layer.name!r} ({error.__cause__}); "
            f"its columns are: {_listed(layer.fields)}"
        ) from error
    return fids, wkb, dict(zip(meta["fields"], values, strict=True))


def _columns_in(where: str, layer: VectorLayer) -> list[str]:
    """Name the columns that the filter may look at.

    Most drivers leave out columns that are not asked for even where the filter needs them, and
    then silently find nothing. A column too many costs little.
    """
    marks = str.maketrans("", "", "\"'`\\")
    text = where.translate(marks).casefold()
    return [
        name
        for name, field_type in zip(layer.fields, layer.field_types, strict=True)
        if name.translate(marks).casefold() in text and not field_type.endswith("List")
    ]


def _placed_crs(path: str | os.PathLike[str], layer: VectorLayer, given: str | None) -> pyproj.CRS:
    """Take the CRS given, else the layer's; refuse what cannot be placed on the ground."""
    text = given or layer.crs
    if text is None:
        raise FootprintsError(
            f"{path} does not say its coordinate reference system; name it with --footprints-crs"
        )
    try:
        crs = pyproj.CRS.from_user_input(text)
    except pyproj.exceptions.CRSError as error:
        raise FootprintsError(
            f"{text!r} is no coordinate reference system; give one like EPSG:4326 with --footprints-crs"
        ) from error
    if not (crs.is_geographic or crs.is_projected):
        raise FootprintsError(
            f"{path} has the CRS {crs.name!r} ({crs.type_name}), which has no place on the ground; "
            "name the right one with --footprints-crs"
        )
    return crs


def _is_undefined(crs: str | None) -> bool:
    """GeoPackage has CRSs that only say that none is known."""
    return crs is None or crs.startswith(('GEOGCS["Undefined ', 'LOCAL_CS["Undefined '))


@contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever GDAL and pyogrio raise into one line, and drop their remarks on single features."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Exception as error:  # their errors have no common root
            reason = " ".join(str(error).split())
            raise FootprintsError(f"{path} cannot be read as a vector layer: {reason}") from error


def _listed(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names) or "none"
