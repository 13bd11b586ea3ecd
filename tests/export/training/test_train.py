from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from edge_infer.errors import Refused, Stopped
from edge_infer_export.chips.dataset import read_chips
from edge_infer_export.chips.split import SplitOptions
from edge_infer_export.evaluation.scores import softmax
from edge_infer_export.network.resnet import ResNet
from edge_infer_export.training import train as train_module
from edge_infer_export.training.checkpoint import read_checkpoint
from edge_infer_export.training.options import TrainOptions
from edge_infer_export.training.pace import Pace
from edge_infer_export.training.train import Diverged, find_rate, train

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


@pytest.fixture(scope="module")
def trained(chips):
    said: list[str] = []
    return train(chips, replace(QUICK, epochs=9), say=said.append), said


@pytest.fixture(scope="module")
def uninterrupted(chips):
    return train(chips, QUICK)


def same_weights(one, other):
    one, other = (trained.network.state_dict() for trained in (one, other))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def accuracy(result):
    return result.history[result.best_epoch - 1].accuracy


@pytest.fixture
def stop_after(monkeypatch):
    """Give what says stop once so many steps have been made."""
    made: list[int] = []
    step = Pace.step

    def count(pace, words):
        made.append(1)
        step(pace, words)

    monkeypatch.setattr(Pace, "step", count)

    def stopping(steps):
        made.clear()
        return lambda: len(made) == steps

    return stopping


def take(chips, rows, **changes):
    return replace(chips.take(rows), **changes)


def test_it_learns_what_can_be_learned(chips, trained):
    result, said = trained
    assert accuracy(result) > 0.95
    assert len(result.split.validation) == len(result.validation_logits)
    targets = chips.targets[result.split.validation]
    before, after = (
        log_loss(targets, softmax(result.validation_logits, temperature))
        for temperature in (1.0, result.temperature)
    )
    assert after <= before + 0.01
    best = min(result.history[6:], key=lambda epoch: epoch.calibrated_loss)
    assert result.best_epoch == best.number
    assert len(result.history) == 9
    assert "chips to train on" in said[0]
    assert said[1] == "Starting from random weights; cpu, fp32; chips are kept in memory."
    assert said[2].startswith("epoch 1 of 9: loss ")
    assert said[-1].endswith("0:00:00 to go")


def test_the_best_epoch_is_what_is_kept(chips, trained):
    result, _ = trained
    rows = result.split.validation
    views = torch.from_numpy(chips.read(rows)).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(part).reshape(1, 3, 1, 1) for part in (result.mean, result.std))
    with torch.inference_mode():
        logits = result.network.eval()((views - mean) / std)
    np.testing.assert_allclose(logits.numpy(), result.validation_logits, rtol=1e-3, atol=1e-3)
    right = (logits.argmax(1).numpy() == chips.targets[rows]).mean()
    assert right == pytest.approx(accuracy(result))


def test_normalisation_is_that_of_the_training_chips(chips, trained):
    result, _ = trained
    seen = chips.read(result.split.training).reshape(-1, 3)
    np.testing.assert_allclose(result.mean, seen.mean(axis=0))
    np.testing.assert_allclose(result.std, seen.std(axis=0))


def test_a_test_side_is_judged_and_never_trained_on(chips):
    box = f"-180,{np.median(chips.latitude)},180,90"
    result = train(chips, replace(QUICK, epochs=2, split=SplitOptions(test_areas=(box,))))
    assert len(result.test_logits) == len(result.split.test) > 100
    assert not set(result.split.test) & set(result.split.training)


def test_the_same_seed_gives_the_same_network(chips, uninterrupted):
    state = torch.random.get_rng_state()
    # Neither the number of loader threads nor the cache may matter.
    assert same_weights(train(chips, replace(QUICK, threads=1, cache_megabytes=0)), uninterrupted)
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's randomness is touched
    assert not same_weights(train(chips, replace(QUICK, seed=1)), uninterrupted)


@pytest.mark.parametrize("steps", [1, 12, 13, 25, 47])
def test_a_stop_at_any_step_changes_no_bit(chips, uninterrupted, tmp_path, stop_after, steps):
    with pytest.raises(Stopped, match=r"stopped in epoch \d of 4 after \d+ of 12 steps; .*--resume"):
        train(chips, QUICK, checkpoint=tmp_path / "c.pt", stopping=stop_after(steps))
    found = read_checkpoint(tmp_path / "c.pt")
    assert (found.epoch - 1) * 12 + found.step == steps
    said: list[str] = []
    resumed = train(chips, QUICK, checkpoint=tmp_path / "c.pt", resume=True, say=said.append)
    assert same_weights(resumed, uninterrupted)
    assert resumed.history == uninterrupted.history
    assert any(line.startswith("Going on in epoch ") for line in said)


@pytest.mark.parametrize(
    "changes",
    [{"average_epochs": 1.0}, {"balance": "sampling"}, {"learning_rate": None}],
    ids=lambda changes: next(iter(changes)),
)
def test_every_kind_of_training_resumes_exactly_and_learns(chips, tmp_path, stop_after, changes):
    options = replace(QUICK, epochs=5, **changes)
    whole = train(chips, options)
    with pytest.raises(Stopped):
        train(chips, options, checkpoint=tmp_path / "c.pt", stopping=stop_after(40))
    assert same_weights(train(chips, options, checkpoint=tmp_path / "c.pt", resume=True), whole)
    assert accuracy(whole) > 0.85


def test_it_learns_in_bfloat16(chips):
    result = train(chips, replace(QUICK, epochs=5, precision="bf16"))
    assert result.precision == "bf16"
    assert accuracy(result) > 0.85


@pytest.mark.parametrize(
    ("place", "options", "words"),
    [
        ("looking at the chips: ", {}, "stopped before the first step; give the same command again"),
        ("LR finder: step 5 ", {"learning_rate": None}, "stopped before the first step"),
        ("judging: 0 of ", {}, r"stopped in epoch 1 of 4 after 12 of 12 steps; .*--resume goes on"),
    ],
)
def test_a_stop_is_heard_at_any_time(chips, tmp_path, monkeypatch, uninterrupted, place, options, words):
    """The LR finder's steps took minutes, and nothing was said or heard meanwhile."""
    reached = []
    tick = train_module._Session._tick

    def listen(session, told):
        reached.append(told.startswith(place))
        tick(session, told)

    monkeypatch.setattr(train_module._Session, "_tick", listen)
    monkeypatch.setattr(train_module, "SECONDS_BETWEEN_LINES", 0.0)
    said: list[str] = []
    wanted = replace(QUICK, **options)
    keep = {"checkpoint": tmp_path / "c.pt", "say": said.append}
    with pytest.raises(Stopped, match=words):
        train(chips, wanted, stopping=lambda: reached[-1:] == [True], **keep)
    assert not any(line.strip().startswith(place) for line in said)
    if not place.startswith("judging"):
        assert not (tmp_path / "c.pt").exists()
        return
    assert any("looking at the chips" in line for line in said)
    reached.append(False)
    monkeypatch.setattr(train_module._Session, "_tick", tick)
    assert same_weights(train(chips, wanted, checkpoint=tmp_path / "c.pt", resume=True), uninterrupted)


def test_chips_damaged_in_their_pixels_are_found_before_anything_else(squares_folder, tmp_path):
    """Whole at both ends and broken between: on the test side this was found out after the last epoch."""
    folder = tmp_path / "chips"
    shutil.copytree(squares_folder, folder)
    whole = read_chips([folder])
    north = float(np.median(whole.latitude))
    rows = np.flatnonzero(whole.latitude > north)[:2]
    for file in whole.file[rows]:
        content = bytearray(Path(file).read_bytes())
        content[60:90] = bytes(30)
        Path(file).write_bytes(content)
    opened = read_chips([folder])
    assert len(opened) == len(whole)  # the headers show nothing
    said: list[str] = []
    options = replace(QUICK, epochs=1, split=SplitOptions(test_areas=(f"-180,{north},180,90",)))
    for megabytes in (1000, 0):
        result = train(opened, replace(options, cache_megabytes=megabytes), say=said.append)
        assert "2 of 240 chips are left out: " in said[0]
        assert Path(whole.file[rows[0]]).name in said[0]
        assert [file for file, _ in result.chips.unreadable] == whole.file[rows].tolist()
        assert not set(whole.file[rows]) & set(result.chips.file)
        assert len(result.test_logits) == len(result.split.test) == (whole.latitude > north).sum() - 2
        seen = result.chips.read(result.split.training).reshape(-1, 3)
        np.testing.assert_allclose(result.mean, seen.mean(axis=0))


def stop_early(chips, path, stopping):
    with pytest.raises(Stopped):
        train(chips, QUICK, checkpoint=path, stopping=stopping)


def test_a_checkpoint_of_something_else_is_refused(chips, tmp_path, stop_after):
    path = tmp_path / "c.pt"
    stop_early(chips, path, stop_after(3))
    with pytest.raises(Refused, match=r"other options \(epochs was 4, is 5; seed was 0, is 2\)"):
        train(chips, replace(QUICK, epochs=5, seed=2), checkpoint=path, resume=True)
    relabelled = replace(chips, targets=1 - chips.targets)
    with pytest.raises(Refused, match="other chips"):
        train(relabelled, QUICK, checkpoint=path, resume=True)
    wider = replace(chips, contract=replace(chips.contract, ground_metres=40))
    with pytest.raises(Refused, match="other chips"):
        train(wider, QUICK, checkpoint=path, resume=True)
    other_pixels = replace(chips, file=np.concatenate([chips.file[1:], chips.file[:1]]))
    with pytest.raises(Refused, match="other chips"):
        train(other_pixels, QUICK, checkpoint=path, resume=True)
    # What decides no weight may change.
    train(chips, replace(QUICK, threads=3, cache_megabytes=0), checkpoint=path, resume=True)


def test_a_damaged_checkpoint_is_refused(chips, tmp_path, stop_after):
    path = tmp_path / "c.pt"
    stop_early(chips, path, stop_after(3))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 16
    for damaged in (whole[: len(whole) // 2], bytes(flipped), b""):
        path.write_bytes(damaged)
        with pytest.raises(Refused, match=r"c\.pt is damaged"):
            train(chips, QUICK, checkpoint=path, resume=True)
    torch.save({"format": 1}, path)
    with pytest.raises(Refused, match="no checkpoint of this version"):
        train(chips, QUICK, checkpoint=path, resume=True)


def test_rare_classes_weigh_more(chips):
    few = np.flatnonzero(chips.targets == 1)[:20]
    rows = np.concatenate([np.flatnonzero(chips.targets == 0), few])
    uneven = take(chips, rows)
    for balance in ("weights", "sampling"):
        options = replace(QUICK, epochs=10, balance=balance, split=SplitOptions(validation_share=0.3))
        result = train(uneven, options)
        rare = uneven.targets[result.split.validation] == 1
        assert (result.validation_logits.argmax(axis=1)[rare] == 1).mean() > 0.6


def test_it_stops_where_it_gets_no_better_and_not_before_the_rate_has_fallen(chips, monkeypatch):
    losses = iter([0.9, 0.1, 0.8, 0.7, 0.6, 0.9, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9])
    judge = train_module._Session._judge_epoch

    def judged(session):
        return replace(judge(session), calibrated_loss=next(losses))

    monkeypatch.setattr(train_module._Session, "_judge_epoch", judged)
    said: list[str] = []
    small = replace(QUICK, epochs=12, blocks=(1, 1, 1, 1), width=2)
    result = train(chips, replace(small, patience=2), say=said.append)
    # Epoch 2 was better than all, but in the first two thirds; epochs 10 and 11 are no better than 9.
    assert (result.best_epoch, len(result.history)) == (9, 11)
    assert said[-1] == "No better for 2 epochs: stopped after epoch 11."


def test_a_frozen_network_learns_with_its_last_layer_only(chips, tmp_path, uninterrupted):
    path = tmp_path / "model.pt"
    torch.save(uninterrupted.network.state_dict(), path)
    result = train(chips, replace(QUICK, weights=path, freeze=True, learning_rate=0.03))
    before, after = uninterrupted.network.state_dict(), result.network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"fc.weight", "fc.bias"}
    assert "2 classes there" in result.started_from
    assert accuracy(result) > 0.9


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
    ("changes", "named"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch": 1}, "batch normalisation needs company"),
        ({"learning_rate": 0.0}, "learning rate"),
        ({"learning_rate": float("nan")}, "learning rate"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"seed": -1}, "seed"),
        ({"balance": "fair"}, "none, weights, sampling"),
        ({"device": "tpu"}, "auto, cpu, cuda"),
        ({"freeze": True}, "--weights"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes, named):
    with pytest.raises(Refused, match=named):
        TrainOptions(**changes)


def test_a_device_or_precision_that_is_not_there_is_refused(chips):
    with pytest.raises(Refused, match="--precision fp16 needs a CUDA device"):
        train(chips, replace(QUICK, device="cpu", precision="fp16"))
    if not torch.cuda.is_available():
        with pytest.raises(Refused, match="--device cuda"):
            train(chips, replace(QUICK, device="cuda"))


def test_a_learning_rate_that_is_far_too_high_is_named(chips):
    with pytest.raises(Diverged, match=r"diverged in epoch \d+; lower --lr \(it was 1e\+30\)"):
        train(chips, replace(QUICK, learning_rate=1e30))


def test_the_finders_rate_is_taken_and_it_leaves_the_network_alone(chips):
    curves = []
    options = replace(QUICK, epochs=1, learning_rate=None)
    result = train(chips, options, draw=lambda curve, rate: curves.append((curve, rate)))
    curve, rate = curves[0]
    assert result.learning_rate == rate == curve.valley == find_rate(chips, options).valley
    assert 1e-5 < rate < 0.3
    # Given the same rate by hand, without a finder, the same network comes out.
    assert same_weights(result, train(chips, replace(options, learning_rate=rate)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.skipif("EDGE_INFER_REQUIRE_GPU" not in os.environ, reason="GPU tests were not asked for")
def test_it_learns_on_cuda_too(chips):
    result = train(chips, replace(QUICK, epochs=9, device="cuda"))
    assert (result.device, result.precision) == ("cuda", "fp16")
    assert accuracy(result) > 0.95


def test_weights_of_a_run_with_other_classes_are_taken(chips, tmp_path):
    other = ResNet(5, blocks=(1, 1, 1, 1), width=8)
    path = tmp_path / "model.pt"
    torch.save(other.state_dict(), path)
    result = train(chips, replace(QUICK, epochs=1, weights=path))
    assert (
        result.started_from
        == f"the weights in {path}; the last layer (5 classes there) is new, for 2 classes"
    )
