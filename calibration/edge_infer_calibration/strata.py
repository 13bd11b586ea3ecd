"""Draws in which rare kinds of chips are not lost among the common ones: strata take turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

GSD_STEP = 1.1
"""Pixel sizes within this ratio are of one stratum."""


def number(*keys: NDArray[Any]) -> NDArray[np.int64]:
    """Give what differs in any of several keys, (n,) each, another number from 0: int64, (n,)."""
    codes = [np.unique(key, return_inverse=True)[1].reshape(-1) for key in keys]
    _, numbers = np.unique(np.stack(codes), axis=1, return_inverse=True)
    return np.asarray(numbers.reshape(-1), np.int64)


def known_strata(
    targets: NDArray[np.int64] | None, scene: NDArray[np.object_], gsd_metres: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Tell the strata that are known without pixels: int64, (n,), numbers from 0.

    Args:
        targets: int64, (n,), class; None where nobody said.
        scene: object (str), (n,).
        gsd_metres: float64, (n,).

    """
    classes = np.zeros(len(scene), np.int64) if targets is None else targets
    steps = np.rint(np.log(gsd_metres) / np.log(GSD_STEP)).astype(np.int64)
    return number(classes, scene.astype(str), steps)


def in_turn(strata: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Order all n chips at random, but so that strata take turns: int64, (n,), positions."""
    shuffled = rng.permutation(len(strata))
    by_stratum = shuffled[np.argsort(strata[shuffled], kind="stable")]
    _, starts, sizes = np.unique(strata[by_stratum], return_index=True, return_counts=True)
    # The turn of a chip: how many of its stratum come before it.
    turn = np.arange(len(strata)) - np.repeat(starts, sizes)
    return by_stratum[np.lexsort((rng.random(len(strata)), turn))]


def draw(
    strata: NDArray[np.int64], most: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Draw at most `most` of n chips: half by chance, then half in turn of their strata, int64 (n,).

    The first half is like all chips; the second has what is rare among them.

    Returns:
        int64, (k,): positions, ascending; bool, (k,): which of them came by chance alone. Where all are
        drawn, all are like all.

    """
    count = len(strata)
    if count <= most:
        return np.arange(count), np.ones(count, bool)
    shuffled = rng.permutation(count)
    chance, rest = shuffled[: most // 2], shuffled[most // 2 :]
    rows = np.sort(np.concatenate([chance, rest[in_turn(strata[rest], rng)][: most - len(chance)]]))
    return rows, np.isin(rows, chance)
