"""What tests of several parts share: real data, and a model whose answer can be computed another way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import TensorProto, helper

from edge_infer.bundle import write_bundle
from edge_infer.manifest import ChipContract, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real imagery and footprints that lie beside the checkout; skips where they are absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data (../shared/data) is not beside this checkout")
    return folder


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Write a bundle that calls a chip `bright` with probability mean / 255, else `dark`."""

    def make(contract: ChipContract | None = None, *, name: str = "brightness") -> Path:
        contract = contract or ChipContract(
            ground_metres=12, chip_pixels=16, bands=("red", "green", "blue"), coarsest_gsd_metres=2
        )
        manifest = Manifest(
            name=name,
            created="2025-06-01T12:00:00Z",
            architecture="mean",
            parameters=1,
            classes=("dark", "bright"),
            colors=("#222222", "#eeee22"),
            contract=contract,
            mean=(0.0,) * len(contract.bands),
            std=(255.0,) * len(contract.bands),
            temperature=1.0,
        )
        path = tmp_path / f"{name}.edgemodel"
        write_bundle(path, manifest, {"model.onnx": brightness_model(contract).SerializeToString()})
        return path

    return make


def brightness_model(contract: ChipContract) -> onnx.ModelProto:
    """Probability of `bright` = mean grey level / 255."""
    nodes = [
        helper.make_node("Cast", ["chips"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["levels"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("ReduceMean", ["mean"], ["grey"], axes=[1], keepdims=1),
        helper.make_node("Div", ["grey", "top"], ["bright"]),
        helper.make_node("Sub", ["one", "bright"], ["dark"]),
        helper.make_node("Concat", ["dark", "bright"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("chips", TensorProto.UINT8, ["N", *contract.chip_shape])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2])],
        [
            helper.make_tensor("top", TensorProto.FLOAT, [1], [255.0]),
            helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model
