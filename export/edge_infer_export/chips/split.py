"""Parts chips into training, validation and test by place or event, so that no ground is seen on two sides.

Chips that lie near each other show the same roofs; split at random, the figures would flatter. So whole
events, whole areas and whole blocks of ground go to one side, and chips whose window meets a window of
another side are dropped: from training for the sake of validation and test, from validation for test. The
window of a turned image counts as the upright square around it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import shapely

from edge_infer.errors import Refused
from edge_infer.progress import tally

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_infer_export.chips.dataset import Chips

SplitKind = Literal["event", "area", "place", "random"]

_METRES_PER_DEGREE = 111_195.0
"""Of latitude, on a sphere: good to half a per cent, which is enough to keep windows apart."""

_TYPICAL_WINDOW = 0.95
"""Blocks are made for the window that so many are no larger than: one warehouse must not set them."""

_SAME_PLACE_DEGREES = 1e-6
"""Windows whose centres agree to a decimetre show one building, before and after."""

_MOST_TRIES = 16
_ENOUGH_BLOCKS = 20_000

_MOST_LISTED = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitOptions:
    """How to part chips."""

    validation_share: float = 0.2
    """Wanted part of the chips on the validation side, unless events or areas are named for it."""
    test_share: float = 0.0
    """Wanted part on the test side, likewise; 0: no test side."""
    seed: int = 0
    """Of the order in which blocks are dealt."""
    validation_events: tuple[str, ...] = ()
    validation_areas: tuple[str, ...] = ()
    """Names of places, boxes `west,south,east,north` in degrees, or vector files with polygons."""
    test_events: tuple[str, ...] = ()
    test_areas: tuple[str, ...] = ()
    block_metres: float | None = None
    """Side of the blocks that are dealt out; None: by the size of the windows."""
    random: bool = False
    """Deal single buildings instead of blocks of ground, and drop nothing: the figures will flatter."""

    def __post_init__(self) -> None:
        """Refuse shares that leave nothing to train on, and a chance split of named sides."""
        if not self.names_validation and not 0 < self.validation_share <= 0.5:
            raise Refused(
                f"the validation share must lie above 0 and at most at 0.5, got {self.validation_share}"
            )
        if not 0 <= self.test_share <= 0.5:
            raise Refused(f"the test share must lie in 0..0.5, got {self.test_share}")
        if self.block_metres is not None and not 0 < self.block_metres < np.inf:
            raise Refused(f"the side of a block must be a positive number of metres, got {self.block_metres}")
        if self.random and self.block_metres is not None:
            raise Refused("a random split deals no blocks; leave --block-metres or --random-split out")
        if self.names_test and self.test_share:
            raise Refused("the test side is named by event or area; leave the test share out")

    @property
    def names_validation(self) -> bool:
        """Whether events or areas make the validation side."""
        return bool(self.validation_events or self.validation_areas)

    @property
    def names_test(self) -> bool:
        """Whether events or areas make the test side."""
        return bool(self.test_events or self.test_areas)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Split:
    """Positions of chips, each int64 and in one of four groups."""

    training: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    """May be empty."""
    dropped: NDArray[np.int64]
    """Chips whose window meets a window of a side that is judged on."""
    kind: SplitKind
    """How the side that the model is judged on was chosen: test, or validation where there is no test side.
    `random` wherever chance had a hand in it, block by block excepted."""
    block_metres: float
    """Side of the ground blocks that were dealt out; 0 where none were."""
    words: str
    """The split in a sentence or two, for every report."""

    def to_json(self, chips: Chips) -> dict[str, Any]:
        """Plain JSON values for the record of a run: kind, words and counts by class."""
        return {
            "kind": self.kind,
            "words": self.words,
            "block_metres": self.block_metres,
            "training": chips.counts(self.training),
            "validation": chips.counts(self.validation),
            "test": chips.counts(self.test),
            "dropped": len(self.dropped),
        }


def split_chips(chips: Chips, options: SplitOptions) -> Split:
    """Part chips into training, validation and test.

    Named events and areas are held out whole. What is dealt by share is dealt in blocks of ground: at first
    of eight windows a side, then four, then two where blocks are too few or too large to leave every class
    on both sides, unless their size is said.

    Raises:
        Refused: an event or area holds no chip, chips have no place on the ground, a side lacks a class
            that it should have, or the chips lie so close together that no such split exists.

    """
    test = named_chips(chips, "test", options.test_events, options.test_areas)
    validation = named_chips(chips, "validation", options.validation_events, options.validation_areas) & ~test
    if options.random:
        return _random_split(chips, options, validation, test)
    _require_places(chips)
    rest = ~test & ~validation
    if options.names_validation and (options.names_test or not options.test_share):
        split = _settle(chips, options, validation, test, 0.0)
        absent = _absent_class(chips, split, dealt_test=False)
        if absent:
            raise Refused(f"{absent}; name other events or areas, or label more chips")
        return split
    reach = float(np.quantile(chips.ground_metres, _TYPICAL_WINDOW)) if len(chips) else 0.0
    by_windows = (8 * reach, 4 * reach, 2 * reach)
    for block_metres in by_windows if options.block_metres is None else (options.block_metres,):
        blocks = ground_blocks(chips.longitude, chips.latitude, block_metres)
        rng = np.random.default_rng(options.seed)
        dealt_test, dealt_validation = test, validation
        if options.test_share:
            dealt_test = _deal(blocks, chips, rest, options.test_share, rng)
        if not options.names_validation:
            # The share is one of all chips but those held out by name.
            left = rest & ~dealt_test
            share = options.validation_share / (1 - options.test_share)
            dealt_validation = _deal(blocks, chips, left, min(share, 0.5), rng)
        split = _settle(chips, options, dealt_validation, dealt_test, block_metres)
        if not _absent_class(chips, split, dealt_test=bool(options.test_share)):
            return split
    raise Refused(
        f"{len(chips)} chips cannot be parted by place with every class on both sides "
        f"({tally(chips.counts())}; windows of {reach:g} m, blocks of {block_metres:g} m at last); add chips "
        "from elsewhere"
    )


def _settle(
    chips: Chips,
    options: SplitOptions,
    validation: NDArray[np.bool_],
    test: NDArray[np.bool_],
    block_metres: float,
) -> Split:
    """Drop the chips that meet another side, and say how it was done."""
    kept = validation & ~_meets(chips, test)
    training = ~validation & ~test & ~_meets(chips, test | kept)
    kind: SplitKind = "place"
    events, areas = (
        (options.test_events, options.test_areas)
        if options.names_test or options.test_share
        else (options.validation_events, options.validation_areas)
    )
    if events or areas:
        kind = "event" if events and not areas else "area"
    dropped = ~(training | kept | test)
    return Split(
        training=np.flatnonzero(training),
        validation=np.flatnonzero(kept),
        test=np.flatnonzero(test),
        dropped=np.flatnonzero(dropped),
        kind=kind,
        block_metres=block_metres,
        words=f"Split by {kind}: {_words(options, block_metres)}. {_tally(training, kept, test)} "
        f"{int(dropped.sum()):,} chips were left out because their windows meet one of another side.",
    )


def _random_split(
    chips: Chips, options: SplitOptions, validation: NDArray[np.bool_], test: NDArray[np.bool_]
) -> Split:
    """Deal single places: only windows with one centre stay together."""
    rng = np.random.default_rng(options.seed)
    places = _same_places(chips)
    rest = ~test & ~validation
    if options.test_share:
        test = test | _deal(places, chips, rest, options.test_share, rng)
    if not options.names_validation:
        share = options.validation_share / (1 - options.test_share)
        validation = _deal(places, chips, rest & ~test, min(share, 0.5), rng)
    training = ~validation & ~test
    split = Split(
        training=np.flatnonzero(training),
        validation=np.flatnonzero(validation),
        test=np.flatnonzero(test),
        dropped=np.empty(0, np.int64),
        kind="random",
        block_metres=0.0,
        words="RANDOM SPLIT: chips that show the same ground lie on both sides, so the figures flatter. "
        + _tally(training, validation, test),
    )
    absent = _absent_class(chips, split, dealt_test=bool(options.test_share))
    if absent:
        raise Refused(f"{absent}; label more chips")
    return split


def named_chips(
    chips: Chips, side: str, events: tuple[str, ...], areas: tuple[str, ...]
) -> NDArray[np.bool_]:
    """Find the chips of the events and areas that were named for a side: bool, (n,)."""
    held = np.zeros(len(chips), bool)
    for event in events:
        here = chips.event == event
        if not here.any():
            raise Refused(
                f"no chip is of the event {event!r} ({side}); the chips have {_listed(chips.event)}"
            )
        held |= here
    for area in areas:
        held |= _area(chips, area, side)
    return held


def _area(chips: Chips, area: str, side: str) -> NDArray[np.bool_]:
    """Find the chips of one area: whose centre lies in the box or polygons, or of the place of that name."""
    if np.any(chips.place == area):
        return np.asarray(chips.place == area, bool)
    box = _parse_box(area)
    if box is not None:
        polygons: shapely.Geometry = shapely.box(*box)
    elif Path(area).is_file():
        polygons = _read_polygons(Path(area))
    else:
        raise Refused(
            f"no chip is of the place {area!r} ({side}), nor is that a file or a box west,south,east,north; "
            f"the chips have {_listed(chips.place)}"
        )
    _require_places(chips)
    shapely.prepare(polygons)
    here = np.asarray(shapely.intersects_xy(polygons, chips.longitude, chips.latitude), bool)
    if not here.any():
        raise Refused(f"no chip lies in the area {area!r} ({side}); {_extent(chips)}")
    return here


def _parse_box(text: str) -> tuple[float, float, float, float] | None:
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        return None
    if not (west < east and south < north):
        raise Refused(f"area {text!r}: wanted west,south,east,north in degrees, each pair rising")
    return west, south, east, north


def _read_polygons(path: Path) -> shapely.Geometry:
    """Read the polygons of a vector file and bring them to longitude and latitude."""
    from pyproj import CRS

    from edge_infer.footprints import read_footprints
    from edge_infer.grid import transform_points

    footprints = read_footprints(path)

    def to_degrees(points: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = np.ascontiguousarray(points.T)
        return np.stack(transform_points(footprints.crs, CRS.from_epsg(4326), x, y), axis=1)

    usable = footprints.geometries[footprints.usable]
    return shapely.union_all(shapely.make_valid(shapely.transform(usable, to_degrees)))


def _require_places(chips: Chips) -> None:
    unplaced = int((~np.isfinite(chips.longitude) | ~np.isfinite(chips.latitude)).sum())
    if unplaced:
        raise Refused(
            f"{unplaced:,} of {len(chips):,} chips have no place on the ground, so they cannot be parted by "
            "place; give their coordinates, or say --random-split, which flatters"
        )


def _absent_class(chips: Chips, split: Split, *, dealt_test: bool) -> str:
    """Name the classes that a side lacks and should have; empty where nothing is missing.

    A test side that was named may lack classes: events are as they are.
    """
    sides = [("training", split.training), ("validation", split.validation)]
    for side, rows in [*sides, ("test", split.test)] if dealt_test else sides:
        absent = [name for name, number in chips.counts(rows).items() if number == 0]
        if absent:
            return f"the {side} side has no chip of {', '.join(absent)}"
    return ""


def _same_places(chips: Chips) -> NDArray[np.int64]:
    """Give windows with one centre one number, int64 (n,); a chip without a place is alone."""
    spots = np.round(np.stack([chips.longitude, chips.latitude]) / _SAME_PLACE_DEGREES)
    unplaced = np.isnan(spots).any(axis=0)
    # Beyond any longitude there is, and each another one.
    spots[:, unplaced] = 1e12 + np.arange(int(unplaced.sum()))
    _, number = np.unique(spots, axis=1, return_inverse=True)
    return number.reshape(-1)


def ground_blocks(
    longitude: NDArray[np.float64], latitude: NDArray[np.float64], block_metres: float
) -> NDArray[np.int64]:
    """Find the ground block of each place, degrees (n,): int64, (n,), numbers from 0."""
    step = block_metres / _METRES_PER_DEGREE
    row = np.floor(latitude / step)
    # Each row of blocks has its own step in longitude, so that blocks are square anywhere on earth.
    narrowing = np.cos(np.radians(np.clip((row + 0.5) * step, -89.0, 89.0)))
    column = np.floor(longitude * narrowing / step)
    _, block = np.unique(np.stack([row, column]), axis=1, return_inverse=True)
    return block.reshape(-1)


def _deal(
    block: NDArray[np.int64],
    chips: Chips,
    among: NDArray[np.bool_],
    share: float,
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Take blocks in random order where that brings the classes nearer to the share of those `among`."""
    held = np.zeros((block.max(initial=-1) + 1, len(chips.classes)))
    np.add.at(held, (block[among], chips.targets[among]), 1)
    wanted = share * held.sum(axis=0)
    there = wanted > 0
    held, wanted = held[:, there], wanted[there]
    # Where there are few blocks much depends on the order; many need no second try.
    tries = [
        _fill(held, wanted, rng) for _ in range(max(1, min(_MOST_TRIES, _ENOUGH_BLOCKS // max(1, len(held)))))
    ]
    chosen, _ = min(tries, key=lambda outcome: outcome[1])
    return np.asarray(chosen[block] & among)


def _fill(
    held: NDArray[np.float64], wanted: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.bool_], float]:
    """Go once through blocks that hold (m, K) chips: those taken, bool (m,), and how far off they are."""
    taken = np.zeros(len(wanted))
    chosen = np.zeros(len(held), bool)
    # Distances in parts of what is wanted, so that a rare class counts as much as a common one.
    distance = float(len(wanted))
    for candidate in rng.permutation(len(held)):
        with_it = taken + held[candidate]
        after = float(np.abs(with_it / wanted - 1).sum())
        if after < distance:
            taken, distance = with_it, after
            chosen[candidate] = True
    return chosen, distance


def _meets(chips: Chips, held_out: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether each chip's window meets a held-out window: bool, (n,)."""
    half_y = chips.ground_metres / 2 * _widening(chips.bearing) / _METRES_PER_DEGREE
    half_x = half_y / np.cos(np.radians(np.clip(chips.latitude, -89.0, 89.0)))
    x, y = chips.longitude, chips.latitude
    bounds = np.stack([x - half_x, y - half_y, x + half_x, y + half_y], axis=1)
    windows = shapely.box(*bounds.T)
    met = np.zeros(len(windows), bool)
    # A window at 179.999 degrees may meet one at -179.999.
    for turn in (-360.0, 0.0, 360.0):
        there = shapely.box(*(bounds[held_out] + [turn, 0, turn, 0]).T)
        near, _ = shapely.STRtree(there).query(windows, predicate="intersects")
        met[near] = True
    return met


def _widening(bearing: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the side of the upright square around a square that is turned, over its own: float64, (n,).

    A chip of unknown bearing counts as upright, as most imagery is.
    """
    angle = np.radians(np.nan_to_num(bearing))
    return np.asarray(np.abs(np.sin(angle)) + np.abs(np.cos(angle)))


def _words(options: SplitOptions, block_metres: float) -> str:
    blocks = f"by blocks of ground of {block_metres:,.0f} m"
    parts = []
    if options.names_test:
        parts.append(f"test on {_sides(options.test_events, options.test_areas)}")
    elif options.test_share:
        parts.append(f"test {blocks}")
    if options.names_validation:
        parts.append(f"validation on {_sides(options.validation_events, options.validation_areas)}")
    else:
        parts.append(f"validation {blocks}")
    return ", ".join(parts)


def _sides(events: tuple[str, ...], areas: tuple[str, ...]) -> str:
    return " and ".join([*(f"event {name}" for name in events), *(f"area {name}" for name in areas)])


def _tally(training: NDArray[np.bool_], validation: NDArray[np.bool_], test: NDArray[np.bool_]) -> str:
    held = f" and {int(test.sum()):,} to test on" if test.any() else ""
    return f"{int(training.sum()):,} chips to train on, {int(validation.sum()):,} to validate on{held}."


def _listed(names: NDArray[np.object_]) -> str:
    found = Counter(name for name in names.tolist() if name)
    if not found:
        return "none named"
    shown = ", ".join(f"{name} ({number:,})" for name, number in found.most_common(_MOST_LISTED))
    return shown if len(found) <= _MOST_LISTED else f"{shown} and {len(found) - _MOST_LISTED:,} more"


def _extent(chips: Chips) -> str:
    return (
        f"they lie in {chips.longitude.min():.5f},{chips.latitude.min():.5f},"
        f"{chips.longitude.max():.5f},{chips.latitude.max():.5f}"
    )
