"""When a run is not called valid, on recorded machines and rates made for it."""

from __future__ import annotations

import numpy as np
import pytest

from edge_infer.bench.validity import (
    MOST_DRIFT,
    MOST_RANGE,
    MOST_SPREAD,
    doubts_of_cards,
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
    assert [note.split(" is ")[0] for note in notes] == ["whether the memory's clock (EMC)"]


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


def test_a_warm_orin_is_above_doubt(recorded, clock):
    """From 70 °C on its hot-surface-alert is on, which slows nothing down."""

    def warm(root):
        cool(root)
        (root / "sys/class/thermal/cooling_device5/cur_state").write_text("1")

    machine = recorded("orin-nx")
    warm(machine.root)
    assert judged_as_it_is(machine, clock) == []


def judged_as_it_is(machine, clock):
    seen = Machine.read(machine.root, machine.run)
    watch = Watch(Tree(machine.root, machine.run), clock=clock)
    watch.mark()
    return doubts_of_machine(seen, seen, watch)


def test_a_thor_shows_its_memorys_clock(recorded, clock):
    _, notes = judged(recorded, clock, "thor")
    assert not any("EMC" in note for note in notes)


def on_a_pc(tmp_path, clock, reasons, clocks=(1980, 1980)):
    """Doubts of a card's clock, doubts and notes of a PC without any files that has this card."""
    said = iter(clocks)
    card = "NVIDIA L4, 550.54, 41, {}, 2040, 71.5, 72.0, {}\n"

    def run(arguments):
        line = " ".join(arguments)
        return card.format(next(said), reasons) if "event_reasons" in line else None

    watch = Watch(Tree(tmp_path, run), clock=clock)  # which looks once
    for _ in clocks[1:]:
        clock.now += 2
        end = watch.mark()
    machine = Machine.read(
        tmp_path, lambda line: card.format(1980, reasons) if "nvidia-smi" in line else None
    )
    moved = doubts_of_cards("int8, batch 8", watch.card_clocks(clock.now - 100, end))
    return moved, doubts_of_machine(machine, machine, watch), notes_on_machine(machine, watch)


def test_the_gpu_is_noted_where_the_cpus_clocks_are_unknown(tmp_path, clock):
    moved, doubts, notes = on_a_pc(tmp_path, clock, "0x0", (1980, 1980, 1980))
    assert moved == doubts == []
    assert [note.split(" is unknown")[0] for note in notes[:2]] == [
        "whether clocks are locked",
        "whether the GPU's clocks are locked (sudo nvidia-smi --lock-gpu-clocks=MHZ,MHZ)",
    ]


def test_a_gpu_whose_clock_moves_is_not_locked(tmp_path, clock):
    moved, _, _ = on_a_pc(tmp_path, clock, "0x0", (300, 2040, 1875, 1980))
    assert len(moved) == 1
    assert moved[0].startswith("int8, batch 8: the clock of NVIDIA L4 went from 1,875 to 2,040 MHz")


def test_a_card_at_its_power_limit_is_not_throttled(tmp_path, clock):
    _, doubts, notes = on_a_pc(tmp_path, clock, "0x4")
    assert doubts == []
    assert any(note.startswith("NVIDIA L4 ran at its power limit") for note in notes)
    _, doubts, _ = on_a_pc(tmp_path, clock, "0x44")
    assert "throttled (NVIDIA L4: heat, in hardware)" in doubts[0]


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
