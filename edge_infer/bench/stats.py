"""What a list of measured times says, and how far it can be trusted. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99_9": 0.999}
GROUP_SECONDS = 1.0
"""Throughput is judged by the second."""
FEWEST_GROUPS, MOST_GROUPS, BATCHES_IN_GROUP = 6, 120, 4
"""Two for each third of a run at least; so many batches that one more or less does not look like a change."""
NORMAL_MAD = 1.4826
"""Of a normal distribution the standard deviation is so many times the median absolute deviation."""
CONFIDENCE = 0.95
ROUNDS = 1000
"""Resamplings of one bootstrap."""


def percentiles(values: npt.NDArray[np.float64]) -> dict[str, float | None]:
    """Give mean, percentiles, smallest, largest of (n,) values; n is at least 1.

    A percentile is the smallest value that as large a share is no larger than (nearest rank): one that did
    occur. It is None where fewer than one value would lie above it: the largest value is no estimate of it.
    """
    ordered = np.sort(values)
    count = len(ordered)
    found: dict[str, float | None] = {"mean": float(ordered.mean())}
    for name, share in PERCENTILES.items():
        enough = count * (1 - share) >= 1 - 1e-9
        found[name] = float(ordered[math.ceil(share * count - 1e-9) - 1]) if enough else None
    return {**found, "min": float(ordered[0]), "max": float(ordered[-1])}


def early_stopping_estimate(
    values: npt.NDArray[np.float64], share: float = 0.9, confidence: float = 0.99
) -> float | None:
    """Give a value that the percentile `share` lies below with so much confidence; None for too few values.

    MLPerf's LoadGen reports this in place of the percentile itself ("early stopping", inference_rules.adoc):
    the number of values above the true percentile is binomial, so that an order statistic bounds it whatever
    the distribution. For 90 % and 99 % it takes 64 values; for many it comes down to the percentile.
    """
    count, beyond = len(values), 1 - share
    deviation = math.sqrt(count * beyond * share)
    above = max(0, int(count * beyond - 12 * deviation))  # nothing that counts lies below
    reached = 0.0
    while above < count:
        reached += math.exp(
            math.lgamma(count + 1) - math.lgamma(above + 1) - math.lgamma(count - above + 1)
            + above * math.log(beyond) + (count - above) * math.log(share)
        )  # fmt: skip
        if reached > 1 - confidence:
            break
        above += 1
    above -= 1
    return float(np.sort(values)[count - above - 1]) if above >= 1 else None


@dataclass(frozen=True, slots=True)
class Steadiness:
    """How much a rate changed while it was measured."""

    groups: int
    """Stretches of equal work that were compared."""
    spread: float
    """Robust standard deviation of their rates over their median."""
    drift: float
    """Median of the last third over that of the first, less 1."""


def group_rates(ends: npt.NDArray[np.float64], items: int) -> npt.NDArray[np.float64]:
    """Rates of consecutive stretches of equal work, each about a second long or longer.

    Args:
        ends: (n,), seconds since the start at which each batch was done; ascending.
        items: in one batch.

    Returns:
        (g,) items a second; fewer than `FEWEST_GROUPS` where the run was too short to be judged.

    """
    if not len(ends) or ends[-1] <= 0:
        return np.empty(0)
    groups = min(int(ends[-1] / GROUP_SECONDS), len(ends) // BATCHES_IN_GROUP, MOST_GROUPS)
    if groups == 0:
        return np.empty(0)
    edges = np.linspace(0, len(ends), groups + 1).round().astype(int)
    times = np.concatenate(([0.0], ends))[edges]
    return np.asarray(np.diff(edges) * items / np.diff(times))


def steadiness(rates: npt.NDArray[np.float64]) -> Steadiness | None:
    """Judge (g,) rates in the order of time; None where they are too few."""
    if len(rates) < FEWEST_GROUPS:
        return None
    middle, third = float(np.median(rates)), len(rates) // 3
    spread = NORMAL_MAD * float(np.median(np.abs(rates - middle))) / middle
    drift = float(np.median(rates[-third:]) / np.median(rates[:third])) - 1
    return Steadiness(len(rates), spread, drift)


def thin(values: npt.NDArray[np.float64], most: int) -> npt.NDArray[np.float64]:
    """Take at most so many of (n,) values, evenly over their order."""
    if len(values) <= most:
        return values
    return np.asarray(values[np.linspace(0, len(values) - 1, most).round().astype(int)])


def rate_of(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rate of all the work in all the time, along the last axis, of rates of equal pieces of work.

    Of such rates that is the harmonic mean: a piece that took long counts by the time that it took.
    """
    return np.asarray(1 / (1 / samples).mean(axis=-1))


def percentile_of(share: float) -> Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    """Make what gives a percentile along the last axis."""
    return lambda samples: np.asarray(np.quantile(samples, share, axis=-1))


def ratio_interval(
    before: npt.NDArray[np.float64],
    after: npt.NDArray[np.float64],
    statistic: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]],
    seed: int = 0,
) -> tuple[float, float]:
    """Bound statistic(after) / statistic(before) by a bootstrap, at 95 %.

    Whole blocks of neighbours are resampled (circular block bootstrap, Politis and Romano 1992; of n^(1/3)),
    since times measured one after the other are alike. What differs from run to run it cannot see.

    Args:
        before: (n,) values in the order of time.
        after: (m,) likewise.
        statistic: along the last axis.
        seed: of the resampling.

    """
    rng = np.random.default_rng(seed)
    ratios = statistic(_resampled(after, rng)) / statistic(_resampled(before, rng))
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _resampled(values: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Resample (n,) values in blocks; (ROUNDS, n)."""
    count = len(values)
    block = math.ceil(count ** (1 / 3))
    starts = rng.integers(0, count, (ROUNDS, math.ceil(count / block), 1))
    places = (starts + np.arange(block)) % count
    return values[places.reshape(ROUNDS, -1)[:, :count]]
