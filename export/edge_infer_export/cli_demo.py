"""`edge-infer demo`: a small synthetic town through the whole chain."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace what an earlier demo left in DIR.")
def demo(folder: Path, *, overwrite: bool) -> None:
    """Draw a town, train on its west, classify its east, and say how good that was.

    DIR gets the imagery, the footprints, the chips, the training run, the bundle, the classified footprints
    and a map of them.
    """
    from edge_infer_export.demo import run_demo

    run_demo(folder, overwrite=overwrite, say=click.echo)
