"""How far footprints lie off the roofs of an image, found without any label.

Roofs end in edges. Laid over the roofs, outlines run along stronger brightness gradients than anywhere
else near, so every shift on a grid is tried and the one with the strongest gradients is taken. Whoever maps
a town sees the shift in a GIS and moves the layer; this does the same by a rule, the same for all footprints
of an image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

if TYPE_CHECKING:
    from collections.abc import Sequence

    from affine import Affine
    from numpy.typing import NDArray

REACH_METRES, STEP_METRES = 8.0, 0.5
STRONGEST = 6.0
"""A gradient counts at most so many medians: one white roof must not decide."""


def pixel_outlines(outlines: Sequence[Any], to_pixels: Affine) -> list[Any]:
    """Bring outlines from an image's reference system into its pixel space."""
    return [
        shapely.transform(outline, lambda points: np.column_stack(to_pixels * points.T))
        for outline in outlines
    ]


def outline_shift(
    pixels: NDArray[np.uint8], outlines: Sequence[Any], metres: tuple[float, float]
) -> tuple[float, float]:
    """Find the shift, in metres to the right and down, that lays outlines on the edges of an image.

    pixels: uint8, (H, W, C); outlines: polygons in its pixel space; metres: of a pixel, across and down.
    """
    brightness = _smooth(pixels.mean(axis=2))
    down, across = np.gradient(brightness)
    strength = np.hypot(down, across)
    strength = np.minimum(strength / np.median(strength), STRONGEST)
    steps = np.arange(-REACH_METRES, REACH_METRES + STEP_METRES / 2, STEP_METRES)
    rights, downs = np.meshgrid(steps / metres[0], steps / metres[1])
    total = np.zeros_like(rights)
    height, width = strength.shape
    for outline in outlines:
        points = shapely.get_coordinates(shapely.segmentize(outline, 1.0))
        columns = np.rint(points[:, 0, None, None] + rights - 0.5).astype(int).clip(0, width - 1)
        rows = np.rint(points[:, 1, None, None] + downs - 0.5).astype(int).clip(0, height - 1)
        along = strength[rows, columns].mean(axis=0)
        total += along / along.mean()
    row, column = np.unravel_index(_smooth(total).argmax(), total.shape)
    return float(steps[column]), float(steps[row])


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weigh each value (H, W) with its neighbours 1 : 2 : 1 in both directions."""
    padded = np.pad(values, 1, mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smoothed: NDArray[np.float64] = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16
    return smoothed
