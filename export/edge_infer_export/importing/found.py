"""Chips that other programs made: what their folder says of them, before anything is decided."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_infer.errors import Refused
from edge_infer.progress import tally
from edge_infer_export.chips.pictures import READ_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

_LON_LAT = re.compile(r"(-?\d+\.\d+)_(-?\d+\.\d+)")
_BESIDE = {
    *(".xml", ".ovr", ".tfw", ".jgw", ".pgw", ".wld", ".prj", ".txt", ".csv", ".json", ".md", ".db", ".lock"),
    *(".idx", ".ppg", ".pjg", ".pzp", ".ptf", ".lrc"),  # of an .mrf
}
"""What lies beside pictures, and is missed by nobody who takes only the pictures."""

_MOST_NAMED = 5
_FILE_COLUMNS = ("path", "file", "chip")
_LONGITUDE_COLUMNS = ("lon", "longitude", "x")
_LATITUDE_COLUMNS = ("lat", "latitude", "y")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundChip:
    """One picture; NaN and empty texts where nothing is known."""

    path: Path
    label: str
    """Its class, by number or name."""
    longitude: float = math.nan
    latitude: float = math.nan
    ground_metres: tuple[float, float] = (math.nan, math.nan)
    """Width and height on the ground, true metres."""
    bearing: float = math.nan
    """What is up in it, degrees clockwise from true north."""
    event: str = ""
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundChips:
    """A folder of chips in some other layout."""

    layout: str
    folder: Path
    chips: tuple[FoundChip, ...]
    class_names: dict[str, str] = field(default_factory=dict)
    """{value: name} as the folder itself says it; may be empty."""
    band_names: tuple[str, ...] | None = None
    blacken: bool = False
    variable_size: bool = False
    """Whether chips are rectangles around their feature, each of its own size."""
    facts: dict[str, Any] = field(default_factory=dict)
    """For the record, as plain JSON values."""
    warnings: tuple[str, ...] = ()

    def warn(self, *warnings: str) -> FoundChips:
        """Add warnings."""
        return replace(self, warnings=(*self.warnings, *warnings))


def is_picture(path: Path) -> bool:
    """Whether a file is a picture that can be taken over, by its name; macOS adds files that are none."""
    return path.suffix.lower() in READ_SUFFIXES and not path.name.startswith(".")


def passed_over(paths: Iterable[Path]) -> tuple[str, ...]:
    """Say which files beside the pictures are neither pictures that can be read nor such as go with them."""
    others = Counter(
        path.suffix.lower() or "without suffix"
        for path in paths
        if not (is_picture(path) or path.name.startswith(".") or path.suffix.lower() in _BESIDE)
    )
    if not others:
        return ()
    wanted = ", ".join(READ_SUFFIXES)
    return (f"{others.total():,} files are passed over ({tally(others)}); convert pictures to {wanted}",)


def places_from_names(found: FoundChips) -> FoundChips:
    """Take longitude and latitude from file names that begin with LON_LAT, in degrees.

    Raises:
        Refused: no name does.

    """
    chips, without = [], 0
    for chip in found.chips:
        place = _LON_LAT.match(chip.path.name)
        longitude, latitude = map(float, place.groups()) if place else (math.nan, math.nan)
        if abs(longitude) <= 180 and abs(latitude) <= 90:
            chips.append(replace(chip, longitude=longitude, latitude=latitude))
        else:
            chips.append(chip)
            without += 1
    if without == len(chips):
        raise Refused(
            f"no file in {found.folder} has a name that begins with LON_LAT in degrees, such as "
            "-95.06_30.05.jpeg; name a table with --chip-table"
        )
    named = replace(found, chips=tuple(chips))
    return named.warn(f"{without:,} file names hold no coordinates") if without else named


def join_table(found: FoundChips, table: Path) -> FoundChips:
    """Take places, events, and labels where it has them, from a CSV table; only chips in it are kept.

    Columns: path (or file, chip), relative to the folder or a mere file name; lon and lat (or longitude and
    latitude, x and y) in degrees; optional class, event and place. Others are passed over.

    Raises:
        Refused: the table cannot be read, lacks columns, names one file twice, or by a mere name that
            several files have.

    """
    rows, columns = _read_rows(table)
    name = _column(table, columns, _FILE_COLUMNS)
    longitude = _column(table, columns, _LONGITUDE_COLUMNS)
    latitude = _column(table, columns, _LATITUDE_COLUMNS)
    by_name = _by_name(found)
    chips: dict[Path, FoundChip] = {}
    lost = []
    for number, row in enumerate(rows, start=2):
        meant = by_name.get(row[name], [])
        if not meant:
            lost.append(row[name])
            continue
        if len(meant) > 1:
            paths = ", ".join(one.path.relative_to(found.folder).as_posix() for one in meant[:_MOST_NAMED])
            raise Refused(
                f"{table}, line {number}: {row[name]} may be any of {len(meant):,} files ({paths}); say which"
            )
        chip = meant[0]
        if chip.path in chips:
            raise Refused(f"{table}, line {number}: {row[name]} stands there twice")
        try:
            place = float(row[longitude]), float(row[latitude])
        except ValueError as error:
            raise Refused(f"{table}, line {number}: no coordinates in degrees ({error})") from error
        chips[chip.path] = replace(
            chip,
            longitude=place[0],
            latitude=place[1],
            label=row.get("class") or chip.label,
            event=row.get("event") or chip.event,
            place=row.get("place") or chip.place,
        )
    if not chips:
        raise Refused(
            f"{table} names no file of {found.folder}; the first it names is {(lost or ['none'])[0]}"
        )
    warnings = []
    if lost:
        warnings.append(f"{len(lost):,} files that {table.name} names are not there, the first: {lost[0]}")
    if len(chips) < len(found.chips):
        warnings.append(f"{len(found.chips) - len(chips):,} pictures are left out: {table.name} lacks them")
    return replace(found, chips=tuple(chips.values())).warn(*warnings)


def _by_name(found: FoundChips) -> dict[str, list[FoundChip]]:
    """List the chips that a path relative to the folder, or a mere file name, may mean."""
    named: dict[str, list[FoundChip]] = {}
    for chip in found.chips:
        path = chip.path.relative_to(found.folder).as_posix()
        for name in {path, chip.path.name}:
            named.setdefault(name, []).append(chip)
    return named


def _read_rows(table: Path) -> tuple[list[dict[str, str]], list[str]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows = [{key: (cell or "").strip() for key, cell in row.items() if key} for row in reader]
            return rows, list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Refused(f"{table} cannot be read as a CSV table of chips: {error}") from error


def _column(table: Path, columns: list[str], names: tuple[str, ...]) -> str:
    for name in names:
        if name in columns:
            return name
    raise Refused(
        f"{table} has no column {' or '.join(names)}; its columns are: {', '.join(columns) or 'none'}"
    )


def labels_of(found: FoundChips) -> NDArray[np.object_]:
    """Give the labels as a column, object (n,): whole numbers as int, so that nobody takes them for names."""
    return np.array([int(c.label) if _is_number(c.label) else c.label or None for c in found.chips], object)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+", text) is not None
