"""Labelled chips as a table, with pixels that are read from disk as they are wanted.

A folder of chips holds

    chips.json            contract, classes, options and counts
    chips.gpkg            one row a chip: its file, class and origin (see `chiptable`); or chips.parquet
    chips/000000012.png   the pixels; or .tif, .jpg (see `pictures`)
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_infer.errors import Refused
from edge_infer.manifest import ChipContract
from edge_infer_export.chips.pictures import UnreadableChip, read_chip, read_header, stored_size
from edge_infer_export.chips.table import ChipRecord, read_table
from edge_infer_export.chips.writer import CHIPS_FORMAT, MARKER, ChipWriter, refuse_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edge_infer_export.chips.pictures import Header

__all__ = ["ChipRecord", "ChipWriter", "Chips", "read_chips", "refuse_folder"]

_HEADER_THREADS = 4
_MOST_NAMED = 5
"""A message names at most so many chips."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Chips:
    """Labelled chips; all arrays have one entry a chip, the pixels stay on disk until `read`."""

    contract: ChipContract
    classes: tuple[str, ...]
    """The K class names."""
    file: NDArray[np.object_]
    """object (str), (n,): path of each chip's picture."""
    targets: NDArray[np.int64]
    """int64, (n,): index into `classes`."""
    longitude: NDArray[np.float64]
    """float64, (n,): of the window's centre, degrees; NaN where nobody knows."""
    latitude: NDArray[np.float64]
    """float64, (n,)."""
    ground_metres: NDArray[np.float64]
    """float64, (n,): side of the window in true ground metres."""
    gsd_metres: NDArray[np.float64]
    """float64, (n,): true ground metres a pixel of the image, along the coarser axis."""
    bearing: NDArray[np.float64]
    """float64, (n,): what is up in the chip, degrees clockwise from true north; NaN where nobody knows."""
    event: NDArray[np.object_]
    """object (str), (n,): name of the disaster; empty where none was given."""
    place: NDArray[np.object_]
    """object (str), (n,): name of the area; empty where none was given."""
    image: NDArray[np.object_]
    """object (str), (n,): the image that the chip shows a part of."""
    source_fid: NDArray[np.int64]
    """int64, (n,): feature id of the footprint."""
    unreadable: tuple[tuple[str, str], ...] = ()
    """(file, reason) of chips that cannot be read. They are in none of the arrays, and must be told of."""

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together."""
        count = len(self.file)
        for name in _COLUMNS:
            if getattr(self, name).shape != (count,):
                raise Refused(f"{name} has shape {getattr(self, name).shape}, wanted ({count},)")
        # False for NaN, too.
        if not ((self.ground_metres > 0) & (self.ground_metres < np.inf)).all():
            raise Refused("ground_metres must be positive numbers of metres")
        if count and not 0 <= self.targets.min() <= self.targets.max() < len(self.classes):
            raise Refused(
                f"targets lie in {self.targets.min()}..{self.targets.max()} for {len(self.classes)} classes"
            )

    def __len__(self) -> int:
        return len(self.file)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Decode the chips at `rows`, int64 (k,): uint8, (k, S, S, C). May be called from any thread.

        Raises:
            Refused: the picture of one of them cannot be decoded; the message names it.

        """
        shape = self.contract.chip_shape
        pixels = np.empty((len(rows), *shape), np.uint8)
        for place, row in enumerate(rows):
            pixels[place] = read_chip(Path(self.file[row]), shape)
        return pixels

    def take(self, rows: NDArray[np.int64]) -> Chips:
        """Give the chips at `rows`, in that order."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _COLUMNS})

    def counts(self, rows: NDArray[np.int64] | None = None) -> dict[str, int]:
        """Chips of each class, of all or of the rows given."""
        targets = self.targets if rows is None else self.targets[rows]
        numbers = np.bincount(targets, minlength=len(self.classes))
        return dict(zip(self.classes, numbers.tolist(), strict=True))

    def warnings(self) -> tuple[str, ...]:
        """Give a line for each thing that people must be told of before they trust these chips."""
        if not self.unreadable:
            return ()
        total = len(self) + len(self.unreadable)
        return (f"{len(self.unreadable):,} of {total:,} chips are left out: {_named(self.unreadable)}",)


_COLUMNS = tuple(
    field.name for field in fields(Chips) if field.name not in {"contract", "classes", "unreadable"}
)


def read_chips(folders: Sequence[str | Path]) -> Chips:
    """Open one or more folders of chips as one set.

    Only the headers of the pictures are read. The folders must have one contract (but for the coarsest GSD,
    of which the coarser counts) and the same classes; their order is that of the first folder. Pictures that
    cannot be read are listed in `unreadable`.

    Raises:
        Refused: a folder is incomplete or named twice, no chip of it can be read, its pictures are of several
            sizes, or the folders do not fit together.

    """
    twice = [f for f, count in Counter(Path(folder).resolve() for folder in folders).items() if count > 1]
    if twice:
        raise Refused(f"{twice[0]} is named twice as a folder of chips; name it once")
    sets = [_read_folder(Path(folder)) for folder in folders]
    if not sets:
        raise Refused("no folder of chips was named; make one with `edge-infer chips`")
    first = sets[0]
    coarsest = max(chips.contract.coarsest_gsd_metres for chips in sets)
    contract = replace(first.contract, coarsest_gsd_metres=coarsest)
    aligned = []
    for folder, chips in zip(folders, sets, strict=True):
        if replace(chips.contract, coarsest_gsd_metres=coarsest) != contract:
            raise Refused(
                f"{folder} and {folders[0]} hold chips of different contracts "
                f"({_difference(chips.contract, contract)}); cut them with the same options"
            )
        if sorted(chips.classes) != sorted(first.classes):
            raise Refused(
                f"{folder} has the classes {', '.join(chips.classes)}, {folders[0]} has "
                f"{', '.join(first.classes)}; cut them with the same --classes"
            )
        order = np.array([first.classes.index(name) for name in chips.classes], np.int64)
        aligned.append(replace(chips, classes=first.classes, targets=order[chips.targets]))
    columns = {name: np.concatenate([getattr(chips, name) for chips in aligned]) for name in _COLUMNS}
    unreadable = tuple(entry for chips in sets for entry in chips.unreadable)
    return Chips(contract=contract, classes=first.classes, unreadable=unreadable, **columns)


def _difference(one: ChipContract, other: ChipContract) -> str:
    a, b = one.to_json(), other.to_json()
    return ", ".join(
        f"{name} {a[name]} against {b[name]}"
        for name in a
        if a[name] != b[name] and name != "coarsest_gsd_metres"
    )


def _read_folder(folder: Path) -> Chips:
    facts_path = folder / MARKER
    try:
        facts = json.loads(facts_path.read_text(encoding="utf-8"))
        if facts["format"] != CHIPS_FORMAT:
            raise Refused(
                f"{facts_path}: chips format {facts['format']!r}, wanted {CHIPS_FORMAT}; cut the chips again"
            )
        contract = ChipContract.from_json(facts["contract"])
        classes = tuple(str(name) for name in facts["classes"])
        table = folder / Path(facts["table"]).name
    except OSError as error:
        raise Refused(
            f"{facts_path} cannot be read ({error.strerror}); wanted a folder that `edge-infer chips` made; "
            f"chips of other programs are taken over by: edge-infer import-chips {folder} --out FOLDER"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(f"{facts_path} is incomplete or malformed: {error!r}; cut the chips again") from error
    index = read_table(table)
    unknown = Counter(name for name in index["class"].tolist() if name not in classes)
    if unknown:
        listed = ", ".join(f"{name} ({number:,})" for name, number in sorted(unknown.items()))
        raise Refused(f"{table} holds classes that {MARKER} does not name: {listed}; cut the chips again")
    numbers = {name: number for number, name in enumerate(classes)}
    chips = Chips(
        contract=contract,
        classes=classes,
        file=np.array([str(folder / "chips" / Path(name).name) for name in index["chip"]], object),
        targets=np.array([numbers[name] for name in index["class"]], np.int64),
        longitude=index["x"],
        latitude=index["y"],
        ground_metres=index["ground_m"],
        gsd_metres=index["gsd_m"],
        bearing=index["bearing"],
        event=index["event"],
        place=index["place"],
        image=index["image"],
        source_fid=index["source_fid"],
    )
    return _only_readable(chips, folder)


def _only_readable(chips: Chips, folder: Path) -> Chips:
    """Look at every header: leave out what cannot be read, refuse pictures of several shapes."""
    headers = look_at_headers(chips.file)
    bad = np.array([isinstance(header, UnreadableChip) for header in headers], bool)
    unreadable = tuple(
        (str(file), str(header).removeprefix(f"{file} "))
        for file, header in zip(chips.file[bad], np.array(headers, object)[bad], strict=True)
    )
    if len(chips) and bad.all():
        raise Refused(f"no chip in {folder} can be read: {_named(unreadable)}; cut the chips again")
    width, height, bands = stored_size(chips.contract.chip_shape)
    others = [
        (str(file), f"{header.width} x {header.height}, {header.bands} bands")
        for file, header in zip(chips.file, headers, strict=True)
        if not isinstance(header, UnreadableChip)
        and (header.width, header.height, header.bands, header.eight_bit) != (width, height, bands, True)
    ]
    if others:
        raise Refused(
            f"{folder}: {len(others):,} of {len(chips):,} chips are of another shape: {_named(others)}; "
            f"wanted {width} x {height} pixels, {bands} bands of 8 bits: cut the chips again"
        )
    return replace(chips.take(np.flatnonzero(~bad)), unreadable=unreadable)


def look_at_headers(files: NDArray[np.object_] | Sequence[str | Path]) -> list[Header | UnreadableChip]:
    """Read the header of every picture; for those that cannot be read, the error stands in its place."""
    with warnings.catch_warnings(), ThreadPoolExecutor(_HEADER_THREADS) as pool:
        warnings.simplefilter("ignore")  # Pillow's remarks on files that it then cannot read
        return list(pool.map(_try_header, files))


def _try_header(file: str | Path) -> Header | UnreadableChip:
    try:
        return read_header(Path(file))
    except UnreadableChip as error:
        return error


def _named(entries: Sequence[tuple[str, Any]]) -> str:
    shown = "; ".join(f"{Path(file).name}: {reason}" for file, reason in entries[:_MOST_NAMED])
    more = len(entries) - _MOST_NAMED
    return shown if more <= 0 else f"{shown} and {more:,} more"
