"""Writes a folder of chips; it appears whole or not at all.

How the files lie in it is said by a `Layout`: our own, which `dataset` reads, or that of another program.
"""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

from edge_infer.errors import OutputError, Refused
from edge_infer_export.chips.pictures import JPEG_QUALITY, SUFFIXES, PictureFormat, write_chip
from edge_infer_export.chips.table import ChipRecord, TableFormat, table_file, write_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edge_infer.grid import Grid
    from edge_infer.manifest import ChipContract

CHIPS_FORMAT = 2
"""Value of `format` in chips.json; any other is refused."""

MARKER = "chips.json"

FACTS_FILE = "facts.json"
"""In the layouts of other programs, what `MARKER` holds in ours."""

_SIGN = ("format", "library", "contract", "classes")
"""Keys by which either file is known as one of ours."""

_MOST_NAMED = 5


class Layout(Protocol):
    """How the files of a folder of chips lie, and what stands in them besides pixels."""

    marker: str
    """The JSON file with the facts, by which such a folder is known as ours, and may be replaced."""

    def names(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Give the patterns of all names at the top of such a folder; another name is somebody else's."""
        ...

    def chip_file(self, record: ChipRecord, suffix: str) -> str:
        """Name a chip's picture, relative to the folder."""
        ...

    def write_beside(
        self, path: Path, chip: NDArray[np.uint8], record: ChipRecord, grid: Grid | None
    ) -> None:
        """Write what stands beside the picture at `path`; `grid` is the pixel space of the chip."""
        ...

    def write_index(
        self, folder: Path, facts: Mapping[str, Any], records: Sequence[ChipRecord], files: Sequence[str]
    ) -> None:
        """Write what stands once in a folder; the chips lie in `files`, in the order of `records`."""
        ...


class OwnLayout:
    """Our own: pictures in one folder, a table, and chips.json."""

    marker = MARKER

    def __init__(self, table: TableFormat = "gpkg") -> None:
        """Choose how the table is stored."""
        self._table: TableFormat = table

    def names(self, classes: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002
        """See `Layout`."""
        # A GeoPackage that is open, or was when its program died, has journals beside it.
        return (MARKER, "chips", "chips.gpkg", "chips.gpkg-*", "chips.parquet")

    def chip_file(self, record: ChipRecord, suffix: str) -> str:
        """See `Layout`."""
        return f"chips/{record.id:09d}{suffix}"

    def write_beside(
        self, path: Path, chip: NDArray[np.uint8], record: ChipRecord, grid: Grid | None
    ) -> None:
        """Write nothing: all is in the table."""

    def write_index(
        self, folder: Path, facts: Mapping[str, Any], records: Sequence[ChipRecord], files: Sequence[str]
    ) -> None:
        """See `Layout`."""
        table = table_file(self._table)
        write_table(folder / table, self._table, records, files)
        text = json.dumps({**facts, "table": table}, indent=1) + "\n"
        (folder / MARKER).write_text(text, encoding="utf-8")


class ChipWriter:
    """Writes a folder of chips; it takes its name only when it is complete.

    Use it as a context manager: `add` the chips, then `finish`. Left without `finish`, nothing stays.
    """

    def __init__(
        self,
        folder: Path,
        *,
        overwrite: bool = False,
        picture: PictureFormat = "png",
        quality: int = JPEG_QUALITY,
        layout: Layout | None = None,
    ) -> None:
        """Prepare the folder.

        Args:
            folder: to be made.
            overwrite: replace an earlier folder of chips.
            picture: how chips are stored; JPEG loses detail.
            quality: of JPEG, 1 to 95.
            layout: how the files lie; None: our own, with a GeoPackage.

        Raises:
            OutputError: the folder exists, without `overwrite` or with other things than chips in it, or it
                cannot be written.

        """
        self._layout: Layout = layout or OwnLayout()
        refuse_folder(
            folder, marker=self._layout.marker, keys=_SIGN, overwrite=overwrite, names=self._layout.names
        )
        if not 1 <= quality <= 95:
            raise Refused(f"the JPEG quality must lie in 1..95, got {quality}")
        self._folder = folder = folder.absolute()
        self._draft = folder.with_name(folder.name + ".partial")
        self._picture: PictureFormat = picture
        self._quality = quality
        self._records: list[tuple[ChipRecord, str]] = []

    def __enter__(self) -> ChipWriter:
        with self._writing():
            shutil.rmtree(self._draft, ignore_errors=True)
            self._draft.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._draft, ignore_errors=True)

    def add(self, chip: NDArray[np.uint8], record: ChipRecord, grid: Grid | None = None) -> None:
        """Write one chip, uint8 (S, S, C); `grid` is its pixel space, for layouts that say where it lies."""
        with self._writing():
            path = self._claim(record, SUFFIXES[self._picture])
            write_chip(path, chip, self._picture, self._quality)
            self._layout.write_beside(path, chip, record, grid)

    def add_file(self, path: Path, record: ChipRecord) -> None:
        """Take over a picture as it is, byte by byte; it must be one that `pictures.read_chip` reads."""
        with self._writing():
            shutil.copyfile(path, self._claim(record, path.suffix.lower()))

    def _claim(self, record: ChipRecord, suffix: str) -> Path:
        file = self._layout.chip_file(record, suffix)
        path = self._draft / file
        path.parent.mkdir(parents=True, exist_ok=True)
        self._records.append((record, file))
        return path

    def finish(
        self,
        contract: ChipContract,
        classes: Sequence[str],
        *,
        statuses: Mapping[str, int],
        options: Mapping[str, Any],
    ) -> None:
        """Write the index and give the folder its name.

        Args:
            contract: what every chip is.
            classes: class names, in the order the model will have.
            statuses: number of footprints by what became of them.
            options: what the chips were made with, for the record.

        """
        self._records.sort(key=lambda entry: entry[0].id)
        records, files = [record for record, _ in self._records], [file for _, file in self._records]
        facts = {
            "format": CHIPS_FORMAT,
            "library": f"edge-infer {version('edge-infer')}",
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "contract": contract.to_json(),
            "classes": list(classes),
            "counts": {name: sum(record.label == name for record in records) for name in classes},
            "statuses": dict(statuses),
            "picture": {"format": self._picture, "jpeg_quality": self._jpeg_quality},
            "options": dict(options),
        }
        with self._writing():
            self._layout.write_index(self._draft, facts, records, files)
            shutil.rmtree(self._folder, ignore_errors=True)
            self._draft.rename(self._folder)

    @property
    def _jpeg_quality(self) -> int | None:
        return self._quality if self._picture == "jpeg" else None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn what a full or read-only disk makes Python, Pillow, Arrow and GDAL raise into one line."""
        from pyogrio.errors import DataSourceError, FeatureError

        try:
            yield
        except (OSError, DataSourceError, FeatureError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
            raise OutputError(
                f"{self._folder} cannot be written: {reason}; nothing stays there, make room or name another "
                "folder"
            ) from error


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the facts of a folder in a layout of other programs."""
    (folder / FACTS_FILE).write_text(json.dumps(dict(facts), indent=1) + "\n", encoding="utf-8")


def refuse_folder(
    folder: Path,
    *,
    marker: str,
    keys: Sequence[str],
    overwrite: bool,
    names: Callable[[Sequence[str]], tuple[str, ...]] | None = None,
) -> None:
    """Raise `OutputError` unless a folder may be made here, or replaced.

    With `overwrite`, a folder is replaced only where it is empty, or known by its content as one of ours: no
    other folder is ever deleted.

    Args:
        folder: that is to be made.
        marker: the JSON file that every such folder holds.
        keys: that hold something in that file. A name alone proves nothing: others have a `train.json`, too,
            and a training run holds an `evaluation.json`.
        overwrite: whether such a folder may be replaced.
        names: patterns of all that may lie in such a folder, by its classes; None: whatever lies in it.

    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError(f"{folder} is a file, wanted a folder; name another one")
    entries = sorted(entry.name for entry in folder.iterdir())
    if not entries:
        return
    facts = _read_object(folder / marker)
    if not all(facts.get(key) for key in keys):
        raise OutputError(f"{folder} holds other things (no {marker} of ours in it); name another folder")
    if not overwrite:
        raise OutputError(f"{folder} exists; name another folder or say --overwrite")
    known = () if names is None else names([str(name) for name in facts["classes"]])
    strange = [name for name in entries if not any(fnmatchcase(name, pattern) for pattern in known)]
    if names is not None and strange:
        raise OutputError(
            f"{folder} holds {', '.join(strange[:_MOST_NAMED])} besides chips, and --overwrite would delete "
            "that; move it, or name another folder"
        )


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty where there is none."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
