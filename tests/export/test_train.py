from __future__ import annotations

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from edge_infer.errors import BundleError, OutputError, Refused
from edge_infer.manifest import ChipContract
from edge_infer_export.cli_train import train as train_command
from edge_infer_export.dataset import ChipRecord, Chips, ChipWriter
from edge_infer_export.export import export_bundle
from edge_infer_export.resnet import ResNet
from edge_infer_export.runfolder import golden_rows, train_to_folder
from edge_infer_export.train import TrainOptions, start_network, train

CONTRACT = ChipContract(
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
def chips():
    """Squares that are lighter or darker than what surrounds them, at random brightness."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 240)
    pixels = rng.normal(rng.uniform(80, 170, (240, 1, 1, 1)), 10, (240, 16, 16, 3))
    pixels[:, 5:11, 5:11] += np.where(targets == 1, 45, -45)[:, None, None, None]
    return Chips(
        contract=CONTRACT,
        classes=("darker", "lighter"),
        pixels=np.clip(pixels, 0, 255).astype(np.uint8),
        targets=targets.astype(np.int64),
        longitude=-95 + rng.uniform(0, 0.02, 240),
        latitude=37 + rng.uniform(0, 0.02, 240),
        ground_metres=np.full(240, 30.0),
    )


@pytest.fixture(scope="module")
def trained(chips):
    said: list[str] = []
    return train(chips, replace(QUICK, epochs=10), say=said.append), said


@pytest.fixture(scope="module")
def chips_folder(chips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "chips"
    with ChipWriter(folder) as writer:
        for k in range(len(chips)):
            record = ChipRecord(
                source_fid=k,
                label=chips.classes[chips.targets[k]],
                image="a.tif",
                gsd_metres=0.4,
                ground_metres=30.0,
                valid_fraction=1.0,
                longitude=float(chips.longitude[k]),
                latitude=float(chips.latitude[k]),
            )
            writer.add(chips.pixels[k], record)
        writer.finish(CONTRACT, chips.classes, statuses={"ok": len(chips)}, options={})
    return folder


def test_it_learns_what_can_be_learned(trained):
    result, said = trained
    assert result.metrics["accuracy"] > 0.95
    assert result.metrics["chips"] == len(result.split.validation)
    assert result.metrics["negative_log_likelihood"] <= (
        result.metrics["before_calibration"]["negative_log_likelihood"] + 0.01
    )
    best = min(result.history[6:], key=lambda epoch: epoch.calibrated_loss)
    assert result.best_epoch == best.number
    assert len(result.history) == 10
    assert "chips to train on" in said[0]
    assert said[1].startswith("epoch 1 of 10: loss ")
    assert said[-1].endswith("0:00:00 to go")


def test_the_best_epoch_is_what_is_kept(chips, trained):
    result, _ = trained
    rows = result.split.validation
    views = torch.from_numpy(chips.pixels[rows]).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(part).reshape(1, 3, 1, 1) for part in (result.mean, result.std))
    with torch.inference_mode():
        logits = result.network.eval()((views - mean) / std)
    right = (logits.argmax(1).numpy() == chips.targets[rows]).mean()
    assert right == pytest.approx(result.history[result.best_epoch - 1].accuracy)
    assert right == pytest.approx(result.metrics["accuracy"])


def test_normalisation_is_that_of_the_training_chips(chips, trained):
    result, _ = trained
    seen = chips.pixels[result.split.training].reshape(-1, 3)
    np.testing.assert_allclose(result.mean, seen.mean(axis=0))
    np.testing.assert_allclose(result.std, seen.std(axis=0))


def test_the_same_seed_gives_the_same_network(chips):
    options = replace(QUICK, epochs=1)
    state = torch.random.get_rng_state()
    one, same = (train(chips, options).network.state_dict() for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's randomness is touched
    assert all(torch.equal(one[name], same[name]) for name in one)
    other = train(chips, replace(options, seed=1)).network.state_dict()
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def test_rare_classes_weigh_more(chips):
    few = np.flatnonzero(chips.targets == 1)[:20]
    rows = np.concatenate([np.flatnonzero(chips.targets == 0), few])
    uneven = take(chips, rows)
    result = train(uneven, replace(QUICK, epochs=8, validation_share=0.3))
    assert result.metrics["per_class"]["lighter"]["recall"] > 0.6


def take(chips, rows, **changes):
    parts = {
        name: getattr(chips, name)[rows]
        for name in ("pixels", "targets", "longitude", "latitude", "ground_metres")
    }
    return replace(chips, **{**parts, **changes})


def test_chips_that_cannot_train_anything_are_refused(chips):
    with pytest.raises(Refused, match="there are no chips"):
        train(take(chips, np.arange(0)), QUICK)
    ones = np.flatnonzero(chips.targets == 0)
    with pytest.raises(Refused, match=r"one class only \(darker\)"):
        train(take(chips, ones, classes=("darker",)), QUICK)
    with pytest.raises(Refused, match="no chip has the class lighter"):
        train(take(chips, ones), QUICK)
    with pytest.raises(Refused, match=r"fewer than one batch of 512.*lower --batch"):
        train(chips, replace(QUICK, batch=512))


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"batch": 1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"validation_share": 0.6},
    ],
)
def test_options_that_make_no_sense_are_refused(changes):
    with pytest.raises(Refused):
        TrainOptions(**changes)


def test_a_learning_rate_that_is_far_too_high_is_named(chips):
    with pytest.raises(Refused, match=r"diverged in epoch \d+; lower --lr"):
        train(chips, replace(QUICK, learning_rate=1e30))


def test_training_starts_from_weights_of_other_classes(chips, tmp_path):
    other = ResNet(1000, blocks=(1, 1, 1, 1), width=8)
    path = tmp_path / "imagenet.pth"
    torch.save(other.state_dict(), path)
    network = start_network(chips, replace(QUICK, weights=path))
    name = "layer3.0.conv1.weight"
    assert torch.equal(network.state_dict()[name], other.state_dict()[name])
    assert network.fc.out_features == 2


def test_weights_that_do_not_fit_are_refused(chips, tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(Refused, match="cannot be read"):
        start_network(chips, replace(QUICK, weights=path))
    torch.save(ResNet(2, blocks=(1, 1, 1, 1), width=16).state_dict(), path)
    with pytest.raises(Refused, match=r"conv1.weight has shape \(16, 3, 7, 7\), wanted \(8, 3, 7, 7\)"):
        start_network(chips, replace(QUICK, weights=path))
    path.write_bytes(pickle.dumps(print))  # a pickle may hold code: it is never run
    with pytest.raises(Refused, match="is no state dict"):
        start_network(chips, replace(QUICK, weights=path))


def test_the_run_folder_is_what_export_reads(chips_folder, chips, tmp_path):
    out = tmp_path / "model-1"
    result = train_to_folder([chips_folder], out, QUICK)
    assert sorted(path.name for path in out.iterdir()) == [
        "confusion.png", "golden.npy", "history.png", "model.pt", "train.json",
    ]  # fmt: skip
    facts = json.loads((out / "train.json").read_text())
    assert facts["name"] == "model-1"
    assert facts["metrics"]["accuracy"] == result.metrics["accuracy"]
    assert facts["facts"]["split"]["validation"] == chips.counts(result.split.validation)
    for picture in ("history.png", "confusion.png"):
        with Image.open(out / picture) as image:
            assert min(image.size) > 200
    bundle = export_bundle(out, tmp_path / "model.edgemodel")
    assert bundle.manifest.classes == chips.classes
    assert bundle.manifest.temperature == pytest.approx(result.temperature)
    assert json.loads(bundle.read("evaluation.json"))["confusion"] == result.metrics["confusion"]


def test_golden_chips_are_of_every_class(chips):
    rows = np.concatenate([np.flatnonzero(chips.targets == 0)[:60], np.flatnonzero(chips.targets == 1)[:5]])
    golden = golden_rows(chips, rows)
    assert len(golden) == 32
    assert set(golden) <= set(rows.tolist())
    assert (chips.targets[golden] == 1).sum() == 5


def test_runs_are_kept_and_names_are_checked_before_training(chips_folder, tmp_path):
    out = tmp_path / "run"
    train_to_folder([chips_folder], out, replace(QUICK, epochs=1))
    with pytest.raises(OutputError, match="exists; name another folder or say --overwrite"):
        train_to_folder([chips_folder], out, QUICK)
    train_to_folder([chips_folder], out, replace(QUICK, epochs=1), name="second", overwrite=True)
    assert json.loads((out / "train.json").read_text())["name"] == "second"
    with pytest.raises(BundleError, match="model name '2' does not do"):
        train_to_folder([chips_folder], tmp_path / "2", QUICK)
    with pytest.raises(Refused, match="wanted a folder that `edge-infer chips` made"):
        train_to_folder([tmp_path / "nothing"], tmp_path / "other", QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_command_trains_a_resnet34(chips_folder, tmp_path):
    arguments = ["--chips", chips_folder, "--out", tmp_path / "run", "--epochs", 1, "--batch", 64]
    result = CliRunner().invoke(train_command, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0
    assert "epoch 1 of 1 kept; on " in result.output
    assert "  darker: " in result.output
    architecture = json.loads((tmp_path / "run/train.json").read_text())["architecture"]
    assert architecture == {"blocks": [3, 4, 6, 3], "width": 64}
