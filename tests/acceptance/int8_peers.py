"""Our INT8 against ONNX Runtime's `quantize_static` and NVIDIA ModelOpt, on the same chips and model.

    pip install --no-deps --target MODELOPT nvidia-modelopt==0.47 onnx-graphsurgeon onnxslim polygraphy \
        onnxconverter-common scipy omegaconf antlr4-python3-runtime==4.9.3 nvidia-ml-py pydantic \
        safetensors lief pulp
    python tests/acceptance/int8_peers.py MODEL.edgemodel --chips DIR [--held-out DIR] [--modelopt MODELOPT]

Not a test: it takes minutes, and its speeds want a quiet machine. Each of the three gets the FP32 model and
the same calibration chips, and is judged by the same gate on the same held-out chips. Of each peer all its
calibration methods are tried at their best settings in the form that TensorRT takes (symmetric int8, weights
by channel and stored as int8), and the best one counts, by agreement and then by the mean shift of
probabilities. Speed: OpenVINO as the peer's user would call it, and through the engine of `edge-infer run`,
in turns whose order rotates. Rates are medians; ratios are medians of those of one turn, which see the same
mood of the machine, and are given by processor time as well, which other work disturbs less.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import openvino

from edge_infer.bundle import INT8_MEMBER, MODEL_MEMBER, open_bundle
from edge_infer.engine.load import fill_slots, keep_full
from edge_infer.engine.openvino import DEFAULT_BATCH, OpenVinoEngine
from edge_infer_calibration.calibrate import CalibrateRequest, calibrate
from edge_infer_calibration.candidates import from_folders
from edge_infer_calibration.gate import Limits, judge, run_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from edge_infer_calibration.gate import Verdict

NO_LIMITS = Limits(agreement=0, recall_fall=1)
_SECONDS = 6.0
"""Of each turn of the speed test."""

MODELOPT = """
import sys, numpy as np
from modelopt.onnx.quantization import quantize
source, chips, method, out = sys.argv[1:]
quantize(source, quantize_mode="int8", calibration_data={"chips": np.load(chips)}, calibration_method=method,
         calibration_eps=["cpu"], high_precision_dtype="fp32", dq_only=True, output_path=out)
"""


def onnxruntime_models(source: Path, chips: NDArray[np.uint8], folder: Path) -> Iterator[tuple[str, bytes]]:
    """Quantise by ONNX Runtime, by each of its calibration methods."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter([{"chips": chips[k : k + 8]} for k in range(0, len(chips), 8)])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    # More bins, as a search among the 128 that it takes unasked, for 128 levels, has one candidate.
    settings: dict[str, tuple[CalibrationMethod, dict[str, Any]]] = {
        "MinMax": (CalibrationMethod.MinMax, {}),
        "Entropy": (CalibrationMethod.Entropy, {"num_bins": 2048}),
        "Entropy of 255 levels": (CalibrationMethod.Entropy, {"num_bins": 2048, "num_quantized_bins": 255}),
        "Percentile 99.99": (CalibrationMethod.Percentile, {"percentile": 99.99}),
        "Percentile 99.999": (CalibrationMethod.Percentile, {"percentile": 99.999}),
    }
    prepared = folder / "prepared.onnx"
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    head = [node.name for node in onnx.load(prepared).graph.node if node.op_type in ("Gemm", "Softmax")]
    operators = ["Conv", "Add", "MaxPool"]
    for name, (method, options) in settings.items():
        out, ranges = folder / "onnxruntime.onnx", folder / f"{name}.json"
        # By hand, since `quantize_static` hands on no number of bins.
        calibrator = create_calibrator(
            prepared, operators, str(folder / "augmented.onnx"), method,
            extra_options={"symmetric": True, **options},
        )  # fmt: skip
        calibrator.collect_data(Reader())
        save_tensors_data(calibrator.compute_data(), ranges)
        quantize_static(
            prepared, out, None,
            activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, per_channel=True,
            op_types_to_quantize=operators, nodes_to_exclude=head, calibrate_method=method,
            calibration_cache_path=ranges,
            extra_options={
                "ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False,
                "DedicatedQDQPair": True,
            },
        )  # fmt: skip
        yield f"ONNX Runtime, {name}", out.read_bytes()


def modelopt_models(
    source: Path, chips: NDArray[np.uint8], folder: Path, site: Path
) -> Iterator[tuple[str, bytes]]:
    """Quantise by ModelOpt, in a process of its own that finds it in `site`."""
    np.save(folder / "chips.npy", chips)
    for method in ("max", "entropy"):
        out = folder / f"modelopt-{method}.onnx"
        words = [sys.executable, "-c", MODELOPT, source, folder / "chips.npy", method, out]
        paths = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [str(word) for word in words], env={**os.environ, "PYTHONPATH": paths}, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            print(f"ModelOpt, {method}: {done.stderr.strip().splitlines()[-1]}")
            continue
        yield f"ModelOpt, {method}", out.read_bytes()


def plain_openvino(content: bytes, chips: NDArray[np.uint8]) -> Callable[[], int]:
    """Load a model as a user of OpenVINO would; the result runs chips for a turn, and counts them."""
    network = openvino.Core().read_model(io.BytesIO(content))
    network.reshape({"chips": list(chips.shape)})
    options = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}
    queue = openvino.AsyncInferQueue(openvino.Core().compile_model(network, "CPU", options))

    def turn() -> int:
        started, images = time.perf_counter(), 0
        while time.perf_counter() - started < _SECONDS:
            queue.start_async({0: chips})
            images += len(chips)
        queue.wait_all()
        return images

    return turn


def our_engine(content: bytes, chips: NDArray[np.uint8], classes: int) -> Callable[[], int]:
    """Load a model as `edge-infer run` does; the result runs chips for a turn, and counts them."""
    engine = OpenVinoEngine(
        content, chips.shape[1:], classes, batch=len(chips), precision="int8", why="peers"
    )
    slots = fill_slots(engine, chips)
    return lambda: len(keep_full(engine, slots, seconds=_SECONDS)) * len(chips)


def speeds(runs: Mapping[str, Callable[[], int]], turns: int) -> dict[str, NDArray[np.float64]]:
    """Images per second, and per second of processor time, of each in each turn, float64 (turns, 2).

    Who is first in one turn is last in the next.
    """
    found: dict[str, list[list[float]]] = {name: [] for name in runs}
    order = deque(runs)
    for name in order:  # nobody starts cold
        runs[name]()
    for _ in range(turns):
        for name in order:
            wall, work = time.perf_counter(), time.process_time()
            images = runs[name]()
            found[name].append([images / (time.perf_counter() - wall), images / (time.process_time() - work)])
        order.rotate(-1)
    return {name: np.array(rates) for name, rates in found.items()}


def speed(rates: NDArray[np.float64], ours: NDArray[np.float64]) -> str:
    """Three cells: median images/s, and how many times as fast ours is, turn by turn, by each clock."""
    by_wall, by_work = np.median(ours / rates, axis=0)
    return f"{np.median(rates[:, 0]):.0f} | {by_wall:.2f} | {by_work:.2f}"


def row(name: str, verdict: Verdict | None, accuracy: float, plain: str, engine: str, size: int) -> str:
    """A line of the table."""
    if verdict is None:
        return f"| {name} | {accuracy:.2%} | | | | | {plain} | {engine} | {size / 1e6:.1f} |"
    figures = verdict.figures
    worst = min(e["recall_change"]["value"] or 0 for e in figures["per_class"].values())
    return (
        f"| {name} | {accuracy:.2%} | {figures['agreement']:.2%} | {100 * worst:+.2f} | "
        f"{figures['mean_probability_shift']:.4f} | {figures['largest_probability_shift']:.3f} | "
        f"{plain} | {engine} | {size / 1e6:.1f} |"
    )


def main() -> None:
    """Do it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--chips", type=Path, nargs="+", required=True)
    parser.add_argument("--held-out", type=Path, nargs="*", default=[])
    parser.add_argument("--modelopt", type=Path)
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        compare(options, folder)


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Make all models, judge them, measure them, print the table."""
    bundle = open_bundle(options.bundle)
    shape, classes = bundle.manifest.contract.chip_shape, bundle.manifest.classes
    calibrate(
        CalibrateRequest(
            bundle=options.bundle, out=folder / "ours.edgemodel", chips=tuple(options.chips),
            held_out=tuple(options.held_out), count=options.count, limits=NO_LIMITS, overwrite=True,
        ),
        say=print,
    )  # fmt: skip
    ours = open_bundle(folder / "ours.edgemodel")
    facts = ours.read_json("calibration.json")
    names = {entry["name"] for entry in facts["chips"]["list"]}
    candidates = from_folders(options.chips, bundle.manifest)
    chosen = np.flatnonzero([name in names for name in candidates.name])
    held_out = from_folders(options.held_out, bundle.manifest) if options.held_out else candidates
    rows = np.flatnonzero([name not in names for name in held_out.name])
    assert held_out.targets is not None
    truth = held_out.targets[rows]

    def run(content: bytes) -> NDArray[np.float32]:
        return run_model(content, shape, len(classes), held_out.batches(rows), precision="int8")

    in_float = run(bundle.read(MODEL_MEMBER))

    def judged(content: bytes) -> tuple[Verdict, float]:
        found = run(content)
        verdict = judge(in_float, found, truth, classes, limits=NO_LIMITS)
        return verdict, float((found.argmax(axis=1) == truth).mean())

    source = folder / "model.onnx"
    source.write_bytes(bundle.read(MODEL_MEMBER))
    chips = candidates.read(chosen)
    peers = list(onnxruntime_models(source, chips, folder))
    if options.modelopt:
        peers += modelopt_models(source, chips, folder, options.modelopt)
    found = {name: (content, *judged(content)) for name, content in peers}
    ours_name = f"edge-infer, {facts['method']}{' with bias correction' * facts['bias_correction']}"
    best: dict[str, tuple[bytes, Verdict | None, float]] = {
        "FP32": (bundle.read(MODEL_MEMBER), None, float((in_float.argmax(axis=1) == truth).mean())),
        ours_name: (ours.read(INT8_MEMBER), *judged(ours.read(INT8_MEMBER))),
    }  # fmt: skip
    for peer in sorted({name.split(",")[0] for name in found}, reverse=True):
        of_peer = {name: entry for name, entry in found.items() if name.startswith(peer)}
        for name, (_, verdict, accuracy) in of_peer.items():
            print(f"{name}: accuracy {accuracy:.2%}, {verdict.describe()}")
        name = max(of_peer, key=lambda name: of_peer[name][1].rank[1:])
        best[name] = of_peer[name]
    batch = held_out.read(np.resize(rows, DEFAULT_BATCH))
    plain = speeds({name: plain_openvino(entry[0], batch) for name, entry in best.items()}, options.turns)
    engine = speeds(
        {name: our_engine(entry[0], batch, len(classes)) for name, entry in best.items()}, options.turns
    )
    print(f"\n{len(chosen)} calibration chips, {len(rows)} held-out chips; {json.dumps(facts['versions'])}\n")
    print(
        "| INT8 by | accuracy | agreement | worst recall | mean shift | largest | OpenVINO | ours is "
        "| by CPU | engine | ours is | by CPU | MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    for name, (content, outcome, accuracy) in best.items():
        by_itself, by_engine = (speed(rates[name], rates[ours_name]) for rates in (plain, engine))
        print(row(name, outcome, accuracy, by_itself, by_engine, len(content)))


if __name__ == "__main__":
    main()
