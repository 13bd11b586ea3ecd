from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

from edge_infer.errors import Refused
from edge_infer_export.network.resnet import ResNet
from edge_infer_export.network.weights import start_network

TINY: dict[str, Any] = {"blocks": (1, 1, 1, 1), "width": 4}
CLASSES = ("a", "b", "c")


def start(path, bands=3):
    return start_network(CLASSES, bands, weights=path, **TINY)


@pytest.fixture
def state():
    return ResNet(1000, **TINY).state_dict()


def test_everything_but_the_last_layer_is_taken(state, tmp_path):
    path = tmp_path / "imagenet.pth"
    # torchvision's older files lie in the format before zip, and lack the counters of batch normalisation.
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert 0 < len(old) < len(state)
    torch.save(old, path, _use_new_zipfile_serialization=False)
    network, words = start(path)
    found = network.state_dict()
    assert all(torch.equal(found[name], old[name]) for name in old if not name.startswith("fc."))
    assert network.fc.out_features == 3
    assert "1000 classes there" in words


def test_random_weights_begin_as_identities():
    network, words = start(None)
    assert words == "random weights"
    assert not network.layer1[0].bn2.weight.any()


def test_weights_of_another_network_are_refused(state, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(ResNet(2, blocks=(1, 1, 1, 1), width=8).state_dict(), path)
    with pytest.raises(Refused, match=r"conv1.weight has shape \(8, 3, 7, 7\), wanted \(4, 3, 7, 7\)"):
        start(path)
    torch.save(state, path)
    with pytest.raises(Refused, match=r"wanted \(4, 4, 7, 7\): the same --network and 4 bands"):
        start(path, bands=4)
    torch.save(ResNet(2, blocks=(1, 2, 1, 1), width=4).state_dict(), path)
    with pytest.raises(Refused, match=r"weights that the network lacks \(layer2.1.conv1.weight and"):
        start(path)


def test_files_that_are_no_weights_are_refused(state, tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(Refused, match="cannot be read"):
        start(path)
    with pytest.raises(Refused, match="cannot be read"):
        start(tmp_path)
    path.write_bytes(pickle.dumps(print))  # a pickle may hold code: it is never run
    with pytest.raises(Refused, match="damaged or something else"):
        start(path)
    torch.save([1, 2], path)
    with pytest.raises(Refused, match="no state dict of tensors"):
        start(path)
    state["conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, path)
    with pytest.raises(Refused, match=r"conv1\.weight holds infinite numbers"):
        start(path)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_bit_is_found(state, tmp_path, place):
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)
    with pytest.raises(Refused, match="damaged"):
        start(path)
