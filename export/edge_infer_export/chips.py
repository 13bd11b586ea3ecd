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
from rasterio.errors import NotGeoreferencedWarning

from edge_infer.coverage import cover
from edge_infer.errors import ContractError, ImageryError, Refused
from edge_infer.feed import ReadFailure, stream_chips
from edge_infer.footprints import read_field, read_footprints
from edge_infer.grid import metres_per_pixel, transform_points
from edge_infer.imagery import open_imagery
from edge_infer.imagery.environment import GDAL_ERRORS, gdal_environment, gdal_words
from edge_infer.imagery.opening import RASTER_SUFFIXES
from edge_infer.manifest import ChipContract
from edge_infer.progress import Progress, tally
from edge_infer_export.dataset import ChipRecord, ChipWriter
from edge_infer_export.labels import IGNORED, UNLABELLED, assign_classes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edge_infer.coverage import Coverage
    from edge_infer.feed import ChipBatch
    from edge_infer.imagery import Image
    from edge_infer.manifest import WindowMode
    from edge_infer_export.labels import Labels

HEADROOM = 1.25
"""Unless it is said otherwise, a model may be used on pixels a quarter coarser than its coarsest chips."""

_ANY_GSD_METRES = 1e6
_DEGREES = CRS.from_epsg(4326)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipsRequest:
    """The options of `edge-infer chips`, under their own names."""

    imagery: tuple[Path, ...]
    footprints: Path
    label_field: str
    out: Path
    classes: Mapping[str, str] | None = None
    """Class of each value in the column, as text; None: every text is a class."""
    ignore_labels: tuple[str, ...] = ()
    window: WindowMode = "fixed"
    ground_metres: float = 32.0
    context: float = 1.5
    """`footprint` windows only: side of the window over side of the footprint."""
    chip_pixels: int = 96
    bands: tuple[int, ...] | None = None
    """1-based band numbers; None: all but alpha."""
    value_range: tuple[float, float] | None = None
    """Source values that become 0 and 255; must be said for uint16."""
    coarsest_gsd_metres: float | None = None
    layer: str | None = None
    where: str | None = None
    imagery_crs: str | None = None
    footprints_crs: str | None = None
    min_valid: float = 0.5
    """A window with a smaller share of valid pixels gives no chip."""
    threads: int = 2
    overwrite: bool = False

    def options(self) -> dict[str, Any]:
        """All options as JSON values, for the record."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _plain(value: object) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, Path):
        return str(value)
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

    def describe(self) -> str:
        """Several lines of text."""
        contract = self.contract
        lines = [
            (
                f"{self.out}: {sum(self.classes.values()):,} chips of {contract.chip_pixels} pixels, "
                f"{contract.ground_metres:g} m ({contract.window_mode}), {', '.join(contract.bands)}"
            ),
            *(f"  {name}: {number:,}" for name, number in self.classes.items()),
        ]
        without = {name: number for name, number in self.statuses.items() if name != "ok"}
        if without:
            lines.append(f"  no chip: {tally(without)}")
        lines += [f"  image skipped: {path}: {reason}" for path, reason in self.skipped_images]
        lines.append(f"a model trained on them will take pixels up to {contract.coarsest_gsd_metres:.3g} m")
        return "\n".join(lines)


def cut_chips(request: ChipsRequest, *, quiet: bool = False) -> ChipsSummary:
    """Cut a chip of every labelled footprint and write the folder that `dataset` describes.

    Args:
        request: what to cut.
        quiet: show no progress.

    Raises:
        Refused: the input cannot be used, or no footprint gives a chip; nothing was written then.

    """
    writer = ChipWriter(request.out, overwrite=request.overwrite)
    contract = _draft_contract(request)
    where: dict[str, Any] = {"layer": request.layer, "where": request.where}
    imagery = open_imagery(request.imagery, contract, crs=request.imagery_crs, bands=request.bands)
    footprints = read_footprints(request.footprints, crs=request.footprints_crs, **where)
    labels = assign_classes(
        read_field(request.footprints, request.label_field, **where),
        field=request.label_field,
        classes=request.classes,
        ignore=request.ignore_labels,
    )
    coverage = cover(footprints, imagery, contract)
    if request.coarsest_gsd_metres is None:
        contract = replace(contract, coarsest_gsd_metres=_headroom(labels, coverage))
    status = _status(labels, coverage)
    rows = np.flatnonzero(status == "pending")
    places = _places(coverage, imagery.images, rows)

    progress = Progress(len(rows), quiet=quiet)
    with writer:
        for batch in stream_chips(imagery.images, coverage, contract, rows, threads=request.threads):
            if isinstance(batch, ReadFailure):
                status[batch.rows] = "read_error"
                progress.update({"read_error": len(batch.rows)})
                continue
            blank = batch.valid_fraction < request.min_valid
            status[batch.rows] = np.where(blank, "no_data", "ok")
            progress.update(Counter(_outcomes(batch, blank, labels)))
            for place in np.flatnonzero(~blank):
                row = batch.rows[place]
                longitude, latitude, ground_metres = places[:, row]
                writer.add(
                    batch.chips[place],
                    ChipRecord(
                        source_fid=int(footprints.fids[row]),
                        label=labels.classes[labels.index[row]],
                        image=imagery.images[coverage.image[row]].path,
                        gsd_metres=float(coverage.gsd_metres[row]),
                        ground_metres=float(ground_metres),
                        valid_fraction=float(batch.valid_fraction[place]),
                        longitude=float(longitude),
                        latitude=float(latitude),
                    ),
                )
        progress.close()
        statuses = dict(sorted(Counter(status.tolist()).items(), key=lambda item: item[0] != "ok"))
        if not statuses.get("ok"):
            raise Refused(f"no footprint gives a chip ({tally(statuses) or 'there are none'})")
        writer.finish(contract, labels.classes, statuses=statuses, options=request.options())
    chosen = labels.index[status == "ok"]
    return ChipsSummary(
        out=request.out,
        contract=contract,
        classes={name: int((chosen == k).sum()) for k, name in enumerate(labels.classes)},
        statuses=statuses,
        skipped_images=imagery.skipped,
    )


def _outcomes(batch: ChipBatch, blank: NDArray[np.bool_], labels: Labels) -> list[str]:
    return [
        "no_data" if without else labels.classes[labels.index[row]]
        for row, without in zip(batch.rows, blank, strict=True)
    ]


def _draft_contract(request: ChipsRequest) -> ChipContract:
    """Take pixel type and band names from the first image; unless it is said, any pixel size does so far."""
    dtype, names = _look_at_first(request.imagery)
    if request.bands is None:
        numbers = [number for number, name in enumerate(names, start=1) if name != "alpha"]
    else:
        numbers = [number for number in request.bands if 1 <= number <= len(names)]
    if dtype == "uint16" and request.value_range is None:
        raise ContractError(
            "the imagery holds uint16 pixels; say which values become black and white: --value-range LOW HIGH"
        )
    return ChipContract(
        window_mode=request.window,
        ground_metres=request.ground_metres,
        context_factor=request.context if request.window == "footprint" else 1.0,
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


def _headroom(labels: Labels, coverage: Coverage) -> float:
    """Give the coarsest pixels, metres, that a model of these chips may be used on."""
    used = coverage.gsd_metres[(labels.index >= 0) & (coverage.status == "pending")]
    # Rounded up to the millimetre: a figure for people to read.
    return float(np.ceil(HEADROOM * used.max() * 1000) / 1000) if len(used) else _ANY_GSD_METRES


def _status(labels: Labels, coverage: Coverage) -> NDArray[np.object_]:
    """Tell what is known of each footprint before its pixels are read: object, (n,)."""
    status = np.array(coverage.status, object)
    status[labels.index == UNLABELLED] = "no_label"
    status[labels.index == IGNORED] = "ignored_label"
    return status


def _places(coverage: Coverage, images: Sequence[Image], rows: NDArray[np.int64]) -> NDArray[np.float64]:
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
