"""What machine this is: board, system software, CPU, memory, clocks, heat, power. Reading only, no root.

Everything comes from files below one root and from commands, both of which can be replaced by recorded ones.
Each reader gives its value, or a text that says why there is none; `Machine` gathers them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_infer.machine.board import Board, JetsonLinux, read_board, read_jetson_linux
from edge_infer.machine.clocks import Clock, PowerMode, read_clocks, read_power_mode
from edge_infer.machine.graphics import GraphicsCard, count_nvidia_cards, read_graphics_cards
from edge_infer.machine.heat import (
    ThermalZone,
    Throttling,
    read_thermal_zones,
    read_throttling,
)
from edge_infer.machine.power import Power, PowerMeter
from edge_infer.machine.processor import Cpu, Memory, read_cpu, read_memory
from edge_infer.machine.tree import Tree, run_command

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_infer.machine.tree import Command

__all__ = [
    "Board",
    "Clock",
    "Cpu",
    "GraphicsCard",
    "JetsonLinux",
    "Machine",
    "Memory",
    "Power",
    "PowerMeter",
    "PowerMode",
    "ThermalZone",
    "Throttling",
    "Tree",
    "read_thermal_zones",
    "read_throttling",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One look at a machine. A field is None where there is nothing to read, and `absent` says why."""

    board: Board | None
    jetson_linux: JetsonLinux | None
    cpu: Cpu | None
    memory: Memory | None
    power_mode: PowerMode | None
    clocks: tuple[Clock, ...] | None
    thermal_zones: tuple[ThermalZone, ...] | None
    throttling: Throttling | None
    graphics_cards: tuple[GraphicsCard, ...] | None
    power: Power | None
    nvidia_cards: int
    """On the PCI bus, with a driver or without; a Jetson's GPU is not among them."""
    absent: Mapping[str, str]
    """For each field that is None, why."""

    @classmethod
    def read(cls, root: Path = Path("/"), run: Command = run_command) -> Machine:
        """Look at the machine whose files lie below `root` and whose commands `run` runs."""
        tree = Tree(root, run)
        cards = read_graphics_cards(tree)
        meter = PowerMeter(tree, gpu=not isinstance(cards, str))
        found: dict[str, Any] = {
            "board": read_board(tree),
            "jetson_linux": read_jetson_linux(tree),
            "cpu": read_cpu(tree),
            "memory": read_memory(tree),
            "power_mode": read_power_mode(tree),
            "clocks": read_clocks(tree),
            "thermal_zones": read_thermal_zones(tree),
            "throttling": read_throttling(tree),
            "graphics_cards": cards,
            "power": meter.absent or meter.read(),
        }
        absent = {name: value for name, value in found.items() if isinstance(value, str)}
        return cls(**{**found, **dict.fromkeys(absent)}, nvidia_cards=count_nvidia_cards(tree), absent=absent)

    @property
    def is_jetson(self) -> bool:
        """Whether this is one of NVIDIA's Jetson boards."""
        return self.jetson_linux is not None or (self.board is not None and self.board.family is not None)

    @property
    def clocks_locked(self) -> bool | None:
        """Whether all clocks that can be read stand still; None where none can be."""
        return None if self.clocks is None else all(clock.locked for clock in self.clocks)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values under the names of the fields."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON has no narrower type
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        return _plain(asdict(value))
    return value
