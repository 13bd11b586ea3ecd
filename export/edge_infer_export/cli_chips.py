"""`edge-infer chips`: labelled chips by the run-time sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edge_infer.cli_values import band_numbers
from edge_infer.errors import Refused

_OF_ONE_PAIR = ("imagery", "footprints", "layer", "where", "imagery_crs", "footprints_crs", "event", "place")


@click.command()
@click.option(
    "--imagery",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A raster, a folder of rasters, or a VRT; may be given several times.",
)
@click.option("--footprints", type=click.Path(path_type=Path), help="Any vector source with labels.")
@click.option(
    "--pairs",
    "pairs_file",
    type=click.Path(path_type=Path),
    help="Instead of those two: CSV with a row for each pair; columns imagery (several separated by ;), "
    "footprints and, as needed, label_field, layer, where, imagery_crs, footprints_crs, event, place.",
)
@click.option("--label-field", help="Column that holds the label.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--classes",
    help='Class of each value, such as "1=damaged,2=no_visible_damage". [default: every text is a class]',
)
@click.option("--ignore-label", "ignore_labels", multiple=True, help="Value to leave out; may be repeated.")
@click.option(
    "--emd",
    type=click.Path(path_type=Path),
    help="Esri .emd or .dlpk: its classes, chip size, bands, window and blackening, where not said here.",
)
@click.option("--event", help="Name of the disaster, for `train --test-event`.")
@click.option("--place", help="Name of the area, for `train --test-area`.")
@click.option(
    "--window",
    type=click.Choice(["fixed", "footprint"]),
    help="The same ground size for all, or as large as the footprint needs. [default: fixed]",
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
    help="Side of a footprint window over the side of its footprint. [default: 1.5; 1 with --buffer-metres]",
)
@click.option(
    "--buffer-metres",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Ground added on each side of a footprint window.",
)
@click.option("--chip-pixels", type=click.IntRange(8, 2048), help="Side of a chip. [default: 96]")
@click.option(
    "--blacken/--no-blacken",
    default=None,
    help="Make black what lies outside of the footprint, here and in `run`. [default: --no-blacken]",
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
@click.option(
    "--min-covered",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Nor does a footprint of which less than this share lies on valid imagery.",
)
@click.option(
    "--chip-format",
    type=click.Choice(["png", "tiff", "jpeg"]),
    default="png",
    show_default=True,
    help="PNG and TIFF lose nothing.",
)
@click.option(
    "--jpeg-quality", type=click.IntRange(1, 95), default=90, show_default=True, help="Of JPEG chips."
)
@click.option(
    "--layout",
    type=click.Choice(["own", "esri", "imagenet"]),
    default="own",
    show_default=True,
    help="As `train` reads it, as Esri Labeled_Tiles, or a folder for each class.",
)
@click.option(
    "--table",
    type=click.Choice(["gpkg", "parquet"]),
    default="gpkg",
    show_default=True,
    help="Chip table as GeoPackage or GeoParquet.",
)
@click.option("--threads", type=click.IntRange(1, 64), default=2, show_default=True, help="Reader threads.")
@click.option("--overwrite", is_flag=True, help="Replace --out if it holds chips.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def chips(
    *,
    pairs_file: Path | None,
    label_field: str | None,
    classes: str | None,
    bands: str | None,
    emd: Path | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Cut a labelled chip of every footprint, exactly as `run` will cut them."""
    from edge_infer_export.chips.cut import ChipsRequest, cut_chips
    from edge_infer_export.chips.labels import parse_classes
    from edge_infer_export.chips.pairs import Pair, read_pairs
    from edge_infer_export.importing.emd import chip_options, read_emd

    one = {name: options.pop(name) for name in _OF_ONE_PAIR}
    if pairs_file is not None:
        idle = [f"--{name.replace('_', '-')}" for name, value in one.items() if value]
        if idle:
            raise Refused(f"--pairs says it all; leave out {', '.join(idle)}, or put it into {pairs_file}")
        pairs = read_pairs(pairs_file, label_field=label_field)
    elif one["imagery"] and one["footprints"] and label_field:
        texts = {name: value or "" for name, value in one.items() if name in {"event", "place"}}
        pairs = (Pair(label_field=label_field, **{**one, **texts}),)
    else:
        raise Refused("wanted --imagery, --footprints and --label-field, or --pairs FILE")
    said = {
        **options,
        "classes": None if classes is None else parse_classes(classes),
        "bands": band_numbers(bands),
    }
    if options["context"] is None and options["buffer_metres"]:
        said["context"] = 1.0
    meant = {} if emd is None else chip_options(read_emd(emd))
    request = ChipsRequest(
        pairs=pairs, **{**meant, **{name: value for name, value in said.items() if value is not None}}
    )
    click.echo(cut_chips(request, quiet=quiet).describe())
