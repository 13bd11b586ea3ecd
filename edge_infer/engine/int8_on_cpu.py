"""What OpenVINO is not told by a Q/DQ graph: how to run it fast, and right, on this CPU."""

from __future__ import annotations

import numpy as np
import openvino
import openvino.opset13 as opset

_INT8_LEVELS, _UINT8_TOP = 128, 255
"""Levels of int8 on the side of zero and below; the largest one of uint8."""

_PROBE_CHANNELS = 32
"""Enough for OpenVINO to take the CPU's 8 bit instructions."""


def retype_unsigned(model: openvino.Model) -> int:
    """Make 8 bit tensors that cannot be negative unsigned: same scale, same values, faster on a CPU.

    After a ReLU, int8 uses the levels 0 to 127 only. CPUs multiply unsigned activations with signed weights;
    for a signed tensor OpenVINO shifts the levels and pays for the zero point in every convolution. The clamp
    keeps what int8 clips clipped, so that a CPU and a GPU compute the same; it costs nothing, as it becomes
    part of the convolution before it.

    Returns:
        How many tensors were changed.

    """
    changed = 0
    for quantise in [node for node in model.get_ops() if node.get_type_name() == "FakeQuantize"]:
        source = quantise.input_value(0)
        casts = [port.get_node() for port in quantise.output(0).get_target_inputs()]
        if not _never_negative(source.get_node()) or not all(_is_cast_to_int8(cast) for cast in casts):
            continue
        step = float(quantise.input_value(1).get_node().data) / -_INT8_LEVELS
        clamped = opset.clamp(source, 0.0, (_INT8_LEVELS - 1) * step)
        # As many steps as a byte has levels, of which the clamp leaves the lower half.
        levels = [np.float32(value) for value in (0, _UINT8_TOP * step, 0, _UINT8_TOP)]
        unsigned = opset.convert(opset.fake_quantize(clamped, *levels, _UINT8_TOP + 1), "u8")
        for cast in casts:
            for port in cast.output(0).get_target_inputs():
                port.replace_source_output(unsigned.output(0))
        changed += 1
    model.validate_nodes_and_infer_types()
    return changed


def _never_negative(node: openvino.Node) -> bool:
    while node.get_type_name() == "MaxPool":
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Relu")


def _is_cast_to_int8(node: openvino.Node) -> bool:
    return bool(node.get_type_name() == "Convert" and node.get_element_type() == openvino.Type.i8)


def sums_exactly(core: openvino.Core) -> bool:
    """Whether this CPU adds 8 bit products without clipping; measured, as no list of CPUs lasts.

    x86 CPUs without VNNI add two products of a byte and an int8 in 16 bits, which clips them from 32,767 on
    (oneDNN, "Nuances of int8 computations": https://uxlfoundation.github.io/oneDNN/dev_guide_int8_computations.html).
    """
    byte, weight = np.float32(_UINT8_TOP), _INT8_LEVELS - 1
    chips = opset.parameter([1, _PROBE_CHANNELS, 1, 1], np.float32)
    levels = opset.fake_quantize(chips, np.float32(0), byte, np.float32(0), byte, _UINT8_TOP + 1)
    stored = opset.constant(np.full((_PROBE_CHANNELS, _PROBE_CHANNELS, 1, 1), weight, np.int8))
    scale = opset.constant(np.ones((_PROBE_CHANNELS, 1, 1, 1), np.float32))
    weights = opset.multiply(opset.convert(stored, "f32"), scale)
    sums = opset.convolution(levels, weights, [1, 1], [0, 0], [0, 0], [1, 1])
    probe = core.compile_model(
        openvino.Model([opset.result(sums)], [chips], "probe"),
        "CPU",
        {"NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"},
    )
    found = probe(np.full((1, _PROBE_CHANNELS, 1, 1), byte))[0]
    return bool((found == _PROBE_CHANNELS * _UINT8_TOP * weight).all())


def leave_signed_in_float(model: openvino.Model) -> int:
    """Take convolutions of signed tensors out of INT8, for CPUs that do not sum exactly.

    OpenVINO makes a signed tensor a byte with a zero point of 128, and bytes that large overflow. Tensors
    that `retype_unsigned` changed stay below 128, where no pair of products does. Weights keep their rounded
    values.

    Returns:
        How many convolutions were changed: in a ResNet the first, which reads the chip.

    """
    changed = 0
    for convolution in [node for node in model.get_ops() if node.get_type_name() == "Convolution"]:
        quantise = _quantised_by(convolution.input_value(0).get_node())
        if quantise is None or not _is_signed(quantise):
            continue
        convolution.input(0).replace_source_output(quantise.input_value(0))
        weights = convolution.input_value(1)
        folded = np.zeros(list(weights.get_shape()), np.float32)
        tensors = [openvino.Tensor(folded, shared_memory=True)]
        if not openvino.Model([opset.result(weights)], [], "weights").evaluate(tensors, []):
            raise RuntimeError(f"cannot evaluate the weights of {convolution.get_friendly_name()}")
        convolution.input(1).replace_source_output(opset.constant(folded).output(0))
        changed += 1
    model.validate_nodes_and_infer_types()
    return changed


def _quantised_by(node: openvino.Node) -> openvino.Node | None:
    """Step up a dequantisation to what quantises; None where there is none."""
    while node.get_type_name() in ("Multiply", "Subtract", "Convert"):
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "FakeQuantize" else None


def _is_signed(quantise: openvino.Node) -> bool:
    return bool((quantise.input_value(3).get_node().data < 0).any())
