"""What a bundle or an output GeoPackage holds, as plain JSON values and as lines to read."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from edge_infer.bundle import EVALUATION_MEMBER, Bundle, open_bundle
from edge_infer.errors import Refused
from edge_infer.schema import Schema, quoted

_SQLITE_MAGIC = b"SQLite format 3\0"


def describe_file(path: str | Path) -> dict[str, Any]:
    """Tell what a file holds, as JSON values; `kind` is `bundle` or `output`. Nothing is written.

    Raises:
        Refused: no such file, or neither a bundle nor an output.

    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            magic = stream.read(len(_SQLITE_MAGIC))
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}; name a bundle or an output") from error
    return _describe_output(path) if magic == _SQLITE_MAGIC else _describe_bundle(open_bundle(path))


def describe_lines(facts: dict[str, Any]) -> list[str]:
    """Lines for a reader, of what `describe_file` gave."""
    return _bundle_lines(facts) if facts["kind"] == "bundle" else _output_lines(facts)


def _describe_bundle(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    evaluation = bundle.read_json(EVALUATION_MEMBER) if EVALUATION_MEMBER in bundle.members else None
    return {
        "kind": "bundle",
        "path": str(bundle.path),
        "size_bytes": bundle.path.stat().st_size,
        "sha256": bundle.sha256,
        "name": manifest.name,
        "created": manifest.created,
        "architecture": manifest.architecture,
        "parameters": manifest.parameters,
        "classes": dict(zip(manifest.classes, manifest.colors, strict=True)),
        "contract": manifest.contract.to_json(),
        "normalisation": {"mean": list(manifest.mean), "std": list(manifest.std)},
        "temperature": manifest.temperature,
        "members": {name: member.size_bytes for name, member in bundle.members.items()},
        "facts": dict(manifest.facts),
        "evaluation": evaluation,
    }


def _bundle_lines(facts: dict[str, Any]) -> list[str]:
    contract = facts["contract"]
    window = f"{contract['ground_metres']:g} m"
    if contract["window_mode"] == "footprint":
        window = f"{contract['context_factor']:g} times the footprint, {window} at least"
    low, high = contract["value_range"]
    lines = [f"{facts['path']}: model bundle, {_megabytes(facts['size_bytes'])}, sha256 {facts['sha256']}"]
    lines += [
        f"  {title:<9} {text}"
        for title, text in (
            ("model", f"{facts['name']}, trained {facts['created']}"),
            ("network", f"{facts['architecture']}, {facts['parameters']:,} parameters"),
            ("classes", ", ".join(facts["classes"])),
            ("chip", f"{contract['chip_pixels']} pixels for {window}"),
            ("bands", f"{', '.join(contract['bands'])}; {contract['dtype']} {low:g}..{high:g}"),
            ("imagery", f"pixels of {contract['coarsest_gsd_metres']:g} m at most"),
            *(("member", f"{name}, {_megabytes(size)}") for name, size in facts["members"].items()),
            *((key, _shortened(json.dumps(value))) for key, value in facts["facts"].items()),
        )
    ]
    return lines


def _shortened(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


def _describe_output(path: Path) -> dict[str, Any]:
    try:
        with closing(_connect(path)) as database:
            if not _columns(database, "edge_schema"):
                raise Refused(f"{path} is no output of edge-infer; name a bundle or an output")
            schema = Schema.from_json(*database.execute("SELECT schema FROM edge_schema").fetchone())
            statuses = _counts(database, schema, "status")
            return {
                "kind": "output",
                "path": str(path),
                "size_bytes": path.stat().st_size,
                "layer": schema.layer,
                "columns": dict(schema.columns),
                "footprints": sum(statuses.values()),
                "statuses": statuses,
                "classes": _counts(database, schema, "class_label"),
                "runs": _rows(database, "edge_runs"),
                "images": _rows(database, "edge_images"),
            }
    except (sqlite3.Error, TypeError) as error:
        raise Refused(f"{path} is no output that can be read: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    # Where no log lies beside the file, nobody writes: it may then be read from a read-only disk too.
    still = "" if path.with_name(f"{path.name}-wal").exists() else "&immutable=1"
    return sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro{still}", uri=True)


def _counts(database: sqlite3.Connection, schema: Schema, column: str) -> dict[str, int]:
    """Count footprints by the values of a result column; null is left out."""
    name = quoted(schema.columns[column])
    return dict(
        database.execute(
            f"SELECT {name}, COUNT(*) FROM {quoted(schema.layer)} WHERE {name} IS NOT NULL"  # noqa: S608
            " GROUP BY 1 ORDER BY 2 DESC, 1"
        )
    )


def _rows(database: sqlite3.Connection, table: str) -> list[dict[str, object]]:
    names = _columns(database, table)
    rows = database.execute(f"SELECT * FROM {table}") if names else ()  # noqa: S608
    return [{name: _plain(value) for name, value in zip(names, row, strict=True)} for row in rows]


def _columns(database: sqlite3.Connection, table: str) -> list[str]:
    return [name for _, name, *_ in database.execute(f"PRAGMA table_info({table})")]


def _plain(value: object) -> object:
    """Give JSON kept as text its structure back."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _output_lines(facts: dict[str, Any]) -> list[str]:
    return [
        f"{facts['path']}: classified footprints, {_megabytes(facts['size_bytes'])}",
        f"  {'layer':<9} {facts['layer']}, {facts['footprints']:,} footprints",
        *(f"  {'status':<9} {name} {count:,}" for name, count in facts["statuses"].items()),
        *(f"  {'class':<9} {name} {count:,}" for name, count in facts["classes"].items()),
        *(f"  {'run':<9} {_run_line(run)}" for run in facts["runs"]),
        *(f"  {'image':<9} {image.get('path')}" for image in facts["images"]),
    ]


def _run_line(run: dict[str, Any]) -> str:
    return (
        f"{run.get('started')} to {run.get('ended') or 'no end'}: {run.get('model')} by {run.get('engine')} "
        f"{run.get('precision')} on {run.get('device')}"
    )
