"""What nvidia-smi says of a graphics card: heat, clocks, throttling. A Jetson has files of its own for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_infer.machine.tree import Tree

_FIELDS = (
    *("name", "driver_version", "temperature.gpu", "clocks.sm", "clocks.max.sm"),
    *("power.draw", "power.limit", "clocks_throttle_reasons.active"),
)

_SLOWED_BY = {
    0x4: "its power limit",
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


def read_graphics_cards(tree: Tree) -> tuple[GraphicsCard, ...] | str:
    """List the cards, or say why there are none."""
    told = tree.run(("nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"))
    if told is None:
        return "nvidia-smi is not there or does not answer"
    rows = [[value.strip() for value in line.split(",")] for line in told.splitlines()]
    cards = tuple(_card(row) for row in rows if len(row) == len(_FIELDS))
    return cards or "nvidia-smi lists no card"


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
    except ValueError:
        reasons = 0
    slowed = tuple(why for bit, why in _SLOWED_BY.items() if reasons & bit)
    return GraphicsCard(name, driver, celsius, clock, highest, watts, limit, slowed)


def number(text: str) -> float | None:
    """Read a value of nvidia-smi's; None for the `[N/A]` of a card that does not measure it."""
    try:
        return float(text)
    except ValueError:
        return None
