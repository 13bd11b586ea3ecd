"""What stands there: board, clocks, heat, power, memory. Pure: from a `Machine` to findings."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from edge_infer.doctor.finding import Finding
from edge_infer.machine.board import OLDEST_L4T

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_infer.machine import Clock, Machine

SUPPORTED_FAMILIES = ("Orin", "Thor")

WARM_MARGIN = 10.0
"""Degrees below the point where it slows down from which on a machine is called hot."""

USUAL_LIMIT, USUAL_CARD_LIMIT = 100.0, 90.0
"""°C where chips and cards that do not tell their limit slow down, about."""

INSIDE = "a container does not show it: look from the board itself"

GIB = 2**30
LITTLE_MEMORY = 1.5 * GIB
"""A run takes about 1 GiB: decoded tiles, GDAL's cache, the engine."""
TOO_LITTLE_MEMORY = 0.5 * GIB
SMALL_BOARD = 9 * GIB
"""On an 8 GB board the build of an engine may need swap."""


def look_at_hardware(machine: Machine) -> Iterator[Finding]:
    """Give one finding for each thing that bears on a run."""
    yield _board(machine)
    yield _jetson_linux(machine)
    yield _cpu(machine)
    yield _memory(machine)
    if machine.is_jetson:
        yield _power_mode(machine)
    yield _clocks(machine)
    yield _temperature(machine)
    yield _throttling(machine)
    yield _power(machine)


def _board(machine: Machine) -> Finding:
    if machine.board is None:
        return _unknown("board", machine, machine.absent["board"])
    family = machine.board.family
    if family is not None and family not in SUPPORTED_FAMILIES:
        return Finding(
            "board",
            "warning",
            f"{machine.board.name}: a Jetson {family}",
            "its JetPack is too old for the TensorRT engine: use an Orin or a Thor, or the CPU",
        )
    return Finding("board", "ok", machine.board.name + (f" ({family})" if family else ""))


def _jetson_linux(machine: Machine) -> Finding:
    name, found = "Jetson Linux", machine.jetson_linux
    if found is None and machine.is_jetson:
        return _unknown(name, machine, machine.absent["jetson_linux"])
    if found is None:
        return Finding(name, "ok", "not there, as this is no Jetson")
    if found.release[:2] < OLDEST_L4T:
        return Finding(
            name, "warning", f"{found}: older than JetPack 6.1", "flash JetPack 6.1 or newer; the CPU serves"
        )
    return Finding(name, "ok", str(found))


def _cpu(machine: Machine) -> Finding:
    cpu = machine.cpu
    if cpu is None:
        return _unknown("CPU", machine, machine.absent["cpu"])
    fast = f", fast INT8 by {', '.join(cpu.int8_instructions)}" if cpu.int8_instructions else ""
    text = f"{cpu.model}, {cpu.cores} cores{fast}"
    if cpu.cores < cpu.cores_present:
        text = f"{cpu.model}, {cpu.cores} of {cpu.cores_present} cores are on{fast}"
        on = "the power mode decides: sudo nvpmodel -q, sudo nvpmodel -m N" if machine.is_jetson else None
        return Finding("CPU", "ok", text, on)
    if not cpu.int8_instructions:
        return Finding(
            "CPU", "ok", f"{text}, no instructions for INT8", "INT8 may be no faster: edge-infer bench tells"
        )
    return Finding("CPU", "ok", text)


def _memory(machine: Machine) -> Finding:
    memory = machine.memory
    if memory is None:
        return _unknown("memory", machine, machine.absent["memory"])
    kind = " (zram)" if memory.zram else ""
    swap = f"{memory.swap_total_bytes / GIB:.1f} GiB swap{kind}" if memory.swap_total_bytes else "no swap"
    text = f"{memory.available_bytes / GIB:.1f} of {memory.total_bytes / GIB:.1f} GiB free, {swap}"
    desktop = "; a Jetson saves 1 GiB without its desktop: sudo systemctl isolate multi-user.target"
    free = "close other programs" + desktop * machine.is_jetson
    with_swap = memory.available_bytes + memory.swap_free_bytes
    if with_swap < TOO_LITTLE_MEMORY:
        return Finding("memory", "problem", f"{text}: a run would be killed", free)
    if memory.available_bytes < LITTLE_MEMORY:
        return Finding("memory", "warning", f"{text}: a run takes about 1 GiB", free)
    if machine.is_jetson and memory.total_bytes < SMALL_BOARD and not memory.swap_total_bytes:
        return Finding(
            "memory",
            "warning",
            f"{text}: building an engine may be killed",
            "switch zram on (sudo systemctl enable --now nvzramconfig), or add a swap file",
        )
    return Finding("memory", "ok", text)


def _power_mode(machine: Machine) -> Finding:
    mode = machine.power_mode
    if mode is None:
        return Finding(
            "power mode", "warning", f"unknown: {machine.absent['power_mode']}", "ask it: sudo nvpmodel -q"
        )
    number = "" if mode.number is None else f" (mode {mode.number})"
    return Finding("power mode", "ok", f"{mode.name}{number}")


def _clocks(machine: Machine) -> Finding:
    if machine.clocks is None:
        return _unknown("clocks", machine, machine.absent["clocks"])
    text = ", ".join(_range(clock) for clock in _of_each_kind(machine.clocks))
    if machine.clocks_locked:
        return Finding("clocks", "ok", f"locked: {text}")
    lock = "sudo jetson_clocks" if machine.is_jetson else "sudo cpupower frequency-set -g performance"
    return Finding(
        "clocks", "ok", f"follow the load: {text}", f"fine for work; to measure, lock them: {lock}"
    )


def _of_each_kind(clocks: tuple[Clock, ...]) -> list[Clock]:
    """Of each kind the one that goes highest, CPU first."""
    highest: dict[str, Clock] = {}
    for clock in clocks:
        if clock.kind not in highest or clock.highest_mhz > highest[clock.kind].highest_mhz:
            highest[clock.kind] = clock
    return list(highest.values())


def _range(clock: Clock) -> str:
    kind = clock.kind if clock.kind == "memory" else clock.kind.upper()
    low = "" if clock.locked else f"{clock.lowest_mhz:,.0f} to "
    return f"{kind} {low}{clock.highest_mhz:,.0f} MHz"


class _Heat(NamedTuple):
    """What one thermometer says, °C."""

    name: str
    celsius: float
    limit: float
    """Where something happens to the part."""
    told: str
    """What that is."""

    @property
    def to_go(self) -> float:
        return self.limit - self.celsius

    def __str__(self) -> str:
        return f"{self.name} {self.celsius:.0f} °C"


def _temperature(machine: Machine) -> Finding:
    """Judge each thermometer by its own limit; the one that is nearest to it comes first."""
    heats = sorted(_heats(machine), key=lambda heat: heat.to_go)
    if not heats:
        return _unknown("temperature", machine, "no thermometer answers")
    cards = {card.name for card in machine.graphics_cards or ()}
    others = [str(heat) for heat in heats[1:] if heat.to_go <= WARM_MARGIN or heat.name in cards]
    text = "; ".join([f"{heats[0]}, {heats[0].told}", *others])
    if heats[0].to_go > WARM_MARGIN:
        return Finding("temperature", "ok", text)
    cool = "cool it: shade, air, a clean fan at full speed" + "; or a smaller power mode" * machine.is_jetson
    return Finding("temperature", "warning", text, cool)


def _heats(machine: Machine) -> Iterator[_Heat]:
    for zone in machine.thermal_zones or ():
        if zone.celsius is None:
            continue
        if zone.slows_at is not None:
            yield _Heat(zone.name, zone.celsius, zone.slows_at, f"slowed down from {zone.slows_at:.0f} °C on")
        elif zone.ends_at is not None:
            yield _Heat(zone.name, zone.celsius, zone.ends_at, f"switched off at {zone.ends_at:.0f} °C")
        else:
            yield _Heat(zone.name, zone.celsius, USUAL_LIMIT, "its limit is unknown")
    for card in machine.graphics_cards or ():
        if card.celsius is not None:
            yield _Heat(card.name, card.celsius, USUAL_CARD_LIMIT, "its limit is unknown")


def _throttling(machine: Machine) -> Finding:
    slowed = [f"{card.name} by {why}" for card in machine.graphics_cards or () for why in card.slowed_by]
    state = machine.throttling
    if state is not None:
        slowed = [*state.now, *slowed]
    if slowed:
        return Finding(
            "throttling",
            "warning",
            f"slowed down now: {', '.join(slowed)}",
            "results stay right, but come slower: cool it, or give it a stronger power supply",
        )
    if state is None:
        return _unknown("throttling", machine, machine.absent["throttling"])
    events = {name: count for name, count in state.events.items() if count}
    told = ", ".join(f"{name} {count:,} times" for name, count in events.items())
    if any("over-current" in name for name in events):
        return Finding(
            "throttling",
            "warning",
            f"none now; since the start: {told}",
            "results stay right, but came slower: a stronger power supply, or a smaller power mode",
            dict(events),
        )
    return Finding("throttling", "ok", f"none now; since the start: {told or 'none'}", None, dict(events))


def _power(machine: Machine) -> Finding:
    if machine.power is None:
        return Finding("power", "ok", f"not measured: {machine.absent['power']}")
    total, rails = machine.power.total, dict(machine.power.rails)
    if total is None:
        shown = ", ".join(f"{name} {watts:.1f} W" for name, watts in rails.items())
        return Finding("power", "ok", shown or "measured by a counter of energy", None, rails)
    return Finding("power", "ok", f"{total[0]:.1f} W ({total[1]})", None, rails)


def _unknown(name: str, machine: Machine, why: str) -> Finding:
    """Tell what is not known: of a Jetson, which shows it to everybody, that is odd."""
    if machine.is_jetson:
        return Finding(name, "warning", f"unknown: {why}", INSIDE)
    return Finding(name, "ok", f"unknown: {why}")
