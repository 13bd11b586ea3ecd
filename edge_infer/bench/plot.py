"""Latency and throughput against the batch, as a picture. Matplotlib is not part of the runtime."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from edge_infer.bench.document import well_formed
from edge_infer.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

COLORS = {"int8": "#1b6ca8", "fp16": "#c2571a", "fp32": "#4a4a4a"}
MARKERS = ("o", "s")


def why_not() -> str | None:
    """Say why no picture can be drawn here; None where one can."""
    if find_spec("matplotlib") is not None:
        return None
    return (
        "no picture: Matplotlib is not installed here; take the --json file to where it is, and draw with "
        "`edge-infer bench --show FILE.json --plot FILE.png`"
    )


def draw(path: Path, documents: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """Draw one or two documents into a picture; its kind is that of the path's ending.

    Raises:
        OutputError: it cannot be written.
        Refused: a document is malformed.

    """
    with well_formed():
        figure = _figure(documents, names)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be drawn: {error}; name a file that ends in .png") from error


def _figure(documents: Sequence[dict[str, Any]], names: Sequence[str]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    latency, throughput = figure.subplots(1, 2)
    title = _plain(_title(documents))
    batches: set[int] = set()
    for document, name, marker, line in zip(documents, names, MARKERS, ("-", "--"), strict=False):
        for precision in dict.fromkeys(cell["engine"]["precision"] for cell in document["alone"]):
            cells = sorted(
                (cell for cell in document["alone"] if cell["engine"]["precision"] == precision),
                key=lambda cell: cell["engine"]["batch"],
            )
            sizes = [int(cell["engine"]["batch"]) for cell in cells]
            batches.update(sizes)
            waits = [cell["latency"]["milliseconds"]["wall"] for cell in cells]
            middle = [float(wait["p50"] or wait["max"]) for wait in waits]
            high = [float(wait["p99"] or wait["max"]) for wait in waits]
            label = precision if len(documents) == 1 else _plain(f"{name}, {precision}")
            style = {"color": COLORS[precision], "marker": marker, "linestyle": line}
            latency.plot(sizes, middle, label=label, **style)
            latency.fill_between(sizes, middle, high, color=COLORS[precision], alpha=0.15, linewidth=0)
            rates = [float(cell["offline"]["chips_per_second"]) for cell in cells]
            throughput.plot(sizes, rates, label=label, **style)
    titles = "wait for a batch, ms: p50, shaded to p99 or the largest", "chips per second, offline"
    for axes, what in zip((latency, throughput), titles, strict=True):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(batches))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_ylim(bottom=0)
        axes.set_xlabel("batch, chips")
        axes.set_title(what, loc="left", fontsize=10)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    latency.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def _title(documents: Sequence[dict[str, Any]]) -> str:
    words = []
    for document in documents:
        engine = document["alone"][0]["engine"]
        valid = "" if document["valid"] else ", NOT VALID"
        where = f"{engine['name']} {engine['version']} on {engine['device']}"
        words.append(f"{document['model']['name']}: {where}{valid}")
    return "\n".join(dict.fromkeys(words))


def _plain(text: str) -> str:
    """Keep Matplotlib from taking what stands between two $ for a formula."""
    return text.replace("$", r"\$")
