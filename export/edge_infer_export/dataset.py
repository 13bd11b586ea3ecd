"""Labelled chips on disk, and in memory.

A folder of chips holds

    chips.json            contract, classes, options and counts
    chips.gpkg            layer `chips`: one point a chip, EPSG:4326, with its file, class and origin
    chips/000000012.png   the pixels, named after the footprint's feature id; lossless

Chips of three bands are RGB pictures. Any other number of bands stand side by side in one grey picture.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from edge_infer.errors import OutputError, Refused
from edge_infer.manifest import ChipContract

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

CHIPS_FORMAT = 1
"""Value of `format` in chips.json; any other is refused."""

_FIELDS = ("chip", "source_fid", "class", "image", "gsd_m", "ground_m", "valid_fraction", "x", "y")


@dataclass(frozen=True, slots=True, eq=False)
class Chips:
    """Labelled chips in memory; all arrays have one entry a chip."""

    contract: ChipContract
    classes: tuple[str, ...]
    """The K class names."""
    pixels: NDArray[np.uint8]
    """uint8, (n, S, S, C)."""
    targets: NDArray[np.int64]
    """int64, (n,): index into `classes`."""
    longitude: NDArray[np.float64]
    """float64, (n,): of the window's centre, degrees."""
    latitude: NDArray[np.float64]
    """float64, (n,)."""
    ground_metres: NDArray[np.float64]
    """float64, (n,): side of the window in true ground metres."""

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together."""
        count = len(self.pixels)
        if self.pixels.dtype != np.uint8 or self.pixels.shape[1:] != self.contract.chip_shape:
            raise Refused(
                f"chips are {self.pixels.dtype} of shape {self.pixels.shape[1:]}, wanted uint8 of shape "
                f"{self.contract.chip_shape}"
            )
        for name in ("targets", "longitude", "latitude", "ground_metres"):
            if getattr(self, name).shape != (count,):
                raise Refused(f"{name} has shape {getattr(self, name).shape}, wanted ({count},)")
        if count and not 0 <= self.targets.min() <= self.targets.max() < len(self.classes):
            raise Refused(
                f"targets lie in {self.targets.min()}..{self.targets.max()} for {len(self.classes)} classes"
            )

    def __len__(self) -> int:
        return len(self.pixels)

    def counts(self, rows: NDArray[np.int64] | None = None) -> dict[str, int]:
        """Chips of each class, of all or of the rows given."""
        targets = self.targets if rows is None else self.targets[rows]
        numbers = np.bincount(targets, minlength=len(self.classes))
        return dict(zip(self.classes, numbers.tolist(), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipRecord:
    """Where one chip comes from."""

    source_fid: int
    label: str
    """Its class."""
    image: str
    gsd_metres: float
    """Of the image there, coarser axis."""
    ground_metres: float
    """Side of the window."""
    valid_fraction: float
    longitude: float
    latitude: float


class ChipWriter:
    """Writes a folder of chips; it takes its name only when it is complete.

    Use it as a context manager: `add` the chips, then `finish`. Left without `finish`, nothing stays.
    """

    def __init__(self, folder: Path, *, overwrite: bool = False) -> None:
        """Prepare the folder.

        Raises:
            OutputError: the folder exists, without `overwrite` or with other things than chips in it, or it
                cannot be written.

        """
        refuse_folder(folder, marker="chips.json", overwrite=overwrite)
        self._folder = folder = folder.absolute()
        self._draft = folder.with_name(folder.name + ".partial")
        self._records: list[ChipRecord] = []

    def __enter__(self) -> ChipWriter:
        shutil.rmtree(self._draft, ignore_errors=True)
        try:
            (self._draft / "chips").mkdir(parents=True)
        except OSError as error:
            raise OutputError(
                f"{self._folder} cannot be written: {error.strerror}; name another folder"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._draft, ignore_errors=True)

    def add(self, chip: NDArray[np.uint8], record: ChipRecord) -> None:
        """Write one chip, uint8 (S, S, C)."""
        _picture(chip).save(self._draft / _chip_file(record.source_fid), compress_level=1)
        self._records.append(record)

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
        self._records.sort(key=lambda record: record.source_fid)
        self._write_index()
        facts = {
            "format": CHIPS_FORMAT,
            "library": f"edge-infer {version('edge-infer')}",
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "contract": contract.to_json(),
            "classes": list(classes),
            "counts": {name: sum(r.label == name for r in self._records) for name in classes},
            "statuses": dict(statuses),
            "options": dict(options),
        }
        (self._draft / "chips.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(self._folder, ignore_errors=True)
        self._draft.rename(self._folder)

    def _write_index(self) -> None:
        import pyogrio.raw
        import shapely

        records = self._records
        x = np.array([record.longitude for record in records], np.float64)
        y = np.array([record.latitude for record in records], np.float64)
        columns = (
            np.array([_chip_file(record.source_fid) for record in records], object),
            np.array([record.source_fid for record in records], np.int64),
            np.array([record.label for record in records], object),
            np.array([record.image for record in records], object),
            np.array([record.gsd_metres for record in records], np.float64),
            np.array([record.ground_metres for record in records], np.float64),
            np.array([record.valid_fraction for record in records], np.float64),
            x,
            y,
        )
        pyogrio.raw.write(
            self._draft / "chips.gpkg",
            shapely.to_wkb(shapely.points(x, y)),
            list(columns),
            list(_FIELDS),
            layer="chips",
            driver="GPKG",
            geometry_type="Point",
            crs="EPSG:4326",
        )


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


def read_chips(folders: Sequence[str | Path]) -> Chips:
    """Read one or more folders of chips as one set.

    The folders must have one contract (but for the coarsest GSD, of which the coarser counts) and the same
    classes; their order is that of the first folder.

    Raises:
        Refused: a folder is incomplete, or the folders do not fit together.

    """
    sets = [_read_folder(Path(folder)) for folder in folders]
    if not sets:
        raise Refused("no folder of chips was named; make one with `edge-infer chips`")
    first = sets[0]
    coarsest = max(chips.contract.coarsest_gsd_metres for chips in sets)
    contract = replace(first.contract, coarsest_gsd_metres=coarsest)
    targets = []
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
        targets.append(order[chips.targets])
    return Chips(
        contract=contract,
        classes=first.classes,
        pixels=np.concatenate([chips.pixels for chips in sets]),
        targets=np.concatenate(targets),
        longitude=np.concatenate([chips.longitude for chips in sets]),
        latitude=np.concatenate([chips.latitude for chips in sets]),
        ground_metres=np.concatenate([chips.ground_metres for chips in sets]),
    )


def _difference(one: ChipContract, other: ChipContract) -> str:
    a, b = one.to_json(), other.to_json()
    return ", ".join(
        f"{name} {a[name]} against {b[name]}"
        for name in a
        if a[name] != b[name] and name != "coarsest_gsd_metres"
    )


def _read_folder(folder: Path) -> Chips:
    facts_path = folder / "chips.json"
    try:
        facts = json.loads(facts_path.read_text(encoding="utf-8"))
        if facts["format"] != CHIPS_FORMAT:
            raise Refused(
                f"{facts_path}: chips format {facts['format']!r}, wanted {CHIPS_FORMAT}; cut the chips again"
            )
        contract = ChipContract.from_json(facts["contract"])
        classes = tuple(str(name) for name in facts["classes"])
    except OSError as error:
        raise Refused(
            f"{facts_path} cannot be read ({error.strerror}); wanted a folder that `edge-infer chips` made"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(f"{facts_path} is incomplete or malformed: {error!r}; cut the chips again") from error
    index = _read_index(folder / "chips.gpkg")
    unknown = set(index["class"]) - set(classes)
    if unknown:
        raise Refused(
            f"{folder / 'chips.gpkg'} holds classes that chips.json does not name: "
            f"{', '.join(sorted(map(str, unknown)))}; cut the chips again"
        )
    pixels = np.empty((len(index["chip"]), *contract.chip_shape), np.uint8)
    for place, name in enumerate(index["chip"]):
        pixels[place] = _read_chip(folder / "chips" / Path(name).name, contract)
    numbers = {name: number for number, name in enumerate(classes)}
    return Chips(
        contract=contract,
        classes=classes,
        pixels=pixels,
        targets=np.array([numbers[name] for name in index["class"]], np.int64),
        longitude=index["x"].astype(np.float64),
        latitude=index["y"].astype(np.float64),
        ground_metres=index["ground_m"].astype(np.float64),
    )


def _read_index(path: Path) -> dict[str, NDArray[Any]]:
    import pyogrio.errors
    import pyogrio.raw

    try:
        facts, _, _, columns = pyogrio.raw.read(
            path, layer="chips", read_geometry=False, columns=list(_FIELDS)
        )
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
        raise Refused(f"{path} cannot be read ({error}); cut the chips again") from error
    index = dict(zip(facts["fields"].tolist(), columns, strict=True))
    missing = [name for name in _FIELDS if name not in index]
    if missing:
        raise Refused(f"{path} lacks the columns {', '.join(missing)}; cut the chips again")
    return index


def _chip_file(source_fid: int) -> str:
    return f"chips/{source_fid:09d}.png"


def _picture(chip: NDArray[np.uint8]) -> Image.Image:
    if chip.shape[2] == 3:
        return Image.fromarray(chip)
    return Image.fromarray(np.concatenate(list(np.moveaxis(chip, 2, 0)), axis=1))


def _read_chip(path: Path, contract: ChipContract) -> NDArray[np.uint8]:
    side, _, bands = contract.chip_shape
    try:
        with Image.open(path) as picture:
            values = np.asarray(picture)
    except (OSError, UnidentifiedImageError) as error:
        raise Refused(f"{path} cannot be read ({error}); cut the chips again") from error
    if bands != 3 and values.shape == (side, side * bands):
        values = np.stack(np.split(values, bands, axis=1), axis=2)
    if values.dtype != np.uint8 or values.shape != contract.chip_shape:
        raise Refused(
            f"{path} is {values.dtype} {values.shape}, wanted uint8 {contract.chip_shape}; "
            "cut the chips again"
        )
    return values
