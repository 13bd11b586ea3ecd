"""From the bytes of an ONNX file to a TensorRT network with our one input and our one output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_infer.engine.tensorrt.messages import collected, shared_logger
from edge_infer.errors import EngineError

if TYPE_CHECKING:
    from edge_infer.engine.tensorrt.bindings import TensorRt

INPUT, OUTPUT = "chips", "probabilities"

MOST_ERRORS = 20
"""Parser errors told in one message."""


def parse_network(
    library: TensorRt, builder: Any, model_onnx: bytes, *, chip_shape: tuple[int, int, int], classes: int
) -> Any:
    """Parse a model.

    From TensorRT 10 on the network is strongly typed: layers run in the types that the file states. uint8 is
    a type of inputs only, which a Cast must take up at once, as ours does.

    Args:
        library: TensorRT.
        builder: its `Builder`.
        model_onnx: the file's bytes; input `chips` uint8 (N, S, S, C), output `probabilities` float32 (N, K).
        chip_shape: (S, S, C) that the input must have.
        classes: K that the output must have.

    Raises:
        EngineError: TensorRT cannot take the model (each reason with its node), or it is no model of ours.

    """
    trt = library.module
    flags = trt.NetworkDefinitionCreationFlag
    flag = flags.STRONGLY_TYPED if library.strongly_typed else flags.EXPLICIT_BATCH
    network = builder.create_network(1 << int(flag))
    with collected() as messages:
        parser = trt.OnnxParser(network, shared_logger(trt))
        if not parser.parse(model_onnx):
            errors = [_describe(parser.get_error(index)) for index in range(parser.num_errors)]
            told = "; ".join(dict.fromkeys(errors[:MOST_ERRORS])) or messages.reason()
            more = f" and {len(errors) - MOST_ERRORS} more" if len(errors) > MOST_ERRORS else ""
            raise EngineError(
                f"TensorRT {library.text} cannot take this model: {told}{more}; export it again, "
                "or use --engine openvino"
            )
    _check_ports(trt, network, chip_shape, classes)
    return network


def _describe(error: Any) -> str:
    """Say what the parser found and at which node; TensorRT 8.6 knows its number only."""
    name = error.node_name() if hasattr(error, "node_name") else ""
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    where = f"node {name or error.node()}{f' ({operator})' if operator else ''}"
    return (
        f"{where}: {' '.join(error.desc().split())}" if error.node() >= 0 else " ".join(error.desc().split())
    )


def _check_ports(trt: Any, network: Any, chip_shape: tuple[int, int, int], classes: int) -> None:
    wanted = [
        f"{INPUT} {trt.DataType.UINT8.name} {[-1, *chip_shape]}",
        f"{OUTPUT} {trt.DataType.FLOAT.name} {[-1, classes]}",
    ]
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    tensors += [network.get_output(index) for index in range(network.num_outputs)]
    found = [f"{tensor.name} {tensor.dtype.name} {list(tensor.shape)}" for tensor in tensors]
    if found != wanted:
        raise EngineError(
            f"the model takes and gives {'; '.join(found)[:500] or 'nothing'}, wanted {'; '.join(wanted)}; "
            "it is no model for this manifest: export it again"
        )
