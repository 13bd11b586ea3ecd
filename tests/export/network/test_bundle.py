from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from edge_infer.bundle import open_bundle
from edge_infer.errors import EdgeInferError, OutputError, Refused
from edge_infer_export.cli_export import export as export_command
from edge_infer_export.network import bundle as export_module
from edge_infer_export.network.bundle import export_bundle
from edge_infer_export.network.graph import Classifier
from edge_infer_export.network.parity import Parity, run_onnxruntime, run_pytorch

if TYPE_CHECKING:
    from pathlib import Path


def test_bundle_holds_the_trained_network(run, tmp_path, make_network, make_chips, evaluation, train_json):
    bundle = export_bundle(run, tmp_path / "town.edgemodel")
    manifest = bundle.manifest
    assert manifest.name == "town"
    assert manifest.contract.to_json() == train_json["contract"]
    assert manifest.classes == ("burnt", "intact", "unclear")
    assert manifest.architecture == "ResNet12 of width 8"
    assert manifest.parameters == sum(parameter.numel() for parameter in make_network().parameters())
    assert manifest.facts["training"] == {"epochs": 3}
    assert manifest.facts["parity"]["chips"] == 32
    assert max(manifest.facts["parity"]["max_difference"].values()) < 1e-5
    assert bundle.read_json("evaluation.json") == evaluation.to_json()
    assert manifest.facts["thresholds"]["intact"] == {"high_precision": 0.9, "high_recall": 0.2}

    chips, expected = bundle.golden()
    np.testing.assert_array_equal(chips, make_chips(count=40)[:32])
    np.testing.assert_array_equal(expected, run_onnxruntime(bundle.read("model.onnx"), chips))
    classifier = Classifier(make_network(), mean=manifest.mean, std=manifest.std, temperature=1.5)
    np.testing.assert_allclose(expected, run_pytorch(classifier, chips), rtol=0, atol=1e-5)


def test_equal_runs_give_equal_bundles(run, tmp_path):
    first = export_bundle(run, tmp_path / "first.edgemodel")
    second = export_bundle(run, tmp_path / "second.edgemodel")
    assert first.sha256 == second.sha256


def test_name_and_overwrite(run, tmp_path):
    out = tmp_path / "town.edgemodel"
    export_bundle(run, out)
    with pytest.raises(OutputError, match="exists; name another file or say --overwrite"):
        export_bundle(run, out, name="other")
    assert open_bundle(out).manifest.name == "town"
    assert export_bundle(run, out, name="other", overwrite=True).manifest.name == "other"


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        (((3, 4, 6, 3), 64), "ResNet34"),
        (((2, 2, 2, 2), 64), "ResNet18"),
        (((1, 1, 1, 1), 16), "ResNet10 of width 16"),
    ],
)
def test_architecture_is_named_as_in_the_literature(architecture, name):
    assert export_module._architecture_name(*architecture) == name


def refusal(run: Path, out: Path, kind: type[EdgeInferError] = Refused) -> str:
    with pytest.raises(kind) as caught:
        export_bundle(run, out)
    assert "\n" not in str(caught.value)
    assert not out.is_file()
    return str(caught.value)


def test_no_such_run(tmp_path):
    assert "is no folder" in refusal(tmp_path / "nowhere", tmp_path / "town.edgemodel")


@pytest.mark.parametrize("name", ["model.pt", "train.json", "evaluation.json", "golden.npy"])
def test_a_missing_file(run, tmp_path, name):
    (run / name).unlink()
    assert f"{run / name} cannot be read" in refusal(run, tmp_path / "town.edgemodel")


@pytest.mark.parametrize("size", [0, 100, 5000, -1])
def test_a_cut_off_checkpoint(run, tmp_path, size):
    path = run / "model.pt"
    path.write_bytes(path.read_bytes()[:size])
    assert "model.pt is damaged" in refusal(run, tmp_path / "town.edgemodel")


def test_a_flipped_bit_of_the_checkpoint(run, tmp_path):
    """PyTorch itself would load it, and the bundle would hold other weights than were judged."""
    path = run / "model.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "model.pt is damaged (checksum of " in refusal(run, tmp_path / "town.edgemodel")


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("a pickle was run",))


@pytest.mark.parametrize("content", [Malicious(), {"conv1.weight": 5}, [1, 2]])
def test_a_checkpoint_of_anything_else(run, tmp_path, content, capsys):
    torch.save(content, run / "model.pt")
    assert "wanted the model.pt that `edge-infer train` wrote" in refusal(run, tmp_path / "town.edgemodel")
    assert "a pickle was run" not in capsys.readouterr().out


def test_a_checkpoint_of_another_network(run, tmp_path, make_network):
    torch.save(make_network(classes=2).state_dict(), run / "model.pt")
    message = refusal(run, tmp_path / "town.edgemodel")
    assert "fc.bias has shape (2,), wanted (3,)" in message


def test_a_diverged_training(run, tmp_path, make_network):
    state = make_network().state_dict()
    state["fc.bias"][1] = torch.nan
    torch.save(state, run / "model.pt")
    assert "fc.bias holds infinite numbers or none" in refusal(run, tmp_path / "town.edgemodel")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "run format 2, wanted 1"),
        ({"architecture": {"blocks": [3, 4, 6], "width": 64}}, "no ResNet"),
        ({"architecture": {"blocks": [3, 4, 6, 3], "width": 10**9}}, "no ResNet"),
        ({"architecture": None}, "malformed"),
        ({"contract": {}}, "chip contract"),
        ({"classes": ["burnt", "burnt", "intact"]}, "class names must differ"),
        ({"colors": ["red", "green", "blue"]}, "colour 'red'"),
        ({"mean": [1.0]}, "mean must hold one number"),
        ({"mean": "no"}, "malformed"),
        ({"name": 5}, "malformed"),
        ({"name": "x"}, "model name"),
        ({"facts": {"loss": float("nan")}}, "NaN is no JSON number"),
    ],
)
def test_a_malformed_description(run, tmp_path, train_json, changes, message):
    (run / "train.json").write_text(json.dumps({**train_json, **changes}))
    assert message in refusal(run, tmp_path / "town.edgemodel")


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_description_that_is_no_object(run, tmp_path, content):
    (run / "train.json").write_text(content)
    assert "malformed" in refusal(run, tmp_path / "town.edgemodel")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 7}, "evaluation format 7, wanted 1"),
        ({"per_class": {"burnt": {}}}, "judges burnt, wanted burnt, intact, unclear"),
        ({"per_class": None}, "malformed"),
        ({"thresholds": {}}, "lacks thresholds"),
        ({"accuracy": float("nan")}, "NaN is no JSON number"),
    ],
)
def test_a_malformed_evaluation(run, tmp_path, changes, message):
    path = run / "evaluation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert message in refusal(run, tmp_path / "town.edgemodel")


@pytest.mark.parametrize(
    "chips",
    [
        np.zeros((2, 16, 16, 3), np.uint8),
        np.zeros((2, 32, 32, 3), np.float32),
        np.zeros((0, 32, 32, 3), np.uint8),
        np.zeros((), np.uint8),
        np.array([None, {}], object),
    ],
)
def test_golden_chips_that_do_not_fit(run, tmp_path, chips):
    np.save(run / "golden.npy", chips)
    assert "golden.npy is" in refusal(run, tmp_path / "town.edgemodel")


def test_places_that_do_not_do(run, tmp_path):
    with pytest.raises(OutputError, match="is a folder"):
        export_bundle(run, tmp_path)
    with pytest.raises(OutputError, match="is no folder"):
        export_bundle(run, tmp_path / "nowhere" / "town.edgemodel")


def test_engines_that_disagree_write_nothing(run, tmp_path, monkeypatch):
    def disagree(_classifier, _model_onnx, chips):
        return Parity(len(chips), {"pytorch_openvino": 0.3}, 4, {}), np.zeros((len(chips), 3), np.float32)

    monkeypatch.setattr(export_module, "measure", disagree)
    message = refusal(run, tmp_path / "town.edgemodel", EdgeInferError)
    assert "up to 0.3 (pytorch, openvino" in message
    assert "4 labels differ" in message


def test_command(run, tmp_path):
    out = tmp_path / "town.edgemodel"
    result = CliRunner().invoke(export_command, ["--run", str(run), "--out", str(out), "--name", "my town"])
    assert result.exit_code == 0, result.output
    assert open_bundle(out).manifest.name == "my town"
    assert "burnt, intact, unclear" in result.output
    assert "Parity on 32 chips" in result.output
    assert "pytorch and openvino" in result.output


def test_command_loads_nothing_heavy_before_it_runs():
    code = "import sys, edge_infer_export.cli_export; print(*{'torch', 'onnx', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
