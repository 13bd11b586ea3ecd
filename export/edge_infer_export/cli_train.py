"""`edge-infer train`: a ResNet from labelled chips."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

NETWORKS = {
    "resnet34": ((3, 4, 6, 3), 64),
    "resnet18": ((2, 2, 2, 2), 64),
    "resnet18-narrow": ((2, 2, 2, 2), 32),
    "resnet10-narrow": ((1, 1, 1, 1), 16),
}
"""Blocks and width by name. Published weights exist for the first two."""


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
    "--find-lr", is_flag=True, help="Only look for a learning rate: print it, draw it beside --out, stop."
)
@click.option(
    "--epochs", type=click.IntRange(1), default=12, show_default=True, help="Passes over the chips."
)
@click.option("--batch", type=click.IntRange(2), default=32, show_default=True, help="Chips in one step.")
@click.option(
    "--lr",
    "learning_rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Peak of the one-cycle learning rate. [default: what the LR finder suggests]",
)
@click.option(
    "--network",
    type=click.Choice(list(NETWORKS)),
    default="resnet34",
    show_default=True,
    help="The smaller ones train faster, and better on a few hundred chips.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="State dict to start from: torchvision's, or model.pt of another run. [default: random weights]",
)
@click.option("--freeze", is_flag=True, help="Train the last layer only, on top of --weights.")
@click.option(
    "--balance",
    type=click.Choice(["none", "weights", "sampling"]),
    default="weights",
    show_default=True,
    help="What to do about uneven classes: weigh them in the loss, or draw them equally often.",
)
@click.option(
    "--label-smoothing", type=click.FloatRange(0, 0.5), default=0.05, show_default=True, help="0: none."
)
@click.option(
    "--patience",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="Stop after so many epochs of the last third without gain on the validation side; 0: never. "
    "With 5, a training of 18 epochs or fewer always runs to its end.",
)
@click.option(
    "--average-epochs",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Keep a moving average of the weights over about so many epochs; 0: the last ones.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of weights, split and order."
)
@click.option("--name", help="Name of the model. [default: the run folder's]")
@click.option(
    "--val-share",
    "validation_share",
    type=click.FloatRange(0, 0.5, min_open=True),
    default=0.2,
    show_default=True,
    help="Share of each class that is held out to choose by, in blocks of ground.",
)
@click.option(
    "--test-share",
    type=click.FloatRange(0, 0.5),
    default=0.0,
    show_default=True,
    help="Share that is held out to judge on, likewise.",
)
@click.option(
    "--block-metres",
    type=click.FloatRange(min=0, min_open=True),
    help="Side of those blocks. [default: 8 windows, or 4 or 2 where a side would lack a class]",
)
@click.option("--val-event", "validation_events", multiple=True, help="Event to choose by; may be repeated.")
@click.option(
    "--val-area",
    "validation_areas",
    multiple=True,
    help="Area to choose by: a place's name, west,south,east,north in degrees, or a file of polygons.",
)
@click.option("--test-event", "test_events", multiple=True, help="Event to judge on, never trained on.")
@click.option("--test-area", "test_areas", multiple=True, help="Area to judge on, never trained on.")
@click.option(
    "--random-split", "random", is_flag=True, help="Part single chips by chance. The figures flatter."
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where."
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="auto: fp16 on CUDA, fp32 on a CPU.",
)
@click.option(
    "--threads", type=click.IntRange(1, 64), default=2, show_default=True, help="That prepare chips."
)
@click.option(
    "--cache-mb",
    "cache_megabytes",
    type=click.IntRange(0),
    default=1000,
    show_default=True,
    help="Keep decoded chips in memory, where they fit into so much.",
)
@click.option("--resume", is_flag=True, help="Go on with a training that was stopped.")
@click.option("--overwrite", is_flag=True, help="Replace --out if it holds a run.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def train(
    *,
    folders: tuple[Path, ...],
    out: Path,
    find_lr: bool,
    network: str,
    name: str | None,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train a ResNet, and judge it on ground that it has not seen.

    Stopped by Ctrl-C or killed, the same command with --resume goes on.
    """
    from dataclasses import fields

    from edge_infer.info import evaluation_lines
    from edge_infer_export.chips.split import SplitOptions
    from edge_infer_export.training.options import TrainOptions
    from edge_infer_export.training.runfolder import CURVE, find_rate_to_file, train_to_folder

    of_split = {
        field.name: options.pop(field.name) for field in fields(SplitOptions) if field.name in options
    }
    of_split["seed"] = options["seed"] = of_split.pop("seed")
    blocks, width = NETWORKS[network]
    wanted = TrainOptions(blocks=blocks, width=width, split=SplitOptions(**of_split), **options)
    say = (lambda _: None) if quiet else partial(click.echo, err=True)
    if find_lr:
        # Beside the run folder: in it, it would bar the training that follows.
        picture = out.with_name(f"{out.name}-{CURVE}")
        curve = find_rate_to_file(folders, picture, wanted, say=say)
        click.echo(
            f"{picture}: valley {curve.valley:.1e}, steepest {curve.steepest:.1e}; "
            f"try --lr {curve.valley:.1e}"
        )
        return
    trained = train_to_folder(
        folders,
        out,
        wanted,
        name=name,
        resume=resume,
        overwrite=overwrite,
        say=say,
        bar=not quiet and sys.stderr.isatty(),
    )
    click.echo(f"{out}: epoch {trained.best_epoch} of {len(trained.history)} kept")
    for title, text in evaluation_lines(json.loads((out / "evaluation.json").read_bytes())):
        click.echo(f"  {title:<9} {text}")
    click.echo(f"Report: {out / 'report.html'}")
