"""Finds a learning rate before training: the rate climbs from batch to batch until the loss runs away.

The range test is Smith's (https://arxiv.org/abs/1506.01186, section 3.3). Which rate to take from the curve
follows two rules of fastai (https://github.com/fastai/fastai/pull/3377): `valley`, the middle of the longest
stretch on which the loss falls, and `steepest`, where it falls fastest. The valley is suggested: it depends
on the whole curve, the steepest point on a few noisy batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from edge_infer.errors import Refused
from edge_infer_export.evaluation.plots import new_figure
from edge_infer_export.training.order import epoch_batches
from edge_infer_export.training.schedule import MOMENTUM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_infer_export.training.learner import Learner
    from edge_infer_export.training.loader import Loader
    from edge_infer_export.training.options import TrainOptions

LOWEST, HIGHEST = 1e-6, 1.0
STEPS = 80
RUNAWAY = 4.0
"""The test ends where the smoothed loss is so many times the least one."""
SMOOTHING = 0.9
"""Weight of the past in the smoothed loss."""
FEWEST_POINTS = 10


@dataclass(frozen=True, slots=True)
class RateCurve:
    """Loss by learning rate, and what follows from it."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    """Smoothed."""
    valley: float
    """The suggestion."""
    steepest: float


def sweep(
    learner: Learner,
    loader: Loader,
    rows: NDArray[np.int64],
    targets: NDArray[np.int64],
    options: TrainOptions,
    *,
    tick: Callable[[str], None] = lambda _: None,
) -> RateCurve:
    """Run the range test and put the learner back to where it was.

    Args:
        learner: the network and its optimiser.
        loader: of augmented batches.
        rows: (n,), training chips.
        targets: (n,), their classes.
        options: batch, balance and seed.
        tick: is told before every step how far it is; what it raises ends the test.

    Raises:
        Refused: the loss is no number from the start, so that there is no curve.

    """
    before = learner.state()
    rates = np.geomspace(LOWEST, HIGHEST, STEPS).tolist()
    losses: list[float] = []
    mean = 0.0

    def batches() -> Iterator[NDArray[np.int64]]:
        # Passes before the first epoch have negative numbers in words, and odd ones in the seed.
        for turn in count():
            yield from epoch_batches(
                rows, targets, options.batch, balance=options.balance, seed=options.seed, epoch=10**6 + turn
            )

    chosen = [batch for _, batch in zip(range(STEPS), batches(), strict=False)]
    for number, batch in enumerate(loader.training(chosen, epoch=10**6)):
        tick(f"LR finder: step {number + 1} of {STEPS} at most")
        loss = float(learner.learn(batch, rates[number], MOMENTUM[0]))
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smooth = mean / (1 - SMOOTHING ** (number + 1))
        if not math.isfinite(smooth) or (losses and smooth > RUNAWAY * min(losses)):
            break
        losses.append(smooth)
    learner.restore(before)
    if len(losses) < FEWEST_POINTS:
        raise Refused(
            f"the loss ran away after {len(losses)} batches at the lowest rates; give a rate with --lr, or "
            "look at the chips and at --weights"
        )
    return judge_curve(rates[: len(losses)], losses)


def judge_curve(rates: list[float], losses: list[float]) -> RateCurve:
    """Choose rates from a curve of smoothed losses, at least `FEWEST_POINTS` of them.

    The first tenth is passed over: little lies behind its points, so they are hardly smooth.
    """
    first = len(losses) // 10
    considered = losses[first:]
    slopes = np.gradient(np.array(considered), np.log(np.array(rates[first:])))
    return RateCurve(
        tuple(rates),
        tuple(losses),
        valley=rates[first + middle_of_valley(considered)],
        steepest=rates[first + int(slopes.argmin())],
    )


def middle_of_valley(losses: list[float]) -> int:
    """Find the middle of the longest falling subsequence: half its members lie on either side.

    Where several are equally long, the one that ends first counts. Of a curve that never falls this is its
    first point.
    """
    length = [1] * len(losses)
    before = [-1] * len(losses)
    for here, loss in enumerate(losses):
        for earlier in range(here):
            if losses[earlier] > loss and length[earlier] + 1 > length[here]:
                length[here], before[here] = length[earlier] + 1, earlier
    members = [int(np.argmax(length))]
    while before[members[-1]] >= 0:
        members.append(before[members[-1]])
    return members[len(members) // 2]


def draw_curve(path: Path, curve: RateCurve, taken: float) -> None:
    """Draw the curve, both suggestions, and the rate that was taken."""
    figure = new_figure(7, 4)
    axes = figure.subplots()
    axes.plot(curve.rates, curve.losses)
    for name, rate, colour in (
        ("valley", curve.valley, "tab:green"),
        ("steepest", curve.steepest, "tab:orange"),
    ):
        loss = float(np.interp(math.log(rate), np.log(curve.rates), curve.losses))
        axes.plot([rate], [loss], "o", color=colour, label=f"{name}: {rate:.1e}")
    axes.axvline(taken, color="grey", linestyle=":", label=f"taken: {taken:.1e}")
    axes.set_xscale("log")
    low = min(curve.losses)
    high = max(curve.losses[: len(curve.losses) // 2])
    axes.set_ylim(low - 0.1 * (high - low), high + 0.5 * (high - low) + 1e-6)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss, smoothed")
    axes.set_title("learning rate finder")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
