"""Whether the field imagery looks like the chips that the model was calibrated on.

INT8 ranges, and a network itself, hold for imagery like that of the office. Here the grey levels of the chips
of a run are held against those of the calibration set, band by band. The figure is the earth mover's distance
(Wasserstein-1) between the histograms, in grey levels: how far levels must be moved on average to turn
one into the other. It was preferred to a stability index or a divergence because it has a unit that a person
can picture, does not explode on an empty bin, and tells 5 levels of haze from 100 levels of night.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_infer.bundle import CALIBRATION_MEMBER
from edge_infer.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edge_infer.bundle import Bundle

BINS = 32
"""Of 8 grey levels each."""
POINTS = 16
"""So many rows and columns of each chip are looked at: about 256 pixels."""
LEAST_CHIPS = 50
"""Fewer chips say nothing of the imagery."""
NOTICEABLE, STRONG = 24.0, 48.0
"""Grey levels. Chips of another district of the same town lie 2 to 4 away. Darkened by 24, they cost the
demo's model 1 point of accuracy, by 48 three, by 64 ten (docs/int8.md)."""

_WIDTH = 256 // BINS


@dataclass(slots=True, eq=False)
class InputHistogram:
    """Grey levels of some pixels of many chips, by band."""

    counts: NDArray[np.int64]
    """int64, (C, BINS)."""
    chips: int = 0

    @classmethod
    def empty(cls, chip_shape: tuple[int, int, int]) -> InputHistogram:
        """Start for chips of `chip_shape` (S, S, C)."""
        return cls(np.zeros((chip_shape[2], BINS), np.int64))

    def add(self, chips: NDArray[np.uint8], seen: NDArray[np.bool_] | None = None) -> None:
        """Count chips uint8 (n, S, S, C), or those of them that `seen`, bool (n,), names.

        Every so many pixels along rows and columns are read, so it costs next to nothing.
        """
        step = max(1, chips.shape[1] // POINTS)
        points = chips[:, step // 2 :: step, step // 2 :: step]
        if seen is not None:
            points = points[seen]
        bands = len(self.counts)
        places = points.reshape(-1, bands) // _WIDTH + np.arange(bands) * BINS
        self.counts += np.bincount(places.ravel(), minlength=bands * BINS).reshape(bands, BINS)
        self.chips += len(points)

    def to_json(self, bands: tuple[str, ...]) -> dict[str, Any]:
        """Plain JSON values: counts of each band by name."""
        return {"chips": self.chips, "bands": dict(zip(bands, self.counts.tolist(), strict=True))}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], bands: tuple[str, ...]) -> InputHistogram:
        """Read what `to_json` wrote; `BundleError` for anything else."""
        try:
            counts = np.array([values["bands"][name] for name in bands], np.int64)
            chips = int(values["chips"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BundleError(f"the input histogram is malformed: {error!r}; calibrate again") from error
        if counts.shape != (len(bands), BINS) or (counts < 0).any() or not counts.sum(axis=1).all():
            raise BundleError(
                f"the input histogram has shape {counts.shape}, wanted ({len(bands)}, {BINS}) with counts "
                "in every row; calibrate again"
            )
        return cls(counts, chips)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How far imagery lies from what the model was calibrated on."""

    chips: int
    """Chips of this run that were looked at."""
    levels: Mapping[str, float]
    """Distance of each band, grey levels."""
    brighter: Mapping[str, float]
    """Mean of each band less that of the calibration set, grey levels."""

    @property
    def worst(self) -> float:
        """The largest distance of a band, grey levels."""
        return max(self.levels.values())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "chips": self.chips,
            "grey_levels": {name: round(value, 2) for name, value in self.levels.items()},
            "brighter": {name: round(value, 2) for name, value in self.brighter.items()},
            "warning": self.warning(),
        }

    def warning(self) -> str | None:
        """In plain words, where there is something to say."""
        if self.worst < NOTICEABLE:
            return None
        band = max(self.levels, key=lambda name: self.levels[name])
        shift = self.brighter[band]
        way = f"{abs(shift):.0f} {'brighter' if shift > 0 else 'darker'} on average"
        advice = "look at a sample of the results"
        if self.worst >= STRONG:
            advice += " before you use them, and calibrate on chips of this imagery"
        return (
            f"this imagery is {'far' if self.worst >= STRONG else 'some way'} from what the model was "
            f"calibrated on: the {band} band differs by {self.worst:.0f} of 255 grey levels ({way}; up to "
            f"{NOTICEABLE:.0f} is usual); {advice}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class DriftWatch:
    """Looks at the chips of a run as they pass."""

    bands: tuple[str, ...]
    field: InputHistogram
    reference: InputHistogram | None
    """None where the bundle was never calibrated: then nothing is looked at."""

    @classmethod
    def of(cls, bundle: Bundle) -> DriftWatch:
        """Read what the bundle was calibrated on; `BundleError` where that is malformed."""
        contract, reference = bundle.manifest.contract, None
        if CALIBRATION_MEMBER in bundle.members:
            values = bundle.read_json(CALIBRATION_MEMBER).get("input_histogram")
            reference = InputHistogram.from_json(values if isinstance(values, dict) else {}, contract.bands)
        return cls(contract.bands, InputHistogram.empty(contract.chip_shape), reference)

    def add(self, chips: NDArray[np.uint8], seen: NDArray[np.bool_]) -> None:
        """Look at those of the chips uint8 (n, S, S, C) that `seen`, bool (n,), names."""
        if self.reference is not None:
            self.field.add(chips, seen)

    def drift(self) -> Drift | None:
        """Tell how far the chips so far lie from the calibration set; None where that cannot be told."""
        if self.reference is None:
            return None
        return measure_drift(self.field, self.reference, self.bands)

    def why_unknown(self, classified: int) -> str | None:
        """Say why the drift of a run that classified so many chips cannot be told; None where it can."""
        if self.reference is None:
            return "the model was not calibrated, so there is nothing to hold this imagery against"
        if self.field.chips >= LEAST_CHIPS:
            return None
        sampled = "" if self.field.chips == classified else "; of batches that a GPU cuts, one in 16 is"
        return f"{self.field.chips:,} of {classified:,} chips were looked at, wanted {LEAST_CHIPS}{sampled}"


def measure_drift(field: InputHistogram, reference: InputHistogram, bands: tuple[str, ...]) -> Drift | None:
    """Hold the chips of a run against those of the calibration set; None where there are too few to tell."""
    if field.chips < LEAST_CHIPS:
        return None
    shares = [counts.counts / counts.counts.sum(axis=1, keepdims=True) for counts in (field, reference)]
    difference = shares[0] - shares[1]
    distance = np.abs(difference.cumsum(axis=1)).sum(axis=1) * _WIDTH
    brighter = difference @ (np.arange(BINS) * float(_WIDTH))
    return Drift(
        chips=field.chips,
        levels=dict(zip(bands, distance.tolist(), strict=True)),
        brighter=dict(zip(bands, brighter.tolist(), strict=True)),
    )
