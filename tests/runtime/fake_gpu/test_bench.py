"""The benchmark of an engine whose device has clocks of its own: trtexec's parts, all of them."""

from __future__ import annotations

import numpy as np

from edge_infer.bench.alone import measure_cell
from edge_infer.bench.chips import RealChips
from edge_infer.bench.scenario import Rule
from edge_infer.bench.watch import Watch
from edge_infer.machine import Tree


def test_a_gpus_engine_is_timed_by_its_own_clocks(open_engine, contract, tmp_path):
    chips = np.random.default_rng(0).integers(0, 256, (9, *contract.chip_shape), np.uint8)
    rule = Rule(queries=70, samples=100, seconds=0, warm_up_seconds=0)
    with Watch(Tree(tmp_path, lambda _: None)) as watch:
        opened = lambda: open_engine(sample_on="cpu").thing  # noqa: E731 - measure_cell closes it
        cell = measure_cell(opened, RealChips(chips, None, lambda _: 1.0, "made up"), rule, watch).to_json()
    times = cell["latency"]["milliseconds"]
    assert list(times) == ["h2d", "compute", "d2h", "host_latency", "enqueue", "wall"]
    assert [times[part]["p50"] for part in ("h2d", "compute", "d2h", "host_latency")] == [1, 1, 1, 3]
    assert cell["latency"]["batches"] == 70
    assert cell["offline"]["chips"] == 100
