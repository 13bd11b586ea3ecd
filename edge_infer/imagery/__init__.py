"""The imagery: which images there are, what each of them is, and the pixels of one rectangle at a time.

The only package that opens rasters. In data-flow order:

    environment   GDAL's settings: bounded cache, no network
    trust         what may be opened at all: files that hold their pixels, and plain mosaics of them
    header        one raster: what it is, and whether the model can use it
    opening       all rasters of a run, out of files and folders
    levels        its full resolution and its overviews, each on a pixel grid of its own
    reader        decoded pixels of one rectangle, one reader a thread
"""

from __future__ import annotations

from edge_infer.grid import Grid
from edge_infer.imagery.environment import bound_cache
from edge_infer.imagery.header import GSD_TOLERANCE, Image
from edge_infer.imagery.opening import Imagery, open_imagery
from edge_infer.imagery.reader import Mask, Reader, Tile

__all__ = [
    "GSD_TOLERANCE",
    "Grid",
    "Image",
    "Imagery",
    "Mask",
    "Reader",
    "Tile",
    "bound_cache",
    "open_imagery",
]
