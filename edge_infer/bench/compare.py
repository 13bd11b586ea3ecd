"""Two benchmarks side by side: ratios with intervals, and everything in which they differ."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_infer.bench.document import printable, well_formed
from edge_infer.bench.stats import percentile_of, rate_of, ratio_interval
from edge_infer.bench.table import columns
from edge_infer.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FEWEST_SAMPLES = 8
"""Below that a bootstrap says nothing; the ratios of the extremes are given instead."""

_SAME = {
    "model": ("model", "sha256"),
    "chips": ("chips",),
    "board": ("machine", "board", "name"),
    "CPU": ("machine", "cpu", "model"),
    "cores": ("machine", "cpu", "cores"),
    "graphics card": ("machine", "graphics_cards", 0, "name"),
    "graphics driver": ("machine", "graphics_cards", 0, "driver"),
    "L4T": ("machine", "jetson_linux", "release"),
    "power mode": ("machine", "power_mode", "name"),
    "clocks locked": ("machine", "clocks_locked"),
    "software": ("machine", "software"),
    "rule": ("rule",),
    "options": ("options",),
    "images": ("inputs", "images"),
    "imagery": ("inputs", "imagery"),
    "footprints": ("inputs", "footprints"),
}
"""What two benchmarks should have in common, and where it stands in a document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """One figure of both."""

    what: str
    before: float
    after: float
    low: float
    """Bounds of after / before."""
    high: float
    bootstrap: bool
    """Whether the bounds are a 95 % interval; else they are ratios of the extremes."""
    more_is_better: bool

    @property
    def ratio(self) -> float:
        """After / before."""
        return self.after / self.before

    @property
    def verdict(self) -> str:
        """In a word."""
        if self.low <= 1 <= self.high:
            return "no difference seen"
        return "better" if (self.low > 1) == self.more_is_better else "worse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What two documents have to say to each other."""

    differences: tuple[str, ...]
    """Other than in the figures; each in words."""
    ratios: tuple[Ratio, ...]

    def describe(self, names: tuple[str, str]) -> str:
        """Several lines; `names` of the two documents."""
        lines = [f"{names[1]} against {names[0]}"]
        lines += [f"DIFFERS: {difference}" for difference in self.differences]
        rows = [["", "before", "after", "ratio", "from", "to", ""]]
        for one in self.ratios:
            figures = [f"{value:,.3f}" for value in (one.before, one.after, one.ratio, one.low, one.high)]
            rows.append([one.what, *figures, one.verdict + ("" if one.bootstrap else " (extremes)")])
        return "\n".join(map(printable, [*lines, *columns(rows, 1)]))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "differences": list(self.differences),
            "ratios": [{**asdict(one), "ratio": one.ratio, "verdict": one.verdict} for one in self.ratios],
        }


def compare(before: dict[str, Any], after: dict[str, Any]) -> Comparison:
    """Compare two documents of the schema docs/bench.schema.json.

    Intervals are bootstrapped from the samples in the documents. They hold for these two measurements: what
    changes from one day to the next, only more measurements show.

    Raises:
        Refused: they have nothing in common, or one is malformed.

    """
    with well_formed(), np.errstate(all="raise"):
        differences = tuple(_differences(before, after))
        ratios = (*_alone(before, after), *_whole(before, after))
    if not ratios:
        raise Refused(
            "the two have no precision and batch in common, nor whole runs; measure the same in both "
            "(--precision, --batch)"
        )
    return Comparison(differences=differences, ratios=ratios)


def _differences(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    for name, path in _SAME.items():
        first, second = _value(before, path), _value(after, path)
        if isinstance(first, dict) and isinstance(second, dict):
            for key in sorted(first.keys() | second.keys()):
                if first.get(key) != second.get(key):
                    yield f"{name} {key}: {_shown(first.get(key))} and {_shown(second.get(key))}"
        elif first != second:
            yield f"{name}: {_shown(first)} and {_shown(second)}"
    cells = _cells(before), _cells(after)
    for key in [key for key in cells[0] if key in cells[1]]:
        yield from _unlike(
            f"engine, {_name(key)}", ("name", "version", "device"), [cell[key]["engine"] for cell in cells]
        )
    for key in cells[0].keys() ^ cells[1].keys():
        yield f"{_name(key)} was measured in one of them only"
    wholes = before["whole"], after["whole"]
    if (wholes[0] is None) != (wholes[1] is None):
        yield "whole runs were measured in one of them only"
    elif wholes[0] is not None:
        parts = ("name", "version", "device", "precision", "batch")
        yield from _unlike("whole runs, engine", parts, [whole["engine"] for whole in wholes])
        yield from _unlike("whole runs", ("threads",), wholes)
        yield from _unlike("whole runs", ("footprints", "classified"), [whole["runs"][0] for whole in wholes])
    for which, document in (("first", before), ("second", after)):
        if not document["valid"]:
            doubts = document["doubts"]
            more = f" (and {len(doubts) - 1} more reasons, see --show)" if len(doubts) > 1 else ""
            yield f"the {which} is NOT VALID: {doubts[0]}{more}"


def _unlike(what: str, parts: Sequence[str], both: Sequence[dict[str, Any]]) -> Iterator[str]:
    for part in parts:
        if both[0][part] != both[1][part]:
            yield f"{what}, {part}: {_shown(both[0][part])} and {_shown(both[1][part])}"


def _alone(before: dict[str, Any], after: dict[str, Any]) -> Iterator[Ratio]:
    cells = _cells(before), _cells(after)
    for key in [key for key in cells[0] if key in cells[1]]:
        waits = [cell[key]["latency"] for cell in cells]
        for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            values = [wait["milliseconds"]["wall"][name] for wait in waits]
            if None not in values:
                samples = [wait["samples"] for wait in waits]
                yield _ratio(f"{_name(key)}: wait {name}, ms", values, samples, share, more_is_better=False)
        full = [cell[key]["offline"] for cell in cells]
        if all(one["samples"] for one in full):
            values, samples = [one["chips_per_second"] for one in full], [one["samples"] for one in full]
            yield _ratio(f"{_name(key)}: chips/s", values, samples, None, more_is_better=True)


def _whole(before: dict[str, Any], after: dict[str, Any]) -> Iterator[Ratio]:
    if before["whole"] is None or after["whole"] is None:
        return
    for cache in ("cold", "warm"):
        samples = [
            [run["footprints_per_second"] for run in document["whole"]["runs"] if run["cache"] == cache]
            for document in (before, after)
        ]
        if all(samples) and all(map(all, samples)):  # where nothing was classified there is no rate
            values = [float(np.median(one)) for one in samples]
            yield _ratio(f"whole runs, {cache}: footprints/s", values, samples, 0.5, more_is_better=True)


def _ratio(
    what: str, values: list[float], samples: list[list[float]], share: float | None, *, more_is_better: bool
) -> Ratio:
    """Make a ratio of two figures; `share`: the percentile that they are, None for rates of equal work."""
    first, second = (np.array(one, np.float64) for one in samples)
    if min(*values, first.min(), second.min()) <= 0:
        raise ValueError(f"{what}: times and rates are more than 0")
    enough = min(len(first), len(second)) >= FEWEST_SAMPLES
    if enough:
        statistic = rate_of if share is None else percentile_of(share)
        low, high = ratio_interval(first, second, statistic)
    else:
        low, high = float(second.min() / first.max()), float(second.max() / first.min())
    return Ratio(
        what=what,
        before=values[0],
        after=values[1],
        low=low,
        high=high,
        bootstrap=enough,
        more_is_better=more_is_better,
    )


def _cells(document: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(cell["engine"]["precision"], cell["engine"]["batch"]): cell for cell in document["alone"]}


def _name(key: tuple[str, int]) -> str:
    return f"{key[0]}, batch {key[1]}"


def _value(document: Any, path: tuple[str | int, ...]) -> Any:  # noqa: ANN401 - JSON
    for step in path:
        if document is None or document == []:
            return None
        document = document[step]
    return document


def _shown(value: object) -> str:
    return "unknown" if value is None else str(value)
