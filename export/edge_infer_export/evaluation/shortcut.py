"""How far the classes can be told apart without looking: by brightness, colour and sharpness alone.

If all damaged houses were photographed on one day and all intact ones on another, a network may learn
the day. The probe is a classifier that sees nothing else: mean and standard deviation of each band, and how
many bytes the chip takes as a JPEG of fixed quality (detail, blur and earlier compression in one number).
Where the network does hardly better than that, its score says nothing about damage.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from edge_infer.errors import Refused
from edge_infer_export.evaluation.intervals import (
    Estimate,
    bootstrap,
    matrices_by_block,
    percentile_interval,
    recall_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

JPEG_QUALITY = 90
CLOSE = 0.05
"""The network must be better than the probe by so much, at the lower end of the interval."""
MUCH = 0.5
"""A probe that reaches this share of what the network gains over guessing is worth a word."""

Verdict = Literal["far", "partial", "close"]


def features(chips: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Describe chips uint8 (n, S, S, C) by nothing but band statistics: float64, (n, 2 C + 1).

    Columns: mean of each band, standard deviation of each band, logarithm of the bytes as a JPEG.
    """
    # Band by band, as one run of memory: five times as fast.
    bands = np.ascontiguousarray(np.moveaxis(chips, 3, 1))
    means, spreads = (figure(axis=(2, 3), dtype=np.float64) for figure in (bands.mean, bands.std))
    sizes = np.array([[math.log(_jpeg_bytes(chip))] for chip in chips]).reshape(len(chips), 1)
    return np.concatenate([means, spreads, sizes], axis=1)


def _jpeg_bytes(chip: NDArray[np.uint8]) -> int:
    # Bands that make no colour picture stand side by side in a grey one.
    grey = chip.shape[2] != 3
    picture = np.concatenate(list(np.moveaxis(chip, 2, 0)), axis=1) if grey else chip
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.tell()


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A logistic regression over `features`, small enough to travel in a bundle."""

    centre: NDArray[np.float64]
    """float64, (F,): subtracted from the features."""
    scale: NDArray[np.float64]
    """float64, (F,): divides them."""
    weights: NDArray[np.float64]
    """float64, (K, F)."""
    bias: NDArray[np.float64]
    """float64, (K,)."""

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together."""
        classes, count = self.weights.shape if self.weights.ndim == 2 else (0, 0)
        shapes = (self.centre.shape, self.scale.shape, self.bias.shape)
        if classes < 2 or shapes != ((count,), (count,), (classes,)):
            raise Refused(f"the shortcut probe has weights {self.weights.shape} beside {shapes}")
        everything = np.concatenate([self.centre, self.scale, self.weights.ravel(), self.bias])
        if not (np.isfinite(everything).all() and (self.scale > 0).all()):
            raise Refused(
                "the shortcut probe holds numbers that are not finite, or a scale that is not positive"
            )

    def predict(self, described: NDArray[np.float64]) -> NDArray[np.int64]:
        """Give the class of each chip, int64 (n,), by its features (n, F)."""
        scores = ((described - self.centre) / self.scale) @ self.weights.T + self.bias
        return np.asarray(scores.argmax(axis=1), np.int64)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {name: getattr(self, name).tolist() for name in ("centre", "scale", "weights", "bias")}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Probe:
        """Read what `to_json` wrote; `Refused` for anything else."""
        try:
            return cls(
                *(np.array(values[name], np.float64) for name in ("centre", "scale", "weights", "bias"))
            )
        except (KeyError, TypeError, ValueError) as error:
            raise Refused(f"the shortcut probe is incomplete or malformed: {error!r}") from error


def fit_probe(described: NDArray[np.float64], targets: NDArray[np.int64], classes: int) -> Probe:
    """Fit the probe on the training side; every class counts the same, however many chips it has.

    Args:
        described: float64, (n, F): features of the training chips.
        targets: int64, (n,): their classes; all of them must be there.
        classes: K.

    Raises:
        Refused: a class has no chip.

    """
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(targets)) != classes:
        raise Refused("the shortcut probe needs a training chip of every class")
    centre = described.mean(axis=0)
    scale = np.maximum(described.std(axis=0), 1e-9)
    model = LogisticRegression(class_weight="balanced", max_iter=2000)
    model.fit((described - centre) / scale, targets)
    weights, bias = model.coef_, model.intercept_
    if classes == 2:  # scikit-learn keeps only the second of two mirrored rows
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    return Probe(centre, scale, weights, bias)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A network beside the probe on the same chips, by mean recall over the classes (guessing: 1 / K)."""

    model: Estimate
    probe: Estimate
    lead: Estimate
    """Model less probe, resampled together."""
    verdict: Verdict
    words: str
    """What that means, in a sentence or two."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "measure": "mean recall over the classes",
            "model": self.model.to_json(),
            "probe": self.probe.to_json(),
            "lead": self.lead.to_json(),
            "verdict": self.verdict,
            "words": self.words,
        }


def compare(
    targets: NDArray[np.int64],
    predictions: NDArray[np.int64],
    probed: NDArray[np.int64],
    blocks: NDArray[np.int64],
    classes: Sequence[str],
    *,
    seed: int,
) -> Comparison:
    """Hold the network's predictions against the probe's.

    The verdict is `close` unless the network leads by more than `CLOSE` at the lower end of the interval;
    `partial` where the probe reaches `MUCH` of what the network gains over guessing, or where there is no
    interval; else `far`. A class without chips is left out of the means.

    Args:
        targets: int64, (n,), n above 0.
        predictions: int64, (n,): the network's.
        probed: int64, (n,): the probe's.
        blocks: int64, (n,): of each chip, numbers from 0.
        classes: the K names.
        seed: of the bootstrap.

    """
    both = np.stack(
        [matrices_by_block(targets, judged, blocks, len(classes)) for judged in (predictions, probed)], axis=1
    )
    values = _mean_recall(both.sum(axis=0)[None].astype(np.float64))[0]
    draws = bootstrap(both, _mean_recall, seed)
    model, probe = (percentile_interval(draws[:, k], float(values[k])) for k in (0, 1))
    lead = percentile_interval(draws[:, 0] - draws[:, 1], float(values[0] - values[1]))
    present = len(np.unique(targets))
    gained = float(values[0]) - 1 / present
    explained = (float(values[1]) - 1 / present) / gained if gained > 0 else math.inf
    # One block alone gives no interval: then the lead itself has to do, and shows less.
    least = float(values[0] - values[1]) if lead.low is None else lead.low
    if least < CLOSE:
        verdict: Verdict = "close"
    else:
        verdict = "partial" if explained >= MUCH or lead.low is None else "far"
    return Comparison(model, probe, lead, verdict, _words(verdict, model, probe, lead, explained))


def _mean_recall(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean recall of matrices (b, 2, K, K) over the classes that are there: (b, 2)."""
    recall = recall_of(matrices)
    there = np.isfinite(recall)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(there, recall, 0).sum(axis=-1) / there.sum(axis=-1), np.float64)


def _words(verdict: Verdict, model: Estimate, probe: Estimate, lead: Estimate, explained: float) -> str:
    assert model.value is not None
    assert probe.value is not None
    assert lead.value is not None
    figures = (
        f"brightness, colour and sharpness alone reach a mean recall of {probe.value:.1%}, "
        f"the model {model.value:.1%}"
    )
    where = "there is no interval"
    if lead.low is not None:
        where = f"{100 * lead.low:+.1f} at the lower end of its interval"
    if verdict == "close":
        return (
            f"{figures}; its lead is {100 * lead.value:+.1f} points, {where}. It is not shown that the model "
            "looks at the buildings at all: check that the classes do not differ by date, sensor or "
            "compression"
        )
    shared = (
        f"{min(max(explained, 0), 1):.0%} of what the model gains over guessing can be had without looking "
        "at the buildings"
    )
    if verdict == "far":
        return f"{figures}: {shared}"
    unsure = "" if lead.low is not None else f", and for its lead {where}"
    return f"{figures}. {shared}{unsure}: judge it on another event before trusting it"
