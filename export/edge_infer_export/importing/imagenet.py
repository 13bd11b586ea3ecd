"""The layout of ImageNet: a folder of pictures for each class, named after it; read and written.

    damage/000000000.png
    no_damage/000000001.png
    chips.csv                 path, class, lon, lat, gsd_m, ground_m, event, place (written, not needed)

Esri's Imagenet export has the same class folders below images/.
"""

from __future__ import annotations

import csv
import json
import re
from typing import TYPE_CHECKING, Any

from edge_infer.errors import Refused
from edge_infer_export.chips.pictures import READ_SUFFIXES
from edge_infer_export.importing.found import FoundChip, FoundChips

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edge_infer.grid import Grid
    from edge_infer_export.chips.table import ChipRecord

TABLE_FILE = "chips.csv"
_COLUMNS = ("path", "class", "lon", "lat", "gsd_m", "ground_m", "event", "place")


def read_class_folders(folder: Path) -> FoundChips:
    """Find the pictures in each class's folder, sorted by path; nothing is opened.

    Raises:
        Refused: there is no folder with pictures.

    """
    root = folder / "images" if (folder / "images").is_dir() else folder
    try:
        inner = sorted(entry for entry in root.iterdir() if entry.is_dir())
        chips = tuple(
            FoundChip(path=path, label=entry.name)
            for entry in inner
            for path in sorted(entry.rglob("*"))
            if path.suffix.lower() in READ_SUFFIXES and path.is_file()
        )
    except OSError as error:
        raise Refused(f"{folder} cannot be read ({error.strerror}); name a folder of chips") from error
    if not chips:
        raise Refused(
            f"{folder} holds no chips: wanted images/ and labels/ as ArcGIS exports them, or a folder of "
            f"pictures ({', '.join(READ_SUFFIXES)}) for each class"
        )
    return FoundChips(layout="Imagenet", folder=folder, chips=chips)


class ImagenetLayout:
    """Writes class folders, with a table that says where each chip lies."""

    marker = TABLE_FILE

    def chip_file(self, record: ChipRecord, suffix: str) -> str:
        """See `Layout`."""
        # A class may be called anything; the folder of it may not.
        folder = re.sub(r"[^\w .+-]", "_", record.label).strip(". ") or "_"
        return f"{folder}/{record.id:09d}{suffix}"

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
        (folder / "facts.json").write_text(json.dumps(dict(facts), indent=1) + "\n", encoding="utf-8")
