"""`edge-infer explain`: which part of a chip speaks for which class."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("chips", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--run", required=True, type=click.Path(path_type=Path), help="Folder that `train` made.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the pictures.")
def explain(*, chips: tuple[Path, ...], run: Path, out: Path) -> None:
    """Show by Grad-CAM what in CHIPS (PNG, TIFF or JPEG) speaks for each class."""
    from edge_infer_export.evaluation.explain import explain_chips

    for picture, probabilities in explain_chips(run, chips, out):
        listed = ", ".join(f"{name} {p:.1%}" for name, p in probabilities.items())
        click.echo(f"{picture}: {listed}")
