"""Which chips are chosen, and what is refused."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_infer.errors import Refused
from edge_infer_calibration.candidates import Candidates
from edge_infer_calibration.choice import choose, fingerprints, look, refuse_synthetic, strata_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

SIDE = 32


def candidates_of(
    chips: NDArray[np.uint8],
    classes: NDArray[np.int64] | None,
    scenes: int = 2,
    seen: list[int] | None = None,
) -> Candidates:
    count = len(chips)

    def read(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        if seen is not None:
            seen.append(len(rows))
        return chips[rows]

    return Candidates(
        name=np.array([f"chip {n}" for n in range(count)], object),
        targets=classes,
        scene=np.array([f"scene {n % scenes}" for n in range(count)], object),
        event=np.full(count, "", object),
        gsd_metres=np.where(np.arange(count) % 5, 0.5, 0.3),
        blocks=None,
        by_chance=np.ones(count, bool),
        read=read,
    )


def test_a_rare_stratum_is_not_lost(imagery_chips: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
    chips, _ = imagery_chips(1000)
    classes = np.zeros(1000, np.int64)
    classes[:10] = 1
    candidates = candidates_of(chips, classes)
    rows = np.arange(1000)
    chosen = choose(strata_of(candidates, look(candidates.batches(rows)), rows), 100, seed=0)
    assert len(set(chosen.tolist())) == 100
    assert Counter(classes[chosen].tolist())[1] == 10


def test_strata_are_filled_evenly(imagery_chips: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
    chips, classes = imagery_chips(1200)
    candidates = candidates_of(chips, classes)
    rows = np.arange(1200)
    strata = strata_of(candidates, look(candidates.batches(rows)), rows)
    chosen = choose(strata, 200, seed=3)
    available, taken = Counter(strata.tolist()), Counter(strata[chosen].tolist())
    most = max(taken.values())
    # A stratum gives fewer than the fullest one only by one, or because it has no more.
    assert all(taken[s] >= min(available[s], most - 1) for s in available)


def test_the_seed_decides(imagery_chips: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
    chips, classes = imagery_chips(300)
    candidates, rows = candidates_of(chips, classes), np.arange(300)
    strata = strata_of(candidates, look(candidates.batches(rows)), rows)
    one, same, other = (choose(strata, 64, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert set(one) != set(other)


def test_looking_reads_a_few_chips_at_a_time(
    imagery_chips: Callable[..., tuple[np.ndarray, np.ndarray]],
) -> None:
    seen: list[int] = []
    chips, classes = imagery_chips(100)
    looks = look(candidates_of(chips, classes, seen=seen).batches(np.arange(100)))
    assert max(seen) <= 16
    assert sum(seen) == 100
    np.testing.assert_allclose(looks.brightness, chips.mean(axis=(1, 2, 3)))
    np.testing.assert_allclose(looks.contrast, chips.mean(axis=3).std(axis=(1, 2)))
    assert looks.sha256[17] == sha256(chips[17].tobytes()).hexdigest()
    assert looks.take(np.array([17])).sha256.tolist() == fingerprints(chips[17:18])


def test_imagery_is_taken(imagery_chips: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
    chips, _ = imagery_chips(60)
    looks = look([chips])
    refuse_synthetic(looks)
    assert looks.smoothness.min() > 0.5


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("noise", "are noise"),
        ("constant", "show nothing"),
        ("zeros", "show nothing"),
        ("copies", "look the same"),
        ("blurred noise", "look the same"),
    ],
)
def test_what_no_camera_took_is_refused(kind: str, words: str) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (80, SIDE, SIDE, 3)).astype(np.uint8)
    shifted = [np.roll(noise.astype(float), (a, b), (1, 2)) for a in range(3) for b in range(3)]
    kernel = np.mean(shifted, axis=0)
    chips = {
        "noise": noise,
        "constant": np.broadcast_to(rng.integers(0, 256, (80, 1, 1, 3)), noise.shape).astype(np.uint8),
        "zeros": np.zeros_like(noise),
        "copies": np.repeat(kernel[:1].astype(np.uint8), 80, axis=0),
        "blurred noise": kernel.astype(np.uint8),
    }[kind]
    with pytest.raises(Refused, match=words):
        refuse_synthetic(look([chips]))


def test_real_imagery_is_far_from_noise(shared_data: Path) -> None:
    """What `_SMOOTH` says of imagery, on windows of real tiles."""
    import rasterio
    from rasterio.windows import Window

    tiles = sorted((shared_data / "joplin" / "post").glob("*.tif"))
    chips = []
    for tile in tiles[:2]:
        with rasterio.open(tile) as image:
            for k in range(20):
                window = Window(100 + 40 * k, 100 + 30 * k, SIDE, SIDE)
                chips.append(np.moveaxis(image.read((1, 2, 3), window=window), 0, 2))
    looks = look([np.array(chips, np.uint8)])
    assert np.median(looks.smoothness) > 0.5
    refuse_synthetic(looks)
