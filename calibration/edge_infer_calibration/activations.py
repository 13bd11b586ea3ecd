"""Statistics of activations, gathered while chips stream through the FP32 model.

Memory is bounded: a histogram of fixed size for each tensor, however many chips come. The calibrators of ONNX
Runtime keep every activation of the whole set in memory until the end, which is why they are not used here;
tests hold the ranges that come of these histograms against theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import frexp, ldexp
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime

from edge_infer.bundle import MODEL_MEMBER
from edge_infer.errors import BundleError
from edge_infer_calibration.fp32_model import ONNXRUNTIME_ERRORS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from edge_infer_calibration.placement import Placement

BINS = 4096
"""Of each histogram, of which at least half are in use."""
SMALLEST_TOP = 2.0**-64
"""Of a histogram: below it `BINS / top` leaves float32, and a value is as good as 0."""
WATCHED = frozenset({"Relu", "Gemm", "Softmax"})
"""Operators whose outputs must be finite, though not all carry a pair: the last block's and the head's are
seen too. NaN goes through ONNX Runtime's Relu; OpenVINO's makes 0 of it."""


def magnitude(values: NDArray[np.float32]) -> float:
    """Largest magnitude of values of any shape, 0 of none; `ValueError` for NaN and infinite ones."""
    largest = max(-float(values.min(initial=0.0)), float(values.max(initial=0.0)))
    if not np.isfinite(largest):
        raise ValueError("infinite values, or none at all (NaN)")
    return largest


@dataclass(slots=True, eq=False)
class Histogram:
    """Magnitudes of one tensor's values in equal bins from 0 to `top`, a power of two above them all.

    A value that reaches the top doubles it: neighbouring bins are merged, so the counts are exact for any
    order and grouping of the values.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    """int64, (BINS,). Zeros lie in the first."""
    top: float = 0.0
    """Upper edge of the last bin, which no value reaches; 0 before the first value above 0."""
    largest: float = 0.0
    """Largest magnitude."""

    def add(self, values: NDArray[np.float32]) -> None:
        """Count values of any shape; `ValueError` for NaN and infinite ones."""
        self._reach(magnitude(values))
        if self.top == 0:
            self.counts[0] += values.size
            return
        places = (np.abs(values).ravel() * np.float32(BINS / self.top)).astype(np.int32)
        self.counts += np.bincount(places, minlength=BINS)

    def _reach(self, largest: float) -> None:
        self.largest = max(self.largest, largest)
        if largest > 0 and self.top == 0:
            self.top = max(ldexp(1.0, frexp(largest)[1]), SMALLEST_TOP)
        while 0 < self.top <= largest:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([merged, np.zeros(BINS // 2, np.int64)])
            self.top *= 2

    @property
    def centres(self) -> NDArray[np.float64]:
        """float64, (BINS,): middle of each bin; of the first, 0."""
        centres = np.asarray((np.arange(BINS) + 0.5) * (self.top / BINS), np.float64)
        centres[0] = 0.0
        return centres


@dataclass(slots=True, eq=False)
class ChannelMeans:
    """Mean of each channel of one tensor."""

    sums: NDArray[np.float64] | None = None
    values: int = 0
    """Values in each channel's sum."""

    def add(self, values: NDArray[np.float32]) -> None:
        """Add values (N, C, H, W)."""
        sums = values.sum(axis=(0, 2, 3), dtype=np.float64)
        self.sums = sums if self.sums is None else self.sums + sums
        self.values += values.size // values.shape[1]

    @property
    def means(self) -> NDArray[np.float64]:
        """float64, (C,)."""
        assert self.sums is not None
        return np.asarray(self.sums / self.values)


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """What is known of a network's activations."""

    histograms: Mapping[str, Histogram]
    """By tensor that may carry a Q/DQ pair."""
    inputs: Mapping[str, ChannelMeans]
    """By tensor that a convolution reads."""


def observe(
    model: onnx.ModelProto, placement: Placement, batches: Iterable[NDArray[np.uint8]]
) -> Activations:
    """Run chips uint8 (n, S, S, C) through the FP32 model by ONNX Runtime and look at its activations.

    Raises:
        BundleError: ONNX Runtime cannot run the model, or an activation is infinite or no number; the text
            names its tensor.

    """
    histograms = {name: Histogram() for name in placement.tensors}
    inputs = {convolution.source: ChannelMeans() for convolution in placement.convolutions}
    watched = {*histograms, *inputs} | {
        name for node in model.graph.node if node.op_type in WATCHED for name in node.output
    }
    # In the graph's order, so that it is the first bad tensor that is named.
    names = [name for node in model.graph.node for name in node.output if name in watched]
    chips = 0
    try:
        session = _session(model, names)
        for batch in batches:
            for name, values in zip(names, session.run(names, {"chips": batch}), strict=True):
                _take(name, values, histograms, inputs, f"chips {chips} to {chips + len(batch) - 1}")
            chips += len(batch)
    except ONNXRUNTIME_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise BundleError(f"ONNX Runtime cannot run {MODEL_MEMBER} ({reason}); export it again") from error
    return Activations(histograms, inputs)


def _take(
    name: str,
    values: NDArray[np.float32],
    histograms: Mapping[str, Histogram],
    inputs: Mapping[str, ChannelMeans],
    which: str,
) -> None:
    """Add a batch's values of one tensor to what is known of it."""
    try:
        if name in histograms:
            histograms[name].add(values)
        else:
            magnitude(values)
    except ValueError as error:
        raise BundleError(
            f"tensor {name} holds {error} on calibration {which}; the model is damaged or its weights "
            "overflow: train again"
        ) from error
    if name in inputs:
        inputs[name].add(values)


def _session(model: onnx.ModelProto, names: Iterable[str]) -> onnxruntime.InferenceSession:
    """Open a session that gives the named tensors, without rewriting the graph around them."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    there = {port.name for port in model.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    options = onnxruntime.SessionOptions()
    options.enable_mem_pattern = False  # batches may differ in size
    return onnxruntime.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
