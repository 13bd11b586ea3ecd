"""Which chips to calibrate on: a seeded choice that shows the network everything it may meet.

Strata are class x scene x GSD x brightness. They give one chip each in turn, so a rare stratum is not lost
among the common ones. Chips that no camera took are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_infer.errors import Refused

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_infer_calibration.candidates import Candidates

DEFAULT_CHIPS = 512
ENOUGH_CHIPS = 300
"""Fewer are warned of."""
LEAST_CHIPS = 32
"""Fewer are refused."""
LOOKED_AT = 12
"""So many times more chips than wanted are looked at for their brightness."""

_FLAT = 2.0
"""A chip whose grey levels have a smaller standard deviation shows nothing."""
_SMOOTH = 0.2
"""Least correlation of neighbouring pixels in imagery: measured 0.5 to 0.99; noise has 0."""
_ALIKE = 2.0
"""Grey levels: chips whose means and contrasts vary by less are copies, or drawn by a random generator."""
_SHARE = 0.5
"""The set is refused where more than this share of the chips looks so."""


@dataclass(frozen=True, slots=True, eq=False)
class Looks:
    """What each of n chips looks like."""

    brightness: NDArray[np.float64]
    """float64, (n,): mean grey level, 0..255."""
    contrast: NDArray[np.float64]
    """float64, (n,): standard deviation, grey levels."""
    smoothness: NDArray[np.float64]
    """float64, (n,): correlation of neighbouring pixels along rows and columns; 1 for a constant chip."""


def look(candidates: Candidates, rows: NDArray[np.int64]) -> Looks:
    """Look at the chips at `rows`, a few at a time."""
    found = np.concatenate([_look(batch) for batch in candidates.batches(rows)], axis=1)
    return Looks(*found)


def _look(chips: NDArray[np.uint8]) -> NDArray[np.float64]:
    values = chips.mean(axis=3, dtype=np.float64)
    deviation = values - values.mean(axis=(1, 2), keepdims=True)
    variance = (deviation**2).mean(axis=(1, 2))
    along = (deviation[:, :, 1:] * deviation[:, :, :-1]).mean(axis=(1, 2))
    down = (deviation[:, 1:] * deviation[:, :-1]).mean(axis=(1, 2))
    smoothness = np.where(variance > 0, (along + down) / 2 / np.maximum(variance, 1e-9), 1.0)
    return np.stack([values.mean(axis=(1, 2)), np.sqrt(variance), smoothness])


def refuse_synthetic(looks: Looks) -> None:
    """Refuse random and constant data, on which any range would do and none is right.

    Raises:
        Refused: most chips are constant, most are noise, or all look the same.

    """
    flat, noise = looks.contrast < _FLAT, looks.smoothness < _SMOOTH
    for share, what in (
        (flat.mean(), f"show nothing (grey levels vary by less than {_FLAT:g})"),
        (noise.mean(), f"are noise (neighbouring pixels correlate by less than {_SMOOTH:g})"),
    ):
        if share > _SHARE:
            raise Refused(
                f"{share:.0%} of the calibration chips {what}; calibrate on chips of real imagery, as "
                "`edge-infer chips` cuts them"
            )
    if max(looks.brightness.std(), looks.contrast.std()) < _ALIKE:
        raise Refused(
            "all calibration chips look the same (their means and contrasts vary by less than "
            f"{_ALIKE:g} grey levels); calibrate on chips of real imagery, as `edge-infer chips` cuts them"
        )


def choose(
    candidates: Candidates, looks: Looks, rows: NDArray[np.int64], count: int, seed: int
) -> NDArray[np.int64]:
    """Choose up to `count` of the `rows`, int64 (n,), that `looks` describes: int64, ascending."""
    rng = np.random.default_rng(seed)
    strata = strata_of(candidates, looks, rows)
    shuffled = rng.permutation(len(rows))
    # The turn of a chip: how many of its stratum come before it.
    by_stratum = shuffled[np.argsort(strata[shuffled], kind="stable")]
    _, starts, sizes = np.unique(strata[by_stratum], return_index=True, return_counts=True)
    turn = np.arange(len(rows)) - np.repeat(starts, sizes)
    chosen = by_stratum[np.lexsort((rng.random(len(rows)), turn))[:count]]
    return np.sort(rows[chosen])


def strata_of(candidates: Candidates, looks: Looks, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Find the stratum of each chip at `rows`: class, scene, GSD to a tenth, third of brightness."""
    _, scene = np.unique(candidates.scene[rows].astype(str), return_inverse=True)
    gsd = np.rint(np.log(candidates.gsd_metres[rows]) / np.log(1.1)).astype(np.int64)
    thirds = np.searchsorted(np.quantile(looks.brightness, [1 / 3, 2 / 3]), looks.brightness)
    classes = np.zeros(len(rows), np.int64) if candidates.targets is None else candidates.targets[rows]
    _, strata = np.unique(np.stack([classes, scene, gsd, thirds]), axis=1, return_inverse=True)
    return np.asarray(strata.reshape(-1), np.int64)
