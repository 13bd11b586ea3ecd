"""Trains a ResNet on labelled chips: repeatable, resumable, and judged on ground it has not seen.

Random weights or those of a file, a peak rate from the LR finder, AdamW under a one-cycle schedule, chips
streamed from disk. Of the last epochs the one that did best on the validation side is kept, and its
confidence is calibrated there by one temperature.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from edge_infer.errors import Refused, Stopped
from edge_infer.progress import SECONDS_BETWEEN_LINES, hours
from edge_infer_export.chips.split import split_chips
from edge_infer_export.evaluation.scores import fit_temperature
from edge_infer_export.network.weights import start_network
from edge_infer_export.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from edge_infer_export.training.learner import Learner
from edge_infer_export.training.loader import CachedChips, Loader
from edge_infer_export.training.lrfinder import sweep
from edge_infer_export.training.options import TrainOptions
from edge_infer_export.training.order import class_weights, epoch_batches
from edge_infer_export.training.pace import Pace
from edge_infer_export.training.schedule import one_cycle
from edge_infer_export.training.survey import survey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from edge_infer_export.chips.dataset import Chips
    from edge_infer_export.chips.split import Split
    from edge_infer_export.network.resnet import ResNet
    from edge_infer_export.training.loader import Batch
    from edge_infer_export.training.lrfinder import RateCurve
    from edge_infer_export.training.survey import Survey

    Say = Callable[[str], None]

__all__ = ["Diverged", "Epoch", "TrainOptions", "Trained", "find_rate", "require_classes", "train"]

SETTLED = 2 / 3
"""Only epochs after this part may be kept: while the rate is high, a good score on few chips is luck."""

JUDGE_BATCH = 128
CHECKPOINT_SHARE = 0.1
"""Writing checkpoints may take such a part of the time: where an epoch is shorter, some are left out."""
SECONDS_BETWEEN_CHECKPOINTS = 300.0
"""Within an epoch."""


class Diverged(Refused):
    """The loss is no number any more: no step from here leads anywhere."""


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


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Trained:
    """A trained network and how it did."""

    chips: Chips
    """Those that can be decoded: `split` counts in them."""
    network: ResNet
    """On the CPU, in the planar layout."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per band over the training chips, 0..255."""
    temperature: float
    split: Split
    validation_logits: NDArray[np.float32]
    """float32, (n, K): for the chips at `split.validation`, before the temperature."""
    test_logits: NDArray[np.float32]
    """float32, (m, K): likewise at `split.test`."""
    history: tuple[Epoch, ...]
    best_epoch: int
    learning_rate: float
    """Peak of the schedule."""
    started_from: str
    """The first weights, in words."""
    device: str
    precision: str
    chips_per_second: float
    """Learned from, validation and waiting included, since this start."""
    wait_share: float
    """Part of the time since this start that the network waited for chips."""
    seconds: float
    """Since this start."""


def train(
    chips: Chips,
    options: TrainOptions,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    begin: Callable[[], None] = lambda: None,
    draw: Callable[[RateCurve, float], None] = lambda _curve, _rate: None,
    stopping: Callable[[], bool] = lambda: False,
    say: Say = lambda _: None,
    bar: bool = False,
) -> Trained:
    """Train on the chips; on the CPU, the same chips, options and thread count give the same network.

    Args:
        chips: labelled chips; every class must be there.
        options: how to train.
        checkpoint: file that keeps the state; None: a stop loses everything.
        resume: go on from the checkpoint, where there is one, to the same weights as without a stop.
        begin: called once before anything is drawn or kept, unless a checkpoint is gone on from: nothing that
            was known beforehand forbids the training.
        draw: is given the LR finder's curve and the rate that is taken.
        stopping: asked at every step, also while chips are looked at, the LR finder runs or a side is judged;
            True stops there, with the state kept.
        say: is given a line of progress now and then.
        bar: draw a bar on standard error as well.

    Raises:
        Refused: no chips, fewer than two classes, a class without chips, chips that cannot be parted, weights
            or a checkpoint that do not fit, a device that is not there, or a loss that is no number.
        Stopped: `stopping` said so.

    """
    session = _Session(chips, options, checkpoint, say, stopping)
    with session.loader:
        if not (resume and session.restore()):
            curve = session.find_rate()
            begin()
            if curve is not None:
                draw(curve, session.rate)
        pace = Pace(
            say,
            steps=session.steps * options.epochs,
            done=session.steps * (session.epoch - 1) + session.step,
            batch=options.batch,
            bar=bar,
        )
        try:
            session.run(pace)
            return session.finish(pace)
        finally:
            pace.close()


def find_rate(chips: Chips, options: TrainOptions, *, say: Say = lambda _: None) -> RateCurve:
    """Run the LR finder alone, on the same side, network and augmentation as `train` would.

    Raises:
        Refused: as for `train`.

    """
    session = _Session(chips, options, None, say)
    with session.loader:
        return session.sweep()


def require_classes(chips: Chips) -> None:
    """Raise `Refused` unless there are two classes or more, and chips of all of them."""
    if len(chips) == 0:
        raise Refused("there are no chips; see what `edge-infer chips` said became of the footprints")
    if len(chips.classes) < 2:
        raise Refused(f"the chips have one class only ({chips.classes[0]}); wanted two or more")
    absent = [name for name, number in chips.counts().items() if number == 0]
    if absent:
        raise Refused(f"no chip has the class {', '.join(absent)}; label some, or leave the class out")


def fingerprint(found: Survey, split: Split) -> str:
    """Tell sets of chips apart by contract, table, pixels and sides; not by where the files lie.

    The sums over each chip's pixels stand for the pixels.
    """
    chips = found.chips
    digest = hashlib.sha256(json.dumps(chips.contract.to_json(), sort_keys=True).encode())
    for column in (chips.targets, chips.longitude, chips.latitude, chips.ground_metres, chips.source_fid):
        digest.update(np.ascontiguousarray(column).tobytes())
    for sums in (found.sums, found.squares):
        digest.update(sums.tobytes())
    for rows in (split.training, split.validation, split.test):
        digest.update(len(rows).to_bytes(8, "little") + rows.tobytes())
    digest.update("\n".join((*chips.classes, *map(str, chips.image))).encode())
    return digest.hexdigest()


class _Session:
    """One training from the first step, or from a checkpoint, to the best epoch."""

    def __init__(
        self,
        chips: Chips,
        options: TrainOptions,
        checkpoint: Path | None,
        say: Say,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._started = self._said = time.monotonic()
        self._stopping, self._line = stopping, say
        self.options, self.say, self.checkpoint = options, say, checkpoint
        self._begun = False
        require_classes(chips)
        cached = self._cache(chips)
        found = survey(chips, cached, threads=options.threads, tick=self._tick)
        if len(found.chips) < len(chips):
            chips, cached = found.chips, self._cache(found.chips)
            require_classes(chips)
        self.chips = chips
        self.split = split_chips(chips, options.split)
        rows = self.split.training
        if len(rows) < options.batch:
            raise Refused(
                f"{len(rows)} chips are left for training, fewer than one batch of {options.batch}; "
                "add chips or lower --batch"
            )
        for line in (*chips.warnings(), self.split.words):
            say(line)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            network, self.started_from = start_network(
                chips.classes,
                len(chips.contract.bands),
                blocks=options.blocks,
                width=options.width,
                weights=options.weights,
            )
        self.targets = chips.targets[rows]
        self.steps = len(rows) // options.batch
        self.weights = class_weights(self.targets, len(chips.classes), options.balance)
        self.mean, self.std = found.normalisation(rows)
        self.fingerprint = fingerprint(found, self.split)
        self.loader = Loader(cached, options.augmentation, seed=options.seed, threads=options.threads)
        try:
            self.learner = Learner(
                network,
                chips.targets,
                self.weights,
                options,
                mean=self.mean,
                std=self.std,
                steps_per_epoch=self.steps,
            )
        except BaseException:
            self.loader.__exit__()
            raise
        where = "kept in memory" if cached.in_memory else "decoded anew in every epoch"
        say(
            f"Starting from {self.started_from}; {self.learner.device.type}, {self.learner.precision}; "
            f"chips are {where}."
        )
        self.network = network
        self._written = time.monotonic()
        self._writing_seconds = 0.0
        self.rate = 0.0
        self.epoch, self.step, self.loss_sum = 1, 0, 0.0
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] | None = None
        self.best_epoch = 0

    def _cache(self, chips: Chips) -> CachedChips:
        shape = (len(chips), *chips.contract.chip_shape)
        return CachedChips(chips, shape, megabytes=self.options.cache_megabytes)

    def _tick(self, words: str) -> None:
        """Stop here if that was asked for; now and then say where this is."""
        if self._stopping():
            self._stop()
        now = time.monotonic()
        if now - self._said > SECONDS_BETWEEN_LINES:
            self._said = now
            self._line(f"  {words}")

    def sweep(self) -> RateCurve:
        """Run the LR finder."""
        return sweep(
            self.learner, self.loader, self.split.training, self.targets, self.options, tick=self._tick
        )

    def find_rate(self) -> RateCurve | None:
        """Take the rate that was given (None), or else the one that the LR finder suggests (its curve)."""
        if self.options.learning_rate is not None:
            self.rate = self.options.learning_rate
            return None
        curve = self.sweep()
        self.rate = curve.valley
        self.say(
            f"LR finder: valley {curve.valley:.1e}, steepest {curve.steepest:.1e}; taken: {self.rate:.1e} "
            "(--lr gives another)"
        )
        return curve

    def restore(self) -> bool:
        """Go to where the checkpoint stands; whether there is one.

        Raises:
            Refused: it is damaged, or belongs to other chips or options.

        """
        if self.checkpoint is None or not self.checkpoint.exists():
            return False
        found = read_checkpoint(self.checkpoint)
        differences = self.options.differences(found.options)
        if differences:
            raise Refused(
                f"{self.checkpoint} was trained with other options ({'; '.join(differences)}); resume with "
                "the same, or begin again with --overwrite"
            )
        if found.chips != self.fingerprint:
            raise Refused(
                f"{self.checkpoint} was trained on other chips; resume with the same --chips, or begin again "
                "with --overwrite"
            )
        try:
            self.learner.restore(found.learner)
        except (KeyError, ValueError, RuntimeError) as error:
            raise Refused(
                f"{self.checkpoint} does not fit this network ({str(error).splitlines()[0]}); begin again "
                "with --overwrite"
            ) from error
        self.rate = found.learning_rate
        self.epoch, self.step, self.loss_sum = found.epoch, found.step, found.loss_sum
        self.history = [Epoch(**values) for values in found.history]
        self.best, self.best_epoch = found.best, found.best_epoch
        self._begun = True
        self.say(f"Going on in epoch {self.epoch} of {self.options.epochs} after {self.step} steps.")
        return True

    def run(self, pace: Pace) -> None:
        """Train to the end, or to where it gets no better."""
        self._line = pace.line
        self.loader.wait_seconds = 0.0  # what was read before belongs to no step
        if not self._begun:
            self._keep(force=True)
            self._begun = True
        while self.epoch <= self.options.epochs and not self._worn_out():
            self._train_epoch(pace)
            epoch = self._judge_epoch()
            self.history.append(epoch)
            settled = epoch.number > SETTLED * self.options.epochs
            if settled and (
                self.best is None or epoch.calibrated_loss < self.history[self.best_epoch - 1].calibrated_loss
            ):
                self.best, self.best_epoch = self.learner.weights(), epoch.number
            pace.line(
                f"epoch {epoch.number} of {self.options.epochs}: loss {epoch.training_loss:.3f}, "
                f"validation loss {epoch.validation_loss:.3f}, accuracy {epoch.accuracy:.1%}, "
                f"{pace.chips_per_second():,.0f} chips/s, {hours(pace.left())} to go"
            )
            self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0
            self._keep()
        if self.epoch <= self.options.epochs:
            pace.line(f"No better for {self.options.patience} epochs: stopped after epoch {self.epoch - 1}.")

    def _worn_out(self) -> bool:
        behind = len(self.history) - self.best_epoch
        return bool(self.best_epoch and self.options.patience and behind >= self.options.patience)

    def _train_epoch(self, pace: Pace) -> None:
        options = self.options
        batches = epoch_batches(
            self.split.training,
            self.targets,
            options.batch,
            balance=options.balance,
            seed=options.seed,
            epoch=self.epoch,
        )
        for batch in self.loader.training(batches, epoch=self.epoch, first=self.step):
            share, momentum = one_cycle(
                self.steps * (self.epoch - 1) + self.step, self.steps * options.epochs
            )
            loss = float(self.learner.learn(batch, self.rate * share, momentum))
            if not math.isfinite(loss):
                raise self._diverged()
            self.loss_sum += loss
            self.step += 1
            pace.step(
                lambda: (
                    f"epoch {self.epoch} of {options.epochs}, step {self.step} of {self.steps}, loss "
                    f"{self.loss_sum / self.step:.3f}"
                    + (f", accuracy {self.history[-1].accuracy:.1%}" if self.history else "")
                )
            )
            if self._stopping():
                self._stop()
            if time.monotonic() - self._written > SECONDS_BETWEEN_CHECKPOINTS:
                self._keep()

    def _stop(self) -> None:
        if self.checkpoint is None:
            raise Stopped("stopped; nothing was kept")
        if not self._begun:
            raise Stopped("stopped before the first step; give the same command again")
        self._keep(force=True)
        where = f"in epoch {self.epoch} of {self.options.epochs} after {self.step} of {self.steps} steps"
        if self.step == 0 and self.history:
            where = f"after epoch {len(self.history)} of {self.options.epochs}"
        raise Stopped(f"stopped {where}; the same command with --resume goes on there")

    def _diverged(self) -> Diverged:
        return Diverged(f"training diverged in epoch {self.epoch}; lower --lr (it was {self.rate:g})")

    def _judge_epoch(self) -> Epoch:
        targets = torch.from_numpy(self.chips.targets[self.split.validation])
        logits = self.judge(self.split.validation)
        if not np.isfinite(logits).all():
            raise self._diverged()
        # Over-confidence is mended after training, so it must not decide which epoch is kept.
        temperature = fit_temperature(logits, targets.numpy())
        losses = [
            float(
                functional.cross_entropy(
                    torch.from_numpy(logits) / divisor, targets, torch.from_numpy(self.weights)
                )
            )
            for divisor in (1.0, temperature)
        ]
        share, _ = one_cycle(self.steps * self.epoch - 1, self.steps * self.options.epochs)
        return Epoch(
            number=self.epoch,
            training_loss=self.loss_sum / self.steps,
            validation_loss=losses[0],
            calibrated_loss=losses[1],
            accuracy=float((logits.argmax(axis=1) == targets.numpy()).mean()),
            learning_rate=self.rate * share,
        )

    def _keep(self, *, force: bool = False) -> None:
        """Write a checkpoint, unless the last one is so young that writing would eat the time."""
        if self.checkpoint is None:
            return
        now = time.monotonic()
        if not force and (now - self._written) * CHECKPOINT_SHARE < self._writing_seconds:
            return
        write_checkpoint(
            self.checkpoint,
            Checkpoint(
                options=self.options.to_json(),
                chips=self.fingerprint,
                learning_rate=self.rate,
                epoch=self.epoch,
                step=self.step,
                loss_sum=self.loss_sum,
                history=[asdict(epoch) for epoch in self.history],
                best_epoch=self.best_epoch,
                best=self.best,
                learner=self.learner.state(),
            ),
        )
        self._written = time.monotonic()
        self._writing_seconds = self._written - now

    def judge(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits of the chips at `rows`: float32, (n, K)."""

        def batches() -> Iterator[Batch]:
            for number, batch in enumerate(self.loader.plain(rows, JUDGE_BATCH)):
                self._tick(f"judging: {number * JUDGE_BATCH:,} of {len(rows):,} chips")
                yield batch

        return self.learner.judge(batches())

    def finish(self, pace: Pace) -> Trained:
        """Put the best epoch's weights into the network and judge it once more."""
        assert self.best is not None  # the last epoch is always settled
        seconds = time.monotonic() - self._started
        chips_per_second, wait_share = pace.chips_per_second(), self.loader.wait_seconds / pace.seconds()
        self.learner.take(self.best)
        validation, test = self.judge(self.split.validation), self.judge(self.split.test)
        temperature = fit_temperature(validation, self.chips.targets[self.split.validation])
        network = self.network.cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        network.load_state_dict(self.best)
        return Trained(
            chips=self.chips,
            network=network,
            mean=self.mean,
            std=self.std,
            temperature=temperature,
            split=self.split,
            validation_logits=validation,
            test_logits=test,
            history=tuple(self.history),
            best_epoch=self.best_epoch,
            learning_rate=self.rate,
            started_from=self.started_from,
            device=self.learner.device.type,
            precision=self.learner.precision,
            chips_per_second=chips_per_second,
            wait_share=wait_share,
            seconds=seconds,
        )
