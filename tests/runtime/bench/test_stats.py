"""Statistics against NumPy, SciPy, and distributions whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binom

from edge_infer.bench.stats import (
    CONFIDENCE,
    FEWEST_GROUPS,
    MOST_GROUPS,
    PERCENTILES,
    early_stopping_estimate,
    group_rates,
    percentile_of,
    percentiles,
    rate_of,
    ratio_interval,
    steadiness,
    thin,
)

times = arrays(np.float64, st.integers(1, 300), elements=st.floats(1e-6, 1e6))


@settings(deadline=None)
@given(times)
def test_percentiles_are_numpys_nearest_ranks_where_there_are_values_above_them(values):
    found = percentiles(values)
    for name, share in PERCENTILES.items():
        if len(values) * (1 - share) >= 1:
            assert found[name] == np.percentile(values, 100 * share, method="inverted_cdf")
    assert (found["min"], found["max"]) == (values.min(), values.max())
    assert found["mean"] == pytest.approx(values.mean())


@pytest.mark.parametrize(
    ("count", "known"),
    [(1, 0), (2, 1), (10, 2), (99, 3), (100, 4), (999, 4), (1000, 5)],
)
def test_what_too_few_values_cannot_tell_is_none(count, known):
    found = percentiles(np.arange(1.0, count + 1))
    assert [found[name] is not None for name in PERCENTILES] == [True] * known + [False] * (5 - known)


@settings(deadline=None)
@given(st.integers(1, 3000))
def test_the_early_stopping_estimate_is_the_least_order_statistic_that_bounds_p90(count):
    values = np.random.default_rng(count).permutation(count).astype(float)
    # Of X_(r) it is certain to 99 % if P(at most r - 1 of n lie below the true p90) >= 0.99.
    ranks = np.arange(1, count)  # at least one value lies above
    good = ranks[binom.cdf(ranks - 1, count, 0.9) >= 0.99]
    assert early_stopping_estimate(values) == (good[0] - 1 if len(good) else None)


def test_the_early_stopping_estimate_takes_64_values_as_loadgen_does():
    assert early_stopping_estimate(np.arange(63.0)) is None
    assert early_stopping_estimate(np.arange(64.0)) == 62


def test_the_early_stopping_estimate_bounds_p90_as_often_as_it_says():
    rng, p90 = np.random.default_rng(4), -np.log(0.1)
    above = [(early_stopping_estimate(rng.exponential(size=300)) or 0) >= p90 for _ in range(1500)]
    assert 0.985 <= np.mean(above) < 1


def test_the_early_stopping_estimate_comes_down_to_p90():
    values = np.arange(1_000_000.0)
    assert 0.9 < (early_stopping_estimate(values) or 0) / 1_000_000 < 0.9008


@settings(deadline=None)
@given(arrays(np.float64, st.integers(1, 400), elements=st.floats(0.01, 30)), st.integers(1, 64))
def test_group_rates_account_for_all_the_work_in_all_the_time(gaps, items):
    ends = np.cumsum(gaps)
    rates = group_rates(ends, items)
    assert len(rates) <= min(MOST_GROUPS, ends[-1], len(ends) / 4)
    if len(rates):
        edges = np.linspace(0, len(ends), len(rates) + 1).round().astype(int)
        seconds = np.diff(np.concatenate([[0], ends])[edges])
        assert (rates * seconds).sum() == pytest.approx(len(ends) * items)


def test_a_run_without_time_has_no_rates():
    assert len(group_rates(np.empty(0), 1)) == len(group_rates(np.zeros(20), 1)) == 0


def judged(rates):
    found = steadiness(rates)
    assert found is not None
    return found


def test_steadiness_of_known_rates():
    rng = np.random.default_rng(0)
    assert steadiness(np.ones(FEWEST_GROUPS - 1)) is None
    still = judged(np.full(30, 7.0))
    assert (still.spread, still.drift) == (0, 0)
    noisy = judged(rng.normal(100, 4, 3000))
    assert noisy.spread == pytest.approx(0.04, rel=0.06)
    assert abs(noisy.drift) < 0.01
    # Thirds of a line from 1.1 to 0.9 have their medians at 1/6 and 5/6 of it.
    slowing = judged(np.linspace(1.1, 0.9, 999))
    assert slowing.drift == pytest.approx((1.1 - 0.2 * 5 / 6) / (1.1 - 0.2 / 6) - 1, abs=1e-3)
    hiccup = np.full(60, 50.0)
    hiccup[7] = 1
    assert judged(hiccup).spread == 0


@settings(deadline=None)
@given(times, st.integers(1, 50))
def test_thinning_keeps_order_and_both_ends(values, most):
    values = np.sort(values)
    found = thin(values, most)
    assert len(found) == min(len(values), most)
    assert (np.diff(found) >= 0).all()
    if most > 1:
        assert (found[0], found[-1]) == (values[0], values[-1])


@settings(deadline=None, max_examples=30)
@given(
    arrays(np.float64, st.integers(8, 60), elements=st.floats(1, 100)),
    arrays(np.float64, st.integers(8, 60), elements=st.floats(1, 100)),
    st.floats(0.1, 10),
)
def test_intervals_scale_with_the_values(before, after, factor):
    low, high = ratio_interval(before, after, rate_of)
    assert low <= high
    assert ratio_interval(before, after * factor, rate_of) == pytest.approx((low * factor, high * factor))
    assert ratio_interval(before * factor, after * factor, rate_of) == pytest.approx((low, high))


@settings(deadline=None)
@given(arrays(np.float64, st.integers(4, 200), elements=st.floats(0.01, 30)), st.integers(1, 64))
def test_the_rate_of_equal_pieces_is_all_the_work_in_all_the_time(seconds, items):
    assert rate_of(items / seconds) == pytest.approx(items * len(seconds) / seconds.sum())


def mean(samples):
    return samples.mean(axis=-1)


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_intervals_hold_the_true_ratio_as_often_as_they_say(correlation):
    """Neighbours that are alike make intervals wider, which resampling them one by one would not see."""
    rng, held, rounds = np.random.default_rng(5), 0, 120
    for number in range(rounds):
        series = []
        for middle in (10.0, 12.0):
            noise = rng.normal(size=300)
            for place in range(1, 300):
                noise[place] += correlation * noise[place - 1]
            series.append(middle + noise)
        low, high = ratio_interval(series[0], series[1], mean, seed=number)
        held += low <= 1.2 <= high
    assert held / rounds > CONFIDENCE - 0.1


def test_a_percentile_is_taken_along_the_last_axis():
    values = np.arange(20.0).reshape(2, 10)
    assert np.array_equal(percentile_of(0.5)(values), [4.5, 14.5])
