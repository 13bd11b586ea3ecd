"""The file with the CUDA kernels, where this installation has one."""

from __future__ import annotations

import struct
from importlib import resources
from typing import TYPE_CHECKING

import pytest

from edge_infer._native import _ext

if TYPE_CHECKING:
    from collections.abc import Iterator

PTX, MACHINE_CODE = 1, 2

pytestmark = pytest.mark.skipif(
    not _ext.CUDA_ARCHITECTURES, reason=f"built without CUDA: {_ext.CUDA_ABSENCE}"
)


def read_fatbin() -> bytes:
    return (resources.files("edge_infer._native") / "sampler.fatbin").read_bytes()


def entries(fatbin: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Kind, architecture and content of each entry (as the driver and cuobjdump read them)."""
    magic, _, header, size = struct.unpack_from("<IHHQ", fatbin)
    assert magic == 0xBA55ED50
    assert header + size == len(fatbin)
    at = header
    while at < len(fatbin):
        kind, _, header, size = struct.unpack_from("<HHIQ", fatbin, at)
        (architecture,) = struct.unpack_from("<I", fatbin, at + 28)
        yield kind, architecture, fatbin[at + header : at + header + size]
        at += header + size


def test_has_machine_code_for_what_the_module_says_and_ptx_of_the_newest():
    architectures = [int(text) for text in _ext.CUDA_ARCHITECTURES.split()]
    found = [(kind, architecture) for kind, architecture, _ in entries(read_fatbin())]
    assert sorted(architecture for kind, architecture in found if kind == MACHINE_CODE) == architectures
    assert [architecture for kind, architecture in found if kind == PTX] == [max(architectures)]


@pytest.mark.parametrize("kernel", [b"sample_uint8", b"sample_uint16"])
def test_every_architecture_has_both_kernels(kernel):
    for kind, architecture, content in entries(read_fatbin()):
        assert kind == PTX or kernel in content, architecture
