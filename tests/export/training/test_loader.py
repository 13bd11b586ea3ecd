from __future__ import annotations

import threading
import time
import tracemalloc

import numpy as np
import pytest

from edge_infer.errors import Refused
from edge_infer_export.training.augment import Augmentation
from edge_infer_export.training.loader import CachedChips, Loader

SHAPE = (60, 8, 8, 3)


class Shelf:
    """Chips in memory that remember who asked for them; `delay` gives the seconds that a read takes."""

    def __init__(self, delay=lambda _rows: 0.0):
        self.pixels = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
        self.asked: list[int] = []
        self.delay = delay

    def read(self, rows):
        self.asked += rows.tolist()
        time.sleep(self.delay(rows))
        return self.pixels[rows]


def batches_of(count=10, size=6):
    return np.split(np.random.default_rng(1).permutation(60), count) if size else []


def views(loader, epoch=3, first=0):
    return [(batch.rows, batch.pixels) for batch in loader.training(batches_of(), epoch=epoch, first=first)]


def same(one, other):
    return len(one) == len(other) and all(
        np.array_equal(a, c) and np.array_equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True)
    )


def test_batches_come_in_order_and_do_not_depend_on_threads():
    rng = np.random.default_rng(2)
    hasty = Shelf(lambda _rows: rng.uniform(0, 0.01))
    with Loader(Shelf(), Augmentation(), seed=7, threads=1, ahead=1) as alone:
        expected = views(alone)
    with Loader(hasty, Augmentation(), seed=7, threads=4, ahead=6) as many:
        assert same(views(many), expected)
        assert same(views(many, first=4), expected[4:])  # as a resumed epoch begins
        assert not same(views(many, epoch=4), expected)
    assert [rows.tolist() for rows, _ in expected] == [rows.tolist() for rows in batches_of()]
    with Loader(Shelf(), Augmentation(), seed=8) as other:
        assert not same(views(other), expected)


def test_plain_batches_are_the_chips_themselves():
    shelf = Shelf()
    with Loader(shelf, Augmentation(), seed=0) as loader:
        found = list(loader.plain(np.arange(5, 48), 10))
        assert list(loader.plain(np.arange(0), 10)) == []
    assert [len(batch.rows) for batch in found] == [10, 10, 10, 10, 3]
    assert np.array_equal(np.concatenate([batch.pixels for batch in found]), shelf.pixels[5:48])


def test_no_more_is_read_ahead_than_allowed():
    shelf = Shelf()
    with Loader(shelf, None, seed=0, threads=2, ahead=3) as loader:
        stream = loader.training(batches_of(), epoch=1)
        for taken in range(1, 4):
            next(stream)
            time.sleep(0.05)
            # One is in the caller's hands, three are made or in the making.
            assert len(shelf.asked) <= 6 * (taken + 3)
    assert len(shelf.asked) <= 6 * 6


def test_waiting_is_measured():
    with Loader(Shelf(lambda _rows: 0.02), None, seed=0, threads=1, ahead=1) as loader:
        list(loader.training(batches_of(), epoch=1))
        assert loader.wait_seconds >= 0.19


def test_a_chip_that_cannot_be_read_ends_the_epoch_and_no_thread_stays():
    class Torn(Shelf):
        def read(self, rows):
            if 17 in rows:
                raise Refused("chip 17 cannot be read")
            return super().read(rows)

    before = threading.active_count()
    with pytest.raises(Refused, match="chip 17"), Loader(Torn(), None, seed=0) as loader:
        list(loader.training(batches_of(), epoch=1))
    assert threading.active_count() == before


def test_memory_does_not_grow_with_the_set():
    class Endless:
        """Chips of 48 kB that exist only while they are read."""

        def read(self, rows):
            return np.repeat(rows.astype(np.uint8), 128 * 128 * 3).reshape(-1, 128, 128, 3)

    peaks = []
    for count in (40, 400):
        rows = np.split(np.arange(8 * count), count)
        cached = CachedChips(Endless(), (8 * count, 128, 128, 3), megabytes=0)
        tracemalloc.start()
        with Loader(cached, None, seed=0, threads=2, ahead=4) as loader:
            seen = sum(len(batch.rows) for batch in loader.training(rows, epoch=1))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert seen == 8 * count
    # Six batches at once, each for a moment twice; the longer stream is ten times all of that.
    assert max(peaks) < 15 * 8 * 128 * 128 * 3
    assert peaks[1] < 1.5 * peaks[0]


def test_chips_that_fit_are_decoded_once():
    shelf = Shelf()
    cached = CachedChips(shelf, SHAPE, megabytes=1)
    rows = np.array([5, 9, 5, 30])
    for _ in range(3):
        assert np.array_equal(cached.read(rows), shelf.pixels[rows])
    assert sorted(shelf.asked) == [5, 9, 30]
    assert cached.in_memory


def test_chips_that_do_not_fit_are_never_kept():
    shelf = Shelf()
    cached = CachedChips(shelf, (100_000, 224, 224, 3), megabytes=1000)
    for _ in range(2):
        cached.read(np.array([1, 2]))
    assert shelf.asked == [1, 2, 1, 2]
    assert not cached.in_memory
