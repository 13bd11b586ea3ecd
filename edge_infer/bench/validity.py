"""Why figures are not to be trusted. A run is valid where nobody gives a reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_infer.bench.stats import FEWEST_GROUPS, steadiness

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from edge_infer.bench.watch import Watch
    from edge_infer.machine import Clock, Machine

MOST_SPREAD = 0.05
"""Robust standard deviation of the throughput by the second, over its median."""
MOST_DRIFT = 0.05
"""Throughput of the last third of a measurement against the first: what heat and falling clocks look like."""
MOST_RANGE = 0.10
"""Between the fastest and the slowest of a few runs alike, over their median."""
FEWEST_RUNS = 3
MOST_CLOCKS_NAMED = 4


def doubts_of_machine(before: Machine, after: Machine, watch: Watch) -> list[str]:
    """Give the reasons that lie in clocks, power mode, heat and power supply."""
    doubts = []
    loose = [clock for clock in after.clocks or () if not clock.locked]
    if loose or before.clocks_locked is False:
        named = ", ".join(map(_range, (loose or list(before.clocks or ()))[:MOST_CLOCKS_NAMED]))
        more = f" and {len(loose) - MOST_CLOCKS_NAMED} more" if len(loose) > MOST_CLOCKS_NAMED else ""
        remedy = (
            "`sudo jetson_clocks`" if after.is_jetson else "set their lowest and highest equal (cpupower)"
        )
        doubts.append(f"clocks are not locked ({named}{more}): {remedy}")
    if before.power_mode != after.power_mode:
        modes = [mode.name if mode else "unknown" for mode in (before.power_mode, after.power_mode)]
        doubts.append(f"the power mode changed from {modes[0]} to {modes[1]}: keep it as it is")
    if watch.slowed_by:
        doubts.append(f"the machine was throttled ({', '.join(watch.slowed_by)}): cool it, or lower its mode")
    return doubts


def notes_on_machine(machine: Machine, watch: Watch) -> list[str]:
    """Say what this machine does not tell, so that nobody takes it for good."""
    notes = []
    if machine.clocks is None:
        notes.append(f"whether clocks are locked is unknown: {machine.absent['clocks']}")
    elif machine.is_jetson and all(clock.kind != "memory" for clock in machine.clocks):
        notes.append(
            "whether the memory's clock (EMC) is locked is unknown: only root may read it "
            "(sudo jetson_clocks --show)"
        )
    if machine.graphics_cards is not None and not machine.is_jetson:
        notes.append(
            "whether the GPU's clocks are locked (sudo nvidia-smi --lock-gpu-clocks=MHZ,MHZ) is unknown: the "
            "driver does not tell; whether they moved is looked at every second"
        )
    if watch.at_power_limit:
        notes.append(
            f"{', '.join(watch.at_power_limit)} ran at its power limit, which holds its clock down: a lower "
            "clock, locked, is steadier"
        )
    if not watch.tells_throttling:
        notes.append(f"whether it was throttled is unknown: {machine.absent['throttling']}")
    if watch.meter_absent is not None:
        notes.append(f"no power was measured: {watch.meter_absent}")
    return notes


def doubts_of_cards(what: str, clocks: Mapping[str, tuple[float, float]]) -> list[str]:
    """Give the reasons that lie in the clocks of graphics cards: lowest and highest of each, MHz."""
    return [
        f"{what}: the clock of {name} went from {low:,.0f} to {high:,.0f} MHz: lock it where heat and power "
        "let it stay (sudo nvidia-smi --lock-gpu-clocks=MHZ,MHZ)"
        for name, (low, high) in clocks.items()
        if low < high
    ]


def doubts_of_rates(what: str, rates: npt.NDArray[np.float64]) -> list[str]:
    """Give the reasons that lie in rates, (g,), by the second and in the order of time."""
    found = steadiness(rates)
    if found is None:
        short = f"{len(rates)} stretches of a second and some batches, wanted {FEWEST_GROUPS}"
        return [f"{what}: too short to be judged ({short}): give more --seconds"]
    doubts = []
    if found.spread > MOST_SPREAD:
        doubts.append(
            f"{what}: throughput varied by {found.spread:.1%} from second to second, "
            f"at most {MOST_SPREAD:.0%} is wanted: end other programs"
        )
    if abs(found.drift) > MOST_DRIFT:
        doubts.append(
            f"{what}: throughput changed by {found.drift:+.1%} from the first third to the last, "
            f"at most {MOST_DRIFT:.0%} is wanted: give a longer --burn-in"
        )
    return doubts


def doubts_of_runs(what: str, rates: Sequence[float]) -> list[str]:
    """Give the reasons that lie in the rates of a few runs alike."""
    if len(rates) < FEWEST_RUNS:
        return [f"{what}: {len(rates)} runs, wanted {FEWEST_RUNS}: give more --runs"]
    middle = float(np.median(rates))
    span = (max(rates) - min(rates)) / middle if middle else float("inf")
    if span > MOST_RANGE:
        wanted = f"at most {MOST_RANGE:.0%} is wanted"
        return [f"{what}: runs lie {span:.1%} apart, {wanted}: end other programs, or give more footprints"]
    return []


def _range(clock: Clock) -> str:
    return f"{clock.name} {clock.lowest_mhz:,.0f} to {clock.highest_mhz:,.0f} MHz"
