"""The same labels, whatever the batch, the threads, or the point of resume; probabilities to 1e-5."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from edge_infer.bundle import open_bundle, write_bundle
from edge_infer.manifest import ChipContract, Manifest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CLASSES = ("intact", "damaged", "gone")
CHIP = 32


def residual_network() -> bytes:
    """A small residual network of random weights, as ResNet has it: stem, two blocks, mean, one layer."""
    rng = np.random.default_rng(34)
    nodes, weights = [], {}

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(name: str, values: Any) -> str:
        weights[name] = np.asarray(values)
        return name

    def convolve(entry: str, name: str, channels: tuple[int, int], size: int, stride: int) -> str:
        spread = (2 / (channels[0] * size * size)) ** 0.5
        kernel = rng.normal(0, spread, (channels[1], channels[0], size, size)).astype(np.float32)
        bias = rng.normal(0, 0.1, channels[1]).astype(np.float32)
        inputs = [entry, constant(f"{name} kernel", kernel), constant(f"{name} bias", bias)]
        return add("Conv", inputs, name, strides=[stride] * 2, pads=[size // 2] * 4)

    def block(entry: str, name: str, channels: tuple[int, int], stride: int) -> str:
        inner = add("Relu", [convolve(entry, f"{name} a", channels, 3, stride)], f"{name} relu")
        inner = convolve(inner, f"{name} b", (channels[1], channels[1]), 3, 1)
        skip = convolve(entry, f"{name} skip", channels, 1, stride)
        return add("Relu", [add("Add", [inner, skip], f"{name} sum")], name)

    levels = add("Cast", ["chips"], "levels", to=onnx.TensorProto.FLOAT)
    scaled = add("Sub", [levels, constant("mean", np.float32(120))], "centred")
    scaled = add("Div", [scaled, constant("std", np.float32(60))], "scaled")
    stem = convolve(add("Transpose", [scaled], "planes", perm=[0, 3, 1, 2]), "stem", (3, 16), 7, 2)
    last = block(block(add("Relu", [stem], "stem relu"), "one", (16, 32), 2), "two", (32, 64), 2)
    pooled = add("Flatten", [add("GlobalAveragePool", [last], "pooled")], "features")
    layer = constant("layer", rng.normal(0, 3.0, (64, len(CLASSES))).astype(np.float32))
    add("Softmax", [add("MatMul", [pooled, layer], "logits")], "probabilities", axis=1)
    float_type = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "residual",
        [onnx.helper.make_tensor_value_info("chips", onnx.TensorProto.UINT8, ["N", CHIP, CHIP, 3])],
        [onnx.helper.make_tensor_value_info("probabilities", float_type, ["N", len(CLASSES)])],
        [onnx.numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


@pytest.fixture
def residual_bundle(tmp_path: Path) -> Path:
    """Its window is 16 m, 32 pixels of 0.5 m: where a house lies on whole pixels, a chip is a plain copy."""
    contract = ChipContract(
        ground_metres=16, chip_pixels=CHIP, bands=("red", "green", "blue"), coarsest_gsd_metres=1
    )
    manifest = Manifest(
        name="residual", created="2025-06-01T12:00:00Z", architecture="residual", parameters=100_000,
        classes=CLASSES, colors=("#1a9850", "#fee08b", "#d73027"), contract=contract, mean=(120.0,) * 3,
        std=(60.0,) * 3, temperature=1.0,
    )  # fmt: skip
    path = tmp_path / "residual.edgemodel"
    write_bundle(path, manifest, {"model.onnx": residual_network()})
    return path


def results(path: Path) -> tuple[list[tuple[Any, ...]], np.ndarray[Any, Any]]:
    """What must be equal, and the probabilities (n, K), NaN where there are none."""
    names = ", ".join(f'"p_{name}"' for name in CLASSES)
    with closing(sqlite3.connect(path)) as database:
        plain = database.execute(
            "SELECT fid, status, class_label, reason, valid_fraction, covered_fraction, image, gsd_m"
            " FROM houses ORDER BY fid"
        ).fetchall()
        p = database.execute(f"SELECT {names} FROM houses ORDER BY fid").fetchall()
    return plain, np.array(p, dtype=float)


def test_neither_batch_nor_threads_nor_resuming_change_a_result(
    town: Any, residual_bundle: Path, run_warm: Callable[..., list[dict[str, Any]]]
) -> None:
    town.inputs[town.inputs.index("--model") + 1] = str(residual_bundle)
    stop = {"signal": signal.SIGTERM, "point": "edge_infer.results:Results.commit", "after": True}
    ways: dict[str, tuple[list[str], int | None]] = {
        "reference": ([], None),
        "same": ([], None),
        **{f"batch {batch}": (["--batch", str(batch)], None) for batch in (1, 64)},
        **{f"threads {threads}": (["--threads", str(threads)], None) for threads in (1, 8)},
        **{f"resumed {call}": ([], call) for call in (2, 20)},
        "resumed otherwise": (["--batch", "5", "--threads", "1"], 7),
    }
    outs = {name: town.folder / f"{name}.gpkg" for name in ways}
    cases = []
    for name, (options, call) in ways.items():
        strikes = [] if call is None else [{**stop, "call": call}]
        own = [] if name == "resumed otherwise" else options
        cases.append(town.case(outs[name], *own, strikes=strikes))
    statuses = [outcome["status"] for outcome in run_warm(cases)]
    assert statuses == [0 if call is None else 4 for _, call in ways.values()]
    stopped = [name for name, (_, call) in ways.items() if call is not None]
    resumed = run_warm([town.case(outs[name], "--resume", *ways[name][0]) for name in stopped])
    assert {outcome["status"] for outcome in resumed} == {0}

    plain, p = results(outs["reference"])
    assert len({row[2] for row in plain}) >= 3  # two classes, and rows that have none
    assert np.nanstd(p, axis=0).max() > 0.05
    for name, out in outs.items():
        again, p_again = results(out)
        assert again == plain, name
        np.testing.assert_allclose(p_again, p, rtol=0, atol=1e-5, err_msg=name)


def test_probabilities_are_those_of_another_engine(
    tmp_path: Path, town: Any, residual_bundle: Path, run_warm: Callable[..., list[dict[str, Any]]]
) -> None:
    """ONNX Runtime, on windows that rasterio cuts on whole pixels."""
    import onnxruntime
    import pyogrio.raw
    import shapely

    with rasterio.open(town.inputs[town.inputs.index("--imagery") + 1]) as dataset:
        assert dataset.transform == from_origin(360_000, 4_100_000, 0.5, 0.5)
        rng = np.random.default_rng(7)
        corners = rng.integers(0, 800 - CHIP, (200, 2))
        chips = np.stack(
            [
                dataset.read(window=Window(*map(int, corner), CHIP, CHIP)).transpose(1, 2, 0)
                for corner in corners
            ]
        )
    x, y = 360_000 + (corners[:, 0] + CHIP / 2) / 2, 4_100_000 - (corners[:, 1] + CHIP / 2) / 2
    houses, out = tmp_path / "on pixels.gpkg", town.folder / "out.gpkg"
    pyogrio.raw.write(
        houses, shapely.to_wkb(shapely.box(x - 4, y - 4, x + 4, y + 4)), field_data=[np.arange(len(x))],
        fields=np.array(["number"]), geometry_type="Polygon", crs="EPSG:32615", layer="houses",
    )  # fmt: skip
    town.inputs[town.inputs.index("--model") + 1] = str(residual_bundle)
    town.inputs[town.inputs.index("--footprints") + 1] = str(houses)
    (outcome,) = run_warm([town.case(out)])
    assert outcome["status"] == 0, outcome["stderr"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        open_bundle(residual_bundle).read("model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    (expected,) = session.run(["probabilities"], {"chips": chips})
    _, p = results(out)
    # UTM metres are not quite true ones (0.1 % here): a window is not 32 pixels to the last digit.
    np.testing.assert_allclose(p, expected, rtol=0, atol=0.05)
    assert (p.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.97
