"""`edge-infer chips`: labelled chips by the run-time sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edge_infer.cli import band_numbers


@click.command()
@click.option(
    "--imagery",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="A raster, a folder of rasters, or a VRT; may be given several times.",
)
@click.option(
    "--footprints", required=True, type=click.Path(path_type=Path), help="Any vector source with labels."
)
@click.option("--label-field", required=True, help="Column that holds the label.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--classes",
    help='Class of each value, such as "1=damaged,2=no_visible_damage". [default: every text is a class]',
)
@click.option("--ignore-label", "ignore_labels", multiple=True, help="Value to leave out; may be repeated.")
@click.option(
    "--window",
    type=click.Choice(["fixed", "footprint"]),
    default="fixed",
    show_default=True,
    help="The same ground size for all, or as large as the footprint needs.",
)
@click.option(
    "--ground-metres",
    type=click.FloatRange(min=0, min_open=True),
    default=32.0,
    show_default=True,
    help="Side of the window on the ground; the least side of footprint windows.",
)
@click.option(
    "--context",
    type=click.FloatRange(min=0, min_open=True),
    default=1.5,
    show_default=True,
    help="Side of a footprint window over the side of its footprint.",
)
@click.option(
    "--chip-pixels", type=click.IntRange(8, 2048), default=96, show_default=True, help="Side of a chip."
)
@click.option("--bands", help="Band numbers in the order wanted, such as 3,2,1. [default: all but alpha]")
@click.option(
    "--value-range", type=(float, float), help="Source values that become 0 and 255; needed for 16 bit."
)
@click.option(
    "--coarsest-gsd",
    "coarsest_gsd_metres",
    type=click.FloatRange(min=0, min_open=True),
    help="Coarsest pixels, metres, that the model may be used on. [default: 1.25 times the coarsest here]",
)
@click.option("--layer", help="Layer of the footprints, where the source holds several.")
@click.option("--where", help="Only footprints for which this OGR SQL condition holds.")
@click.option("--imagery-crs", help="CRS of images that carry none, such as EPSG:32615.")
@click.option("--footprints-crs", help="CRS of footprints that carry none.")
@click.option(
    "--min-valid",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="A window that holds less valid imagery than this share gives no chip.",
)
@click.option("--threads", type=click.IntRange(1, 64), default=2, show_default=True, help="Reader threads.")
@click.option("--overwrite", is_flag=True, help="Replace --out if it holds chips.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def chips(*, classes: str | None, bands: str | None, quiet: bool, **options: Any) -> None:
    """Cut a labelled chip of every footprint, exactly as `run` will cut them."""
    from edge_infer_export.chips import ChipsRequest, cut_chips
    from edge_infer_export.labels import parse_classes

    request = ChipsRequest(
        classes=None if classes is None else parse_classes(classes), bands=band_numbers(bands), **options
    )
    click.echo(cut_chips(request, quiet=quiet).describe())
