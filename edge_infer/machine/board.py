"""Which board this is, and which Jetson Linux and JetPack it runs.

Formats: `/etc/nv_tegra_release` begins `# R36 (release), REVISION: 4.3, GCID: ...`; the device tree's `model`
is one text, its `compatible` several, each ended by a null byte (Devicetree Specification 2.3.1).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from edge_infer.machine.tree import Tree

_SOCS = {"tegra210": "Nano", "tegra186": "TX2", "tegra194": "Xavier", "tegra234": "Orin", "tegra264": "Thor"}

_JETPACKS = {
    (36, 3): "6.0",
    (36, 4): "6.1 or 6.2",
    (36, 5): "6.2",
    (38, 2): "7.0",
    (38, 4): "7.1",
    (39, 2): "7.2",
}
"""By release and revision of Jetson Linux, where the package nvidia-jetpack is not installed to say it."""

OLDEST_L4T = (36, 4)
"""JetPack 6.1, the first with a Python and a TensorRT that this project is made for."""


@dataclass(frozen=True, slots=True)
class Board:
    """A board or computer, as its firmware describes it."""

    name: str
    """As in NVIDIA Jetson Orin Nano Developer Kit; of a PC, maker and product."""
    compatible: tuple[str, ...] = ()
    """The device tree's, most specific first; empty on a PC."""

    @property
    def family(self) -> str | None:
        """Orin, Thor, ...; None for anything that is no Jetson."""
        return next(
            (family for soc, family in _SOCS.items() if any(soc in text for text in self.compatible)), None
        )


@dataclass(frozen=True, slots=True)
class JetsonLinux:
    """A Jetson's system software."""

    release: tuple[int, int, int]
    """(36, 4, 3) is what NVIDIA writes as L4T 36.4.3."""
    jetpack: str | None
    """As in 6.2+b77 from the package, or 6.1 or 6.2 from the release; None where neither is known."""

    def __str__(self) -> str:
        """One phrase."""
        jetpack = "" if self.jetpack is None else f" (JetPack {self.jetpack})"
        return f"L4T {'.'.join(map(str, self.release))}{jetpack}"


def read_board(tree: Tree) -> Board | str:
    """Tell the board, or why it is unknown."""
    for folder in ("proc/device-tree", "sys/firmware/devicetree/base"):
        model = tree.text(f"{folder}/model")
        if model:
            compatible = (tree.text(f"{folder}/compatible") or "").split("\0")
            return Board(model, tuple(text for text in compatible if text))
    parts = (tree.text(f"sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name"))
    name = " ".join(part for part in parts if part)
    return Board(name) if name else "neither the device tree nor the firmware names it"


def read_jetson_linux(tree: Tree) -> JetsonLinux | str:
    """Tell release and JetPack, or why there is none."""
    text = tree.text("etc/nv_tegra_release")
    if text is None:
        return "there is no /etc/nv_tegra_release: this is no Jetson, or a container on one"
    found = re.match(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*(\d+)(?:\.(\d+))?", text)
    if found is None:
        return f"/etc/nv_tegra_release reads {text.splitlines()[0][:80]!r}" if text else "it is empty"
    release = (int(found[1]), int(found[2]), int(found[3] or 0))
    return JetsonLinux(release, _package_version(tree.root, "nvidia-jetpack") or _JETPACKS.get(release[:2]))


def _package_version(root: Path, name: str) -> str | None:
    """Version of an installed Debian package, from dpkg's own list; None where it is not installed."""
    try:
        with (root / "var/lib/dpkg/status").open(encoding="utf-8", errors="replace") as stream:
            inside = False
            for line in stream:
                if line.startswith("Package: "):
                    inside = line.split()[1] == name
                elif inside and line.startswith("Version: "):
                    return line.split()[1]
    except OSError:
        pass
    return None
