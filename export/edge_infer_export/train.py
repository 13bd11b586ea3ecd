"""Trains a ResNet on labelled chips: short, repeatable, and judged on ground it has not seen.

Random weights or torchvision's, AdamW, one-cycle learning rate (Smith, 2018,
https://arxiv.org/abs/1803.09820), class-weighted cross-entropy. Of the last epochs the one that did best on
the validation side is kept, and its confidence is calibrated there by one temperature.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edge_infer.errors import Refused
from edge_infer.progress import hours
from edge_infer_export.augment import augment
from edge_infer_export.resnet import BasicBlock, ResNet
from edge_infer_export.scores import fit_temperature, score, softmax
from edge_infer_export.split import split_by_place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from edge_infer_export.dataset import Chips
    from edge_infer_export.split import Split

    Say = Callable[[str], None]

SETTLED = 2 / 3
"""Only epochs after this part may be kept: while the rate is high, a good score on few chips is luck."""

_JUDGE_BATCH = 128
_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """How to train."""

    epochs: int = 12
    batch: int = 32
    learning_rate: float = 1e-3
    """The peak of the one-cycle schedule."""
    weight_decay: float = 0.01
    label_smoothing: float = 0.05
    validation_share: float = 0.2
    seed: int = 0
    weights: Path | None = None
    """A torchvision state dict to start from; None: random weights."""
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    """Of the network, see `ResNet`; the default is ResNet34."""
    width: int = 64

    def __post_init__(self) -> None:
        """Refuse options that cannot train anything."""
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise Refused(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch < 2:
            raise Refused("batch must be at least 2: batch normalisation needs company")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise Refused(f"the learning rate must be a positive number, got {self.learning_rate}")
        if not 0 < self.validation_share <= 0.5:
            raise Refused(
                f"the validation share must lie above 0 and at most at 0.5, got {self.validation_share}"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {name: str(v) if isinstance(v, Path) else v for name, v in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch came to."""

    number: int
    training_loss: float
    validation_loss: float
    calibrated_loss: float
    """On the validation side, under the temperature that fits this epoch best: decides which one is kept."""
    accuracy: float
    """On the validation side."""
    learning_rate: float
    """At the epoch's end."""


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A trained network and how it did."""

    network: ResNet
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per band over the training chips, 0..255."""
    temperature: float
    split: Split
    history: tuple[Epoch, ...]
    best_epoch: int
    metrics: dict[str, Any]
    """`score` of the calibrated probabilities on the validation side."""
    seconds: float


def train(chips: Chips, options: TrainOptions, *, say: Say = lambda _: None) -> Trained:
    """Train on the chips; on the CPU, the same chips, options and thread count give the same network.

    Args:
        chips: labelled chips; every class must be there.
        options: how to train.
        say: is given a line of progress now and then.

    Raises:
        Refused: no chips, fewer than two classes, a class without chips, chips that cannot be parted by
            place, or weights that do not fit.

    """
    started = time.monotonic()
    _require_classes(chips)
    split = split_by_place(chips, share=options.validation_share, seed=options.seed)
    if len(split.training) < options.batch:
        raise Refused(
            f"{len(split.training)} chips are left for training, fewer than one batch of {options.batch}; "
            "add chips or lower --batch"
        )
    say(
        f"{len(split.training)} chips to train on, {len(split.validation)} to validate on, "
        f"{len(split.dropped)} left out between them (blocks of {split.block_metres:g} m)"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = start_network(chips, options)
    mean, std = _moments(chips.pixels[split.training])
    session = _Session(network, chips, split, mean, std, options, say)
    history, best_epoch = session.run()
    logits = session.judge(split.validation)
    targets = chips.targets[split.validation]
    temperature = fit_temperature(logits, targets)
    metrics = score(softmax(logits, temperature), targets, chips.classes)
    metrics["before_calibration"] = {
        name: score(softmax(logits), targets, chips.classes)[name]
        for name in ("negative_log_likelihood", "calibration_error")
    }
    return Trained(
        network=network,
        mean=mean,
        std=std,
        temperature=temperature,
        split=split,
        history=history,
        best_epoch=best_epoch,
        metrics=metrics,
        seconds=time.monotonic() - started,
    )


def _require_classes(chips: Chips) -> None:
    if len(chips) == 0:
        raise Refused("there are no chips; see what `edge-infer chips` said became of the footprints")
    if len(chips.classes) < 2:
        raise Refused(f"the chips have one class only ({chips.classes[0]}); wanted two or more")
    absent = [name for name, number in chips.counts().items() if number == 0]
    if absent:
        raise Refused(f"no chip has the class {', '.join(absent)}; label some, or leave the class out")


def start_network(chips: Chips, options: TrainOptions) -> ResNet:
    """Make a network for the chips, with random weights or those of a file.

    Raises:
        Refused: the file cannot be read, or is no state dict of such a network for this number of bands.

    """
    network = ResNet(
        len(chips.classes),
        in_channels=len(chips.contract.bands),
        blocks=options.blocks,
        width=options.width,
    )
    if options.weights is not None:
        _load_weights(network, options.weights)
        return network
    # Blocks that begin as identities make a deep network easy to start.
    # https://arxiv.org/abs/1706.02677, section 5.1
    for module in network.modules():
        if isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)
    return network


def _load_weights(network: ResNet, path: Path) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}); wanted a state dict of ResNet34") from error
    except Exception as error:  # damaged files make PyTorch raise almost anything
        raise Refused(f"{path} is no state dict; wanted the weights of a ResNet34") from error
    # The last layer is always new: it belongs to the classes.
    wanted = {
        name: tuple(tensor.shape)
        for name, tensor in network.state_dict().items()
        if not name.startswith("fc.")
    }
    for name, shape in wanted.items():
        if found.get(name) != shape:
            raise Refused(
                f"{path}: {name} has shape {found.get(name, 'none')}, wanted {shape}: ResNet34 for "
                f"{network.conv1.in_channels} bands"
            )
    network.load_state_dict({name: state[name] for name in wanted}, strict=False)


def _moments(pixels: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each band of (n, S, S, C) chips; the deviation is at least one grey level."""
    counts = [np.bincount(pixels[..., band].ravel(), minlength=256) for band in range(pixels.shape[3])]
    levels = np.arange(256)
    means = [float((count * levels).sum() / count.sum()) for count in counts]
    spreads = [
        math.sqrt(float((count * (levels - mean) ** 2).sum() / count.sum()))
        for count, mean in zip(counts, means, strict=True)
    ]
    return tuple(means), tuple(max(spread, 1.0) for spread in spreads)


class _Session:
    """One training from the first step to the best epoch."""

    def __init__(
        self,
        network: ResNet,
        chips: Chips,
        split: Split,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        options: TrainOptions,
        say: Say,
    ) -> None:
        # Twice as fast on CPUs as the planar layout.
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.options = options
        self.say = say
        self.split = split
        self.pixels = torch.from_numpy(chips.pixels)
        self.targets = torch.from_numpy(chips.targets)
        self.mean = torch.tensor(mean).reshape(1, -1, 1, 1)
        self.std = torch.tensor(std).reshape(1, -1, 1, 1)
        counts = torch.bincount(self.targets[split.training], minlength=len(chips.classes))
        self.class_weights = len(split.training) / (len(counts) * counts.float())
        self.generator = torch.Generator().manual_seed(options.seed)
        self.steps = len(split.training) // options.batch
        self.optimizer = torch.optim.AdamW(
            network.parameters(), options.learning_rate, weight_decay=options.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, options.learning_rate, total_steps=self.steps * options.epochs
        )

    def run(self) -> tuple[tuple[Epoch, ...], int]:
        """Train and leave the best epoch's weights in the network; give all epochs and that one's number."""
        history: list[Epoch] = []
        best: dict[str, Tensor] = {}
        best_epoch = 0
        started = time.monotonic()
        for number in range(1, self.options.epochs + 1):
            epoch = self._judge_epoch(number, self._epoch(number, started))
            history.append(epoch)
            settled = number > SETTLED * self.options.epochs
            if settled and (not best or epoch.calibrated_loss < history[best_epoch - 1].calibrated_loss):
                best, best_epoch = copy.deepcopy(self.network.state_dict()), number
            left = (time.monotonic() - started) / number * (self.options.epochs - number)
            self.say(
                f"epoch {number} of {self.options.epochs}: loss {epoch.training_loss:.3f}, validation loss "
                f"{epoch.validation_loss:.3f}, accuracy {epoch.accuracy:.1%}, {hours(left)} to go"
            )
        self.network.load_state_dict(best)
        self.network.to(memory_format=torch.contiguous_format)
        return tuple(history), best_epoch

    def _judge_epoch(self, number: int, training_loss: float) -> Epoch:
        targets = self.targets[self.split.validation]
        logits = self.judge(self.split.validation)
        if not (math.isfinite(training_loss) and np.isfinite(logits).all()):
            raise Refused(
                f"training diverged in epoch {number}; lower --lr (it was {self.options.learning_rate:g})"
            )
        # Over-confidence is mended after training, so it must not decide which epoch is kept.
        temperature = fit_temperature(logits, targets.numpy())
        losses = [
            float(functional.cross_entropy(torch.from_numpy(logits) / divisor, targets, self.class_weights))
            for divisor in (1.0, temperature)
        ]
        return Epoch(
            number=number,
            training_loss=training_loss,
            validation_loss=losses[0],
            calibrated_loss=losses[1],
            accuracy=float((logits.argmax(axis=1) == targets.numpy()).mean()),
            learning_rate=float(self.schedule.get_last_lr()[0]),
        )

    def _epoch(self, number: int, started: float) -> float:
        """Train one epoch; the mean loss."""
        self.network.train()
        total = 0.0
        said = time.monotonic()
        for step, rows in enumerate(self._batches()):
            views = augment(self._to_float(rows), self.generator)
            loss = functional.cross_entropy(
                self.network(self._normalise(views)),
                self.targets[rows],
                self.class_weights,
                label_smoothing=self.options.label_smoothing,
            )
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.schedule.step()
            total += loss.item()
            if time.monotonic() - said > _SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                share = (number - 1 + (step + 1) / self.steps) / self.options.epochs
                left = (said - started) * (1 - share) / share
                self.say(f"  step {step + 1} of {self.steps} in epoch {number}, {hours(left)} to go")
        return total / self.steps

    def _batches(self) -> Iterator[Tensor]:
        order = torch.from_numpy(self.split.training)[
            torch.randperm(len(self.split.training), generator=self.generator)
        ]
        # The rest that fills no batch waits for the next shuffle.
        yield from torch.split(order[: self.steps * self.options.batch], self.options.batch)

    def judge(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits of the chips at `rows`: float32, (n, K)."""
        self.network.eval()
        with torch.inference_mode():
            parts = [
                self.network(self._normalise(self._to_float(part)))
                for part in torch.split(torch.from_numpy(rows), _JUDGE_BATCH)
            ]
        logits: NDArray[np.float32] = torch.cat(parts).numpy()
        return logits

    def _to_float(self, rows: Tensor) -> Tensor:
        return self.pixels[rows].permute(0, 3, 1, 2).float()

    def _normalise(self, chips: Tensor) -> Tensor:
        return ((chips - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
