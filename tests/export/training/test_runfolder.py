from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from edge_infer.errors import BundleError, OutputError, Refused
from edge_infer.manifest import ChipContract
from edge_infer_export.chips.dataset import read_chips
from edge_infer_export.cli_train import train as train_command
from edge_infer_export.evaluation.sides import Sides
from edge_infer_export.network.bundle import export_bundle
from edge_infer_export.training import runfolder
from edge_infer_export.training.options import TrainOptions
from edge_infer_export.training.runfolder import golden_rows, train_to_folder

SMALL = ChipContract(
    ground_metres=30, chip_pixels=16, bands=("red", "green", "blue"), coarsest_gsd_metres=0.5
)
QUICK = TrainOptions(epochs=4, batch=16, learning_rate=3e-3, blocks=(1, 1, 1, 1), width=8)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small layers are slower on several threads, much slower where others use the cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def chips(squares_folder):
    return read_chips([squares_folder])


@pytest.fixture
def no_report(monkeypatch):
    """Pages and pictures cost more than these trainings do."""
    monkeypatch.setattr(runfolder, "_report", lambda *_: None)


@pytest.fixture(scope="module")
def whole_run(squares_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "model-1"
    return out, train_to_folder([squares_folder], out, QUICK)


def test_the_run_folder_is_what_export_reads(whole_run, chips, tmp_path):
    out, result = whole_run
    assert {
        "model.pt", "train.json", "golden.npy", "sides.npy", "history.png", "report.html",
        "evaluation.json",
    } <= {path.name for path in out.iterdir()}  # fmt: skip
    assert not (out / "checkpoint.pt").exists()
    assert [path.name for path in out.parent.iterdir()] == ["model-1"]
    facts = json.loads((out / "train.json").read_text())
    assert facts["name"] == "model-1"
    assert facts["facts"]["split"]["validation"] == chips.counts(result.split.validation)
    assert facts["facts"]["options"]["augmentation"]["jpeg_quality"] == [40, 95]
    with Image.open(out / "history.png") as image:
        assert min(image.size) > 200
    bundle = export_bundle(out, tmp_path / "model.edgemodel")
    assert bundle.manifest.classes == chips.classes
    assert bundle.manifest.temperature == pytest.approx(result.temperature)
    sides = Sides.from_bytes(bundle.read("sides.npy"), bundle.path).find(chips)
    np.testing.assert_array_equal(np.flatnonzero(sides == 1), result.split.validation)


def test_golden_chips_are_of_every_class(chips):
    rows = np.concatenate([np.flatnonzero(chips.targets == 0)[:60], np.flatnonzero(chips.targets == 1)[:5]])
    golden = golden_rows(chips, rows)
    assert len(golden) == 32
    assert set(golden) <= set(rows.tolist())
    assert (chips.targets[golden] == 1).sum() == 5


@pytest.mark.usefixtures("no_report")
def test_runs_are_kept_and_names_are_checked_before_training(squares_folder, tmp_path):
    out = tmp_path / "run"
    once = replace(QUICK, epochs=1)
    train_to_folder([squares_folder], out, once)
    with pytest.raises(OutputError, match="exists; name another folder or say --overwrite"):
        train_to_folder([squares_folder], out, once)
    with pytest.raises(OutputError, match="is complete; there is nothing to resume"):
        train_to_folder([squares_folder], out, once, resume=True)
    with pytest.raises(Refused, match="--resume keeps the run folder and --overwrite replaces it"):
        train_to_folder([squares_folder], out, once, resume=True, overwrite=True)
    train_to_folder([squares_folder], out, once, name="second", overwrite=True)
    assert json.loads((out / "train.json").read_text())["name"] == "second"
    with pytest.raises(BundleError, match=r"model name '2' does not do.*; --name gives it another than that"):
        train_to_folder([squares_folder], tmp_path / "2", QUICK)
    with pytest.raises(Refused, match="wanted a folder that `edge-infer chips` made"):
        train_to_folder([tmp_path / "nothing"], tmp_path / "other", QUICK)
    with pytest.raises(Refused, match="diverged"):
        train_to_folder([squares_folder], tmp_path / "other", replace(QUICK, learning_rate=1e30))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


TRAINING = """
import os, sys, time, torch
from pathlib import Path
from edge_infer.errors import EdgeInferError
from edge_infer_export.training import train as train_module
from edge_infer_export.training.options import TrainOptions
from edge_infer_export.training.runfolder import train_to_folder

torch.set_num_threads(1)
train_module.CHECKPOINT_SHARE = 1e9  # after every epoch, however short
chips, out, go_on = map(Path, sys.argv[1:])

def say(line):
    if line.startswith("epoch 3"):  # the checkpoint of epoch 2 is on disk, that of epoch 3 is not
        print(line, flush=True)
        while not go_on.exists():
            time.sleep(0.01)

try:
    options = TrainOptions(epochs=4, batch=16, learning_rate=3e-3, blocks=(1, 1, 1, 1), width=8)
    train_to_folder([chips], out, options, say=say)
except EdgeInferError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
"""


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_training_goes_on_to_the_same_weights(whole_run, squares_folder, tmp_path, number):
    out, go_on = tmp_path / "run", tmp_path / "go-on"
    command = [sys.executable, "-c", TRAINING, str(squares_folder), str(out), str(go_on)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("epoch 3 of 4: loss")
        process.send_signal(number)
        if number == signal.SIGKILL:
            assert process.wait(30) == -number
        else:
            time.sleep(0.1)  # delivered, and waiting for the next step
            go_on.touch()
            said = process.stdout.read()
            assert "stopped in epoch 4 of 4 after 1 of " in said
            assert process.wait(30) == 4
    assert not out.exists()
    with pytest.raises(
        OutputError, match=r"run\.partial holds a training that was stopped; --resume goes on"
    ):
        train_to_folder([squares_folder], out, QUICK)
    with pytest.raises(Refused, match="epochs was 4, is 7"):
        train_to_folder([squares_folder], out, replace(QUICK, epochs=7), resume=True)
    said_now: list[str] = []
    train_to_folder([squares_folder], out, QUICK, resume=True, say=said_now.append)
    steps = 0 if number == signal.SIGKILL else 1
    epoch = 3 if number == signal.SIGKILL else 4
    assert f"Going on in epoch {epoch} of 4 after {steps} steps." in said_now
    assert not (tmp_path / "run.partial").exists()
    expected, found = (torch.load(folder / "model.pt") for folder in (whole_run[0], out))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.usefixtures("no_report")
def test_an_overwritten_stop_begins_again(squares_folder, tmp_path):
    draft = tmp_path / "run.partial"
    draft.mkdir()
    (draft / "checkpoint.pt").write_bytes(b"torn")
    with pytest.raises(Refused, match=r"checkpoint\.pt is damaged or something else"):
        train_to_folder([squares_folder], tmp_path / "run", QUICK, resume=True)
    train_to_folder([squares_folder], tmp_path / "run", replace(QUICK, epochs=1), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.usefixtures("no_report")
def test_a_stopped_training_is_not_lost_to_one_that_cannot_be(squares_folder, tmp_path):
    draft = tmp_path / "run.partial"
    draft.mkdir()
    (draft / "checkpoint.pt").write_bytes(b"hours of work")
    (tmp_path / "weights.pt").write_bytes(b"no weights")
    for options in (replace(QUICK, weights=tmp_path / "weights.pt"), replace(QUICK, batch=4096)):
        with pytest.raises(Refused):
            train_to_folder([squares_folder], tmp_path / "run", options, overwrite=True)
        assert (draft / "checkpoint.pt").read_bytes() == b"hours of work"


@pytest.mark.usefixtures("no_report")
def test_a_full_disk_is_one_line_and_the_training_is_kept(squares_folder, tmp_path, monkeypatch):
    out = tmp_path / "run"
    once = replace(QUICK, epochs=1)

    save = torch.save

    def save_checkpoints_only(values, path):
        if not path.name.startswith("checkpoint"):
            raise RuntimeError("unexpected pos 64 vs 0")
        save(values, path)

    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_checkpoints_only)
        with pytest.raises(OutputError, match=r"unexpected pos 64.*again with --resume"):
            train_to_folder([squares_folder], out, once)
        patch.setattr(runfolder, "draw_curve", no_space)
        with pytest.raises(OutputError, match="No space left on device"):
            train_to_folder([squares_folder], tmp_path / "other", replace(once, learning_rate=None))
    assert [path.name for path in tmp_path.iterdir()] == ["run.partial"]
    train_to_folder([squares_folder], out, once, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.usefixtures("no_report")
def test_one_class_is_told_of_before_a_bundle_would(write_chips, make_chips, tmp_path):
    folder = write_chips(make_chips(count=4, side=16), ["intact"] * 4, SMALL)
    with pytest.raises(Refused, match=r"the chips have one class only \(intact\); wanted two or more"):
        train_to_folder([folder], tmp_path / "run", QUICK)


def run_command(*arguments):
    return CliRunner().invoke(train_command, list(map(str, arguments)), catch_exceptions=False)


@pytest.mark.parametrize(
    ("network", "blocks", "width"),
    [([], [3, 4, 6, 3], 64), (["--network", "resnet10-narrow"], [1, 1, 1, 1], 16)],
)
def test_the_command_trains_the_network_it_is_told(squares_folder, tmp_path, network, blocks, width):
    result = run_command(
        *("--chips", squares_folder, "--out", tmp_path / "run", "--epochs", 1, "--batch", 64, "--lr", 1e-3),
        *network,
    )
    assert result.exit_code == 0
    assert "run: epoch 1 of 1 kept\n" in result.output
    assert f"Report: {tmp_path / 'run' / 'report.html'}" in result.output
    architecture = json.loads((tmp_path / "run/train.json").read_text())["architecture"]
    assert architecture == {"blocks": blocks, "width": width}


def test_the_command_finds_a_rate(squares_folder, tmp_path):
    result = run_command(
        *("--chips", squares_folder, "--out", tmp_path / "run", "--find-lr", "--network", "resnet18-narrow"),
        *("--batch", 8, "-q"),
    )
    assert result.exit_code == 0
    assert result.output.startswith(f"{tmp_path / 'run-lr-finder.png'}: valley ")
    assert "; try --lr " in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["run-lr-finder.png"]
