"""The trained network as an ONNX graph that takes raw chips and gives probabilities.

    chips uint8 (N, S, S, C)
      -> Cast -> Sub mean -> Div std -> Transpose to (N, C, S, S)
      -> ResNet, batch normalisation folded into the convolutions
      -> Div temperature -> Softmax
    probabilities float32 (N, K)

Every engine is fed the same bytes, so preprocessing cannot differ between them. The graph is written node
by node: the network is our own, and so each node bears the name of its module (`layer1.0.conv1`), which
is what reports on quantisation print. Opset 17 and IR version 8 are what TensorRT 8.5 still reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from edge_infer_export.network.resnet import BasicBlock, ResNet

OPSET = 17
IR_VERSION = 8


class Classifier(nn.Module):
    """The same computation in PyTorch, batch normalisation not folded: what the graph is held against."""

    def __init__(
        self, network: ResNet, *, mean: Sequence[float], std: Sequence[float], temperature: float
    ) -> None:
        """Wrap a network.

        Args:
            network: gives logits (N, K) for normalised images (N, C, S, S).
            mean: of each of the C bands, in chip units 0..255.
            std: of each of the C bands, in chip units 0..255.
            temperature: the logits are divided by it.

        """
        super().__init__()
        self.network = network
        self.mean = torch.tensor(mean, dtype=torch.float32)
        self.std = torch.tensor(std, dtype=torch.float32)
        self.temperature = temperature
        self.eval()

    def forward(self, chips: torch.Tensor) -> torch.Tensor:
        """Chips uint8 (N, S, S, C) to probabilities float32 (N, K)."""
        images = ((chips.float() - self.mean) / self.std).permute(0, 3, 1, 2)
        return torch.softmax(self.network(images) / self.temperature, dim=1)


def export_graph(classifier: Classifier, chip_shape: tuple[int, int, int]) -> bytes:
    """Write a classifier as an ONNX file for chips of `chip_shape` (S, S, C) and any batch size N."""
    writer = _Writer()
    images = writer.preprocess(classifier)
    network = classifier.network
    features = writer.relu("relu", writer.conv("conv1", images, network.conv1, network.bn1))
    features = writer.node(
        "MaxPool", "maxpool", [features], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
    )
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for index, block in enumerate(cast("nn.Sequential", getattr(network, stage))):
            features = writer.block(f"{stage}.{index}", features, cast("BasicBlock", block))
    pooled = writer.node("Flatten", "flatten", [writer.node("GlobalAveragePool", "avgpool", [features])])
    logits = writer.linear("fc", pooled, network.fc)
    temperature = writer.constant("temperature", np.float32(classifier.temperature))
    scaled = writer.node("Div", "scale", [logits, temperature])
    writer.nodes.append(helper.make_node("Softmax", [scaled], ["probabilities"], name="softmax", axis=1))

    side, _, bands = chip_shape
    graph = helper.make_graph(
        writer.nodes,
        "edge-infer",
        [helper.make_tensor_value_info("chips", TensorProto.UINT8, ["N", side, side, bands])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", network.fc.out_features])],
        initializer=writer.constants,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="edge-infer",
    )
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


class _Writer:
    """Nodes and constants of one graph. The tensor that node NAME gives is called NAME.out."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, values: npt.ArrayLike) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def node(self, kind: str, name: str, inputs: list[str], **attributes: int | list[int]) -> str:
        output = f"{name}.out"
        node = helper.make_node(kind, inputs, [output], name=name)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return output

    def preprocess(self, classifier: Classifier) -> str:
        # The input has bands last, and so have these two.
        mean = self.constant("preprocess.mean", classifier.mean.numpy())
        std = self.constant("preprocess.std", classifier.std.numpy())
        values = self.node("Cast", "preprocess.cast", ["chips"], to=TensorProto.FLOAT)
        centred = self.node("Sub", "preprocess.subtract", [values, mean])
        normal = self.node("Div", "preprocess.divide", [centred, std])
        return self.node("Transpose", "preprocess.transpose", [normal], perm=[0, 3, 1, 2])

    def conv(self, name: str, features: str, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> str:
        weight, bias = _fold(conv, norm)
        return self.node(
            "Conv",
            name,
            [features, self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)],
            kernel_shape=list(conv.kernel_size),
            strides=list(conv.stride),
            pads=[*conv.padding, *conv.padding],
        )

    def relu(self, name: str, features: str) -> str:
        return self.node("Relu", name, [features])

    def block(self, name: str, features: str, block: BasicBlock) -> str:
        skip = features
        if block.downsample is not None:
            conv, norm = block.downsample
            skip = self.conv(
                f"{name}.downsample.0", features, cast("nn.Conv2d", conv), cast("nn.BatchNorm2d", norm)
            )
        inner = self.relu(f"{name}.relu1", self.conv(f"{name}.conv1", features, block.conv1, block.bn1))
        outer = self.conv(f"{name}.conv2", inner, block.conv2, block.bn2)
        return self.relu(f"{name}.relu2", self.node("Add", f"{name}.add", [outer, skip]))

    def linear(self, name: str, features: str, linear: nn.Linear) -> str:
        weight = self.constant(f"{name}.weight", linear.weight.detach().numpy())
        bias = self.constant(f"{name}.bias", linear.bias.detach().numpy())
        return self.node("Gemm", name, [features, weight, bias], transB=1)


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Weight (out, in, k, k) and bias (out,) of the one convolution that does both, in double precision."""
    state = {name: tensor.detach().double().numpy() for name, tensor in norm.state_dict().items()}
    scale = state["weight"] / np.sqrt(state["running_var"] + norm.eps)
    weight = conv.weight.detach().double().numpy() * scale[:, None, None, None]
    return weight, state["bias"] - state["running_mean"] * scale
