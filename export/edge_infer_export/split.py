"""Parts chips into training and validation by place, so that no ground is seen on both sides.

Chips that lie near each other show the same roofs; split at random, the validation figures would flatter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely

from edge_infer.errors import Refused
from edge_infer.progress import tally

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_infer_export.dataset import Chips

_METRES_PER_DEGREE = 111_195.0
"""Of latitude, on a sphere: good to half a per cent, which is enough to keep windows apart."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Positions of chips, each in one of three groups."""

    training: NDArray[np.int64]
    validation: NDArray[np.int64]
    dropped: NDArray[np.int64]
    """Chips whose window meets a window of the validation side."""
    block_metres: float
    """Side of the ground blocks that were dealt out."""


def split_by_place(chips: Chips, *, share: float, seed: int) -> Split:
    """Deal ground blocks to the validation side until it holds about `share` of each class.

    Blocks start at eight windows a side and are halved (down to two windows) where they are too few or too
    large to leave every class on both sides. Training chips whose window meets a validation window are
    dropped.

    Args:
        chips: the chips.
        share: wanted part of the chips on the validation side, 0..0.5.
        seed: of the order in which blocks are dealt.

    Raises:
        Refused: the share is out of range, or the chips lie so close together that no such split exists.

    """
    if not 0 < share <= 0.5:
        raise Refused(f"the validation share must lie above 0 and at most at 0.5, got {share}")
    reach = float(chips.ground_metres.max(initial=0.0))
    for windows in (8, 4, 2):
        block_metres = windows * reach
        held_out = _deal(_blocks(chips, block_metres), chips, share, np.random.default_rng(seed))
        dropped = ~held_out & _meets(chips, held_out)
        training = ~held_out & ~dropped
        if all(_has_every_class(chips, side) for side in (training, held_out)):
            return Split(
                training=np.flatnonzero(training),
                validation=np.flatnonzero(held_out),
                dropped=np.flatnonzero(dropped),
                block_metres=block_metres,
            )
    raise Refused(
        f"{len(chips)} chips cannot be parted by place with every class on both sides "
        f"({tally(chips.counts())}; windows of {reach:g} m); add chips from elsewhere"
    )


def _has_every_class(chips: Chips, side: NDArray[np.bool_]) -> bool:
    return len(np.unique(chips.targets[side])) == len(chips.classes)


def _blocks(chips: Chips, block_metres: float) -> NDArray[np.int64]:
    """Find the ground block of each chip: int64, (n,), numbers from 0."""
    step = block_metres / _METRES_PER_DEGREE
    row = np.floor(chips.latitude / step)
    # Each row of blocks has its own step in longitude, so that blocks are square anywhere on earth.
    narrowing = np.cos(np.radians(np.clip((row + 0.5) * step, -89.0, 89.0)))
    column = np.floor(chips.longitude * narrowing / step)
    _, block = np.unique(np.stack([row, column]), axis=1, return_inverse=True)
    return block.reshape(-1)


def _deal(
    block: NDArray[np.int64], chips: Chips, share: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Take blocks in random order where that brings the validation side's classes nearer to the share."""
    classes = len(chips.classes)
    held = np.zeros((block.max(initial=-1) + 1, classes))
    np.add.at(held, (block, chips.targets), 1)
    wanted = share * held.sum(axis=0)
    taken = np.zeros(classes)
    chosen = np.zeros(len(held), bool)
    for candidate in rng.permutation(len(held)):
        with_it = taken + held[candidate]
        # Distances in parts of what is wanted, so that a rare class counts as much as a common one.
        if np.abs(with_it / wanted - 1).sum() < np.abs(taken / wanted - 1).sum():
            taken = with_it
            chosen[candidate] = True
    return chosen[block]


def _meets(chips: Chips, held_out: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether each chip's window meets a held-out window: bool, (n,)."""
    half_y = chips.ground_metres / 2 / _METRES_PER_DEGREE
    half_x = half_y / np.cos(np.radians(np.clip(chips.latitude, -89.0, 89.0)))
    x, y = chips.longitude, chips.latitude
    windows = shapely.box(x - half_x, y - half_y, x + half_x, y + half_y)
    near, _ = shapely.STRtree(windows[held_out]).query(windows, predicate="intersects")
    met = np.zeros(len(windows), bool)
    met[near] = True
    return met
