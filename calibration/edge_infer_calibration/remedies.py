"""What can be done where plain quantisation costs too much."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import numpy_helper

from edge_infer_calibration.qdq import insert_qdq, quantise_weight

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx
    from numpy.typing import NDArray

    from edge_infer_calibration.activations import Activations
    from edge_infer_calibration.placement import Placement


def corrected_biases(
    model: onnx.ModelProto, placement: Placement, activations: Activations
) -> dict[str, NDArray[np.float32]]:
    """Biases that undo the shift of the mean which rounding the weights brings, by name of the convolution.

    The rounding error of a weight times the mean of what it is multiplied with is known beforehand, so its
    sum can be taken off the bias: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias
    Correction (2019), section 4.2, https://arxiv.org/abs/1906.04721, with measured means instead of assumed
    ones. What the padding adds at the borders is left out.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    biases = {}
    for convolution in placement.convolutions:
        if convolution.bias is None:
            continue
        weight = numpy_helper.to_array(tensors[convolution.weight])
        bias = numpy_helper.to_array(tensors[convolution.bias])
        levels, scale = quantise_weight(weight)
        error = weight - levels * scale[:, None, None, None]
        means = activations.inputs[convolution.source].means
        biases[convolution.name] = (bias + error.sum(axis=(2, 3)) @ means).astype(np.float32)
    return biases


def sensitivity(
    model: onnx.ModelProto,
    placement: Placement,
    ranges: Mapping[str, float],
    in_float: NDArray[np.float32],
    run: Callable[[bytes], NDArray[np.float32]],
    say: Callable[[str], None],
) -> list[tuple[tuple[str, ...], float]]:
    """Quantise one unit of convolutions at a time and see how far the probabilities move.

    Args:
        model: the FP32 model.
        placement: where its pairs go.
        ranges: as `insert_qdq` takes them.
        in_float: FP32 probabilities, float32 (n, K).
        run: gives a model's probabilities on the same chips.
        say: is given a line of progress.

    Returns:
        Units (`Placement.units`) with the mean Kullback-Leibler divergence of their INT8 form from FP32, in
        nats, the most sensitive first.

    """
    found = []
    for number, unit in enumerate(placement.units, start=1):
        others = [name for other in placement.units if other != unit for name in other]
        single = insert_qdq(model, ranges, in_float=others)
        found.append((unit, divergence(in_float, run(single.SerializeToString()))))
        say(f"sensitivity {number}/{len(placement.units)}: {' and '.join(unit)} {found[-1][1]:.2e}")
    return sorted(found, key=lambda item: -item[1])


def divergence(reference: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Mean Kullback-Leibler divergence of probabilities (n, K) from reference ones, in nats."""
    p, q = (np.maximum(values.astype(np.float64), 1e-9) for values in (reference, other))
    return float((p * np.log(p / q)).sum(axis=1).mean())
