"""The sheets of chips in a report: which chips, in which order, with which words."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_infer_export.chips.pictures import UnreadableChip
from edge_infer_export.evaluation.sheet import Tile, overlay, to_rgb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from edge_infer_export.chips.dataset import Chips
    from edge_infer_export.evaluation.figures import Evaluation

MISTAKES = 24
RESULTS = 24
EXPLAINED = 8
TRAINING_CHIPS = 8
"""Chips of the training side on the sheet, each with `VIEWS` augmented views."""
VIEWS = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Background:
    """What the report tells beside the evaluation; all of it may be left out."""

    facts: Mapping[str, str] = field(default_factory=dict)
    """How the model came about: a table of names and values."""
    pictures: Sequence[tuple[Path, str]] = ()
    """Further PNG files with a caption each: learning-rate finder, losses by epoch."""
    training_rows: NDArray[np.int64] | None = None
    """int64, (n,): positions of the training chips, for a sheet of them."""
    augment: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None
    """Chips uint8 (n, S, S, C) as training sees them, changed at random: for the same sheet."""
    explain: Callable[[NDArray[np.uint8], NDArray[np.int64]], NDArray[np.float32]] | None = None
    """Chips and a class for each to heat (n, S, S), as `gradcam.Explainer.heat`: for a sheet of Grad-CAMs."""


class Album:
    """Chooses chips for the sheets and writes their captions. A sheet is its tiles and its columns."""

    def __init__(
        self, evaluation: Evaluation, chips: Chips, colors: Sequence[str], rng: np.random.Generator
    ) -> None:
        self.evaluation, self.chips, self.colors, self.rng = evaluation, chips, colors, rng
        self.confidence = evaluation.probabilities.max(axis=1)
        self.wrong = evaluation.predictions != evaluation.judged.targets

    def mistakes(self) -> tuple[list[Tile], int]:
        """Show the chips that are wrong and surest of it."""
        return self._tiles(self._surest_mistakes()[:MISTAKES]), 6

    def results(self) -> tuple[list[Tile], int]:
        """Show chips taken by chance, the classes in turn."""
        places = self._in_turn(np.arange(len(self.wrong)), self.evaluation.judged.targets)
        return self._tiles(places[:RESULTS]), 6

    def explained(self, background: Background) -> tuple[list[Tile], int]:
        """Show chips beside what in them spoke for the class that was predicted: half of them mistakes."""
        if background.explain is None:
            return [], 4
        mistakes = self._surest_mistakes()[: EXPLAINED // 2]
        right = self._in_turn(np.flatnonzero(~self.wrong), self.evaluation.predictions)
        places = np.concatenate([mistakes, right[: EXPLAINED - len(mistakes)]])
        tiles = []
        for place, chip in self._read(places):
            called = self.evaluation.predictions[place]
            heat = background.explain(chip[None], np.array([called]))[0]
            plain = self._tile(place, chip)
            warm = overlay(plain.picture, heat)
            tiles += [plain, Tile(warm, (f"for {self.evaluation.classes[called]}",), self.colors[called])]
        return tiles, 4

    def training(self, background: Background) -> tuple[list[Tile], int]:
        """Show training chips with their labels, each beside views of it as the network gets to see it."""
        rows = background.training_rows
        if rows is None:
            return [], 2 * (1 + VIEWS)
        views = VIEWS if background.augment is not None else 0
        chosen = rows[self._in_turn(np.arange(len(rows)), self.chips.targets[rows])[:TRAINING_CHIPS]]
        tiles = []
        for row in chosen:
            try:
                chip = self.chips.read(np.array([row]))
            except UnreadableChip:
                continue
            k = int(self.chips.targets[row])
            label = self.evaluation.classes[k]
            tiles.append(Tile(self._rgb(chip)[0], (label, self._name(row)), self.colors[k]))
            if background.augment is not None:
                changed = self._rgb(background.augment(np.repeat(chip, views, axis=0)))
                tiles += [Tile(view, (label, "as augmented"), self.colors[k]) for view in changed]
        return tiles, 2 * (1 + views)

    def _surest_mistakes(self) -> NDArray[np.int64]:
        wrong = np.flatnonzero(self.wrong)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")]

    def _in_turn(self, places: NDArray[np.int64], classes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Shuffle positions and order them so that the classes take turns."""
        shuffled = self.rng.permutation(places)
        turn = np.zeros(len(shuffled), np.int64)
        for k in np.unique(classes):
            members = classes[shuffled] == k
            turn[members] = np.arange(members.sum())
        return np.asarray(shuffled[np.lexsort((classes[shuffled], turn))], np.int64)

    def _tiles(self, places: NDArray[np.int64]) -> list[Tile]:
        return [self._tile(place, chip) for place, chip in self._read(places)]

    def _tile(self, place: int, chip: NDArray[np.uint8]) -> Tile:
        judged = self.evaluation.judged
        true, called = int(judged.targets[place]), int(self.evaluation.predictions[place])
        names = self.evaluation.classes
        words = f"is {names[true]}" if true != called else "right"
        return Tile(
            self._rgb(chip[None])[0],
            (f"{names[called]} {self.confidence[place]:.0%}", words, self._name(int(judged.rows[place]))),
            self.colors[true],
        )

    def _read(self, places: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        for place in places.tolist():
            # The picture was read before; should it be gone by now, the sheet does without it.
            with suppress(UnreadableChip):
                yield place, self.chips.read(self.evaluation.judged.rows[place : place + 1])[0]

    def _rgb(self, chips: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return to_rgb(chips, self.chips.contract.bands)

    def _name(self, row: int) -> str:
        return Path(self.chips.file[row]).name
