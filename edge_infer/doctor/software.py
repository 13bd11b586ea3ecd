"""What is installed: this program, GDAL and PROJ, and whether disks have room."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edge_infer.doctor.finding import Finding, attempt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

RASTER_DRIVERS = {
    "GTiff": "GeoTIFF",
    "COG": "cloud-optimised GeoTIFF",
    "VRT": "mosaics",
    "JP2OpenJPEG": "JPEG 2000, as of satellites",
    "JPEG": "JPEG with a world file",
    "PNG": "PNG with a world file",
    "HFA": "Erdas .img",
}
"""GDAL drivers that imagery in the field needs, and what for. GTiff is the one that nothing goes without."""

VECTOR_DRIVERS = {
    "GPKG": "GeoPackage, also the output",
    "ESRI Shapefile": "shapefiles",
    "GeoJSON": "GeoJSON",
    "FlatGeobuf": "FlatGeobuf",
    "OpenFileGDB": "file geodatabases",
    "KML": "KML",
}
"""GPKG is the one that nothing goes without."""

CODECS = ("JPEG", "DEFLATE", "LZW", "ZSTD", "WEBP", "LERC")
"""Compressions of GeoTIFF that imagery comes in."""

USUAL_CODECS = CODECS[:3]

MISLEADING = ("GDAL_DATA", "GDAL_DRIVER_PATH", "PROJ_DATA", "PROJ_LIB")
"""Variables that lead the libraries of this program to the files of others of another version."""

GIB = 2**30
LITTLE_ROOM = 1 * GIB
NO_ROOM = GIB // 10

REINSTALL = "install edge-infer anew"


def look_at_software(environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Check this program and the libraries under it."""
    yield from attempt("edge-infer", _program)
    yield from attempt("OpenVINO", _openvino)
    yield _date()
    yield from attempt("GDAL", _raster_drivers)
    yield from attempt("OGR", _vector_drivers)
    yield from attempt("PROJ", _places)
    yield _variables(environment)


def look_at_disks(places: Iterable[tuple[str, Path]]) -> Iterator[Finding]:
    """Check the room of disks, by what they are for; a folder that is not there yet counts as its parent.

    Two places on one disk are told once.
    """
    seen: set[int] = set()
    for what, path in places:
        folder = _existing(path.absolute())
        device = folder.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(folder).free
        text = f"{free / GIB:.1f} GiB free for {what} ({folder})"
        figures = {"free_bytes": free}
        if free < NO_ROOM:
            yield Finding("disk", "problem", text, "free some room, or choose another disk", figures)
        elif free < LITTLE_ROOM:
            yield Finding("disk", "warning", text, "a result of 100,000 footprints takes 0.1 GiB", figures)
        else:
            yield Finding("disk", "ok", text, None, figures)


def _existing(path: Path) -> Path:
    # os.path: unlike Path's methods it answers False where a folder may not be looked into.
    return next(folder for folder in (path, *path.parents) if os.path.isdir(folder))  # noqa: PTH112


def _program() -> Iterator[Finding]:
    from edge_infer.version import describe

    python = f"Python {platform.python_version()} on {platform.machine()}"
    yield Finding("edge-infer", "ok", f"{describe()}, {python}")


def _openvino() -> Iterator[Finding]:
    import openvino

    name = openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")
    yield Finding("OpenVINO", "ok", f"{openvino.__version__.partition('-')[0]} on {str(name).strip()}")


def _date() -> Finding:
    """See whether the clock runs: boards without a battery begin in 1970, and the results bear the date."""
    installed, now = Path(__file__).stat().st_mtime, time.time()
    text = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now))
    if now < installed:
        return Finding(
            "date",
            "warning",
            f"{text}, before this program was installed",
            "set it: sudo date -s 'YYYY-MM-DD HH:MM'",
        )
    return Finding("date", "ok", text)


def _raster_drivers() -> Iterator[Finding]:
    import rasterio

    with rasterio.Env() as environment:
        there = environment.drivers()
    lacking = [driver for driver in RASTER_DRIVERS if driver not in there]
    broken = [codec for codec in CODECS if not _round_trip(codec)] if "GTiff" in there else list(CODECS)
    missing = [f"{driver} ({RASTER_DRIVERS[driver]})" for driver in lacking]
    missing += [f"{codec} compression" for codec in broken]
    text = f"{rasterio.__gdal_version__}, reads {len(there)} formats"
    if "GTiff" in lacking or any(codec in broken for codec in USUAL_CODECS):
        yield Finding("GDAL", "problem", f"{text}, but lacks {', '.join(missing)}", REINSTALL)
    elif missing:
        convert = "convert such imagery to GeoTIFF with JPEG or DEFLATE"
        yield Finding("GDAL", "warning", f"{text}, but lacks {', '.join(missing)}", convert)
    else:
        yield Finding("GDAL", "ok", f"{text}, {', '.join(RASTER_DRIVERS)}; GeoTIFF with {', '.join(CODECS)}")


def _round_trip(codec: str) -> bool:
    """Write and read a tiny GeoTIFF in memory: what a list of codecs says is not yet what works."""
    remarks = logging.getLogger("rasterio._env")
    remarks.disabled = True  # the finding says it all
    try:
        return _comes_back(codec)
    finally:
        remarks.disabled = False


def _comes_back(codec: str) -> bool:
    import numpy as np
    import rasterio
    from rasterio.io import MemoryFile

    from edge_infer.imagery.environment import GDAL_ERRORS

    pixels = np.full((3, 16, 16), 77, np.uint8)
    try:
        with rasterio.Env(), MemoryFile() as memory:
            with memory.open(
                driver="GTiff", width=16, height=16, count=3, dtype="uint8", compress=codec,
                crs="EPSG:32615", transform=rasterio.transform.from_origin(360_000, 4_100_000, 0.5, 0.5),
            ) as dataset:  # fmt: skip
                dataset.write(pixels)
            with memory.open() as dataset:
                # GDAL passes over a compression that it does not know; JPEG and WEBP lose a level or two.
                kept = str(dataset.profile.get("compress")).upper() == codec
                return kept and bool(abs(dataset.read().astype(int) - 77).max() <= 2)
    except GDAL_ERRORS:
        return False


def _vector_drivers() -> Iterator[Finding]:
    import pyogrio

    there = pyogrio.list_drivers(read=True)
    missing = [f"{driver} ({use})" for driver, use in VECTOR_DRIVERS.items() if driver not in there]
    text = f"{'.'.join(map(str, pyogrio.__gdal_version__))}, reads {len(there)} formats"
    if "w" not in there.get("GPKG", ""):
        yield Finding("OGR", "problem", f"{text}, but cannot write GeoPackages", REINSTALL)
    elif missing:
        yield Finding(
            "OGR",
            "warning",
            f"{text}, but lacks {', '.join(missing)}",
            "convert such footprints to GeoPackage",
        )
    else:
        yield Finding("OGR", "ok", f"{text}, {', '.join(VECTOR_DRIVERS)}")


def _places() -> Iterator[Finding]:
    """Check PROJ twice, as pyproj and rasterio bring one each: a point of known coordinates must come out."""
    import pyproj
    import rasterio.warp

    longitude, latitude = -93.0, 45.0  # on the central meridian of zone 15
    wanted = (500_000.0, 4_982_950.4)
    transformer = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32615", always_xy=True)
    theirs = rasterio.warp.transform("EPSG:4326", "EPSG:32615", [longitude], [latitude])
    found = {
        "pyproj": transformer.transform(longitude, latitude),
        "rasterio": (theirs[0][0], theirs[1][0]),
    }
    wrong = [
        name
        for name, point in found.items()
        if not all(abs(one - other) < 0.1 for one, other in zip(point, wanted, strict=True))
    ]
    text = f"{pyproj.proj_version_str}, data in {pyproj.datadir.get_data_dir()}"
    if wrong:
        yield Finding("PROJ", "problem", f"{text}: {' and '.join(wrong)} misplaces a known point", REINSTALL)
    else:
        yield Finding("PROJ", "ok", text)


def _variables(environment: Mapping[str, str]) -> Finding:
    misleading = [f"{name}={environment[name]}" for name in MISLEADING if environment.get(name)]
    if misleading:
        return Finding(
            "environment",
            "warning",
            f"{', '.join(misleading)}: files of another GDAL or PROJ",
            f"unset {' '.join(text.partition('=')[0] for text in misleading)}",
        )
    return Finding("environment", "ok", f"none of {', '.join(MISLEADING)} is set")
