"""`edge-infer bench`: measures a model on this machine, and compares what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_infer.cli_values import band_numbers, numbers

if TYPE_CHECKING:
    from collections.abc import Sequence


def _batches(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, ...]:
    return () if text is None else numbers(text, "--batch")


def _bands(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    return band_numbers(text)


@click.command()
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--imagery", multiple=True, type=click.Path(path_type=Path), help="Whole runs, too, over this.")
@click.option("--footprints", type=click.Path(path_type=Path), help="... and these.")
@click.option("--layer", help="Layer of the footprints.")
@click.option("--where", help="Only footprints for which this OGR SQL condition holds.")
@click.option("--imagery-crs", help="CRS of images that carry none.")
@click.option("--footprints-crs", help="CRS of the footprints, in place of what they say.")
@click.option("--bands", callback=_bands, help="Band numbers in the model's order, such as 3,2,1.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "tensorrt", "openvino"]),
    default="auto",
    show_default=True,
    help="What runs the model.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "int8", "fp16", "fp32", "all"]),
    default="auto",
    show_default=True,
    help="Number format of the model; all: each that the bundle holds and the engine can run.",
)
@click.option(
    "--batch",
    "batches",
    callback=_batches,
    help="Chips in one batch, each measured: 1,8,32. [default: 1 and the engine's choice]",
)
@click.option(
    "--gpu-memory",
    type=click.Choice(["auto", "mapped", "copied"]),
    default="auto",
    show_default=True,
    help="TensorRT: the GPU reads chips in host memory, or is sent copies.",
)
@click.option(
    "--cuda-graphs/--no-cuda-graphs",
    default=True,
    show_default=True,
    help="TensorRT: launch each batch as one CUDA graph.",
)
@click.option(
    "--sample-on",
    type=click.Choice(["auto", "cpu", "gpu"]),
    default="auto",
    show_default=True,
    help="TensorRT, whole runs: where chips are cut from the imagery.",
)
@click.option("--threads", type=click.IntRange(1, 64), help="Whole runs: reader threads.")
@click.option(
    "--seconds",
    type=click.FloatRange(0, 86_400),
    help="Measure each for so long. [default: MLPerf's 600, with at least 1,024 batches and 24,576 chips]",
)
@click.option(
    "--queries", type=click.IntRange(1), help="Measure each for so many batches, and 24 times the chips."
)
@click.option(
    "--warm-up",
    "warm_up_seconds",
    type=click.FloatRange(0, 3600),
    default=2.0,
    show_default=True,
    help="Seconds of load before each measurement.",
)
@click.option(
    "--burn-in",
    "burn_in_seconds",
    type=click.FloatRange(0, 86_400),
    default=0.0,
    show_default=True,
    help="Seconds of load before all, until the machine is as hot as in use.",
)
@click.option(
    "--runs", type=click.IntRange(1, 100), default=3, show_default=True, help="Whole runs from either cache."
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Write all figures; - prints them.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Draw latency against batch, as .png or .svg (Matplotlib).",
)
@click.option(
    "--compare",
    nargs=2,
    type=click.Path(path_type=Path),
    help="Measure nothing; compare two files of --json.",
)
@click.option("--show", type=click.Path(path_type=Path), help="Measure nothing; show a file of --json.")
@click.option("--feed", is_flag=True, help="How fast chips come, by stage: the engine answers at once.")
@click.option(
    "--scene",
    type=click.Choice(["suburb", "county", "mosaic", "tiles", "deflate16", "degrees"]),
    default="suburb",
    show_default=True,
    help="--feed without MODEL and --imagery: what to make up.",
)
@click.option(
    "--houses",
    type=click.IntRange(1, 10_000_000),
    default=10_000,
    show_default=True,
    help="--feed: footprints to make up.",
)
def bench(
    model: Path | None,
    *,
    seconds: float | None,
    queries: int | None,
    warm_up_seconds: float,
    json_path: Path | None,
    plot: Path | None,
    compare: tuple[Path, Path] | None,
    show: Path | None,
    feed: bool,
    scene: str,
    houses: int,
    **options: Any,
) -> int:
    """Measure MODEL on this machine: latency, throughput, energy; with --imagery, whole runs as well.

    Exit code 3: measured, but not valid (clocks not locked, throttled, unsteady); the reasons are printed.
    """
    if feed and (compare is not None or show is not None):
        raise click.UsageError("--feed measures; --compare and --show do not: give one of them")
    if feed:
        return _feed(model, scene, houses, json_path, options)
    if sum(given is not None for given in (model, compare, show)) != 1:
        raise click.UsageError(
            "name a MODEL, NAME.edgemodel; or two files with --compare, or one with --show"
        )
    from edge_infer.bench.document import read_document, refuse_place
    from edge_infer.bench.plot import why_not

    for path in (json_path, plot):
        if path is not None:
            refuse_place(path)
    if plot is not None and (reason := why_not()) is not None:
        _say(reason)
        plot = None
    if model is None:
        paths = compare or (show,)
        return _tell([read_document(path) for path in paths if path is not None], paths, json_path, plot)
    from edge_infer.bench.scenario import Rule
    from edge_infer.bench.session import BenchRequest, run_bench

    rule = Rule.asked(queries=queries, seconds=seconds, warm_up_seconds=warm_up_seconds)
    document = run_bench(BenchRequest(bundle=model, rule=rule, **options), say=_say)
    _tell([document], [model], json_path, plot)
    return 4 if document["interrupted"] else 0 if document["valid"] else 3


def _feed(
    model: Path | None, scene: str, houses: int, json_path: Path | None, options: dict[str, Any]
) -> int:
    """Measure what feeds an engine; print it, or write it."""
    if (model is None) == bool(options["imagery"]):
        raise click.UsageError("--feed takes MODEL with --imagery, or neither: then it makes up a --scene")
    from edge_infer.bench.document import refuse_place, write_document
    from edge_infer.bench.feed import BATCH, FeedRequest, bench_feed, describe
    from edge_infer.request import RunRequest

    if json_path is not None:
        refuse_place(json_path)
    given = None
    if model is not None:
        names = ("imagery", "footprints", "layer", "where", "imagery_crs", "footprints_crs", "bands")
        given = RunRequest(bundle=model, out=Path("out.gpkg"), **{name: options[name] for name in names})
    request = FeedRequest(
        given=given,
        scene=scene,
        houses=houses,
        batch=next(iter(options["batches"]), BATCH),
        threads=options["threads"],
        runs=options["runs"],
    )
    document = bench_feed(request, say=_say)
    if json_path is not None and str(json_path) != "-":
        write_document(json_path, document)
    click.echo(json.dumps(document, indent=1) if str(json_path) == "-" else describe(document))
    return 0


def _tell(
    documents: list[dict[str, Any]], paths: Sequence[Path | None], json_path: Path | None, plot: Path | None
) -> int:
    """Print and write one benchmark, or two compared; 0."""
    from edge_infer.bench.compare import compare
    from edge_infer.bench.document import write_document
    from edge_infer.bench.plot import draw
    from edge_infer.bench.table import describe

    names = [str(path) for path in paths]
    if len(documents) == 2:
        comparison = compare(*documents)
        content, text = comparison.to_json(), comparison.describe((names[0], names[1]))
    else:
        content, text = documents[0], describe(documents[0])
    try:
        click.echo(json.dumps(content, indent=1) if str(json_path) == "-" else text)
    finally:  # neither a closed terminal nor a full disk may cost hours of measuring
        if json_path is not None and str(json_path) != "-":
            write_document(json_path, content)
    if plot is not None:
        draw(plot, documents, names)
    return 0


def _say(line: str) -> None:
    click.echo(f"edge-infer: {line}", err=True)
