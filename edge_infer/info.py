"""What a bundle or an output GeoPackage holds, as plain JSON values and as lines to read."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from edge_infer.bundle import CALIBRATION_MEMBER, EVALUATION_MEMBER, Bundle, open_bundle
from edge_infer.errors import Refused
from edge_infer.geopackage import columns
from edge_infer.schema import Schema, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

_SQLITE_MAGIC = b"SQLite format 3\0"


def describe_file(path: str | Path) -> dict[str, Any]:
    """Tell what a file holds, as JSON values; `kind` is `bundle` or `output`. Nothing is written.

    Raises:
        Refused: no such file, or neither a bundle nor an output.

    """
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path  # SQLite's log lies beside the file, not the link
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
    evaluation, calibration = (
        bundle.read_json(name) if name in bundle.members else None
        for name in (EVALUATION_MEMBER, CALIBRATION_MEMBER)
    )
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
        "calibration": calibration,
    }


def _bundle_lines(facts: dict[str, Any]) -> list[str]:
    contract = facts["contract"]
    window = f"{contract['ground_metres']:g} m"
    if contract["window_mode"] == "footprint":
        window = f"{contract['context_factor']:g} times the footprint, {window} at least"
        if contract["buffer_metres"]:
            window = f"{contract['buffer_metres']:g} m around {window}"
    if contract["blacken"]:
        window += "; black outside of the footprint"
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
            *evaluation_lines(facts["evaluation"] or {}),
            *calibration_lines(facts["calibration"] or {}),
            *((key, _shortened(json.dumps(value))) for key, value in facts["facts"].items() if key != "int8"),
        )
    ]
    return lines


def calibration_lines(calibration: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Give what a calibration.json says as (title, text): verdict, figures, and where the chips came from.

    Any JSON object will do; what it does not say as calibration writes it is said to be malformed.
    """
    if not calibration:
        return []
    try:
        gate, chips = calibration["gate"], calibration["chips"]
        how = str(calibration["method"]) + " with bias correction" * bool(calibration["bias_correction"])
        if calibration["in_float"]:
            how += f", {', '.join(map(str, calibration['in_float']))} in float"
        low, high = chips["sensor"]["gsd_metres"]
        versions = ", ".join(f"{name} {text}" for name, text in calibration["versions"].items())
        changes = [
            f"{name} {100 * entry['recall_change']['value']:+.1f}"
            for name, entry in gate["per_class"].items()
            if entry["recall_change"]["value"] is not None
        ]
        lines = [
            f"{calibration['int8']}: {how}, {calibration['created']}",
            *([f"because {calibration['reason']}"] if calibration["reason"] else []),
            f"agrees with FP32 on {gate['agreement']:.2%} of {gate['chips']:,} held-out chips",
            f"recall against FP32, points: {', '.join(changes)}",
            f"calibrated on {chips['count']:,} chips of {len(chips['images'])} images",
            f"of {low:g}..{high:g} m a pixel{', of ' * bool(chips['events'])}{', '.join(chips['events'])}",
            f"by {versions}",
            *(f"warning: {warning}" for warning in calibration["warnings"]),
        ]
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        return [("int8", f"calibration.json is malformed: {error!r}; calibrate again")]
    return [("int8", _shortened(" ".join(line.split()), 400)) for line in lines]


def evaluation_lines(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Give the main figures of an evaluation.json as (title, text): alarms first, other findings last.

    A bundle may come from anywhere: where a figure is missing or no number, the figures end.
    """
    findings = _findings(evaluation)
    lines = [(level.upper(), words) for level, words in findings if level == "alarm"]
    try:
        before, after = (evaluation["calibration"][when]["calibration_error"] for when in ("before", "after"))
        lines += [
            (
                "judged",
                f"{evaluation['chips']:,} chips in {evaluation['blocks']:,} blocks: {evaluation['side']}",
            ),
            ("accuracy", _estimate(evaluation["accuracy"])),
            ("macro-F1", _estimate(evaluation["macro_f1"])),
            ("ECE", f"{after:.1%}, {before:.1%} before the temperature"),
            ("shortcut", _shortcut(evaluation.get("shortcut"))),
        ]
        for name, figures in evaluation["per_class"].items():
            precision, recall = _estimate(figures["precision"]), _estimate(figures["recall"])
            lines.append(
                ("class", f"{name}: {figures['chips']:,} chips, precision {precision}, recall {recall}")
            )
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError):
        pass
    lines += [(level, words) for level, words in findings if level != "alarm"]
    return [(_printable(title), _printable(text)) for title, text in lines]


def _findings(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Give level and words of each finding; none where they are malformed."""
    try:
        return [(str(finding["level"]), str(finding["words"])) for finding in evaluation["findings"]]
    except (KeyError, TypeError, IndexError):
        return []


def _shortcut(values: Mapping[str, Any] | None) -> str:
    if values is None:
        return "no probe"
    return (
        f"{values['verdict']}: brightness, colour and sharpness alone reach a mean recall of "
        f"{_estimate(values['probe'])}, the model {_estimate(values['model'])}"
    )


def _printable(text: object) -> str:
    """Write a text from anywhere on one line, and without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))


def _estimate(values: Mapping[str, Any]) -> str:
    if values["value"] is None:
        return "unknown"
    interval = "" if values["low"] is None else f" ({values['low']:.1%} to {values['high']:.1%})"
    return f"{values['value']:.1%}{interval}"


def _shortened(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


def _describe_output(path: Path) -> dict[str, Any]:
    try:
        with closing(_connect(path)) as database:
            if not columns(database, "edge_schema"):
                raise Refused(f"{path} is no output of edge-infer; name a bundle or an output")
            schema = Schema.from_json(*database.execute("SELECT schema FROM edge_schema").fetchone())
            schema.insist(columns(database, schema.layer), path)
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
        raise Refused(_explain(path, error)) from error


def _logs(path: Path) -> list[str]:
    """Suffixes of what SQLite keeps beside the file: results not in it yet, or an edit to be undone."""
    return [suffix for suffix in ("-wal", "-journal") if path.with_name(path.name + suffix).exists()]


def _explain(path: Path, error: Exception) -> str:
    if logs := _logs(path):
        return (
            f"{path} cannot be read ({error}), as a run or an edit ended in the middle and left"
            f" {path.name}{logs[0]}; open it in a place that can be written to, with that file beside it"
        )
    return f"{path} is no output that can be read: {error}"


def _connect(path: Path) -> sqlite3.Connection:
    # Where no log lies beside the file, nobody writes: it may then be read from a read-only disk too.
    still = "" if _logs(path) else "&immutable=1"
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
    names = columns(database, table)
    rows = database.execute(f"SELECT * FROM {table}") if names else ()  # noqa: S608
    return [{name: _plain(value) for name, value in zip(names, row, strict=True)} for row in rows]


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
