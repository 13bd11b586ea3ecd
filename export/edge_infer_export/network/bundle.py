"""From a training run to a bundle: read the run, write the graph, hold it against PyTorch, pack.

A run folder holds

    model.pt          state dict of the network, tensors only
    train.json        name, classes, contract, normalisation, facts (see `Run`)
    evaluation.json   how the network fared on chips that it was not trained on (see `evaluation`)
    golden.npy        uint8 (n, S, S, C), chips that were not trained on
    sides.npy         which chips lay on which side (see `sides`); may be missing
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edge_infer.bundle import (
    EVALUATION_MEMBER,
    FP16_MEMBER,
    GOLDEN_CHIPS_MEMBER,
    GOLDEN_EXPECTED_MEMBER,
    MODEL_MEMBER,
    SIDES_MEMBER,
    Bundle,
    write_bundle,
)
from edge_infer.errors import OutputError, Refused
from edge_infer.manifest import ChipContract, Manifest
from edge_infer_export.evaluation.figures import EVALUATION_FILE, EVALUATION_FORMAT
from edge_infer_export.evaluation.sides import SIDES_FILE, Sides
from edge_infer_export.evaluation.thresholds import read_thresholds
from edge_infer_export.network.graph import Classifier, export_graph
from edge_infer_export.network.half import compare_half, half_graph
from edge_infer_export.network.parity import measure
from edge_infer_export.network.resnet import ResNet
from edge_infer_export.network.weights import load_state

if TYPE_CHECKING:
    import numpy.typing as npt

RUN_FORMAT = 1
"""Value of `format` in train.json; any other is refused."""

GOLDEN_CHIPS = 32
"""At most so many chips go into the bundle."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """A training run, read and checked."""

    manifest: Manifest
    network: ResNet
    evaluation: dict[str, Any]
    """What evaluation.json holds."""
    golden_chips: npt.NDArray[np.uint8]
    """Shape (n, S, S, C)."""
    sides: Sides | None
    """None where the run does not tell."""


def export_bundle(
    run: str | Path, out: str | Path, *, name: str | None = None, overwrite: bool = False
) -> Bundle:
    """Make a bundle of the network that a training run left behind.

    The thresholds of the evaluation stand in the manifest's facts too, beside the temperature: who reads the
    manifest alone can use both.

    The same chips go through PyTorch, ONNX Runtime and OpenVINO; the figures stand in the manifest's facts
    under `parity`. The FP16 twin of the graph goes in if it says the same (facts under `fp16`). Equal runs
    give equal bundles, byte by byte, on machines with the same libraries.

    Args:
        run: folder of the training run.
        out: the bundle to write, NAME.edgemodel.
        name: name of the model, if not the run's own.
        overwrite: replace `out` if it exists.

    Raises:
        Refused: the run is incomplete or damaged.
        OutputError: `out` exists, or cannot be written.
        EdgeInferError: the engines do not agree.

    """
    run, out = Path(run), Path(out)
    _check_place(out, overwrite=overwrite)
    trained = read_run(run, name=name)
    manifest = trained.manifest
    classifier = Classifier(
        trained.network, mean=manifest.mean, std=manifest.std, temperature=manifest.temperature
    )
    model_onnx = export_graph(classifier, manifest.contract.chip_shape)
    parity, expected = measure(classifier, model_onnx, trained.golden_chips)
    parity.require()
    half_onnx = half_graph(model_onnx)
    half = compare_half(model_onnx, half_onnx, trained.golden_chips)
    return write_bundle(
        out,
        replace(manifest, facts={**manifest.facts, "parity": parity.to_json(), "fp16": half.to_json()}),
        {
            MODEL_MEMBER: model_onnx,
            **({FP16_MEMBER: half_onnx} if half.passed else {}),
            EVALUATION_MEMBER: json.dumps(trained.evaluation, indent=1).encode() + b"\n",
            **({} if trained.sides is None else {SIDES_MEMBER: trained.sides.to_bytes()}),
            GOLDEN_CHIPS_MEMBER: _to_npy(trained.golden_chips),
            GOLDEN_EXPECTED_MEMBER: _to_npy(expected),
        },
    )


def _check_place(out: Path, *, overwrite: bool) -> None:
    if out.is_dir():
        raise OutputError(f"{out} is a folder; name a file, such as {out / 'model.edgemodel'}")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists; name another file or say --overwrite")
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent} is no folder; make it first")


def read_run(folder: Path, *, name: str | None = None) -> Run:
    """Read what a training left behind.

    Args:
        folder: of the run.
        name: name of the model, if not the run's own.

    Raises:
        Refused: the run is incomplete or damaged.

    """
    if not folder.is_dir():
        raise Refused(f"{folder} is no folder; wanted a training run, as `edge-infer train` makes it")
    path = folder / "train.json"
    try:
        values = json.loads(_read(path), parse_constant=_refuse_constant)
        if values["format"] != RUN_FORMAT:
            raise Refused(f"{path}: run format {values['format']!r}, wanted {RUN_FORMAT}; train again")
        contract = ChipContract.from_json(values["contract"])
        architecture = values["architecture"]
        blocks = tuple(int(count) for count in architecture["blocks"])
        width = int(architecture["width"])
        if len(blocks) != 4 or not all(1 <= count <= 64 for count in blocks) or not 1 <= width <= 512:
            raise Refused(f"{path}: no ResNet has blocks {blocks} and width {width}; train again")
        network = ResNet(len(values["classes"]), in_channels=len(contract.bands), blocks=blocks, width=width)
        manifest = Manifest(
            name=values["name"] if name is None else name,
            created=values["created"],
            architecture=_architecture_name(blocks, width),
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            classes=tuple(values["classes"]),
            colors=tuple(values["colors"]),
            contract=contract,
            mean=tuple(float(value) for value in values["mean"]),
            std=tuple(float(value) for value in values["std"]),
            temperature=float(values["temperature"]),
            facts={"training": dict(values["facts"])},
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Refused(f"{path} is incomplete or malformed: {error!r}; train again") from error
    _load_weights(network, folder / "model.pt")
    sides = folder / SIDES_FILE
    evaluation, thresholds = _read_evaluation(folder / EVALUATION_FILE, manifest.classes)
    return Run(
        manifest=replace(manifest, facts={**manifest.facts, "thresholds": thresholds}),
        network=network,
        evaluation=evaluation,
        golden_chips=_read_golden_chips(folder / "golden.npy", contract),
        sides=Sides.from_bytes(_read(sides), folder) if sides.exists() else None,
    )


def _read_evaluation(path: Path, classes: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read evaluation.json: all of it, and the thresholds of each class as plain JSON values."""
    try:
        values = json.loads(_read(path), parse_constant=_refuse_constant)
        found = dict(values)
        if found["format"] != EVALUATION_FORMAT:
            raise Refused(
                f"{path}: evaluation format {found['format']!r}, wanted {EVALUATION_FORMAT}; train again"
            )
        if tuple(found["per_class"]) != classes:
            raise Refused(
                f"{path} judges {', '.join(found['per_class'])}, wanted {', '.join(classes)}; train again"
            )
        thresholds = read_thresholds(found, classes)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Refused(f"{path} is incomplete or malformed: {error!r}; train again") from error
    return found, {label: chosen.to_json() for label, chosen in thresholds.items()}


def _architecture_name(blocks: tuple[int, ...], width: int) -> str:
    # Two convolutions a block, the first convolution and the last layer: 34 for (3, 4, 6, 3).
    layers = 2 * sum(blocks) + 2
    return f"ResNet{layers}" if width == 64 else f"ResNet{layers} of width {width}"


def _load_weights(network: ResNet, path: Path) -> None:
    state = load_state(path, "the model.pt that `edge-infer train` wrote; train again")
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise Refused(
                f"{path}: {name} has shape {found.get(name, 'none')}, wanted {wanted.get(name, 'none')} "
                "by train.json; train again"
            )
    network.load_state_dict(state)
    for name, tensor in network.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise Refused(f"{path}: {name} holds infinite numbers or none at all; train again")


def _read_golden_chips(path: Path, contract: ChipContract) -> npt.NDArray[np.uint8]:
    try:
        chips = np.load(io.BytesIO(_read(path)), allow_pickle=False)
    except (ValueError, EOFError, MemoryError) as error:
        raise Refused(f"{path} is no NumPy array ({error}); train again") from error
    if chips.dtype != np.uint8 or chips.shape[1:] != contract.chip_shape or len(chips) == 0:
        raise Refused(
            f"{path} is {chips.dtype} of shape {chips.shape}, wanted uint8 of shape (n, "
            f"{', '.join(map(str, contract.chip_shape))}) with n above 0; train again"
        )
    return np.ascontiguousarray(chips[:GOLDEN_CHIPS])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refused(
            f"{path} cannot be read ({error.strerror}); wanted a training run, as `edge-infer train` makes it"
        ) from error


def _to_npy(array: npt.NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")
