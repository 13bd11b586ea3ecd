"""All rasters of a run, out of files and folders."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyproj import CRS
from pyproj.exceptions import CRSError

from edge_infer.errors import ContractError, ImageryError
from edge_infer.imagery.environment import gdal_environment
from edge_infer.imagery.header import GSD_TOLERANCE, Image, read_header
from edge_infer.imagery.trust import check_raster

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_infer.manifest import ChipContract

RASTER_SUFFIXES = (
    *(".tif", ".tiff", ".vrt", ".jp2", ".j2k", ".img", ".ntf", ".ecw", ".sid"),
    *(".png", ".jpg", ".jpeg", ".webp"),
)
"""What counts as a raster in a folder; a path that is named itself may have any name."""


@dataclass(frozen=True, slots=True)
class Imagery:
    """All images of one run."""

    images: tuple[Image, ...]
    """In the order they were named, those of one folder sorted by path."""
    skipped: tuple[tuple[str, str], ...] = ()
    """(path, reason) of rasters found in folders that cannot be used."""


def open_imagery(
    paths: Sequence[str | Path],
    contract: ChipContract,
    *,
    crs: str | CRS | None = None,
    bands: tuple[int, ...] | None = None,
) -> Imagery:
    """Read the header of every image and refuse what the model cannot use.

    A path is a raster, a VRT, or a folder whose rasters are all taken, subfolders included. The same file
    named twice is one image. A raster in a folder that cannot be used is skipped and reported, unless no
    other is left; what is opened at all is said in `edge_infer.imagery.trust`. One file is open at a time.

    Args:
        paths: rasters and folders.
        contract: what the model needs.
        crs: reference system of images that state none.
        bands: 1-based numbers of the model's bands, in its order; found by colour interpretation otherwise.

    Returns:
        The images; at least one.

    Raises:
        ImageryError: no such file, no raster, no place on the ground.
        ContractError: wrong bands or pixel type, or all images coarser than the model allows.

    """
    supplied = None if crs is None else _supply_crs(crs)
    images: list[Image] = []
    refusals: list[tuple[Path, ImageryError | ContractError]] = []
    with gdal_environment():
        for path, folder in _find_rasters(paths).items():
            outcome = _try_header(path, folder, contract, supplied, bands)
            if isinstance(outcome, Image):
                images.append(outcome)
            elif folder is None:
                raise outcome
            else:
                refusals.append((path, outcome))
    if not images:
        _, first = refusals[0]
        raise (
            first
            if len(refusals) == 1
            else type(first)(f"none of the {len(refusals)} rasters found can be used; the first: {first}")
        )
    finest = min(images, key=lambda image: image.gsd_metres)
    if finest.gsd_metres > contract.coarsest_gsd_metres * GSD_TOLERANCE:
        raise ContractError(
            f"the pixels of {finest.path} measure {finest.gsd_metres:.3g} m on the ground, the model wants "
            f"{contract.coarsest_gsd_metres:g} m or finer; use finer imagery or a model made for this one"
        )
    return Imagery(tuple(images), tuple((str(path), str(refusal)) for path, refusal in refusals))


def _try_header(
    path: Path, folder: Path | None, contract: ChipContract, crs: CRS | None, bands: tuple[int, ...] | None
) -> Image | ImageryError | ContractError:
    try:
        check_raster(path, folder)
        return read_header(path, contract, crs=crs, bands=bands)
    except (ImageryError, ContractError) as refusal:
        return refusal


def _find_rasters(paths: Sequence[str | Path]) -> dict[Path, Path | None]:
    """Give every raster once, in order, with the folder it was found in; None if it is named itself."""
    if not paths:
        raise ImageryError("no imagery is named; name a raster or a folder of rasters")
    found: dict[Path, Path | None] = {}
    for path in map(Path, paths):
        # os.path: unlike Path's methods these answer False where a folder may not be looked into.
        if os.path.isdir(path):  # noqa: PTH112
            folder = path.resolve()
            inside = _list_folder(folder)
            if not inside:
                raise ImageryError(f"the folder {path} holds no raster ({' '.join(RASTER_SUFFIXES)})")
            for raster in inside:
                found.setdefault(raster, folder)
        elif os.path.exists(path):  # noqa: PTH110
            found[path.resolve()] = None
        else:
            raise ImageryError(f"{path} does not exist, or may not be read; name a raster or a folder")
    return found


def _list_folder(folder: Path) -> list[Path]:
    return sorted(
        Path(os.path.realpath(Path(root, name)))  # Path.resolve raises where links lead round in a circle
        for root, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(RASTER_SUFFIXES) and not name.startswith(".")
    )


def _supply_crs(crs: str | CRS) -> CRS:
    try:
        return CRS.from_user_input(crs)
    except CRSError as error:
        raise ImageryError(f"--imagery-crs {crs} is no reference system; write it as EPSG:32615") from error
