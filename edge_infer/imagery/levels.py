"""The resolutions of an image, its full one and its overviews, each with a pixel grid of its own.

Asked for fewer pixels than there are, GDAL takes an overview and resamples it to the rectangle asked for. So
what a pixel shows depends on the rectangle wherever the two grids do not fit: the overview of 751 columns has
376, not 375.5. Here an overview is opened as a raster of its own, of which whole pixels are read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from edge_infer.imagery.header import has_mask
from edge_infer.imagery.trust import FULL_LEVEL, open_raster

if TYPE_CHECKING:
    import rasterio

    from edge_infer.imagery.header import Image

SQUARE = 256
"""Side, in tile pixels, of the squares in which some rasters are read: nearly free, whether many or few."""

_ROUNDING = Fraction(1, 100)
"""An overview of half the columns, rounded down, is that little coarser than 2, unless the image is tiny."""

_HALVING = frozenset(("JPEG", "JP2OpenJPEG", "JP2ECW", "JP2KAK", "JP2MrSID", "ECW", "MrSID"))
"""Formats whose own overviews come out of the codec: each pixel stands for 2, 4, ... and the last one for
what is left. Overviews that were made by resampling have their pixels spread evenly over the image."""


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """One resolution of an image, open."""

    dataset: rasterio.DatasetReader
    """No coarser overview is taken of it unasked."""
    across: Fraction
    """Full-resolution columns per column."""
    down: Fraction
    """Full-resolution rows per row."""
    squares_from: float
    """Averages of so many columns or rows, and of more, are read in squares that are always the same ones:
    GDAL puts this raster together from others, which it resamples to the rectangle asked for."""
    masked: bool

    def suits(self, image: Image, decimation: int) -> bool:
        """Say whether it is no coarser than wanted and has the image's mask, which overviews may lack."""
        return max(self.across, self.down) <= decimation * (1 + _ROUNDING) and self.masked == image.has_mask


def open_level(image: Image, number: int) -> Level:
    """Open the overview of this number, or `FULL_LEVEL`.

    Raises:
        OSError: the image is gone, broken, or of another size than its header said.

    """
    dataset = open_raster(image.path, level=number)
    width, height = image.grid.width, image.grid.height
    if number == FULL_LEVEL and (dataset.width, dataset.height) != (width, height):
        dataset.close()
        raise OSError("its size has changed since the run began")
    halved = number != FULL_LEVEL and dataset.driver in _HALVING and not Path(f"{image.path}.ovr").exists()
    return Level(
        dataset,
        _ratio(width, dataset.width, halved=halved),
        _ratio(height, dataset.height, halved=halved),
        math.inf if dataset.driver != "VRT" else 2 if number == FULL_LEVEL else 1,
        has_mask(dataset, image.band_indexes),
    )


def _ratio(full: int, reduced: int, *, halved: bool) -> Fraction:
    ratio = Fraction(full, reduced)
    power = 1 << round(math.log2(ratio))
    return Fraction(power) if halved and -(-full // power) == reduced else ratio


@dataclass(frozen=True, slots=True)
class Span:
    """Where a tile lies along one axis of a level."""

    start: int
    """Its first pixel of the level, a multiple of `step`."""
    stop: int
    """The one behind its last."""
    step: int
    """Pixels of the level per pixel of the tile; the last one has what is left over at the image's edge."""
    scale: Fraction
    """Full-resolution pixels per pixel of the tile."""

    @classmethod
    def covering(cls, low: int, length: int, decimation: int, ratio: Fraction, size: int) -> Span:
        """Cover `length` full-resolution pixels from `low` on.

        ratio: full-resolution pixels per pixel of the level, which has `size` of them.
        """
        step = max(1, int(decimation / ratio + _ROUNDING))
        scale = ratio * step
        first, behind = low // scale, -(-(low + length) // scale)
        return cls(first * step, min(behind * step, size), step, scale)

    @property
    def origin(self) -> float:
        """Its edge, in full-resolution pixels."""
        return float(self.start // self.step * self.scale)

    def within(self, wider: Span) -> slice:
        """Give its pixels among those of a tile that holds them all."""
        first = (self.start - wider.start) // self.step
        return slice(first, first - (self.start - self.stop) // self.step)

    def whole_squares(self, size: int) -> Span:
        """Widen it to whole squares, as far as the level of `size` pixels has them."""
        side = SQUARE * self.step
        return Span(self.start // side * side, min(-(-self.stop // side) * side, size), self.step, self.scale)

    def pieces(self, square: bool) -> list[tuple[int, int]]:
        """Divide it into (start, length) to read one by one: squares, and what is left over at the edge.

        What is left over is always read alone, because GDAL would stretch all the others with it.
        """
        cuts = {self.start, self.stop - self.stop % self.step, self.stop}
        if square:
            cuts.update(range(self.start, self.stop, SQUARE * self.step))
        return [(low, high - low) for low, high in pairwise(sorted(cuts))]
