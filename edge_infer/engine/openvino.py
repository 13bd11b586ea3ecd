"""OpenVINO: the engine of every machine without an NVIDIA GPU."""

from __future__ import annotations

import io
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino

from edge_infer.device.host import HostMemory
from edge_infer.engine import EngineFacts
from edge_infer.engine.int8_on_cpu import leave_signed_in_float, retype_unsigned, sums_exactly
from edge_infer.errors import EdgeInferError, EngineError

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge_infer.engine import Precision
    from edge_infer.ring import BatchSlot

DEFAULT_BATCH = 16
"""Throughput is flat from 8 to 32 on the CPUs measured; smaller batches commit sooner."""


class OpenVinoEngine:
    """`Engine` on the CPU. Slots are read in place; nothing is copied on the way in."""

    def __init__(
        self,
        model_onnx: bytes,
        chip_shape: tuple[int, int, int],
        classes: int,
        *,
        batch: int = DEFAULT_BATCH,
        precision: Precision,
        why: str,
    ) -> None:
        """Compile the model for batches of `batch` chips of `chip_shape` (S, S, C).

        Args:
            model_onnx: the ONNX file's bytes; input `chips` uint8 (N, S, S, C).
            chip_shape: (S, S, C) of the contract.
            classes: K of the manifest; output `probabilities` float32 (N, K).
            batch: chips in one batch; tail batches are padded to it.
            precision: what the file is (`int8` has Q/DQ nodes, `fp32` none).
            why: how the choice was made, kept in the facts.

        Raises:
            EngineError: OpenVINO cannot compile the model, or its input or output is not ours.

        """
        core = openvino.Core()
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            # Left alone, CPUs with bfloat16 would use it unasked.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            model = core.read_model(io.BytesIO(model_onnx))
            if [port.any_name for port in model.inputs] == ["chips"]:
                model.reshape({"chips": [batch, *chip_shape]})
            _check_ports(model, (batch, *chip_shape), (batch, classes))
            if precision == "int8":
                retype_unsigned(model)
                if not sums_exactly(core):
                    leave_signed_in_float(model)
            compiled = core.compile_model(model, "CPU", options)
        except (RuntimeError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise EngineError(f"OpenVINO cannot run this model: {reason}; export it again") from error
        self.memory = HostMemory()
        self.cutter = None
        # One request more than OpenVINO runs at once, so that a finished one is followed at once.
        self.depth = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")) + 1
        self.facts = EngineFacts(
            name="openvino",
            version=openvino.__version__.split("-", maxsplit=1)[0],
            precision=precision,
            device=str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip(),
            batch=batch,
            why=why,
        )
        self._idle = [compiled.create_infer_request() for _ in range(self.depth)]
        self._running: deque[tuple[BatchSlot, Any]] = deque()

    @property
    def in_flight(self) -> int:
        """Batches submitted and not yet collected."""
        return len(self._running)

    def submit(self, slot: BatchSlot) -> None:
        """Start on `slot.chips`, which OpenVINO reads in place."""
        request = self._idle.pop()
        request.set_input_tensor(openvino.Tensor(slot.chips, shared_memory=True))
        request.start_async()
        self._running.append((slot, request))

    def collect(self) -> tuple[BatchSlot, npt.NDArray[np.float32]]:
        """Wait for the oldest batch; its slot, and float32 (count, K) probabilities (a copy)."""
        slot, request = self._running.popleft()
        request.wait()
        probabilities = np.array(request.get_output_tensor().data[: slot.count], np.float32)
        self._idle.append(request)
        if not np.isfinite(probabilities).all():
            raise EdgeInferError(
                "the model gave probabilities that are no numbers; the bundle is damaged or its weights "
                "overflow: run `edge-infer info` on it and export it again"
            )
        return slot, probabilities

    def close(self) -> None:
        """Wait for what is in flight and drop it."""
        while self._running:
            self._running.popleft()[1].wait()
        self._idle.clear()


def _check_ports(
    model: openvino.Model, chips_shape: tuple[int, ...], probabilities_shape: tuple[int, ...]
) -> None:
    """Insist on our one input and our one output; `EngineError` otherwise."""
    wanted = [f"chips u8 {list(chips_shape)}", f"probabilities f32 {list(probabilities_shape)}"]
    found = [
        f"{port.any_name if port.names else 'unnamed'} {port.element_type.get_type_name()} "
        f"{port.partial_shape.to_string()}".replace(",", ", ")
        for port in (*model.inputs, *model.outputs)
    ]
    if found != wanted:
        raise EngineError(
            f"the model takes and gives {'; '.join(found)[:500]}, wanted {'; '.join(wanted)}; "
            "it is no model for this manifest: export it again"
        )
