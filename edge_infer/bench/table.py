"""A benchmark's document in words and columns."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import TYPE_CHECKING, Any

from edge_infer.bench.document import printable, well_formed

if TYPE_CHECKING:
    from collections.abc import Sequence

PART_NAMES = {
    "h2d": "H2D",
    "compute": "GPU compute",
    "d2h": "D2H",
    "host_latency": "host latency",
    "enqueue": "enqueue",
    "wall": "whole wait",
}
_SHOWN = ("mean", "p50", "p90", "p95", "p99", "p99_9", "max")


def describe(document: dict[str, Any]) -> str:
    """Write a document of the schema docs/bench.schema.json as several lines for a person.

    `Refused` where it is malformed.
    """
    with well_formed():
        return "\n".join(map(printable, _lines(document)))


def _lines(document: dict[str, Any]) -> list[str]:
    model = document["model"]
    network = f"{model['architecture']}, {model['parameters']:,} parameters"
    lines = [
        f"{model['name']}: {network}, sha256 {model['sha256'][:12]}; fed with {document['chips']}",
        *_machine(document),
        "",
        *_latency(document["alone"]),
        "",
        *_throughput(document["alone"]),
        *_mlperf(document),
    ]
    if document["whole"] is not None:
        lines += ["", *_whole(document["whole"])]
    lines += ["", *_watched(document["watched"]), *_verdict(document)]
    lines += [f"left out: {one['what']}: {one['reason']}" for one in document["skipped"]]
    return lines


def _machine(document: dict[str, Any]) -> list[str]:
    """Name the machine and the engines in a few lines."""
    machine = document["machine"]
    known = [
        machine["board"] and machine["board"]["name"],
        machine["cpu"] and f"{machine['cpu']['model']}, {machine['cpu']['cores']} cores",
        *(card["name"] for card in machine["graphics_cards"] or ()),
        machine["memory"] and f"{machine['memory']['total_bytes'] / 2**30:.1f} GiB",
        machine["jetson_linux"] and f"L4T {'.'.join(map(str, machine['jetson_linux']['release']))}",
        machine["power_mode"] and f"power mode {machine['power_mode']['name']}",
        {True: "clocks locked", False: "clocks not locked", None: None}[machine["clocks_locked"]],
    ]
    engines = dict.fromkeys(
        f"{cell['engine']['name']} {cell['engine']['version']} on {cell['engine']['device']}"
        for cell in document["alone"]
    )
    return [f"machine: {'; '.join(filter(None, known))}", f"engine: {'; '.join(engines)}"]


def columns(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Align rows of cells; the first `left` columns to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        ("  " + "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )).rstrip()
        for row in rows
    ]  # fmt: skip


def _latency(cells: Sequence[dict[str, Any]]) -> list[str]:
    rows = [["precision", "batch", "", *(name.replace("_", ".") for name in _SHOWN)]]
    for cell in cells:
        engine = [cell["engine"]["precision"], str(cell["engine"]["batch"])]
        parts = dict(cell["latency"]["milliseconds"])
        if "compute" not in parts:  # without a device, host latency is the whole wait
            del parts["wall"]
        for part, values in parts.items():
            rows.append([*engine, PART_NAMES[part], *(_number(values[name], 3) for name in _SHOWN)])
            engine = ["", ""]
    return ["latency of one batch at a time, milliseconds (- too few to tell)", *columns(rows, 3)]


def _throughput(cells: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        ["precision", "batch", "chips/s", "spread", "drift", "W", "mJ a chip", "opened in", "golden chips"]
    ]
    for cell in cells:
        offline, power = cell["offline"], cell["offline"]["power"] or {}
        steady, golden = offline["steadiness"] or {}, cell["golden"]
        each = power.get("joules_each")
        rows.append(
            [
                cell["engine"]["precision"],
                str(cell["engine"]["batch"]),
                f"{offline['chips_per_second']:,.1f}",
                _share(steady.get("spread")),
                _share(steady.get("drift"), sign="+"),
                _number(power.get("total_watts"), 2),
                _number(None if each is None else each * 1e3, 2),
                f"{cell['open_seconds']:.1f} s",
                "-" if golden is None else f"{golden['same_class']} of {golden['chips']} agree",
            ]
        )
    return ["throughput with all that the engine takes in flight (offline)", *columns(rows, 2)]


def _mlperf(document: dict[str, Any]) -> list[str]:
    lines = []
    for cell in document["alone"]:
        single = cell["latency"]["single_stream"]
        if single is not None:
            p90, estimate = single["p90_milliseconds"], single["p90_estimate_milliseconds"]
            lines.append(
                f"single stream, {cell['engine']['precision']}: p90 {_number(p90, 3)} ms, below "
                f"{_number(estimate, 3)} ms with 99 % confidence; {cell['latency']['batches']:,} queries"
            )
    if not document["rule"]["mlperf"]:
        lines.append(
            "measured for less than MLPerf's rule wants (1,024 queries, 24,576 samples, 600 s each): not "
            "comparable with its figures"
        )
    return lines


def _whole(whole: dict[str, Any]) -> list[str]:
    runs, engine = whole["runs"], whole["engine"]
    stages = list(runs[0]["seconds"])
    titles = [stage.replace("_waited", " waits") for stage in stages]
    rows = [["cache", "footprints/s", *titles, "W", "J each", "J each in all"]]
    for run in runs:
        power, in_all = run["power"] or {}, run["power_in_all"] or {}
        rows.append(
            [
                run["cache"],
                f"{run['footprints_per_second']:,.1f}",
                *(f"{run['seconds'][stage]:.2f}" for stage in stages),
                _number(power.get("total_watts"), 2),
                _number(power.get("joules_each"), 4),
                _number(in_all.get("joules_each"), 4),
            ]
        )
    medians = [
        f"{cache} {median(run['footprints_per_second'] for run in runs if run['cache'] == cache):,.1f}"
        for cache in Counter(run["cache"] for run in runs)
    ]
    what = f"{engine['name']} {engine['precision']}, batch {engine['batch']}, {whole['threads']} readers"
    return [
        f"whole runs over {runs[0]['footprints']:,} footprints, {what}; seconds by stage, readers summed",
        *columns(rows, 1),
        f"  median footprints/s: {', '.join(medians)}",
        "  footprints/s, W and J each while they stream; in all: with opening the inputs, engine and output",
    ]


def _watched(watched: dict[str, Any]) -> list[str]:
    before, after = watched["celsius_before"], watched["celsius_after"]
    lines = []
    if after:
        warmest = max(after, key=lambda name: after[name])
        lines.append(
            f"temperature of {warmest}: {_number(before.get(warmest), 1)} °C before, {after[warmest]:.1f} °C "
            f"after; hottest of all {_number(watched['hottest_celsius'], 1)} °C"
        )
    if watched["peak_memory_bytes"] is not None:
        lines.append(f"peak memory {watched['peak_memory_bytes'] / 2**20:,.0f} MiB")
    return lines


def _verdict(document: dict[str, Any]) -> list[str]:
    lines = [f"note: {note}" for note in document["notes"]]
    powers = [cell["offline"]["power"] for cell in document["alone"] if cell["offline"]["power"] is not None]
    if powers:
        lines.append(
            f"power: {powers[0]['total_is']}, read every {document['watched']['interval_seconds']:g} s"
        )
    if document["valid"]:
        return [*lines, "valid"]
    return [*lines, "NOT VALID:", *(f"  - {doubt}" for doubt in document["doubts"])]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _share(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.1%}"
