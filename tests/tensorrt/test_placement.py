"""What TensorRT's parser makes of the quantised graph: the placement that lets it fuse residual blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_infer.engine.tensorrt.bindings import TensorRt


def parsed(library: TensorRt, content: bytes):
    trt = library.module
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse(content)
    assert parser.num_errors == 0
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {layer.get_output(k).name: layer for layer in layers for k in range(layer.num_outputs)}
    return trt, builder, network, parser, layers, makers


def test_residual_blocks_of_resnet34_as_tensorrt_sees_them(library, large_models) -> None:
    trt, *_keep, layers, makers = parsed(library, large_models["model.int8.onnx"])
    kinds = trt.LayerType
    quantised = [layer for layer in layers if layer.type == kinds.QUANTIZE]
    assert len(quantised) == 36
    convolutions = [layer for layer in layers if layer.type == kinds.CONVOLUTION]
    assert len(convolutions) == 36
    for layer in convolutions:
        source = makers[layer.get_input(0).name]
        assert source.type in (kinds.DEQUANTIZE, kinds.POOLING), layer.name
    sums = [layer for layer in layers if layer.name.endswith(".add")]
    assert len(sums) == 16
    for layer in sums:
        pair = {makers[layer.get_input(k).name].type for k in range(2)}
        assert pair in ({kinds.CONVOLUTION, kinds.DEQUANTIZE}, {kinds.CONVOLUTION, kinds.POOLING}), layer.name
    # The bytes come in as they are.
    assert _keep[1].get_input(0).dtype == trt.DataType.UINT8
