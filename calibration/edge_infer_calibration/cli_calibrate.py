"""`edge-infer calibrate`: an INT8 model for a bundle, if it passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

METHOD_NAMES = ("auto", "minmax", "percentile", "entropy", "mse")


@click.command()
@click.argument("bundle", metavar="MODEL", type=click.Path(path_type=Path))
@click.option(
    "--chips",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Folder that `chips` made; may be repeated.",
)
@click.option(
    "--imagery",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Instead of --chips: a raster or a folder of rasters, with --footprints; may be repeated.",
)
@click.option("--footprints", type=click.Path(path_type=Path), help="Any vector source, with --imagery.")
@click.option("--layer", help="Layer of the footprints, where the source holds several.")
@click.option("--where", help="Only footprints for which this OGR SQL condition holds.")
@click.option("--label-field", help="Column of the footprints with the label. [default: FP32's own classes]")
@click.option("--classes", help='Class of each value, such as "1=damaged,2=no_visible_damage".')
@click.option("--ignore-label", "ignore_labels", multiple=True, help="Value to leave out; may be repeated.")
@click.option(
    "--held-out",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Folder of chips for the gate, best not trained on. [default: chips that were not chosen]",
)
@click.option(
    "--method",
    type=click.Choice(METHOD_NAMES),
    default="auto",
    show_default=True,
    help="How ranges are found; auto tries all and keeps the best.",
)
@click.option(
    "--count",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    help="Chips to calibrate on, 32 to 5000.",
)
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    default=0.99,
    show_default=True,
    help="Least share of held-out chips whose class INT8 keeps.",
)
@click.option(
    "--max-recall-fall",
    type=click.FloatRange(0, 100),
    default=0.5,
    show_default=True,
    help="Points of recall that no class may lose beyond its 95 % interval.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of every choice.")
@click.option("--sheet", type=click.Path(path_type=Path), help="Picture to write of the chips that flip.")
@click.option("--out", type=click.Path(path_type=Path), help="Bundle to write. [default: MODEL itself]")
@click.option("--overwrite", is_flag=True, help="Calibrate again, or replace --out.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def calibrate(
    *, classes: str | None, min_agreement: float, max_recall_fall: float, quiet: bool, **options: Any
) -> int:
    """Add an INT8 model to a bundle, if it keeps what the FP32 model can do.

    Both run on held-out chips. Where INT8 costs a class more than the limits allow, other ways are tried;
    where none passes, the bundle says so and `run` uses float (exit code 3).
    """
    from edge_infer_calibration.calibrate import CalibrateRequest
    from edge_infer_calibration.calibrate import calibrate as do
    from edge_infer_calibration.gate import Limits
    from edge_infer_export.chips.labels import parse_classes

    request = CalibrateRequest(
        classes=None if classes is None else parse_classes(classes),
        limits=Limits(agreement=min_agreement, recall_fall=max_recall_fall / 100),
        **options,
    )
    done = do(request, say=(lambda _: None) if quiet else (lambda line: click.echo(line, err=True)))
    click.echo(done.describe())
    return 0 if done.passed else 3
