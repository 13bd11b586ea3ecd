from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edge_infer.bundle import open_bundle, write_bundle
from edge_infer.engine.choose import open_engine
from edge_infer.errors import ContractError, EngineError, OutputError, Refused
from edge_infer.manifest import ChipContract
from edge_infer.ring import BatchSlot
from edge_infer_export.chips.dataset import Chips, read_chips
from edge_infer_export.chips.pictures import UnreadableChip
from edge_infer_export.chips.split import Split
from edge_infer_export.cli_evaluate import evaluate as evaluate_command
from edge_infer_export.evaluation import evaluate as evaluate_module
from edge_infer_export.evaluation.evaluate import EvaluateRequest, evaluate_bundle
from edge_infer_export.evaluation.look import look, name_files
from edge_infer_export.evaluation.shortcut import compare, features, fit_probe
from edge_infer_export.evaluation.sides import Sides

CONTRACT = ChipContract(
    ground_metres=12, chip_pixels=16, bands=("red", "green", "blue"), coarsest_gsd_metres=2
)
"""Of the bundle of `make_bundle`, which says `bright` with probability mean / 255."""


def grey_chips(count=60):
    levels = np.linspace(10, 245, count).astype(np.uint8)
    noise = np.random.default_rng(1).integers(0, 9, (count, 16, 16, 3))
    return np.clip(levels[:, None, None, None] + noise, 0, 255).astype(np.uint8)


PIXELS = grey_chips()
LABELS = ["bright" if chip.mean() > 110 else "dark" for chip in PIXELS]


@pytest.fixture
def chips(write_chips):
    return write_chips(PIXELS, LABELS, CONTRACT)


def request(bundle, *folders, **options):
    return EvaluateRequest(bundle=bundle, chips=folders, engine="openvino", **options)


def test_the_bundle_is_judged_through_its_engine(make_bundle, chips):
    found = evaluate_bundle(request(make_bundle(), chips, batch=8))
    np.testing.assert_array_equal(found.judged.rows, np.arange(60))
    wanted = PIXELS.mean(axis=(1, 2, 3)) / 255
    np.testing.assert_allclose(found.probabilities[:, 1], wanted, atol=1e-6)
    right = (wanted > 0.5) == np.array([label == "bright" for label in LABELS])
    assert found.overall.accuracy.value == pytest.approx(right.mean())
    assert 0 < right.mean() < 1
    assert found.classes == ("dark", "bright")
    assert found.side == "chips"
    assert found.runs_on["precision"] == "fp32"
    assert found.runs_on["engine"].startswith("openvino 20")
    assert found.runs_on["bundle_sha256"] == open_bundle(make_bundle()).sha256


def test_the_temperature_is_taken_back_for_the_figures_before_it(make_bundle, chips):
    path = make_bundle()
    bundle = open_bundle(path)
    members = {name: bundle.read(name) for name in bundle.members}
    write_bundle(path, replace(bundle.manifest, temperature=2.0), members)
    found = evaluate_bundle(request(path, chips))
    bright = PIXELS.mean(axis=(1, 2, 3)) / 255
    np.testing.assert_allclose(found.probabilities[:, 1], bright, atol=1e-6)
    # Twice the logits: the squares of the probabilities, normalised.
    wanted = bright**2 / (bright**2 + (1 - bright) ** 2)
    np.testing.assert_allclose(found.uncalibrated[:, 1], wanted, atol=1e-5)


def test_chips_stream(make_bundle, chips, monkeypatch):
    """However many chips there are, only the engine's own slots hold pixels."""
    allocated: list[BatchSlot] = []
    most: list[int] = []
    allocate, read = BatchSlot.allocate, Chips.read

    def allocate_and_count(*values):
        allocated.append(allocate(*values))
        return allocated[-1]

    def read_and_count(chips, rows):
        most.append(len(rows))
        return read(chips, rows)

    monkeypatch.setattr(BatchSlot, "allocate", allocate_and_count)
    monkeypatch.setattr(Chips, "read", read_and_count)
    bundle = open_bundle(make_bundle())
    engine = open_engine(bundle, engine="openvino", batch=4)
    seen = look(engine, read_chips([chips]), lambda _: None)
    engine.close()
    assert len(allocated) == engine.depth + 1 < 60 / 4
    assert max(most) == 1
    np.testing.assert_array_equal(seen.rows, np.arange(60))
    np.testing.assert_allclose(seen.features, features(PIXELS))


def test_report_is_written(make_bundle, chips, tmp_path):
    out = tmp_path / "report"
    result = command(make_bundle(), "--chips", chips, "--engine", "openvino", "--out", out)
    assert result.exit_code == 0, result.output
    assert "brightness: openvino" in result.output
    assert f"Report: {out / 'report.html'}" in result.output
    figures = json.loads((out / "evaluation.json").read_bytes())
    assert f"accuracy  {figures['accuracy']['value']:.1%}" in result.output
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "brightness.edgemodel" in page
    assert "nothing is known of whether the model was trained on them" in page
    assert not list(tmp_path.glob("*.partial"))
    with pytest.raises(OutputError, match="--overwrite"):
        evaluate_bundle(request(make_bundle(), chips, out=out))
    (out / "more.txt").write_text("")
    found = evaluate_bundle(request(make_bundle(), chips, out=out, overwrite=True))
    assert not (out / "more.txt").exists()
    assert json.loads((out / "evaluation.json").read_bytes()) == found.to_json()


def test_other_folders_are_never_replaced(make_bundle, chips, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("")
    with pytest.raises(OutputError, match="holds other things"):
        evaluate_bundle(request(make_bundle(), chips, out=tmp_path / "photos", overwrite=True))
    assert (tmp_path / "photos" / "one.jpg").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ground_metres": 30}, "ground_metres 30.0, wanted 12.0"),
        ({"window_mode": "footprint", "context_factor": 2.0}, "window_mode footprint, wanted fixed"),
        (
            {"bands": ("blue", "green", "red")},
            "bands ['blue', 'green', 'red'], wanted ['red', 'green', 'blue']",
        ),
    ],
)
def test_chips_of_another_contract(make_bundle, write_chips, changes, words):
    folder = write_chips(PIXELS, LABELS, replace(CONTRACT, **changes))
    with pytest.raises(ContractError) as caught:
        evaluate_bundle(request(make_bundle(), folder))
    assert words in str(caught.value)
    assert "cut them as the model wants them" in str(caught.value)


def test_coarser_chips_are_left_out_and_counted(make_bundle, write_chips):
    fine = write_chips(PIXELS[:40], LABELS[:40], CONTRACT, classes=("bright", "dark"))
    coarse = write_chips(
        PIXELS[40:], LABELS[40:], CONTRACT, name="coarse", classes=("bright", "dark"), gsd_metres=2.5
    )
    found = evaluate_bundle(request(make_bundle(), fine, coarse))
    assert found.overall.chips == 40
    said = " ".join(finding.words for finding in found.findings)
    assert "20 of 60 chips were left out: 000000000.png" in said
    assert "coarser pixels than 2 m" in said
    with pytest.raises(Refused, match=r"no chip is left .* 20 of coarser pixels than 2 m"):
        evaluate_bundle(request(make_bundle(), coarse))


def test_classes_of_another_name(make_bundle, write_chips):
    names = {"bright": "light", "dark": "gloomy"}
    folder = write_chips(PIXELS, [names[label] for label in LABELS], CONTRACT)
    with pytest.raises(
        Refused, match=r"does not know the class gloomy \(\d+\), light \(\d+\); it knows dark, bright"
    ):
        evaluate_bundle(request(make_bundle(), folder))
    found = evaluate_bundle(request(make_bundle(), folder, classes={"light": "bright", "gloomy": "dark"}))
    assert found.per_class["bright"].chips == LABELS.count("bright")
    only = evaluate_bundle(request(make_bundle(), folder, classes={"light": "bright"}, ignore=("gloomy",)))
    assert only.overall.chips == LABELS.count("bright")
    assert "No chip here has the class dark" in " ".join(finding.words for finding in only.findings)
    with pytest.raises(Refused, match="no chip has the class dim; the chips have gloomy, light"):
        evaluate_bundle(request(make_bundle(), folder, ignore=("dim",)))
    with pytest.raises(Refused, match="no chip is left"):
        evaluate_bundle(request(make_bundle(), folder, ignore=("light", "gloomy")))


def test_unreadable_chips_are_named_and_counted(make_bundle, chips):
    whole = Path(read_chips([chips]).file[7])
    # Whole at both ends and broken between: it is found out only when it is decoded.
    content = bytearray(whole.read_bytes())
    content[60:90] = bytes(30)
    whole.write_bytes(content)
    gone = Path(read_chips([chips]).file[9])
    gone.write_bytes(b"")
    found = evaluate_bundle(request(make_bundle(), chips, batch=4))
    assert found.overall.chips == 58
    np.testing.assert_allclose(
        found.probabilities[:, 1], np.delete(PIXELS, [7, 9], axis=0).mean(axis=(1, 2, 3)) / 255, atol=1e-6
    )
    said = " ".join(finding.words for finding in found.findings)
    assert "2 of 60 chips were left out" in said
    assert whole.name in said
    assert gone.name in said


def test_no_chip_can_be_read(make_bundle, chips, monkeypatch):
    def fail(self, rows):
        raise UnreadableChip(f"{self.file[rows[0]]} is broken")

    monkeypatch.setattr(Chips, "read", fail)
    with pytest.raises(
        Refused, match=r"none of 60 chips can be read; 000000000.png.* and 55 more \(is broken\)"
    ):
        evaluate_bundle(request(make_bundle(), chips))


def test_events_and_areas_are_chosen(make_bundle, chips):
    table = read_chips([chips])
    flood = evaluate_bundle(request(make_bundle(), chips, events=("flood",)))
    assert flood.overall.chips == (table.event == "flood").sum()
    some = evaluate_bundle(request(make_bundle(), chips, areas=("quarter 1", "quarter 2")))
    assert some.overall.chips == np.isin(table.place, ["quarter 1", "quarter 2"]).sum()
    with pytest.raises(Refused, match="no chip is of the event 'storm'"):
        evaluate_bundle(request(make_bundle(), chips, events=("storm",)))


def with_members(path, evaluation=None, sides=None):
    """Write the bundle again, with an evaluation or with sides."""
    bundle = open_bundle(path)
    members = {name: bundle.read(name) for name in bundle.members}
    if evaluation is not None:
        members["evaluation.json"] = json.dumps(evaluation).encode()
    if sides is not None:
        members["sides.npy"] = sides
    write_bundle(path, bundle.manifest, members)
    return path


def test_what_the_bundle_brings_is_used(make_bundle, chips):
    targets = np.array([int(label == "bright") for label in LABELS])
    probe = fit_probe(features(PIXELS), targets, 2)
    thresholds = {"high_precision": 0.75, "high_recall": 0.25}
    stored = {
        "format": 1,
        "thresholds": {"dark": thresholds, "bright": thresholds},
        "shortcut": {"fitted": probe.to_json()},
        "accuracy": {"value": 0.875},
        "side": "test",
    }
    found = evaluate_bundle(request(with_members(make_bundle(), stored), chips))
    assert found.thresholds["bright"].high_precision == 0.75
    reached = found.reached["bright"]["high_precision"]
    assert reached is not None
    assert reached.called == (found.probabilities[:, 1] >= 0.75).sum()
    wanted = compare(
        found.judged.targets,
        found.predictions,
        probe.predict(features(PIXELS)),
        found.judged.blocks,
        ("dark", "bright"),
        seed=0,
    )
    assert found.shortcut == wanted
    assert found.findings[-1].words == "After its training the model reached 87.5% on its own test side."
    assert wanted.verdict == "close"  # brightness is all that this model sees


@pytest.mark.parametrize(
    ("shortcut", "words"),
    [
        ({"fitted": {}}, "incomplete or malformed"),
        (
            {"fitted": {"centre": [0], "scale": [1], "weights": [[1], [2]], "bias": [0, 0]}},
            r"has the shape \(2, 1\), wanted \(2, 7\)",
        ),
    ],
)
def test_a_malformed_probe_in_the_bundle(make_bundle, chips, shortcut, words):
    thresholds = {"high_precision": None, "high_recall": None}
    stored = {"format": 1, "thresholds": {"dark": thresholds, "bright": thresholds}, "shortcut": shortcut}
    with pytest.raises(Refused, match=words):
        evaluate_bundle(request(with_members(make_bundle(), stored), chips))


@pytest.mark.parametrize("stored", [{}, {"accuracy": 0.9}, {"format": 2}])
def test_a_foreign_evaluation_brings_nothing(make_bundle, chips, stored):
    found = evaluate_bundle(request(with_members(make_bundle(), stored), chips))
    assert found.thresholds == {}
    assert found.shortcut is None


def sides_of(chips, **rows):
    """Sides of a split with the rows given, and none on the sides that are not."""
    nothing = np.empty(0, np.int64)
    split = {"training": nothing, "validation": nothing, "test": nothing, "dropped": nothing, **rows}
    return Sides.of_split(chips, Split(**split, kind="place", block_metres=0, words="")).to_bytes()


def words_of(found, level):
    return " ".join(finding.words for finding in found.findings if finding.level == level)


def test_chips_that_were_trained_on_raise_the_alarm_wherever_they_lie(make_bundle, chips, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(chips, copied)
    everything = np.arange(60)
    sides = sides_of(
        read_chips([chips]), training=everything[:30], validation=everything[30:40], test=everything[40:55]
    )
    path = with_members(make_bundle(), sides=sides)
    whole = evaluate_bundle(request(path, copied))
    assert whole.side == "chips"
    assert "was trained at the places of 30 of these 60 chips" in words_of(whole, "alarm")
    assert "10 of these 60 chips chose the epoch" in words_of(whole, "caution")
    assert whole.findings[0].level == "alarm"
    test = evaluate_bundle(request(path, copied, side="test"))
    np.testing.assert_array_equal(test.judged.targets, whole.judged.targets[40:55])
    assert test.side == "test"
    assert "trained at" not in words_of(test, "alarm")
    chosen = evaluate_bundle(request(path, copied, side="validation"))
    assert (chosen.side, chosen.overall.chips) == ("chips", 10)
    assert "10 of these 10 chips chose the epoch" in words_of(chosen, "caution")


def test_chips_from_elsewhere_are_known_to_be(make_bundle, chips):
    table = read_chips([chips])
    elsewhere = replace(table, longitude=table.longitude + 1)
    path = with_members(make_bundle(), sides=sides_of(elsewhere, training=np.arange(60)))
    found = evaluate_bundle(request(path, chips))
    assert "At none of these places was the model trained." in words_of(found, "note")
    with pytest.raises(Refused, match="none of 60 chips lay on the test side of the training of "):
        evaluate_bundle(request(path, chips, side="test"))


def test_a_bundle_that_does_not_tell_its_chips(make_bundle, chips):
    found = evaluate_bundle(request(make_bundle(), chips))
    assert "nothing is known of whether the model was trained on them" in words_of(found, "caution")
    with pytest.raises(Refused, match="does not tell which chips it was trained on"):
        evaluate_bundle(request(make_bundle(), chips, side="test"))
    with pytest.raises(Refused, match=r"sides\.npy is no NumPy array"):
        evaluate_bundle(request(with_members(make_bundle(), sides=b"torn"), chips))


def test_areas_of_chips_without_places(make_bundle, chips, monkeypatch):
    lost = read_chips([chips])
    lost = replace(lost, longitude=np.full(60, np.nan))
    monkeypatch.setattr(evaluate_module, "read_chips", lambda _: lost)
    with pytest.raises(Refused, match=r"60 of 60 chips have no place.* lie in '1,2,3,4'; name events"):
        evaluate_bundle(request(make_bundle(), chips, areas=("1,2,3,4",)))
    assert evaluate_bundle(request(make_bundle(), chips, areas=("quarter 1",))).overall.chips == 20


def test_a_training_run_is_never_replaced(make_bundle, chips, run):
    before = {path.name for path in run.iterdir()}
    with pytest.raises(OutputError, match="holds a training run, which is not replaced"):
        evaluate_bundle(request(make_bundle(), chips, out=run, overwrite=True))
    assert {path.name for path in run.iterdir()} == before


def test_engines_that_are_not_to_be_had(make_bundle, chips):
    with pytest.raises(EngineError, match="--precision"):
        evaluate_bundle(request(make_bundle(), chips, precision="int8"))


def test_names_of_files():
    entries = [(f"a/{k}.png", "cut off" if k else "gone") for k in range(7)]
    assert name_files(entries) == "0.png, 1.png, 2.png, 3.png, 4.png and 2 more (cut off; gone)"
    assert name_files(entries[:2]) == "0.png, 1.png (gone; cut off)"


def command(*arguments):
    return CliRunner().invoke(evaluate_command, [str(argument) for argument in arguments])


def test_command_as_json(make_bundle, chips):
    result = command(
        make_bundle(),
        "--chips",
        chips,
        "--json",
        "-q",
        "--ignore-label",
        "dark",
        "--classes",
        "bright=bright",
    )
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["chips"] == LABELS.count("bright")
    assert figures["runs_on"]["chips"] == [str(chips)]


def test_no_training_library_is_loaded(make_bundle, chips):
    """What is judged is what runs: PyTorch has no part in it."""
    code = (
        "import sys; from edge_infer_export.evaluation.evaluate import EvaluateRequest, evaluate_bundle; "
        "from pathlib import Path; bundle, chips = map(Path, sys.argv[1:]); "
        "evaluate_bundle(EvaluateRequest(bundle=bundle, chips=(chips,))); "
        "print(*{'torch', 'onnx', 'onnxruntime'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(make_bundle()), str(chips)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""
