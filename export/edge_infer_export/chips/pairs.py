"""Imagery and the labelled footprints on it: one pair from the command line, or many from a CSV file."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_infer.errors import Refused

if TYPE_CHECKING:
    from pathlib import Path

_REQUIRED = ("imagery", "footprints")
_OPTIONAL = ("label_field", "layer", "where", "imagery_crs", "footprints_crs", "event", "place")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Footprints, and the images that they are cut from; no other pair's images count for them."""

    imagery: tuple[Path, ...]
    """Rasters, folders of rasters, or VRTs."""
    footprints: Path
    label_field: str
    """Column that holds the label."""
    layer: str | None = None
    where: str | None = None
    imagery_crs: str | None = None
    footprints_crs: str | None = None
    event: str = ""
    """Name of the disaster, to hold out whole; may be empty."""
    place: str = ""
    """Name of the area, likewise."""


def read_pairs(path: Path, *, label_field: str | None = None) -> tuple[Pair, ...]:
    """Read pairs from a CSV file, a row each.

    Columns: imagery (several separated by `;`) and footprints, relative to the file; optional label_field,
    layer, where, imagery_crs, footprints_crs, event and place. An empty cell says nothing.

    Args:
        path: the file.
        label_field: of rows that name none.

    Raises:
        Refused: no such file, columns missing or unknown, or a row that says too little.

    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or ()
            rows = [{name: (cell or "").strip() for name, cell in row.items() if name} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Refused(f"{path} cannot be read as a CSV file of pairs: {error}") from error
    missing = [name for name in _REQUIRED if name not in columns]
    unknown = [name for name in columns if name not in (*_REQUIRED, *_OPTIONAL)]
    if missing or unknown:
        raise Refused(
            f"{path} has the columns {', '.join(columns) or 'none'}; wanted {', '.join(_REQUIRED)} and, as "
            f"needed, {', '.join(_OPTIONAL)}"
        )
    if not rows:
        raise Refused(f"{path} has no rows; write one for each pair of imagery and footprints")
    return tuple(_pair(path, number, row, label_field) for number, row in enumerate(rows, start=2))


def _pair(path: Path, number: int, row: dict[str, str], label_field: str | None) -> Pair:
    label = row.get("label_field") or label_field
    empty = [name for name in _REQUIRED if not row[name]]
    if empty or label is None:
        raise Refused(
            f"{path}, line {number}: {', '.join(empty) or 'label_field'} is empty"
            + ("" if empty else "; fill it in, or give --label-field for all")
        )
    folder = path.absolute().parent
    return Pair(
        imagery=tuple(folder / part.strip() for part in row["imagery"].split(";") if part.strip()),
        footprints=folder / row["footprints"],
        label_field=label,
        layer=row.get("layer") or None,
        where=row.get("where") or None,
        imagery_crs=row.get("imagery_crs") or None,
        footprints_crs=row.get("footprints_crs") or None,
        event=row.get("event", ""),
        place=row.get("place", ""),
    )
