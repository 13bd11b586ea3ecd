"""What the user asks of one run."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_infer.engine import GpuOptions
from edge_infer.errors import Refused

if TYPE_CHECKING:
    from edge_infer.engine import EngineChoice, GpuMemoryChoice, PrecisionChoice, SampleChoice

NOT_THE_RESULT = frozenset(
    (
        *("out", "engine", "batch", "threads", "resume", "force_resume", "overwrite"),
        *("gpu_memory", "cuda_graphs", "gpu_lanes", "sample_on", "tile_pixels"),
        *("bundle", "imagery", "footprints", "layer", "imagery_crs", "precision"),
    )
)
"""Options that may differ between a run and its resumption: no label depends on them, or (the last line)
what came of them is compared."""


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
    gpu_memory: GpuMemoryChoice = "auto"
    cuda_graphs: bool = True
    gpu_lanes: int = 3
    sample_on: SampleChoice = "auto"
    threads: int | None = None
    tile_pixels: int | None = None
    """Most pixels of a decoded tile; None: by the machine's memory."""
    min_valid: float = 0.5
    min_covered: float = 0.5
    resume: bool = False
    force_resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse options that contradict each other or mean nothing."""
        if os.path.islink(self.out):  # noqa: PTH114 - SQLite keeps its log beside the file, so the lock lies there too
            object.__setattr__(self, "out", Path(os.path.realpath(self.out)))
        if not 0 <= self.min_valid <= 1:
            raise Refused(f"--min-valid is a share of the window, 0 to 1, got {self.min_valid}")
        if not 0 <= self.min_covered <= 1:
            raise Refused(f"--min-covered is a share of the footprint, 0 to 1, got {self.min_covered}")
        if self.goes_on and self.overwrite:
            raise Refused("--resume keeps the output and --overwrite replaces it; give one of them")
        about_footprints = {
            "--layer": self.layer,
            "--where": self.where,
            "--footprints-crs": self.footprints_crs,
        }
        idle = [name for name, value in about_footprints.items() if value is not None]
        if self.footprints is None and idle:
            raise Refused(f"{', '.join(idle)} says something of footprints; name them with --footprints")

    @property
    def goes_on(self) -> bool:
        """Whether an output that exists is to be gone on with."""
        return self.resume or self.force_resume

    @property
    def gpu(self) -> GpuOptions:
        """How a GPU is to be used."""
        return GpuOptions(
            memory=self.gpu_memory,
            graphs=self.cuda_graphs,
            sample_on=self.sample_on,
            lanes=self.gpu_lanes,
        )

    def options(self) -> dict[str, Any]:
        """All options as JSON values, for the record; paths are absolute."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    def differences(self, before: dict[str, Any]) -> list[str]:
        """Say in words where `before` (an earlier run's `options`) would give other results."""
        return [
            f"--{name.replace('_', '-')} was {_shown(before.get(name))} and is {_shown(value)}"
            for name, value in self.options().items()
            if name not in NOT_THE_RESULT and before.get(name) != value
        ]


def _shown(value: object) -> str:
    """Write an option's JSON value as on the command line."""
    if value is None:
        return "not given"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _plain(value: object) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, Path):
        return os.path.realpath(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
