"""`edge-infer doctor`: looks, and tells what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_infer.cli_values import band_numbers

if TYPE_CHECKING:
    from edge_infer.doctor import Report
    from edge_infer.doctor.finding import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command()
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option(
    "--imagery",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Imagery of a run to come; may be given several times. Like all of these it goes with MODEL.",
)
@click.option("--footprints", type=click.Path(path_type=Path), help="Footprints of a run to come.")
@click.option("--out", type=click.Path(path_type=Path), help="Output of a run to come; it is not written.")
@click.option("--layer", help="As of run.")
@click.option("--where", help="As of run.")
@click.option("--imagery-crs", help="As of run.")
@click.option("--footprints-crs", help="As of run.")
@click.option("--bands", help="As of run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output (docs/doctor.md).")
def doctor(*, bands: str | None, as_json: bool, **options: Any) -> int:
    """Tell what this machine has and lacks, and what to do about it.

    With MODEL: is the bundle whole, and does every engine here give the answers that it was exported with?
    With --imagery and --footprints, too: would a run be refused, and how many footprints would it classify?

    Each line is ok, a warning or a problem. Nothing is written, no root is needed. Ends with 3 where there
    is a problem, else with 0.
    """
    _check_usage(options)
    from edge_infer.doctor import Checkup, examine

    report = examine(Checkup(bands=band_numbers(bands), **options))
    click.echo(json.dumps(report.to_json(), indent=1) if as_json else _describe(report))
    return report.exit_code


def _check_usage(options: dict[str, Any]) -> None:
    of_a_run = [name for name in ("imagery", "footprints", "out") if options[name]]
    if of_a_run and options["model"] is None:
        raise click.UsageError(f"--{of_a_run[0]} is looked at for a model; name the MODEL, NAME.edgemodel")


def _describe(report: Report) -> str:
    lines = []
    for part, findings in report.parts.items():
        lines += [part, *(line for finding in findings for line in _lines(finding))]
    return "\n".join([*lines, report.summary()])


def _lines(finding: Finding) -> list[str]:
    level = click.style(f"{finding.level:<8}", fg=_COLOURS[finding.level])
    lines = [f"  {level} {finding.name:<14} {finding.found}"]
    if finding.do:
        lines.append(f"  {'':<8} {'':<14} -> {finding.do}")
    return lines
