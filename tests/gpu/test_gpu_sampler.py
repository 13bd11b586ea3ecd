"""The CUDA kernels against the CPU's sampler, which Pillow is the oracle of."""

from __future__ import annotations

import numpy as np
import pytest
from cutting import cut_on_cpu, cut_on_gpu, random_boxes, random_tile  # type: ignore[import-not-found]


@pytest.mark.parametrize("bands", [1, 3, 4, 8, 16])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_chips_are_the_cpus_to_the_last_bit(device, bands, wide, masked):
    """4,800 windows over all cases; not one grey level apart, as the arithmetic is the same."""
    rng = np.random.default_rng([bands, wide, masked])
    for side in (1, 16, 33, 224):
        tile = random_tile(rng, bands=bands, wide=wide, masked=masked)
        boxes = random_boxes(rng, tile, 60, side)
        low, high = sorted(rng.uniform(0, 65_535 if wide else 255, 2))
        value_range = (low, high + 1.0)
        chips, valid = cut_on_gpu(device, tile, boxes, side, value_range)
        expected, expected_valid = cut_on_cpu(tile, boxes, side, value_range)
        apart = np.abs(chips.astype(int) - expected)
        assert apart.max() == 0, f"{(apart > 0).mean():.4%} of the values differ"
        assert valid.tolist() == expected_valid.tolist()
