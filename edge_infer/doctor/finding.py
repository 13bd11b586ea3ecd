"""What a check finds: one line, how bad it is, and what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

Level = Literal["ok", "warning", "problem"]
"""`warning`: work goes on, slower or at a risk. `problem`: work that is asked for fails or is wrong."""

LEVELS: tuple[Level, ...] = ("ok", "warning", "problem")
"""From good to bad."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check."""

    name: str
    """What was looked at, a word or two; see docs/doctor.md."""
    level: Level
    found: str
    """One line."""
    do: str | None = None
    """What to do about it, one line."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """The same as numbers, for programs; plain JSON values."""

    def __post_init__(self) -> None:
        """Refuse trouble without a word on what to do about it."""
        if self.level != "ok" and not self.do:
            raise ValueError(f"{self.name}: a {self.level} without a word on what to do")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "figures": dict(self.figures)}


def worst(findings: Iterable[Finding]) -> Level:
    """Give the worst level; `ok` where there is none."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")


def attempt(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Run a check that may fail in any way: whatever it raises is a finding, as that is what it is for."""
    try:
        return list(check())
    except Exception as error:  # libraries that are broken raise anything
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return [Finding(name, "problem", f"cannot be looked at: {text}", "install edge-infer anew")]
