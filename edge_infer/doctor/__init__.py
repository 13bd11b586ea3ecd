"""`edge-infer doctor`: what this machine has, what is missing, and whether a model and a run would do here.

Every check gives findings and never raises; nothing is built, written or sent anywhere; no root is needed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_infer import __version__
from edge_infer.doctor.finding import LEVELS, Finding, Level, attempt, worst
from edge_infer.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FORMAT = 1
"""Of the JSON; a change that a reader would trip over raises it."""

EXIT_PROBLEM = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkup:
    """What is to be looked at besides the machine; options have the names that they have in `run`."""

    model: Path | None = None
    imagery: tuple[Path, ...] = ()
    footprints: Path | None = None
    out: Path | None = None
    layer: str | None = None
    where: str | None = None
    imagery_crs: str | None = None
    footprints_crs: str | None = None
    bands: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, by part: machine, software, graphics, model, work."""

    parts: Mapping[str, list[Finding]]
    machine: Machine
    version: str = field(default=__version__)

    @property
    def level(self) -> Level:
        """The worst of all."""
        return worst(self.findings)

    @property
    def findings(self) -> list[Finding]:
        """All of them, in order."""
        return [finding for part in self.parts.values() for finding in part]

    @property
    def exit_code(self) -> int:
        """3 where there is a problem, 0 where there is none."""
        return EXIT_PROBLEM if self.level == "problem" else 0

    def summary(self) -> str:
        """One line: how many findings of each level."""
        counts = Counter(finding.level for finding in self.findings)
        plural = {level: level if level == "ok" else f"{level}s" for level in LEVELS}
        return ", ".join(
            f"{counts[level]} {level if counts[level] == 1 else plural[level]}"
            for level in reversed(LEVELS)
            if counts[level]
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as docs/doctor.md describes them."""
        return {
            "format": FORMAT,
            "edge_infer": self.version,
            "level": self.level,
            "findings": [
                {"part": part, **finding.to_json()}
                for part, findings in self.parts.items()
                for finding in findings
            ],
            "machine": self.machine.to_json(),
        }


def examine(checkup: Checkup, machine: Machine | None = None) -> Report:
    """Look at everything that is there and was named; `machine` is this one unless another is given."""
    from edge_infer.doctor.graphics import look_at_graphics, look_at_plans
    from edge_infer.doctor.hardware import look_at_hardware
    from edge_infer.doctor.software import look_at_software

    machine = machine or Machine.read()
    gpu, graphics = look_at_graphics(machine)
    parts = {
        "machine": attempt("machine", lambda: look_at_hardware(machine)),
        "software": [*look_at_software(), *attempt("disk", lambda: _disks(checkup))],
        "graphics": [*graphics, *attempt("engines", lambda: look_at_plans(gpu))],
    }
    if checkup.model is not None:
        from edge_infer.doctor.model import look_at_model
        from edge_infer.doctor.work import look_at_work

        bundle, parts["model"] = look_at_model(checkup.model, gpu)
        if bundle is not None:
            work = attempt("work", lambda: look_at_work(checkup, bundle))
            if work:
                parts["work"] = work
    return Report(parts, machine)


def _disks(checkup: Checkup) -> Iterator[Finding]:
    """See whether there is room where something will be written."""
    from edge_infer.doctor.software import look_at_disks
    from edge_infer.engine.tensorrt.cache import cache_folder

    places = [("engines", cache_folder(None))]
    try:
        places.insert(0, ("what is written here", Path.cwd()))
        if checkup.out is not None:
            places.insert(0, ("the output", checkup.out.absolute().parent))
    except FileNotFoundError:
        gone = "the folder that this was called in is gone"
        yield Finding("disk", "problem", gone, "change to another one: cd")
    yield from look_at_disks(places)
