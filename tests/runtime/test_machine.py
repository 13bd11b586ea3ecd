"""What is read of a machine: recorded trees of boards that are not here, and this one."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from edge_infer.machine import Machine, PowerMeter, Throttling, Tree, read_throttling
from edge_infer.machine.power import EnergyCounter, Power
from edge_infer.machine.tree import run_command

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Recorded(NamedTuple):
    root: Path
    run: Callable[[Sequence[str]], str | None]


def look(tree: Recorded) -> Any:
    return Machine.read(tree.root, tree.run)


MACHINES = ("orin-nano", "orin-nx", "agx-orin", "thor", "laptop")


@pytest.fixture
def machine(recorded, request):
    tree = recorded(request.param)
    return look(tree)


def on(*names):
    return pytest.mark.parametrize("machine", names, indirect=True)


@pytest.mark.parametrize(
    ("name", "family", "software", "cpu", "cores"),
    [
        ("orin-nano", "Orin", "L4T 36.4.3 (JetPack 6.2+b77)", "Cortex-A78AE", (6, 6)),
        ("orin-nx", "Orin", "L4T 36.4.4 (JetPack 6.1 or 6.2)", "Cortex-A78AE", (8, 8)),
        ("agx-orin", "Orin", "L4T 36.5.2 (JetPack 6.2)", "Cortex-A78AE", (8, 12)),
        ("thor", "Thor", "L4T 38.2.0 (JetPack 7.0)", "Neoverse-V3AE", (14, 14)),
    ],
)
def test_jetsons_are_recognised(recorded, name, family, software, cpu, cores):
    tree = recorded(name)
    machine = look(tree)
    assert machine.is_jetson
    assert machine.board.family == family
    assert machine.board.name.startswith("NVIDIA Jetson")
    assert str(machine.jetson_linux) == software
    assert (machine.cpu.model, (machine.cpu.cores, machine.cpu.cores_present)) == (cpu, cores)
    assert "dotprod" in machine.cpu.int8_instructions


@on("laptop")
def test_a_laptop_says_why_it_is_no_jetson(machine):
    assert not machine.is_jetson
    assert machine.board.name == "LENOVO 21HD0061GE"
    assert machine.cpu.int8_instructions == ("AVX-VNNI",)
    assert machine.absent.keys() == {"jetson_linux", "power_mode", "graphics_cards", "power"}
    assert "root" in machine.absent["power"]
    assert not machine.memory.zram


@pytest.mark.parametrize(
    ("name", "mode", "number"),
    [("orin-nano", "25W", 1), ("orin-nx", "MAXN_SUPER", 0), ("agx-orin", "30W", 2), ("thor", "120W", 1)],
)
def test_power_modes_come_from_nvpmodel_or_from_what_it_keeps(recorded, name, mode, number):
    tree = recorded(name)
    machine = look(tree)
    assert (machine.power_mode.name, machine.power_mode.number) == (mode, number)


def test_a_mode_without_a_name_has_its_number(recorded):
    tree = recorded("orin-nx")
    (tree.root / "etc/nvpmodel.conf").unlink()
    assert look(tree).power_mode.name == "mode 0"


@on("orin-nano")
def test_clocks_that_follow_the_load(machine):
    assert machine.clocks_locked is False
    cpu, gpu = machine.clocks[0], machine.clocks[-1]
    assert (cpu.kind, cpu.name, cpu.current_mhz, cpu.lowest_mhz, cpu.highest_mhz) == (
        *("cpu", "policy0"),
        *(729.6, 115.2, 1344.0),
    )
    assert (gpu.kind, gpu.name, gpu.lowest_mhz, gpu.highest_mhz) == ("gpu", "17000000.gpu", 306, 918)


@on("orin-nx")
def test_clocks_that_jetson_clocks_locked(machine):
    assert machine.clocks_locked is True


def test_one_clock_that_moves_is_enough(recorded):
    tree = recorded("orin-nx")
    (tree.root / "sys/class/devfreq/17000000.gpu/min_freq").write_text("306000000\n")
    assert look(tree).clocks_locked is False


@on("thor")
def test_the_clocks_of_a_thor(machine):
    kinds = {clock.name: clock.kind for clock in machine.clocks if clock.kind != "cpu"}
    assert kinds == {"bwmgr": "memory", "gpu-gpc-0": "gpu", "gpu-nvd-0": "gpu"}
    assert [clock.name for clock in machine.clocks][:3] == ["policy0", "policy2", "policy4"]


@on("agx-orin")
def test_clocks_of_other_parts_do_not_count(machine):
    assert [clock.name for clock in machine.clocks] == ["policy0", "policy4", "17000000.gpu"]


@on("orin-nano")
def test_thermometers_of_parts_that_sleep_have_no_temperature(machine):
    zones = {zone.name: zone for zone in machine.thermal_zones}
    assert zones["cv0-thermal"].celsius is None
    assert (zones["cpu-thermal"].celsius, zones["cpu-thermal"].slows_at) == (48.906, 99.0)
    assert zones["tj-thermal"].ends_at == 104.5


@on("orin-nano", "orin-nx", "agx-orin")
def test_a_trip_that_only_warns_of_a_hot_surface_slows_nothing_down(machine):
    """It lies at 70 °C on every Orin; throttling begins at 99."""
    assert {zone.slows_at for zone in machine.thermal_zones} == {99.0}
    assert "hot-surface-alert" not in machine.throttling.now


def test_trips_that_are_bound_to_nothing_count(recorded):
    tree = recorded("orin-nano")
    for file in tree.root.glob("sys/class/thermal/thermal_zone0/cdev*_trip_point"):
        file.unlink()
    assert look(tree).thermal_zones[0].slows_at == 70.0, "what it does is not known"


def test_a_trip_that_warns_and_slows_counts(recorded):
    tree = recorded("orin-nano")
    (tree.root / "sys/class/thermal/thermal_zone0/cdev0_trip_point").write_text("2\n")
    assert look(tree).thermal_zones[0].slows_at == 70.0


@on("laptop")
def test_trip_points_that_are_switched_off_are_none(machine):
    zones = {zone.name: zone for zone in machine.thermal_zones}
    assert zones["x86_pkg_temp"].slows_at is None
    assert zones["INT3400 Thermal"].slows_at is None
    assert (zones["acpitz"].slows_at, zones["acpitz"].ends_at) == (None, 120.0)


def test_what_reads_absolute_cold_is_switched_off(recorded):
    tree = recorded("orin-nano")
    (tree.root / "sys/class/thermal/thermal_zone0/temp").write_text("-256000\n")
    assert look(tree).thermal_zones[0].celsius is None


@on("orin-nano", "agx-orin", "thor", "laptop")
def test_fans_and_offsets_are_no_throttling(machine):
    assert machine.throttling.now == ()


@on("orin-nx")
def test_throttling_is_named_and_counted(machine):
    assert machine.throttling.now == ("gpu-throttle-alert", "devfreq-17000000.gpu")
    assert machine.throttling.events == {"over-current 1": 0, "over-current 2": 15, "over-current 3": 813}


@on("laptop")
def test_a_cpu_counts_its_own_throttling(machine):
    # Each core counts for itself, and all of them the package.
    assert machine.throttling.events == {"CPU core too hot": 0 + 3 + 6 + 9, "CPU package too hot": 40}


def test_what_happened_between_two_readings(recorded):
    tree = recorded("orin-nx")
    before = read_throttling(Tree(tree.root, tree.run))
    (tree.root / "sys/class/hwmon/hwmon5/oc3_event_cnt").write_text("820\n")
    after = read_throttling(Tree(tree.root, tree.run))
    assert isinstance(before, Throttling)
    assert isinstance(after, Throttling)
    assert after.since(before) == {"over-current 3": 7}
    assert before.since(before) == {}


@pytest.mark.parametrize(
    ("name", "rails", "total", "of"),
    [
        (
            "orin-nano",
            {"VDD_IN": 4.968 * 1.008, "VDD_CPU_GPU_CV": 4.96 * 0.128, "VDD_SOC": 4.96 * 0.288},
            *(4.968 * 1.008, "all that VDD_IN feeds"),
        ),
        (
            "agx-orin",
            {
                "VDD_GPU_SOC": 19.912 * 0.16,
                "VDD_CPU_CV": 19.912 * 0.04,
                "VIN_SYS_5V0": 5.032 * 0.896,
                "VDDQ_VDD2_1V8AO": 5.032 * 0.12,
            },
            *(19.912 * 0.2 + 5.032 * 0.896, "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"),
        ),
        (
            "thor",
            {"VDD_GPU": 0, "VDD_CPU_SOC_MSS": 12 * 0.542, "VIN_SYS_5V0": 5.02 * 1.298, "VIN": 23.21},
            *(23.21, "all that VIN feeds"),
        ),
    ],
)
def test_rails_and_what_they_add_up_to(recorded, name, rails, total, of):
    tree = recorded(name)
    power = look(tree).power
    assert power.rails == pytest.approx(rails)
    assert power.total == (pytest.approx(total), of)


def test_a_rail_that_does_not_answer_is_left_out(recorded):
    tree = recorded("orin-nano")
    meter = PowerMeter(Tree(tree.root, tree.run))
    file = tree.root / "sys/class/hwmon/hwmon1/curr1_input"
    file.unlink()
    file.mkdir()
    assert meter.absent is None
    assert set(meter.read().rails) == {"VDD_CPU_GPU_CV", "VDD_SOC"}


def test_rails_of_the_older_driver(tmp_path):
    folder = tmp_path / "sys/bus/i2c/drivers/ina3221x/1-0040/iio:device0"
    folder.mkdir(parents=True)
    for channel, (rail, milliwatts) in enumerate((("VDD_IN", 4210), ("VDD_CPU_GPU_CV", 640))):
        (folder / f"rail_name_{channel}").write_text(f"{rail}\n")
        (folder / f"in_power{channel}_input").write_text(f"{milliwatts}\n")
    assert PowerMeter(Tree(tmp_path, lambda _: None)).read().rails == {
        "VDD_IN": 4.21,
        "VDD_CPU_GPU_CV": 0.64,
    }


def test_energy_counters_that_may_be_read(recorded):
    tree = recorded("laptop")
    energy = tree.root / "sys/class/powercap/intel-rapl:0/energy_uj"
    energy.rmdir()
    energy.write_text("1000000\n")
    meter = PowerMeter(Tree(tree.root, tree.run))
    assert meter.absent is None
    assert meter.read_counters() == {"CPU package-0": 1_000_000}
    (counter,) = meter.counters
    assert counter.joules_between(1_000_000, 3_500_000) == 2.5


def test_a_counter_that_began_again():
    counter = EnergyCounter("CPU package-0", "", wraps_at=999_999)
    assert counter.joules_between(900_000, 100_000) == 0.2


def test_nothing_measured_adds_up_to_nothing():
    assert Power({}).total is None
    assert Power({"A_NEW_RAIL": 3.0}).total is None


CARDS = (
    "NVIDIA H100 80GB HBM3, 550.54.15, 31, 345, 1980, 71.32, 700.00, 0x0000000000000001\n"
    "NVIDIA L4, 550.54.15, 84, 900, 2040, 71.9, 72.00, 0x0000000000000024\n"
)


def test_graphics_cards(tmp_path):
    def run(arguments):
        assert arguments[0] in ("nvidia-smi", "nvpmodel")
        if arguments[0] != "nvidia-smi":
            return None
        return "71.32\n71.9\n" if "power.draw" in arguments[1].split("=")[1].split(",")[:1] else CARDS

    machine = look(Recorded(tmp_path, run))
    idle, hot = machine.graphics_cards
    assert (idle.name, idle.driver, idle.slowed_by) == ("NVIDIA H100 80GB HBM3", "550.54.15", ())
    assert (hot.slowed_by, hot.at_power_limit) == (("heat",), True), "its own limit is no fault"
    assert (idle.clock_mhz, hot.clock_mhz, idle.at_power_limit) == (345, 900, False)
    assert machine.power.rails == {"GPU 0 board": 71.32, "GPU 1 board": 71.9}
    assert machine.power.total == (pytest.approx(143.22), "GPU 0 board + GPU 1 board")


@pytest.mark.parametrize(
    ("known", "slowed"),
    [("clocks_event_reasons.active", ("heat",)), ("clocks_throttle_reasons.active", ("heat",)), (None, ())],
)
def test_a_field_that_a_driver_does_not_know_costs_only_itself(tmp_path, known, slowed):
    """nvidia-smi ends with an error where it does not know one of the fields that it is asked for."""

    def run(arguments):
        fields = arguments[-2].partition("=")[2].split(",")
        if arguments[0] != "nvidia-smi" or any("reasons" in field and field != known for field in fields):
            return None
        return "NVIDIA L4, 550.54.15, 84, 900, 2040, 71.9, 72.00" + ", 0x20" * (known in fields) + "\n"

    (card,) = look(Recorded(tmp_path, run)).graphics_cards
    assert (card.celsius, card.watts, card.slowed_by) == (84, 71.9, slowed)


@on("thor")
def test_a_driver_that_measures_nothing(machine):
    (card,) = machine.graphics_cards
    assert (card.name, card.celsius, card.watts, card.slowed_by) == ("NVIDIA Thor", None, None, ())
    assert not any(name.startswith("GPU ") for name in machine.power.rails)


@on(*MACHINES)
def test_json_holds_every_field_or_the_reason(machine):
    values = json.loads(json.dumps(machine.to_json()))
    empty = {name for name, value in values.items() if value is None}
    assert empty == values["absent"].keys()


def test_an_empty_root_gives_reasons_only(tmp_path):
    machine = look(Recorded(tmp_path, lambda _: None))
    values = machine.to_json()
    assert {name for name, value in values.items() if value is None} == values.keys() - {
        "absent",
        "nvidia_cards",
    }
    assert all(machine.absent.values())


@pytest.mark.parametrize("content", [b"", b"\0", b"\xff\xfe", b"-", b"a" * 5000, b"1\n2\n", b"\n\n:\n"])
def test_files_that_hold_anything_are_borne(recorded, content):
    tree = recorded("orin-nx")
    for folder, _, names in os.walk(tree.root):
        for name in names:
            (Path(folder) / name).write_bytes(content)
    machine = look(Recorded(tree.root, lambda _: content.decode(errors="replace")))
    json.dumps(machine.to_json())
    assert machine.memory is None
    assert machine.jetson_linux is None


def test_this_machine_without_root_and_without_waiting():
    started = time.monotonic()
    machine: Any = Machine.read()
    assert time.monotonic() - started < 10
    assert machine.cpu.cores == len(Path("/proc/cpuinfo").read_text().split("processor\t")) - 1
    assert machine.memory.total_bytes >= machine.memory.available_bytes > 0


def test_commands_that_fail_or_are_missing_say_nothing():
    assert run_command((sys.executable, "-c", "print('told')")) == "told\n"
    assert run_command((sys.executable, "-c", "raise SystemExit(3)")) is None
    assert run_command(("no-such-command-of-any-kind",)) is None
