"""Writes a folder of chips; it appears whole or not at all.

How the files lie in it is said by a `Layout`: our own, which `dataset` reads, or that of another program.
"""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

from edge_infer.errors import OutputError, Refused
from edge_infer_export.chips.pictures import JPEG_QUALITY, SUFFIXES, PictureFormat, write_chip
from edge_infer_export.chips.table import ChipRecord, TableFormat, table_file, write_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edge_infer.grid import Grid
    from edge_infer.manifest import ChipContract

CHIPS_FORMAT = 2
"""Value of `format` in chips.json; any other is refused."""

MARKER = "chips.json"


class Layout(Protocol):
    """How the files of a folder of chips lie, and what stands in them besides pixels."""

    marker: str
    """The file by which such a folder is known, and may be replaced."""

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
        refuse_folder(folder, marker=self._layout.marker, overwrite=overwrite)
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


def refuse_folder(folder: Path, *, marker: str, overwrite: bool) -> None:
    """Raise `OutputError` unless a folder may be made here, or replaced.

    With `overwrite`, a folder is replaced only where it holds the file `marker` or nothing at all: no other
    folder is ever deleted.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError(f"{folder} is a file, wanted a folder; name another one")
    if not any(folder.iterdir()):
        return
    if not (folder / marker).is_file():
        raise OutputError(f"{folder} holds other things (no {marker} in it); name another folder")
    if not overwrite:
        raise OutputError(f"{folder} exists; name another folder or say --overwrite")
