from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional

from edge_infer_export.network.resnet import ResNet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    Shapes = dict[str, tuple[int, ...]]


def norm_names(prefix: str, channels: int) -> Shapes:
    shapes: Shapes = {
        f"{prefix}.{name}": (channels,) for name in ("weight", "bias", "running_mean", "running_var")
    }
    return {**shapes, f"{prefix}.num_batches_tracked": ()}


def torchvision_names(num_classes: int, in_channels: int) -> Shapes:
    """Names and shapes of torchvision's resnet34, by the rule that its code follows."""
    shapes: Shapes = {"conv1.weight": (64, in_channels, 7, 7), **norm_names("bn1", 64)}
    before = 64
    for stage, (blocks, channels) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), start=1):
        for block in range(blocks):
            prefix = f"layer{stage}.{block}"
            shapes[f"{prefix}.conv1.weight"] = (channels, before, 3, 3)
            shapes |= norm_names(f"{prefix}.bn1", channels)
            shapes[f"{prefix}.conv2.weight"] = (channels, channels, 3, 3)
            shapes |= norm_names(f"{prefix}.bn2", channels)
            if before != channels:
                shapes[f"{prefix}.downsample.0.weight"] = (channels, before, 1, 1)
                shapes |= norm_names(f"{prefix}.downsample.1", channels)
            before = channels
    return {**shapes, "fc.weight": (num_classes, 512), "fc.bias": (num_classes,)}


@pytest.mark.parametrize(("num_classes", "in_channels"), [(1000, 3), (2, 4)])
def test_names_and_shapes_are_torchvisions(num_classes, in_channels):
    with torch.device("meta"):
        state = ResNet(num_classes, in_channels=in_channels).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert list(shapes.items()) == list(torchvision_names(num_classes, in_channels).items())


def test_parameter_count_is_that_of_resnet34():
    with torch.device("meta"):
        network = ResNet(1000)
    assert sum(parameter.numel() for parameter in network.parameters()) == 21_797_672


def functional_resnet(state: Mapping[str, Tensor], blocks: Sequence[int], images: Tensor) -> Tensor:
    """The same network written a second time, from the state dict alone."""

    def conv(name: str, features: Tensor, **options: Any) -> Tensor:
        return functional.conv2d(features, state[f"{name}.weight"], **options)

    def norm(name: str, features: Tensor) -> Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return functional.batch_norm(features, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"])

    features = functional.relu(norm("bn1", conv("conv1", images, stride=2, padding=3)))
    features = functional.max_pool2d(features, 3, stride=2, padding=1)
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            skip = features
            if stride == 2:
                skip = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", features, stride=2))
            inner = functional.relu(
                norm(f"{name}.bn1", conv(f"{name}.conv1", features, stride=stride, padding=1))
            )
            features = functional.relu(norm(f"{name}.bn2", conv(f"{name}.conv2", inner, padding=1)) + skip)
    pooled = functional.adaptive_avg_pool2d(features, 1).flatten(1)
    return functional.linear(pooled, state["fc.weight"], state["fc.bias"])


def test_forward_is_what_the_names_say():
    torch.manual_seed(5)
    network = ResNet(3, in_channels=4, blocks=(2, 1, 1, 2), width=4)
    images = torch.randn(3, 4, 40, 33)
    network(images)  # in training mode: moves the running means away from 0 and 1
    network.eval()
    with torch.no_grad():
        expected = functional_resnet(network.state_dict(), (2, 1, 1, 2), images)
        torch.testing.assert_close(network(images), expected)
    assert expected.shape == (3, 3)


def test_gradients_reach_every_parameter():
    torch.manual_seed(6)
    network = ResNet(2, blocks=(1, 1, 1, 1), width=4)
    loss = functional.cross_entropy(network(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 0, 1]))
    assert all(gradient.any() for gradient in torch.autograd.grad(loss, list(network.parameters())))
