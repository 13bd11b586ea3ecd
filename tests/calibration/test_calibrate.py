"""The whole calibration: what lands in the bundle, what is refused, what is tried when INT8 fails."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

from edge_infer.bundle import CALIBRATION_MEMBER, INT8_MEMBER, MODEL_MEMBER, open_bundle, write_bundle
from edge_infer.cli import main
from edge_infer.engine.choose import choose_model
from edge_infer.errors import BundleError, EdgeInferError, EngineError, OutputError, Refused
from edge_infer_calibration.activations import observe
from edge_infer_calibration.calibrate import CalibrateRequest, calibrate
from edge_infer_calibration.cli_calibrate import METHOD_NAMES
from edge_infer_calibration.cli_calibrate import calibrate as command
from edge_infer_calibration.gate import Limits, run_model
from edge_infer_calibration.placement import place
from edge_infer_calibration.ranges import METHODS, find_ranges
from edge_infer_calibration.remedies import corrected_biases, divergence, sensitivity

if TYPE_CHECKING:
    from pathlib import Path

    from edge_infer.engine import Precision
    from edge_infer_calibration.activations import Activations

LOOSE = Limits(agreement=0.9, recall_fall=0.2)
"""For tests of what follows a pass: with few chips one flip is more than a per cent."""

Chips = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]


@pytest.fixture
def town(
    model: onnx.ModelProto,
    write_model: Callable[..., Path],
    write_chips: Callable[..., Path],
    imagery_chips: Chips,
) -> tuple[Path, Path]:
    """A bundle, and a folder of 140 chips."""
    return write_model(model), write_chips(*imagery_chips(140))


def unbalanced(model: onnx.ModelProto, factor: float = 400.0) -> onnx.ModelProto:
    """The same function with half the channels of a tensor `factor` times larger: no one scale holds both."""
    spoilt = onnx.ModelProto()
    spoilt.CopyFrom(model)
    tensors = {t.name: t for t in spoilt.graph.initializer}
    for name, at, times in (
        ("layer2.0.conv1.weight", slice(8), factor),
        ("layer2.0.conv1.bias", slice(8), factor),
        ("layer2.0.conv2.weight", (slice(None), slice(8)), 1 / factor),
    ):
        values = numpy_helper.to_array(tensors[name]).copy()
        values[at] *= times
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))
    return spoilt


def test_a_bundle_gets_int8_and_says_where_it_came_from(town: tuple[Path, Path], tmp_path: Path) -> None:
    path, chips = town
    before = open_bundle(path)
    sheet = tmp_path / "flips.png"
    done = calibrate(CalibrateRequest(bundle=path, chips=(chips,), count=64, sheet=sheet, limits=LOOSE))
    after = open_bundle(path)
    assert done.passed
    assert after.read(MODEL_MEMBER) == before.read(MODEL_MEMBER)
    facts = after.read_json(CALIBRATION_MEMBER)
    assert facts["int8"] == after.manifest.facts["int8"]["int8"] == "passed"
    assert facts["reason"] is None
    assert facts["fp32_sha256"] == sha256(before.read(MODEL_MEMBER)).hexdigest()
    assert [a["method"] for a in facts["attempts"][:4]] == list(METHODS)
    assert facts["attempts"][4]["bias_correction"]
    assert facts["gate"]["chips"] == 140 - 64
    listed = facts["chips"]["list"]
    assert len(listed) == 64
    with Image.open(listed[0]["name"]) as picture:
        first = np.asarray(picture)
    assert sha256(first.tobytes()).hexdigest() == listed[0]["sha256"]
    assert facts["chips"]["images"] == ["a.tif", "b.tif"]
    assert facts["chips"]["sensor"]["gsd_metres"] == [0.3, 0.5]
    # Of all candidates, not of those chosen by strata.
    assert sum(facts["input_histogram"]["bands"]["red"]) == 140 * 16 * 16
    per_class = facts["gate"]["per_class"]
    assert sum(entry["chips"] for entry in per_class.values()) == 76
    for entry in per_class.values():
        change = entry["recall"]["int8"] - entry["recall"]["fp32"]
        assert change == pytest.approx(entry["recall_change"]["value"])
    assert len(facts["gate"]["flipped"]) == facts["gate"]["flips"]
    model = onnx.load_from_string(after.read(INT8_MEMBER))
    scales = {t.name: float(numpy_helper.to_array(t)) for t in model.graph.initializer if t.dims == []}
    assert scales["relu.out.scale"] == pytest.approx(facts["ranges"]["relu.out"] / 127)
    for words in (
        "64 chips are few",
        "name others with --held-out",
        "limits were loosened",
        "were held out of",
    ):
        assert words in done.describe()
    assert facts["warnings"] == list(done.warnings)
    with Image.open(sheet) as picture:
        assert picture.width > 100
    assert choose_model(after, "auto")[:2] == (INT8_MEMBER, "int8")


def test_equal_requests_give_equal_models(town: tuple[Path, Path], tmp_path: Path) -> None:
    path, chips = town
    models = []
    for name in ("one", "two"):
        out = tmp_path / f"{name}.edgemodel"
        calibrate(
            CalibrateRequest(bundle=path, out=out, chips=(chips,), count=64, method="mse", limits=LOOSE)
        )
        models.append(open_bundle(out).read(INT8_MEMBER))
    assert models[0] == models[1]
    assert INT8_MEMBER not in open_bundle(path).members


def test_a_quantised_bundle_is_refused_unless_said_otherwise(town: tuple[Path, Path]) -> None:
    path, chips = town
    request = CalibrateRequest(bundle=path, chips=(chips,), count=64, method="minmax", limits=LOOSE)
    calibrate(request)
    with pytest.raises(BundleError, match="is quantised already; say --overwrite"):
        calibrate(request)
    again = replace(request, method="mse", overwrite=True)
    assert calibrate(again).best.recipe.method == "mse"


def test_the_most_sensitive_layer_stays_in_float_where_that_helps(
    model: onnx.ModelProto,
    write_model: Callable[..., Path],
    write_chips: Callable[..., Path],
    imagery_chips: Chips,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_model(unbalanced(model, 1e4))
    chips = write_chips(*imagery_chips(140))
    swept: list[NDArray[np.float32]] = []

    def watched(*arguments: Any) -> list[tuple[tuple[str, ...], float]]:
        swept.append(arguments[3])
        return sensitivity(*arguments)

    monkeypatch.setattr("edge_infer_calibration.calibrate.sensitivity", watched)
    done = calibrate(CalibrateRequest(bundle=path, chips=(chips,), count=64, method="minmax", limits=LOOSE))
    bundle = open_bundle(path)
    facts = bundle.read_json(CALIBRATION_MEMBER)
    assert done.passed
    # The sweep saw the calibration chips, none of the gate's.
    pictures = [np.asarray(Image.open(entry["name"])) for entry in facts["chips"]["list"]]
    known = run_model(bundle.read(MODEL_MEMBER), (32, 32, 3), 3, [np.stack(pictures)], precision="fp32")
    assert len(swept[0]) == 64
    assert all(np.abs(known - row).max(axis=1).min() < 1e-6 for row in swept[0])
    # Four methods and bias correction fail; then one layer in float is enough.
    assert [attempt["passed"] for attempt in facts["attempts"]] == [False] * 5 + [True]
    assert max(facts["sensitivity"], key=facts["sensitivity"].__getitem__) == "layer2.0.conv2"
    assert facts["in_float"] == ["layer2.0.conv2"]
    assert "layer2.0.conv2 in float" in done.describe()


def test_where_nothing_passes_the_bundle_says_so_and_float_runs(town: tuple[Path, Path]) -> None:
    path, chips = town
    request = CalibrateRequest(
        bundle=path, chips=(chips,), count=64, method="minmax", limits=Limits(agreement=1.0)
    )
    spoilt = open_bundle(path)
    model = unbalanced(onnx.load_from_string(spoilt.read(MODEL_MEMBER)), 1e5)
    for name in ("layer1.0", "layer2.1", "layer3.0", "layer4.0"):
        tensors = {t.name: t for t in model.graph.initializer}
        for tensor, at, times in (
            (f"{name}.conv1.weight", (0,), 1e5),
            (f"{name}.conv1.bias", (0,), 1e5),
            (f"{name}.conv2.weight", (slice(None), 0), 1e-5),
        ):
            values = numpy_helper.to_array(tensors[tensor]).copy()
            values[at] *= times
            tensors[tensor].CopyFrom(numpy_helper.from_array(values, tensor))
    write_bundle(path, spoilt.manifest, {MODEL_MEMBER: model.SerializeToString()})
    done = calibrate(request)
    bundle = open_bundle(path)
    assert not done.passed
    assert INT8_MEMBER not in bundle.members
    facts = bundle.read_json(CALIBRATION_MEMBER)
    assert facts["int8"] == "rejected"
    assert "wanted 100.00%" in facts["reason"]
    assert {a["method"] for a in facts["attempts"]} == set(METHODS)
    assert facts["sensitivity"]
    member, precision, why = choose_model(bundle, "auto")
    assert (member, precision) == (MODEL_MEMBER, "fp32")
    assert "INT8 did not pass its gate (INT8 and FP32 name the same class" in why
    with pytest.raises(EngineError, match="cannot run in INT8: INT8 did not pass its gate"):
        choose_model(bundle, "int8")
    assert "int8 rejected" in done.describe()


def test_bias_correction_takes_off_the_shift_of_the_mean(
    model: onnx.ModelProto, activations: Activations, imagery_chips: Chips
) -> None:
    """Held against the means that ONNX Runtime gives, for the convolution without padding."""
    placement = place(model)
    biases = corrected_biases(model, placement, activations)
    name = "layer2.0.downsample.0"
    assert biases.keys() == {c.name for c in placement.convolutions}
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    scale = np.abs(weight).reshape(len(weight), -1).max(axis=1) / 127
    rounded = np.rint(weight / scale[:, None, None, None]) * scale[:, None, None, None]
    (convolution,) = (c for c in placement.convolutions if c.name == name)
    means = activations.inputs[convolution.source].means
    # Output means of a 1 x 1 convolution follow from its input's means.
    exact = weight[:, :, 0, 0] @ means + bias
    np.testing.assert_allclose(rounded[:, :, 0, 0] @ means + biases[name], exact, atol=1e-5)
    assert np.abs(rounded[:, :, 0, 0] @ means + bias - exact).max() > 1e-4


def test_the_sweep_finds_the_layer_that_was_spoilt(model: onnx.ModelProto, imagery_chips: Chips) -> None:
    spoilt = unbalanced(model, 1e4)
    chips, _ = imagery_chips(32)
    placement = place(spoilt)
    ranges = find_ranges(observe(spoilt, placement, [chips]).histograms, "minmax")

    def run(content: bytes) -> np.ndarray:
        return run_model(content, (32, 32, 3), 3, [chips], precision="int8")

    said: list[str] = []
    found = sensitivity(spoilt, placement, ranges, run(spoilt.SerializeToString()), run, said.append)
    assert found[0][0] == ("layer2.0.conv2",)
    assert found[0][1] > 3 * found[1][1]
    assert len(said) == len(found) == len(placement.units)


def test_divergence_is_zero_only_for_equals() -> None:
    p = np.array([[0.2, 0.8], [0.5, 0.5]], np.float32)
    assert divergence(p, p) == 0
    assert divergence(p, p[::-1]) > 0.1


# --- bad input ---


def test_an_unknown_operator_names_the_bundle(
    model: onnx.ModelProto,
    write_model: Callable[..., Path],
    write_chips: Callable[..., Path],
    imagery_chips: Chips,
) -> None:
    strange = onnx.ModelProto()
    strange.CopyFrom(model)
    next(n for n in strange.graph.node if n.name == "relu").op_type = "Softplus"
    path = write_model(strange)
    with pytest.raises(BundleError, match=r"small.edgemodel: model.onnx holds Softplus \(relu\)"):
        calibrate(CalibrateRequest(bundle=path, chips=(write_chips(*imagery_chips(70)),), count=32))


def test_a_model_that_is_quantised_itself_is_refused(
    quantised: onnx.ModelProto, write_model: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=r"model\.onnx is quantised already"):
        calibrate(CalibrateRequest(bundle=write_model(quantised), chips=(tmp_path,), count=32))


def test_infinite_activations_leave_the_bundle_alone(
    model: onnx.ModelProto,
    write_model: Callable[..., Path],
    write_chips: Callable[..., Path],
    imagery_chips: Chips,
) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    tensor = next(t for t in broken.graph.initializer if t.name == "layer3.0.conv1.weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e38), tensor.name))
    path = write_model(broken)
    content = path.read_bytes()
    with pytest.raises(BundleError, match=r"tensor layer3\.0\.relu1\.out holds infinite values"):
        calibrate(CalibrateRequest(bundle=path, chips=(write_chips(*imagery_chips(70)),), count=32))
    assert path.read_bytes() == content


@pytest.mark.parametrize(("count", "asked"), [(40, 32), (63, 64)])
def test_too_few_chips(
    model: onnx.ModelProto,
    write_model: Callable[..., Path],
    write_chips: Callable[..., Path],
    imagery_chips: Chips,
    count: int,
    asked: int,
) -> None:
    folder = write_chips(*imagery_chips(count))
    with pytest.raises(Refused, match=rf"{count} chips are too few .* wanted 64 at least"):
        calibrate(CalibrateRequest(bundle=write_model(model), chips=(folder,), count=asked))


def test_chips_of_another_contract_or_other_classes(
    model: onnx.ModelProto,
    write_model: Callable[..., Path],
    write_chips: Callable[..., Path],
    imagery_chips: Chips,
) -> None:
    path = write_model(model)
    contract = open_bundle(path).manifest.contract
    chips, classes = imagery_chips(70)
    other = write_chips(chips, classes, name="other", contract=replace(contract, ground_metres=40.0))
    with pytest.raises(Refused, match=r"another contract .*ground_metres 40\.0, wanted 16\.0"):
        calibrate(CalibrateRequest(bundle=path, chips=(other,), count=32))
    named = write_chips(chips, classes, name="named", names=("x", "y", "z"))
    with pytest.raises(Refused, match="the chips have the classes x, y, z, the model has dark"):
        calibrate(CalibrateRequest(bundle=path, chips=(named,), count=32))


def test_random_chips_are_refused(
    model: onnx.ModelProto, write_model: Callable[..., Path], write_chips: Callable[..., Path]
) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (70, 32, 32, 3)).astype(np.uint8)
    folder = write_chips(noise, rng.integers(0, 3, 70))
    with pytest.raises(Refused, match="are noise"):
        calibrate(CalibrateRequest(bundle=write_model(model), chips=(folder,), count=32))


def test_held_out_chips_never_serve_twice(
    town: tuple[Path, Path], write_chips: Callable[..., Path], imagery_chips: Chips
) -> None:
    path, chips = town
    with pytest.raises(Refused, match="chips are held out for the gate, wanted 32"):
        calibrate(CalibrateRequest(bundle=path, chips=(chips,), held_out=(chips,), count=140))
    other = write_chips(*imagery_chips(50, seed=8), name="held out")
    done = calibrate(
        CalibrateRequest(
            bundle=path, chips=(chips,), held_out=(other,), count=140, method="mse", limits=LOOSE
        )
    )
    assert done.best.verdict.figures["chips"] == 50


def test_requests_that_contradict_themselves(tmp_path: Path) -> None:
    bundle = tmp_path / "m.edgemodel"
    for wrong, words in (
        ({}, "give --chips, or --imagery"),
        ({"chips": (tmp_path,), "imagery": (tmp_path,), "footprints": tmp_path}, "not both"),
        ({"imagery": (tmp_path,)}, "belong together"),
        ({"chips": (tmp_path,), "count": 20}, "20 calibration chips are too few"),
        ({"chips": (tmp_path,), "count": 5001}, "5001 calibration chips are more than the 5000"),
        ({"chips": (tmp_path,), "label_field": "grade"}, "--label-field belong to --footprints"),
        ({"chips": (tmp_path,), "where": "a = 1"}, "belong to --footprints"),
        ({"chips": (tmp_path,), "layer": "houses"}, "belong to --footprints"),
        ({"chips": (tmp_path,), "classes": {"1": "dark"}}, "name it with --label-field"),
        ({"imagery": (tmp_path,), "footprints": tmp_path, "ignore_labels": ("9",)}, "with --label-field"),
    ):
        with pytest.raises(Refused, match=words):
            CalibrateRequest(bundle=bundle, **wrong)


def test_outputs_are_refused_before_a_chip_is_read(town: tuple[Path, Path], tmp_path: Path) -> None:
    path, _ = town
    (tmp_path / "there.edgemodel").write_bytes(b"mine")
    (tmp_path / "folder.png").mkdir()
    for wrong, words in (
        ({"out": tmp_path / "there.edgemodel"}, r"there\.edgemodel exists"),
        ({"out": tmp_path, "overwrite": True}, "is a folder, wanted a file"),
        ({"out": tmp_path / "no" / "new.edgemodel"}, "is no folder; make it first"),
        ({"sheet": tmp_path / "no" / "f.png"}, "is no folder; make it first"),
        ({"sheet": tmp_path / "flips"}, "is no name of a picture"),
        ({"sheet": tmp_path / "flips.txt"}, "is no name of a picture"),
        ({"sheet": tmp_path / "folder.png"}, "is no name of a picture"),
    ):
        with pytest.raises(OutputError, match=words):
            calibrate(CalibrateRequest(bundle=path, chips=(tmp_path / "none",), **wrong))


def test_a_picture_that_fails_does_not_cost_the_bundle(
    town: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, chips = town

    def fail(*_: object) -> None:
        raise OutputError("flips.png cannot be written: the disk is full")

    monkeypatch.setattr("edge_infer_calibration.calibrate.draw_flips", fail)
    request = CalibrateRequest(
        bundle=path, chips=(chips,), count=64, method="minmax", limits=LOOSE, sheet=tmp_path / "flips.png"
    )
    with pytest.raises(EdgeInferError, match=r"small\.edgemodel is written, but: flips\.png") as failed:
        calibrate(request)
    assert failed.value.exit_code == 1
    assert INT8_MEMBER in open_bundle(path).members


def test_chips_that_flip_are_named(
    model: onnx.ModelProto,
    write_model: Callable[..., Path],
    write_chips: Callable[..., Path],
    imagery_chips: Chips,
) -> None:
    path = write_model(unbalanced(model, 300.0))
    chips = write_chips(*imagery_chips(140))
    request = CalibrateRequest(
        bundle=path, chips=(chips,), count=64, method="minmax", limits=Limits(agreement=0, recall_fall=1)
    )
    calibrate(request)
    bundle = open_bundle(path)
    gate = bundle.read_json(CALIBRATION_MEMBER)["gate"]
    flipped = gate["flipped"]
    assert 0 < len(flipped) == gate["flips"]
    assert [entry["shift"] for entry in flipped] == sorted((e["shift"] for e in flipped), reverse=True)
    pictures = np.stack([np.asarray(Image.open(entry["name"])) for entry in flipped])
    classes = bundle.manifest.classes
    pairs: tuple[tuple[str, Precision], ...] = ((MODEL_MEMBER, "fp32"), (INT8_MEMBER, "int8"))
    for member, precision in pairs:
        found = run_model(bundle.read(member), (32, 32, 3), 3, [pictures], precision=precision)
        assert [classes[k] for k in found.argmax(axis=1)] == [entry[precision] for entry in flipped]


def test_a_full_disk_leaves_the_old_bundle_whole(town: tuple[Path, Path]) -> None:
    """A real limit on the size of files, in a process of its own: the new bundle breaks off half-way."""
    path, chips = town
    content = path.read_bytes()

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2,) * 2)

    words = ("calibrate", str(path), "--chips", str(chips), "--count", "64", "--method", "minmax", "-q")
    done = subprocess.run(
        [sys.executable, "-c", f"from edge_infer.cli import main; main({list(words)!r})"],
        preexec_fn=limit, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert f"cannot write {path}" in done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir() if "partial" in p.name] == []


# --- straight from imagery, and the command ---


def test_straight_from_imagery_with_and_without_labels(
    model: onnx.ModelProto, write_model: Callable[..., Path], scene: tuple[Path, Path]
) -> None:
    raster, houses = scene
    path = write_model(model)
    common = {"bundle": path, "imagery": (raster,), "footprints": houses, "count": 64, "method": "minmax"}
    calibrate(CalibrateRequest(**common, limits=Limits(agreement=0, recall_fall=1)))  # type: ignore[arg-type]
    facts = open_bundle(path).read_json(CALIBRATION_MEMBER)
    assert facts["gate"]["truth"] == "fp32"
    assert facts["chips"]["candidates"] == 200
    assert facts["chips"]["list"][0]["name"].startswith(f"{raster}#")
    labelled = CalibrateRequest(
        **common,  # type: ignore[arg-type]
        label_field="grade",
        classes={"1": "dark", "2": "middling", "3": "bright"},
        overwrite=True,
        limits=Limits(agreement=0, recall_fall=1),
    )
    calibrate(labelled)
    facts = open_bundle(path).read_json(CALIBRATION_MEMBER)
    assert facts["gate"]["truth"] == "labels"
    assert facts["chips"]["candidates"] == 150  # the others have no label
    with pytest.raises(Refused, match="grade holds the class ruined"):
        calibrate(
            CalibrateRequest(
                **common,  # type: ignore[arg-type]
                label_field="grade",
                classes={"1": "dark", "2": "ruined", "3": "bright"},
                overwrite=True,
            )
        )


def test_chips_from_imagery_are_those_that_run_cuts(
    model: onnx.ModelProto, write_model: Callable[..., Path], scene: tuple[Path, Path], tmp_path: Path
) -> None:
    from edge_infer_calibration.candidates import from_imagery
    from edge_infer_export.chips.cut import ChipsRequest, cut_chips
    from edge_infer_export.chips.dataset import read_chips
    from edge_infer_export.chips.pairs import Pair

    raster, houses = scene
    manifest = open_bundle(write_model(model)).manifest
    ours = from_imagery((raster,), houses, manifest, tmp_path, most=1000, seed=0)
    cut_chips(
        ChipsRequest(
            pairs=(Pair(imagery=(raster,), footprints=houses, label_field="grade"),), out=tmp_path / "cut",
            classes={"1": "a", "2": "b", "3": "c"}, ground_metres=16, chip_pixels=32,
        ),
        quiet=True,
    )  # fmt: skip
    theirs = read_chips([tmp_path / "cut"])
    fids = {int(name.rsplit("#")[1]): row for row, name in enumerate(ours.name)}
    rows = np.array([fids[fid] for fid in theirs.source_fid.tolist()])
    np.testing.assert_array_equal(ours.read(rows), theirs.read(np.arange(len(theirs))))


def test_the_command_says_what_it_did_and_exits_so(town: tuple[Path, Path]) -> None:
    path, chips = town
    words = [str(path), "--chips", str(chips), "--count", "64", "--method", "percentile"]
    words += ["--min-agreement", "0.9", "--max-recall-fall", "20"]
    done = CliRunner().invoke(command, words, standalone_mode=False)
    assert done.exception is None
    assert done.return_value == 0
    assert "int8 passed: percentile" in done.output
    assert "passed: percentile: agreement" in done.stderr
    with pytest.raises(SystemExit) as stopped:
        main(["calibrate", *words])
    assert stopped.value.code == 2


def test_the_command_knows_every_method() -> None:
    assert set(METHOD_NAMES) == {"auto", *METHODS}


def test_info_prints_where_int8_came_from(town: tuple[Path, Path]) -> None:
    from edge_infer.info import describe_file, describe_lines

    path, chips = town
    calibrate(CalibrateRequest(bundle=path, chips=(chips,), count=64, method="minmax", limits=LOOSE))
    facts = describe_file(path)
    assert any("were held out of" in warning for warning in facts["calibration"]["warnings"])
    assert facts["calibration"]["method"] == "minmax"
    json.dumps(facts)
    text = "\n".join(describe_lines(facts))
    assert "int8      passed: minmax" in text
    assert "64 chips of 2 images" in text
    for words in ("limits were loosened", "name others with --held-out", "were held out of"):
        assert words in text
