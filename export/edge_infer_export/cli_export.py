"""`edge-infer export`: a training run becomes a bundle."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--run", required=True, type=click.Path(path_type=Path), help="Folder that `train` made.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The bundle, NAME.edgemodel.")
@click.option("--name", help="Name of the model, if not the run's own.")
@click.option("--overwrite", is_flag=True, help="Replace --out if it exists.")
def export(*, run: Path, out: Path, name: str | None, overwrite: bool) -> None:
    """Make a bundle of a trained network, and check it against PyTorch.

    The bundle holds the network as ONNX with its preprocessing, what it reached in training, and a few
    chips with the expected result for self-tests.
    """
    from edge_infer_export.network.bundle import export_bundle

    bundle = export_bundle(run, out, name=name, overwrite=overwrite)
    manifest = bundle.manifest
    parity = manifest.facts["parity"]
    differences = "; ".join(
        f"{pair.replace('_', ' and ')} {value:.1e}" for pair, value in parity["max_difference"].items()
    )
    click.echo(f"{bundle.path}: {bundle.path.stat().st_size / 1e6:.1f} MB, sha256 {bundle.sha256[:16]}...")
    click.echo(f"{manifest.architecture}, {manifest.parameters:,} parameters: {', '.join(manifest.classes)}")
    click.echo(f"Parity on {parity['chips']} chips, largest difference of a probability: {differences}")
