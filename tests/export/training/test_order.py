from __future__ import annotations

import numpy as np
import pytest

from edge_infer_export.training.order import class_weights, epoch_batches

TARGETS = np.repeat([0, 1, 2], [70, 20, 13])
ROWS = 1000 + np.arange(103)


def deal(balance="none", seed=0, epoch=1):
    return epoch_batches(ROWS, TARGETS, 10, balance=balance, seed=seed, epoch=epoch)


def test_an_epoch_shows_each_chip_at_most_once_in_whole_batches():
    batches = deal()
    assert [len(batch) for batch in batches] == [10] * 10
    seen = np.concatenate(batches)
    assert len(np.unique(seen)) == 100
    assert set(seen) <= set(ROWS)


def test_seed_and_epoch_decide_the_order():
    same, again = deal(seed=3, epoch=2), deal(seed=3, epoch=2)
    assert all(np.array_equal(one, other) for one, other in zip(same, again, strict=True))
    for other in (deal(seed=4, epoch=2), deal(seed=3, epoch=3)):
        assert not np.array_equal(same[0], other[0])


def test_sampling_draws_all_classes_equally_often():
    seen = np.concatenate([batch for epoch in range(50) for batch in deal("sampling", epoch=epoch)])
    counts = np.bincount(TARGETS[seen - 1000])
    np.testing.assert_allclose(counts / counts.sum(), 1 / 3, atol=0.02)


def test_weights_make_classes_count_equally_and_a_chip_one_on_average():
    weights = class_weights(TARGETS, 3, "weights")
    np.testing.assert_allclose(weights * np.bincount(TARGETS), 103 / 3, rtol=1e-6)
    assert weights[TARGETS].mean() == pytest.approx(1)
    for balance in ("none", "sampling"):
        assert class_weights(TARGETS, 3, balance).tolist() == [1, 1, 1]


def test_fewer_chips_than_a_batch_give_none():
    assert epoch_batches(ROWS[:5], TARGETS[:5], 10, balance="none", seed=0, epoch=1) == []
