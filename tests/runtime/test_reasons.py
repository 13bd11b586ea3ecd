"""The words beside a status."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from edge_infer import reasons


@pytest.mark.parametrize(
    ("wkt", "said"),
    [
        ("POLYGON ((0 0, 2 2, 2 0, 0 2, 0 0))", "its outline crosses itself near 1 1"),
        ("POLYGON ((0 0, 4 0, 4 4, 2 0, 0 4, 0 0))", "its outline touches itself near 2 0"),
        ("POLYGON ((0 0, 4 0, 4 4, 0 0), (9 9, 9 8, 8 8, 9 9))", "a hole lies outside of it near 9 9"),
        ("POLYGON EMPTY", "its geometry is empty"),
        ("POLYGON ((0 0, 2 2, inf 0, 0 0))", "its coordinates are not all finite"),
        (None, "it has no geometry, or none that can be read"),
    ],
)
def test_a_bad_geometry_says_what_is_bad(wkt: str | None, said: str) -> None:
    geometries = np.array([None if wkt is None else shapely.from_wkt(wkt)], dtype=object)
    (found,) = reasons.bad_geometries(geometries)
    assert found == said


def test_a_share_that_falls_short_never_reads_as_the_limit() -> None:
    for share in (0.49999, float(np.nextafter(np.float32(0.5), np.float32(0)))):
        said = reasons.too_little(share, 0.5, 1, 0.5)
        assert said == "49.9 % of its window is valid imagery, wanted 50 %"
    assert reasons.too_little(0.31, 0.5, 0.2, 0.75) == (
        "31 % of its window is valid imagery, wanted 50 %; 20 % of itself lies on valid imagery, wanted 75 %"
    )


def test_what_a_reader_says_is_bounded_and_one_line() -> None:
    said = reasons.unread("/a/b.tif: 3 x 3 pixels\ncannot be read: " + "no " * 500, "/a/b.tif")
    assert said.startswith("3 x 3 pixels cannot be read: no no")
    assert said.endswith("...")
    assert len(said) == reasons.LONGEST


def test_too_coarse_has_its_figures() -> None:
    assert reasons.too_coarse(0.6123, 0.45) == "0.612 m a pixel, the model wants 0.45 m or finer"
