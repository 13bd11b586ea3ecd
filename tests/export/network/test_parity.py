from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_infer.errors import EdgeInferError
from edge_infer_export.network.graph import Classifier, export_graph
from edge_infer_export.network.parity import TOLERANCE, compare, measure

if TYPE_CHECKING:
    import numpy.typing as npt


def outputs(**changes: list[list[float]]) -> dict[str, npt.NDArray[np.float32]]:
    base = np.array([[0.7, 0.3], [0.2, 0.8]], np.float32)
    named = {"pytorch": base, "onnxruntime": base.copy(), "openvino": base.copy()}
    for name, change in changes.items():
        named[name] = (base + np.array(change)).astype(np.float32)
    return named


def test_equal_outputs_agree():
    parity = compare(outputs())
    assert parity.chips == 2
    assert parity.labels_differ == 0
    assert parity.max_difference == {
        "pytorch_onnxruntime": 0.0,
        "pytorch_openvino": 0.0,
        "onnxruntime_openvino": 0.0,
    }
    parity.require()
    assert json.loads(json.dumps(parity.to_json()))["versions"].keys() == {
        "onnx",
        "onnxruntime",
        "openvino",
        "torch",
    }


def test_the_largest_difference_of_each_pair_is_found():
    parity = compare(outputs(openvino=[[0, 0], [0.0005, -0.0005]]))
    assert parity.max_difference["pytorch_onnxruntime"] == 0
    assert parity.max_difference["pytorch_openvino"] == pytest.approx(0.0005, abs=1e-6)
    parity.require()


def test_too_large_a_difference_fails_with_the_figures():
    with pytest.raises(
        EdgeInferError, match=r"on 2 chips .* up to 0\.002 \(pytorch, openvino; .* 0 labels"
    ) as caught:
        compare(outputs(openvino=[[0, 0], [2 * TOLERANCE, 0]])).require()
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


def test_one_differing_label_fails():
    parity = compare(
        {
            "pytorch": np.array([[0.50001, 0.49999]], np.float32),
            "openvino": np.array([[0.49999, 0.50001]], np.float32),
        }
    )
    assert parity.labels_differ == 1
    with pytest.raises(EdgeInferError, match="1 labels differ"):
        parity.require()


def test_numbers_that_are_none_fail():
    with pytest.raises(EdgeInferError, match="up to inf"):
        compare(outputs(onnxruntime=[[0, 0], [np.nan, 0]])).require()


def test_three_engines_agree_on_a_real_graph(make_classifier, make_chips):
    classifier, chips = make_classifier(), make_chips(count=11)
    parity, expected = measure(classifier, export_graph(classifier, chips.shape[1:]), chips)
    assert parity.chips == 11
    assert max(parity.max_difference.values()) < 2e-6
    assert expected.dtype == np.float32
    assert expected.shape == (11, 3)
    parity.require()


def test_a_wrong_graph_is_found_out(make_classifier, make_chips):
    """The mistake that parity is for: the graph normalises in another way than the training did."""
    classifier, chips = make_classifier(), make_chips()
    wrong = Classifier(classifier.network, mean=[100.0] * 3, std=[50.0] * 3, temperature=1.5)
    parity, _ = measure(classifier, export_graph(wrong, chips.shape[1:]), chips)
    with pytest.raises(EdgeInferError, match="pytorch"):
        parity.require()
