"""The output of a run, which is also its checkpoint.

`edge_infer.output` makes it; here its pending rows are filled in, a group at a time, each group in one
durable transaction. Other programs may read the file meanwhile.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_infer import geopackage
from edge_infer.durable import make_durable
from edge_infer.errors import OutputChanged, OutputError
from edge_infer.schema import STATUSES, Schema, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

DECIMALS = 6
"""Places kept of probabilities and shares; a network computes no more."""

JSON_COLUMNS = ("versions", "options", "images", "columns", "counts", "times")
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
    valid_fraction: NDArray[np.float32]
    """Shape (k,): share of the chip's pixels that show ground, 0..1; NaN where unknown."""
    image_index: NDArray[np.int64]
    """Shape (k,): position in the images given to `start_run`; -1 for none."""
    gsd_m: NDArray[np.float64]
    """Shape (k,): ground metres per source pixel; NaN where unknown."""

    def __post_init__(self) -> None:
        """Refuse columns that do not fit together."""
        shape = (len(self.fids),)
        for name in ("fids", "class_index", "status", "valid_fraction", "image_index", "gsd_m"):
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {getattr(self, name).shape}")
        unknown = set(self.status.tolist()) - set(STATUSES)
        if unknown:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {sorted(unknown)}")
        ok = self.status == "ok"
        if not np.array_equal(ok, self.class_index >= 0):
            raise ValueError("a row has a class exactly if its status is ok")
        if len(self.probabilities) != len(self.fids):
            raise ValueError(f"probabilities must have {len(self.fids)} rows, got {len(self.probabilities)}")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """What `edge_images` keeps of an image."""

    path: str
    crs: str
    gsd_metres: float
    """True ground metres per pixel, the coarser axis, at the centre."""
    date: str | None
    """ISO 8601."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many footprints of the whole output have ..."""

    statuses: Mapping[str, int]
    """... each status, in the order of `STATUSES`; those that do not occur are left out."""
    classes: Mapping[str, int]
    """... each class, in the model's order."""
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
        columns = ("class_label", "confidence", "status", "valid_fraction", "image", "gsd_m")
        names = [*(schema.columns[name] for name in columns), *schema.probabilities]
        assignments = ", ".join(f"{quoted(name)} = ?" for name in names)
        self._update = (
            f"UPDATE {quoted(schema.layer)} SET {assignments} WHERE {quoted(schema.fid_column)} = ?"  # noqa: S608
        )

    @classmethod
    def open(cls, path: Path) -> Results:
        """Open an output, complete or not. `OutputError` where it is none, or is not writable."""
        schema = read_schema(path)
        with geopackage.reporting(path):
            database = geopackage.connect(path)
            try:
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

    def retry_unread(self) -> None:
        """Make rows pending again whose image could not be read: the disk may be back."""
        status = quoted(self.schema.columns["status"])
        with geopackage.reporting(self.path), geopackage.transaction(self._database):
            self._database.execute(
                f"UPDATE {quoted(self.schema.layer)} SET {status} = 'pending' WHERE {status} = 'read_error'"  # noqa: S608
            )

    def start_run(self, run: RunInfo, images: Sequence[ImageInfo]) -> int:
        """Record that a run begins on these images; returns its id in `edge_runs`."""
        self._image_paths = tuple(image.path for image in images)
        with geopackage.reporting(self.path), geopackage.transaction(self._database):
            self._database.executemany(
                "INSERT INTO edge_images (path, crs, gsd_m, date) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (path) DO UPDATE SET crs = excluded.crs, gsd_m = excluded.gsd_m,"
                " date = excluded.date",
                [(image.path, image.crs, image.gsd_metres, image.date) for image in images],
            )
            cursor = self._database.execute(
                "INSERT INTO edge_runs (model, model_sha256, engine, precision, device, why, versions,"
                " options, images, columns, started) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
                    _now(),
                ),
            )
        assert cursor.lastrowid is not None
        self._run_id = cursor.lastrowid
        return self._run_id

    def commit(self, rows: ResultRows) -> None:
        """Write rows in one transaction, on disk when this returns; all of them or none.

        Comes after `start_run`, which names the images. `OutputError` where it fails, or where the file
        no longer has one of the rows.
        """
        if not len(rows.fids):
            return
        values = self._values(rows)
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
        ok = rows.class_index >= 0
        rounded = np.where(ok[:, None], rows.probabilities.astype(np.float64).round(DECIMALS), np.nan)
        columns = [_nullable(column) for column in rounded.T]
        confidence = _nullable(rounded[np.arange(len(rows.fids)), rows.class_index])
        labels = [classes[index] if index >= 0 else None for index in rows.class_index.tolist()]
        images = [self._image_paths[index] if index >= 0 else None for index in rows.image_index.tolist()]
        valid = _nullable(rows.valid_fraction.astype(np.float64).round(DECIMALS))
        gsd = _nullable(rows.gsd_m)
        return list(
            zip(
                labels,
                confidence,
                rows.status.tolist(),
                valid,
                images,
                gsd,
                *columns,
                rows.fids.tolist(),
                strict=True,
            )
        )

    def counts(self) -> Counts:
        """Count the whole output in one scan."""
        names = ", ".join(quoted(self.schema.columns[name]) for name in ("status", "class_label", "image"))
        with geopackage.reporting(self.path):
            groups = self._database.execute(
                f"SELECT {names}, COUNT(*) FROM {quoted(self.schema.layer)} GROUP BY 1, 2, 3"  # noqa: S608
            ).fetchall()
        statuses: Counter[str] = Counter()
        classes: Counter[str | None] = Counter()
        images: Counter[str | None] = Counter()
        for status, class_label, image, number in groups:
            statuses[status] += number
            classes[class_label] += number
            images[image] += number
        return Counts(
            statuses={name: statuses[name] for name in STATUSES if statuses[name]},
            classes={name: classes[name] for name in self.schema.classes},
            images={name: number for name, number in images.items() if name is not None},
        )

    def end_run(self, times: Mapping[str, float]) -> Counts:
        """Record when the run ended, its `times` in seconds by stage, and the counts, which it returns."""
        counts = self.counts()
        now = _now()
        with geopackage.reporting(self.path), geopackage.transaction(self._database):
            self._database.execute(
                "UPDATE edge_runs SET ended = ?, counts = ?, times = ? WHERE run_id = ?",
                (
                    now,
                    _json({"statuses": counts.statuses, "classes": counts.classes}),
                    _json(dict(times)),
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
            (mode,) = self._database.execute("PRAGMA journal_mode = DELETE").fetchone()
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                return False
            raise
        return bool(mode == "delete")


def read_schema(path: Path) -> Schema:
    """Say how things are called in an output; the file is closed again. `OutputError` where it is none.

    A resumed run needs this to read the footprints back before it opens the results.
    """
    if not path.is_file():
        raise OutputError(f"there is no output {path} to go on with; run without --resume")
    with geopackage.reporting(path), closing(geopackage.connect(path)) as database:
        try:
            row = database.execute("SELECT schema FROM edge_schema").fetchone()
        except sqlite3.Error as error:
            if "locked" in str(error):
                raise
            raise OutputError(
                f"{path} is no output of edge-infer ({error}); name one, or use --overwrite"
            ) from error
    if row is None:
        raise OutputError(f"{path} does not say what its columns are; start again with --overwrite")
    return Schema.from_json(row[0])


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
    return run | {name: json.loads(run[name]) for name in JSON_COLUMNS if run[name] is not None}


def _nullable(values: NDArray[np.float64]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def _json(value: object) -> str:
    return json.dumps(value)  # ASCII: paths may hold bytes that are no text


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
