"""`edge-infer train`: a ResNet34 from labelled chips."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click


@click.command()
@click.option(
    "--chips",
    "folders",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="Folder that `chips` made; may be given several times.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run folder to write.")
@click.option(
    "--epochs", type=click.IntRange(1), default=12, show_default=True, help="Passes over the chips."
)
@click.option("--batch", type=click.IntRange(2), default=32, show_default=True, help="Chips in one step.")
@click.option(
    "--lr",
    "learning_rate",
    type=click.FloatRange(min=0, min_open=True),
    default=1e-3,
    show_default=True,
    help="Peak of the one-cycle learning rate.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights, split and order.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="State dict of torchvision's ResNet34 to start from. [default: random weights]",
)
@click.option("--name", help="Name of the model. [default: the run folder's]")
@click.option(
    "--val-share",
    "validation_share",
    type=click.FloatRange(0, 0.5, min_open=True),
    default=0.2,
    show_default=True,
    help="Share of each class that is held out, by blocks of ground.",
)
@click.option("--overwrite", is_flag=True, help="Replace --out if it holds a run.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def train(
    *, folders: tuple[Path, ...], out: Path, name: str | None, overwrite: bool, quiet: bool, **options: Any
) -> None:
    """Train a ResNet34, and judge it on ground that it has not seen."""
    from edge_infer_export.runfolder import train_to_folder
    from edge_infer_export.train import TrainOptions

    trained = train_to_folder(
        folders,
        out,
        TrainOptions(**options),
        name=name,
        overwrite=overwrite,
        say=(lambda _: None) if quiet else partial(click.echo, err=True),
    )
    metrics = trained.metrics
    click.echo(
        f"{out}: epoch {trained.best_epoch} of {len(trained.history)} kept; on {metrics['chips']} chips of "
        f"unseen ground: accuracy {metrics['accuracy']:.1%}, calibration error "
        f"{metrics['calibration_error']:.3f}"
    )
    for label, figures in metrics["per_class"].items():
        recall = figures["recall"]
        click.echo(f"  {label}: {figures['chips']} chips, {recall:.1%} of them found")
