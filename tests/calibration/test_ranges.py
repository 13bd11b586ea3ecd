"""Histograms and ranges, against NumPy and the calibrators of ONNX Runtime."""

from __future__ import annotations

import weakref
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.quantization.calibrate import HistogramCollector

from edge_infer.errors import BundleError
from edge_infer_calibration.activations import BINS, Histogram, observe
from edge_infer_calibration.placement import place
from edge_infer_calibration.ranges import METHODS, entropy, find_ranges, minmax, mse, percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

    from edge_infer_calibration.activations import Activations

values = st.lists(
    st.floats(min_value=-(2.0**20), max_value=2.0**20, allow_nan=False, width=32), min_size=1, max_size=40
)


def histogram_of(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part.astype(np.float32))
    return histogram


@settings(deadline=None)
@given(st.lists(values, min_size=1, max_size=5), st.randoms())
def test_counts_do_not_depend_on_order_or_grouping(parts: list[list[float]], random: Random) -> None:
    whole = histogram_of(np.concatenate([np.array(part, np.float32) for part in parts]))
    random.shuffle(parts)
    grown = histogram_of(*(np.array(part, np.float32) for part in parts))
    assert grown.top == whole.top
    np.testing.assert_array_equal(grown.counts, whole.counts)
    assert grown.largest == whole.largest


def test_counts_are_numpys() -> None:
    numbers = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    histogram = histogram_of(*np.split(numbers, 10))
    expected, _ = np.histogram(np.abs(numbers.astype(np.float64)), bins=BINS, range=(0, histogram.top))
    # Bin edges are powers of two apart, so single precision puts each value where double does.
    np.testing.assert_array_equal(histogram.counts, expected)
    assert histogram.top / 2 <= histogram.largest < histogram.top


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="infinite values, or none at all"):
        Histogram().add(np.array([1.0, wrong], np.float32))


def test_minmax_percentile_and_zeros() -> None:
    histogram = histogram_of(np.arange(100_000, dtype=np.float32) / 1000)
    assert minmax(histogram) == pytest.approx(99.999)
    assert percentile(histogram, 90) == pytest.approx(90, abs=2 * histogram.top / BINS)
    assert find_ranges({"t": histogram_of(np.zeros(9))}, "mse") == {"t": 0.0}


def test_ranges_order_on_a_long_tail() -> None:
    """Two far outliers: min-max follows them, the squared error in part, the others do not."""
    rng = np.random.default_rng(1)
    histogram = histogram_of(np.maximum(rng.normal(size=200_000), 0), np.array([40.0, 64.0]))
    found = {method: find_ranges({"t": histogram}, method)["t"] for method in METHODS}
    assert found["minmax"] == 64
    assert found["mse"] < 56
    assert found["percentile"] < 8
    assert found["entropy"] < 8


def test_mse_is_the_least_error_there_is() -> None:
    numbers = np.random.default_rng(2).laplace(size=50_000)
    histogram = histogram_of(numbers)

    def error(top: float) -> float:
        step = top / 127
        return float(
            ((np.clip(np.rint(np.abs(numbers) / step), 0, 127) * step - np.abs(numbers)) ** 2).mean()
        )

    best = min(error(top) for top in np.linspace(0.5, histogram.largest, 400))
    assert error(mse(histogram)) <= best * 1.02


def test_entropy_is_near_onnxruntimes() -> None:
    """The same distribution through ONNX Runtime's search, which counts zeros and steps differently."""
    numbers = np.maximum(np.random.default_rng(3).normal(0.3, 1, 300_000), 0).astype(np.float32)
    collector = HistogramCollector("entropy", True, 2048, 128, 99.99, "same")
    collector.collect({"t": [numbers[numbers > 0]]})
    theirs = float(collector.compute_collection_result()["t"][1])
    assert entropy(histogram_of(numbers)) == pytest.approx(theirs, rel=0.15)


def test_activations_are_onnxruntimes_own(model: onnx.ModelProto, activations: Activations) -> None:
    """The normalised input is what the graph says."""
    histograms = activations.histograms
    assert set(histograms) == set(place(model).tensors)
    assert histograms["preprocess.transpose.out"].largest == pytest.approx(135 / 60, rel=0.1)
    sizes = {int(h.counts.sum()) for h in histograms.values()}
    assert 96 * 32 * 32 * 3 in sizes


def test_channel_means_are_the_means(
    model: onnx.ModelProto, imagery_chips: Callable[..., tuple[np.ndarray, np.ndarray]]
) -> None:
    chips, _ = imagery_chips(10)
    found = observe(model, place(model), np.split(chips, 5)).inputs["preprocess.transpose.out"]
    expected = ((chips.astype(np.float64) - 120) / 60).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(found.means, expected, rtol=1e-5)


def test_memory_does_not_grow_with_the_set(
    model: onnx.ModelProto, imagery_chips: Callable[..., tuple[np.ndarray, np.ndarray]]
) -> None:
    """Batches are asked for one at a time and let go; what is kept has one size, however many chips come."""
    chips, _ = imagery_chips(8)
    alive: list[weakref.ref[np.ndarray]] = []

    def stream() -> Iterator[np.ndarray]:
        for _ in range(20):
            batch = chips.copy()
            alive.append(weakref.ref(batch))
            yield batch
            del batch
            assert sum(reference() is not None for reference in alive) <= 1

    found = observe(model, place(model), stream())
    assert len(alive) == 20
    assert {h.counts.nbytes for h in found.histograms.values()} == {BINS * 8}


@pytest.mark.parametrize(
    ("weights", "tensor"),
    [
        ("conv1.weight", "relu.out"),
        ("layer2.0.conv1.weight", "layer2.0.relu1.out"),
        ("layer4.0.conv2.weight", "layer4.0.relu2.out"),  # carries no pair
        ("fc.weight", "fc.out"),
    ],
)
def test_an_activation_that_overflows_is_named(
    model: onnx.ModelProto,
    imagery_chips: Callable[..., tuple[np.ndarray, np.ndarray]],
    weights: str,
    tensor: str,
) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    found = next(t for t in broken.graph.initializer if t.name == weights)
    found.CopyFrom(onnx.numpy_helper.from_array(np.full(found.dims, 3e38, np.float32), weights))
    with pytest.raises(BundleError, match=rf"tensor {tensor} holds infinite .*chips 0 to 3; .* train again"):
        observe(broken, place(broken), [imagery_chips(4)[0]])


def test_a_value_of_exactly_the_top_is_counted_alike_before_and_after() -> None:
    apart, together = histogram_of(np.array([1.0]), np.array([1.5])), histogram_of(np.array([1.0, 1.5]))
    np.testing.assert_array_equal(apart.counts, together.counts)
    assert np.flatnonzero(together.counts).tolist() == [BINS // 2, BINS * 3 // 4]


def test_a_wider_range_never_comes_of_less(activations: Activations) -> None:
    for name, histogram in activations.histograms.items():
        tops = [percentile(histogram, percent) for percent in (90, 99, 99.9, 100)]
        assert all(a <= b for a, b in pairwise(tops)), name
        assert all(0 < find_ranges({name: histogram}, m)[name] <= histogram.largest for m in METHODS)
