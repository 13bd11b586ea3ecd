"""Plans kept between runs, and the rules by which one may be used again.

A plan is native code for one GPU and one TensorRT. Each lies in the cache as two files of one name:

    town-int8-b64-sm87-3f9c21a07b44.plan   as TensorRT made it
    town-int8-b64-sm87-3f9c21a07b44.json   its record: the whole key, SHA-256 of the plan, how it was built

A plan is loaded only if its record's key equals the key that is wanted in every field and its content has the
record's digest; both are checked before TensorRT sees a byte. Files are replaced whole, so a build that is
killed leaves what was there before. One process builds at a time: tactics that are timed while another build
uses the GPU are the wrong ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from edge_infer.durable import replace_durably
from edge_infer.engine import Precision
from edge_infer.engine.tensorrt.layers import LayerReport
from edge_infer.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_infer.device.gpu import GpuFacts

REVISION = 2
"""Of what the builder does; a change that makes other plans raises it, and plans are built anew."""

CACHE_VARIABLE = "EDGE_INFER_CACHE"
"""Environment variable that names the folder."""

LOCK_NAME = ".building"
MAX_RECORD_BYTES = 1 << 20
_WAIT_SECONDS = 0.2

_WORDS = {
    "model_sha256": "the model",
    "tensorrt": "TensorRT",
    "gpu": "the GPU",
    "compute_capability": "the compute capability",
    "multiprocessors": "the number of multiprocessors",
    "driver": "the driver's CUDA",
    "precision": "the precision",
    "batch": "the batch",
    "revision": "edge-infer's builder",
}


class PlanRefusedError(EngineError):
    """TensorRT, or what it is to be used for, does not take this plan; another build of it may do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanKey:
    """Everything that a plan depends on."""

    model_sha256: str
    """Of the ONNX member it is made of."""
    tensorrt: str
    """As in 10.3.0."""
    gpu: str
    """Its name."""
    compute_capability: str
    """As in 8.7."""
    multiprocessors: int
    """Of the GPU."""
    driver: str
    """Newest CUDA version that the driver runs. On a Jetson it changes with JetPack."""
    precision: Precision
    batch: int
    """Largest batch; the least is 1."""
    revision: int = REVISION

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that stand for all fields."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def on_machine(self, gpu: GpuFacts, tensorrt: str) -> PlanKey:
        """Give the key that the same model, precision and batch have on a machine with this edge-infer."""
        return replace(
            self,
            tensorrt=tensorrt,
            gpu=gpu.name,
            compute_capability=".".join(map(str, gpu.compute_capability)),
            multiprocessors=gpu.multiprocessors,
            driver=gpu.driver,
            revision=REVISION,
        )

    def differences(self, before: PlanKey) -> list[str]:
        """Say in words where another key differs: TensorRT was 10.3.0, is 10.16.1."""
        told = []
        for field in fields(self):
            old, new = getattr(before, field.name), getattr(self, field.name)
            if old != new:
                shown = (str(value)[:12] for value in (old, new)) if "sha256" in field.name else (old, new)
                told.append("{} was {}, is {}".format(_WORDS[field.name], *shown))
        return told

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PlanKey:
        """Read plain values; `KeyError`, `TypeError` or `ValueError` where a field is absent or malformed."""
        numbers = ("multiprocessors", "batch", "revision")
        kinds = {field.name: int if field.name in numbers else str for field in fields(cls)}
        for name, kind in kinds.items():
            if type(values[name]) is not kind:
                raise TypeError(f"{name} is {values[name]!r}")
        if values["precision"] not in get_args(Precision):
            raise ValueError(f"precision is {values['precision']!r}")
        return cls(**{name: values[name] for name in kinds})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """What is kept beside a plan."""

    key: PlanKey
    model: str
    """The model's name, for people."""
    plan_sha256: str
    plan_bytes: int
    build_seconds: float
    created: str
    """UTC, as in 2026-11-22T10:00:00Z."""
    layers: LayerReport | None
    """None where TensorRT did not tell."""
    warnings: tuple[str, ...] = ()
    """What TensorRT warned of while it built."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        layers = None if self.layers is None else self.layers.to_json()
        return {**asdict(self), "layers": layers}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PlanRecord:
        """Read what `to_json` gave; `KeyError`, `TypeError` or `ValueError` where it is none."""
        layers = values["layers"]
        return cls(
            key=PlanKey.from_json(values["key"]),
            model=str(values["model"]),
            plan_sha256=str(values["plan_sha256"]),
            plan_bytes=int(values["plan_bytes"]),
            build_seconds=float(values["build_seconds"]),
            created=str(values["created"]),
            layers=None if layers is None else LayerReport.from_json(layers),
            warnings=tuple(str(text) for text in values["warnings"]),
        )


@dataclass(frozen=True, slots=True)
class Kept:
    """One entry of the cache, as `edge-infer build --list` shows it."""

    path: Path
    """Of the plan."""
    record: PlanRecord | None
    """None where it cannot be read."""
    trouble: str | None
    """Why the entry cannot be used on any machine; None where it can."""


def cache_folder(asked: Path | None) -> Path:
    """Name the folder of the cache: as asked, else by EDGE_INFER_CACHE, else in the user's cache folder."""
    if asked is not None:
        return asked
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME")
    # The specification has relative paths ignored.
    base = Path(home) if home and Path(home).is_absolute() else Path.home() / ".cache"
    return base / "edge-infer" / "engines"


class PlanCache:
    """The plans in one folder."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, which need not exist yet."""
        self.folder = folder

    def prepare(self) -> None:
        """Make the folder, and see that only its owner can put plans there.

        `OSError` where that cannot be.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if distrust := self._distrust():
            raise PermissionError(0, distrust)
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise PermissionError(0, "it may not be written")

    def find(self, key: PlanKey, model: str) -> tuple[bytes, PlanRecord] | str:
        """Give the plan of a key with its record, or say why there is none to use.

        `model` is the model's name, by which a plan of an earlier version of it is recognised.
        """
        if distrust := self._distrust():
            return distrust
        for entry in self.entries():
            if entry.record is not None and entry.record.key == key:
                try:
                    content = entry.path.read_bytes()
                except OSError as error:
                    return f"{entry.path.name} cannot be read ({error.strerror})"
                if hashlib.sha256(content).hexdigest() != entry.record.plan_sha256:
                    return f"{entry.path.name} is not the plan that its record was written for"
                return content, entry.record
            if entry.record is None and entry.path.stem.endswith(key.digest):
                return f"{entry.path.name}: {entry.trouble}"
        return self._nearest(key, model)

    def last_seconds(self, key: PlanKey) -> float | None:
        """Seconds of the newest build for the same GPU and precision, whatever the model and batch."""
        alike = [
            entry.record
            for entry in self.entries()
            if entry.record is not None
            and (entry.record.key.gpu, entry.record.key.precision) == (key.gpu, key.precision)
        ]
        return max(alike, key=lambda record: record.created).build_seconds if alike else None

    def keep(self, content: bytes, record: PlanRecord) -> Path:
        """Store a plan; its path. `OSError` where it cannot be written: then nothing is half-written.

        Decisions that were measured with the plan that it takes the place of go.
        """
        path, digest = self.path_of(record), record.key.digest
        for stale in {*self.folder.glob(f"*-{digest}.*"), *self.folder.glob(f"choice-*{digest}*.json")}:
            if stale.stem != path.stem:  # of the same content under another name, or a decision
                stale.unlink(missing_ok=True)
        # A plan beside the record of an earlier one is refused by its digest, so this order is safe.
        replace_durably(path, content)
        replace_durably(path.with_suffix(".json"), _to_json(record.to_json()))
        return path

    def path_of(self, record: PlanRecord) -> Path:
        """Name the file of a plan."""
        key = record.key
        name = re.sub(r"[^0-9A-Za-z_.-]+", "-", record.model).strip("-.")[:60] or "model"
        capability = key.compute_capability.replace(".", "")
        return self.folder / f"{name}-{key.precision}-b{key.batch}-sm{capability}-{key.digest}.plan"

    def entries(self) -> list[Kept]:
        """Everything in the cache, by name; plans are not read, only their records."""
        try:
            names = sorted({path.stem for path in self.folder.glob("*.plan")} | self._records())
        except OSError:
            return []
        return [self._entry(self.folder / f"{name}.plan") for name in names]

    def remove(self, entry: Kept) -> int:
        """Remove an entry; the bytes that it held."""
        held = 0
        for path in (entry.path.with_suffix(".json"), entry.path):
            if path.exists():
                held += path.stat().st_size
                path.unlink(missing_ok=True)
        return held

    @contextmanager
    def building(self, say: Callable[[str], None]) -> Iterator[None]:
        """Be the only process that builds into this folder while entered; waits for another, and says so.

        `OSError` where the folder cannot be locked.
        """
        import fcntl  # none on Windows, where there is no TensorRT of ours either

        lock = os.open(self.folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            told = False
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not told:
                        say(f"another process is building into {self.folder}; waiting for it")
                        told = True
                    time.sleep(_WAIT_SECONDS)
            self._sweep()
            yield
        finally:
            os.close(lock)  # and with it the lock; the file stays, as the next one's

    def _distrust(self) -> str | None:
        """Say why someone else may have put plans there; None where only this user and root can."""
        try:
            facts = self.folder.stat()
        except OSError:
            return None
        if facts.st_uid not in (os.geteuid(), 0):
            return f"it belongs to the user {facts.st_uid}, and a plan is native code: chown it"
        if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return "others may write there, and a plan is native code: chmod go-w"
        return None

    def _sweep(self) -> None:
        """Remove what a killed build left; nobody else writes while the lock is held."""
        for partial in self.folder.glob(".*.partial"):
            partial.unlink(missing_ok=True)

    def _records(self) -> set[str]:
        """Names of records, those of stored decisions left out."""
        return {path.stem for path in self.folder.glob("*.json") if not path.name.startswith("choice-")}

    def _entry(self, path: Path) -> Kept:
        beside = path.with_suffix(".json")
        try:
            with beside.open("rb") as stream:
                text = stream.read(MAX_RECORD_BYTES)  # what is longer is cut off, and then no JSON
            record = PlanRecord.from_json(cast("dict[str, Any]", json.loads(text)))
        except FileNotFoundError:
            return Kept(path, None, "it has no record")
        except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            return Kept(path, None, f"its record is damaged ({error})")
        if not path.exists():
            return Kept(path, record, "the plan itself is missing")
        return Kept(path, record, None)

    def _nearest(self, key: PlanKey, model: str) -> str:
        """Say how the most similar plan of the same model and precision differs."""
        alike = [
            (len(key.differences(entry.record.key)), entry.record)
            for entry in self.entries()
            if entry.record is not None
            and entry.record.key.precision == key.precision
            and (entry.record.model == model or entry.record.key.model_sha256 == key.model_sha256)
        ]
        if not alike:
            return "there is no plan of this model yet"
        fewest = min(count for count, _ in alike)
        newest = max(
            (record for count, record in alike if count == fewest), key=lambda record: record.created
        )
        return "; ".join(key.differences(newest.key))


def now() -> str:
    """Time in UTC, as records have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _to_json(values: object) -> bytes:
    return json.dumps(values, indent=1).encode() + b"\n"
