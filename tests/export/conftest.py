"""What several tests of the export share: small networks with random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from edge_infer_export.graph import Classifier
from edge_infer_export.resnet import ResNet

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt


@pytest.fixture
def make_network() -> Callable[..., ResNet]:
    """Make a small network whose batch normalisation does something."""

    def make(classes: int = 3, bands: int = 3, seed: int = 0) -> ResNet:
        torch.manual_seed(seed)
        network = ResNet(classes, in_channels=bands, blocks=(1, 2, 1, 1), width=8)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.uniform_(module.bias, -0.5, 0.5)
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2.0)
        # Large, so that the probabilities of different chips differ.
        torch.nn.init.normal_(network.fc.weight)
        return network

    return make


@pytest.fixture
def make_classifier(make_network: Callable[..., ResNet]) -> Callable[..., Classifier]:
    """Make a classifier of a small network, its bands normalised differently."""

    def make(classes: int = 3, bands: int = 3, temperature: float = 1.5) -> Classifier:
        return Classifier(
            make_network(classes, bands),
            mean=[100.0 + 10 * band for band in range(bands)],
            std=[50.0 + 5 * band for band in range(bands)],
            temperature=temperature,
        )

    return make


@pytest.fixture
def make_chips() -> Callable[..., npt.NDArray[np.uint8]]:
    """Make random chips, uint8 (n, side, side, bands), each of its own brightness."""

    def make(count: int = 5, side: int = 32, bands: int = 3) -> npt.NDArray[np.uint8]:
        random = np.random.default_rng(1)
        brightest = random.integers(20, 256, (count, 1, 1, bands))
        return random.integers(0, brightest + 1, (count, side, side, bands)).astype(np.uint8)

    return make
