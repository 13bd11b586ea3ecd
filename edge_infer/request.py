"""What the user asks of one run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_infer.errors import Refused

if TYPE_CHECKING:
    from edge_infer.engine import EngineChoice, PrecisionChoice

NOT_THE_RESULT = frozenset({"bundle", "out", "engine", "batch", "threads", "resume", "overwrite"})
"""Options that may differ between a run and its resumption: no label depends on them, and the bundle is
compared by content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """The options of `edge-infer run`, under their own names."""

    bundle: Path
    imagery: tuple[Path, ...]
    footprints: Path | None
    out: Path
    layer: str | None = None
    where: str | None = None
    imagery_crs: str | None = None
    footprints_crs: str | None = None
    bands: tuple[int, ...] | None = None
    engine: EngineChoice = "auto"
    precision: PrecisionChoice = "auto"
    batch: int | None = None
    threads: int | None = None
    min_valid: float = 0.5
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse options that contradict each other or mean nothing."""
        if not 0 <= self.min_valid <= 1:
            raise Refused(f"--min-valid is a share of the window, 0 to 1, got {self.min_valid}")
        if self.resume and self.overwrite:
            raise Refused("--resume keeps the output and --overwrite replaces it; give one of them")
        about_footprints = {
            "--layer": self.layer,
            "--where": self.where,
            "--footprints-crs": self.footprints_crs,
        }
        idle = [name for name, value in about_footprints.items() if value is not None]
        if self.footprints is None and idle:
            raise Refused(f"{', '.join(idle)} says something of footprints; name them with --footprints")

    def options(self) -> dict[str, Any]:
        """All options as JSON values, for the record; paths are absolute."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    def differences(self, before: dict[str, Any]) -> list[str]:
        """Say in words where `before` (an earlier run's `options`) would give other results."""
        return [
            f"{name} was {before.get(name)!r} and is {value!r}"
            for name, value in self.options().items()
            if name not in NOT_THE_RESULT and before.get(name) != value
        ]


def _plain(value: object) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, Path):
        return str(value.resolve())
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
