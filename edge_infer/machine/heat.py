"""Temperatures, and whether anything is slowed down because of them or of the power supply.

Sources: the kernel's thermal sysfs (millidegrees; trip points of type passive and critical; `cdevN`, a link
to a cooling device, and `cdevN_trip_point`, the number of the trip that switches it on); cooling devices, of
which a Jetson's `*-throttle-alert` are above 0 while that part is throttled (a fan and a warning of a hot
surface are cooling devices, too, but slow nothing down); a Jetson's over-current events, which
`ocN_event_cnt` of the hwmon device `soctherm_oc` counts since the start; x86's
`thermal_throttle/*_throttle_count`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_infer.machine.tree import Tree

LOWEST_CELSIUS = -40.0
"""What reads lower is switched off: Jetson's power-gated parts say -256."""

_SLOWS = re.compile(r"throttle-alert|^cpufreq|^devfreq|^thermal-cpufreq|^Processor$")
"""Cooling devices that cool by slowing down."""

_SLOWS_NOTHING = re.compile(r"hot-surface-alert|fan", re.IGNORECASE)
"""Those that do not: an Orin has a trip at 70 °C that warns of its surface, and slows down from 99 °C on."""


@dataclass(frozen=True, slots=True)
class ThermalZone:
    """One thermometer, degrees Celsius."""

    name: str
    """As in tj-thermal, which on a Jetson is the hottest of the others."""
    celsius: float | None
    """None while the part is switched off, as an idle GPU is."""
    slows_at: float | None
    """From here on it is slowed down."""
    ends_at: float | None
    """Here the system switches itself off."""


@dataclass(frozen=True, slots=True)
class Throttling:
    """What is slowed down now, and what was since the start."""

    now: tuple[str, ...]
    """Names of what slows something down at this moment."""
    events: Mapping[str, int]
    """Events since the system started, by name; compare two readings to see what happened in between."""

    def since(self, before: Throttling) -> dict[str, int]:
        """Events between an earlier reading and this one; only those that happened."""
        grown = {name: count - before.events.get(name, 0) for name, count in self.events.items()}
        return {name: count for name, count in grown.items() if count > 0}


def read_thermal_zones(tree: Tree) -> tuple[ThermalZone, ...] | str:
    """List the thermometers, or say why there are none."""
    zones = [_zone(tree, path) for path in tree.folders("sys/class/thermal/thermal_zone*")]
    return tuple(zones) or "the system shows no thermometer: a virtual machine, or a container, has none"


def read_throttling(tree: Tree) -> Throttling | str:
    """Tell what is throttled, or why that cannot be known."""
    found = False
    now: list[str] = []
    events: dict[str, int] = {}
    for path in tree.folders("sys/class/thermal/cooling_device*"):
        name, state = tree.text(f"{path}/type") or "", tree.number(f"{path}/cur_state")
        if _SLOWS.search(name) and state is not None:
            found = True
            if state > 0 and name not in now:
                now.append(name)
    for path in tree.folders("sys/class/hwmon/hwmon*"):
        for number in range(1, 10):
            count = tree.number(f"{path}/oc{number}_event_cnt")
            if count is not None:
                events[f"over-current {number}"] = count
    for what in ("core", "package"):
        files = tree.folders(f"sys/devices/system/cpu/cpu*/thermal_throttle/{what}_throttle_count")
        counts = [count for count in map(tree.number, files) if count is not None]
        if counts:
            # Each core counts the package's events, too.
            events[f"CPU {what} too hot"] = max(counts) if what == "package" else sum(counts)
    if not found and not events:
        return "the system shows no throttling counters"
    return Throttling(tuple(now), events)


def _zone(tree: Tree, path: str) -> ThermalZone:
    value = tree.number(f"{path}/temp")
    celsius = None if value is None or value / 1000 <= LOWEST_CELSIUS else value / 1000
    bound = _bound(tree, path)
    slows: list[float] = []
    ends: list[float] = []
    for trip in tree.folders(f"{path}/trip_point_*_temp"):
        kind, at = tree.text(f"{trip.removesuffix('_temp')}_type"), tree.number(trip)
        if at is None or at <= 0:  # switched off
            continue
        devices = bound.get(trip.removesuffix("_temp").rpartition("_")[2], [])
        if kind == "critical":
            ends.append(at / 1000)
        elif kind == "passive" and not (devices and all(map(_SLOWS_NOTHING.search, devices))):
            slows.append(at / 1000)
    return ThermalZone(
        tree.text(f"{path}/type") or path.rpartition("/")[2],
        celsius,
        min(slows, default=None),
        min(ends, default=None),
    )


def _bound(tree: Tree, path: str) -> dict[str, list[str]]:
    """Names of the cooling devices that each trip point of a zone switches on, by its number."""
    bound: dict[str, list[str]] = {}
    for file in tree.folders(f"{path}/cdev*_trip_point"):
        name, trip = tree.text(f"{file.removesuffix('_trip_point')}/type"), tree.text(file)
        if name and trip:
            bound.setdefault(trip, []).append(name)
    return bound
