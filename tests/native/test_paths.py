"""Every way to a chip makes the same chip: what a CUDA thread computes, plain vectors, wide vectors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_infer._native import _ext

FAST_PATHS = [path for path in _ext.PATHS if path is not _ext.Path.PIXELWISE]


def run(
    path: _ext.Path,
    pixels: np.ndarray,
    valid: np.ndarray | None,
    boxes: np.ndarray,
    side: int,
    value_range: tuple[float, float],
    threads: int,
) -> tuple[np.ndarray, np.ndarray]:
    out = np.full((len(boxes), side, side, len(pixels)), 77, np.uint8)
    valid_fraction = np.full(len(boxes), np.nan, np.float32)
    _ext.sample(pixels, valid, boxes, out, valid_fraction, *value_range, threads, path)
    return out, valid_fraction


@pytest.mark.parametrize("path", FAST_PATHS)
@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(1, 16), st.integers(1, 70), st.integers(1, 70)),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    invalid=st.sampled_from([None, 0.0, 0.01, 0.5, 0.99]),
    side=st.integers(1, 50),
    whole=st.booleans(),
    value_range=st.sampled_from([(0.0, 255.0), (0.0, 65535.0), (12.5, 190.0)]),
    threads=st.integers(1, 3),
)
def test_fast_paths_equal_the_pixelwise_one_to_the_last_bit(
    path, seed, shape, dtype, invalid, side, whole, value_range, threads
):
    random = np.random.default_rng(seed)
    pixels = random.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    valid = None if invalid is None else (random.random(shape[1:]) >= invalid).astype(np.uint8)
    boxes = np.column_stack([random.uniform(-20, 70, (3, 2)), random.uniform(0.01, 140, (3, 2))])
    if whole:
        boxes = np.column_stack([np.floor(boxes[:, :2]), np.full((3, 2), side)])
    expected = run(_ext.Path.PIXELWISE, pixels, valid, boxes, side, value_range, 1)
    found = run(path, pixels, valid, boxes, side, value_range, threads)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_refuses_arrays_that_do_not_fit_together():
    pixels, boxes = np.zeros((3, 9, 9), np.uint8), np.array([[0.0, 0.0, 4.0, 4.0]])
    out, valid_fraction = np.zeros((1, 8, 8, 2), np.uint8), np.zeros(1, np.float32)
    with pytest.raises(ValueError, match="do not fit together"):
        _ext.sample(pixels, None, boxes, out, valid_fraction, 0.0, 255.0, 1, _ext.Path.PIXELWISE)
