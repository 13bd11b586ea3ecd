"""A synthetic town after a fire, planned in ground metres: streets, houses, trees, cars, and the fire.

Nothing here knows of pixels. `shapes` turns the plan into coloured polygons and `paint` draws them,
so two images of the town, each on its own grid, show the same houses.

The ground frame has its origin in the south-west corner of the town, x to the east and y to the north, in
metres. Streets run on a bent grid: `_bend` carries grid coordinates (along, across) to the ground.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

State = Literal["intact", "opened", "burnt"]
"""`opened`: the roof stands, but fire has eaten a hole into it. `burnt`: ash, rubble and stubs of walls."""
Roof = Literal["hip", "gable", "flat"]

_BLOCK_METRES = (152.0, 74.0)
_STREET_HALF_METRES = 5.5
_STREETS = (
    "Alder",
    "Birch",
    "Cedar",
    "Dogwood",
    "Elm",
    "Fir",
    "Gum",
    "Hazel",
    "Ivy",
    "Juniper",
    "Laurel",
    "Maple",
)


@dataclass(frozen=True, slots=True)
class Extent:
    """How much ground the town covers."""

    east_metres: float = 1700.0
    north_metres: float = 630.0

    @property
    def creek(self) -> tuple[float, float]:
        """Grid columns (along) of the green strip that parts the western district from the eastern one."""
        middle = self.east_metres * 8 / 17
        return middle - 30.0, middle + 30.0

    def holds(self, x: float, y: float, margin: float) -> bool:
        """Whether a place lies inside, or no further outside than the margin (inside by it, if negative)."""
        return -margin < x < self.east_metres + margin and -margin < y < self.north_metres + margin


@dataclass(frozen=True, slots=True)
class House:
    """One building: a main body and perhaps a wing, standing at an angle on its lot."""

    x: float
    y: float
    angle: float
    """Direction of the ridge, radians counter-clockwise from east."""
    length: float
    """Main body along the ridge, metres."""
    depth: float
    """Main body across the ridge, metres."""
    wing: tuple[float, float, float] | None
    """Offset of its middle along the ridge, width, how far it stands out, metres; None: no wing."""
    height: float
    """Eaves above ground, metres."""
    roof: Roof
    tone: tuple[int, int, int]
    """Colour of the roof in plain light."""
    state: State
    built: int
    address: str
    district: Literal["west", "east"]

    @property
    def outline(self) -> NDArray[np.float64]:
        """Outer wall, (k, 2) ground metres, open ring."""
        half_length, half_depth = self.length / 2, self.depth / 2
        ring = [
            (-half_length, -half_depth),
            (half_length, -half_depth),
            (half_length, half_depth),
            (-half_length, half_depth),
        ]
        if self.wing is not None:
            offset, width, out = self.wing
            left, right, front = offset - width / 2, offset + width / 2, -half_depth - out
            ring[1:1] = [(left, -half_depth), (left, front), (right, front), (right, -half_depth)]
        corners = np.array(ring)
        # A wing at the end of the body shares its corner.
        apart = np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1) > 1e-6
        return self.place(corners[apart])

    def place(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Carry (k, 2) points from the house's own axes (ridge along x) to the ground."""
        return np.asarray(turn(points, self.angle) + (self.x, self.y), np.float64)  # noqa: RUF005


@dataclass(frozen=True, slots=True)
class Tree:
    """One tree, seen from above."""

    x: float
    y: float
    radius: float
    burnt: float
    """0 green, up to 1 burnt to the bare branches."""


@dataclass(frozen=True, slots=True)
class Strip:
    """A band of ground along a line: a street, a driveway, the creek."""

    kind: Literal["street", "driveway", "creek", "path"]
    line: NDArray[np.float64]
    """(k, 2) ground metres."""
    half_width: float


@dataclass(frozen=True, slots=True)
class Lot:
    """The garden round one house, or an empty plot."""

    ring: NDArray[np.float64]
    dryness: float
    """0 lush lawn to 1 bare soil."""


@dataclass(frozen=True, slots=True)
class Car:
    """One parked car."""

    x: float
    y: float
    angle: float
    burnt: bool


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """A smooth quantity on the ground: values on a square lattice."""

    values: NDArray[np.float32]
    """(rows, columns); row 0 lies in the south."""
    cell_metres: float
    origin: tuple[float, float]
    """Ground position of the value in row 0, column 0."""

    def at(self, x: float, y: float) -> float:
        """Value at the lattice point nearest to a ground position; the border's value outside."""
        rows, columns = self.values.shape
        column = round((x - self.origin[0]) / self.cell_metres)
        row = round((y - self.origin[1]) / self.cell_metres)
        return float(self.values[min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)])


@dataclass(frozen=True, slots=True, eq=False)
class Town:
    """The whole plan."""

    extent: Extent
    seed: int
    houses: tuple[House, ...]
    lots: tuple[Lot, ...]
    strips: tuple[Strip, ...]
    trees: tuple[Tree, ...]
    cars: tuple[Car, ...]
    fire: Field
    """How hard the fire passed over the ground, 0..1."""
    dryness: Field
    """0 grass to 1 bare soil, for the ground outside the lots."""


def turn(points: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """Rotate (k, 2) points about the origin, radians counter-clockwise."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.asarray(points @ np.array([[cos, sin], [-sin, cos]]), np.float64)


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int], cells: tuple[float, ...]
) -> NDArray[np.float32]:
    """Make noise of mean 0 and deviation 1 by bicubic interpolation of random lattices.

    The finer a lattice, the less it counts.

    Args:
        rng: source of randomness.
        shape: (rows, columns) of the result.
        cells: lattice spacings in pixels of the result, coarse to fine.

    Returns:
        float32, of the shape asked for.

    """
    from PIL import Image

    total = np.zeros(shape, np.float32)
    for octave, cell in enumerate(cells):
        coarse = rng.standard_normal((int(shape[0] / cell) + 4, int(shape[1] / cell) + 4)).astype(np.float32)
        box = (1.0, 1.0, 1.0 + shape[1] / cell, 1.0 + shape[0] / cell)
        fine = Image.fromarray(coarse).resize((shape[1], shape[0]), Image.Resampling.BICUBIC, box=box)
        total += np.asarray(fine) * 0.6**octave
    return total / max(float(total.std()), 1e-6)


def plan_town(extent: Extent, seed: int) -> Town:
    """Lay out the town; the same extent and seed give the same town."""
    rng = np.random.default_rng(seed)
    fire, dryness = _fire(rng, extent), _field(rng, extent, 4.0, (40.0, 12.0, 4.0))
    planner = _Planner(rng, extent, fire=fire, dryness=dryness)
    planner.lay_streets()
    for parcel in _parcels(extent):
        planner.settle(parcel)
    planner.plant_creek()
    planner.clear_trees_from_houses()
    planner.park_on_streets()
    return Town(
        extent,
        seed,
        tuple(planner.houses),
        tuple(planner.lots),
        tuple(planner.strips),
        tuple(planner.trees),
        tuple(planner.cars),
        planner.fire,
        planner.dryness,
    )


def _bend(along: NDArray[np.float64], across: NDArray[np.float64]) -> NDArray[np.float64]:
    """Carry grid coordinates (k,), (k,) to the ground (k, 2): a slight turn and long, gentle curves."""
    x = along + 14.0 * np.sin(across / 170.0 + 0.6) + 6.0 * np.sin(along / 210.0)
    y = across + 17.0 * np.sin(along / 260.0 + 0.4) + 0.045 * (along - 850.0)
    return np.stack([x, y], axis=-1)


def _field(rng: np.random.Generator, extent: Extent, cell_metres: float, cells: tuple[float, ...]) -> Field:
    margin = 60.0
    shape = (
        int((extent.north_metres + 2 * margin) / cell_metres),
        int((extent.east_metres + 2 * margin) / cell_metres),
    )
    values = np.clip(0.5 + 0.28 * smooth_noise(rng, shape, cells), 0.0, 1.0)
    return Field(values.astype(np.float32), cell_metres, (-margin, -margin))


def _fire(rng: np.random.Generator, extent: Extent) -> Field:
    """Run a front through the town, with ragged sides and spot fires."""
    field = _field(rng, extent, 4.0, (60.0, 25.0, 9.0))
    rows, columns = field.values.shape
    x = field.origin[0] + field.cell_metres * np.arange(columns)
    y = (field.origin[1] + field.cell_metres * np.arange(rows))[:, None]
    middle = extent.north_metres * (0.62 + 0.20 * np.sin(x / 330.0 + 2.2))
    depth = extent.north_metres * 0.238 + 35.0 * np.sin(x / 190.0)
    inside = (depth - np.abs(y - middle)) / 45.0
    heat = 1.0 / (1.0 + np.exp(-(inside + 3.2 * (field.values - 0.5) / 0.28)))
    return Field(heat.astype(np.float32), field.cell_metres, field.origin)


@dataclass(frozen=True, slots=True)
class _Parcel:
    """A lot in grid coordinates: `side` is +1 where the lot lies to the north of its street."""

    along: float
    width: float
    street: float
    side: int
    depth: float
    number: int
    street_name: str

    def ground(self, along: float, back: float) -> tuple[float, float]:
        """Find the place so many metres along the street from the parcel's middle, and back from its edge."""
        across = self.street + self.side * (_STREET_HALF_METRES + back)
        ((x, y),) = _bend(np.array([self.along + along]), np.array([across]))
        return float(x), float(y)


def _grid_lines(extent: Extent) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the grid positions of the cross streets (along) and of the streets (across)."""
    return (
        np.arange(-120.0, extent.east_metres + 200.0, _BLOCK_METRES[0]),
        np.arange(-70.0, extent.north_metres + 120.0, _BLOCK_METRES[1]),
    )


def _parcels(extent: Extent) -> list[_Parcel]:
    crossings, streets = _grid_lines(extent)
    parcels = []
    for street_index, street in enumerate(streets):
        for block, start in enumerate(crossings[:-1]):
            usable = _BLOCK_METRES[0] - 2 * _STREET_HALF_METRES
            count = 6 + (block + street_index) % 2
            width = usable / count
            for side in (-1, 1):
                for place in range(count):
                    along = start + _STREET_HALF_METRES + (place + 0.5) * width
                    if extent.creek[0] - width / 2 < along < extent.creek[1] + width / 2:
                        continue
                    number = 2 * (block * 8 + place) + (2 if side > 0 else 1)
                    name = f"{_STREETS[street_index % len(_STREETS)]} Street"
                    depth = _BLOCK_METRES[1] / 2 - _STREET_HALF_METRES
                    parcels.append(_Parcel(float(along), width, float(street), side, depth, number, name))
    return parcels


_ROOF_TONES = (
    (66, 66, 70), (52, 50, 52), (88, 74, 64), (168, 148, 122), (160, 108, 86), (132, 132, 134),
    (206, 204, 198), (98, 108, 120), (92, 106, 94), (122, 112, 102), (108, 84, 72), (150, 150, 148),
)  # fmt: skip
"""Charcoal, tar, brown, tan, tile, grey, white gravel, slate, green, old wood, red brown, light grey."""


class _Planner:
    """Fills the town step by step; every step draws from the one source of randomness."""

    def __init__(self, rng: np.random.Generator, extent: Extent, *, fire: Field, dryness: Field) -> None:
        self.rng = rng
        self.extent = extent
        self.fire = fire
        self.dryness = dryness
        self.houses: list[House] = []
        self.lots: list[Lot] = []
        self.strips: list[Strip] = []
        self.trees: list[Tree] = []
        self.cars: list[Car] = []

    def lay_streets(self) -> None:
        """Streets, cross streets, and the creek in its green strip."""
        crossings, streets = _grid_lines(self.extent)
        far = np.arange(-160.0, self.extent.east_metres + 161.0, 8.0)
        high = np.arange(-120.0, self.extent.north_metres + 121.0, 8.0)
        green = self.extent.creek
        creek = 0.5 * sum(green) + 7.0 * np.sin(high / 45.0) + 4.0 * np.sin(high / 17.0)
        self.strips.append(Strip("creek", _bend(creek, high), 3.0))
        half_width = _STREET_HALF_METRES - 1.3
        # Every second street has a bridge over the creek; the others end at the green strip.
        for index, across in enumerate(streets):
            parts = [far] if index % 2 else [far[far < green[0] - 4], far[far > green[1] + 4]]
            for part in parts:
                self.strips.append(Strip("street", _bend(part, np.full_like(part, across)), half_width))
        for along in crossings:
            if not green[0] - 20 < along < green[1] + 20:
                self.strips.append(Strip("street", _bend(np.full_like(high, along), high), half_width))

    def settle(self, parcel: _Parcel) -> None:
        """Put a house, its driveway, its trees and a car on one parcel; a few parcels stay empty."""
        rng = self.rng
        half = parcel.width / 2
        corners = [(-half, 0.0), (half, 0.0), (half, parcel.depth), (-half, parcel.depth)]
        x, y = parcel.ground(0.0, parcel.depth / 2)
        if not self.extent.holds(x, y, margin=30):
            return
        dryness = float(np.clip(self.dryness.at(x, y) + rng.normal(0, 0.22), 0, 1))
        self.lots.append(Lot(np.array([parcel.ground(*corner) for corner in corners]), dryness))
        for _ in range(rng.poisson(3.4)):
            self.grow(*parcel.ground(rng.uniform(-half, half), rng.uniform(1.0, parcel.depth)))
        if rng.random() < 0.05:
            return

        house, garage, front = self._house(parcel)
        self.houses.append(house)
        drive = np.array([parcel.ground(garage, -1.5), parcel.ground(garage, front)])
        self.strips.append(Strip("driveway", drive, float(rng.uniform(1.5, 2.9))))
        if rng.random() < 0.45:
            at = parcel.ground(garage + rng.uniform(-0.5, 0.5), rng.uniform(2.2, 4.0))
            burnt = house.state != "intact" and rng.random() < 0.8
            self.cars.append(Car(*at, house.angle + math.pi / 2, burnt=burnt))

    def _house(self, parcel: _Parcel) -> tuple[House, float, float]:
        """Plan a house for the parcel; also where its driveway lies, and how far back its front stands."""
        rng = self.rng
        length = float(np.clip(rng.normal(15.0, 2.6), 9.5, parcel.width - 4.5))
        depth = float(np.clip(rng.normal(9.6, 1.5), 7.0, min(length, 13.5)))
        front = rng.uniform(5.0, 8.5)
        shift = rng.uniform(-1.0, 1.0) * max((parcel.width - length) / 2 - 1.5, 0.0)
        garage = shift + float(rng.choice([-1, 1])) * length * 0.3
        wing = None
        if rng.random() < 0.5:
            width = rng.uniform(4.5, min(7.5, length / 2))
            wing = (float(rng.choice([-1, 1])) * (length - width) / 2, width, rng.uniform(2.0, 4.5))
            garage = shift + parcel.side * wing[0]
        x, y = parcel.ground(shift, front + depth / 2)
        beside = parcel.ground(shift + 1.0, front + depth / 2)
        # The wing looks to the street, so houses south of it are turned round.
        angle = math.atan2(beside[1] - y, beside[0] - x) + rng.normal(0, 0.03)
        angle += 0.0 if parcel.side > 0 else math.pi
        if wing is None and rng.random() < 0.12:
            angle += math.pi / 2
            length, depth = min(length, 14.0), min(depth, 9.0)
        base = np.array(_ROOF_TONES[rng.integers(len(_ROOF_TONES))])
        tone = np.clip(base * rng.uniform(0.88, 1.12) + rng.normal(0, 4, 3), 20, 240).astype(int)
        roofs: tuple[Roof, ...] = ("hip", "gable", "flat")
        house = House(
            x=x,
            y=y,
            angle=angle,
            length=length,
            depth=depth,
            wing=wing,
            height=float(rng.uniform(2.8, 4.2) + 2.4 * (rng.random() < 0.2)),
            roof=roofs[int(rng.choice(3, p=[0.52, 0.40, 0.08]))],
            tone=(int(tone[0]), int(tone[1]), int(tone[2])),
            state=self._fate(x, y),
            built=int(rng.integers(1948, 2019)),
            address=f"{parcel.number} {parcel.street_name}",
            district="west" if parcel.along < self.extent.creek[0] else "east",
        )
        return house, garage, front

    def _fate(self, x: float, y: float) -> State:
        """Fire jumps unevenly: some houses stand in the midst of it, some burn far from it by an ember."""
        if self.rng.random() >= 0.82 * self.fire.at(x, y) + 0.02:
            return "intact"
        return "opened" if self.rng.random() < 0.10 else "burnt"

    def grow(self, x: float, y: float) -> None:
        """One tree, burnt as the fire was there; one in ten comes through."""
        heat = self.fire.at(x, y)
        spared = self.rng.random() < 0.1
        burnt = 0.0 if spared else float(np.clip(heat * 1.1 - self.rng.uniform(0.1, 0.7), 0, 1))
        self.trees.append(Tree(x, y, float(np.clip(self.rng.gamma(6.0, 0.48), 1.2, 5.5)), burnt))

    def plant_creek(self) -> None:
        """Plant a wood along the creek."""
        for _ in range(420):
            along = self.rng.normal(0.5 * sum(self.extent.creek), 11.0)
            across = self.rng.uniform(-40, self.extent.north_metres + 40)
            ((x, y),) = _bend(np.array([along]), np.array([across]))
            self.grow(float(x), float(y))

    def clear_trees_from_houses(self) -> None:
        """No tree stands in the middle of a house; crowns may hang over the eaves."""
        middles = np.array([(house.x, house.y) for house in self.houses])
        self.trees = [
            tree
            for tree in self.trees
            if np.min(np.hypot(*(middles - (tree.x, tree.y)).T)) > 4.5 + 0.55 * tree.radius
        ]

    def park_on_streets(self) -> None:
        """Cars along the kerb, here and there."""
        for strip in self.strips:
            if strip.kind != "street":
                continue
            for (ax, ay), (bx, by) in zip(strip.line[:-1], strip.line[1:], strict=True):
                if self.rng.random() > 0.09:
                    continue
                angle = math.atan2(by - ay, bx - ax)
                side = float(self.rng.choice([-1, 1])) * (strip.half_width - 1.2)
                x, y = float(ax) - side * math.sin(angle), float(ay) + side * math.cos(angle)
                self.cars.append(Car(x, y, angle, burnt=self.rng.random() < 0.5 * self.fire.at(x, y)))
