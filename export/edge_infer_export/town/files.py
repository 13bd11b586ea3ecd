"""Writes the town as a user would get it: two images on two grids, and footprints with labels.

One image is a JPEG-compressed COG in UTM, the other a tiled GeoTIFF in degrees, whose pixels are not square
on the ground; they overlap a little. The footprints lie some metres off the roofs, as footprints do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyogrio.raw
import pyproj
import rasterio
import rasterio.io
import rasterio.shutil
import shapely
from affine import Affine

from edge_infer_export.town.layout import Extent, plan_town, smooth_noise, turn
from edge_infer_export.town.paint import Camera, paint
from edge_infer_export.town.shapes import draw_shapes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_infer_export.town.layout import House, Town
    from edge_infer_export.town.shapes import Shapes

LABEL_FIELD = "label"
CLASSES = ("damaged", "no_visible_damage")

TOWN_CRS = pyproj.CRS.from_epsg(32611)
_TOWN_ORIGIN = (420_000.0, 3_850_000.0)
"""Easting and northing of the ground frame. UTM metres count as ground metres: 0.04 % is nothing here."""
_SEAM = (0.675, 0.705)
"""The second image begins at the first figure, the first image ends at the second, in parts of the width."""
_TAKEN = "2024:11:18 10:40:00"


@dataclass(frozen=True, slots=True)
class TownFiles:
    """Where the town was written."""

    imagery: Path
    """Folder with the two images."""
    footprints: Path
    """GeoPackage, EPSG:4326, with the fields id, address, built, area_m2, district and label."""


def write_town(folder: str | Path, extent: Extent | None = None, *, seed: int = 7) -> TownFiles:
    """Draw a town and write `imagery/west.tif`, `imagery/east.tif` and `footprints.gpkg` under a folder.

    Files of these names are replaced. The same extent (all of it, if None) and seed give the same pixels.
    """
    folder = Path(folder)
    imagery = folder / "imagery"
    imagery.mkdir(parents=True, exist_ok=True)
    town = plan_town(extent or Extent(), seed)
    shapes = draw_shapes(town)
    _write_west(imagery / "west.tif", town, shapes)
    _write_east(imagery / "east.tif", town, shapes)
    footprints = folder / "footprints.gpkg"
    _write_footprints(footprints, town)
    return TownFiles(imagery, footprints)


def _to_town_crs(ground: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(ground + np.array(_TOWN_ORIGIN), np.float64)


def _draw(
    town: Town, shapes: Shapes, profile: dict[str, Any], camera: Camera, seed: int
) -> NDArray[np.uint8]:
    """Draw the town on the grid that a rasterio profile names: uint8, (3, height, width)."""
    transformer = pyproj.Transformer.from_crs(TOWN_CRS, profile["crs"], always_xy=True)
    to_grid = ~profile["transform"]

    def to_pixels(ground: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = transformer.transform(*_to_town_crs(ground).T)
        return np.stack(to_grid * (x, y), axis=-1)

    size = {"width": profile["width"], "height": profile["height"]}
    pixels = paint(town, shapes, to_pixels, **size, camera=camera, seed=seed)
    return np.moveaxis(pixels, -1, 0)


def _write_west(path: Path, town: Town, shapes: Shapes) -> None:
    """Write the western image: UTM, 0.3 m, a COG with JPEG blocks."""
    gsd = 0.3
    west, north = _TOWN_ORIGIN[0], _TOWN_ORIGIN[1] + town.extent.north_metres
    profile = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 3,
        "width": round(_SEAM[1] * town.extent.east_metres / gsd),
        "height": round(town.extent.north_metres / gsd),
        "crs": "EPSG:32611",
        "transform": Affine(gsd, 0.0, west, 0.0, -gsd, north),
        "photometric": "RGB",
    }
    with rasterio.io.MemoryFile() as memory:
        with memory.open(**profile) as draft:
            draft.write(_draw(town, shapes, profile, Camera(), seed=1))
            draft.update_tags(TIFFTAG_DATETIME=_TAKEN)
        rasterio.shutil.copy(
            memory.name,
            path,
            driver="COG",
            compress="JPEG",
            quality=88,
            blocksize=512,
            overview_resampling="average",
        )


def _write_east(path: Path, town: Town, shapes: Shapes) -> None:
    """Write the eastern image: degrees, about 0.27 m by 0.33 m, another camera's colours, lossless."""
    step = 3.0e-6
    transformer = pyproj.Transformer.from_crs(TOWN_CRS, "EPSG:4326", always_xy=True)
    east, north = town.extent.east_metres, town.extent.north_metres
    corners = np.array([(x, y) for x in (_SEAM[0] * east, east) for y in (0.0, north)])
    longitude, latitude = transformer.transform(*_to_town_crs(corners).T)
    profile = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 3,
        "width": round(np.ptp(longitude) / step),
        "height": round(np.ptp(latitude) / step),
        "crs": "EPSG:4326",
        "transform": Affine(step, 0.0, longitude.min(), 0.0, -step, latitude.max()),
        "photometric": "RGB",
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "compress": "DEFLATE",
        "predictor": 2,
    }
    camera = Camera(gain=(0.93, 0.95, 0.94), haze=12.0, noise=2.6)
    with rasterio.open(path, "w", **profile) as image:
        image.write(_draw(town, shapes, profile, camera, seed=2))
        image.update_tags(TIFFTAG_DATETIME=_TAKEN)


def _footprint(house: House, shift: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Trace a house as a cartographer would: moved, a little turned and a little too large or small."""
    middle = np.array([house.x, house.y])
    traced = turn(house.outline - middle, rng.normal(0, 0.02)) * rng.normal(1.02, 0.03)
    return np.asarray(traced + middle + shift + rng.normal(0, 0.35, 2), np.float64)


def _write_footprints(path: Path, town: Town) -> None:
    rng = np.random.default_rng([town.seed, 2])
    inside = [house for house in town.houses if town.extent.holds(house.x, house.y, margin=-2)]
    # The footprints' offset wanders: 1 to 3 m, much alike among neighbours.
    cell = 20.0
    shape = (int(town.extent.north_metres / cell) + 1, int(town.extent.east_metres / cell) + 1)
    drift = np.stack([smooth_noise(rng, shape, (12.0,)), smooth_noise(rng, shape, (12.0,))], axis=-1)
    geometries = np.empty(len(inside), object)
    for index, house in enumerate(inside):
        shift = np.array([-1.3, 0.9]) + 0.6 * drift[int(house.y / cell), int(house.x / cell)]
        geometries[index] = shapely.Polygon(_footprint(house, shift, rng))
    area = np.round(shapely.area(geometries), 1)
    area[rng.random(len(area)) < 0.02] = np.nan

    # What real layers hold too: a building beyond the imagery, a row without geometry, and a mere point.
    eastern = [index for index, house in enumerate(inside) if house.district == "east"]
    outside, lost, dot = rng.choice(eastern, 3, replace=False)
    geometries[outside] = shapely.transform(geometries[outside], lambda ring: ring + np.array((0.0, 900.0)))
    geometries[lost] = None
    geometries[dot] = shapely.centroid(geometries[dot])

    transformer = pyproj.Transformer.from_crs(TOWN_CRS, "EPSG:4326", always_xy=True)
    degrees = shapely.transform(
        geometries, lambda ring: np.stack(transformer.transform(*_to_town_crs(ring).T), axis=-1)
    )
    fields = {
        "id": np.array([f"B{number:05d}" for number in range(1, len(inside) + 1)], object),
        "address": np.array([house.address for house in inside], object),
        "built": np.array([house.built for house in inside], np.int32),
        "area_m2": area,
        "district": np.array([house.district for house in inside], object),
        LABEL_FIELD: np.array([CLASSES[house.state == "intact"] for house in inside], object),
    }
    path.unlink(missing_ok=True)
    pyogrio.raw.write(
        path,
        shapely.to_wkb(degrees),
        list(fields.values()),
        list(fields),
        layer="footprints",
        driver="GPKG",
        geometry_type="Unknown",
        crs="EPSG:4326",
    )
