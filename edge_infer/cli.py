"""The `edge-infer` command: it parses and prints; the library does.

Commands of the office (chips, train, export, demo, ...) come from other distributions through the entry
point group `edge_infer.commands`, each a click command. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TextIO

import click

from edge_infer.cli_bench import bench
from edge_infer.cli_build import build
from edge_infer.cli_doctor import doctor
from edge_infer.cli_values import band_numbers
from edge_infer.errors import EdgeInferError

COMMAND_GROUP = "edge_infer.commands"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; library errors become one line on standard error and an exit code."""
    for point in sorted(entry_points(group=COMMAND_GROUP), key=lambda point: point.name):
        commands.add_command(point.load(), point.name)
    # Before a command has handlers of its own, a service that is told to end leaves as by Ctrl-C.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = commands.main(args=arguments, prog_name="edge-infer", standalone_mode=False)
    except EdgeInferError as error:
        _echo(f"edge-infer: {error}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        _echo("edge-infer: interrupted", err=True)
        sys.exit(4)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    finally:
        signal.signal(signal.SIGTERM, before)
        for stream in (sys.stdout, sys.stderr):
            _let_go(stream)
    sys.exit(status if isinstance(status, int) else 0)


def _echo(text: str, *, err: bool = False) -> None:
    """Print where somebody listens: what was done is done, whether or not it can be told."""
    try:
        click.echo(text, err=err)
    except OSError as error:
        if not err:
            _echo(f"edge-infer: standard output cannot be written: {error.strerror}", err=True)


def _let_go(stream: TextIO) -> None:
    """Drop what a stream could not write, as Python would turn it into an exit code of its own."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, stream.fileno())
            os.close(nothing)


def _show_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from edge_infer.version import describe

        click.echo(describe())
        context.exit()


@click.group(
    name="edge-infer", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and whether CUDA kernels are built in.",
)
def commands() -> None:
    """Say, for every building footprint, what an aerial or satellite image shows of it.

    Exit codes: 0 done; 2 refused before anything was written; 3 done, but some footprints could not be
    read; 4 stopped early in a clean state (--resume goes on); 1 anything else.
    """


@commands.command()
@click.option(
    "--model", "bundle", required=True, type=click.Path(path_type=Path), help="The bundle, NAME.edgemodel."
)
@click.option(
    "--imagery",
    "imagery",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="A raster, a folder of rasters, or a VRT; may be given several times.",
)
@click.option(
    "--footprints",
    type=click.Path(path_type=Path),
    help="Any vector source; without it, one object per image.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The GeoPackage to write.")
@click.option("--layer", help="Layer of the footprints, where the source holds several.")
@click.option("--where", help="Only footprints for which this OGR SQL condition holds.")
@click.option("--imagery-crs", help="CRS of images that carry none, such as EPSG:32615.")
@click.option(
    "--footprints-crs",
    help="CRS of the footprints, in place of what they say (GeoJSON always says EPSG:4326).",
)
@click.option("--bands", help="Band numbers in the model's order, such as 3,2,1; else by their names.")
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
    help="Number format of the model; auto takes INT8 where it passed its gate, on TensorRT only if it is "
    "faster too.",
)
@click.option(
    "--batch", type=click.IntRange(1, 1024), help="Chips in one batch. [default: the engine's choice]"
)
@click.option(
    "--gpu-memory",
    type=click.Choice(["auto", "mapped", "copied"]),
    default="auto",
    show_default=True,
    help="TensorRT: the GPU reads chips in host memory, or is sent copies; auto copies where it has its own.",
)
@click.option(
    "--cuda-graphs/--no-cuda-graphs",
    default=True,
    show_default=True,
    help="TensorRT: launch each batch as one CUDA graph.",
)
@click.option(
    "--gpu-lanes",
    type=click.IntRange(1, 8),
    default=3,
    show_default=True,
    help="TensorRT: batches in flight; each takes memory of its own.",
)
@click.option(
    "--sample-on",
    type=click.Choice(["auto", "cpu", "gpu"]),
    default="auto",
    show_default=True,
    help="TensorRT: where chips are cut from the imagery; auto takes a GPU that has memory of its own.",
)
@click.option(
    "--threads", type=click.IntRange(1, 64), help="Reader threads. [default: cores, 4 at most; 16 for a GPU]"
)
@click.option(
    "--tile-pixels",
    type=click.IntRange(2**20, 2**28),
    help="Most pixels of a decoded tile. [default: 4194304, less where memory is short]",
)
@click.option(
    "--min-valid",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="A footprint whose window holds less valid imagery than this share gets the status no_data.",
)
@click.option(
    "--min-covered",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="A footprint of which less than this share lies on valid imagery gets the status no_data.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with what is pending or could not be read in --out; begin where there is no --out.",
)
@click.option(
    "--force-resume",
    is_flag=True,
    help="Resume though model, imagery, footprints or options differ from those that --out was begun with.",
)
@click.option("--overwrite", is_flag=True, help="Replace --out if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def run(*, bands: str | None, as_json: bool, quiet: bool, **options: Any) -> int:
    """Classify every footprint; write one GeoPackage with all of them in it."""
    from edge_infer.classify import classify
    from edge_infer.request import RunRequest

    request = RunRequest(bands=band_numbers(bands), **options)
    summary = classify(request, quiet=quiet)
    if as_json:
        for difference in summary.overridden:
            _echo(f"resumed in spite of this: {difference}", err=True)
    _echo(json.dumps(summary.to_json(), indent=1) if as_json else summary.describe())
    return summary.exit_code


@commands.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(file: Path, *, as_json: bool) -> None:
    """Tell what a bundle or an output GeoPackage holds."""
    from edge_infer.info import describe_file, describe_lines

    facts = describe_file(file)
    click.echo(json.dumps(facts, indent=1) if as_json else "\n".join(describe_lines(facts)))


commands.add_command(bench)
commands.add_command(build)
commands.add_command(doctor)
