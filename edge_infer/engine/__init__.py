"""Engines behind one protocol: batches of chips in, class probabilities out.

One thread drives an engine. It submits slots without waiting for results, and collects them in the
order of submission; up to `depth` batches are in flight in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge_infer.cutter import Cutter
    from edge_infer.device import Memory
    from edge_infer.ring import BatchSlot

EngineName = Literal["openvino", "tensorrt", "instant"]
"""`instant` answers at once and runs no model: `bench --feed`."""
EngineChoice = Literal["auto", "openvino", "tensorrt"]
Precision = Literal["int8", "fp16", "fp32"]
PrecisionChoice = Literal["auto", "int8", "fp16", "fp32"]
GpuMemoryChoice = Literal["auto", "mapped", "copied"]
SampleChoice = Literal["auto", "cpu", "gpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What runs the model; it is printed and stored with the results."""

    name: EngineName
    version: str
    precision: Precision
    device: str
    """The processor, in its maker's words."""
    batch: int
    """Chips in one batch."""
    why: str
    """Why this engine and precision were taken, for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuOptions:
    """How a GPU is used; no result depends on it."""

    memory: GpuMemoryChoice = "auto"
    """`mapped`: the GPU reads host memory in place; `copied`: it is sent; `auto`: mapped where it is one."""
    graphs: bool = True
    """Launch a batch's kernels as one CUDA graph."""
    sample_on: SampleChoice = "auto"
    """Where chips are cut; `auto`: on a GPU with memory of its own, where there are kernels for it."""
    lanes: int = 3
    """Batches in flight, each with a stream and an execution context of its own."""


class Engine(Protocol):
    """What the classification loop asks of an engine."""

    @property
    def facts(self) -> EngineFacts:
        """What runs the model."""
        ...

    @property
    def memory(self) -> Memory:
        """Where slots must come from to be taken in without a copy."""
        ...

    @property
    def cutter(self) -> Cutter | None:
        """Who cuts chips for it; None: the reader threads do."""
        ...

    @property
    def depth(self) -> int:
        """Batches that may be in flight at once."""
        ...

    @property
    def in_flight(self) -> int:
        """Batches submitted and not yet collected."""
        ...

    def submit(self, slot: BatchSlot) -> None:
        """Start on `slot.chips`; the slot belongs to the engine until `collect` gives it back."""
        ...

    def collect(self) -> tuple[BatchSlot, npt.NDArray[np.float32]]:
        """Wait for the oldest batch; its slot, and float32 (count, K) probabilities (a copy)."""
        ...

    def close(self) -> None:
        """Free what the engine holds; batches in flight are waited for and dropped."""
        ...
