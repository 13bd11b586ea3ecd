"""Confidence intervals for figures of chips that are not independent of their neighbours.

Chips of one block of ground show the same storm, the same street and often the same roof, so a thousand
chips of ten blocks say less than a thousand chips of a thousand. Both kinds of interval here know that:

- shares (precision, recall, accuracy): Wilson's interval (Wilson 1927, Probable Inference, the Law of
  Succession, and Statistical Inference, J. Am. Stat. Assoc. 22, 209-212), with the number of chips divided by
  the design effect of the blocks (Kish 1965, Survey Sampling, 5.4) and by what few blocks cost (Korn and
  Graubard 1998, Survey Methodology 24, 193-201)
- anything else (F1, macro-F1, differences): percentile bootstrap over whole blocks (Efron and Tibshirani
  1993, An Introduction to the Bootstrap, chapter 13; over groups: Field and Welsh 2007, J. R. Stat. Soc. B
  69, 369-390; why blocks of ground: Roberts et al. 2017, https://doi.org/10.1111/ecog.02881)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

CONFIDENCE = 0.95
"""Of every interval."""

_Z = 1.959963984540054
"""Of a normal distribution, 97.5 % lie below it."""

RESAMPLES = 2000
_RESAMPLES_AT_ONCE = 100
"""Bounds the memory of a bootstrap over many blocks."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval; all three are None where the figure would divide by zero."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        """Refuse an interval in the wrong order; `ValueError`."""
        if self.low is not None and self.high is not None and not self.low <= self.high:
            raise ValueError(f"an interval must not fall, got {self.low}..{self.high}")

    def to_json(self) -> dict[str, float | None]:
        """Plain JSON values."""
        return {"value": self.value, "low": self.low, "high": self.high}


NOTHING = Estimate(None)


def wilson(right: float, total: float, design_effect: float = 1.0) -> Estimate:
    """Estimate a share, `right` of `total`; the interval is that of `total / design_effect` chips.

    Raises:
        ValueError: not 0 <= right <= total, or a design effect below 1.

    """
    if not 0 <= right <= total or design_effect < 1:
        raise ValueError(f"no share: {right} of {total}, design effect {design_effect}")
    if total == 0:
        return NOTHING
    share, count = right / total, total / design_effect
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    reach = _Z / (1 + _Z**2 / count) * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return Estimate(share, min(max(0.0, middle - reach), share), max(min(1.0, middle + reach), share))


def design_effect(right: NDArray[np.int64], total: NDArray[np.int64]) -> float:
    """How many times wider than for independent chips the variance of a share is, at least 1.

    The variance between blocks by linearisation of a ratio (Cochran 1977, Sampling Techniques, 6.3), over
    that of independent chips. It cannot be told where nothing varies (all right, all wrong) or there is one
    block only, and is 1 there.

    Args:
        right: int64, (P,): chips of each block that are right.
        total: int64, (P,): chips of each block.

    """
    right, total = right[total > 0], total[total > 0]
    blocks, chips = len(total), int(total.sum())
    if blocks < 2:
        return 1.0
    share = right.sum() / chips
    if share in (0.0, 1.0):
        return 1.0
    between = blocks / (blocks - 1) * float(((right - share * total) ** 2).sum()) / chips**2
    # At worst as if all chips were one.
    return float(min(max(between / (share * (1 - share) / chips), 1.0), chips))


def share_over_blocks(right: NDArray[np.bool_], blocks: NDArray[np.int64]) -> Estimate:
    """Estimate the share of chips that are right.

    One block gives no interval: it cannot tell how blocks differ. Where all chips are right, or none, each
    block counts as one chip, for nothing is seen of how alike the chips of a block are. Otherwise the design
    effect is itself an estimate from so many blocks, for which Student's distribution has wider ends than the
    normal one (Korn and Graubard 1998).

    Args:
        right: bool, (n,).
        blocks: int64, (n,): the block of each chip, numbers from 0.

    """
    total = np.bincount(blocks)
    hits = np.bincount(blocks, right).astype(np.int64)
    count, chips, found = int((total > 0).sum()), int(total.sum()), int(hits.sum())
    if count < 2:
        return Estimate(found / chips) if chips else NOTHING
    if found in (0, chips):
        return wilson(found, chips, chips / count)
    return wilson(found, chips, design_effect(hits, total) * (_student(count - 1) / _Z) ** 2)


def _student(freedom: int) -> float:
    """Of Student's distribution with so many degrees of freedom, 97.5 % lie below it."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def matrices_by_block(
    targets: NDArray[np.int64], predictions: NDArray[np.int64], blocks: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """Confusion matrix of each block: int64, (P, K, K), rows are true classes."""
    count = int(blocks.max(initial=-1)) + 1
    cells = np.zeros(count * classes * classes, np.int64)
    np.add.at(cells, (blocks * classes + targets) * classes + predictions, 1)
    return cells.reshape(count, classes, classes)


def bootstrap(
    by_block: NDArray[np.int64], figures: Callable[[NDArray[np.float64]], NDArray[np.float64]], seed: int
) -> NDArray[np.float64]:
    """Draw blocks with replacement, add up what they hold, and compute figures of each sum.

    Args:
        by_block: (P, ...).
        figures: takes sums (b, ...) and gives (b, m).
        seed: of the draws; the same seed draws the same blocks.

    Returns:
        float64, (RESAMPLES, m); (0, m) where there is one block only, which cannot tell how blocks differ.

    """
    count = len(by_block)
    flat = by_block.reshape(count, -1).astype(np.float64)
    if count < 2:
        return figures(flat.reshape(by_block.shape))[:0]
    rng = np.random.default_rng(seed)
    equal = np.full(count, 1 / count)
    return np.concatenate(
        [
            figures(
                (rng.multinomial(count, equal, size=_RESAMPLES_AT_ONCE) @ flat).reshape(
                    -1, *by_block.shape[1:]
                )
            )
            for _ in range(0, RESAMPLES, _RESAMPLES_AT_ONCE)
        ]
    )


def percentile_interval(draws: NDArray[np.float64], value: float | None) -> Estimate:
    """Make an estimate of bootstrap draws (b,).

    Draws that are NaN (no chip of a class) are left out. Draws that are all alike say nothing of the
    interval: a class without a single mistake is not known to be perfect.
    """
    known = draws[np.isfinite(draws)]
    if value is None or len(known) == 0 or np.ptp(known) == 0:
        return Estimate(value)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Estimate(value, min(float(low), value), max(float(high), value))


def f1_of(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """F1 of each class of confusion matrices (..., K, K): (..., K); NaN for a class that is nowhere."""
    right = np.diagonal(matrices, axis1=-2, axis2=-1)
    sides = matrices.sum(axis=-1) + matrices.sum(axis=-2)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(sides > 0, 2 * right / sides, np.nan), np.float64)


def recall_of(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Recall of each class of confusion matrices (..., K, K): (..., K); NaN for a class without chips."""
    true = matrices.sum(axis=-1)
    with np.errstate(invalid="ignore"):
        right = np.diagonal(matrices, axis1=-2, axis2=-1)
        return np.asarray(np.where(true > 0, right / true, np.nan), np.float64)
