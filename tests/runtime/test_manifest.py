from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_infer.errors import BundleError, ContractError
from edge_infer.manifest import ChipContract

SIZES = st.floats(min_value=1e-3, max_value=1e6)


def contract_values(**changes: Any) -> dict[str, Any]:
    return {
        "ground_metres": 30.0,
        "chip_pixels": 224,
        "bands": ("red", "green", "blue"),
        "coarsest_gsd_metres": 0.5,
        **changes,
    }


@given(
    ground=SIZES,
    factor=SIZES,
    buffer=st.floats(0, 1e6),
    blacken=st.booleans(),
    gsd=SIZES,
    pixels=st.integers(8, 2048),
    mode=st.sampled_from(["fixed", "footprint"]),
    dtype=st.sampled_from(["uint8", "uint16"]),
    bands=st.lists(st.text(min_size=1), min_size=1, max_size=16),
    low=st.integers(0, 1000),
    span=st.integers(1, 60000),
)
def test_contract_survives_json(ground, factor, buffer, blacken, gsd, pixels, mode, dtype, bands, low, span):
    contract = ChipContract(
        window_mode=mode,
        ground_metres=ground,
        context_factor=factor,
        buffer_metres=buffer,
        blacken=blacken,
        chip_pixels=pixels,
        bands=tuple(bands),
        dtype=dtype,
        value_range=(float(low), float(low + span)),
        coarsest_gsd_metres=gsd,
    )
    assert ChipContract.from_json(contract.to_json()) == contract


@pytest.mark.parametrize(
    "changes",
    [
        {"window_mode": "square"},
        {"dtype": "float32"},
        {"ground_metres": 0},
        {"ground_metres": math.nan},
        {"context_factor": -1},
        {"buffer_metres": -1.0},
        {"buffer_metres": math.nan},
        {"blacken": 1},
        {"coarsest_gsd_metres": math.inf},
        {"chip_pixels": 7},
        {"chip_pixels": 2049},
        {"bands": ()},
        {"bands": ("gray",) * 17},
        {"value_range": (5.0, 5.0)},
        {"value_range": (0.0, math.inf)},
    ],
)
def test_contract_refuses(changes):
    with pytest.raises(ContractError):
        ChipContract(**contract_values(**changes))


@pytest.mark.parametrize("missing", ["window_mode", "bands", "value_range", "coarsest_gsd_metres"])
def test_contract_needs_every_value(missing):
    values = ChipContract(**contract_values()).to_json()
    del values[missing]
    with pytest.raises(ContractError, match="incomplete"):
        ChipContract.from_json(values)


def test_manifest_is_hashable(make_manifest):
    assert hash(make_manifest()) == hash(make_manifest(facts={}))


@pytest.mark.parametrize("created", ["2025-06-01T12:00:00Z", "2025-06-01T12:00:00.123456+02:00"])
def test_manifest_takes_times_with_zone(make_manifest, created):
    assert make_manifest(created=created).created == created


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "ab"}, "model name"),
        ({"name": "../town"}, "model name"),
        ({"name": "town\n"}, "model name"),
        ({"created": "2025-06-01"}, "creation time"),
        ({"created": "2025-06-01T12:00:00"}, "creation time"),
        ({"created": "2025-13-01T12:00:00Z"}, "creation time"),
        ({"architecture": ""}, "architecture"),
        ({"parameters": 0}, "parameters"),
        ({"classes": ("only",), "colors": ("#000000",)}, "2 to 1000 classes"),
        ({"classes": ("Damaged", "damaged")}, "by more than case"),
        ({"classes": ("damaged", " ")}, "class name"),
        ({"classes": ("damaged", "in\x1b[2Jtact")}, "class name"),
        ({"colors": ("#000000",)}, "as many colours"),
        ({"colors": ("#000000", "red")}, "colour 'red'"),
        ({"mean": (1.0, 2.0)}, "mean"),
        ({"mean": (1.0, 2.0, math.nan)}, "mean"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"facts": {"format": 2}}, "called 'format'"),
        ({"facts": {"Two words": 2}}, "called"),
        ({"facts": {"training": math.nan}}, "plain JSON"),
        ({"facts": {"training": object()}}, "plain JSON"),
    ],
)
def test_manifest_refuses(make_manifest, changes, message):
    with pytest.raises(BundleError, match=message) as caught:
        make_manifest(**changes)
    assert "\n" not in str(caught.value)
