"""What an ONNX file asks for beyond itself, found in its bytes before an engine sees them.

Tensors may lie in other files, or for some engines at an address in memory, and operators may come from
libraries. A model of ours has neither. The file is Protocol Buffers, of which only the frame is read here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_infer.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_infer.bundle import Bundle

MAX_DEPTH = 32
"""Messages within messages; branches of an If nest by three."""

_STANDARD = (b"", b"ai.onnx")

# The fields of each message (onnx.proto) that lead to tensors or operators, with what they hold.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "opset", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 9: "opset", 11: "attribute"},
    "node": {5: "attribute", 7: "domain"},
    "opset": {1: "domain"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "location", 14: "location"},
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_model(bundle: Bundle, member: str) -> bytes:
    """Bytes of a bundle's ONNX member, checked.

    Raises:
        BundleError: no such member, or it is not self-contained.

    """
    model_onnx = bundle.read(member)
    try:
        check_self_contained(model_onnx)
    except BundleError as error:
        raise BundleError(f"{bundle.path}: {member}: {error}") from error
    return model_onnx


def check_self_contained(model_onnx: bytes) -> None:
    """Insist that a model holds all its tensors and uses standard operators only.

    Raises:
        BundleError: it does not, or the bytes are no ONNX file.

    """
    try:
        _check(memoryview(model_onnx), "model", MAX_DEPTH)
    except IndexError:
        raise BundleError("the model is no ONNX file, or a damaged one; export it again") from None


def _check(message: memoryview, kind: str, depth: int) -> None:
    if depth == 0:
        raise BundleError(f"the model's graphs are nested more than {MAX_DEPTH} deep; export it again")
    fields = _FIELDS[kind]
    for number, value in _read_fields(message):
        held = fields.get(number)
        if held == "location" and value:
            raise BundleError("the model keeps weights outside of its file; export it as one file")
        if isinstance(value, int) or held is None:
            continue
        if held == "domain":
            if bytes(value) not in _STANDARD:
                name = bytes(value[:100]).decode(errors="replace")
                raise BundleError(f"the model uses operators of {name!r}, not standard ones; export it again")
        elif held in _FIELDS:
            _check(value, held, depth - 1)


def _read_fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Give the number and the value of each field; `IndexError` where the message breaks off."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _read_varint(message, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _read_varint(message, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise IndexError
        if at + size > len(message):
            raise IndexError
        if wire == _BYTES:
            yield number, message[at : at + size]
        at += size


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise IndexError
