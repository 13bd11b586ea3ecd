"""Grad-CAM: which part of a chip speaks for a class.

After Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization
(2017), https://arxiv.org/abs/1610.02391, equations 1 and 2: the maps of the last convolution stage, each
weighted by the mean gradient of the class's logit, added up, negative parts cut off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from edge_infer_export.network.resnet import ResNet


class Explainer:
    """Explains what a network sees in chips; the network is left as it was."""

    def __init__(self, network: ResNet, *, mean: Sequence[float], std: Sequence[float]) -> None:
        """Hold a network with the normalisation it was trained with, one number a band."""
        self._network = network
        self._mean = torch.tensor(mean).reshape(1, -1, 1, 1)
        self._std = torch.tensor(std).reshape(1, -1, 1, 1)

    def heat(self, chips: NDArray[np.uint8], classes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Say how much each pixel speaks for a class.

        Args:
            chips: uint8, (n, S, S, C).
            classes: int64, (n,): which class, for each chip.

        Returns:
            float32, (n, S, S), 0..1: 1 is the strongest part of its chip; all 0 where nothing speaks for it.

        """
        maps: list[Tensor] = []
        was_training = self._network.training
        hook = self._network.layer4.register_forward_hook(
            lambda _module, _inputs, output: maps.append(output)
        )
        try:
            self._network.eval()
            images = torch.from_numpy(chips).permute(0, 3, 1, 2).float()
            with torch.enable_grad():
                # A leaf that wants a gradient, so that there is one even where all weights are frozen.
                images = ((images - self._mean) / self._std).requires_grad_()
                logits = self._network(images)
                chosen = logits.gather(1, torch.from_numpy(classes)[:, None]).sum()
                (gradient,) = torch.autograd.grad(chosen, maps[0])
        finally:
            hook.remove()
            self._network.train(was_training)
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        heat = (weights * maps[0].detach()).sum(dim=1, keepdim=True).relu()
        heat = functional.interpolate(heat, size=chips.shape[1:3], mode="bilinear", align_corners=False)
        strongest = heat.amax(dim=(2, 3), keepdim=True)
        return np.asarray((heat / strongest.clamp(min=1e-12))[:, 0].numpy(), np.float32)
