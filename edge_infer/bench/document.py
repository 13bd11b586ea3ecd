"""The document of a benchmark as a file: JSON of the schema docs/bench.schema.json."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edge_infer.durable import replace_durably
from edge_infer.errors import OutputError, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORMAT, VERSION = "edge-infer bench", 2


def refuse_place(path: Path) -> None:
    """Refuse a file that could not be written, before hours are spent; `OutputError`."""
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path} cannot be written; name a file in a folder that you may write to")


def write_document(path: Path, document: dict[str, Any]) -> None:
    """Write a document, whole or not at all. `OutputError` where that cannot be."""
    try:
        replace_durably(path, json.dumps(document, indent=1, allow_nan=False).encode() + b"\n")
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{path} cannot be written: {reason}; name another file") from error


def read_document(path: Path) -> dict[str, Any]:
    """Read a document.

    Raises:
        Refused: it cannot be read, or is none.

    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}; name what `bench --json` wrote") from error
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path} is no JSON ({error}); name what `bench --json` wrote") from error
    found = (document.get("format"), document.get("version")) if isinstance(document, dict) else (None, None)
    if found != (FORMAT, VERSION):
        raise Refused(
            f"{path} is {found[0]!r} of version {found[1]!r}, wanted {FORMAT!r} of version {VERSION}; name "
            "what `bench --json` of this version wrote"
        )
    return dict(document)


@contextmanager
def well_formed() -> Iterator[None]:
    """Turn what a malformed document does to its reader into `Refused`."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
        raise Refused(f"the benchmark is malformed ({error!r}); measure again") from error


def printable(line: str) -> str:
    """Take from a line what a terminal would obey: a document may come from anywhere."""
    return "".join(letter if letter.isprintable() else " " for letter in line)
