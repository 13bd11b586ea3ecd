"""A synthetic town after a fire: laid out in metres, drawn into two images, and mapped with its results.

In data-flow order: `layout` (what stands where), `shapes` (coloured polygons), `paint` (pixels on any grid),
`files` (rasters and footprints), `map` (the result as a picture).
"""

from __future__ import annotations
