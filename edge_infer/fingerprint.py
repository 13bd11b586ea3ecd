"""What identifies an input file, cheaply: its size and a hash of its content, or of samples of it.

The time of change is kept for people to read, and decides nothing: it differs in every copy.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Iterable

WHOLE_BYTES = 64 * 2**20
"""Vector files up to this size are hashed whole, which takes a fraction of a second."""

SAMPLE_BYTES = 32 * 2**10
"""Of larger files, and of images, so much is hashed of the start, the middle and the end."""

SQLITE_MAGIC = b"SQLite format 3\0"
SQLITE_HEADER_BYTES = 100
"""Holds counters that change when a GeoPackage is merely looked at in a GIS, so it is left out."""

COMPANIONS = {
    ".shp": (".shp", ".shx", ".dbf", ".prj", ".cpg"),
    ".tab": (".tab", ".dat", ".map", ".id"),
    ".mif": (".mif", ".mid"),
    ".csv": (".csv", ".csvt", ".prj"),
    ".gml": (".gml", ".gfs", ".xsd"),
}
"""Vector formats that are several files of one name."""

IN_FOLDERS = frozenset((*sum(COMPANIONS.values(), ()), ".fgb", ".gdbtable", ".gdbtablx"))
"""Of a folder that is one vector source, the files that count; a GIS puts others beside them unasked."""

VIRTUAL_MARK = b"<OGRVRTDataSource"
MOST_VIRTUAL_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Of one input, which may be several files."""

    size_bytes: int
    """Of all its files."""
    modified: str
    """When the newest of them was last changed, ISO 8601 in UTC."""
    content: str
    """sha256, hexadecimal, of the sizes and contents."""


def fingerprint(files: Iterable[Path], *, whole_bytes: int = 3 * SAMPLE_BYTES) -> Fingerprint | None:
    """Take the fingerprint of files, in their order; those above `whole_bytes` by three samples.

    The names do not count, only their suffixes. None where a file cannot be read.
    """
    digest, size, newest = hashlib.sha256(), 0, 0.0
    try:
        for path in files:
            with path.open("rb") as stream:
                status = os.fstat(stream.fileno())
                size, newest = size + status.st_size, max(newest, status.st_mtime)
                digest.update(f"{path.suffix.lower()} {status.st_size}\n".encode())
                begin = SQLITE_HEADER_BYTES if stream.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC else 0
                if status.st_size <= whole_bytes:
                    stream.seek(begin)
                    while piece := stream.read(2**20):
                        digest.update(piece)
                    continue
                end = status.st_size - SAMPLE_BYTES
                for start in (begin, end // 2, end):
                    stream.seek(start)
                    digest.update(stream.read(SAMPLE_BYTES))
    except OSError:
        return None
    modified = datetime.fromtimestamp(newest, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Fingerprint(size, modified, digest.hexdigest())


def vector_files(path: Path) -> list[Path]:
    """Name the files that a vector source consists of: itself, its companions, those in a folder.

    For OGR's virtual format also the files that it names. `OSError` where they may not be looked at.
    """
    found: list[Path] = []
    waiting = [path]
    while waiting:
        source = waiting.pop()
        parts = [part for part in _parts(source) if part not in found]
        found += parts
        waiting += [name for part in parts for name in _virtual_sources(part)]
    return found


def _parts(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(
            part for part in path.rglob("*") if part.suffix.lower() in IN_FOLDERS and part.is_file()
        )
    others = (
        path.with_suffix(form)
        for suffix in COMPANIONS.get(path.suffix.lower(), ())
        for form in (suffix, suffix.upper())
        if suffix != path.suffix.lower()
    )
    return [path, *(other for other in others if other.is_file())]


def _virtual_sources(path: Path) -> list[Path]:
    """Files and folders that a virtual source names; what else it may name is not on this machine's disks."""
    with path.open("rb") as stream:
        content = stream.read(MOST_VIRTUAL_BYTES)
    if VIRTUAL_MARK not in content[:1024]:
        return []
    try:
        named = ET.fromstring(content).iter("SrcDataSource")  # noqa: S314 - expat bounds what it expands
    except ET.ParseError:
        return []
    sources = []
    for element in named:
        relative = element.get("relativeToVRT", element.get("relativetoVRT")) == "1"
        source = (path.parent if relative else Path()) / (element.text or "").strip()
        if source.exists():
            sources.append(source)
    return sources
