"""One object per image: what `run` classifies where no footprints are given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyogrio.raw
import shapely
from pyproj import CRS

from edge_infer.coverage import Coverage, cover
from edge_infer.footprints import Footprints
from edge_infer.grid import transform_points

if TYPE_CHECKING:
    from pathlib import Path

    from edge_infer.grid import Grid
    from edge_infer.imagery import Imagery
    from edge_infer.manifest import ChipContract

WGS84 = CRS.from_epsg(4326)


def write_outlines(imagery: Imagery, path: Path) -> None:
    """Write the outline of each image to a GeoJSON file, in the order of the images."""
    outlines = np.array([_outline(image.grid) for image in imagery.images], dtype=object)
    names = np.array([str(image.path) for image in imagery.images], dtype=object)
    pyogrio.raw.write(
        path,
        geometry=shapely.to_wkb(outlines),
        field_data=[names],
        fields=np.array(["source"]),
        geometry_type="Polygon",
        crs="EPSG:4326",
        driver="GeoJSON",
    )


def cover_own(footprints: Footprints, imagery: Imagery, contract: ChipContract) -> Coverage:
    """Cover outline k by image k alone, whatever other images lie there too."""
    parts = [
        cover(_only(footprints, number), type(imagery)((image,), ()), contract)
        for number, image in enumerate(imagery.images)
    ]
    on_image = [np.where(part.image >= 0, number, -1) for number, part in enumerate(parts)]
    boxes = np.concatenate([part.boxes for part in parts])
    middles = boxes[:, :2] + boxes[:, 2:] / 2
    return Coverage(
        image=np.concatenate(on_image).astype(np.int32),
        boxes=boxes,
        gsd_metres=np.concatenate([part.gsd_metres for part in parts]),
        status=np.concatenate([part.status for part in parts]),
        reason=np.concatenate([part.reason for part in parts]),
        bounds=np.tile(middles, 2),  # the image is there if its middle is: its edges are no part of an object
        footprints=footprints,
    )


def _only(footprints: Footprints, number: int) -> Footprints:
    one = slice(number, number + 1)
    return Footprints(
        fids=footprints.fids[one],
        geometries=footprints.geometries[one],
        crs=footprints.crs,
        usable=footprints.usable[one],
    )


def _outline(grid: Grid) -> shapely.Polygon:
    column = np.array([0.0, grid.width, grid.width, 0.0])
    row = np.array([0.0, 0.0, grid.height, grid.height])
    longitude, latitude = transform_points(grid.crs, WGS84, *grid.to_crs(column, row))
    return shapely.Polygon(np.column_stack([longitude, latitude]))
