"""A look at every chip before training: which can be decoded, and what their bands hold.

Damage that a header does not show would otherwise be found at the end, when a chip of the test side is read
for the first time.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edge_infer_export.chips.pictures import UnreadableChip

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from edge_infer_export.chips.dataset import Chips
    from edge_infer_export.training.loader import Readable

_AT_ONCE = 64


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What was found."""

    chips: Chips
    """Those n that can be decoded; the others are listed in its `unreadable`."""
    sums: NDArray[np.int64]
    """int64, (n, C): over the pixels of each chip, by band."""
    squares: NDArray[np.int64]
    """int64, (n, C): sums of squares, likewise."""

    def normalisation(self, rows: NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of each band of the chips at `rows`; the latter is at least one grey level."""
        side, _, _ = self.chips.contract.chip_shape
        count = len(rows) * side**2
        sums, squares = (part[rows].sum(axis=0).tolist() for part in (self.sums, self.squares))
        # In whole numbers, so that nothing is lost in the difference.
        spreads = [
            math.sqrt(count * square - total**2) / count for total, square in zip(sums, squares, strict=True)
        ]
        return tuple(total / count for total in sums), tuple(max(spread, 1.0) for spread in spreads)


def survey(
    chips: Chips, source: Readable, *, threads: int, tick: Callable[[str], None] = lambda _: None
) -> Survey:
    """Decode every chip once.

    Args:
        chips: the chips.
        source: what reads them, as a cache does that keeps what it read.
        threads: that decode.
        tick: is told how far it is, often; what it raises ends the survey.

    """
    bands = len(chips.contract.bands)
    sums, squares = np.zeros((2, len(chips), bands), np.int64)
    damaged: dict[int, str] = {}

    def look_at(row: int) -> None:
        try:
            pixels = source.read(np.array([row]))[0].reshape(-1, bands).astype(np.int64)
        except UnreadableChip as error:
            damaged[row] = str(error).removeprefix(f"{chips.file[row]} ")
            return
        sums[row], squares[row] = pixels.sum(axis=0), (pixels**2).sum(axis=0)

    def look(start: int) -> None:
        for row in range(start, min(start + _AT_ONCE, len(chips))):
            look_at(row)

    pool = ThreadPoolExecutor(threads, "survey")
    try:
        starts = range(0, len(chips), _AT_ONCE)
        for start, _ in zip(starts, pool.map(look, starts), strict=True):
            tick(f"looking at the chips: {start:,} of {len(chips):,}")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if not damaged:
        return Survey(chips, sums, squares)
    kept = np.setdiff1d(np.arange(len(chips)), list(damaged))
    listed = tuple((str(chips.file[row]), damaged[row]) for row in sorted(damaged))
    left = replace(chips.take(kept), unreadable=(*chips.unreadable, *listed))
    return Survey(left, sums[kept], squares[kept])
