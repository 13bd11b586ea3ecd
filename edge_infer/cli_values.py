"""Values of options that click does not read by itself."""

from __future__ import annotations

import click


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Read whole numbers between commas, such as 3,2,1; `click.BadParameter` for anything else."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise click.BadParameter(f"found {text!r}, wanted numbers: 3,2,1", param_hint=option) from None


def band_numbers(text: str | None) -> tuple[int, ...] | None:
    """Read the value of --bands; None where it is not given."""
    return None if text is None else numbers(text, "--bands")
