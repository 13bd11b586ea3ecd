"""The names in an output GeoPackage: its layer, its result columns, its statuses.

Pure; whoever reads or writes an output asks here how a column is really called in that file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from edge_infer.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

Status = Literal["ok", "pending", "outside_imagery", "no_data", "too_coarse", "bad_geometry", "read_error"]
STATUSES: tuple[str, ...] = get_args(Status)
"""Every value of the status column."""

UNREASONED = ("ok", "pending")
"""Those that need no reason beside them."""

OWN_TABLES = ("edge_schema", "edge_runs", "edge_images", "layer_styles")
"""Tables that an output has beside the footprints' layer."""

RESERVED_PREFIXES = ("gpkg", "sqlite_", "rtree_", *"`~!@#$%^&*()+-={}|[]\\:\";'<>?,./")
"""GDAL makes no layer whose name begins so."""

RESULT_COLUMNS = {
    "source_fid": "INTEGER",
    "class_label": "TEXT",
    "confidence": "REAL",
    "status": "TEXT NOT NULL DEFAULT 'pending'",
    "reason": "TEXT",
    "valid_fraction": "REAL",
    "covered_fraction": "REAL",
    "image": "TEXT",
    "gsd_m": "REAL",
}
"""Result columns and their declaration; `p_<class>` (REAL) of each class stand after `confidence`."""


@dataclass(frozen=True, slots=True)
class Schema:
    """How things are called in one output."""

    layer: str
    """The footprints' table."""
    fid_column: str
    """Its primary key, 1 to N in the order of the source."""
    geometry_column: str
    """Its geometry column."""
    classes: tuple[str, ...]
    """The model's K classes, in its order."""
    columns: Mapping[str, str]
    """Result column as documented (`status`, `p_<class>`, ...) to its real name in this file."""

    def __post_init__(self) -> None:
        """Refuse a schema without one of the result columns."""
        missing = [name for name in result_columns(self.classes) if name not in self.columns]
        if missing:
            raise OutputError(
                f"the output's schema lacks the columns {', '.join(missing)}; an earlier version made it: "
                "finish it with that one, or start again with --overwrite"
            )

    @classmethod
    def plan(
        cls, layer: str, *, geometry_column: str, fields: Iterable[str], classes: tuple[str, ...]
    ) -> Schema:
        """Name everything so that the source's columns (`fields`) keep their names.

        A name of ours that is taken becomes `edge_<name>`, then `edge_<name>_2` and so on. GeoPackage
        tells names apart without regard to ASCII case.
        """
        taken = {ascii_lower(name) for name in fields}
        fid_column = free_name("fid", taken)
        geometry_column = free_name(geometry_column or "geom", taken)
        columns = {name: free_name(name, taken) for name in result_columns(classes)}
        layer = layer or "footprints"
        if ascii_lower(layer) in OWN_TABLES or ascii_lower(layer).startswith(RESERVED_PREFIXES):
            layer = f"edge_{layer}"
        return cls(layer, fid_column, geometry_column, classes, columns)

    @property
    def probabilities(self) -> tuple[str, ...]:
        """Real names of the K probability columns, in class order."""
        return tuple(self.columns[probability_column(name)] for name in self.classes)

    def declarations(self) -> list[str]:
        """Write the SQL declarations of the result columns, in their order in the table."""
        types = result_columns(self.classes)
        return [f"{quoted(self.columns[name])} {sql_type}" for name, sql_type in types.items()]

    def insist(self, present: Iterable[str], path: Path) -> None:
        """Raise `OutputError` where the layer of the output `path` has `present` columns only."""
        wanted = (self.fid_column, self.geometry_column, *self.columns.values())
        found = {ascii_lower(name) for name in present}
        missing = [name for name in wanted if ascii_lower(name) not in found]
        if missing:
            raise OutputError(
                f"{path}: its layer {self.layer!r} has lost the columns {', '.join(missing)};"
                " take a copy that has them, or start again with --overwrite"
            )

    def to_json(self) -> str:
        """JSON text that `from_json` reads."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Schema:
        """Read what `to_json` wrote; `OutputError` for anything else."""
        try:
            values: dict[str, Any] = json.loads(text)
            values["classes"] = tuple(values["classes"])
            return cls(**values)
        except (TypeError, ValueError, KeyError) as error:
            raise OutputError(f"the output's schema is malformed: {error!r}") from error


def probability_column(class_name: str) -> str:
    """Name the column that holds the probability of a class."""
    return f"p_{class_name}"


def result_columns(classes: tuple[str, ...]) -> dict[str, str]:
    """Every result column of a model with these classes, with its SQL type, in order."""
    columns: dict[str, str] = {}
    for name, sql_type in RESULT_COLUMNS.items():
        columns[name] = sql_type
        if name == "confidence":
            columns |= {probability_column(class_name): "REAL" for class_name in classes}
    return columns


def free_name(name: str, taken: set[str]) -> str:
    """Return `name`, or the first of `edge_<name>`, `edge_<name>_2`, ... not in `taken`; adds it there."""
    candidate, number = name, 1
    while ascii_lower(candidate) in taken:
        candidate = f"edge_{name}" if number == 1 else f"edge_{name}_{number}"
        number += 1
    taken.add(ascii_lower(candidate))
    return candidate


def ascii_lower(name: str) -> str:
    """Fold case as SQLite does for names: A to Z only."""
    return "".join(letter.lower() if letter.isascii() else letter for letter in name)


def quoted(name: str) -> str:
    """Quote a table or column name for SQL."""
    return '"' + name.replace('"', '""') + '"'
