"""Drift: against SciPy's definition by hand, in grey levels, and through a whole run."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pyogrio.raw
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_infer.bundle import CALIBRATION_MEMBER, open_bundle, write_bundle
from edge_infer.classify import classify
from edge_infer.drift import BINS, LEAST_CHIPS, NOTICEABLE, DriftWatch, InputHistogram, measure_drift
from edge_infer.errors import BundleError
from edge_infer.request import RunRequest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

BANDS = ("red", "green", "blue")
SHAPE = (32, 32, 3)


def histogram_of(chips: NDArray[np.uint8]) -> InputHistogram:
    histogram = InputHistogram.empty(SHAPE)
    histogram.add(chips)
    return histogram


def field(level: int, count: int = 80, seed: int = 0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(level, 12, (count, *SHAPE))
    return np.clip(noise, 0, 255).astype(np.uint8)


@settings(deadline=None, max_examples=25)
@given(st.integers(20, 230), st.integers(20, 230))
def test_the_distance_of_a_shift_is_the_shift(one: int, other: int) -> None:
    drift = measure_drift(histogram_of(field(one)), histogram_of(field(other)), BANDS)
    assert drift is not None
    for band in BANDS:
        # Sixteen by sixteen points of 80 chips, in bins of 8 levels; at the ends of the scale values clip.
        assert drift.levels[band] == pytest.approx(abs(one - other), abs=2)
        assert drift.brighter[band] == pytest.approx(one - other, abs=2)
    assert (drift.warning() is None) == (drift.worst < NOTICEABLE)


def test_one_band_is_enough_and_words_are_plain() -> None:
    chips = field(100)
    hazy = chips.copy()
    hazy[..., 2] += 60
    drift = measure_drift(histogram_of(hazy), histogram_of(chips), BANDS)
    assert drift is not None
    assert drift.levels["red"] == 0
    warning = drift.warning()
    assert warning is not None
    assert "the blue band differs by 60 of 255 grey levels (60 brighter on average" in warning
    assert "calibrate on chips of this imagery" in warning
    json.dumps(drift.to_json(), allow_nan=False)


def test_order_and_batches_do_not_matter() -> None:
    chips = field(90)
    whole, parts = histogram_of(chips), InputHistogram.empty(SHAPE)
    for batch in np.split(chips[::-1], 8):
        parts.add(batch)
    np.testing.assert_array_equal(whole.counts, parts.counts)
    assert parts.chips == 80


def test_chips_without_imagery_do_not_count() -> None:
    chips = field(90)
    seen = np.arange(80) < 60
    histogram = InputHistogram.empty(SHAPE)
    chips[60:] = 0
    histogram.add(chips, seen)
    assert histogram.chips == 60
    np.testing.assert_array_equal(histogram.counts, histogram_of(chips[:60]).counts)


def test_a_few_chips_say_nothing() -> None:
    chips = field(90)
    assert measure_drift(histogram_of(chips[: LEAST_CHIPS - 1]), histogram_of(chips), BANDS) is None


def test_json_round_trip_and_refusals() -> None:
    histogram = histogram_of(field(120))
    back = InputHistogram.from_json(json.loads(json.dumps(histogram.to_json(BANDS))), BANDS)
    np.testing.assert_array_equal(back.counts, histogram.counts)
    row = [1] * BINS
    for wrong in (
        {},
        {"chips": 1, "bands": {"red": row, "green": row}},
        {"chips": 1, "bands": {"red": row, "green": row, "blue": [1, 2]}},
        {"chips": 1, "bands": {"red": row, "green": row, "blue": [0] * BINS}},
        {"chips": 1, "bands": {"red": row, "green": row, "blue": [-1, *row[1:]]}},
        {"chips": "x", "bands": {"red": row, "green": row, "blue": row}},
        {"chips": 1, "bands": [row] * 3},
        {"chips": 1, "bands": {"red": row, "green": row, "blue": [1e300] * BINS}},
    ):
        with pytest.raises(BundleError, match="calibrate again"):
            InputHistogram.from_json(wrong, BANDS)


def test_it_costs_next_to_nothing() -> None:
    """A batch of 16 chips of 224 pixels takes a CPU 100 ms; looking at it must stay below a hundredth."""
    chips = np.random.default_rng(0).integers(0, 256, (16, 224, 224, 3)).astype(np.uint8)
    histogram, times = InputHistogram.empty((224, 224, 3)), []
    for _ in range(20):
        started = time.perf_counter()
        histogram.add(chips, np.ones(16, bool))
        times.append(time.perf_counter() - started)
    assert min(times) < 1e-3


@pytest.mark.parametrize(("level", "warned"), [(100, False), (170, True)])
def test_a_run_says_how_far_its_imagery_lies(
    make_bundle: Callable[..., Path],
    write_raster: Callable[..., Path],
    tmp_path: Path,
    level: int,
    *,
    warned: bool,
) -> None:
    path = make_bundle()
    bundle = open_bundle(path)
    reference = InputHistogram.empty(bundle.manifest.contract.chip_shape)
    reference.add(np.full((100, 16, 16, 3), 100, np.uint8))
    facts = {"input_histogram": reference.to_json(BANDS)}
    members = {name: bundle.read(name) for name in bundle.members}
    write_bundle(path, bundle.manifest, {**members, CALIBRATION_MEMBER: json.dumps(facts).encode()})
    raster = write_raster("scene.tif", np.full((3, 200, 400), level, np.uint8))
    x, y = np.meshgrid(np.arange(10.0, 190, 18), np.arange(10.0, 90, 14))
    x, y = 360_000 + x.ravel(), 4_100_000 - y.ravel()
    pyogrio.raw.write(
        tmp_path / "houses.gpkg", shapely.to_wkb(shapely.box(x - 3, y - 3, x + 3, y + 3)), [], [],
        geometry_type="Polygon", crs="EPSG:32615",
    )  # fmt: skip
    out = tmp_path / "out.gpkg"
    summary = classify(
        RunRequest(bundle=path, imagery=(raster,), footprints=tmp_path / "houses.gpkg", out=out), quiet=True
    )
    assert summary.drift is not None
    assert summary.drift.chips == len(x)
    assert summary.drift.worst == pytest.approx(abs(level - 100), abs=8)
    assert ("warning: this imagery is" in summary.describe()) == warned
    with closing(sqlite3.connect(out)) as database:
        (text,) = database.execute("SELECT drift FROM edge_runs").fetchone()
    assert json.loads(text) == summary.to_json()["drift"]
    assert (json.loads(text)["warning"] is not None) == warned
    assert summary.to_json()["drift_unknown"] is None


def test_a_run_of_a_model_that_was_not_calibrated_says_so(
    make_bundle: Callable[..., Path], write_raster: Callable[..., Path], tmp_path: Path
) -> None:
    raster = write_raster("scene.tif", np.full((3, 40, 40), 100, np.uint8))
    summary = classify(
        RunRequest(bundle=make_bundle(), imagery=(raster,), footprints=None, out=tmp_path / "out.gpkg"),
        quiet=True,
    )
    assert summary.to_json()["drift"] is None
    assert summary.to_json()["drift_unknown"].startswith("the model was not calibrated")
    assert "drift of the imagery not known: the model was not calibrated" in summary.describe()


def test_a_bundle_that_was_never_calibrated_has_nothing_to_compare(make_bundle: Callable[..., Path]) -> None:
    watch = DriftWatch.of(open_bundle(make_bundle()))
    watch.add(np.zeros((100, 16, 16, 3), np.uint8), np.ones(100, bool))
    assert watch.drift() is None
    assert watch.field.chips == 0
    assert watch.why_unknown(100) == (
        "the model was not calibrated, so there is nothing to hold this imagery against"
    )


@pytest.mark.parametrize(
    ("looked_at", "classified", "why"),
    [
        (49, 49, "49 of 49 chips were looked at, wanted 50"),
        (48, 700, "48 of 700 chips were looked at, wanted 50; of batches that a GPU cuts, one in 16 is"),
        (0, 5000, "0 of 5,000 chips were looked at, wanted 50; of batches that a GPU cuts, one in 16 is"),
        (50, 800, None),
    ],
)
def test_why_nothing_is_said(looked_at: int, classified: int, why: str | None) -> None:
    watch = DriftWatch(BANDS, InputHistogram.empty(SHAPE), histogram_of(field(100)))
    watch.add(field(100, count=80)[:looked_at], np.ones(looked_at, bool))
    assert watch.why_unknown(classified) == why
    assert (watch.drift() is None) == (why is not None)


def test_a_malformed_histogram_is_refused(make_bundle: Callable[..., Path]) -> None:
    path = make_bundle()
    bundle = open_bundle(path)
    members = {name: bundle.read(name) for name in bundle.members}
    write_bundle(path, bundle.manifest, {**members, CALIBRATION_MEMBER: b'{"input_histogram": [3]}'})
    with pytest.raises(BundleError, match="input histogram is malformed"):
        DriftWatch.of(open_bundle(path))
