"""Two documents against each other: known ratios, and everything in which they differ."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest

from edge_infer.bench.compare import Ratio, compare
from edge_infer.bench.document import FORMAT, VERSION, read_document, write_document
from edge_infer.errors import OutputError, Refused


def times(values):
    names = ("p50", "p90", "p99")
    return dict(zip(names, (float(value) for value in np.quantile(values, (0.5, 0.9, 0.99))), strict=True))


def cell(precision="int8", batch=8, wait=10.0, seed=0):
    rng = np.random.default_rng(seed)
    walls, rates = rng.normal(wait, 0.2, 1000), rng.normal(1000 * batch / wait, 5, 60)
    return {
        "engine": {
            "name": "openvino",
            "version": "1",
            "device": "paper",
            "precision": precision,
            "batch": batch,
        },
        "latency": {"milliseconds": {"wall": times(walls)}, "samples": walls.tolist()},
        "offline": {"chips_per_second": 1 / float((1 / rates).mean()), "samples": rates.tolist()},
    }


def made(*cells, **changes):
    machine = {
        "board": {"name": "Orin"}, "cpu": {"model": "A78", "cores": 6}, "graphics_cards": None,
        "jetson_linux": {"release": [36, 4, 3]}, "power_mode": {"name": "25W"}, "clocks_locked": True,
        "software": {"numpy": "2"},
    }  # fmt: skip
    return {
        "format": FORMAT, "version": VERSION, "valid": True, "doubts": [], "machine": machine,
        "model": {"sha256": "a" * 64}, "chips": "golden", "rule": {"seconds": 10}, "alone": list(cells),
        "options": {"threads": None, "gpu_memory": "auto"}, "inputs": None, "whole": None, **changes,
    }  # fmt: skip


def by_name(comparison):
    return {one.what: one for one in comparison.ratios}


def test_a_faster_engine_is_found_with_an_interval_around_the_true_ratio():
    found = compare(made(cell(wait=10)), made(cell(wait=8, seed=1)))
    assert found.differences == ()
    ratios = by_name(found)
    assert list(ratios) == [
        *(f"int8, batch 8: wait {name}, ms" for name in ("p50", "p90", "p99")),
        "int8, batch 8: chips/s",
    ]
    wait, rate = ratios["int8, batch 8: wait p50, ms"], ratios["int8, batch 8: chips/s"]
    assert wait.low < 0.8 < wait.high < 0.81
    assert 1.24 < rate.low < 1.25 < rate.high
    assert {one.verdict for one in found.ratios} == {"better"}
    back = by_name(compare(made(cell(wait=8, seed=1)), made(cell(wait=10))))
    assert {one.verdict for one in back.values()} == {"worse"}
    assert back["int8, batch 8: chips/s"].ratio == pytest.approx(1 / rate.ratio)


def test_no_difference_is_seen_where_there_is_none():
    found = compare(made(cell()), made(cell(seed=1)))
    assert {one.verdict for one in found.ratios} == {"no difference seen"}
    assert all(one.bootstrap for one in found.ratios)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("model", "sha256"), "b" * 64, "model: " + "a" * 64),
        (("machine", "board", "name"), "Thor", "board: Orin and Thor"),
        (("machine", "board"), None, "board: Orin and unknown"),
        (("machine", "cpu", "cores"), 4, "cores: 6 and 4"),
        (("machine", "power_mode", "name"), "15W", "power mode: 25W and 15W"),
        (("machine", "clocks_locked"), False, "clocks locked: True and False"),
        (("machine", "graphics_cards"), [{"name": "H100", "driver": "1"}], "graphics card: unknown and H100"),
        (("machine", "software", "numpy"), "1", "software numpy: 2 and 1"),
        (("rule", "seconds"), 600, "rule seconds: 10 and 600"),
        (("chips",), "other", "chips: golden and other"),
        (("options", "gpu_memory"), "mapped", "options gpu_memory: auto and mapped"),
        (("inputs",), {"images": 1, "imagery": "c", "footprints": "d"}, "footprints: unknown and d"),
        (("alone", 0, "engine", "version"), "2", "engine, int8, batch 8, version: 1 and 2"),
    ],
)
def test_every_difference_is_said(path, value, words):
    before, after = made(cell()), made(cell())
    place = after
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    found = compare(before, after)
    assert any(difference.startswith(words) for difference in found.differences)
    assert words in found.describe(("a.json", "b.json"))


def test_what_only_one_has_is_said_and_left_out():
    found = compare(made(cell(), cell(batch=1, wait=2)), made(cell(), cell("fp32")))
    assert {
        "int8, batch 1 was measured in one of them only",
        "fp32, batch 8 was measured in one of them only",
    } <= set(found.differences)
    assert {one.what.split(":")[0] for one in found.ratios} == {"int8, batch 8"}


def test_doubts_travel_along():
    found = compare(made(cell()), made(cell(), valid=False, doubts=["it was hot", "and loud"]))
    assert found.differences == ("the second is NOT VALID: it was hot (and 1 more reasons, see --show)",)


def whole(*rates, **engine):
    """A document of whole runs, at these footprints/s."""
    runs = [
        {"cache": "warm", "footprints_per_second": rate, "footprints": 50, "classified": 40} for rate in rates
    ]
    facts = {
        "name": "openvino",
        "version": "1",
        "device": "paper",
        "precision": "int8",
        "batch": 16,
        **engine,
    }
    return made(whole={"engine": facts, "threads": 2, "runs": runs})


def test_a_stall_lies_within_the_interval():
    """20 s of 60 in which nothing came: the rate is that of all the work in all the time."""
    steady = cell(precision="fp32", batch=1)
    steady["offline"] = {"chips_per_second": 100.0, "samples": [100.0] * 60}
    stalled = copy.deepcopy(steady)
    stalled["offline"] = {"chips_per_second": 75.0, "samples": [100.0] * 59 + [100 / 21.0]}
    assert 60 / (59 / 100 + 21 / 100) == 75.0, "60 pieces of equal work"
    one = by_name(compare(made(steady), made(stalled)))["fp32, batch 1: chips/s"]
    assert one.bootstrap
    assert one.low < 0.75 <= one.ratio <= one.high


def test_many_whole_runs_are_compared_by_their_medians():
    before = [100.0, 101, 99, 100, 102, 98, 100, 101, 99, 20]
    (one,) = compare(whole(*before), whole(*(value * 1.1 for value in before[:-1]), 2000)).ratios
    assert one.bootstrap
    assert one.ratio == pytest.approx(1.1, rel=0.01)
    assert 1.05 < one.low <= one.ratio <= one.high < 1.15, "a mean would lie far off"
    assert one.verdict == "better"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"precision": "fp32"}, "whole runs, engine, precision: int8 and fp32"),
        ({"batch": 64}, "whole runs, engine, batch: 16 and 64"),
        ({"name": "tensorrt"}, "whole runs, engine, name: openvino and tensorrt"),
    ],
)
def test_engines_of_whole_runs_are_compared(change, words):
    assert compare(whole(100, 100), whole(100, 100, **change)).differences == (words,)


def test_what_whole_runs_were_over_is_compared():
    other = whole(100, 100)
    other["whole"]["threads"] = 4
    other["whole"]["runs"][0]["footprints"] = 51
    found = compare(whole(100, 100), other).differences
    assert found == ("whole runs, threads: 2 and 4", "whole runs, footprints: 50 and 51")


def test_runs_that_classified_nothing_have_no_ratio():
    both = whole(100, 0), whole(100, 90)
    for document in both:
        document["alone"] = [cell()]
    assert {one.what.split(":")[0] for one in compare(*both).ratios} == {"int8, batch 8"}
    assert "better" not in compare(*both).describe(("a", "b"))


def test_the_verdict_is_the_intervals():
    """A ratio of percentiles may fall beside the interval of thinned samples."""
    one = Ratio(what="x", before=1, after=1.01, low=0.9, high=0.99, bootstrap=True, more_is_better=True)
    assert one.verdict == "worse"
    assert replace(one, more_is_better=False).verdict == "better"


def test_whole_runs_are_compared_by_their_extremes():
    (one,) = compare(whole(100, 104, 96), whole(120, 118, 125)).ratios
    assert not one.bootstrap
    assert [one.ratio, one.low, one.high] == pytest.approx([1.2, 118 / 104, 125 / 96])
    assert one.verdict == "better"
    (one,) = compare(whole(100, 104, 96), whole(101, 99, 107)).ratios
    assert one.verdict == "no difference seen"


def test_nothing_in_common_is_refused():
    with pytest.raises(Refused, match="no precision and batch in common"):
        compare(made(cell()), made(cell("fp32")))


def test_malformed_documents_are_refused():
    good = made(cell())
    for name in ("machine", "alone", "model"):
        spoiled = copy.deepcopy(good)
        spoiled[name] = 7
        with pytest.raises(Refused, match="malformed"):
            compare(good, spoiled)
    for spoil in (
        lambda cell: cell["latency"].update(samples=["x"]),
        lambda cell: cell["latency"]["milliseconds"]["wall"].update(p50=0.0),
        lambda cell: cell["offline"].update(chips_per_second=0.0),
        lambda cell: cell["offline"].update(samples=[0.0] * 60),
    ):
        spoiled = made(cell())
        spoil(spoiled["alone"][0])
        with pytest.raises(Refused, match="malformed"):
            compare(spoiled, good)


def test_a_terminal_obeys_no_document():
    found = compare(made(cell(), chips="a\x1b[31m\nb"), made(cell()))
    assert "DIFFERS: chips: a [31m b and golden" in found.describe(("a", "b"))


def test_documents_are_kept_and_read(tmp_path):
    path = tmp_path / "a.json"
    write_document(path, made(cell()))
    assert read_document(path) == made(cell())
    with pytest.raises(OutputError):
        write_document(tmp_path / "none" / "a.json", {})
    for content, words in (
        ("{", "no JSON"),
        ("[]", "wanted 'edge-infer bench'"),
        ('{"format": "x"}', "is 'x'"),
    ):
        path.write_text(content)
        with pytest.raises(Refused, match=words):
            read_document(path)
    with pytest.raises(Refused, match="cannot be read"):
        read_document(tmp_path / "none.json")
