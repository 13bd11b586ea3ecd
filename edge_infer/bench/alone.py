"""The engine alone, with chips that are ready: latency by parts, throughput, energy.

Chips are real ones. Constant or random ones are faster or slower than any image: what a processor draws, and
with it its clocks, depends on how many bits change, and zeros let some kernels skip work.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from edge_infer.bench.scenario import COMPONENTS, all_at_once, one_at_a_time, warm_up
from edge_infer.bench.stats import early_stopping_estimate, group_rates, percentiles, steadiness, thin
from edge_infer.bench.validity import doubts_of_cards, doubts_of_rates
from edge_infer.bundle import FP16_MEMBER, INT8_MEMBER
from edge_infer.engine.golden import classify_chips, compare
from edge_infer.engine.load import fill_slots, keep_full
from edge_infer.errors import EdgeInferError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from edge_infer.bench.chips import RealChips
    from edge_infer.bench.scenario import Rule
    from edge_infer.bench.watch import PowerFigures, Watch
    from edge_infer.bundle import Bundle
    from edge_infer.engine import Engine, EngineFacts, EngineName, Precision
    from edge_infer.engine.golden import Agreement
from edge_infer.engine.load import BatchTimes

FAILURES = (EdgeInferError, MemoryError, OSError, RuntimeError)
"""What engines, GDAL and the system may raise: it costs what it befalls, and not what was measured before."""

MOST_SAMPLES = 2000
"""Latencies that are kept of one measurement, evenly over its time, for comparisons."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cell:
    """One engine, precision and batch, measured."""

    facts: EngineFacts
    open_seconds: float
    """To read, compile or build, and run once."""
    agreement: Agreement | None
    """With the answers stored in the bundle; None where it has none."""
    limit: float
    """How far it may differ from them."""
    rule: Rule
    times: BatchTimes
    """Of batches one at a time."""
    ends: npt.NDArray[np.float64]
    """When each of them was done, seconds since the first was sent."""
    latency_power: PowerFigures | None
    full_ends: npt.NDArray[np.float64]
    """The same with all the engine takes in flight."""
    full_power: PowerFigures | None
    card_clocks: Mapping[str, tuple[float, float]]
    """Lowest and highest clock of every graphics card meanwhile, MHz; it need not run on one."""

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.facts.precision}, batch {self.facts.batch}"

    @property
    def chips_per_second(self) -> float:
        """With all the engine takes in flight."""
        return len(self.full_ends) * self.facts.batch / float(self.full_ends[-1])

    def doubts(self) -> list[str]:
        """Why its figures are not to be trusted."""
        batch = self.facts.batch
        clocks = {name: both for name, both in self.card_clocks.items() if name.startswith(self.facts.device)}
        wrong = []
        if self.agreement is not None and self.agreement.largest_difference > self.limit:
            wrong.append(
                f"{self.name}: golden chips' probabilities differ by {self.agreement.largest_difference:.2g} "
                f"from the stored ones, at most {self.limit:.2g} is wanted: see edge-infer doctor MODEL"
            )
        return [
            *wrong,
            *doubts_of_cards(self.name, clocks),
            *doubts_of_rates(f"{self.name}, one at a time", group_rates(self.ends, batch)),
            *doubts_of_rates(f"{self.name}, offline", group_rates(self.full_ends, batch)),
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; times in milliseconds."""
        batch = self.facts.batch
        latency_chips, full_chips = len(self.ends) * batch, len(self.full_ends) * batch
        parts = {name: getattr(self.times, name) for name in COMPONENTS}
        milliseconds = {name: _rounded(percentiles(part)) for name, part in parts.items() if part is not None}
        full_rates = group_rates(self.full_ends, batch)
        return {
            "engine": asdict(self.facts),
            "open_seconds": round(self.open_seconds, 3),
            "golden": None if self.agreement is None else {**asdict(self.agreement), "limit": self.limit},
            "card_clocks_mhz": {name: list(bounds) for name, bounds in self.card_clocks.items()},
            "latency": {
                "batches": len(self.ends),
                "seconds": round(float(self.ends[-1]), 3),
                "milliseconds": milliseconds,
                "single_stream": self._single_stream() if batch == 1 else None,
                "steadiness": _steadiness(group_rates(self.ends, batch)),
                "samples": [round(value, 5) for value in thin(self.times.wall, MOST_SAMPLES).tolist()],
                "power": self.latency_power and self.latency_power.to_json(latency_chips),
            },
            "offline": {
                "chips": full_chips,
                "seconds": round(float(self.full_ends[-1]), 3),
                "chips_per_second": round(self.chips_per_second, 3),
                "comparable_with_mlperf": self.rule.mlperf,
                "steadiness": _steadiness(full_rates),
                "samples": [round(rate, 3) for rate in full_rates.tolist()],
                "power": self.full_power and self.full_power.to_json(full_chips),
            },
        }

    def _single_stream(self) -> dict[str, Any]:
        """MLPerf's metric: p90 of what a caller waits, and LoadGen's estimate of it."""
        estimate = early_stopping_estimate(self.times.wall)
        return {
            "p90_milliseconds": _rounded(percentiles(self.times.wall))["p90"],
            "p90_estimate_milliseconds": None if estimate is None else round(estimate, 5),
            "comparable_with_mlperf": self.rule.mlperf,
        }


@dataclass(frozen=True, slots=True)
class Skipped:
    """An engine of a sweep that could not be opened, or broke off."""

    what: str
    reason: str


def measure_all(
    sweep: Sequence[Mapping[str, Any]],
    opener: Callable[..., Engine],
    chips: RealChips,
    rule: Rule,
    watch: Watch,
    say: Callable[[str], None],
    burn_in_seconds: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Cell | Skipped]:
    """Measure several engines one after the other; one that fails in any way does not end the others.

    Args:
        sweep: `engine`, `precision` and `batch` of each.
        opener: takes them, and opens the engine.
        chips: what to feed it with.
        rule: how long to measure each.
        watch: running.
        say: takes a line for what begins and what was found.
        burn_in_seconds: how long to heat the machine before the first.
        clock: seconds.

    """
    heat = burn_in_seconds
    for options in sweep:
        asked = [options["engine"], options["precision"], f"batch {options['batch'] or 'of its choice'}"]
        name = ", ".join(word for word in asked if word != "auto")
        say(f"{name} ...")
        opened = partial(opener, **options)
        try:
            cell = measure_cell(opened, chips, rule, watch, burn_in_seconds=heat, clock=clock)
        except FAILURES as error:
            reason = str(error) or type(error).__name__
            say(f"{name}: left out: {reason}")
            yield Skipped(name, reason)
        else:
            heat = 0.0
            say(f"{cell.name}: {cell.chips_per_second:,.1f} chips/s")
            yield cell


def measure_cell(
    opener: Callable[[], Engine],
    chips: RealChips,
    rule: Rule,
    watch: Watch,
    *,
    burn_in_seconds: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Cell:
    """Open an engine, measure it, close it.

    Args:
        opener: opens it.
        chips: what to feed it with.
        rule: how long.
        watch: running.
        burn_in_seconds: how long to heat the machine with it before.
        clock: seconds.

    Raises:
        EdgeInferError: it is not to be had, or fails.

    """
    started = clock()
    with closing(opener()) as engine:
        open_seconds = clock() - started
        agreement = None
        if chips.expected is not None:
            agreement = compare(classify_chips(engine, chips.chips), chips.expected)
        slots = fill_slots(engine, chips.chips)
        if burn_in_seconds:
            keep_full(engine, slots, seconds=burn_in_seconds, clock=clock)
        warm_up(engine, slots, rule, clock)
        moments = [watch.mark()]
        times, ends = one_at_a_time(engine, slots, rule, clock)
        moments.append(watch.mark())
        full_ends = all_at_once(engine, slots, rule, clock)
        moments.append(watch.mark())
        return Cell(
            facts=engine.facts,
            open_seconds=open_seconds,
            agreement=agreement,
            limit=chips.bears(engine.facts.precision),
            rule=rule,
            times=times,
            ends=ends,
            latency_power=watch.power(moments[0], moments[1]),
            full_ends=full_ends,
            full_power=watch.power(moments[1], moments[2]),
            card_clocks=watch.card_clocks(moments[0], moments[2]),
        )


def precisions_of(bundle: Bundle, engine: EngineName) -> tuple[Precision, ...]:
    """List the precisions that an engine can run of a bundle, the smallest numbers first."""
    found: list[Precision] = []
    if INT8_MEMBER in bundle.members:
        found.append("int8")
    if FP16_MEMBER in bundle.members and engine == "tensorrt":
        found.append("fp16")
    return (*found, "fp32")


def least_seconds(rule: Rule, cells: int) -> float:
    """Tell how long a sweep takes at least."""
    return cells * (2 * rule.seconds + rule.warm_up_seconds)


def _steadiness(rates: npt.NDArray[np.float64]) -> dict[str, float] | None:
    found = steadiness(rates)
    return None if found is None else asdict(found)


def _rounded(values: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 5) for name, value in values.items()}
