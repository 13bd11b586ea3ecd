"""The bundle: one file `NAME.edgemodel` that carries a model from the office to the truck.

It is a zip of a few known members, none of them compressed:

    manifest.json        the manifest as a STAC item (`edge_infer.stac`)
    checksums.json       sha256 of every other member
    model.onnx           the network with its preprocessing, FP32
    model.fp16.onnx      the same with its body in FP16, for TensorRT
    model.int8.onnx      the same with Q/DQ nodes, where it was calibrated
    evaluation.json      what the model reached on chips it was not trained on
    calibration.json     how the INT8 model was made, and its gate
    sides.npy            which chips lay on which side of its training
    golden/chips.npy     uint8 (n, S, S, C), a few chips for self-tests
    golden/expected.npy  float32 (n, K), their probabilities

A bundle may come from anywhere, so nothing in it is trusted: names, sizes and storage are checked against
what is allowed, every member against its checksum, and no pickle is ever loaded.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import stat
import time
import zipfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from edge_infer.durable import make_durable
from edge_infer.errors import BundleError, OutputError
from edge_infer.stac import Member, from_item, read_properties, to_item

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    import numpy.typing as npt

    from edge_infer.manifest import Manifest

MANIFEST_MEMBER = "manifest.json"
CHECKSUMS_MEMBER = "checksums.json"
MODEL_MEMBER = "model.onnx"
FP16_MEMBER = "model.fp16.onnx"
INT8_MEMBER = "model.int8.onnx"
EVALUATION_MEMBER = "evaluation.json"
CALIBRATION_MEMBER = "calibration.json"
SIDES_MEMBER = "sides.npy"
GOLDEN_CHIPS_MEMBER = "golden/chips.npy"
GOLDEN_EXPECTED_MEMBER = "golden/expected.npy"

MAX_MEMBER_BYTES = 1 << 30
MAX_JSON_BYTES = 4 << 20

_CONTENT = (
    MODEL_MEMBER,
    FP16_MEMBER,
    INT8_MEMBER,
    EVALUATION_MEMBER,
    CALIBRATION_MEMBER,
    SIDES_MEMBER,
    GOLDEN_CHIPS_MEMBER,
    GOLDEN_EXPECTED_MEMBER,
)
_ALLOWED = frozenset((MANIFEST_MEMBER, CHECKSUMS_MEMBER, *_CONTENT))
_REQUIRED = (MANIFEST_MEMBER, CHECKSUMS_MEMBER, MODEL_MEMBER)
_BLOCK_BYTES = 1 << 20
_ENCRYPTED = 0x1
# Zip has no time zone and begins in 1980; one fixed time makes equal bundles equal bytes.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_TOKEN_BYTES = 4
"""Of the random part of the name of a bundle that is being written."""
_LEFT_SECONDS = 3600.0
"""After so long a partial bundle is nobody's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle that was whole when it was opened."""

    path: Path
    sha256: str
    """Of the whole file, 64 hexadecimal digits: the name of exactly this model."""
    manifest: Manifest
    members: Mapping[str, Member]
    """Every member but the manifest and the checksums, by name."""

    def read(self, name: str) -> bytes:
        """Content of a member, checked against its checksum.

        Raises:
            BundleError: no such member, or the file changed since it was opened.

        """
        if name not in self.members:
            raise BundleError(f"{self.path}: the bundle holds no {name}")
        with _opened(self.path) as (_, archive):
            content = archive.read(name)
            if hashlib.sha256(content).hexdigest() != self.members[name].sha256:
                raise BundleError(f"{name} differs from its checksum; copy the bundle again")
            return content

    def read_json(self, name: str) -> dict[str, Any]:
        """Values of a JSON member.

        Raises:
            BundleError: as `read`, or the member is no JSON object.

        """
        return _parse_json(f"{self.path}: {name}", self.read(name))

    def golden(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """Chips for a self-test, uint8 (n, S, S, C), and their expected probabilities, float32 (n, K).

        Raises:
            BundleError: the bundle has none, or their shapes do not fit the manifest.

        """
        chips = self._array(GOLDEN_CHIPS_MEMBER, "uint8", self.manifest.contract.chip_shape)
        expected = self._array(GOLDEN_EXPECTED_MEMBER, "float32", (len(self.manifest.classes),))
        if len(chips) != len(expected):
            raise BundleError(
                f"{self.path}: {len(chips)} golden chips, but {len(expected)} rows of probabilities; "
                "export the model again"
            )
        return chips, expected

    def _array(self, name: str, dtype: str, row_shape: tuple[int, ...]) -> npt.NDArray[Any]:
        import numpy as np

        try:
            array = np.load(io.BytesIO(self.read(name)), allow_pickle=False)
        except (ValueError, EOFError, MemoryError) as error:
            raise BundleError(f"{self.path}: {name} is no NumPy array ({error})") from error
        if array.dtype != dtype or array.shape[1:] != row_shape:
            raise BundleError(
                f"{self.path}: {name} is {array.dtype} of shape {array.shape}, wanted {dtype} of shape "
                f"(n, {', '.join(map(str, row_shape))}); export the model again"
            )
        return np.asarray(array)


def open_bundle(path: str | Path) -> Bundle:
    """Open a bundle, and verify every member.

    Raises:
        BundleError: no such file, not a bundle, another format version, or something in it is not as it
            must be.

    """
    path = Path(path)
    with _opened(path) as (stream, archive):
        item = _read_json(archive, MANIFEST_MEMBER)
        # The version comes first: a later format may well have other members.
        read_properties(item)
        infos = _directory(archive)
        digests = _read_json(archive, CHECKSUMS_MEMBER)
        if digests.keys() != infos.keys() - {CHECKSUMS_MEMBER}:
            raise BundleError(f"{CHECKSUMS_MEMBER} does not name exactly the members; copy the bundle again")
        for name, digest in digests.items():
            with archive.open(name) as member:
                if _sha256(member) != digest:
                    raise BundleError(f"{name} differs from its checksum; copy the bundle again")
        manifest = from_item(item)
        stream.seek(0)
        return Bundle(
            path=path,
            sha256=_sha256(stream),
            manifest=manifest,
            members={
                name: Member(infos[name].file_size, digests[name]) for name in _CONTENT if name in infos
            },
        )


def write_bundle(path: str | Path, manifest: Manifest, members: Mapping[str, bytes]) -> Bundle:
    """Write a bundle whole or not at all, and open it again.

    Equal input gives equal bytes. What stood at `path` is replaced and passes on its access rights; a link
    stays one, and what it leads to is replaced.

    Args:
        path: the file to write.
        manifest: what the bundle says of its model.
        members: content by member name; the manifest and the checksums are added here.

    Raises:
        BundleError: the members do not make a bundle.
        OutputError: the file cannot be written.

    """
    path = Path(path)
    _check_content(members)
    known = {
        name: Member(len(members[name]), hashlib.sha256(members[name]).hexdigest())
        for name in _CONTENT
        if name in members
    }
    manifest_json = _to_json(to_item(manifest, known))
    digests = {MANIFEST_MEMBER: hashlib.sha256(manifest_json).hexdigest()}
    digests |= {name: member.sha256 for name, member in known.items()}
    content = {MANIFEST_MEMBER: manifest_json, CHECKSUMS_MEMBER: _to_json(digests)}
    content |= {name: members[name] for name in known}
    try:
        _write_atomically(path, content)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
    return open_bundle(path)


def _check_content(members: Mapping[str, bytes]) -> None:
    if MODEL_MEMBER not in members or not members.keys() <= set(_CONTENT):
        raise BundleError(
            f"a bundle holds {MODEL_MEMBER} and at most {', '.join(_CONTENT[1:])}; "
            f"got {', '.join(members) or 'none'}"
        )
    for name, content in members.items():
        if len(content) > _limit_bytes(name):
            raise BundleError(f"{name} has {len(content):,} bytes, the limit is {_limit_bytes(name):,}")


def _write_atomically(path: Path, content: Mapping[str, bytes]) -> None:
    path = Path(os.path.realpath(path))
    _clear_leftovers(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(_TOKEN_BYTES)}.partial")
    try:
        with partial.open("xb") as stream:
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
                for name, data in content.items():
                    info = zipfile.ZipInfo(name, _ZIP_TIME)
                    info.create_system = 3  # Unix, whatever system writes it
                    info.external_attr = (stat.S_IFREG | 0o644) << 16
                    archive.writestr(info, data)
            stream.flush()
            os.fsync(stream.fileno())
        with suppress(FileNotFoundError, PermissionError):  # nothing stood there; a disk without such rights
            # Syncing opens the file to write, so its owner may.
            partial.chmod(stat.S_IMODE(path.stat().st_mode) | stat.S_IWUSR)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    make_durable(path)


def _clear_leftovers(path: Path) -> None:
    """Remove what was left beside a bundle by a write that was killed.

    A write takes seconds, so what was last written to long ago belongs to nobody. Should a process have slept
    so long in the middle, its write fails and the bundle stays whole.
    """
    leftover = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{{2 * _TOKEN_BYTES}}}\.partial")
    with suppress(OSError):
        for entry in path.parent.iterdir():
            if leftover.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > _LEFT_SECONDS:
                entry.unlink()


def _refuse_pipe(path: Path) -> None:
    """Refuse what opening would wait for, or what may have no end: pipes and devices."""
    if stat.S_IFMT(path.stat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
        raise BundleError("no regular file; wanted a model bundle, NAME.edgemodel")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], zipfile.ZipFile]]:
    """Open the zip; whatever goes wrong with it inside becomes a `BundleError` that names the file."""
    try:
        _refuse_pipe(path)
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            yield stream, archive
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise BundleError(f"{path}: no such file; wanted a model bundle, NAME.edgemodel") from error
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror or error}") from error
    # zipfile gives all of these for damaged files.
    except (zipfile.BadZipFile, EOFError, OverflowError, RuntimeError, ValueError) as error:
        raise BundleError(
            f"{path}: not a model bundle, or a damaged one ({error}); copy it again, or make one by "
            "`edge-infer export`"
        ) from error


def _directory(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Read the zip's directory, by name, and check every entry."""
    infos: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        # `filename` ends at the first null byte; the original does not.
        name = info.orig_filename
        if name not in _ALLOWED:
            raise BundleError(f"unexpected member {name!r}; only use bundles made by `edge-infer export`")
        if name in infos:
            raise BundleError(f"member {name} occurs twice; only use bundles made by `edge-infer export`")
        _check_entry(info)
        infos[name] = info
    missing = [name for name in _REQUIRED if name not in infos]
    if missing:
        raise BundleError(f"{missing[0]} is missing; copy the bundle again")
    return infos


def _check_entry(info: zipfile.ZipInfo) -> None:
    name = info.orig_filename
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise BundleError(f"member {name} is compressed, wanted stored; do not repack bundles")
    if info.flag_bits & _ENCRYPTED:
        raise BundleError(f"member {name} is encrypted; do not repack bundles")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        raise BundleError(f"member {name} is no regular file; do not repack bundles")
    if info.file_size > _limit_bytes(name):
        raise BundleError(f"member {name} has {info.file_size:,} bytes, the limit is {_limit_bytes(name):,}")


def _limit_bytes(name: str) -> int:
    return MAX_JSON_BYTES if name.endswith(".json") else MAX_MEMBER_BYTES


def _read_json(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise BundleError(f"{name} is missing, so this is not a model bundle") from None
    _check_entry(info)
    return _parse_json(name, archive.read(info))


def _parse_json(name: str, content: bytes) -> dict[str, Any]:
    try:
        values = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name} is malformed: {error}; copy the bundle again") from error
    if not isinstance(values, dict):
        raise BundleError(f"{name} is no JSON object; export the model again")
    return values


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _to_json(values: object) -> bytes:
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _sha256(stream: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := stream.read(_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()
