"""One network on one device: learns from a batch, judges batches, and can be put back to an earlier state."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from edge_infer.errors import Refused
from edge_infer_export.network.weights import LAST_LAYER

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray
    from torch import Tensor

    from edge_infer_export.network.resnet import ResNet
    from edge_infer_export.training.loader import Batch
    from edge_infer_export.training.options import Precision, TrainOptions


def choose_device(name: str) -> torch.device:
    """Find the device that `auto`, `cpu` or `cuda` means here.

    Raises:
        Refused: CUDA was asked for and is not there.

    """
    if name == "cuda" and not torch.cuda.is_available():
        raise Refused("--device cuda: this PyTorch finds no CUDA device; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def choose_precision(name: Precision, device: torch.device) -> Precision:
    """Choose the precision that `auto` means on a device.

    On CUDA fp16 with a scaled loss. On CPUs fp32: on one with AVX-512 BF16, autocast was measured to gain
    nothing (decision 13).

    Raises:
        Refused: fp16 on a CPU.

    """
    if name == "fp16" and device.type == "cpu":
        raise Refused("--precision fp16 needs a CUDA device; a CPU trains in fp32 or bf16")
    if name != "auto":
        return name
    return "fp16" if device.type == "cuda" else "fp32"


class Learner:
    """A network with its optimiser."""

    def __init__(
        self,
        network: ResNet,
        targets: NDArray[np.int64],
        class_weights: NDArray[np.float32],
        options: TrainOptions,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        steps_per_epoch: int,
    ) -> None:
        """Move the network to its device and make its optimiser.

        Args:
            network: what learns; it is changed in place.
            targets: (n,), class of every chip of the set.
            class_weights: (K,), of the loss.
            options: device, precision, decay, smoothing, freezing, averaging.
            mean: of each band, 0..255.
            std: likewise.
            steps_per_epoch: batches in an epoch.

        """
        self.device = choose_device(options.device)
        self.precision = choose_precision(options.precision, self.device)
        # Never slower than the planar layout, and clearly faster for small chips (decision 13).
        self.network: ResNet = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._targets = torch.from_numpy(targets)
        self._class_weights = torch.from_numpy(class_weights).to(self.device)
        self._smoothing = options.label_smoothing
        self._mean = torch.tensor(mean, device=self.device).reshape(1, -1, 1, 1)
        self._std = torch.tensor(std, device=self.device).reshape(1, -1, 1, 1)
        self._frozen = options.freeze
        if options.freeze:
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(name.startswith(LAST_LAYER))
        learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
        # Decay pulls weights to zero; scales and offsets of batch normalisation have no business there.
        self._optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in learned if p.ndim > 1], "weight_decay": options.weight_decay},
                {"params": [p for p in learned if p.ndim == 1], "weight_decay": 0.0},
            ],
            fused=True,
        )
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self._average: AveragedModel | None = None
        if options.average_epochs:
            decay = 1 - 1 / max(options.average_epochs * steps_per_epoch, 1)
            average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
            self._average = AveragedModel(network, multi_avg_fn=average, use_buffers=True)

    def learn(self, batch: Batch, rate: float, momentum: float) -> Tensor:
        """Take one step; the loss before it, a scalar on the device.

        Args:
            batch: augmented chips.
            rate: learning rate.
            momentum: AdamW's first beta.

        """
        # Statistics of batch normalisation are weights like others: frozen means frozen.
        self.network.train(not self._frozen)
        for group in self._optimizer.param_groups:
            group["lr"], group["betas"] = rate, (momentum, group["betas"][1])
        targets = self._targets[torch.from_numpy(batch.rows)].to(self.device, non_blocking=True)
        with self._autocast():
            logits = self.network(self._normalise(batch.pixels))
        loss = functional.cross_entropy(
            logits.float(), targets, self._class_weights, label_smoothing=self._smoothing
        )
        self._optimizer.zero_grad()
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update_parameters(self.network)
        return loss.detach()

    def judge(self, batches: Iterable[Batch]) -> NDArray[np.float32]:
        """Give the logits of chips, in full precision: float32, (n, K)."""
        judged = self._judged().eval()
        parts = [torch.empty(0, self.network.fc.out_features)]
        with torch.inference_mode():
            parts += [judged(self._normalise(batch.pixels)).cpu() for batch in batches]
        logits: NDArray[np.float32] = torch.cat(parts).numpy()
        return logits

    def take(self, weights: dict[str, Tensor]) -> None:
        """Judge with these weights from here on, as `weights` gave them."""
        self._judged().load_state_dict(weights)

    def weights(self) -> dict[str, Tensor]:
        """Copy the state dict of what is judged, to the CPU and in the planar layout."""
        state = self._judged().state_dict()
        return {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in state.items()
        }

    def state(self) -> dict[str, Any]:
        """Copy everything that learning changes: tensors and plain values only."""
        return copy.deepcopy(
            {
                "network": self.network.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "scaler": self._scaler.state_dict(),
                "average": None if self._average is None else self._average.state_dict(),
            }
        )

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `state` gave."""
        self.network.load_state_dict(state["network"])
        # The optimiser takes tensors over instead of copying them.
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])

    def _judged(self) -> nn.Module:
        if self._average is None:
            return self.network
        return self._average.module

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16 if self.precision == "bf16" else torch.float16)

    def _normalise(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Chips uint8 (n, S, S, C) to normalised float32 (n, C, S, S), channels last in memory."""
        # Chips lie channels last already: turning the axes moves nothing.
        chips = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
        return (chips.to(self.device, non_blocking=True).float() - self._mean) / self._std
