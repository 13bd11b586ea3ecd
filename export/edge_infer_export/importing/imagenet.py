"""The layout of ImageNet: a folder of pictures for each class, named after it; read and written.

    damage/000000000.png
    no_damage/000000001.png
    chips.csv                 path, class, lon, lat, gsd_m, ground_m, event, place (written, not needed)
    facts.json                what chips.json holds in our own folders (likewise)

Esri's Imagenet export has the same class folders below images/.
"""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING, Any

from edge_infer.errors import Refused
from edge_infer_export.chips.pictures import READ_SUFFIXES
from edge_infer_export.chips.writer import FACTS_FILE, MARKER, write_facts
from edge_infer_export.importing.found import FoundChip, FoundChips, is_picture, passed_over

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edge_infer.grid import Grid
    from edge_infer_export.chips.table import ChipRecord

TABLE_FILE = "chips.csv"
_COLUMNS = ("path", "class", "lon", "lat", "gsd_m", "ground_m", "event", "place")
_MOST_NAMED = 5


def read_class_folders(folder: Path) -> FoundChips:
    """Find the pictures in each class's folder, sorted by path; nothing is opened.

    Raises:
        Refused: there is no folder with pictures, or its folders are no classes.

    """
    if (folder / MARKER).is_file():
        raise Refused(f"{folder} holds chips that need no import ({MARKER}); give it to `train` as it is")
    root = folder / "images" if (folder / "images").is_dir() else folder
    try:
        files = {entry.name: _files_in(entry) for entry in sorted(root.iterdir()) if _may_be_class(entry)}
    except OSError as error:
        raise Refused(f"{folder} cannot be read ({error.strerror}); name a folder of chips") from error
    pictures = {name: [path for path in paths if is_picture(path)] for name, paths in files.items()}
    _refuse_nested(root, pictures)
    chips = tuple(FoundChip(path=path, label=name) for name, paths in pictures.items() for path in paths)
    if not chips:
        raise Refused(
            f"{folder} holds no chips: wanted images/ and labels/ as ArcGIS exports them, or a folder of "
            f"pictures ({', '.join(READ_SUFFIXES)}) for each class"
        )
    found = FoundChips(layout="Imagenet", folder=folder, chips=chips)
    return found.warn(*passed_over(path for paths in files.values() for path in paths))


def _may_be_class(entry: Path) -> bool:
    """Whether it is a folder, and neither hidden nor what macOS leaves in archives."""
    return entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _refuse_nested(root: Path, pictures: Mapping[str, Sequence[Path]]) -> None:
    """Refuse folders whose pictures all lie deeper: `train` and `val` are no classes."""
    nested = [
        name for name, paths in pictures.items() if paths and root / name not in {p.parent for p in paths}
    ]
    if nested:
        raise Refused(
            f"{root}: {', '.join(nested[:_MOST_NAMED])} hold folders of pictures, not pictures; "
            f"name the folder whose folders are the classes, such as {pictures[nested[0]][0].parent.parent}"
        )


class ImagenetLayout:
    """Writes class folders, with a table that says where each chip lies."""

    marker = FACTS_FILE

    def names(self, classes: Sequence[str]) -> tuple[str, ...]:
        """See `Layout`."""
        return (TABLE_FILE, FACTS_FILE, *map(_folder_of, classes))

    def chip_file(self, record: ChipRecord, suffix: str) -> str:
        """See `Layout`."""
        return f"{_folder_of(record.label)}/{record.id:09d}{suffix}"

    def write_beside(
        self, path: Path, chip: NDArray[np.uint8], record: ChipRecord, grid: Grid | None
    ) -> None:
        """Write nothing: the folder says the class, the table the rest."""

    def write_index(
        self, folder: Path, facts: Mapping[str, Any], records: Sequence[ChipRecord], files: Sequence[str]
    ) -> None:
        """Write the table, and the facts as they stand in our own folders."""
        with (folder / TABLE_FILE).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(_COLUMNS)
            writer.writerows(
                (
                    *(file, record.label, record.longitude, record.latitude),
                    *(record.gsd_metres, record.ground_metres, record.event, record.place),
                )
                for record, file in zip(records, files, strict=True)
            )
        write_facts(folder, facts)


def _folder_of(name: str) -> str:
    """Name the folder of a class: that may be called anything, a folder may not."""
    return re.sub(r"[^\w .+-]", "_", name).strip(". ") or "_"
