"""The CPU and the memory, from /proc."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_infer.machine.tree import Tree

_ARM_PARTS = {
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd42": "Cortex-A78AE",  # Orin
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
    "0xd83": "Neoverse-V3AE",  # Thor
}
"""Main ID Register's part numbers, from the Arm manuals of these cores."""

_INT8_FLAGS = {
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "amx_int8": "AMX-INT8",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
}
"""What Linux calls the instructions that make INT8 fast, and what everybody else does."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processors that are switched on."""

    model: str
    cores: int
    """That Linux sees; the power mode of a Jetson switches some off."""
    cores_present: int
    """With those that are switched off."""
    int8_instructions: tuple[str, ...]
    """Those that make INT8 fast, such as AVX512-VNNI; without any it may be no faster than FP32."""


@dataclass(frozen=True, slots=True)
class Memory:
    """RAM and swap, bytes."""

    total_bytes: int
    available_bytes: int
    """That can be had without swapping."""
    swap_total_bytes: int
    swap_free_bytes: int
    zram: bool
    """Whether some of the swap is compressed RAM."""


def read_cpu(tree: Tree) -> Cpu | str:
    """Tell the CPU, or why it is unknown."""
    text = tree.text("proc/cpuinfo")
    if not text:
        return "/proc/cpuinfo cannot be read"
    blocks = [_fields(block) for block in text.split("\n\n")]
    processors = [block for block in blocks if "processor" in block]
    if not processors:
        return "/proc/cpuinfo lists no processor"
    first = processors[0]
    part = first.get("CPU part", "")
    model = _ARM_PARTS.get(part) or first.get("model name") or (f"ARM part {part}" if part else "unknown")
    flags = (first.get("flags") or first.get("Features") or "").split()
    fast = tuple(name for flag, name in _INT8_FLAGS.items() if flag in flags)
    present = _count(tree.text("sys/devices/system/cpu/present"))
    return Cpu(model, len(processors), max(present, len(processors)), fast)


def read_memory(tree: Tree) -> Memory | str:
    """Tell memory and swap, or why they are unknown."""
    values = _fields(tree.text("proc/meminfo") or "")
    try:
        total, available, swap, swap_free = (
            1024 * int(values[name].split()[0])
            for name in ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
        )
    except (KeyError, ValueError, IndexError):
        return "/proc/meminfo cannot be read"
    zram = any(line.startswith("/dev/zram") for line in (tree.text("proc/swaps") or "").splitlines())
    return Memory(total, available, swap, swap_free, zram)


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def _count(ranges: str | None) -> int:
    """Count a list of Linux's such as 0-3,6; 0 where it is none."""
    total = 0
    for piece in (ranges or "").split(","):
        first, _, last = piece.partition("-")
        try:
            total += int(last or first) - int(first) + 1
        except ValueError:
            return 0
    return total
