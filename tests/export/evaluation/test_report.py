from __future__ import annotations

import base64
import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.cbook import STEP_LOOKUP_MAP
from PIL import Image

from edge_infer.manifest import ChipContract
from edge_infer_export.chips.dataset import read_chips
from edge_infer_export.evaluation import plots
from edge_infer_export.evaluation.album import Album, Background
from edge_infer_export.evaluation.figures import Finding
from edge_infer_export.evaluation.report import write_report
from edge_infer_export.evaluation.shortcut import compare

CONTRACT = ChipContract(
    ground_metres=20, chip_pixels=16, bands=("red", "green", "blue"), coarsest_gsd_metres=1
)
CLASSES = ("burnt", "intact", "unclear")
COLORS = ("#d73027", "#1a9850", "#808080")


@pytest.fixture
def chips(write_chips):
    pixels = np.random.default_rng(3).integers(0, 256, (240, 16, 16, 3)).astype(np.uint8)
    return read_chips([write_chips(pixels, [CLASSES[k % 3] for k in range(240)], CONTRACT)])


class Page(HTMLParser):
    """Collects what a page would fetch, and whether its tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.seen: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.fetched += [value for name, value in attrs if name in {"src", "href", "srcset", "data"}]
        if tag not in {"img", "meta", "line", "circle", "link", "br"}:
            self.tags.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.tags.pop() == tag

    def handle_data(self, data):
        if self.tags and self.tags[-1] != "style":
            self.text += data


def test_page_needs_nothing_else_and_figures_lie_beside_it(evaluation, chips, tmp_path):
    write_report(tmp_path, evaluation, chips, colors=COLORS)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.tags
    assert not page.seen & {"script", "link", "iframe", "object"}
    assert "url(" not in text
    assert "@import" not in text
    pictures = [value for value in page.fetched if not value.startswith("#")]
    assert len(pictures) == 5  # confusion, curves, reliability, mistakes, results
    for value in pictures:
        kind, content = value.split(";base64,")
        with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
            picture.load()
            assert kind == f"data:image/{picture.format.lower()}"
            assert picture.width > 300
    accuracy = evaluation.overall.accuracy
    assert f"{accuracy.value:.1%}" in page.text
    assert f"{accuracy.low:.1%} to {accuracy.high:.1%}" in page.text
    assert "By event" in page.text
    assert "By area" not in page.text

    assert json.loads((tmp_path / "evaluation.json").read_bytes()) == evaluation.to_json()
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 240
    for place in (0, 77, 239):
        row, probabilities = rows[place], evaluation.probabilities[place]
        assert row["file"] == chips.file[place]
        assert row["truth"] == CLASSES[evaluation.judged.targets[place]]
        assert row["predicted"] == CLASSES[probabilities.argmax()]
        assert float(row["confidence"]) == pytest.approx(probabilities.max(), abs=1e-6)
        assert float(row["p_unclear"]) == pytest.approx(probabilities[2], abs=1e-6)
        assert float(row["longitude"]) == pytest.approx(chips.longitude[place], abs=1e-7)
    drawn = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert drawn == {
        *("confusion.png", "curves.png", "reliability.png", "by_event.png", "mistakes.png", "results.png"),
    }


def test_everything_that_can_be_told_is_told(make_evaluation, chips, tmp_path):
    targets = np.arange(240) % 3
    shortcut = compare(targets, targets, targets, np.arange(240) // 4, CLASSES, seed=0)
    evaluation = make_evaluation(
        shortcut=shortcut,
        split={"kind": "random", "words": "RANDOM SPLIT: so it was."},
        runs_on={"engine": "openvino 1", "precision": "int8", "device": "a CPU"},
    )
    Image.new("RGB", (400, 300)).save(tmp_path / "losses.png")
    background = Background(
        facts={"epochs": "12 of 12"},
        pictures=[(tmp_path / "losses.png", "Losses by epoch.")],
        training_rows=np.arange(100),
        augment=lambda pixels: pixels[:, ::-1],
        explain=lambda pixels, _: np.zeros(pixels.shape[:3], np.float32),
    )
    write_report(tmp_path, evaluation, chips, colors=COLORS, background=background)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    for wanted in (
        *(
            "parted at random",
            "RANDOM SPLIT",
            "Could it be cheating?",
            "It is not shown that the model looks",
        ),
        *("openvino 1 in int8 on a CPU", "12 of 12", "Losses by epoch.", "What speaks for the answer"),
        "What it was trained on",
    ):
        assert wanted in page.text
    assert {"gradcam.png", "training_chips.png"} <= {p.name for p in (tmp_path / "pictures").iterdir()}
    assert len([value for value in page.fetched if value.startswith("data:")]) == 8


def test_names_cannot_break_the_page(make_evaluation, chips, tmp_path):
    classes = ("<b>burnt</b>", "in&tact", '"unclear"')
    evaluation = make_evaluation(
        classes=classes, model="<script>alert(1)</script>", notes=[Finding("note", "<i>so</i>")]
    )
    write_report(tmp_path, evaluation, chips, colors=COLORS)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not page.seen & {"script", "b>burnt"}
    assert all(name in page.text for name in classes)
    assert "<script>alert(1)</script>" in page.text


def test_no_mistakes(make_evaluation, chips, tmp_path):
    evaluation = make_evaluation(temperature=0.05)
    object.__setattr__(evaluation.judged, "targets", evaluation.predictions)
    write_report(tmp_path, evaluation, chips, colors=COLORS)
    assert "every chip is called right" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "pictures" / "mistakes.png").exists()


def test_worst_mistakes_are_the_surest_ones(evaluation, chips):
    album = Album(evaluation, chips, COLORS, np.random.default_rng(0))
    tiles, _ = album.mistakes()
    wrong = evaluation.predictions != evaluation.judged.targets
    confidence = np.sort(evaluation.probabilities.max(axis=1)[wrong])[::-1][: len(tiles)]
    assert [tile.lines[0].split()[-1] for tile in tiles] == [f"{value:.0%}" for value in confidence]
    assert all(tile.lines[1].startswith("is ") for tile in tiles)


def test_results_show_every_class(evaluation, chips):
    tiles, _ = Album(evaluation, chips, COLORS, np.random.default_rng(0)).results()
    assert [tile.color for tile in tiles[:6]] == [*COLORS, *COLORS]
    assert len({tile.lines[2] for tile in tiles}) == len(tiles) == 24


def test_a_chip_that_is_gone_is_left_out_of_the_sheets(evaluation, chips):
    album = Album(evaluation, chips, COLORS, np.random.default_rng(0))
    before = len(album.mistakes()[0])
    wrong = np.flatnonzero(evaluation.predictions != evaluation.judged.targets)
    surest = wrong[evaluation.probabilities.max(axis=1)[wrong].argmax()]
    Path(chips.file[surest]).unlink()
    assert len(album.mistakes()[0]) == before - 1


def test_the_area_that_is_drawn_is_the_one_that_is_named(evaluation, tmp_path, monkeypatch):
    figure = plots.new_figure(9.6, 4.3)
    monkeypatch.setattr(plots, "new_figure", lambda *_: figure)
    plots.draw_curves(tmp_path / "curves.png", evaluation, ["#d7191c", "#2c7bb6", "#fdae61"])
    lines = figure.axes[1].lines
    assert len(lines) == 3
    for line, figures in zip(lines, evaluation.per_class.values(), strict=True):
        # The outline as it is drawn, its steps spelled out; recall falls from left to right.
        recall, precision = STEP_LOOKUP_MAP[line.get_drawstyle()](*line.get_data())
        area = -np.sum(np.diff(recall) * (precision[1:] + precision[:-1]) / 2)
        assert area == pytest.approx(figures.average_precision)
