"""The output of a run, which is also its checkpoint.

`edge_infer.output` makes it; here its pending rows are filled in, a group at a time, each group in one
durable transaction. Other programs may read the file meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import time
from collections import Counter
from contextlib import closing
from dataclasses import astuple, dataclass, field, fields
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_infer import geopackage
from edge_infer.durable import make_durable
from edge_infer.errors import OutputChanged, OutputError
from edge_infer.schema import STATUSES, UNREASONED, Schema, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

DECIMALS = 6
"""Places kept of probabilities and shares; a network computes no more."""

JSON_COLUMNS = (
    *("versions", "options", "images", "columns", "footprints", "skipped_images", "overridden", "notes"),
    *("counts", "times", "drift"),
)
"""Columns of `edge_runs` that hold JSON text."""


@dataclass(frozen=True, slots=True, eq=False)
class ResultRows:
    """What became of k footprints."""

    fids: NDArray[np.int64]
    """Shape (k,): feature ids in the output."""
    class_index: NDArray[np.int64]
    """Shape (k,): position in the model's classes; -1 unless the status is ok."""
    probabilities: NDArray[np.float32]
    """Shape (k, K); rows whose status is not ok are ignored."""
    status: NDArray[Any]
    """Shape (k,): one of `STATUSES` each, as text."""
    reason: NDArray[np.object_]
    """Shape (k,): why, in a few words; None where the status is ok or pending."""
    valid_fraction: NDArray[np.float32]
    """Shape (k,): share of the chip's pixels that show ground, 0..1; NaN where unknown."""
    covered_fraction: NDArray[np.float32]
    """Shape (k,): share of the footprint itself that lies on valid pixels, 0..1; NaN where unknown."""
    image_index: NDArray[np.int64]
    """Shape (k,): position in the images given to `start_run`; -1 for none."""
    gsd_m: NDArray[np.float64]
    """Shape (k,): ground metres per source pixel; NaN where unknown."""

    def __post_init__(self) -> None:
        """Refuse columns that do not fit together."""
        shape = (len(self.fids),)
        for name in (column.name for column in fields(self) if column.name != "probabilities"):
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {getattr(self, name).shape}")
        unknown = set(self.status.tolist()) - set(STATUSES)
        if unknown:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {sorted(unknown)}")
        ok = self.status == "ok"
        if not np.array_equal(ok, self.class_index >= 0):
            raise ValueError("a row has a class exactly if its status is ok")
        if [reason is None for reason in self.reason] != np.isin(self.status, UNREASONED).tolist():
            raise ValueError("a row has a reason exactly if its status is neither ok nor pending")
        if len(self.probabilities) != len(self.fids):
            raise ValueError(f"probabilities must have {len(self.fids)} rows, got {len(self.probabilities)}")
        if self.class_index.max(initial=-1) >= self.probabilities.shape[1]:
            raise ValueError(f"there are {self.probabilities.shape[1]} classes, got {self.class_index.max()}")
        if len(np.unique(self.fids)) != len(self.fids):
            raise ValueError("a footprint stands in one row, got some in several")
        shares = (self.valid_fraction, self.covered_fraction, self.gsd_m)
        if not np.isfinite(self.probabilities[ok]).all() or any(np.isinf(column).any() for column in shares):
            raise ValueError("probabilities, shares and GSD must be finite, got some that are not")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What `edge_runs` keeps of a run or a resumption, known at its start."""

    model: str
    model_sha256: str
    engine: str
    precision: str
    device: str
    why: str
    """How engine and precision were chosen."""
    versions: Mapping[str, str]
    options: Mapping[str, Any]
    """JSON values."""
    footprints: Mapping[str, Any] = field(default_factory=dict)
    """What identifies their source, JSON values; `layer` and `count` of the output's layer are added."""
    skipped_images: Sequence[tuple[str, str]] = ()
    """(path, reason) of images that could not be used."""
    overridden: Sequence[str] = ()
    """Differences from the run before in spite of which this one goes on."""
    notes: Sequence[str] = ()
    """What to know before the result is trusted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """What `edge_images` keeps of an image."""

    path: str
    crs: str
    gsd_metres: float
    """True ground metres per pixel, the coarser axis, at the centre."""
    date: str | None
    """ISO 8601."""
    size_bytes: int | None = None
    """Of its files; None where they could not be read, as for the next two."""
    modified: str | None = None
    """ISO 8601 in UTC."""
    content: str | None = None
    """Fingerprint of what they hold."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many footprints of the whole output have ..."""

    statuses: Mapping[str, int]
    """... each status, in the order of `STATUSES`; those that do not occur are left out."""
    classes: Mapping[str, int]
    """... each class, in the model's order. What others wrote into the columns comes last in both."""
    images: Mapping[str, int]
    """... been looked for on each image."""


class Results:
    """An output that is open for filling in its pending rows. Use from one thread at a time.

    While it is open, nothing else in this process may open the file through GDAL. GDAL has an SQLite of
    its own, and closing a file drops every lock that the process holds on it: the next program to close
    the file would then remove the log, and with it what was committed. So read the footprints first.
    """

    def __init__(self, path: Path, database: sqlite3.Connection, schema: Schema) -> None:
        self.path = path
        self.schema = schema
        self._database = database
        self._image_paths: tuple[str, ...] = ()
        self._run_id: int | None = None
        self._log_id = self._find_log()
        self._file_id = self._find_file()
        columns = (
            *("class_label", "confidence", "status", "reason"),
            *("valid_fraction", "covered_fraction", "image", "gsd_m"),
        )
        names = [*(schema.columns[name] for name in columns), *schema.probabilities]
        assignments = ", ".join(f"{quoted(name)} = ?" for name in names)
        self._update = (
            f"UPDATE {quoted(schema.layer)} SET {assignments} WHERE {quoted(schema.fid_column)} = ?"  # noqa: S608
        )

    @classmethod
    def open(cls, path: Path, say: Callable[[str], None] | None = None) -> Results:
        """Open an output, complete or not. `OutputError` where it is none, or is not writable.

        Another program that is writing to it is waited for; `say` is told so.
        """
        schema = read_schema(path)
        with geopackage.reporting(path):
            database = geopackage.connect(path)
            try:
                geopackage.wait_for_writers(database, path, say)  # as the change of mode would not
                if database.execute("PRAGMA journal_mode").fetchone() != ("wal",):
                    # The mode stands in one sector of the file. With a journal beside it, a run that is
                    # killed just then leaves a file that nobody can open for reading only.
                    database.execute("PRAGMA journal_mode = MEMORY")
                # Readers go on reading while a commit is written; FULL: a commit outlives a power cut.
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = FULL")
                database.execute("SELECT schema FROM edge_schema").fetchone()  # now the log is there
            except BaseException:
                database.close()
                raise
        return cls(path, database, schema)

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. What was committed stays; `finish` comes before this where nothing failed."""
        self._database.close()

    def pending_rows(self) -> NDArray[np.int64]:
        """Feature ids of the rows still to do, ascending, shape (n,)."""
        fid, status = quoted(self.schema.fid_column), quoted(self.schema.columns["status"])
        with geopackage.reporting(self.path):
            rows = self._database.execute(
                f"SELECT {fid} FROM {quoted(self.schema.layer)} WHERE {status} = 'pending' ORDER BY {fid}"  # noqa: S608
            )
            return np.fromiter((fid for (fid,) in rows), dtype=np.int64)

    def retry(self, *statuses: str) -> None:
        """Make the rows with these statuses pending again.

        read_error, as the disk may be back; outside_imagery, where there are more images now.
        """
        status = quoted(self.schema.columns["status"])
        emptied = ", ".join(
            f"{quoted(self.schema.columns[name])} = NULL"
            for name in ("reason", "image", "gsd_m", "valid_fraction", "covered_fraction")
        )
        with geopackage.reporting(self.path), geopackage.transaction(self._database):
            self._database.execute(
                f"UPDATE {quoted(self.schema.layer)} SET {status} = 'pending', {emptied}"  # noqa: S608
                f" WHERE {status} IN ({', '.join('?' * len(statuses))})",
                statuses,
            )

    def start_run(self, run: RunInfo, images: Sequence[ImageInfo]) -> int:
        """Record that a run begins on these images; returns its id in `edge_runs`."""
        self._image_paths = tuple(image.path for image in images)
        with geopackage.reporting(self.path), geopackage.transaction(self._database):
            self._database.executemany(
                "INSERT INTO edge_images (path, crs, gsd_m, date, size_bytes, modified, content)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (path) DO UPDATE SET crs = excluded.crs, gsd_m = excluded.gsd_m,"
                " date = excluded.date, size_bytes = excluded.size_bytes, modified = excluded.modified,"
                " content = excluded.content",
                [astuple(image) for image in images],
            )
            cursor = self._database.execute(
                "INSERT INTO edge_runs (model, model_sha256, engine, precision, device, why, versions,"
                " options, images, columns, footprints, skipped_images, overridden, notes, started)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    run.model,
                    run.model_sha256,
                    run.engine,
                    run.precision,
                    run.device,
                    run.why,
                    _json(dict(run.versions)),
                    _json(dict(run.options)),
                    _json(self._image_paths),
                    _json(dict(self.schema.columns)),
                    _json({**run.footprints, **_identify_layer(self._database, self.schema)}),
                    _json(list(run.skipped_images)),
                    _json(list(run.overridden)),
                    _json(list(run.notes)),
                    _now(),
                ),
            )
        assert cursor.lastrowid is not None
        self._run_id = cursor.lastrowid
        return self._run_id

    def commit(self, rows: ResultRows) -> None:
        """Write rows in one transaction, on disk when this returns; all of them or none.

        Comes after `start_run`, which names the images. `OutputError` where it fails; `OutputChanged` where
        the file is no longer in its place, or has lost its log or one of the rows.
        """
        if not len(rows.fids):
            return
        values = self._values(rows)
        self._insist_on_file()
        if self._find_log() != self._log_id:
            raise OutputChanged(
                f"{self.path} lost its log to another program, and with it the last results; "
                "close that program before going on"
            )
        with geopackage.reporting(self.path), geopackage.transaction(self._database):
            written = self._database.executemany(self._update, values).rowcount
            if written != len(values):
                raise OutputChanged(
                    f"{self.path} has lost {len(values) - written} of its footprints while the run went on; "
                    "leave them in place, and start again with --overwrite"
                )

    def _insist_on_file(self) -> None:
        """SQLite goes on with the file that it opened, wherever that is now."""
        if self._find_file() != self._file_id:
            raise OutputChanged(
                f"{self.path} was moved, removed or replaced while the run went on; its last results may be"
                " lost: put it back with the -wal file that lay beside it, then --resume goes on"
            )

    def _find_file(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    def _find_log(self) -> int | None:
        """Identify the write-ahead log; None where there is none (some network disks allow none)."""
        try:
            return self.path.with_name(f"{self.path.name}-wal").stat().st_ino
        except FileNotFoundError:
            return None

    def _values(self, rows: ResultRows) -> list[tuple[Any, ...]]:
        """Values of the UPDATE, row by row; NaN becomes NULL."""
        classes = self.schema.classes
        if rows.probabilities.shape[1] != len(classes):
            raise ValueError(f"{len(classes)} probabilities wanted, got {rows.probabilities.shape[1]}")
        if rows.image_index.max(initial=-1) >= len(self._image_paths):
            raise ValueError(f"{len(self._image_paths)} images were named, got {rows.image_index.max()}")
        ok = rows.class_index >= 0
        rounded = np.where(ok[:, None], rows.probabilities.astype(np.float64).round(DECIMALS), np.nan)
        columns = [_nullable(column) for column in rounded.T]
        confidence = _nullable(rounded[np.arange(len(rows.fids)), rows.class_index])
        labels = [classes[index] if index >= 0 else None for index in rows.class_index.tolist()]
        images = [self._image_paths[index] if index >= 0 else None for index in rows.image_index.tolist()]
        valid = _nullable(rows.valid_fraction.astype(np.float64).round(DECIMALS))
        covered = _nullable(rows.covered_fraction.astype(np.float64).round(DECIMALS))
        gsd = _nullable(rows.gsd_m)
        return list(
            zip(
                labels,
                confidence,
                rows.status.tolist(),
                rows.reason.tolist(),
                valid,
                covered,
                images,
                gsd,
                *columns,
                rows.fids.tolist(),
                strict=True,
            )
        )

    def counts(self) -> Counts:
        """Count the whole output in one scan."""
        with geopackage.reporting(self.path):
            return _count(self._database, self.schema)

    def end_run(self, times: Mapping[str, float], drift: Mapping[str, Any] | None = None) -> Counts:
        """Record when the run ended, its `times` in seconds by stage, and the counts, which it returns.

        `drift` says how far the imagery lies from what the model was calibrated on, JSON values.
        """
        self._insist_on_file()
        counts = self.counts()
        now = _now()
        with geopackage.reporting(self.path), geopackage.transaction(self._database):
            self._database.execute(
                "UPDATE edge_runs SET ended = ?, counts = ?, times = ?, drift = ? WHERE run_id = ?",
                (
                    now,
                    _json({"statuses": counts.statuses, "classes": counts.classes}),
                    _json(dict(times)),
                    None if drift is None else _json(dict(drift)),
                    self._run_id,
                ),
            )
            self._database.execute("UPDATE edge_images SET footprints = 0")
            self._database.executemany(
                "UPDATE edge_images SET footprints = ? WHERE path = ?",
                [(number, path) for path, number in counts.images.items()],
            )
            self._database.execute(
                "UPDATE gpkg_contents SET last_change = ? WHERE table_name = ?", (now, self.schema.layer)
            )
        return counts

    def finish(self, wait_seconds: float = 5.0) -> bool:
        """Make one plain file of the output again, without `-wal` and `-shm`, and close it.

        That needs the file for itself for a moment. False where another program kept it open for
        `wait_seconds`: the results are safe, but the two files stay until that program lets go.
        """
        deadline = time.monotonic() + wait_seconds
        with geopackage.reporting(self.path):
            self._database.execute("PRAGMA busy_timeout = 100")
            alone = self._leave_wal()
            while not alone and time.monotonic() < deadline:
                time.sleep(0.1)
                alone = self._leave_wal()
            self._database.close()
            make_durable(self.path)
        return alone

    def _leave_wal(self) -> bool:
        try:
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            # As in `open`; once closed, the file is one with an ordinary journal.
            (mode,) = self._database.execute("PRAGMA journal_mode = MEMORY").fetchone()
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                return False
            raise
        return bool(mode == "memory")


def read_schema(path: Path) -> Schema:
    """Say how things are called in an output; the file is closed again. `OutputError` where it is none.

    A resumed run needs this to read the footprints back before it opens the results.
    """
    if not path.is_file():
        raise OutputError(f"there is no output {path} to go on with; run without --resume")
    with geopackage.reporting(path), closing(geopackage.connect(path)) as database:
        try:
            row = database.execute("SELECT schema FROM edge_schema").fetchone()
        except sqlite3.DatabaseError as error:
            if not any(word in str(error) for word in ("no such table", "not a database", "malformed")):
                raise
            raise OutputError(
                f"{path} is no output of edge-infer ({error}); name one, or use --overwrite"
            ) from error
        if row is None:
            raise OutputError(f"{path} does not say what its columns are; start again with --overwrite")
        schema = Schema.from_json(row[0])
        schema.insist(geopackage.columns(database, schema.layer), path)
    return schema


def read_last_run(path: Path) -> dict[str, Any] | None:
    """Return the newest row of an output's `edge_runs`, JSON decoded; None before the first run.

    A resumed run compares `model_sha256`, `options` and `images` (a list of paths) with its own.
    """
    with geopackage.reporting(path), closing(geopackage.connect(path)) as database:
        cursor = database.execute("SELECT * FROM edge_runs ORDER BY run_id DESC LIMIT 1")
        row = cursor.fetchone()
        names = [name for name, *_ in cursor.description]
    if row is None:
        return None
    run = dict(zip(names, row, strict=True))
    try:
        return run | {name: json.loads(run[name]) for name in JSON_COLUMNS if run[name] is not None}
    except (KeyError, TypeError, ValueError) as error:
        raise edited(path, error) from error


def edited(path: Path, error: Exception) -> OutputError:
    """Say that somebody changed what an output says of its runs, found by `error`."""
    return OutputError(f"{path}: its record of runs was edited ({error!r}); start again with --overwrite")


def read_finished(path: Path) -> Counts | None:
    """Count an output in which nothing is left to do; None where something is. Nothing is written.

    Left to do are rows that are pending or could not be read, a run without an end, and a file that SQLite
    still keeps a log for, which `Results.finish` makes one.
    """
    last = read_last_run(path)
    if last is None or last["ended"] is None:
        return None
    schema = read_schema(path)
    with geopackage.reporting(path), closing(geopackage.connect(path)) as database:
        if database.execute("PRAGMA journal_mode").fetchone() == ("wal",):
            return None
        counts = _count(database, schema)
    return None if counts.statuses.keys() & {"pending", "read_error"} else counts


def _count(database: sqlite3.Connection, schema: Schema) -> Counts:
    names = ", ".join(quoted(schema.columns[name]) for name in ("status", "class_label", "image"))
    groups = database.execute(
        f"SELECT {names}, COUNT(*) FROM {quoted(schema.layer)} GROUP BY 1, 2, 3"  # noqa: S608
    ).fetchall()
    statuses: Counter[str] = Counter(dict.fromkeys(STATUSES, 0))
    classes: Counter[str | None] = Counter(dict.fromkeys(schema.classes, 0))
    images: Counter[str | None] = Counter()
    for status, class_label, image, number in groups:
        statuses[status] += number
        classes[class_label] += number
        images[image] += number
    return Counts(
        statuses={name: number for name, number in statuses.items() if number},
        classes={name: number for name, number in classes.items() if name is not None},
        images={name: number for name, number in images.items() if name is not None},
    )


def read_images(path: Path) -> dict[str, ImageInfo]:
    """Return what an output's `edge_images` says, by path."""
    with geopackage.reporting(path), closing(geopackage.connect(path)) as database:
        rows = database.execute(
            "SELECT path, crs, gsd_m, date, size_bytes, modified, content FROM edge_images"
        ).fetchall()
    names = [column.name for column in fields(ImageInfo)]
    return {row[0]: ImageInfo(**dict(zip(names, row, strict=True))) for row in rows}


def read_layer(path: Path) -> dict[str, Any]:
    """Identify an output's footprints as `edge_runs` has them under `footprints`.

    `layer` is a hash of feature ids and geometries, `count` their number.
    """
    schema = read_schema(path)
    with geopackage.reporting(path), closing(geopackage.connect(path)) as database:
        return _identify_layer(database, schema)


def read_judged_images(path: Path) -> set[str]:
    """Paths of the images on which rows of an output stand that a resumed run would keep."""
    schema = read_schema(path)
    image, status = (quoted(schema.columns[name]) for name in ("image", "status"))
    with geopackage.reporting(path), closing(geopackage.connect(path)) as database:
        rows = database.execute(
            f"SELECT DISTINCT {image} FROM {quoted(schema.layer)}"  # noqa: S608
            f" WHERE {status} NOT IN ('pending', 'read_error') AND {image} IS NOT NULL"
        )
        return {name for (name,) in rows}


def _identify_layer(database: sqlite3.Connection, schema: Schema) -> dict[str, Any]:
    digest, count = hashlib.sha256(), 0
    fid, geometry = quoted(schema.fid_column), quoted(schema.geometry_column)
    for number, blob in database.execute(
        f"SELECT {fid}, {geometry} FROM {quoted(schema.layer)} ORDER BY {fid}"  # noqa: S608
    ):
        digest.update(b"%d:%d:" % (number, len(blob or b"")))
        digest.update(blob or b"")
        count += 1
    return {"layer": digest.hexdigest(), "count": count}


def _nullable(values: NDArray[np.float64]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def _json(value: object) -> str:
    return json.dumps(value)  # ASCII: paths may hold bytes that are no text


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
