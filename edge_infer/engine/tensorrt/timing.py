"""The timing cache: what TensorRT measured while it built, so that the next build need not measure again.

One file beside the plans for each GPU and TensorRT: a SHA-256 digest (32 bytes), then TensorRT's own bytes.
What does not fit its digest is left aside; it costs time, never correctness.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from edge_infer.durable import replace_durably

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_infer.device.gpu import GpuFacts

_DIGEST_BYTES = 32


def timing_path(folder: Path, gpu: GpuFacts, tensorrt: str) -> Path:
    """Name the file for a GPU and a version of TensorRT."""
    device = re.sub(r"[^0-9A-Za-z]+", "-", gpu.name).strip("-")
    return folder / f"{device}-sm{gpu.architecture}-{gpu.multiprocessors}mp-trt{tensorrt}.timing"


def read_timings(path: Path, say: Callable[[str], None]) -> bytes:
    """Read a timing cache; empty where there is none, or one that cannot be used, which is said."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        say(f"{path} cannot be read ({error.strerror}); TensorRT measures everything anew")
        return b""
    digest, timings = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(timings).digest() != digest:
        say(f"{path} is damaged and is left aside; TensorRT measures everything anew")
        return b""
    return timings


def write_timings(path: Path, timings: bytes) -> None:
    """Keep a timing cache, whole or not at all; `OSError` where it cannot be written."""
    replace_durably(path, hashlib.sha256(timings).digest() + timings)
