"""When a run is not called valid, on recorded machines and rates made for it."""

from __future__ import annotations

import numpy as np
import pytest

from edge_infer.bench.validity import (
    MOST_DRIFT,
    MOST_RANGE,
    MOST_SPREAD,
    doubts_of_machine,
    doubts_of_rates,
    doubts_of_runs,
    notes_on_machine,
)
from edge_infer.bench.watch import Watch
from edge_infer.machine import Machine, Tree


def judged(recorded, clock, name, change=lambda root: None):
    """Doubts and notes of a machine that `change` happens to half-way."""
    machine = recorded(name)
    before = Machine.read(machine.root, machine.run)
    watch = Watch(Tree(machine.root, machine.run), clock=clock)
    watch.mark()
    change(machine.root)
    clock.now += 2
    watch.mark()
    after = Machine.read(machine.root, machine.run)
    return doubts_of_machine(before, after, watch), notes_on_machine(after, watch)


def test_an_orin_nano_as_it_comes_has_loose_clocks(recorded, clock):
    doubts, notes = judged(recorded, clock, "orin-nano")
    assert len(doubts) == 1
    assert doubts[0].startswith("clocks are not locked (policy0 ")
    assert doubts[0].endswith("`sudo jetson_clocks`")
    assert notes == []


def test_a_laptop_gets_other_advice(recorded, clock):
    doubts, notes = judged(recorded, clock, "laptop")
    assert "policy0 400 to 5,000 MHz" in doubts[0]
    assert "cpupower" in doubts[0]
    assert len(doubts) == 1
    assert [note.split(":")[0] for note in notes] == ["no power was measured"]


def test_locked_clocks_do_not_help_a_throttled_orin_nx(recorded, clock):
    doubts, _ = judged(recorded, clock, "orin-nx")
    assert len(doubts) == 1
    assert doubts[0].startswith("the machine was throttled (gpu-throttle-alert")


def test_a_cool_orin_nx_with_locked_clocks_is_above_doubt(recorded, clock):
    machine = recorded("orin-nx")
    cool(machine.root)
    seen = Machine.read(machine.root, machine.run)
    watch = Watch(Tree(machine.root, machine.run), clock=clock)
    watch.mark()
    assert doubts_of_machine(seen, seen, watch) == []


def cool(root):
    for state in root.glob("sys/class/thermal/cooling_device*/cur_state"):
        state.write_text("0")


def test_clocks_that_are_let_loose_meanwhile_are_noticed(recorded, clock):
    def loosen(root):
        cool(root)
        (root / "sys/class/devfreq/17000000.gpu/min_freq").write_text("306000000")

    doubts, _ = judged(recorded, clock, "orin-nx", loosen)
    assert any(doubt.startswith("clocks are not locked (17000000.gpu 306 to 1,173 MHz)") for doubt in doubts)


def test_a_change_of_the_power_mode_is_noticed(recorded, clock):
    machine = recorded("agx-orin")
    before = Machine.read(machine.root, machine.run)
    watch = Watch(Tree(machine.root, machine.run), clock=clock)
    watch.mark()
    after = Machine.read(
        machine.root, lambda command: "NV Power Mode: MAXN\n0\n" if "nvpmodel" in command else None
    )
    assert any("from 30W to MAXN" in doubt for doubt in doubts_of_machine(before, after, watch))


def test_what_cannot_be_told_is_said_and_does_not_count_against_a_machine(tmp_path, clock):
    watch = Watch(Tree(tmp_path, lambda _: None), clock=clock)
    watch.mark()
    machine = Machine.read(tmp_path, lambda _: None)
    assert doubts_of_machine(machine, machine, watch) == []
    notes = notes_on_machine(machine, watch)
    assert [note.split(":")[0] for note in notes] == [
        "whether clocks are locked is unknown",
        "whether it was throttled is unknown",
        "no power was measured",
    ]


def test_rates_at_the_limits():
    rng = np.random.default_rng(0)
    wave = np.resize([1.0, -1.0], 60)
    still = 100 * (1 + wave * MOST_SPREAD / 1.4826 * 0.98)
    assert doubts_of_rates("x", still) == []
    assert "varied by" in doubts_of_rates("x", 100 * (1 + wave * MOST_SPREAD / 1.4826 * 1.02))[0]
    slow = np.repeat([100, 97, 100 * (1 - MOST_DRIFT * 1.02)], 20) + rng.normal(0, 1e-3, 60)
    found = doubts_of_rates("x", slow)
    assert len(found) == 1
    assert "changed by -5.1% from the first third" in found[0]
    assert "--burn-in" in found[0]
    fast = np.repeat([100, 100, 100 * (1 + MOST_DRIFT * 0.98)], 20)
    assert doubts_of_rates("x", fast) == []


def test_a_few_seconds_are_too_short_to_be_judged():
    assert "too short" in doubts_of_rates("x", np.full(5, 3.0))[0]


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ([100, 100], "2 runs, wanted 3"),
        ([100, 95, 100 - 94 * MOST_RANGE], ""),
        ([100, 95, 80], "runs lie 21.1% apart"),
        ([0.0, 0.0, 0.0], "apart"),
    ],
)
def test_runs_alike(rates, words):
    doubts = doubts_of_runs("warm", rates)
    assert words in "".join(doubts)
    assert bool(doubts) == bool(words)
