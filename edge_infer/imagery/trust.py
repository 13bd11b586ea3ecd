"""Which rasters are opened at all. A file may come from anywhere, and some formats only point to other files.

A raster must be a regular file of a format that keeps its pixels in itself, or a VRT. A VRT must be a plain
mosaic or view, as gdalbuildvrt and gdal_translate write it, of such files on this machine. One that lies in
a folder of imagery may only point below that folder; one that the user names, anywhere on this machine.
"""

from __future__ import annotations

import os
import re
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import rasterio
from rasterio.errors import NotGeoreferencedWarning

from edge_infer.errors import ImageryError

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMATS = (
    *("GTiff", "VRT", "HFA", "NITF", "ENVI", "EHdr", "PCIDSK", "BMP", "GPKG", "MBTiles"),
    *("JPEG", "PNG", "WEBP", "JP2OpenJPEG", "JP2ECW", "JP2KAK", "JP2MrSID", "ECW", "MrSID"),
)
"""GDAL's drivers for what may be opened; those that its build lacks are passed over."""

MAX_VRT_BYTES = 64 * 2**20
"""A mosaic of 10,000 images takes some 15 MB."""

FULL_LEVEL = -1
"""Full resolution, where an overview has its number."""

MAX_DEPTH = 4
"""How many VRTs may stand between a VRT and its pixels."""

_HEAD_BYTES = 4096
_VRT_MARK = b"<VRTDataset"
"""GDAL takes a file for a VRT, whatever its name, where this stands in its first kilobyte."""

_PIXEL_MARKS = (
    *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF"),
    *(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"EHFA_HEADER_TAG", b"NITF", b"NSIF", b"msid"),
)
"""How files begin that hold their own pixels: GDAL tries all its drivers on the sources of a VRT."""

_PLAIN = frozenset(
    (
        *("vrtdataset", "srs", "geotransform", "metadata", "mdi", "gcplist", "gcp", "vrtrasterband"),
        *("maskband", "blockxsize", "blockysize", "description", "unittype", "offset", "scale"),
        *("nodatavalue", "hidenodatavalue", "colorinterp", "colortable", "entry", "categorynames"),
        *("category", "histograms", "histitem", "histmin", "histmax", "bucketcount"),
        *("includeoutofrange", "approximate", "histcounts", "overviewlist", "overview", "simplesource"),
        *("complexsource", "sourcefilename", "sourceband", "sourceproperties", "srcrect", "dstrect"),
        *("nodata", "scaleoffset", "scaleratio", "lut", "usemaskband", "colortablecomponent"),
    )
)
"""Elements of plain mosaics and views, in lower case because GDAL tells no case apart."""

_PLAIN_ATTRIBUTES = frozenset(
    (
        *("rasterxsize", "rasterysize", "blockxsize", "blockysize", "datatype", "band", "subclass"),
        *("dataaxistosrsaxismapping", "coordinateepoch", "domain", "format", "key", "relativetovrt"),
        *("shared", "xoff", "yoff", "xsize", "ysize", "resampling", "c1", "c2", "c3", "c4"),
        *("projection", "id", "info", "pixel", "line", "x", "y", "z"),
    )
)
"""Their attributes: GDAL would read an element from an attribute of its name."""

_CONNECTION = re.compile(r"\s*(<|/vsi|[a-z][a-z0-9_+.-]*:)", re.IGNORECASE)
"""Names that GDAL takes for something other than a file."""


# Of a header that is said as an error; a reader does not ask. Not caught at each call: threads share filters.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning, module=re.escape(__name__))


def open_raster(path: str | Path, *, level: int | None = None) -> rasterio.DatasetReader:
    """Open a raster of one of the `FORMATS`; rasterio's errors are let through.

    level: number of the overview that is opened in place of the raster, or `FULL_LEVEL` for the raster
    without any; None for the raster with all that it has.
    """
    options = {} if level is None else {"OVERVIEW_LEVEL": "NONE" if level == FULL_LEVEL else f"{level}only"}
    # rasterio.open takes the name of one driver only.
    return rasterio.DatasetReader(str(path), driver=list(FORMATS), **options)


def check_raster(path: Path, folder: Path | None) -> None:
    """Look at a raster, and at the side files that GDAL opens with it, before GDAL does.

    Args:
        path: the raster, absolute.
        folder: the folder that it was found in, absolute; None where the user named the raster itself.

    Raises:
        ImageryError: it is refused by the rules at the top of this module.

    """
    _check(path, folder, MAX_DEPTH)


def raster_files(path: Path) -> list[Path]:
    """Name the files that hold a raster which `check_raster` let pass: itself, and what a VRT points to."""
    files = [path]
    for file in files:  # it grows on the way
        if _VRT_MARK in _head(file):
            files += sorted({source for source in _sources(file) if source.exists()} - set(files))
    return files


def _check(path: Path, folder: Path | None, depth: int) -> bytes:
    """Return the first bytes of a file that may be opened."""
    head = _head(path)
    for side in (Path(f"{path}.ovr"), Path(f"{path}.msk")):  # overviews may have a mask, and masks overviews
        if os.path.lexists(side):
            _check_part(side, path, folder, depth)
    if _VRT_MARK not in head:
        return head
    if depth == 0:
        raise ImageryError(f"{path} stands behind {MAX_DEPTH} other VRTs; make it a file: gdal_translate")
    for source in sorted(set(_sources(path))):
        if folder is not None and not source.is_relative_to(folder):
            raise ImageryError(
                f"{path} points to {source}, outside of {folder}, the folder that it was found in; "
                "if that is meant, name the VRT itself"
            )
        if os.path.lexists(source):  # else its pixels cannot be had, which is said of each that needs them
            _check_part(source, path, folder, depth - 1)
    return head


def _check_part(part: Path, whole: Path, folder: Path | None, depth: int) -> None:
    """Refuse what GDAL would open with a raster and what does not hold its own pixels."""
    start = _check(part, folder, depth)
    # A file of zeros, or none at all, is what a lost tile looks like.
    if _VRT_MARK not in start and not start.startswith(_PIXEL_MARKS) and start.strip(b"\0"):
        raise ImageryError(
            f"{whole} points to {part}, which is no TIFF, JPEG 2000 or other file that holds its "
            "own pixels; make it one: gdal_translate"
        )


def _head(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, a device never end
            raise ImageryError(f"{path} is no regular file; name a raster or a folder of rasters")
        with path.open("rb") as stream:
            return stream.read(_HEAD_BYTES)
    except OSError as error:
        raise ImageryError(f"{path} is no raster that can be read: {error.strerror or error}") from error


def _sources(path: Path) -> Iterator[Path]:
    """Name the files that a VRT points to, without following links, as it was written."""
    for element in _plain_vrt(path).iter():
        if element.tag.lower() != "sourcefilename":
            continue
        name = (element.text or "").strip()
        relative = {key.lower(): value for key, value in element.items()}.get("relativetovrt") == "1"
        source = os.path.normpath(os.path.join(path.parent if relative else Path.cwd(), name))  # noqa: PTH118
        if not name or _CONNECTION.match(name) or _CONNECTION.match(source):
            raise ImageryError(
                f"{path} points to {name[:200]!r}; a VRT may only point to files on this machine"
            )
        yield Path(source)


def _plain_vrt(path: Path) -> ET.Element:
    """Parse a VRT, and insist that it can do no more than put pixels of files together."""
    with path.open("rb") as stream:
        content = stream.read(MAX_VRT_BYTES + 1)
    if len(content) > MAX_VRT_BYTES:
        raise ImageryError(f"{path} is a VRT of more than {MAX_VRT_BYTES >> 20} MB; divide it")
    try:
        text = content.decode("utf-8").removeprefix("\ufeff").lstrip()
        # GDAL's parser is a lax one. It agrees with this one on all that has no comments, entities and such.
        if "<!" in text or "<?" in text.removeprefix("<?xml"):
            raise ValueError("it has comments, instructions or declarations")  # noqa: TRY301
        root = ET.fromstring(text)  # noqa: S314 - without declarations there is nothing to expand
    except (ET.ParseError, ValueError, RecursionError) as error:
        raise ImageryError(f"{path} is no plain VRT: {error}; write it with gdalbuildvrt") from error
    for element in root.iter():
        kind = element.tag.lower()
        attributes = {key.lower(): value.lower() for key, value in element.items()}
        if (
            kind not in _PLAIN
            or not attributes.keys() <= _PLAIN_ATTRIBUTES
            or attributes.get("subclass", "vrtsourcedrasterband") != "vrtsourcedrasterband"
            or attributes.get("relativetovrt", "0") not in ("0", "1")
            or (kind == "sourcefilename" and len(element))
            or (kind == "metadata" and attributes.get("domain") == "overviews")  # it names a file
        ):
            shown = attributes.get("subclass", element.tag)
            raise ImageryError(
                f"{path} is more than a plain mosaic ({shown[:100]}); make it a file: gdal_translate"
            )
    return root
