"""Power mode and clocks.

Sources: the kernel's cpufreq and devfreq documentation (kHz and Hz); `nvpmodel -q` prints the line
`NV Power Mode: 25W` and the number of the mode on the next; nvpmodel keeps `pmode:0001` in
/var/lib/nvpmodel/status and the names in /etc/nvpmodel.conf (`< POWER_MODEL ID=1 NAME=25W >`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from edge_infer.machine.tree import Tree

ClockKind = Literal["cpu", "gpu", "memory"]

_GPU_NAMES = re.compile(r"gpu|ga10b|gv11b|gb10b")
_MEMORY_NAMES = re.compile(r"emc|bwmgr")


@dataclass(frozen=True, slots=True)
class PowerMode:
    """The mode that nvpmodel has set."""

    name: str
    """As in 25W or MAXN_SUPER; names are caps, not what is drawn."""
    number: int | None
    """Differs in meaning from board to board."""


@dataclass(frozen=True, slots=True)
class Clock:
    """One clock that follows the load between two bounds, MHz."""

    kind: ClockKind
    name: str
    """As in policy0 or 17000000.gpu."""
    current_mhz: float | None
    lowest_mhz: float
    """As set, not as built."""
    highest_mhz: float
    """As set: by the power mode, for one."""
    governor: str | None

    @property
    def locked(self) -> bool:
        """Whether it has nowhere to go, as after jetson_clocks."""
        return self.lowest_mhz == self.highest_mhz


def read_power_mode(tree: Tree) -> PowerMode | str:
    """Tell the power mode of a Jetson, or why it is unknown."""
    told = tree.run(("nvpmodel", "-q")) or ""
    found = re.search(r"NV Power Mode:\s*(\S+)(?:\s+(\d+))?", told)
    if found is not None:
        return PowerMode(found[1].removeprefix("MODE_"), None if found[2] is None else int(found[2]))
    kept = re.search(r"pmode:(\d+)", tree.text("var/lib/nvpmodel/status") or "")
    if kept is None:
        return "nvpmodel tells none: this is no Jetson, or nvpmodel is not installed"
    number = int(kept[1])
    conf = tree.text("etc/nvpmodel.conf") or ""
    named = re.search(rf"<\s*POWER_MODEL\s+ID={number}\s+NAME=(\S+)\s*>", conf)
    return PowerMode(named[1].removeprefix("MODE_") if named else f"mode {number}", number)


def read_clocks(tree: Tree) -> tuple[Clock, ...] | str:
    """List the clocks that can be read without root, or say why there are none."""
    clocks = [_cpu_clock(tree, path) for path in tree.folders("sys/devices/system/cpu/cpufreq/policy*")]
    for path in tree.folders("sys/class/devfreq/*"):
        name = PurePosixPath(path).name
        if _GPU_NAMES.search(name):
            clocks.append(_devfreq_clock(tree, path, "gpu"))
        elif _MEMORY_NAMES.search(name):
            clocks.append(_devfreq_clock(tree, path, "memory"))
    readable = tuple(clock for clock in clocks if clock is not None)
    return readable or "neither cpufreq nor devfreq shows any: a virtual machine, or a container, has none"


def _cpu_clock(tree: Tree, path: str) -> Clock | None:
    return _clock(tree, path, "cpu", ("scaling_cur_freq", "scaling_min_freq", "scaling_max_freq"), 1e-3)


def _devfreq_clock(tree: Tree, path: str, kind: ClockKind) -> Clock | None:
    return _clock(tree, path, kind, ("cur_freq", "min_freq", "max_freq"), 1e-6)


def _clock(
    tree: Tree, path: str, kind: ClockKind, names: tuple[str, str, str], to_mhz: float
) -> Clock | None:
    current, lowest, highest = (tree.number(f"{path}/{name}") for name in names)
    if lowest is None or highest is None:
        return None
    governor = tree.text(f"{path}/scaling_governor") or tree.text(f"{path}/governor")
    return Clock(
        kind,
        PurePosixPath(path).name,
        None if current is None else round(current * to_mhz, 3),
        round(lowest * to_mhz, 3),
        round(highest * to_mhz, 3),
        governor,
    )
