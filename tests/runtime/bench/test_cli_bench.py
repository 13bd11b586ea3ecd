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


def test_a_picture_of_names_that_hold_dollars(bench, golden_bundle, tmp_path):
    """Matplotlib takes what stands between two of them for a formula."""
    pytest.importorskip("matplotlib")
    file = tmp_path / "a$x^{$.json"
    bench(golden_bundle, "--batch", "1", *QUICK, "--json", file)
    document = json.loads(file.read_text())
    document["model"]["name"] = "town $\\nosuch$"
    file.write_text(json.dumps(document))
    assert bench("--compare", file, file, "--plot", tmp_path / "both.svg")[0] == 0
    assert (tmp_path / "both.svg").exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: document.update(alone=[]),
        lambda document: document["alone"][0]["engine"].update(precision="int4"),
        lambda document: document["alone"][0]["engine"].update(batch="many"),
        lambda document: document["alone"][0]["latency"]["milliseconds"]["wall"].update(p50="x"),
    ],
)
def test_a_malformed_document_is_refused(bench, golden_bundle, tmp_path, spoil):
    pytest.importorskip("matplotlib")
    file = tmp_path / "a.json"
    bench(golden_bundle, "--batch", "2", *QUICK, "--json", file)
    document = json.loads(file.read_text())
    spoil(document)
    file.write_text(json.dumps(document))
    code, _, err = bench("--show", file, "--plot", tmp_path / "a.png")
    assert (code, "malformed" in err) == (2, True)


def test_rates_of_zero_are_refused(bench, golden_bundle, tmp_path):
    file = tmp_path / "a.json"
    bench(golden_bundle, "--batch", "2", *QUICK, "--json", file)
    document = json.loads(file.read_text())
    document["alone"][0]["latency"]["milliseconds"]["wall"]["p50"] = 0
    file.write_text(json.dumps(document))
    code, _, err = bench("--compare", file, file)
    assert (code, "malformed" in err) == (2, True)


def test_what_was_measured_is_printed_where_it_cannot_be_kept(bench, golden_bundle, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edge_infer.bench.document.replace_durably", full)
    code, out, err = bench(golden_bundle, "--batch", "2", *QUICK, "--json", tmp_path / "a.json")
    assert code == 2
    assert "chips/s" in out
    assert "No space left on device" in err


def test_what_was_measured_is_kept_where_it_cannot_be_printed(bench, golden_bundle, tmp_path, monkeypatch):
    def closed(text, err=False):
        if not err:
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("click.echo", closed)
    with pytest.raises(SystemExit):
        main(["bench", str(golden_bundle), "--batch", "2", *QUICK, "--json", str(tmp_path / "a.json")])
    assert json.loads((tmp_path / "a.json").read_text())["alone"]


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
        (("m.edgemodel", "--batch", "1,1"), "each batch is measured once"),
        (("--feed", "--compare", "a.json", "b.json"), "--feed measures"),
        (("--feed", "--show", "a.json"), "--feed measures"),
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
