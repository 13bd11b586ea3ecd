"""The demo's map: the imagery with every footprint in the colour of its result, errors outlined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
import rasterio
import shapely
from affine import Affine
from matplotlib.collections import PolyCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds

from edge_infer_export.evaluation.plots import new_figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_GSD_METRES = 0.6
_ERROR_COLOUR, _TRAINED_COLOUR, _NO_RESULT_COLOUR = "#ffff33", "#ffffff", "#bdbdbd"


@dataclass(frozen=True, slots=True, eq=False)
class MapFeatures:
    """What the map shows of the footprints, n of them classified and m trained on."""

    geometries: NDArray[np.object_]
    """(n,) shapely geometries or None, EPSG:4326."""
    predicted: NDArray[np.object_]
    """(n,) class, or None where there is no result."""
    true: NDArray[np.object_]
    """(n,) class."""
    trained: NDArray[np.object_]
    """(m,) shapely geometries or None, EPSG:4326."""


def draw_map(
    path: Path,
    images: Sequence[Path],
    features: MapFeatures,
    *,
    colours: Mapping[str, str],
    crs: pyproj.CRS,
    title: str,
) -> None:
    """Draw the map as PNG.

    Args:
        path: the file to write.
        images: rasters to lay under it, the first on top.
        features: the footprints.
        colours: `#rrggbb` of each class.
        crs: of the map; projected, in metres.
        title: above the map.

    """
    picture, extent = _mosaic(images, crs)
    west, east, south, north = extent
    width = 16.0
    figure = new_figure(width, width * (north - south) / (east - west) + 1.1)
    axes = figure.subplots()
    axes.imshow(picture, extent=extent, interpolation="antialiased")
    tested, trained = (_project(part, crs) for part in (features.geometries, features.trained))
    frame = shapely.box(west + 3, south + 3, east - 3, north - 3)
    _draw_part(axes, trained, frame, "trained on this part")
    _draw_part(axes, tested, frame, "tested on this part")
    _add(axes, trained, edgecolor=_TRAINED_COLOUR, linewidth=0.5)
    known = np.array([label is not None for label in features.predicted], bool)
    for name, colour in colours.items():
        chosen = tested[features.predicted == name]
        _add(axes, chosen, facecolor=colour, alpha=0.45)
        _add(axes, chosen, edgecolor=colour, linewidth=1.0)
    _add(axes, tested[~known], facecolor=_NO_RESULT_COLOUR, edgecolor="black", linewidth=1.0)
    wrong = known & (features.predicted != features.true)
    _add(axes, shapely.buffer(tested[wrong], 4.0), edgecolor=_ERROR_COLOUR, linewidth=2.2)
    axes.set_xlim(west, east)
    axes.set_ylim(south, north)
    axes.set_axis_off()
    axes.set_title(title, pad=24)
    handles: list[Patch | Line2D] = [
        Patch(facecolor=colour, edgecolor=colour, alpha=0.7, label=f"classified {name}")
        for name, colour in colours.items()
    ]
    handles += [
        Patch(facecolor=_NO_RESULT_COLOUR, edgecolor="black", label="no result"),
        Patch(facecolor="none", edgecolor=_ERROR_COLOUR, linewidth=2.2, label="wrong"),
        Patch(facecolor="none", edgecolor=_TRAINED_COLOUR, label="trained on"),
        Line2D([], [], color="white", linestyle="--", label="border of a part"),
    ]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
    legend.get_frame().set_facecolor("#808080")
    figure.savefig(path, dpi=170)


def _mosaic(
    images: Sequence[Path], crs: pyproj.CRS
) -> tuple[NDArray[np.uint8], tuple[float, float, float, float]]:
    """Lay the images together on the map's grid: uint8 (rows, columns, 3), and west, east, south, north."""
    wkt = crs.to_wkt()
    bounds = []
    for path in images:
        with rasterio.open(path) as image:
            bounds.append(transform_bounds(image.crs, wkt, *image.bounds))
    west, south = np.min(bounds, axis=0)[:2]
    east, north = np.max(bounds, axis=0)[2:]
    columns, rows = int((east - west) / _GSD_METRES), int((north - south) / _GSD_METRES)
    grid = {"crs": wkt, "transform": Affine(_GSD_METRES, 0, west, 0, -_GSD_METRES, north)}
    picture = np.full((rows, columns, 3), 255, np.uint8)
    for path in reversed(images):
        with (
            rasterio.open(path) as image,
            WarpedVRT(
                image, **grid, width=columns, height=rows, resampling=Resampling.average, add_alpha=True
            ) as warped,
        ):
            values = np.moveaxis(warped.read([1, 2, 3, image.count + 1]), 0, -1)
        seen = values[..., 3] > 0
        picture[seen] = values[seen][:, :3]
    return picture, (float(west), float(east), float(south), float(north))


def _project(geometries: NDArray[np.object_], crs: pyproj.CRS) -> NDArray[np.object_]:
    """Carry shapes to the map; points become small discs, and what is null stays so."""
    transformer = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    shapes: NDArray[np.object_] = shapely.transform(
        geometries, lambda ring: np.stack(transformer.transform(*ring.T), axis=-1)
    )
    points = shapely.get_dimensions(shapes) == 0
    shapes[points] = shapely.buffer(shapes[points], 5.0)
    return shapes


def _draw_part(axes: Axes, shapes: NDArray[np.object_], frame: shapely.Polygon, label: str) -> None:
    """Draw a dashed line round a part of the town, inside the map's frame, and its name above the map."""
    inside = shapes[shapely.intersects(shapes, frame)]
    hull = shapely.buffer(shapely.convex_hull(shapely.geometrycollections(inside)), 12.0)
    border = shapely.get_coordinates(shapely.intersection(hull, frame))
    axes.plot(*border.T, color="white", linestyle="--", linewidth=1.6)
    middle = (border[:, 0].min() + border[:, 0].max()) / 2
    axes.annotate(
        label,
        (middle, frame.bounds[3]),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        weight="bold",
        annotation_clip=False,
    )


def _add(axes: Axes, shapes: NDArray[np.object_], *, facecolor: str = "none", **style: Any) -> None:
    rings = [
        shapely.get_coordinates(shapely.get_exterior_ring(part))
        for part in shapely.get_parts(shapes[~shapely.is_missing(shapes)])
    ]
    axes.add_collection(PolyCollection(rings, facecolor=facecolor, **style))
