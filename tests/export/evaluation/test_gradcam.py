from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from edge_infer_export.evaluation.gradcam import Explainer


def class_activation_map(network, chips, classes, mean, std):
    """The closed form for a network that ends in mean pooling and one layer: Zhou et al. 2016, equation 2.

    https://arxiv.org/abs/1512.04150
    """
    images = (
        torch.from_numpy(chips).permute(0, 3, 1, 2).float() - torch.tensor(mean).reshape(1, -1, 1, 1)
    ) / (torch.tensor(std).reshape(1, -1, 1, 1))
    with torch.no_grad():
        features = network.maxpool(network.bn1(network.conv1(images)).relu())
        features = network.layer4(network.layer3(network.layer2(network.layer1(features))))
        weights = network.fc.weight[torch.from_numpy(classes)]
        heat = torch.einsum("nc,nchw->nhw", weights, features).relu()
        heat = functional.interpolate(heat[:, None], chips.shape[1:3], mode="bilinear", align_corners=False)[
            :, 0
        ]
        return (heat / heat.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)).numpy()


@pytest.mark.parametrize("bands", [1, 3])
def test_heat_is_the_class_activation_map(make_network, make_chips, bands):
    network = make_network(3, bands).eval()
    chips, classes = make_chips(count=4, side=96, bands=bands), np.array([0, 1, 2, 1])
    mean, std = [90.0] * bands, [50.0] * bands
    found = Explainer(network, mean=mean, std=std).heat(chips, classes)
    assert found.shape == (4, 96, 96)
    assert found.max() > 0
    np.testing.assert_allclose(found, class_activation_map(network, chips, classes, mean, std), atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_network_is_left_as_it_was(make_network, make_chips, training):
    network = make_network().train(training)
    for parameter in network.parameters():
        parameter.requires_grad_(False)  # as after --freeze
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    explainer = Explainer(network, mean=[90.0] * 3, std=[50.0] * 3)
    first = explainer.heat(make_chips(count=2), np.array([0, 1]))
    np.testing.assert_array_equal(explainer.heat(make_chips(count=2), np.array([0, 1])), first)
    assert network.training is training
    assert not network.layer4._forward_hooks
    assert all(parameter.grad is None for parameter in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_nothing_speaks_for_a_class(make_network, make_chips):
    network = make_network()
    torch.nn.init.constant_(network.fc.weight, -1.0)
    heat = Explainer(network, mean=[90.0] * 3, std=[50.0] * 3).heat(make_chips(count=1), np.array([2]))
    assert (heat == 0).all()
