"""`edge-infer evaluate`: a bundle judged on labelled chips, through the engine that will run it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--chips",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="Folder that `chips` made; may be given several times.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write the report into.")
@click.option(
    "--classes",
    help='Class of the model for each class of the chips, where names differ: "burnt=destroyed,ok=intact".',
)
@click.option(
    "--ignore-label", "ignore", multiple=True, help="Class of the chips to leave out; may be repeated."
)
@click.option("--event", "events", multiple=True, help="Judge on this event only; may be repeated.")
@click.option(
    "--area",
    "areas",
    multiple=True,
    help="Judge on this area only: a place's name, west,south,east,north in degrees, or a file of polygons.",
)
@click.option(
    "--side",
    type=click.Choice(["validation", "test"]),
    help="Judge on those of the chips only that lay on this side of the model's training.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "tensorrt", "openvino"]),
    default="auto",
    show_default=True,
    help="What runs the model.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "int8", "fp16", "fp32"]),
    default="auto",
    show_default=True,
    help="Number format of the model; auto takes INT8 where it passed its gate.",
)
@click.option(
    "--batch", type=click.IntRange(1, 1024), help="Chips in one batch. [default: the engine's choice]"
)
@click.option("--overwrite", is_flag=True, help="Replace --out if it holds an evaluation.")
@click.option("--json", "as_json", is_flag=True, help="Print the evaluation as JSON on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def evaluate(*, classes: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Score BUNDLE on labelled chips, by the engine and in the precision that will run it.

    Temperature, thresholds and the shortcut probe are the bundle's own: nothing is fitted to these chips.
    """
    from edge_infer.info import evaluation_lines
    from edge_infer_export.chips.labels import parse_classes
    from edge_infer_export.evaluation.evaluate import EvaluateRequest, evaluate_bundle

    request = EvaluateRequest(classes={} if classes is None else parse_classes(classes), **options)
    say = (lambda _: None) if quiet else partial(click.echo, err=True)
    figures = evaluate_bundle(request, say=say).to_json()
    if as_json:
        click.echo(json.dumps(figures, indent=1))
        return
    runs_on = figures["runs_on"]
    click.echo(f"{figures['model']}: {runs_on['engine']}, {runs_on['precision']}, {runs_on['device']}")
    for title, text in evaluation_lines(figures):
        click.echo(f"  {title:<9} {text}")
    if request.out is not None:
        click.echo(f"Report: {request.out / 'report.html'}")
