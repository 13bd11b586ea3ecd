from __future__ import annotations

from dataclasses import replace
from functools import partial

import fiona
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from edge_infer.bundle import open_bundle
from edge_infer.errors import OutputError
from edge_infer_export import demo
from edge_infer_export.cli_demo import demo as demo_command
from edge_infer_export.demo import judge, run_demo
from edge_infer_export.town.files import write_town
from edge_infer_export.town.layout import Extent


@pytest.fixture
def quick_demo(monkeypatch):
    """A corner of the town and a small network: the chain is the same."""
    monkeypatch.setattr(demo, "write_town", partial(write_town, extent=Extent(620.0, 170.0)))
    quick = replace(demo.TRAINING, epochs=2, batch=8, blocks=(1, 1, 1, 1), width=8)
    monkeypatch.setattr(demo, "TRAINING", quick)


@pytest.mark.usefixtures("quick_demo")
def test_the_whole_chain(tmp_path):
    folder = tmp_path / "town"
    result = CliRunner().invoke(demo_command, [str(folder)], catch_exceptions=False)
    assert result.exit_code == 0
    assert {path.name for path in folder.iterdir()} == {
        "imagery", "footprints.gpkg", "chips", "town-model", "town.edgemodel", "classified.gpkg", "map.png",
    }  # fmt: skip
    assert open_bundle(folder / "town.edgemodel").manifest.classes == ("damaged", "no_visible_damage")
    for stage in ("draw the town", "cut chips", "train a ResNet34", "export", "classify", "draw the map"):
        assert f"== {stage}" in result.output
    with fiona.open(folder / "footprints.gpkg") as source:
        east = {int(row.id): row.properties for row in source if row.properties["district"] == "east"}
    with fiona.open(folder / "classified.gpkg", layer="footprints") as layer:
        rows = [row.properties for row in layer]
    assert {row["source_fid"] for row in rows} == set(east)
    # The table is the join of results and labels by feature id.
    known = [row for row in rows if row["status"] == "ok"]
    right = sum(row["class_label"] == east[row["source_fid"]]["label"] for row in known)
    assert f"accuracy {right / len(known):.1%} on {len(known)} footprints" in result.output
    assert len(rows) - len(known) == 2
    with Image.open(folder / "map.png") as picture:
        assert picture.width > 2000
        small = np.asarray(picture.convert("RGB").resize((300, 150))).reshape(-1, 3)
    assert len(np.unique(small, axis=0)) > 1000


@pytest.mark.usefixtures("quick_demo")
def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="is not empty; name another folder or say --overwrite"):
        run_demo(tmp_path)
    with pytest.raises(OutputError, match="cannot be made"):
        run_demo(tmp_path / "letter.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_judging_counts_what_has_no_result_apart():
    true = np.array(["a", "a", "b", "b", "b"], object)
    predicted = np.array(["a", "b", "b", None, "b"], object)
    verdict = judge(true, predicted, ("a", "b"))
    assert verdict.confusion.tolist() == [[1, 1], [0, 2]]
    assert verdict.without_result.tolist() == [0, 1]
    assert verdict.accuracy == pytest.approx(3 / 4)
    lines = verdict.describe().splitlines()
    assert lines[0].split() == ["label", "a", "b", "no", "result"]
    assert lines[2].split() == ["b", "0", "2", "1"]
    assert lines[3].startswith("accuracy 75.0% on 4 footprints")
