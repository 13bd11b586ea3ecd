"""One raster: what its header says, and whether the model can use it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from pyproj import CRS
from pyproj.exceptions import CRSError
from rasterio.enums import ColorInterp, MaskFlags

from edge_infer.errors import ContractError, ImageryError
from edge_infer.grid import Grid, metres_per_pixel
from edge_infer.imagery.environment import GDAL_ERRORS, gdal_words
from edge_infer.imagery.trust import open_raster

if TYPE_CHECKING:
    from pathlib import Path

    import rasterio

    from edge_infer.manifest import ChipContract

GSD_TOLERANCE = 1.01
"""GSDs within one per cent count as the same: 0.3 m is rarely just that on the ground."""

MAX_BLOCK_BYTES = 256 * 2**20
"""A block is decoded whole, so a header that claims larger ones is refused before any memory is taken."""

_UNNAMED = ("gray", "undefined")
"""Colour interpretations that GDAL gives to bands of which the file says nothing."""


@dataclass(frozen=True, slots=True)
class Image:
    """One raster that the model can use."""

    path: str
    """Absolute path."""
    grid: Grid
    """Its pixel space."""
    band_indexes: tuple[int, ...]
    """The model's bands, 1-based, in the order of the contract."""
    dtype: str
    """Type of the pixels, `uint8` or `uint16`."""
    has_mask: bool
    """False: every pixel is valid. True: some may not be (nodata, alpha or a mask)."""
    block_width: int
    """Columns of the blocks that are decoded whole."""
    block_height: int
    """Rows of the blocks."""
    date: str | None
    """When it was taken, ISO 8601 in UTC to the second; None where the file does not say."""
    gsd_metres: float
    """Ground sample distance at the centre: true metres a pixel along the coarser axis."""
    overviews: tuple[int, ...] = ()
    """How many columns become one in each overview, about; in GDAL's order, which is any."""

    @property
    def pixel_bytes(self) -> int:
        """Bytes of a decoded pixel: the model's bands, and the mask."""
        return len(self.band_indexes) * np.dtype(self.dtype).itemsize + self.has_mask


def read_header(
    path: Path, contract: ChipContract, *, crs: CRS | None = None, bands: tuple[int, ...] | None = None
) -> Image:
    """Read what a raster is; no pixel is decoded.

    Args:
        path: the raster.
        contract: what the model needs.
        crs: its reference system, should it state none.
        bands: 1-based numbers of the model's bands, in its order; found by colour interpretation otherwise.

    Raises:
        ImageryError: not a raster, no place on the ground, or stored in blocks too large to decode.
        ContractError: its bands or its pixel type are not the model's.

    """
    try:
        with open_raster(path) as dataset:
            return _describe(dataset, path, contract, crs, bands)
    except GDAL_ERRORS as error:
        raise ImageryError(f"{path} is no raster that GDAL can read here: {gdal_words(error)}") from error


def _describe(
    dataset: rasterio.DatasetReader,
    path: Path,
    contract: ChipContract,
    crs: CRS | None,
    bands: tuple[int, ...] | None,
) -> Image:
    if dataset.count == 0:
        raise ImageryError(f"{path} has no bands of its own; make one of its subdatasets a file or a VRT")
    try:
        grid, gsd_metres = _locate(dataset, crs)
    except ImageryError as error:
        raise ImageryError(f"{path}: {error}") from error
    band_indexes = _choose_bands(dataset, path, contract, bands)
    dtypes = sorted({dataset.dtypes[band - 1] for band in band_indexes})
    if dtypes != [contract.dtype]:
        raise ContractError(
            f"{path} holds {' and '.join(dtypes)} pixels, the model wants {contract.dtype}; convert "
            "the image as the model's training images were (gdal_translate -ot -scale), or use another model"
        )
    _refuse_bomb(dataset, path)
    block_height, block_width = dataset.block_shapes[0]
    return Image(
        path=str(path),
        grid=grid,
        band_indexes=band_indexes,
        dtype=contract.dtype,
        has_mask=has_mask(dataset, band_indexes),
        block_width=block_width,
        block_height=block_height,
        date=_read_date(dataset),
        gsd_metres=gsd_metres,
        overviews=_list_overviews(dataset, band_indexes[0]),
    )


def has_mask(dataset: rasterio.DatasetReader, band_indexes: tuple[int, ...]) -> bool:
    """Say whether any of the bands, 1-based, may have pixels that hold no data."""
    flags = dataset.mask_flag_enums  # of all bands, asked for anew by each look at it
    return any(MaskFlags.all_valid not in flags[band - 1] for band in band_indexes)


def _list_overviews(dataset: rasterio.DatasetReader, band: int) -> tuple[int, ...]:
    # In this domain a file names where its overviews lie, which is anywhere: they are left where they are.
    return () if dataset.tags(ns="OVERVIEWS") else tuple(dataset.overviews(band))


def _refuse_bomb(dataset: rasterio.DatasetReader, path: Path) -> None:
    height, width = dataset.block_shapes[0]
    together = dataset.count if dataset.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "PIXEL" else 1
    size = height * width * together * np.dtype(dataset.dtypes[0]).itemsize
    if size > MAX_BLOCK_BYTES:
        raise ImageryError(
            f"{path} is stored in blocks of {width} x {height} pixels, {size / 2**20:,.0f} MB when decoded; "
            f"blocks of {MAX_BLOCK_BYTES // 2**20} MB can be handled: gdal_translate -of COG"
        )


def _locate(dataset: rasterio.DatasetReader, supplied: CRS | None) -> tuple[Grid, float]:
    """Give the pixel space of an image that its geotransform places on the ground, and its central GSD."""
    if dataset.transform.is_identity:
        if dataset.gcps[0] or dataset.rpcs:
            raise ImageryError(
                "only control points or RPCs place it on the ground; rectify it first: gdalwarp"
            )
        raise ImageryError("it has no geotransform, so no place on the ground; give it a world file")
    crs = _parse_crs(dataset.crs.to_wkt(version="WKT2_2019")) if dataset.crs else supplied
    if crs is None:
        raise ImageryError("it states no reference system; supply one with --imagery-crs")
    grid = Grid(crs, dataset.transform, dataset.width, dataset.height)
    gsd_metres = float(metres_per_pixel(grid, np.array([[grid.width / 2, grid.height / 2]])).max())
    if not gsd_metres > 0:
        raise ImageryError(f"its centre lies outside the domain of {crs.name}; check its georeference")
    return grid, gsd_metres


@lru_cache(maxsize=256)
def _parse_crs(wkt: str) -> CRS:
    """Parse each definition once: 10,000 images share a few."""
    try:
        return CRS.from_wkt(wkt)
    except CRSError as error:
        raise ImageryError(f"PROJ cannot read its reference system: {gdal_words(error)}") from error


def _choose_bands(
    dataset: rasterio.DatasetReader, path: Path, contract: ChipContract, chosen: tuple[int, ...] | None
) -> tuple[int, ...]:
    """Find the contract's bands: as chosen, by name, or in order where no name speaks against it."""
    names = [interpretation.name for interpretation in dataset.colorinterp]
    mismatch = (
        f"{path} has {dataset.count} bands ({', '.join(names[:20])}), "
        f"the model wants {len(contract.bands)} ({', '.join(contract.bands)})"
    )
    if chosen is not None:
        if len(chosen) != len(contract.bands) or not all(1 <= band <= dataset.count for band in chosen):
            raise ContractError(f"{mismatch}, --bands says {', '.join(map(str, chosen))}")
        return chosen
    if ColorInterp.palette in dataset.colorinterp:
        raise ContractError(f"{mismatch}; a colour table is expanded with gdal_translate -expand rgb")
    if all(names.count(band) == 1 for band in contract.bands):
        return tuple(names.index(band) + 1 for band in contract.bands)
    data = [(band, name) for band, name in enumerate(names, start=1) if name != "alpha"]
    if len(data) == len(contract.bands) and all(
        name in (*_UNNAMED, wanted) for (_, name), wanted in zip(data, contract.bands, strict=True)
    ):
        return tuple(band for band, _ in data)
    raise ContractError(f"{mismatch}; say which ones with --bands")


def _read_date(dataset: rasterio.DatasetReader) -> str | None:
    """When the image was taken, as far as its tags say, the one more to be trusted first."""
    acquired = dataset.tags(ns="IMAGERY").get("ACQUISITIONDATETIME", "")
    written = dataset.tags().get("TIFFTAG_DATETIME", "")
    return _to_iso(acquired) or _to_iso(written.replace(":", "-", 2))


def _to_iso(text: str) -> str | None:
    try:
        # Python 3.10 knows neither the letter Z nor every fraction of a second.
        moment = datetime.fromisoformat(re.sub(r"[.,]\d+", "", text.strip()).replace("Z", "+00:00"))
    except ValueError:
        return None
    if moment.tzinfo is not None:
        moment = moment.astimezone(timezone.utc).replace(tzinfo=None)
    return moment.isoformat(timespec="seconds")
