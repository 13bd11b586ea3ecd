"""Which chips a training sees in which order, and how much each class weighs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Balance = Literal["none", "weights", "sampling"]
"""What is done about uneven classes: nothing, weights in the loss, or drawing each class equally often."""


def class_weights(targets: NDArray[np.int64], classes: int, balance: Balance) -> NDArray[np.float32]:
    """Weigh classes by the inverse of their number under `weights`, else equally: float32, (K,).

    Args:
        targets: (n,), class of each training chip; every class must be there.
        classes: K.
        balance: see `Balance`.

    """
    if balance != "weights":
        return np.ones(classes, np.float32)
    counts = np.bincount(targets, minlength=classes)
    return (len(targets) / (classes * counts)).astype(np.float32)


def epoch_batches(
    rows: NDArray[np.int64],
    targets: NDArray[np.int64],
    batch: int,
    *,
    balance: Balance,
    seed: int,
    epoch: int,
) -> list[NDArray[np.int64]]:
    """Deal the training rows into the whole batches of an epoch; the rest waits for the next shuffle.

    Args:
        rows: (n,), positions of the training chips in the set.
        targets: (n,), their classes.
        batch: chips in each.
        balance: under `sampling`, rows are drawn with replacement so that all classes come equally often.
        seed: decides the order together with `epoch`.
        epoch: number of the epoch.

    """
    rng = np.random.default_rng((seed, epoch))
    if balance == "sampling":
        chance = 1.0 / np.bincount(targets)[targets]
        order = rng.choice(rows, len(rows), p=chance / chance.sum())
    else:
        order = rng.permutation(rows)
    steps = len(rows) // batch
    return np.split(order[: steps * batch], steps) if steps else []
