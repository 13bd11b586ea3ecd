from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from scipy.stats import t as student
from sklearn.metrics import f1_score, recall_score

from edge_infer_export.evaluation.intervals import (
    Estimate,
    bootstrap,
    design_effect,
    f1_of,
    matrices_by_block,
    percentile_interval,
    recall_of,
    share_over_blocks,
    wilson,
)


def width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_that_of_scipy(case):
    right, total = case
    found = wilson(right, total)
    wanted = binomtest(right, total).proportion_ci(0.95, "wilson")
    assert found.value == pytest.approx(right / total)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_no_chips_have_no_share():
    assert wilson(0, 0) == Estimate(None)
    assert share_over_blocks(np.zeros(0, bool), np.zeros(0, np.int64)) == Estimate(None)


@pytest.mark.parametrize(("right", "total", "effect"), [(-1, 3, 1), (4, 3, 1), (1, 3, 0.5)])
def test_no_share_at_all(right, total, effect):
    with pytest.raises(ValueError, match="no share"):
        wilson(right, total, effect)


def test_an_interval_rises():
    with pytest.raises(ValueError, match="must not fall"):
        Estimate(0.5, 0.6, 0.4)


@given(seed=st.integers(0, 99), copies=st.integers(2, 6))
def test_copies_of_a_chip_count_as_one(seed, copies):
    """Blocks of equal chips know no more than one chip each."""
    right = np.random.default_rng(seed).random(60) < 0.7
    once = share_over_blocks(right, np.arange(60))
    often = share_over_blocks(np.repeat(right, copies), np.repeat(np.arange(60), copies))
    assert often.value == pytest.approx(once.value)
    assert width(often) == pytest.approx(width(once), rel=0.02)
    independent = wilson(int(right.sum()) * copies, 60 * copies)
    assert width(often) > 1.2 * width(independent)


def test_independent_chips_have_no_design_effect():
    rng = np.random.default_rng(1)
    effects = [design_effect(rng.binomial(8, 0.8, 200), np.full(200, 8)) for _ in range(20)]
    assert 1 <= np.mean(effects) < 1.15


def test_one_block_or_no_variation_give_no_design_effect():
    assert design_effect(np.array([3]), np.array([9])) == 1
    assert design_effect(np.array([5, 5]), np.array([5, 5])) == 1


def test_one_block_has_a_share_but_no_interval():
    """However many chips there are: 300 of one street say nothing of the next."""
    right = np.arange(300) % 10 > 0
    assert share_over_blocks(right, np.zeros(300, np.int64)) == Estimate(0.9)
    assert share_over_blocks(right, np.full(300, 7)) == Estimate(0.9)


@pytest.mark.parametrize("right", [True, False])
def test_where_nothing_varies_blocks_are_counted(right):
    found = share_over_blocks(np.full(60, right), np.arange(60) // 15)
    wanted = binomtest(4 * right, 4).proportion_ci(0.95, "wilson")
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_few_blocks_have_students_wider_ends():
    hits, chips = np.array([9, 6, 10, 8]), 10
    right = np.concatenate([np.arange(chips) < hit for hit in hits])
    found = share_over_blocks(right, np.repeat(np.arange(4), chips))
    count = 40 / design_effect(hits, np.full(4, chips)) * (norm.ppf(0.975) / student.ppf(0.975, 3)) ** 2
    wanted = proportion_interval(33 / 40, count)
    assert (found.low, found.high) == pytest.approx(wanted)


def proportion_interval(share: float, count: float) -> tuple[float, float]:
    """Wilson's interval as the two shares whose normal test just allows what was seen."""
    z = norm.ppf(0.975)
    roots = np.roots([1 + z**2 / count, -(2 * share + z**2 / count), share**2])
    return float(roots.min()), float(roots.max())


@pytest.mark.parametrize(
    ("share", "blocks", "chips", "least"),
    [
        *[(0.85, 2, 100, 0.93), (0.85, 4, 60, 0.88), (0.85, 20, 15, 0.90)],
        *[(0.97, 2, 100, 0.93), (0.97, 4, 60, 0.93), (0.97, 20, 15, 0.83)],
    ],
)
def test_intervals_hold_the_truth_about_as_often_as_they_say(share, blocks, chips, least):
    """The table of decision 14: blocks of random size whose own shares vary, correlation 0.2 inside a block.

    Blocks as unequal as these and shares near 1 leave even the wider intervals somewhat too narrow.
    """
    rng = np.random.default_rng(0)
    held = 0
    draws = 400
    for _ in range(draws):
        sizes = 1 + rng.poisson(chips - 1, blocks)
        block = np.repeat(np.arange(blocks), sizes)
        right = rng.random(len(block)) < rng.beta(4 * share, 4 * (1 - share), blocks)[block]
        found = share_over_blocks(right, block)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= share <= found.high
    assert held / draws >= least


def test_matrices_of_blocks_add_up():
    rng = np.random.default_rng(2)
    targets, called, blocks = rng.integers(0, 3, 200), rng.integers(0, 3, 200), rng.integers(0, 7, 200)
    matrices = matrices_by_block(targets, called, blocks, 3)
    assert matrices.shape == (7, 3, 3)
    for block in range(7):
        for true in range(3):
            for predicted in range(3):
                here = (blocks == block) & (targets == true) & (called == predicted)
                assert matrices[block, true, predicted] == here.sum()


def test_f1_and_recall_are_those_of_scikit_learn():
    rng = np.random.default_rng(3)
    targets, called = rng.integers(0, 3, 100), rng.integers(0, 3, 100)
    matrix = matrices_by_block(targets, called, np.zeros(100, np.int64), 3)[0].astype(float)
    np.testing.assert_allclose(f1_of(matrix), f1_score(targets, called, average=None))
    np.testing.assert_allclose(recall_of(matrix), recall_score(targets, called, average=None))
    assert np.isnan(f1_of(np.diag([1.0, 0.0]))[1])
    assert np.isnan(recall_of(np.diag([1.0, 0.0]))[1])


@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 9))
def test_bootstrap_of_independent_blocks_agrees_with_wilson(seed):
    rng = np.random.default_rng(seed)
    right = (rng.random(400) < 0.8).astype(np.int64)
    by_block = np.stack([right, np.ones_like(right)], axis=1)
    draws = bootstrap(by_block, lambda sums: (sums[:, 0] / sums[:, 1])[:, None], seed)
    found = percentile_interval(draws[:, 0], float(right.mean()))
    wanted = wilson(int(right.sum()), 400)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.012)


def test_one_block_gives_no_interval():
    by_block = np.array([[3, 4]])
    draws = bootstrap(by_block, lambda sums: (sums[:, 0] / sums[:, 1])[:, None], 0)
    assert draws.shape == (0, 1)
    assert percentile_interval(draws[:, 0], 0.75) == Estimate(0.75)


def test_equal_draws_give_no_interval():
    assert percentile_interval(np.ones(100), 1.0) == Estimate(1.0)
    assert percentile_interval(np.array([np.nan, 0.2, 0.4]), 0.3).low == pytest.approx(0.205)
