"""Power, heat and throttling, on recorded machines whose files change while they are watched."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_infer.bench.watch import EnergyTrack, PowerFigures, Watch
from edge_infer.machine import Tree


def watch_of(recorded, name, clock, **options):
    machine = recorded(name)
    return Watch(Tree(machine.root, machine.run), clock=clock, **options), machine.root


def power_of(watch, start):
    """What was drawn since."""
    found = watch.power(start, watch.mark())
    assert found is not None
    return found


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 5), st.floats(0, 60)), min_size=2, max_size=40))
def test_energy_of_readings_in_watts_is_the_trapezoid(readings):
    times = np.cumsum([gap for gap, _ in readings])
    watts = [value for _, value in readings]
    track = EnergyTrack()
    for at, value in zip(times, watts, strict=True):
        track.add_watts(at, value)
    trapezoid = sum((watts[i] + watts[i + 1]) / 2 * (times[i + 1] - times[i]) for i in range(len(watts) - 1))
    assert track.joules[-1] == pytest.approx(trapezoid)
    mean = track.mean_watts(times[0], times[-1])
    assert mean == pytest.approx(track.joules[-1] / (times[-1] - times[0]))
    middle = (times[0] + times[-1]) / 2
    halves = [track.mean_watts(times[0], middle) or 0.0, track.mean_watts(middle, times[-1]) or 0.0]
    assert np.mean(halves) == pytest.approx(mean)


def test_energy_before_and_after_all_readings_is_unknown():
    track = EnergyTrack()
    track.add_watts(5, 10)
    track.add_watts(6, 10)
    assert track.mean_watts(0, 5) is None
    assert track.mean_watts(6, 9) is None
    assert track.mean_watts(0, 9) == pytest.approx(10)


def test_rails_of_an_orin_nano(recorded, clock):
    watch, root = watch_of(recorded, "orin-nano", clock)
    start = watch.mark()
    first = 4.968 * 1.008
    clock.now += 2
    (root / "sys/class/hwmon/hwmon1/curr1_input").write_text("3008")
    second = 4.968 * 3.008
    found = power_of(watch, start)
    assert found.watts.keys() == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}
    assert found.watts["VDD_IN"] == found.total_watts == pytest.approx((first + second) / 2)
    assert found.total_is == "all that VDD_IN feeds"
    assert found.joules == pytest.approx(first + second)
    assert found.to_json(50)["joules_each"] == pytest.approx((first + second) / 50)
    assert found.readings == 2
    assert watch.meter_absent is None


def test_an_agx_orin_draws_the_sum_of_its_parts(recorded, clock):
    watch, _ = watch_of(recorded, "agx-orin", clock)
    start = watch.mark()
    clock.now += 1
    found = power_of(watch, start)
    assert found.total_watts == pytest.approx(19.912 * 0.160 + 19.912 * 0.040 + 5.032 * 0.896)
    assert found.total_is == "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"


def test_a_counter_of_joules_may_begin_again(recorded, clock):
    machine = recorded("laptop")
    counter = machine.root / "sys/class/powercap/intel-rapl:0/energy_uj"
    counter.rmdir()  # the recorded one cannot be read
    counter.write_text("262143000000")
    watch = Watch(Tree(machine.root, machine.run), clock=clock)
    start = watch.mark()
    clock.now += 10
    counter.write_text(
        "99671149"
    )  # 328851 microjoules are left to the end of the round, which counts as one, too
    found = power_of(watch, start)
    assert found.total_watts == pytest.approx(100.0 / 10)
    assert list(found.watts) == ["CPU package-0"]


def test_without_a_meter_it_says_why(recorded, clock):
    watch, _ = watch_of(recorded, "laptop", clock)
    start = watch.mark()
    clock.now += 1
    assert watch.power(start, watch.mark()) is None
    assert "root" in watch.meter_absent


def test_throttling_is_what_happens_while_it_is_watched(recorded, clock):
    watch, root = watch_of(recorded, "orin-nano", clock)
    watch.mark()
    assert watch.slowed_by == ()
    assert watch.tells_throttling
    alert = root / "sys/class/thermal/cooling_device2/cur_state"
    alert.write_text("1")
    clock.now += 1.5
    watch.mark()
    alert.write_text("0")
    (root / "sys/class/hwmon/hwmon2/oc3_event_cnt").write_text("4")
    clock.now += 1.5
    watch.mark()
    assert watch.slowed_by == ("gpu-throttle-alert", "over-current 3")


def test_what_was_throttled_before_does_not_count(recorded, clock):
    watch, _ = watch_of(recorded, "laptop", clock)
    watch.mark()
    clock.now += 1.5
    watch.mark()
    assert watch.slowed_by == ()  # though the counters stand at 40 and more


def test_the_hottest_of_all_thermometers_is_kept(recorded, clock):
    watch, root = watch_of(recorded, "agx-orin", clock)
    watch.mark()
    assert watch.hottest_celsius == pytest.approx(47.312)
    zone = root / "sys/class/thermal/thermal_zone1/temp"
    for value in ("71250", "50000"):
        zone.write_text(value)
        clock.now += 1.5
        watch.mark()
    assert watch.hottest_celsius == pytest.approx(71.25)


def test_the_driver_is_asked_less_often(recorded, clock):
    commands = {
        "nvidia-smi --query-gpu=power.draw --format=csv,noheader,nounits": "250.5\n",
    }
    machine = recorded("laptop")

    def run(arguments):
        line = " ".join(arguments)
        if line.startswith("nvidia-smi --query-gpu=name"):
            return "NVIDIA H100, 550.54, 41, 1980, 1980, 250.5, 700.0, 0x0000000000000024\n"
        return commands.get(line)

    watch = Watch(Tree(machine.root, run), clock=clock)
    assert watch.interval_seconds == 0.5
    start = watch.mark()
    clock.now += 2
    found = power_of(watch, start)
    assert (found.total_watts, found.total_is) == (pytest.approx(250.5), "GPU 0 board")
    assert watch.slowed_by == ("NVIDIA H100: heat",)
    assert watch.at_power_limit == ("NVIDIA H100",)
    assert watch.card_clocks(start, clock.now) == {"NVIDIA H100": (1980, 1980)}


def test_the_thread_samples_and_ends(recorded):
    machine = recorded("orin-nano")
    with Watch(Tree(machine.root, machine.run), interval_seconds=0.002) as watch:
        start = watch.mark()
        deadline = time.perf_counter() + 20
        while time.perf_counter() < deadline:
            found = power_of(watch, start)
            if found.readings > 8:
                break
            time.sleep(0.01)
    assert found.readings > 8
    assert found.total_watts == pytest.approx(4.968 * 1.008)
    assert "watch" not in {thread.name for thread in threading.enumerate()}


def test_no_footprint_has_no_energy_of_its_own():
    figures = PowerFigures(watts={"X": 1.0}, total_watts=None, total_is=None, seconds=1, readings=2)
    assert figures.to_json(0)["joules_each"] is None
    assert figures.to_json(5)["joules"] is None
