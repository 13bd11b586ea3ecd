"""Takes over chips that other programs made: Esri's Labeled_Tiles and folders of pictures by class.

What a model must know and the folder does not say is asked of the user, never guessed: above all the
ground that a chip covers, and which number is which class. A picture that fits is taken over byte by byte;
others are brought to one size, the shorter side padded with black.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

from edge_infer.errors import Refused
from edge_infer.imagery.environment import GDAL_ERRORS, gdal_environment, gdal_words
from edge_infer.manifest import ChipContract
from edge_infer.progress import Progress, tally
from edge_infer_export.chips.cut import ChipsSummary, class_warnings, with_headroom
from edge_infer_export.chips.dataset import look_at_headers
from edge_infer_export.chips.labels import IGNORED, UNLABELLED, assign_classes
from edge_infer_export.chips.pictures import Header, UnreadableChip
from edge_infer_export.chips.table import ChipRecord
from edge_infer_export.chips.writer import ChipWriter, OwnLayout
from edge_infer_export.importing.esri import (
    is_imagenet_export,
    is_labeled_tiles,
    read_imagenet_export,
    read_labeled_tiles,
)
from edge_infer_export.importing.found import FoundChips, join_table, labels_of, places_from_names
from edge_infer_export.importing.imagenet import read_class_folders

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edge_infer_export.chips.labels import Labels
    from edge_infer_export.chips.table import TableFormat

GROUND_TOLERANCE = 0.05
"""Chips of one ground size may differ by so much: world files and projections are not exact."""

_MOST_NAMED = 5
_COLOURS = ("red", "green", "blue")
_NO_NAME = re.compile(r"band[ _]?\d+")
"""What ArcGIS calls bands of which it knows nothing."""

_MOST_DIGITS = 18
"""Of a number that fits into 64 bits, however it begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRequest:
    """The options of `edge-infer import-chips`, under their own names."""

    folder: Path
    out: Path
    classes: Mapping[str, str] | None = None
    """Class of each label, by number or name; None: what the folder says."""
    ignore_labels: tuple[str, ...] = ()
    ground_metres: float | None = None
    """Side of each chip in true metres; None: as its georeference says."""
    gsd_metres: float | None = None
    """Or side of each pixel."""
    coarsest_gsd_metres: float | None = None
    chip_pixels: int | None = None
    """Size to bring chips to; None: they must have one."""
    chip_table: Path | None = None
    coordinates_from_name: bool = False
    event: str = ""
    """Of chips for which no table says one."""
    place: str = ""
    table: TableFormat = "gpkg"
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse options that contradict each other."""
        if self.ground_metres is not None and self.gsd_metres is not None:
            raise Refused("--ground-metres and --gsd-metres both say how large a chip is; give one of them")
        if self.chip_table is not None and self.coordinates_from_name:
            raise Refused("--chip-table and --coordinates-from-name both give coordinates; give one of them")

    def options(self) -> dict[str, Any]:
        """All options as JSON values, for the record."""
        values = asdict(self)
        return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}


def import_chips(request: ImportRequest, *, quiet: bool = False) -> ChipsSummary:
    """Take over a folder of chips, and write the one that `dataset` describes.

    Args:
        request: what to take over.
        quiet: show no progress.

    Raises:
        Refused: the folder holds no labelled chips, or something that must be known is not said; nothing was
            written then.
        OutputError: the disk refused; nothing stays.

    """
    writer = ChipWriter(request.out, overwrite=request.overwrite, layout=OwnLayout(request.table))
    found = _find(request)
    labels = _assign(found, request)
    headers = look_at_headers([chip.path for chip in found.chips])
    good = np.array([isinstance(header, Header) for header in headers], bool)
    rows = np.flatnonzero(good & (labels.index >= 0))
    if len(rows) == 0:
        raise Refused(f"no chip of {found.folder} can be used: {tally(_statuses(labels, good))}")
    sizes = {row: header for row in rows.tolist() if isinstance(header := headers[row], Header)}
    side = _chip_pixels(found, sizes, request)
    ground = _ground(found, sizes, request)
    contract, found = _contract(found, sizes, ground, side, request)
    progress = Progress(len(rows), quiet=quiet)
    chosen: Counter[str] = Counter()
    with writer, gdal_environment():
        for row in rows.tolist():
            record = _record(found, row, labels, ground[row], sizes[row], request)
            error = _take_over(found.chips[row].path, sizes[row], record, contract, writer)
            if error is not None:
                headers[row], good[row] = error, False
            else:
                chosen[record.label] += 1
            progress.update({record.label if error is None else "unreadable": 1})
        progress.close()
        found = _warn_of(found, headers, labels)
        if not chosen:
            raise Refused(f"no chip of {found.folder} can be used: {found.warnings[-1]}")
        options = {**request.options(), "imported": {"layout": found.layout, **found.facts}}
        writer.finish(contract, labels.classes, statuses=_statuses(labels, good), options=options)
    numbers = {name: chosen[name] for name in labels.classes}
    return ChipsSummary(
        out=request.out,
        contract=contract,
        classes=numbers,
        statuses=_statuses(labels, good),
        skipped_images=(),
        warnings=(*found.warnings, *class_warnings(numbers)),
    )


def _find(request: ImportRequest) -> FoundChips:
    """Read the folder in whatever layout it has, and add the places that the user gives."""
    folder = request.folder
    if is_labeled_tiles(folder):
        found = read_labeled_tiles(folder)
    else:
        found = read_imagenet_export(folder) if is_imagenet_export(folder) else read_class_folders(folder)
    if request.chip_table is not None:
        found = join_table(found, request.chip_table)
    elif request.coordinates_from_name:
        found = places_from_names(found)
    unplaced = int(sum(not np.isfinite(chip.longitude) for chip in found.chips))
    if unplaced:
        found = found.warn(
            f"{unplaced:,} chips have no place on the ground, so they can only be split at random, "
            "which flatters: give --chip-table or --coordinates-from-name"
        )
    return found


def _assign(found: FoundChips, request: ImportRequest) -> Labels:
    """Give each chip its class: by the user's mapping, else by the folder's own names for its numbers."""
    names, mapping = found.class_names, request.classes
    spoken = {*(mapping or ()), *request.ignore_labels}
    chips = []
    for chip in found.chips:
        name = names.get(chip.label)
        by_name = name is not None and (mapping is None or chip.label not in spoken)
        chips.append(replace(chip, label=name) if by_name and name is not None else chip)
    return assign_classes(
        labels_of(replace(found, chips=tuple(chips))),
        field=str(found.folder),
        classes=mapping,
        ignore=request.ignore_labels,
    )


def _statuses(labels: Labels, good: NDArray[np.bool_]) -> dict[str, int]:
    """Count chips by what becomes of them; `ok` first."""
    status = np.where(good, "ok", "unreadable").astype(object)
    status[labels.index == UNLABELLED] = "no_label"
    status[labels.index == IGNORED] = "ignored_label"
    return dict(sorted(Counter(status.tolist()).items(), key=lambda item: item[0] != "ok"))


def _warn_of(found: FoundChips, headers: Sequence[Header | UnreadableChip], labels: Labels) -> FoundChips:
    """Name the pictures that cannot be read, and say what JPEG costs."""
    bad = [
        str(header)
        for header, label in zip(headers, labels.index.tolist(), strict=True)
        if isinstance(header, UnreadableChip) and label >= 0
    ]
    jpegs = sum(
        chip.path.suffix.lower() in {".jpg", ".jpeg"}
        for chip, label in zip(found.chips, labels.index.tolist(), strict=True)
        if label >= 0
    )
    if jpegs:
        found = found.warn(
            f"{jpegs:,} chips are JPEG: where classes were compressed differently, a model may learn that"
        )
    if bad:
        shown = "; ".join(bad[:_MOST_NAMED])
        found = found.warn(f"{len(bad):,} chips cannot be read and are left out: {shown}")
    return found


def _chip_pixels(found: FoundChips, sizes: Mapping[int, Header], request: ImportRequest) -> int:
    """Give the side of all chips in pixels; bands must agree anyway."""
    bands = Counter(header.bands for header in sizes.values())
    deep = sum(not header.eight_bit for header in sizes.values())
    if len(bands) > 1 or deep:
        parts = ", ".join(f"{count:,} with {number}" for number, count in bands.most_common())
        raise Refused(
            f"{found.folder}: wanted pictures of one number of bands and 8 bits, found bands: {parts}; "
            f"{deep:,} not of 8 bits; convert them, or export them again"
        )
    if request.chip_pixels is not None:
        return request.chip_pixels
    shapes = Counter((header.width, header.height) for header in sizes.values())
    (width, height), _ = shapes.most_common(1)[0]
    if len(shapes) > 1 or width != height:
        listed = ", ".join(f"{w} x {h} ({count:,})" for (w, h), count in shapes.most_common(_MOST_NAMED))
        raise Refused(
            f"{found.folder} holds chips of {len(shapes):,} sizes: {listed}; say to which size they are "
            "to be brought: --chip-pixels"
        )
    return width


def _ground(found: FoundChips, sizes: Mapping[int, Header], request: ImportRequest) -> dict[int, float]:
    """Find the longer side of each chip in true metres, as the user says or its georeference does."""
    ground: dict[int, float] = {}
    unknown = 0
    for row, header in sizes.items():
        longer = max(header.width, header.height)
        known = max(found.chips[row].ground_metres)
        ground[row] = (
            request.ground_metres
            if request.ground_metres is not None
            else request.gsd_metres * longer
            if request.gsd_metres is not None
            else known
        )
        unknown += not np.isfinite(ground[row])
    if unknown:
        raise Refused(
            f"{unknown:,} of {len(sizes):,} chips in {found.folder} do not say how much ground they cover "
            "(no world file, no cell size in true metres); say it with --ground-metres or --gsd-metres"
        )
    return ground


def _contract(
    found: FoundChips,
    sizes: Mapping[int, Header],
    ground: Mapping[int, float],
    side: int,
    request: ImportRequest,
) -> tuple[ChipContract, FoundChips]:
    """Fix what a chip is, with a warning where that differs from what the folder says."""
    metres = np.array([ground[row] for row in sizes])
    typical = float(np.median(metres))
    spread = float((np.abs(metres - typical) / typical).max())
    of_one_size = spread <= GROUND_TOLERANCE and not found.variable_size
    if not of_one_size:
        found = found.warn(
            f"chips cover {metres.min():.4g} to {metres.max():.4g} m of ground, each as much as its feature "
            "needs; `run` will show what lies around a feature where these chips are padded with black"
        )
    stated = np.array([max(found.chips[row].ground_metres) for row in sizes])
    both = np.isfinite(stated)
    off = np.abs(stated[both] / metres[both] - 1) > GROUND_TOLERANCE
    if off.any():
        found = found.warn(
            f"{int(off.sum()):,} chips are georeferenced as {np.median(stated[both][off]):.4g} m wide, but "
            f"{np.median(metres[both][off]):.4g} m was said; what was said counts"
        )
    gsd = max(ground[row] / max(header.width, header.height) for row, header in sizes.items())
    bands, found = _band_names(found, next(iter(sizes.values())).bands)
    contract = ChipContract(
        window_mode="fixed" if of_one_size else "footprint",
        # To the centimetre, so that several exports of one size have one contract.
        ground_metres=round(typical if of_one_size else float(metres.min()), 2),
        chip_pixels=side,
        bands=bands,
        blacken=found.blacken,
        coarsest_gsd_metres=request.coarsest_gsd_metres or with_headroom(gsd),
    )
    return contract, found


def _band_names(found: FoundChips, count: int) -> tuple[tuple[str, ...], FoundChips]:
    """Name the bands as the folder does; else three are taken for colours, with a warning."""
    named = found.band_names
    if named is not None and len(named) == count and not all(map(_NO_NAME.fullmatch, named)):
        return named, found
    if count == len(_COLOURS):
        return _COLOURS, found.warn(
            f"nothing says which the three bands are; taken for {', '.join(_COLOURS)}"
        )
    return tuple(f"band_{number}" for number in range(1, count + 1)), found


def _record(
    found: FoundChips, row: int, labels: Labels, ground: float, header: Header, request: ImportRequest
) -> ChipRecord:
    chip = found.chips[row]
    stem = chip.path.stem
    return ChipRecord(
        id=row,
        source=str(found.folder),
        source_fid=int(stem) if stem.isdecimal() and len(stem) <= _MOST_DIGITS else row,
        label=labels.classes[labels.index[row]],
        place=chip.place or request.place,
        event=chip.event or request.event,
        image=chip.path.relative_to(found.folder).as_posix(),
        gsd_metres=ground / max(header.width, header.height),
        ground_metres=ground,
        valid_fraction=float("nan"),
        longitude=chip.longitude,
        latitude=chip.latitude,
        bearing=chip.bearing,
    )


def _take_over(
    path: Path, header: Header, record: ChipRecord, contract: ChipContract, writer: ChipWriter
) -> UnreadableChip | None:
    """Write a picture, as it is where it fits; give the error where it cannot be read."""
    if (header.width, header.height, header.bands) == contract.chip_shape and header.eight_bit:
        writer.add_file(path, record)
        return None
    chip = _resized(path, contract)
    if isinstance(chip, UnreadableChip):
        return chip
    writer.add(chip, record)
    return None


def _resized(path: Path, contract: ChipContract) -> NDArray[np.uint8] | UnreadableChip:
    """Read a picture, pad it with black to a square around its middle, and bring it to the chip's size.

    Where it cannot be read, the error is given instead.
    """
    side, _, bands = contract.chip_shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(path) as picture:
                if ColorInterp.palette in picture.colorinterp:
                    return UnreadableChip(f"{path} has a palette; convert it: gdal_translate -expand rgb")
                values = picture.read(range(1, bands + 1))
        except (*GDAL_ERRORS, IndexError) as error:
            return UnreadableChip(f"{path} cannot be read ({gdal_words(error)})")
    _, height, width = values.shape
    square = max(height, width)
    top, left = (square - height) // 2, (square - width) // 2
    planes = []
    for plane in values:
        padded = np.zeros((square, square), np.uint8)
        padded[top : top + height, left : left + width] = plane
        # Pillow's resize is antialiased, as our own sampler is.
        planes.append(np.asarray(Image.fromarray(padded).resize((side, side), Image.Resampling.BILINEAR)))
    return np.stack(planes, axis=2)
