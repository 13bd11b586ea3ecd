"""Cuts labelled chips exactly as `run` will cut them: the same windows, images and sampler."""

from __future__ import annotations

import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from pyproj import CRS
from rasterio import Affine
from rasterio.errors import NotGeoreferencedWarning

from edge_infer.coverage import cover
from edge_infer.errors import ContractError, ImageryError, Refused
from edge_infer.feed import ReadFailure, stream_chips
from edge_infer.footprints import read_field, read_footprints
from edge_infer.grid import Grid, metres_per_pixel, transform_points
from edge_infer.imagery import open_imagery
from edge_infer.imagery.environment import GDAL_ERRORS, gdal_environment, gdal_words
from edge_infer.imagery.opening import RASTER_SUFFIXES
from edge_infer.manifest import ChipContract
from edge_infer.progress import Progress, tally
from edge_infer_export.chips.bearing import bearings
from edge_infer_export.chips.labels import IGNORED, UNLABELLED, assign_classes
from edge_infer_export.chips.pictures import JPEG_QUALITY
from edge_infer_export.chips.table import ChipRecord
from edge_infer_export.chips.writer import ChipWriter
from edge_infer_export.importing.layouts import make_layout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edge_infer.coverage import Coverage
    from edge_infer.feed import ChipBatch
    from edge_infer.imagery import Image, Imagery
    from edge_infer.manifest import WindowMode
    from edge_infer_export.chips.pairs import Pair
    from edge_infer_export.chips.pictures import PictureFormat
    from edge_infer_export.chips.table import TableFormat
    from edge_infer_export.importing.layouts import LayoutName

HEADROOM = 1.25
"""Unless it is said otherwise, a model may be used on pixels a quarter coarser than its coarsest chips."""

_ANY_GSD_METRES = 1e6
_DEGREES = CRS.from_epsg(4326)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipsRequest:
    """The options of `edge-infer chips`, under their own names."""

    pairs: tuple[Pair, ...]
    """What to cut, in order."""
    out: Path
    classes: Mapping[str, str] | None = None
    """Class of each value in the column, as text; None: every text is a class."""
    ignore_labels: tuple[str, ...] = ()
    window: WindowMode = "fixed"
    ground_metres: float = 32.0
    context: float = 1.5
    """`footprint` windows only: side of the window over side of the footprint."""
    buffer_metres: float = 0.0
    """`footprint` windows only: ground added on each side."""
    blacken: bool = False
    """Whether what lies outside of the footprint is made black, in these chips and in use."""
    chip_pixels: int = 96
    bands: tuple[int, ...] | None = None
    """1-based band numbers; None: all but alpha."""
    value_range: tuple[float, float] | None = None
    """Source values that become 0 and 255; must be said for uint16."""
    coarsest_gsd_metres: float | None = None
    min_valid: float = 0.5
    """A window with a smaller share of valid pixels gives no chip,"""
    min_covered: float = 0.5
    """nor does a footprint of which a smaller share lies on valid pixels; both as in `run`."""
    chip_format: PictureFormat = "png"
    jpeg_quality: int = JPEG_QUALITY
    layout: LayoutName = "own"
    table: TableFormat = "gpkg"
    threads: int = 2
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse options that contradict each other."""
        if not self.pairs:
            raise Refused("nothing to cut: name imagery and footprints")
        if self.window == "fixed" and self.buffer_metres:
            raise Refused(
                "a buffer is laid around the footprint, so it needs --window footprint; fixed windows are as "
                "large as --ground-metres says"
            )

    def options(self) -> dict[str, Any]:
        """All options as JSON values, for the record."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _plain(value: object) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipsSummary:
    """What became of the footprints."""

    out: Path
    contract: ChipContract
    classes: Mapping[str, int]
    """Chips of each class."""
    statuses: Mapping[str, int]
    """Footprints by what became of them; `ok` is those with a chip."""
    skipped_images: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    """What to mend before training on them."""

    def describe(self) -> str:
        """Several lines of text."""
        contract = self.contract
        lines = [
            (
                f"{self.out}: {sum(self.classes.values()):,} chips of {contract.chip_pixels} pixels, "
                f"{contract.ground_metres:g} m ({contract.window_mode}), {', '.join(contract.bands)}"
                f"{', black outside of the footprint' if contract.blacken else ''}"
            ),
            *(f"  {name}: {number:,}" for name, number in self.classes.items()),
        ]
        without = {name: number for name, number in self.statuses.items() if name != "ok"}
        if without:
            lines.append(f"  no chip: {tally(without)}")
        lines += [f"  image skipped: {path}: {reason}" for path, reason in self.skipped_images]
        lines += [f"  warning: {warning}" for warning in self.warnings]
        lines.append(f"a model trained on them will take pixels up to {contract.coarsest_gsd_metres:.3g} m")
        return "\n".join(lines)


def cut_chips(request: ChipsRequest, *, quiet: bool = False) -> ChipsSummary:
    """Cut a chip of every labelled footprint and write the folder that `dataset` describes.

    Args:
        request: what to cut.
        quiet: show no progress.

    Raises:
        Refused: the input cannot be used, or no footprint gives a chip; nothing was written then.
        OutputError: the disk refused; nothing stays.

    """
    contract = _draft_contract(request)
    writer = ChipWriter(
        request.out,
        overwrite=request.overwrite,
        picture=request.chip_format,
        quality=request.jpeg_quality,
        layout=make_layout(request.layout, contract, request.table),
    )
    scenes, classes = _open_scenes(request, contract)
    if request.coarsest_gsd_metres is None:
        contract = replace(contract, coarsest_gsd_metres=_headroom(scenes))
    progress = Progress(sum(len(scene.rows) for scene in scenes), quiet=quiet)
    with writer:
        for scene in scenes:
            _cut_scene(scene, contract, classes, request, writer, progress)
        progress.close()
        outcomes = Counter(status for scene in scenes for status in scene.status.tolist())
        statuses = dict(sorted(outcomes.items(), key=lambda item: item[0] != "ok"))
        if not statuses.get("ok"):
            raise Refused(f"no footprint gives a chip ({tally(statuses) or 'there are none'})")
        writer.finish(contract, classes, statuses=statuses, options=request.options())
    chosen = np.concatenate([scene.label[scene.status == "ok"] for scene in scenes])
    numbers = {name: int((chosen == k).sum()) for k, name in enumerate(classes)}
    return ChipsSummary(
        out=request.out,
        contract=contract,
        classes=numbers,
        statuses=statuses,
        skipped_images=tuple(skipped for scene in scenes for skipped in scene.imagery.skipped),
        warnings=class_warnings(numbers) + jpeg_warnings(request.chip_format, request.jpeg_quality),
    )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Scene:
    """One pair, opened and covered."""

    pair: Pair
    first_id: int
    """Number of the chip of its first footprint."""
    imagery: Imagery
    fids: NDArray[np.int64]
    """int64, (n,): feature ids of its footprints."""
    label: NDArray[np.int64]
    """int64, (n,): class, IGNORED or UNLABELLED."""
    coverage: Coverage
    status: NDArray[np.object_]
    """object, (n,): what became of each footprint so far; filled in as chips are cut."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """Positions of the footprints that wait for their chip, int64."""
        return np.flatnonzero(self.status == "pending")


def _open_scenes(request: ChipsRequest, contract: ChipContract) -> tuple[list[_Scene], tuple[str, ...]]:
    """Open every pair and give every footprint its class, by one list of classes for all."""
    opened = []
    for pair in request.pairs:
        where: dict[str, Any] = {"layer": pair.layer, "where": pair.where}
        imagery = open_imagery(pair.imagery, contract, crs=pair.imagery_crs, bands=request.bands)
        footprints = read_footprints(pair.footprints, crs=pair.footprints_crs, **where)
        values = read_field(pair.footprints, pair.label_field, **where)
        opened.append((pair, imagery, footprints, values))
    labels = assign_classes(
        np.concatenate([values for *_, values in opened]),
        field=", ".join(dict.fromkeys(pair.label_field for pair in request.pairs)),
        classes=request.classes,
        ignore=request.ignore_labels,
    )
    scenes, start = [], 0
    for pair, imagery, footprints, values in opened:
        label = labels.index[start : start + len(values)]
        coverage = cover(footprints, imagery, contract)
        scenes.append(
            _Scene(
                pair=pair,
                first_id=start,
                imagery=imagery,
                fids=footprints.fids,
                label=label,
                coverage=coverage,
                status=_status(label, coverage),
            )
        )
        start += len(values)
    return scenes, labels.classes


def _cut_scene(
    scene: _Scene,
    contract: ChipContract,
    classes: tuple[str, ...],
    request: ChipsRequest,
    writer: ChipWriter,
    progress: Progress,
) -> None:
    """Cut and write the chips of one pair."""
    images, coverage, status = scene.imagery.images, scene.coverage, scene.status
    rows = scene.rows
    places, angles = window_places(coverage, images, rows), _window_bearings(coverage, images, rows)
    for batch in stream_chips(images, coverage, contract, rows, threads=request.threads):
        if isinstance(batch, ReadFailure):
            status[batch.rows] = "read_error"
            progress.update({"read_error": len(batch.rows)})
            continue
        blank = (batch.valid_fraction < request.min_valid) | (batch.covered_fraction < request.min_covered)
        status[batch.rows] = np.where(blank, "no_data", "ok")
        progress.update(Counter(_outcomes(batch, blank, scene.label, classes)))
        for place in np.flatnonzero(~blank):
            row = int(batch.rows[place])
            longitude, latitude, ground_metres = places[:, row].tolist()
            image = images[coverage.image[row]]
            record = ChipRecord(
                id=scene.first_id + row,
                source=str(scene.pair.footprints),
                source_fid=int(scene.fids[row]),
                label=classes[scene.label[row]],
                place=scene.pair.place,
                event=scene.pair.event,
                image=image.path,
                gsd_metres=float(coverage.gsd_metres[row]),
                ground_metres=ground_metres,
                valid_fraction=float(batch.valid_fraction[place]),
                longitude=longitude,
                latitude=latitude,
                bearing=float(angles[row]),
            )
            writer.add(batch.chips[place], record, _chip_grid(image, coverage.boxes[row], contract))


def _chip_grid(image: Image, box: NDArray[np.float64], contract: ChipContract) -> Grid:
    """Give the pixel space of the chip that covers a window, float64 (4,), of an image."""
    x, y, width, height = box.tolist()
    side = contract.chip_pixels
    window = Affine.translation(x, y) * Affine.scale(width / side, height / side)
    return Grid(image.grid.crs, image.grid.transform * window, side, side)


def _outcomes(
    batch: ChipBatch, blank: NDArray[np.bool_], label: NDArray[np.int64], classes: tuple[str, ...]
) -> list[str]:
    return [
        "no_data" if without else classes[label[row]] for row, without in zip(batch.rows, blank, strict=True)
    ]


def _draft_contract(request: ChipsRequest) -> ChipContract:
    """Take pixel type and band names from the first image; unless it is said, any pixel size does so far."""
    dtype, names = _look_at_first([path for pair in request.pairs for path in pair.imagery])
    if request.bands is None:
        numbers = [number for number, name in enumerate(names, start=1) if name != "alpha"]
    else:
        numbers = list(request.bands)
        if not all(1 <= number <= len(names) for number in numbers):
            raise ContractError(
                f"the imagery has {len(names)} bands ({', '.join(names[:20])}), --bands says "
                f"{', '.join(map(str, numbers))}; name bands that are there"
            )
    if dtype == "uint16" and request.value_range is None:
        raise ContractError(
            "the imagery holds uint16 pixels; say which values become black and white: --value-range LOW HIGH"
        )
    return ChipContract(
        window_mode=request.window,
        ground_metres=request.ground_metres,
        context_factor=request.context if request.window == "footprint" else 1.0,
        buffer_metres=request.buffer_metres,
        blacken=request.blacken,
        chip_pixels=request.chip_pixels,
        bands=tuple(_band_name(number, names[number - 1]) for number in numbers),
        dtype=dtype,
        value_range=request.value_range or (0.0, 255.0),
        coarsest_gsd_metres=request.coarsest_gsd_metres or _ANY_GSD_METRES,
    )


def _band_name(number: int, interpretation: str) -> str:
    return f"band_{number}" if interpretation in {"gray", "undefined"} else interpretation


def _look_at_first(paths: Sequence[Path]) -> tuple[Any, list[str]]:
    """Pixel type and colour interpretations of the first raster that can be opened.

    A file that is named must be one; what lies in a folder may be passed over, as `open_imagery` does.
    """
    for path in paths:
        if not path.is_dir():
            return _look_at(path)
        for inner in sorted(path.rglob("*")):
            if inner.name.lower().endswith(RASTER_SUFFIXES) and inner.is_file():
                with suppress(ImageryError):
                    return _look_at(inner)
    raise ImageryError(f"{', '.join(map(str, paths))}: no raster there; name a raster or a folder of rasters")


def _look_at(path: Path) -> tuple[Any, list[str]]:
    with gdal_environment(), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # `open_imagery` says it as an error
        try:
            with rasterio.open(path) as image:
                return image.dtypes[0], [band.name for band in image.colorinterp]
        except GDAL_ERRORS as error:
            raise ImageryError(f"{path} is no raster that GDAL can read here: {gdal_words(error)}") from error


def _headroom(scenes: Sequence[_Scene]) -> float:
    used = np.concatenate([scene.coverage.gsd_metres[scene.rows] for scene in scenes])
    return with_headroom(float(used.max())) if len(used) else _ANY_GSD_METRES


def with_headroom(gsd_metres: float) -> float:
    """Give the coarsest pixels that a model may be used on whose own were that coarse, both in metres."""
    # Rounded up to the millimetre: a figure for people to read.
    return float(np.ceil(HEADROOM * gsd_metres * 1000) / 1000)


def class_warnings(numbers: Mapping[str, int]) -> tuple[str, ...]:
    """Say which classes no model could learn from so many chips of each."""
    absent = [name for name, number in numbers.items() if number == 0]
    if len(numbers) - len(absent) == 1:
        only = next(name for name in numbers if name not in absent)
        return (f"all chips are {only}: nothing can be trained on one class",)
    return (f"no chip is {' or '.join(absent)}: label some, or leave the class out",) if absent else ()


def jpeg_warnings(form: PictureFormat, quality: int) -> tuple[str, ...]:
    """Say what JPEG chips cost."""
    if form != "jpeg":
        return ()
    return (
        f"JPEG of quality {quality} changes pixels that `run` will not change; PNG and TIFF lose nothing",
    )


def _status(label: NDArray[np.int64], coverage: Coverage) -> NDArray[np.object_]:
    """Tell what is known of each footprint before its pixels are read: object, (n,)."""
    status = np.array(coverage.status, object)
    status[label == UNLABELLED] = "no_label"
    status[label == IGNORED] = "ignored_label"
    return status


def window_places(
    coverage: Coverage, images: Sequence[Image], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Find longitude and latitude of the windows' centres, and their sides in metres, for `rows`.

    Returns:
        float64, (3, n); NaN for the other footprints.

    """
    places = np.full((3, len(coverage.image)), np.nan)
    for index in np.unique(coverage.image[rows]):
        inside = rows[coverage.image[rows] == index]
        grid = images[index].grid
        boxes = coverage.boxes[inside]
        centres = boxes[:, :2] + boxes[:, 2:] / 2
        places[0, inside], places[1, inside] = transform_points(grid.crs, _DEGREES, *grid.to_crs(*centres.T))
        places[2, inside] = boxes[:, 2] * metres_per_pixel(grid, centres)[:, 0]
    return places


def _window_bearings(
    coverage: Coverage, images: Sequence[Image], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Find what is up in the windows of `rows`: see `bearings`; NaN for the other footprints."""
    angles = np.full(len(coverage.image), np.nan)
    for index in np.unique(coverage.image[rows]):
        inside = rows[coverage.image[rows] == index]
        boxes = coverage.boxes[inside]
        angles[inside] = bearings(images[index].grid, boxes[:, :2] + boxes[:, 2:] / 2)
    return angles
