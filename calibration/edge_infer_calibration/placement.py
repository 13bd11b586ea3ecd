"""Which tensors of a network carry Q/DQ pairs: TensorRT's rules for residual networks.

- Every input of a convolution: one pair for each activation, however many nodes read it.
- Nothing between a convolution and the Add or Relu after it, so that Conv + Add + Relu is one INT8 kernel.
- On the skip input of a residual Add, so that the Add may stay in that kernel. The other input comes straight
  from the convolution.
- Before a max pooling instead of after it. Both give the same numbers, because quantising keeps the order of
  values, but the largest tensor of the network is then written as int8.
- Nothing on biases, and nothing from the global pooling on: the last layer costs little and decides much.

Sources: NVIDIA TensorRT documentation, "Q/DQ Layer-Placement Recommendations", and what its engineers answer
in the issues 1992, 1144 and 3861 of NVIDIA/TensorRT.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx import TensorProto

from edge_infer.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx

KNOWN_OPERATORS = frozenset(
    {"Add", "Cast", "Conv", "Div", "Flatten", "Gemm", "GlobalAveragePool", "Identity", "MaxPool", "Mul"}
    | {"Relu", "Softmax", "Sub", "Transpose"}
)
"""Operators whose behaviour under these rules is known. Any other is refused, not guessed at."""
INPUT = "chips"
"""Name of the one input."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """One convolution that may run in INT8."""

    name: str
    """Of the node."""
    source: str
    """The tensor it reads; `Placement.carriers` names the one that carries its pair."""
    weight: str
    bias: str | None


@dataclass(frozen=True, slots=True)
class Skip:
    """The skip input of one residual Add."""

    add: str
    """Name of the Add."""
    main: str
    """Name of the convolution whose output is the other input."""
    source: str
    """The tensor that skips."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where quantisation may go in one graph."""

    convolutions: tuple[Convolution, ...]
    skips: tuple[Skip, ...]
    carriers: Mapping[str, str]
    """Tensor that is read in INT8 -> tensor that carries its Q/DQ pair; they differ across a max pooling."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """Every tensor that may carry a pair, in the graph's order."""
        sources = (*(c.source for c in self.convolutions), *(s.source for s in self.skips))
        return tuple(dict.fromkeys(self.carriers[source] for source in sources))

    @property
    def units(self) -> tuple[tuple[str, ...], ...]:
        """Names of convolutions that read the same tensor: all of them are in INT8, or none.

        A projection alone would have a pair to itself. TensorRT would gain nothing, and OpenVINO moves its
        stride over the pair, no longer sees it, and computes the projection in float.
        """
        units: dict[str, list[str]] = {}
        for convolution in self.convolutions:
            units.setdefault(convolution.source, []).append(convolution.name)
        return tuple(map(tuple, units.values()))


def place(model: onnx.ModelProto) -> Placement:
    """Find where Q/DQ pairs go.

    Raises:
        BundleError: the graph is quantised already, holds an operator that these rules do not know, a
            convolution of another kind than theirs or none at all, nodes that names do not tell apart, takes
            other input than ours, or adds what no residual block adds.

    """
    graph = _Graph(model.graph)
    graph.check()
    convolutions = tuple(
        Convolution(
            name=node.name,
            source=node.input[0],
            weight=node.input[1],
            bias=(*node.input[2:3], "")[0] or None,
        )
        for node in graph.of("Conv")
    )
    if not convolutions:
        raise BundleError("the model holds no convolution, so INT8 gains nothing; use it as it is")
    skips = tuple(graph.skip(node) for node in graph.of("Add"))
    read = (*(c.source for c in convolutions), *(s.source for s in skips))
    return Placement(convolutions, skips, {tensor: graph.carrier(tensor) for tensor in read})


class _Graph:
    """Look-ups in a graph: who makes a tensor, and who reads it."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = [port.name for port in graph.input if port.name not in self.weights]
        self.maker = {output: node for node in self.nodes for output in node.output}
        self.readers = Counter(name for node in self.nodes for name in node.input)

    def of(self, operator: str) -> Iterator[onnx.NodeProto]:
        return (node for node in self.nodes if node.op_type == operator)

    def check(self) -> None:
        found = {node.op_type: node.name for node in reversed(self.nodes)}
        if {"QuantizeLinear", "DequantizeLinear", "QLinearConv"} & found.keys():
            raise BundleError("model.onnx is quantised already; calibrate the FP32 model it was made from")
        unknown = sorted(found.keys() - KNOWN_OPERATORS)
        if unknown:
            raise BundleError(
                f"model.onnx holds {unknown[0]} ({found[unknown[0]]}), for which no rule of quantisation is "
                f"known here (known: {', '.join(sorted(KNOWN_OPERATORS))}); use it in FP32"
            )
        foreign = [node for node in self.nodes if node.domain not in ("", "ai.onnx")]
        if foreign:
            raise BundleError(
                f"{foreign[0].name} is an operator of {foreign[0].domain!r}, not of ONNX; export again"
            )
        if self.inputs != [INPUT]:
            raise BundleError(
                f"model.onnx takes {', '.join(self.inputs) or 'nothing'}, wanted {INPUT}; export again"
            )
        names = Counter(node.name for node in self.nodes)
        for name, count in names.items():
            if not name or count > 1:
                raise BundleError(f"{count} nodes of model.onnx have the name {name!r}; export again")
        for node in self.of("Conv"):
            self._check_convolution(node)

    def _check_convolution(self, node: onnx.NodeProto) -> None:
        """Insist on one group, and on constants that nobody else reads, since they are changed."""
        weight, *bias = node.input[1:3]
        for name in filter(None, (weight, *bias)):
            if name not in self.weights:
                kind, verb = ("weights", "are") if name == weight else ("bias", "is")
                raise BundleError(
                    f"the {kind} of {node.name} {verb} computed, wanted a constant; export again"
                )
            if self.readers[name] > 1:
                raise BundleError(f"{node.name} shares {name} with another node; export again")
        group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        tensor = self.weights[weight]
        if group != 1 or len(tensor.dims) != 4 or tensor.data_type != TensorProto.FLOAT:
            raise BundleError(
                f"{node.name} is a convolution in {group} groups with weights of {len(tensor.dims)} axes, "
                "wanted one group and FP32 weights of 4 axes; use the model in FP32"
            )

    def carrier(self, tensor: str) -> str:
        """Step back over a max pooling that is the only reader of its input."""
        maker = self.maker.get(tensor)
        if maker is not None and maker.op_type == "MaxPool" and self.readers[maker.input[0]] == 1:
            return str(maker.input[0])
        return tensor

    def skip(self, add: onnx.NodeProto) -> Skip:
        """Tell the skip input of an Add from the one that comes straight from a convolution."""
        makers = {name: self.maker.get(name) for name in add.input}
        straight = {
            name: maker for name, maker in makers.items() if maker is not None and maker.op_type == "Conv"
        }
        if len(straight) == 2:
            # Both end in a convolution: the projection reads the block's input, which others read too.
            straight = {n: maker for n, maker in straight.items() if self.readers[maker.input[0]] == 1}
        if len(straight) != 1 or self.weights.keys() & set(add.input):
            raise BundleError(
                f"{add.name} adds {' and '.join(add.input)}, wanted a convolution and a skip connection; "
                "use the model in FP32"
            )
        ((main, convolution),) = straight.items()
        (skip,) = (name for name in add.input if name != main)
        return Skip(add=add.name, main=convolution.name, source=skip)
