"""Whole benchmarks: documents by the schema, from a made-up engine on recorded boards, and from OpenVINO."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from edge_infer.bench.chips import real_chips
from edge_infer.bench.scenario import Rule
from edge_infer.bench.session import BenchRequest, run_bench
from edge_infer.bench.table import describe
from edge_infer.bench.watch import PowerFigures, Watch
from edge_infer.bench.whole import identify, image_files
from edge_infer.bundle import open_bundle
from edge_infer.classify import classify
from edge_infer.coverage import cover
from edge_infer.device.cuda import GpuMemoryError
from edge_infer.engine.choose import open_engine
from edge_infer.errors import BundleError, EdgeInferError, EngineError, Refused
from edge_infer.feed import ChipBatch, stream_chips
from edge_infer.footprints import read_footprints
from edge_infer.imagery import open_imagery
from edge_infer.machine import Tree

SCHEMA = json.loads((Path(__file__).parents[3] / "docs" / "bench.schema.json").read_text())
SHORT = Rule(queries=70, samples=200, seconds=0, warm_up_seconds=0)
TEN_SECONDS = Rule(queries=1, samples=1, seconds=10, warm_up_seconds=1)


def checked(document):
    Draft202012Validator(SCHEMA).validate(document)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    return document


@pytest.fixture
def on_board(recorded, golden_bundle, fake_engine, clock):
    """Measures with the made-up engine on a recorded board."""
    boards: dict[str, Any] = {}

    def measure(name="orin-nx", *, change=lambda root: None, opener=None, say=lambda _: None, **options):
        board = boards.get(name) or boards.setdefault(name, recorded(name))
        change(board.root)

        def usual(bundle, *, engine, precision, batch, **_):
            precision = "fp32" if precision == "auto" else precision
            return fake_engine(batch=batch or 16, precision=precision)

        request = BenchRequest(**{"bundle": golden_bundle, "rule": TEN_SECONDS, **options})
        tree = Tree(board.root, board.run)
        return checked(run_bench(request, tree=tree, opener=opener or usual, clock=clock, say=say))

    return measure


def cool(root):
    for state in root.glob("sys/class/thermal/cooling_device*/cur_state"):
        state.write_text("0")


def test_a_steady_engine_on_a_cool_board_with_locked_clocks_is_valid(on_board):
    document = on_board(change=cool)
    assert document["doubts"] == []
    assert document["valid"]
    single, sixteen = document["alone"]
    assert single["latency"]["single_stream"]["p90_milliseconds"] == pytest.approx(11)
    assert single["latency"]["single_stream"]["p90_estimate_milliseconds"] == pytest.approx(11)
    assert sixteen["latency"]["single_stream"] is None
    assert single["offline"]["chips_per_second"] == pytest.approx(100, rel=0.01)
    assert sixteen["offline"]["chips_per_second"] == pytest.approx(1600, rel=0.01)
    assert single["golden"] == {
        "chips": 10,
        "same_class": 10,
        "largest_difference": pytest.approx(0, abs=1e-6),
        "limit": 0.001,
    }
    assert single["latency"]["milliseconds"].keys() == {"host_latency", "enqueue", "wall"}
    watts = 4.840 * 5.200  # of VDD_IN, all the time
    assert single["offline"]["power"]["total_watts"] == pytest.approx(watts, abs=1e-3)
    assert single["offline"]["power"]["joules_each"] == pytest.approx(watts / 100, rel=0.01)
    assert sixteen["latency"]["power"]["joules_each"] == pytest.approx(watts * 0.011 / 16, rel=0.01)
    assert document["machine"]["clocks_locked"] is True
    assert document["watched"]["celsius_before"]["tj-thermal"] == 99.5
    assert not document["rule"]["mlperf"]
    text = describe(document)
    assert text.endswith("\nvalid")
    assert "power mode MAXN_SUPER; clocks locked" in text
    assert "power: all that VDD_IN feeds, read every 0.1 s" in text
    assert "temperature of gpu-thermal: 99.5 °C before, 99.5 °C after" in text


def test_a_throttled_board_is_not_and_still_gives_its_figures(on_board):
    document = on_board()
    assert not document["valid"]
    assert len(document["doubts"]) == 1
    assert document["alone"][1]["offline"]["chips_per_second"] == pytest.approx(1600, rel=0.01)
    assert describe(document).splitlines()[-2] == "NOT VALID:"


def test_an_engine_that_slows_down_is_not_valid(on_board, fake_engine):
    def slowing(bundle, *, batch, **_):
        return fake_engine(batch=batch or 16, seconds_of=lambda number: 0.010 * (1 + number / 10_000))

    document = on_board(change=cool, opener=slowing, batches=(8,))
    assert [doubt.split(":")[0] for doubt in document["doubts"]] == [
        "fp32, batch 8, one at a time",
        "fp32, batch 8, offline",
    ]
    assert all("--burn-in" in doubt for doubt in document["doubts"])


def test_mlperfs_rule_is_said_to_be_met(on_board, fake_engine):
    def opener(bundle, *, batch, **_):
        return fake_engine(batch=batch, seconds_of=lambda number: 0.25)

    document = on_board(rule=Rule(warm_up_seconds=0), batches=(1,), opener=opener)
    assert document["rule"]["mlperf"]
    (cell,) = document["alone"]
    assert cell["latency"]["single_stream"]["comparable_with_mlperf"]
    assert cell["offline"]["comparable_with_mlperf"]
    assert cell["latency"]["seconds"] >= 600
    assert cell["latency"]["batches"] >= 1024
    assert cell["offline"]["chips"] >= 24_576
    assert len(cell["latency"]["samples"]) == 2000
    assert "MLPerf's rule wants" not in describe(document)


def test_burning_in_comes_first_and_once(on_board, clock, fake_engine):
    engines = []

    def opener(bundle, *, batch, **_):
        engines.append(fake_engine(batch=batch))
        return engines[-1]

    on_board(opener=opener, batches=(1, 2), burn_in_seconds=30)
    batches = [len(engine.submitted) for engine in engines]
    assert batches[0] - batches[1] == pytest.approx(30 / 0.010, rel=0.01)
    assert all(engine.closed for engine in engines)


def test_burning_in_waits_for_an_engine_that_opens(on_board, fake_engine):
    engines = []

    def opener(bundle, *, batch, **_):
        if batch == 1:
            raise EngineError("not here")
        engines.append(fake_engine(batch=batch))
        return engines[-1]

    on_board(opener=opener, batches=(1, 2), burn_in_seconds=30)
    assert len(engines[0].submitted) > 30 / 0.010


def test_a_sweep_of_all_precisions(on_board):
    document = on_board(precision="all", engine="openvino", batches=(1, 8))
    assert [(cell["engine"]["precision"], cell["engine"]["batch"]) for cell in document["alone"]] == [
        ("fp32", 1),
        ("fp32", 8),
    ]  # all that the bundle holds


def test_an_engine_that_cannot_be_opened_does_not_cost_the_others(on_board, fake_engine):
    said: list[str] = []

    def opener(bundle, *, batch, **_):
        if batch == 8:
            raise EngineError("no room for 8; use fewer")
        return fake_engine(batch=batch)

    document = on_board(opener=opener, batches=(1, 8, 4), say=said.append)
    assert [cell["engine"]["batch"] for cell in document["alone"]] == [1, 4]
    assert document["skipped"] == [{"what": "batch 8", "reason": "no room for 8; use fewer"}]
    assert "left out: batch 8: no room for 8; use fewer" in describe(document)
    assert "batch 8: left out: no room for 8; use fewer" in said
    assert "batch 8 was not measured: no room for 8; use fewer" in document["doubts"]
    with pytest.raises(EngineError, match="no room"):
        on_board(opener=opener, batches=(8,))


@pytest.mark.parametrize(
    "failure",
    [GpuMemoryError("no memory"), EdgeInferError("lost"), OSError(28, "full"), RuntimeError("infer")],
)
def test_an_engine_that_breaks_off_does_not_cost_the_others(on_board, fake_engine, failure):
    def opener(bundle, *, batch, **_):
        def answer(probabilities):
            if batch == 8 and len(engine.submitted) > 40:
                raise failure
            return probabilities

        engine = fake_engine(batch=batch, answer=answer)
        return engine

    document = on_board(change=cool, opener=opener, batches=(1, 8, 4))
    assert [cell["engine"]["batch"] for cell in document["alone"]] == [1, 4]
    assert document["doubts"] == [f"batch 8 was not measured: {failure}"]


def test_an_engine_that_answers_wrongly_is_not_valid(on_board, fake_engine):
    def opener(bundle, *, batch, **_):
        return fake_engine(batch=batch, answer=lambda probabilities: probabilities[:, ::-1])

    document = on_board(change=cool, opener=opener, batches=(4,))
    assert len(document["doubts"]) == 1
    assert document["doubts"][0].startswith("fp32, batch 4: golden chips' probabilities differ by ")
    assert "at most 0.001 is wanted" in document["doubts"][0]


def test_a_gpu_whose_clock_moved_is_not_valid(fake_engine, recorded, clock, golden_bundle, monkeypatch):
    """The driver does not tell whether it is locked: one that moves while an engine is measured is not."""
    looks = iter(range(10_000))

    def run(arguments):
        if not any("clocks.sm" in argument for argument in arguments):
            return None
        return f"NVIDIA L4, 550.54, 41, {1980 - 15 * (next(looks) % 2)}, 2040, 71.5, 72.0, 0x0\n"

    def opener(bundle, *, batch, **_):
        def answer(probabilities):
            watches[0].mark()
            return probabilities

        return fake_engine(batch=batch, device=devices[0], answer=answer)

    board = recorded("laptop")
    request = BenchRequest(bundle=golden_bundle, rule=TEN_SECONDS, batches=(8,))
    watches: list[Watch] = []

    def watching(*arguments, **options):
        watches.append(Watch(*arguments, **options))
        return watches[0]

    monkeypatch.setattr("edge_infer.bench.session.Watch", watching)
    devices = ["NVIDIA L4"]
    document = checked(run_bench(request, tree=Tree(board.root, run), opener=opener, clock=clock))
    assert any("the clock of NVIDIA L4 went from 1,965 to 1,980 MHz" in one for one in document["doubts"])
    assert document["alone"][0]["card_clocks_mhz"] == {"NVIDIA L4": [1965, 1980]}
    watches.clear()
    devices[0] = "some CPU"
    document = run_bench(request, tree=Tree(board.root, run), opener=opener, clock=clock)
    assert not any("the clock of" in one for one in document["doubts"]), "it does not run there"


def test_an_interrupted_benchmark_keeps_what_it_has(on_board, fake_engine):
    def opener(bundle, *, batch, **_):
        if batch == 8:
            raise KeyboardInterrupt
        return fake_engine(batch=batch)

    document = on_board(change=cool, opener=opener, batches=(1, 8, 4))
    assert document["interrupted"]
    assert document["doubts"] == ["it was interrupted before all was measured"]
    assert [cell["engine"]["batch"] for cell in document["alone"]] == [1]
    with pytest.raises(KeyboardInterrupt):
        on_board(opener=opener, batches=(8,))


def test_whole_runs_over_footprints(town, monkeypatch, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    options = dict(zip(town.inputs[::2], map(Path, town.inputs[1::2]), strict=True))
    request = BenchRequest(
        bundle=options["--model"],
        imagery=(options["--imagery"],),
        footprints=options["--footprints"],
        rule=SHORT,
        batches=(8,),
        runs=2,
    )
    opened: list[Any] = []

    def opener(*arguments, **options):
        opened.append(options["batch"])
        return open_engine(*arguments, **options)

    class Meter(Watch):
        """10 W, all the time."""

        def power(self, start, end):
            return PowerFigures(
                watts={"X": 10.0}, total_watts=10.0, total_is="X", seconds=end - start, readings=2
            )

    monkeypatch.setattr("edge_infer.bench.session.Watch", Meter)
    document = checked(run_bench(request, opener=opener))
    assert list(scratch.iterdir()) == []
    assert len(opened) >= 1 + 1 + len(document["whole"]["runs"]), "once untimed, before the runs"
    assert document["options"]["batches"] == [8]
    assert document["inputs"]["images"] == 1
    assert document["chips"] == "64 chips of the imagery", "the bundle has no golden ones"
    assert document["alone"][0]["golden"] is None
    whole = document["whole"]
    assert whole["engine"]["batch"] == 8
    caches = [run["cache"] for run in whole["runs"]]
    if any("no runs from a cold cache" in note for note in document["notes"]):
        assert caches == ["warm", "warm"]
    else:
        assert caches == ["cold", "warm", "cold", "warm"]
        assert whole["runs"][0]["cached_share"] <= 0.05
    for run in whole["runs"]:
        assert run["footprints"] == 1000
        assert run["statuses"]["ok"] == run["classified"] > 800
        assert 0 < run["seconds"]["stream"] <= run["seconds"]["total"]
        joules = [run[name]["joules"] for name in ("power", "power_in_all")]
        assert joules[0] == pytest.approx(10 * run["seconds"]["stream"], abs=0.02)
        assert joules[1] > 10 * run["seconds"]["total"] - 0.02
        assert run["power"]["joules_each"] == pytest.approx(joules[0] / run["classified"], rel=1e-3)
    doubts = [doubt for doubt in document["doubts"] if doubt.startswith("whole runs, warm")]
    assert doubts == ["whole runs, warm cache: 2 runs, wanted 3: give more --runs"]
    text = describe(document)
    assert "whole runs over 1,000 footprints, openvino fp32, batch 8" in text
    assert "J each in all" in text
    assert "OpenVINO is compiled for throughput" in text
    assert "median footprints/s:" in text


@pytest.fixture
def town_request(town):
    options = dict(zip(town.inputs[::2], map(Path, town.inputs[1::2]), strict=True))
    return BenchRequest(
        bundle=options["--model"],
        imagery=(options["--imagery"],),
        footprints=options["--footprints"],
        rule=Rule(queries=4, samples=4, seconds=0, warm_up_seconds=0),
        batches=(8,),
        runs=1,
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"footprints": Path("none.gpkg")}, "none.gpkg"),
        ({"layer": "none"}, "none"),
        ({"where": "no_such_column = 1"}, "no_such_column"),
        ({"footprints_crs": "EPSG:32633"}, "no footprint of .* can be classified"),
    ],
)
def test_inputs_are_refused_before_anything_is_measured(town_request, change, words):
    def opener(*_, **__):
        raise AssertionError("an engine was opened")

    with pytest.raises(Refused, match=words):
        run_bench(replace(town_request, **change), opener=opener)


def test_a_run_that_breaks_off_costs_neither_the_engines_nor_the_runs_before(town_request, monkeypatch):
    done: list[Any] = []

    def twice(*arguments, **options):
        if len(done) == 2:
            raise OSError(28, "No space left on device")
        done.append(classify(*arguments, **options))
        return done[-1]

    monkeypatch.setattr("edge_infer.bench.whole.classify", twice)
    monkeypatch.setattr("edge_infer.bench.pagecache.drop", lambda files: None)
    document = checked(run_bench(replace(town_request, runs=3)))
    assert len(document["alone"]) == 1
    assert [run["cache"] for run in document["whole"]["runs"]] == ["cold", "warm"]
    assert "whole runs broke off after 2: [Errno 28] No space left on device" in document["doubts"]


def test_a_cache_that_cannot_be_emptied_any_more_gives_no_cold_run(town_request, monkeypatch):
    answers = iter([None, None, "a program maps it"])
    monkeypatch.setattr("edge_infer.bench.pagecache.drop", lambda files: next(answers))
    document = checked(run_bench(replace(town_request, runs=2)))
    assert [run["cache"] for run in document["whole"]["runs"]] == ["cold", "warm", "warm"]
    assert "a run from a cold cache was left out: a program maps it" in document["notes"]


def test_overviews_and_masks_beside_an_image_are_put_out_of_memory_too(write_raster):
    image = write_raster("a.tif", np.full((3, 64, 64), 90, np.uint8))
    sides = [image.with_name(f"a.tif{suffix}") for suffix in (".ovr", ".ovr.msk", ".msk", ".msk.ovr")]
    for side in sides:
        side.write_bytes(b"II*\0")
    (image.parent / "a.tif.aux.xml").write_text("<PAMDataset/>")
    found: Any = SimpleNamespace(images=(SimpleNamespace(path=str(image)),))
    assert image_files(found) == [image, *sides]


def test_inputs_are_identified_by_content(town_request):
    bundle = open_bundle(town_request.bundle)
    request = town_request.whole_run()
    imagery = open_imagery(request.imagery, bundle.manifest.contract)
    found = identify(request, imagery)
    assert found == identify(request, imagery)
    assert found["images"] == len(imagery.images)
    other = identify(replace(request, footprints=None), imagery)
    assert (other["imagery"], other["footprints"]) == (found["imagery"], None)


def test_the_chips_of_the_imagery_are_those_that_a_run_would_cut(town):
    options = dict(zip(town.inputs[::2], map(Path, town.inputs[1::2]), strict=True))
    bundle = open_bundle(options["--model"])
    contract = bundle.manifest.contract
    imagery = open_imagery([options["--imagery"]], contract)
    coverage = cover(read_footprints(options["--footprints"]), imagery, contract)
    found = real_chips(bundle, imagery, coverage)
    rows = np.flatnonzero(coverage.status == "pending")
    batches = stream_chips(imagery.images, coverage, contract, rows)
    every = {chip.tobytes() for batch in batches if isinstance(batch, ChipBatch) for chip in batch.chips}
    assert found.chips.shape == (64, *contract.chip_shape)
    assert {chip.tobytes() for chip in found.chips} <= every


def test_no_real_chips_no_benchmark(make_bundle):
    with pytest.raises(Refused, match="made-up ones would give made-up times"):
        run_bench(BenchRequest(bundle=make_bundle()))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"footprints": Path("a.gpkg")}, "lie on no imagery"),
        ({"batches": (1, 0)}, "got 1, 0"),
        ({"batches": (1, 8, 1)}, "measured once, got 1, 8, 1"),
        ({"burn_in_seconds": -1}, "--burn-in"),
        ({"runs": 0}, "--runs"),
    ],
)
def test_requests_that_mean_nothing_are_refused(wrong, words):
    with pytest.raises(Refused, match=words):
        BenchRequest(bundle=Path("m.edgemodel"), **wrong)


def test_no_bundle(tmp_path):
    with pytest.raises(BundleError):
        run_bench(BenchRequest(bundle=tmp_path / "none.edgemodel"))


def test_the_schema_finds_what_is_missing_or_too_much(on_board):
    Draft202012Validator.check_schema(SCHEMA)
    document = on_board(batches=(1,))
    validator = Draft202012Validator(SCHEMA)
    for spoil in (
        lambda cell: cell["latency"].pop("power"),
        lambda cell: cell["latency"]["milliseconds"].update(h2d=cell["latency"]["milliseconds"]["wall"]),
        lambda cell: cell.update(more=1),
        lambda cell: cell["engine"].update(precision="int4"),
        lambda cell: cell["offline"]["steadiness"].update(spread=-1),
    ):
        spoiled = json.loads(json.dumps(document))
        spoil(spoiled["alone"][0])
        assert not validator.is_valid(spoiled)
