"""From the histogram of a tensor's magnitudes to its range: the magnitude that becomes level 127.

A large range rounds coarsely, a small one clips. Four rules:

    minmax      the largest magnitude seen: clips nothing
    percentile  the magnitude below which 99.99 % of the values lie
    entropy     least Kullback-Leibler divergence between the values and their quantised form (Migacz, 8-bit
                Inference with TensorRT, GTC 2017)
    mse         least mean squared error of rounding and clipping together (Sung et al., Resiliency of Deep
                Neural Networks under Quantization, 2015, https://arxiv.org/abs/1511.06488)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from edge_infer_calibration.activations import BINS
from edge_infer_calibration.qdq import LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from edge_infer_calibration.activations import Histogram

Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)

PERCENTILE = 99.99
_STEP_BINS = 16
"""Ranges are tried at every so many bins."""


def find_ranges(histograms: Mapping[str, Histogram], method: Method) -> dict[str, float]:
    """Range of each tensor, by name; 0 for one that is zero everywhere."""
    rule: Callable[[Histogram], float] = {
        "minmax": minmax, "percentile": percentile, "entropy": entropy, "mse": mse
    }[method]  # fmt: skip
    return {name: rule(histogram) if histogram.largest else 0.0 for name, histogram in histograms.items()}


def minmax(histogram: Histogram) -> float:
    """Take the largest magnitude."""
    return histogram.largest


def percentile(histogram: Histogram, percent: float = PERCENTILE) -> float:
    """Take the upper edge of the bin in which the percentile lies."""
    total = np.cumsum(histogram.counts)
    place = int(np.searchsorted(total, total[-1] * percent / 100))
    return min((place + 1) * histogram.top / BINS, histogram.largest)


def mse(histogram: Histogram) -> float:
    """Minimise the squared error, each value standing in the middle of its bin."""
    used = np.flatnonzero(histogram.counts)
    values, counts = histogram.centres[used], histogram.counts[used].astype(np.float64)
    tops = _candidates(histogram)
    steps = (tops / LEVELS)[:, None]
    rounded = np.minimum(np.rint(values / steps), LEVELS) * steps
    return float(tops[np.argmin((rounded - values) ** 2 @ counts)])


def entropy(histogram: Histogram) -> float:
    """Minimise the divergence; zeros are left out, since they are exact under every range."""
    counts = histogram.counts.astype(np.float64)
    counts[0] = 0
    if not counts.any():
        return histogram.largest
    tops = _candidates(histogram)
    widths = np.minimum(np.ceil(tops * BINS / histogram.top).astype(int), BINS)
    divergences = [_divergence(counts, int(width)) for width in widths]
    return float(tops[int(np.argmin(divergences))])


def _candidates(histogram: Histogram) -> NDArray[np.float64]:
    """Ranges to try: from one bin a level up to the largest magnitude."""
    bins = np.arange(LEVELS + 1, BINS + 1, _STEP_BINS)
    tops = bins * histogram.top / BINS
    return np.append(tops[tops < histogram.largest], histogram.largest)


def _divergence(counts: NDArray[np.float64], width: int) -> float:
    """Divergence between the first `width` bins, outliers in the last one, and their quantised form."""
    inside = counts[:width]
    reference = inside.copy()
    reference[-1] += counts[width:].sum()
    # Each level spreads its share over those of its bins that hold anything.
    level = np.arange(width) * (LEVELS + 1) // width
    filled = inside > 0
    held = np.bincount(level, inside, minlength=LEVELS + 1)
    bins = np.bincount(level, filled, minlength=LEVELS + 1)
    spread = np.where(filled, (held / np.maximum(bins, 1))[level], 0.0)
    if not spread.any():
        return np.inf
    p, q = reference / reference.sum(), spread / spread.sum()
    known = p > 0
    # Where only clipped values lie, the quantised form has nothing: a small share stands for it.
    return float((p[known] * np.log(p[known] / np.maximum(q[known], 1e-9))).sum())
