"""What measures of colour and texture reach without a network: the tornado's roofs, tile by tile.

    python tests/acceptance/classical.py DATA OUT

A logistic regression on how brightness, colours, gradients and local contrast are distributed inside of each
footprint and around it, on the same footprints, moved alike, and the same tiles as training.py. It shows
what the data give to two hundred labels; a network that stays below it has not learned enough.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fiona
import numpy as np
import rasterio
import shapely
from joplin import CLASSES, TILES  # type: ignore[import-not-found]
from outlines import pixel_outlines  # type: ignore[import-not-found]
from rasterio.features import rasterize
from scipy.ndimage import gaussian_gradient_magnitude, uniform_filter
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from training import show, write_moved  # type: ignore[import-not-found]

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARES = (5, 25, 50, 75, 95)
RING_PIXELS = (2, 9)
"""Around the footprint: from where to where."""
COLOURS = 4
"""Levels of each band in the histogram of colours."""


def measure(pixels: NDArray[np.uint8], outlines: list[Any]) -> NDArray[np.float64]:
    """Describe outlines in the pixel space of an image, uint8 (H, W, 3): float64, (n, D)."""
    bands = pixels.astype(np.float64) / 255
    red, green, blue = np.moveaxis(bands, 2, 0)
    grey = bands.mean(axis=2)
    maps = [grey, red, blue, blue - red, green - (red + blue) / 2]
    maps.append((bands.max(axis=2) - bands.min(axis=2)) / (bands.max(axis=2) + 0.01))
    maps += [gaussian_gradient_magnitude(grey, scale) for scale in (0.7, 1.2, 2.2)]
    maps += [
        np.sqrt(np.maximum(uniform_filter(grey**2, side) - uniform_filter(grey, side) ** 2, 0))
        for side in (3, 7)
    ]
    stack = np.stack(maps)
    levels = np.minimum((bands * COLOURS).astype(int), COLOURS - 1) @ (COLOURS**2, COLOURS, 1)
    found = []
    for outline in outlines:
        ring = outline.buffer(RING_PIXELS[1]).difference(outline.buffer(RING_PIXELS[0]))
        measures: list[NDArray[np.float64]] = []
        for region in (outline, ring):
            inside = rasterize([region], out_shape=grey.shape, all_touched=True).astype(bool)
            values = stack[:, inside]
            measures += [values.mean(axis=1), values.std(axis=1), *np.percentile(values, SHARES, axis=1)]
            measures.append(np.bincount(levels[inside], minlength=COLOURS**3) / inside.sum())
        found.append(np.concatenate(measures))
    return np.array(found)


def main() -> None:
    """Do it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    measures, rows = [], []
    for tile in TILES:
        imagery, moved = options.data / "joplin" / "post" / f"{tile}.tif", options.out / f"{tile}.gpkg"
        write_moved(options.data / "joplin", tile, imagery, moved)
        with fiona.open(moved) as source:
            labelled = [feature for feature in source if feature.properties["label"] in CLASSES]
        polygons = [shapely.geometry.shape(feature.geometry) for feature in labelled]
        with rasterio.open(imagery) as image:
            pixels, to_pixels = image.read().transpose(1, 2, 0), ~image.transform
        measures.append(measure(pixels, pixel_outlines(polygons, to_pixels)))
        rows += [
            {
                "tile": tile,
                "truth": f.properties["label"],
                "longitude": p.centroid.x,
                "latitude": p.centroid.y,
            }
            for f, p in zip(labelled, polygons, strict=True)
        ]
    features = np.concatenate(measures)
    tiles, truth = (np.array([row[name] for row in rows]) for name in ("tile", "truth"))
    for tile in TILES:
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=3000)
        )
        model.fit(features[tiles != tile], truth[tiles != tile])
        for row, said in zip(
            np.flatnonzero(tiles == tile), model.predict(features[tiles == tile]), strict=True
        ):
            rows[row]["predicted"] = said
    show("all three tiles, logistic regression", rows)


if __name__ == "__main__":
    main()
