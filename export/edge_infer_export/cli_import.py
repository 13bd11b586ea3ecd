"""`edge-infer import-chips`: chips that ArcGIS or another program made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command("import-chips")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--classes",
    help='Class of each label, by number or name, such as "1=damaged,2=intact". [default: the names that the '
    "folder itself has]",
)
@click.option("--ignore-label", "ignore_labels", multiple=True, help="Label to leave out; may be repeated.")
@click.option(
    "--ground-metres",
    type=click.FloatRange(min=0, min_open=True),
    help="Side of each chip on the ground. [default: by world files or the .emd]",
)
@click.option(
    "--gsd-metres",
    type=click.FloatRange(min=0, min_open=True),
    help="Or the side of each pixel, in true metres.",
)
@click.option(
    "--coarsest-gsd",
    "coarsest_gsd_metres",
    type=click.FloatRange(min=0, min_open=True),
    help="Coarsest pixels, metres, that the model may be used on. [default: 1.25 times the coarsest here]",
)
@click.option(
    "--chip-pixels",
    type=click.IntRange(8, 2048),
    help="Bring chips to this side, padded with black where they are not square. [default: as they are]",
)
@click.option(
    "--chip-table",
    type=click.Path(path_type=Path),
    help="CSV with columns path, lon, lat and, as needed, class, event, place; only chips in it are taken.",
)
@click.option(
    "--coordinates-from-name", is_flag=True, help="File names begin with LON_LAT in degrees: -95.06_30.05.jpg"
)
@click.option("--event", default="", help="Name of the disaster, for `train --test-event`.")
@click.option("--place", default="", help="Name of the area, for `train --test-area`.")
@click.option(
    "--table",
    type=click.Choice(["gpkg", "parquet"]),
    default="gpkg",
    show_default=True,
    help="Chip table as GeoPackage or GeoParquet.",
)
@click.option("--overwrite", is_flag=True, help="Replace --out if it holds chips.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def import_chips(*, classes: str | None, quiet: bool, **options: Any) -> None:
    """Take over chips in FOLDER: Esri's Labeled_Tiles or Imagenet, or a folder of pictures for each class."""
    from edge_infer_export.chips.labels import parse_classes
    from edge_infer_export.importing.folder import ImportRequest
    from edge_infer_export.importing.folder import import_chips as run

    request = ImportRequest(classes=None if classes is None else parse_classes(classes), **options)
    click.echo(run(request, quiet=quiet).describe())
