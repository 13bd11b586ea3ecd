"""`edge-infer bench` as a user sees it, with OpenVINO on this machine."""

from __future__ import annotations

import json
import struct

import pytest

from edge_infer.cli import main

QUICK = ("--queries", "64", "--warm-up", "0")


@pytest.fixture
def bench(capsys):
    """Runs the command: exit code, standard output, standard error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["bench", *map(str, arguments)])
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return run


def test_measured_but_not_valid_is_exit_code_3(bench, golden_bundle, tmp_path):
    file = tmp_path / "a.json"
    code, out, err = bench(golden_bundle, "--batch", "1,4", *QUICK, "--json", file)
    assert code == 3, "too short to be judged"
    assert "NOT VALID:\n  - " in out
    assert "too short to be judged" in out
    assert "not comparable with its figures" in out
    assert "2 engines to measure, 0:00:00 at least" in err
    document = json.loads(file.read_text())
    assert [cell["engine"]["batch"] for cell in document["alone"]] == [1, 4]
    assert bench("--show", file) == (0, out, "")


def test_json_alone_on_standard_output(bench, golden_bundle):
    _, out, _ = bench(golden_bundle, "--batch", "2", *QUICK, "--json", "-")
    assert json.loads(out)["alone"][0]["latency"]["batches"] == 64


def test_compared_with_itself(bench, golden_bundle, tmp_path):
    file, both = tmp_path / "a.json", tmp_path / "both.json"
    bench(golden_bundle, "--batch", "2", *QUICK, "--json", file)
    code, out, err = bench("--compare", file, file, "--json", both)
    assert (code, err) == (0, "")
    assert out.startswith(f"{file} against {file}\nDIFFERS: the first is NOT VALID: ")
    assert "no difference seen" in out
    assert {one["ratio"] for one in json.loads(both.read_text())["ratios"]} == {1.0}


def test_a_picture(bench, golden_bundle, tmp_path):
    pytest.importorskip("matplotlib")
    file, picture = tmp_path / "a.json", tmp_path / "a.png"
    bench(golden_bundle, "--batch", "1,2", *QUICK, "--json", file, "--plot", picture)
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert width > 1000 < 2 * height
    code, _, _ = bench("--compare", file, file, "--plot", tmp_path / "both.svg")
    assert code == 0
    assert "<svg" in (tmp_path / "both.svg").read_text()
    code, _, err = bench("--show", file, "--plot", tmp_path / "a.nonsense")
    assert code == 2
    assert "name a file that ends in .png" in err


def test_without_matplotlib_it_measures_and_says_so(bench, golden_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("edge_infer.bench.plot.find_spec", lambda name: None)
    code, out, err = bench(golden_bundle, "--batch", "2", *QUICK, "--plot", tmp_path / "a.png")
    assert code == 3
    assert "chips/s" in out
    assert "no picture: Matplotlib is not installed here" in err
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name a MODEL"),
        (("m.edgemodel", "--show", "a.json"), "name a MODEL"),
        (("m.edgemodel", "--batch", "1,x"), "found '1,x', wanted numbers"),
        (("m.edgemodel", "--batch", "0"), "a batch is of 1 chip or more"),
        (("m.edgemodel", "--footprints", "a.gpkg"), "lie on no imagery"),
        (("m.edgemodel", "--json", "/no/such/folder/a.json"), "cannot be written"),
        (("m.edgemodel",), "no such file"),
        (("--show", "none.json"), "cannot be read"),
    ],
)
def test_refused_in_one_line_before_anything_is_measured(bench, arguments, words):
    code, out, err = bench(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err


def test_a_precision_that_the_bundle_does_not_hold(bench, golden_bundle):
    code, _, err = bench(golden_bundle, "--precision", "int8", "--engine", "openvino", *QUICK)
    assert code == 2
    assert "holds no INT8 model" in err
