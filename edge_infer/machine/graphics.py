"""What nvidia-smi says of a graphics card: heat, clocks, throttling. A Jetson has files of its own for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_infer.machine.tree import Tree

_FIELDS = (
    *("name", "driver_version", "temperature.gpu"),
    *("clocks.sm", "clocks.max.sm", "power.draw", "power.limit"),
)

_REASONS = (("clocks_event_reasons.active",), ("clocks_throttle_reasons.active",), ())
"""One thing by the names of newer and of older drivers, or not at all: nvidia-smi answers nothing where it
does not know one of the fields."""

_POWER_LIMIT = 0x4
"""A card that is at work reaches its limit; that is how it is meant to run, and no fault."""

_SLOWED_BY = {
    0x8: "its hardware (heat or power)",
    0x20: "heat",
    0x40: "heat, in hardware",
    0x80: "the power supply's brake",
}
"""Bits of nvmlClocksEventReasons in nvml.h that mean slower than wanted; idling is none."""


@dataclass(frozen=True, slots=True)
class GraphicsCard:
    """A card as its driver describes it; None is what it does not tell."""

    name: str
    driver: str
    """Version of the kernel's driver, as in 550.54.15."""
    celsius: float | None
    clock_mhz: float | None
    highest_mhz: float | None
    watts: float | None
    limit_watts: float | None
    slowed_by: tuple[str, ...]
    """Why it runs slower than it could, in a few words each; empty where it does not."""
    at_power_limit: bool
    """Whether its clock is held down by the limit of its power."""


def read_graphics_cards(tree: Tree) -> tuple[GraphicsCard, ...] | str:
    """List the cards, or say why there are none."""
    for reasons in _REASONS:
        fields = (*_FIELDS, *reasons)
        told = tree.run(("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"))
        if told is not None:
            rows = [[value.strip() for value in line.split(",")] for line in told.splitlines()]
            cards = tuple(_card(row) for row in rows if len(row) == len(fields))
            return cards or "nvidia-smi lists no card"
    return "nvidia-smi is not there or does not answer"


def count_nvidia_cards(tree: Tree) -> int:
    """Count NVIDIA's display and 3D controllers on the PCI bus, which are there without a driver, too."""
    return sum(
        tree.text(f"{path}/vendor") == "0x10de" and (tree.text(f"{path}/class") or "").startswith("0x03")
        for path in tree.folders("sys/bus/pci/devices/*")
    )


def _card(row: list[str]) -> GraphicsCard:
    name, driver, *values = row
    celsius, clock, highest, watts, limit = map(number, values[:5])
    try:
        reasons = int(values[5], 16)
    except (ValueError, IndexError):
        reasons = 0
    slowed = tuple(why for bit, why in _SLOWED_BY.items() if reasons & bit)
    at_limit = bool(reasons & _POWER_LIMIT)
    return GraphicsCard(name, driver, celsius, clock, highest, watts, limit, slowed, at_limit)


def number(text: str) -> float | None:
    """Read a value of nvidia-smi's; None for the `[N/A]` of a card that does not measure it."""
    try:
        return float(text)
    except ValueError:
        return None
