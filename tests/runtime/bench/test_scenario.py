"""Load generators on an engine whose speed is known, by a clock that only it moves."""

from __future__ import annotations

import numpy as np
import pytest

from edge_infer.bench.scenario import Rule, all_at_once, one_at_a_time, warm_up
from edge_infer.engine.load import BatchTimes, TimesItself, fill_slots, images_per_second, time_batch
from edge_infer.errors import Refused

CHIPS = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)


def test_slots_hold_the_chips_one_after_the_other(fake_engine):
    engine = fake_engine(batch=4, depth=2)
    slots = fill_slots(engine, CHIPS)
    assert len(slots) == 3  # 10 chips in batches of 4
    chips = np.concatenate([slot.chips for slot in slots])
    assert np.array_equal(chips, CHIPS[np.arange(12) % 10])
    assert all(slot.count == 4 for slot in slots)


def test_slots_are_enough_to_keep_the_engine_full_and_few_enough_for_its_memory(fake_engine):
    assert len(fill_slots(fake_engine(batch=64, depth=5), CHIPS)) == 5
    large = np.zeros((100, 1024, 1024, 3), np.uint8)[:40]
    assert len(fill_slots(fake_engine(batch=2, depth=2), large)) == (64 << 20) // (2 * 3 << 20)
    assert len(fill_slots(fake_engine(batch=1, depth=2), np.zeros((90, 8, 8, 3), np.uint8))) == 16


def test_one_at_a_time_waits_for_each_batch(fake_engine, clock):
    engine = fake_engine(seconds_of=lambda number: 0.010 + 0.001 * (number % 3))
    slots = fill_slots(engine, CHIPS)
    times, ends = one_at_a_time(engine, slots, Rule(queries=9, samples=1, seconds=0), clock)
    assert engine.most_in_flight == 1
    assert [id(slot) for slot in engine.submitted] == [id(slots[number % 3]) for number in range(9)]
    assert times.enqueue == pytest.approx(np.full(9, 1.0))
    assert times.wall == pytest.approx(np.tile([11.0, 12.0, 13.0], 3))
    assert np.array_equal(times.host_latency, times.wall)
    assert (times.h2d, times.compute, times.d2h) == (None, None, None)
    assert ends == pytest.approx(np.cumsum(times.wall) / 1e3)


def test_offline_keeps_the_engine_full(fake_engine, clock):
    engine = fake_engine(batch=4, depth=3)
    ends = all_at_once(engine, fill_slots(engine, CHIPS), Rule(queries=1, samples=121, seconds=0), clock)
    assert engine.most_in_flight == 3
    assert engine.in_flight == 0
    assert len(ends) == 31  # 121 chips in batches of 4, and none begun in vain
    assert ends == pytest.approx(0.001 + 0.010 * np.arange(1, 32))


@pytest.mark.parametrize(("queries", "seconds", "batches"), [(50, 0, 50), (1, 0.55, 50), (200, 0.55, 200)])
def test_both_bounds_of_a_rule_are_reached(fake_engine, clock, queries, seconds, batches):
    engine = fake_engine()
    rule = Rule(queries=queries, samples=4 * queries, seconds=seconds)
    _, ends = one_at_a_time(engine, fill_slots(engine, CHIPS), rule, clock)
    assert len(ends) == batches
    ends = all_at_once(engine, fill_slots(engine, CHIPS), rule, clock)
    assert len(ends) >= queries
    assert ends[-1] >= seconds


def test_warming_up_runs_every_slot_alone_and_then_all_of_them(fake_engine, clock):
    engine = fake_engine()
    slots = fill_slots(engine, CHIPS)
    warm_up(engine, slots, Rule(warm_up_seconds=0), clock)
    assert [id(slot) for slot in engine.submitted[:3]] == [id(slot) for slot in slots]
    assert len(engine.submitted) == 6
    before = clock.now
    warm_up(engine, slots, Rule(warm_up_seconds=1.5), clock)
    assert clock.now - before >= 1.5


def test_an_engine_with_clocks_of_its_own_is_asked(fake_engine, clock):
    engine = fake_engine()

    def time_batches(slot, runs, *, warm_up=10):
        assert (runs, warm_up) == (1, 0)
        return BatchTimes(*(np.array([value]) for value in (1.0, 5.0, 0.5, 0.2, 7.0)))

    assert not isinstance(engine, TimesItself)
    engine.time_batches = time_batches
    slots = fill_slots(engine, CHIPS)
    assert time_batch(engine, slots[0], clock).host_latency == [6.5]
    times, _ = one_at_a_time(engine, slots, Rule(queries=5, samples=1, seconds=0), clock)
    assert np.array_equal(times.host_latency, np.full(5, 6.5))
    assert np.array_equal(times.wall, np.full(5, 7.0))


def test_images_per_second_is_that_of_a_full_engine(fake_engine, clock, monkeypatch):
    monkeypatch.setattr("edge_infer.engine.load.time.perf_counter", clock)
    monkeypatch.setattr(
        "edge_infer.engine.load.keep_full.__kwdefaults__", {"batches": 1, "seconds": 0.0, "clock": clock}
    )
    assert images_per_second(fake_engine(), CHIPS, 2.0) == pytest.approx(400, rel=0.01)


@pytest.mark.parametrize(
    ("queries", "seconds", "rule", "mlperf"),
    [
        (None, None, (1024, 24_576, 600), True),
        (None, 5.0, (1, 1, 5), False),
        (100, None, (100, 2400, 0), False),
        (1, None, (1, 24, 0), False),
        (1024, 600.0, (1024, 24_576, 600), True),
        (1024, 60.0, (1024, 24_576, 60), False),
        (5000, 700.0, (5000, 120_000, 700), True),
    ],
)
def test_rules_of_the_command_line(queries, seconds, rule, mlperf):
    asked = Rule.asked(queries=queries, seconds=seconds, warm_up_seconds=1)
    assert (asked.queries, asked.samples, asked.seconds) == rule
    assert asked.mlperf is mlperf


@pytest.mark.parametrize(
    "wrong", [{"queries": 0}, {"samples": 0}, {"seconds": -1}, {"warm_up_seconds": float("nan")}]
)
def test_rules_that_measure_nothing_are_refused(wrong):
    with pytest.raises(Refused):
        Rule(**wrong)
