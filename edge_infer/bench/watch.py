"""Watches power, heat and throttling in a thread while something runs.

Energy is kept, so that one way serves both kinds of meter: those that tell watts (the INA3221 rails that
tegrastats shows too, nvidia-smi), by the trapezoidal rule, and those that count joules (RAPL).
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_infer.machine import Power, PowerMeter, read_thermal_zones, read_throttling
from edge_infer.machine.graphics import read_graphics_cards

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_infer.machine import Throttling
    from edge_infer.machine.tree import Tree

INTERVAL_SECONDS = 0.1
"""An INA3221 averages over some tens of milliseconds; reading its files takes microseconds."""
DRIVER_INTERVAL_SECONDS = 0.5
"""Where a reading starts nvidia-smi: more often it would be load itself."""
HEAT_SECONDS = 1.0
"""Heat moves slowly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerFigures:
    """What was drawn from one moment to another."""

    watts: dict[str, float]
    """Mean by rail."""
    total_watts: float | None
    """Mean of the most that is measured: the board's input where there is one."""
    total_is: str | None
    """What that is."""
    seconds: float
    readings: int
    """Of the meters in between."""

    @property
    def joules(self) -> float | None:
        """Energy of the most that is measured."""
        return None if self.total_watts is None else self.total_watts * self.seconds

    def to_json(self, items: int) -> dict[str, Any]:
        """Plain JSON values, with the energy of each of `items` chips or footprints."""
        joules = self.joules
        return {
            "watts": {name: round(watts, 4) for name, watts in self.watts.items()},
            "total_watts": None if self.total_watts is None else round(self.total_watts, 4),
            "total_is": self.total_is,
            "joules": None if joules is None else round(joules, 4),
            "joules_each": None if joules is None or not items else joules / items,
            "readings": self.readings,
        }


@dataclass(slots=True)
class EnergyTrack:
    """Energy of one rail over time."""

    times: list[float] = field(default_factory=list)
    """Seconds, ascending."""
    joules: list[float] = field(default_factory=list)
    """Since the first reading."""
    _watts: float = 0.0

    def add_watts(self, now: float, watts: float) -> None:
        """Take a reading of power; between two it is taken to change evenly."""
        grown = (self._watts + watts) / 2 * (now - self.times[-1]) if self.times else 0.0
        self._watts = watts
        self.add_joules(now, grown)

    def add_joules(self, now: float, grown: float) -> None:
        """Take the energy since the last reading; that of the first one does not count."""
        self.joules.append(self.joules[-1] + grown if self.times else 0.0)
        self.times.append(now)

    def mean_watts(self, start: float, end: float) -> float | None:
        """Mean power between two moments, as far as there are readings; None where there are none."""
        start, end = max(start, self.times[0]), min(end, self.times[-1])
        if end <= start:
            return None
        energy = np.interp([start, end], self.times, self.joules)
        return float(energy[1] - energy[0]) / (end - start)


class Watch:
    """Samples from `with` to its end; what it says of a stretch is asked for while it runs or after."""

    def __init__(
        self,
        tree: Tree,
        *,
        interval_seconds: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Find the meters of the machine behind `tree`; nothing is read yet."""
        self._tree, self._clock = tree, clock
        self._has_cards = not isinstance(read_graphics_cards(tree), str)
        self._meter = PowerMeter(tree, gpu=self._has_cards)
        usual = DRIVER_INTERVAL_SECONDS if self._meter.asks_driver else INTERVAL_SECONDS
        self.interval_seconds = usual if interval_seconds is None else interval_seconds
        self.meter_absent = self._meter.absent
        """Why there is no power to be measured; None where there is."""
        self._tracks: dict[str, EnergyTrack] = {}
        self._counts: dict[str, int] = {}
        self._readings: list[float] = []
        self._first_throttling: Throttling | None = None
        self._slowed: dict[str, None] = {}
        self._hottest: float | None = None
        self._clocks: list[tuple[float, str, float]] = []
        self._at_limit: dict[str, None] = {}
        self._heat_due = -float("inf")
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watch:
        """Take the first reading and start the thread."""
        self.mark()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the thread and take the last reading."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self.mark()

    def mark(self) -> float:
        """Take a reading now; the moment, by the clock that stretches are named by."""
        with self._lock:
            now = self._clock()
            self._read_power(now)
            if now >= self._heat_due:
                self._heat_due = now + HEAT_SECONDS
                self._read_heat(now)
        return now

    def power(self, start: float, end: float) -> PowerFigures | None:
        """Tell what was drawn between two moments that `mark` gave; None where there is no meter."""
        with self._lock:
            means = {name: track.mean_watts(start, end) for name, track in self._tracks.items()}
            readings = sum(start <= at <= end for at in self._readings)
        watts = {name: mean for name, mean in means.items() if mean is not None}
        if not watts:
            return None
        total = Power(watts).total
        return PowerFigures(
            watts=watts,
            total_watts=None if total is None else total[0],
            total_is=None if total is None else total[1],
            seconds=end - start,
            readings=readings,
        )

    def card_clocks(self, start: float, end: float) -> dict[str, tuple[float, float]]:
        """Tell the lowest and highest clock of each graphics card between two moments, MHz.

        A card whose clock the driver does not tell is left out.
        """
        with self._lock:
            read = [(name, mhz) for at, name, mhz in self._clocks if start <= at <= end]
        return {
            name: (min(mhz for one, mhz in read if one == name), max(mhz for one, mhz in read if one == name))
            for name in dict.fromkeys(name for name, _ in read)
        }

    @property
    def at_power_limit(self) -> tuple[str, ...]:
        """Graphics cards whose clocks their power limit held down since the watch began, each once."""
        with self._lock:
            return tuple(self._at_limit)

    @property
    def slowed_by(self) -> tuple[str, ...]:
        """What slowed the machine down since the watch began, each once."""
        with self._lock:
            return tuple(self._slowed)

    @property
    def tells_throttling(self) -> bool:
        """Whether the machine would tell that it is slowed down."""
        return self._first_throttling is not None or self._has_cards

    @property
    def hottest_celsius(self) -> float | None:
        """The highest temperature since the watch began; None without a thermometer."""
        with self._lock:
            return self._hottest

    def _run(self) -> None:
        while not self._ended.wait(self.interval_seconds):
            self.mark()

    def _read_power(self, now: float) -> None:
        if self._readings and now <= self._readings[-1]:
            return
        self._readings.append(now)
        for name, watts in self._meter.read().rails.items():
            self._tracks.setdefault(name, EnergyTrack()).add_watts(now, watts)
        counts = self._meter.read_counters()
        for counter in self._meter.counters:
            if counter.name in counts:
                before = self._counts.get(counter.name, counts[counter.name])
                grown = counter.joules_between(before, counts[counter.name])
                self._tracks.setdefault(counter.name, EnergyTrack()).add_joules(now, grown)
        self._counts |= counts

    def _read_heat(self, now: float) -> None:
        throttling = read_throttling(self._tree)
        if not isinstance(throttling, str):
            if self._first_throttling is None:
                self._first_throttling = throttling
            grown = throttling.since(self._first_throttling)
            self._slowed |= dict.fromkeys((*throttling.now, *grown))
        cards = read_graphics_cards(self._tree) if self._has_cards else ""
        degrees: list[float | None] = []
        if not isinstance(cards, str):
            self._slowed |= {f"{card.name}: {why}": None for card in cards for why in card.slowed_by}
            degrees += [card.celsius for card in cards]
            for number, card in enumerate(cards):
                name = card.name if len(cards) == 1 else f"{card.name} ({number})"
                if card.at_power_limit:
                    self._at_limit[name] = None
                if card.clock_mhz is not None:
                    self._clocks.append((now, name, card.clock_mhz))
        zones = read_thermal_zones(self._tree)
        if not isinstance(zones, str):
            degrees += [zone.celsius for zone in zones]
        known = [value for value in (*degrees, self._hottest) if value is not None]
        self._hottest = max(known, default=None)
