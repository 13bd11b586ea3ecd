"""Draws the chart of README.md and docs/performance.md from what the benchmarks wrote.

EDGE_INFER_RESULTS=DIR pytest tests/benchmarks/test_benchmark_feed.py --benchmark-only -s
python tools/feed_chart.py DIR docs/feed.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCENES = {
    "suburb": "suburb\n0.3 m, JPEG, a house each 20 m",
    "county": "county\n0.3 m, JPEG, a house each 400 m",
    "mosaic": "drone mosaic\n0.03 m, JPEG, overviews",
    "tiles": "2,000 files\nof 256 pixels, JPEG",
    "deflate16": "16 bit, 4 bands\n0.3 m, DEFLATE",
    "degrees": "degrees\n0.3 m, JPEG, EPSG:4326",
}
LOOPS = {
    "plain loop, in the file's order": ("ratio_by_processor_time", "#c2571a"),
    "plain loop, sorted by block": ("sorted_ratio_by_processor_time", "#e3a873"),
}
RUN = "#1b6ca8"
PARTS = {"decode": "#4a4a4a", "sample": "#1b6ca8", "vectors": "#8cb8d8"}


def read(folder: Path, name: str) -> dict[str, Any] | None:
    """Read one benchmark's figures; None where it was not run."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def draw_rates(axes: Axes, scenes: dict[str, dict[str, Any]]) -> None:
    """Draw footprints per second by scene: the run's, and those of the plain loops.

    By processor time, as the machine may have been busy: what all its cores would do if they were free.
    """
    for place, figures in enumerate(scenes.values()):
        run = figures["run"]
        rate = run["threads"] * run["footprints"] / run["cpu_seconds"]
        loops = {label: rate / figures[key] for label, (key, _) in LOOPS.items()}
        low, high = min(rate, *loops.values()), max(rate, *loops.values())
        axes.plot([low, high], [place, place], color="#d9d9d9", linewidth=3, zorder=1)
        for label, slower in loops.items():
            shown = label if place == 0 else None
            axes.scatter(slower, place, 55, LOOPS[label][1], zorder=2, label=shown)
        axes.scatter(rate, place, 70, RUN, zorder=3, label="edge-infer run" if place == 0 else None)
        ratio = figures["ratio_by_processor_time"]
        axes.annotate(
            f"{rate:,.0f}/s, {ratio:.2g} times" if ratio < 10 else f"{rate:,.0f}/s, {ratio:.0f} times",
            (high, place),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(scenes)), [SCENES[name] for name in scenes], fontsize=8)
    axes.margins(y=0.08)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlim(axes.get_xlim()[0], axes.get_xlim()[1] * 4)  # room for the words
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.set_title("footprints a second, an engine that answers at once", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.45, -0.08), ncols=3)


def draw_bound(axes: Axes, bound: dict[str, Any]) -> None:
    """Draw what the suburb's processor time is made of, part by part and as a run."""
    below = 0.0
    for name, seconds in bound["alone_seconds"].items():
        axes.bar(0, seconds, 0.6, bottom=below, color=PARTS[name])
        axes.annotate(
            f"{name}\n{seconds:.1f}", (0, below + seconds / 2), ha="center", va="center", fontsize=8,
            color="white" if name != "vectors" else "black",
        )  # fmt: skip
        below += seconds
    axes.bar(1, bound["run_seconds"], 0.6, color="#cccccc")
    axes.annotate(
        f"{bound['run_seconds']:.1f}", (1, bound["run_seconds"] / 2), ha="center", va="center", fontsize=8
    )
    axes.set_xticks([0, 1], ["each alone", "run"], fontsize=8)
    axes.set_title(
        f"suburb, CPU seconds:\nat {bound['share_of_bound']:.0%} of its bound", loc="left", fontsize=10
    )


def draw(folder: Path, path: Path) -> None:
    """Draw both beside each other."""
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "feed"  # the same figures make the same file
    from matplotlib import pyplot as plt

    found = {name: read(folder, f"scene-{name}") for name in SCENES}
    scenes = {name: figures for name, figures in found.items() if figures is not None}
    bound = read(folder, "bound")
    if not scenes or bound is None:
        raise SystemExit(f"{folder} lacks figures: run the benchmarks with EDGE_INFER_RESULTS={folder}")
    figure, (rates, work) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained", width_ratios=(3.4, 1))
    draw_rates(rates, scenes)
    draw_bound(work, bound)
    for axes in (rates, work):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    cpu = next(iter(scenes.values()))["machine"].get("cpu") or {}
    figure.text(
        0.995, 0.005, f"{cpu.get('model', 'unknown CPU')}, {cpu.get('cores', '?')} cores",
        ha="right", va="bottom", fontsize=7, color="#777777",
    )  # fmt: skip
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
