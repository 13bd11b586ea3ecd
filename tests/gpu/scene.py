"""A scene of houses on a grid, or scattered ones, on a JPEG COG of 0.3 m."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyogrio.raw
import rasterio
import shapely
from rasterio.transform import from_origin

if TYPE_CHECKING:
    from pathlib import Path

GSD, WEST, NORTH = 0.3, 360_000.0, 4_100_000.0


def write_scene(folder: Path, *, pixels: int, step_metres: float, scattered: int = 0) -> Path:
    """Write scene.tif, square, with houses.gpkg: one each step, or `scattered` ones; give the folder."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (3, pixels // 16, pixels // 16), np.uint8)
    with rasterio.open(
        folder / "scene.tif", "w", driver="COG", width=pixels, height=pixels, count=3, dtype="uint8",
        crs="EPSG:32615", transform=from_origin(WEST, NORTH, GSD, GSD), compress="JPEG",
        num_threads="ALL_CPUS",
    ) as dataset:  # fmt: skip
        dataset.write(np.kron(coarse, np.ones((1, 16, 16), np.uint8)))
    inside = pixels * GSD - 70
    if scattered:
        x, y = rng.uniform(0, inside, (2, scattered))
    else:
        x, y = (axis.ravel() for axis in np.meshgrid(*[np.arange(0, inside, step_metres)] * 2))
    x, y = WEST + 35 + x, NORTH - 35 - y
    pyogrio.raw.write(
        folder / "houses.gpkg", shapely.to_wkb(shapely.box(x - 4, y - 4, x + 4, y + 4)),
        field_data=[np.arange(len(x))], fields=np.array(["number"]), geometry_type="Polygon",
        crs="EPSG:32615",
    )  # fmt: skip
    return folder
