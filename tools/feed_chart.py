"""Draws the chart of docs/performance.md from what the benchmarks wrote.

EDGE_INFER_RESULTS=DIR pytest tests/benchmarks/test_benchmark_feed.py --benchmark-only -s
python tools/feed_chart.py DIR docs/feed.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

COLORS = {"run": "#1b6ca8", "plain loop": "#c2571a", "plain loop, sorted": "#e0a577"}
STAGES = {"decode": "#4a4a4a", "sample": "#1b6ca8", "vectors": "#8cb8d8"}


def read(folder: Path, name: str) -> dict[str, Any] | None:
    """Read one benchmark's figures; None where it was not run."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def draw(folder: Path, path: Path) -> None:
    """Draw footprints per second by scene, and what a run's processor time is made of."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = {name: read(folder, f"plain-loop-{name}") for name in ("suburb", "county")}
    found |= {name: read(folder, f"scene-{name}") for name in ("mosaic", "tiles", "deflate16", "degrees")}
    scenes = {name: figures for name, figures in found.items() if figures is not None}
    bound = read(folder, "bound")
    if not scenes or bound is None:
        raise SystemExit(f"{folder} lacks figures: run the benchmarks with EDGE_INFER_RESULTS={folder}")
    figure, (rates, work) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained", width_ratios=(3, 1.2))
    for offset, (label, key) in enumerate(
        (
            ("run", None),
            ("plain loop", "ratio_by_processor_time"),
            ("plain loop, sorted", "sorted_ratio_by_processor_time"),
        )
    ):
        # By processor time, as the machine may have been busy: what all cores would do if they were free.
        heights = [
            value["run"]["threads"]
            * value["run"]["footprints"]
            / value["run"]["cpu_seconds"]
            / value.get(str(key), 1)
            if key is None or key in value
            else 0
            for value in scenes.values()
        ]
        bars = rates.bar([place + offset * 0.27 for place in range(len(scenes))], heights, 0.27, label=label)
        for bar, height in zip(bars, heights, strict=True):
            bar.set_color(COLORS[label])
            if height:
                rates.annotate(
                    f"{height:,.0f}", (bar.get_x() + 0.13, height), ha="center", va="bottom", fontsize=7
                )
    rates.set_xticks([place + 0.27 for place in range(len(scenes))], list(scenes))
    rates.set_yscale("log")
    rates.set_title("footprints per second, an engine that answers at once", loc="left", fontsize=10)
    rates.legend(frameon=False, fontsize=8)
    below = 0.0
    for name, seconds in bound["alone_seconds"].items():
        work.bar(["each alone"], [seconds], 0.5, bottom=below, color=STAGES[name], label=name)
        below += seconds
    work.bar(["run"], [bound["run_seconds"]], 0.5, color="#cccccc")
    work.set_title(f"suburb, CPU s: {bound['share_of_bound']:.0%} of bound", loc="left", fontsize=10)
    work.legend(frameon=False, fontsize=8)
    for axes in (rates, work):
        axes.spines[["top", "right"]].set_visible(False)
    cpu = next(iter(scenes.values()))["machine"].get("cpu") or {}
    figure.suptitle(f"{cpu.get('model', 'unknown CPU')}, {cpu.get('cores', '?')} cores", fontsize=9)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
