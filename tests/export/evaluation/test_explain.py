from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from edge_infer.errors import Refused
from edge_infer_export.cli_explain import explain as explain_command
from edge_infer_export.evaluation.explain import explain_chips
from edge_infer_export.network.bundle import export_bundle
from edge_infer_export.network.parity import run_onnxruntime


@pytest.fixture
def pictures(tmp_path, make_chips):
    paths = [tmp_path / f"{name}.png" for name in ("one", "two")]
    for path, chip in zip(paths, make_chips(count=2), strict=True):
        Image.fromarray(chip).save(path)
    return paths


def test_a_picture_for_each_chip(run, pictures, make_chips, tmp_path):
    found = explain_chips(run, pictures, tmp_path / "out")
    assert [path for path, _ in found] == [tmp_path / "out" / "one.png", tmp_path / "out" / "two.png"]
    with Image.open(found[0][0]) as sheet:
        assert sheet.width > 3 * sheet.height  # the chip, and three classes beside it
    bundle = export_bundle(run, tmp_path / "town.edgemodel")
    wanted = run_onnxruntime(bundle.read("model.onnx"), make_chips(count=2))
    for (_, probabilities), row in zip(found, wanted, strict=True):
        assert list(probabilities) == ["burnt", "intact", "unclear"]
        np.testing.assert_allclose(list(probabilities.values()), row, atol=1e-5)


def test_chips_that_do_not_do(run, pictures, tmp_path):
    with pytest.raises(Refused, match=r"nowhere\.png"):
        explain_chips(run, [tmp_path / "nowhere.png"], tmp_path / "out")
    small = tmp_path / "small.png"
    Image.new("RGB", (8, 8)).save(small)
    with pytest.raises(Refused, match=r"wanted uint8 \(32, 32, 3\)"):
        explain_chips(run, [small], tmp_path / "out")
    with pytest.raises(Refused, match="one name"):
        explain_chips(run, [pictures[0], pictures[0]], tmp_path / "out")
    before = pictures[0].read_bytes()
    with pytest.raises(Refused, match="holds the chips themselves"):
        explain_chips(run, pictures, tmp_path)
    assert pictures[0].read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="cannot be written"):
        explain_chips(run, pictures, tmp_path / "file")


def test_command(run, pictures, tmp_path):
    result = CliRunner().invoke(
        explain_command, [*map(str, pictures), "--run", str(run), "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.output
    assert f"{tmp_path / 'out' / 'two.png'}: burnt " in result.output
