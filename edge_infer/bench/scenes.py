"""Made-up imagery and footprints of known difficulty for `bench --feed`; a seed makes the same files again.

Blocks that no window touches are left out of a file (GeoTIFF's sparse blocks), so that a county of 400 m
between houses is a small file. Nothing else of it differs, as such blocks are never read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyogrio.raw
import rasterio
import rasterio.shutil
import shapely
from rasterio.transform import Affine, from_origin
from rasterio.windows import Window

from edge_infer.bundle import MODEL_MEMBER, write_bundle
from edge_infer.manifest import ChipContract, Manifest

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

UTM = "EPSG:32615"
EAST, NORTH = 360_000.0, 4_100_000.0
LONGITUDE, LATITUDE = -94.5, 37.0
METRES_PER_DEGREE = 111_320.0
HOUSE_METRES, SHIFT_METRES = 10.0, 3.0
"""Side of a house, and how far it may stand from its place in the grid."""
MARGIN_METRES = 40.0
"""From the outermost houses to the edge: their windows lie on the image."""
TEXTURE_PIXELS = 1024
JPEG_QUALITY = 85
CLASSES, COLORS = ("damaged", "no visible damage"), ("#d62728", "#2ca02c")


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneKind:
    """What makes one scene hard or easy."""

    step_metres: float
    """Between neighbouring houses."""
    gsd_metres: float
    block_pixels: int = 512
    window_metres: float = 60.0
    compress: str = "JPEG"
    bands: tuple[str, ...] = ("red", "green", "blue")
    dtype: str = "uint8"
    geographic: bool = False
    """EPSG:4326, with pixels that are square in metres at the scene's latitude."""
    tiles: int = 1
    """Files that the imagery is cut into; a square number or twice one. A single one is a COG."""


KINDS = {
    "suburb": SceneKind(step_metres=20, gsd_metres=0.3),
    "county": SceneKind(step_metres=400, gsd_metres=0.3),
    "mosaic": SceneKind(step_metres=20, gsd_metres=0.03),
    "tiles": SceneKind(step_metres=20, gsd_metres=0.3, block_pixels=256, tiles=2000),
    "deflate16": SceneKind(
        step_metres=20,
        gsd_metres=0.3,
        compress="DEFLATE",
        bands=("red", "green", "blue", "nir"),
        dtype="uint16",
    ),
    "degrees": SceneKind(step_metres=20, gsd_metres=0.3, geographic=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Files of one scene."""

    bundle: Path
    """Its model is no model: only the contract is used, by an engine that answers at once."""
    imagery: Path
    footprints: Path
    count: int


def make_scene(kind: SceneKind, count: int, folder: Path, *, seed: int = 0, empty: bool = False) -> Scene:
    """Make the files of a scene of `count` houses in `folder`, which exists.

    An `empty` one has no pixels, which is enough to plan a run over millions of houses.
    """
    rng = np.random.default_rng(seed)
    across = math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    # In no order, as footprints mostly come.
    place = np.stack(np.divmod(rng.permutation(count), across)[::-1], axis=1) * kind.step_metres
    centres = place + MARGIN_METRES + rng.uniform(-SHIFT_METRES, SHIFT_METRES, (count, 2))
    size = np.array([across - 1, down - 1]) * kind.step_metres + 2 * MARGIN_METRES
    extent = np.ceil(size / kind.gsd_metres).astype(int)
    places = centres[:0] if empty else centres
    imagery = _write_imagery(kind, extent, places / kind.gsd_metres, folder, rng)
    scene = Scene(
        bundle=folder / "instant.edgemodel", imagery=imagery, footprints=folder / "houses.gpkg", count=count
    )
    _write_footprints(kind, centres, scene.footprints)
    write_bundle(scene.bundle, _manifest(kind), {MODEL_MEMBER: b"answered at once, by no model"})
    return scene


def _transform(kind: SceneKind) -> Affine:
    """From pixels to map units."""
    if not kind.geographic:
        return from_origin(EAST, NORTH, kind.gsd_metres, kind.gsd_metres)
    degrees = kind.gsd_metres / METRES_PER_DEGREE
    return from_origin(LONGITUDE, LATITUDE, degrees / math.cos(math.radians(LATITUDE)), degrees)


def _write_footprints(kind: SceneKind, centres: NDArray[np.float64], path: Path) -> None:
    """Write houses at `centres`, (n, 2) in metres right of and below the upper left corner."""
    half = HOUSE_METRES / 2
    corners = np.hstack([centres - half, centres + half]) / kind.gsd_metres
    to_map = _transform(kind)
    left, top = to_map @ (corners[:, 0], corners[:, 1])
    right, bottom = to_map @ (corners[:, 2], corners[:, 3])
    pyogrio.raw.write(
        path,
        shapely.to_wkb(shapely.box(left, bottom, right, top)),
        field_data=[np.arange(len(centres))],
        fields=np.array(["number"]),
        geometry_type="Polygon",
        crs="EPSG:4326" if kind.geographic else UTM,
    )


def _write_imagery(
    kind: SceneKind,
    size: NDArray[np.int_],
    places: NDArray[np.float64],
    folder: Path,
    rng: np.random.Generator,
) -> Path:
    """Write one file, or a folder of them; `size` is columns and rows, `places` (n, 2) are in pixels."""
    texture = _texture(kind, rng)
    if kind.tiles == 1:
        path, plain = folder / "image.tif", folder / "image.plain.tif"
        _write_image(kind, plain, np.zeros(2, dtype=int), size, places, texture, rng)
        _make_cog(kind, plain, path)
        plain.unlink()
        return path
    path = folder / "images"
    path.mkdir()
    across = round(math.sqrt(kind.tiles))
    down = -(-kind.tiles // across)
    side = -(-size // (across, down))
    for number in range(kind.tiles):
        corner = np.array([number % across, number // across]) * side
        _write_image(kind, path / f"{number:05}.tif", corner, side, places - corner, texture, rng)
    return path


def _write_image(
    kind: SceneKind,
    path: Path,
    corner: NDArray[np.int_],
    size: NDArray[np.int_],
    places: NDArray[np.float64],
    texture: NDArray[Any],
    rng: np.random.Generator,
) -> None:
    """Write one file whose upper left pixel is `corner` of the scene."""
    block = kind.block_pixels
    width, height = size.tolist()
    options: dict[str, Any] = {"compress": kind.compress, "sparse_ok": True, "bigtiff": "IF_SAFER"}
    if kind.compress == "JPEG":
        options |= {"photometric": "YCBCR", "jpeg_quality": JPEG_QUALITY}
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=len(kind.bands),
        dtype=kind.dtype,
        crs="EPSG:4326" if kind.geographic else UTM,
        transform=_transform(kind) @ Affine.translation(*corner.tolist()),
        tiled=True,
        blockxsize=block,
        blockysize=block,
        interleave="pixel",
        **options,
    ) as dataset:
        for row, column in _touched(kind, size, places):
            left, top = rng.integers(0, TEXTURE_PIXELS - block, 2)
            wide, high = min(block, width - column * block), min(block, height - row * block)
            dataset.write(
                texture[:, top : top + high, left : left + wide],
                window=Window(column * block, row * block, wide, high),
            )
        dataset.descriptions = kind.bands


def _make_cog(kind: SceneKind, plain: Path, path: Path) -> None:
    """Let GDAL's own driver make a COG of a file."""
    options = {"quality": JPEG_QUALITY} if kind.compress == "JPEG" else {}
    rasterio.shutil.copy(
        plain,
        path,
        driver="COG",
        compress=kind.compress,
        blocksize=kind.block_pixels,
        overview_resampling="average",
        sparse_ok=True,
        bigtiff="IF_SAFER",
        **options,
    )


def _touched(kind: SceneKind, size: NDArray[np.int_], places: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Row and column of each block that a window and its filter touch, in file order."""
    reach = kind.window_metres / kind.gsd_metres * 0.6 + 4
    blocks = -(-size // kind.block_pixels)
    low = np.floor((places - reach) / kind.block_pixels).astype(int)
    high = np.floor((places + reach) / kind.block_pixels).astype(int)
    here = ((high >= 0) & (low < blocks)).all(axis=1)
    touched = np.zeros(blocks[::-1], dtype=bool)
    for (left, top), (right, bottom) in zip(low[here].tolist(), high[here].tolist(), strict=True):
        touched[max(top, 0) : bottom + 1, max(left, 0) : right + 1] = True
    return [(row, column) for row, column in np.argwhere(touched).tolist()]


def _texture(kind: SceneKind, rng: np.random.Generator) -> NDArray[Any]:
    """Make something that compresses as photographs do: soft forms of several sizes under a little noise."""
    shape = (len(kind.bands), TEXTURE_PIXELS, TEXTURE_PIXELS)
    texture = rng.normal(0, 4, shape)
    for pixels, strength in ((8, 12.0), (32, 20.0), (128, 25.0)):
        coarse = rng.normal(0, strength, (1, TEXTURE_PIXELS // pixels, TEXTURE_PIXELS // pixels))
        texture += np.kron(coarse, np.ones((1, pixels, pixels)))
    top = float(np.iinfo(kind.dtype).max)
    return np.asarray(np.clip((texture + 128) * (top / 255), 0, top).astype(kind.dtype))


def _manifest(kind: SceneKind) -> Manifest:
    bands = len(kind.bands)
    return Manifest(
        name="instant",
        created="2025-06-01T12:00:00Z",
        architecture="none",
        parameters=1,
        classes=CLASSES,
        colors=COLORS,
        contract=ChipContract(
            ground_metres=kind.window_metres,
            chip_pixels=224,
            bands=kind.bands,
            dtype=kind.dtype,  # type: ignore[arg-type]
            value_range=(0.0, float(np.iinfo(kind.dtype).max)),
            coarsest_gsd_metres=0.5,
        ),
        mean=(120.0,) * bands,
        std=(60.0,) * bands,
        temperature=1.0,
    )
