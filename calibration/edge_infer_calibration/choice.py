"""Which chips to calibrate on: a seeded choice that shows the network everything it may meet.

Strata are class x scene x GSD x brightness. They give one chip each in turn, so a rare stratum is not lost
among the common ones. Chips that no camera took are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from edge_infer.errors import Refused
from edge_infer_calibration.strata import in_turn, number

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from edge_infer_calibration.candidates import Candidates

DEFAULT_CHIPS = 512
ENOUGH_CHIPS = 300
"""Fewer are warned of."""
LEAST_CHIPS = 32
"""Fewer are refused."""
MOST_CHIPS = 5000
"""More are refused: the list of the chips must fit into the bundle."""
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
    sha256: NDArray[np.object_]
    """object (str), (n,): of the pixels; see `fingerprints`."""

    def take(self, places: NDArray[np.int64]) -> Looks:
        """Give those at `places`, int64 (k,)."""
        return Looks(**{field.name: getattr(self, field.name)[places] for field in fields(self)})


def look(batches: Iterable[NDArray[np.uint8]]) -> Looks:
    """Look at chips uint8 (b, S, S, C), batch by batch."""
    figures, digests = [], []
    for batch in batches:
        figures.append(_look(batch))
        digests += fingerprints(batch)
    brightness, contrast, smoothness = np.concatenate(figures, axis=1)
    return Looks(brightness, contrast, smoothness, np.array(digests, object))


def fingerprints(chips: NDArray[np.uint8]) -> list[str]:
    """Give the sha256 of each chip's pixels, uint8 (n, S, S, C): equal for copies, whatever their names."""
    return [sha256(chip.tobytes()).hexdigest() for chip in chips]


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


def choose(strata: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Choose up to `count` of chips whose strata, int64 (n,), take turns: positions, int64, ascending."""
    return np.sort(in_turn(strata, np.random.default_rng(seed))[:count])


def strata_of(candidates: Candidates, looks: Looks, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Find the stratum of each chip at `rows`: class, scene, GSD to a tenth, third of brightness."""
    thirds = np.searchsorted(np.quantile(looks.brightness, [1 / 3, 2 / 3]), looks.brightness)
    return number(candidates.strata()[rows], thirds)
