"""What the things of the town look like from above: each becomes a few coloured polygons in ground metres.

Four layers, drawn in this order: the ground, the soot and the shadows that fall on it, and what stands on it.
Every polygon has a colour and a roughness, which says how strongly the painter's grain shows on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_infer_export.town.layout import turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import ArrayLike, NDArray

    from edge_infer_export.town.layout import Car, House, Lot, Strip, Town, Tree

    Face = Callable[[ArrayLike, tuple[float, float]], None]
    """Draws a roof face, in house axes, that slopes down to a side."""

GROUND, SOOT, SHADOW, STANDING = 0, 1, 2, 3

_SUN_AZIMUTH, _SUN_ELEVATION = math.radians(152.0), math.radians(43.0)
SUN = np.array(
    [
        math.cos(_SUN_ELEVATION) * math.sin(_SUN_AZIMUTH),
        math.cos(_SUN_ELEVATION) * math.cos(_SUN_AZIMUTH),
        math.sin(_SUN_ELEVATION),
    ]
)
"""Unit vector to the sun: east, north, up. A late morning on the northern half of the earth."""
_SHADE = -SUN[:2] / SUN[2]
"""Where the shadow of a point one metre high falls, seen from its foot."""
_ROOF_SLOPE = math.radians(24.0)


@dataclass(frozen=True, slots=True, eq=False)
class Shapes:
    """All polygons of a scene, back to front within each layer."""

    points: NDArray[np.float64]
    """(v, 2) ground metres: the rings of all polygons, one after the other."""
    starts: NDArray[np.int64]
    """(p + 1,) where each polygon's ring begins in `points`; the last entry is v."""
    layers: NDArray[np.int8]
    """(p,) GROUND, SOOT, SHADOW or STANDING."""
    colours: NDArray[np.uint8]
    """(p, 3) red, green, blue. Of soot and shadow the first counts: how much of the ground they hide."""
    roughness: NDArray[np.uint8]
    """(p,) 0 smooth to 255 like rubble."""


class _Sketch:
    """Collects polygons; the caller adds them back to front."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self._rings: list[NDArray[np.float64]] = []
        self._layers: list[int] = []
        self._colours: list[NDArray[np.float64]] = []
        self._roughness: list[int] = []

    def add(self, layer: int, ring: ArrayLike, colour: ArrayLike, rough: int = 40) -> None:
        self._rings.append(np.asarray(ring, np.float64))
        self._layers.append(layer)
        self._colours.append(np.asarray(colour, np.float64))
        self._roughness.append(rough)

    def shadow(self, ring: NDArray[np.float64], height: float, depth: float = 150.0) -> None:
        """Add the shadow of an upright prism over a convex ring."""
        self.add(SHADOW, _convex_hull(np.concatenate([ring, ring + height * _SHADE])), (depth, depth, depth))

    def blob(
        self, layer: int, centre: ArrayLike, radius: float, colour: ArrayLike, rough: int, corners: int = 9
    ) -> None:
        """Add a ragged disc."""
        angles = np.linspace(0, 2 * math.pi, corners, endpoint=False) + self.rng.uniform(0, 1)
        reach = radius * self.rng.uniform(0.75, 1.2, corners)
        self.add(
            layer,
            np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None] + np.asarray(centre),
            colour,
            rough,
        )

    def bar(self, layer: int, ends: ArrayLike, width: float, colour: ArrayLike, rough: int) -> None:
        """Add a straight bar between two ends (2, 2)."""
        a, b = np.asarray(ends, np.float64)
        step = b - a
        across = np.array([-step[1], step[0]]) * (width / 2 / max(float(np.hypot(*step)), 1e-6))
        self.add(layer, [a + across, b + across, b - across, a - across], colour, rough)

    def finish(self) -> Shapes:
        lengths = [len(ring) for ring in self._rings]
        return Shapes(
            np.concatenate(self._rings),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.array(self._layers, np.int8),
            np.clip(np.round(self._colours), 0, 255).astype(np.uint8),
            np.array(self._roughness, np.uint8),
        )


def draw_shapes(town: Town) -> Shapes:
    """Turn the plan into polygons; the same town gives the same polygons."""
    sketch = _Sketch(np.random.default_rng([town.seed, 1]))
    for lot in town.lots:
        _lot(sketch, lot, town.fire.at(*lot.ring.mean(axis=0)))
    for kind in ("creek", "driveway", "street"):
        _strips(sketch, [strip for strip in town.strips if strip.kind == kind])
    for car in town.cars:
        _car(sketch, car)
    for house in town.houses:
        if house.state == "burnt":
            _ruin(sketch, house)
        else:
            _roofed(sketch, house)
    for tree in town.trees:
        _tree(sketch, tree)
    return sketch.finish()


def _convex_hull(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ring of the convex hull of (k, 2) points (Andrew's monotone chain)."""
    ordered = sorted(map(tuple, points.tolist()))

    def half(sequence: Iterable[tuple[float, ...]]) -> list[tuple[float, ...]]:
        chain: list[tuple[float, ...]] = []
        for point in sequence:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2], chain[-1]
                if (bx - ax) * (point[1] - ay) - (by - ay) * (point[0] - ax) > 0:
                    break
                chain.pop()
            chain.append(point)
        return chain[:-1]

    return np.array(half(ordered) + half(reversed(ordered)))


def _mix(a: ArrayLike, b: ArrayLike, share: float) -> NDArray[np.float64]:
    return np.asarray(a, np.float64) * (1 - share) + np.asarray(b, np.float64) * share


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> NDArray[np.float64]:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _lot(sketch: _Sketch, lot: Lot, heat: float) -> None:
    """Draw lawn or bare soil, with patches; after the fire only the ground between is left."""
    rng = sketch.rng
    lawn = _mix((92, 108, 62), (158, 138, 108), lot.dryness) + rng.normal(0, 5, 3)
    soot = _mix((92, 80, 66), (74, 68, 62), rng.random())
    # A watered garden may stay green beside a burnt house, and soil chars where a house was saved.
    charred = float(np.clip(heat * rng.uniform(0.35, 1.05), 0, 0.85))
    sketch.add(GROUND, lot.ring, _mix(lawn, soot, charred), 95)
    middle, spread = lot.ring.mean(axis=0), lot.ring.std(axis=0)
    for _ in range(rng.poisson(4)):
        patch = _mix((84, 104, 56), (172, 152, 120), float(np.clip(lot.dryness + rng.normal(0, 0.4), 0, 1)))
        at = middle + rng.uniform(-1.3, 1.3, 2) * spread
        sketch.blob(
            GROUND, at, rng.uniform(1.5, 4.5), _mix(patch, soot, charred * rng.uniform(0.6, 1.1)), 110
        )


def _strips(sketch: _Sketch, strips: list[Strip]) -> None:
    """Draw bands of ground: all outer bands of one kind first, so that crossings stay open."""
    looks: dict[str, list[tuple[float, tuple[float, float, float], int]]] = {
        # kind: (half width more than the strip's, colour, roughness)
        "creek": [(5.0, (96, 96, 62), 130), (0.0, (70, 76, 66), 40)],
        "driveway": [(0.0, (168, 164, 156), 45)],
        "street": [(1.7, (170, 166, 158), 40), (0.15, (126, 124, 120), 30), (0.0, (98, 98, 100), 24)],
    }
    for more, colour, rough in looks[strips[0].kind]:
        for strip in strips:
            step = np.gradient(strip.line, axis=0)
            across = (
                np.stack([-step[:, 1], step[:, 0]], 1)
                / np.hypot(*step.T)[:, None]
                * (strip.half_width + more)
            )
            ring = np.concatenate([strip.line + across, (strip.line - across)[::-1]])
            tint = sketch.rng.normal(0, 9 if strip.kind == "driveway" else 2)
            sketch.add(GROUND, ring, np.asarray(colour) + tint, rough)


def _car(sketch: _Sketch, car: Car) -> None:
    rng = sketch.rng
    body = _rectangle(-2.25, -0.9, 2.25, 0.9)
    at = (car.x, car.y)
    ring = turn(body, car.angle) + at
    sketch.shadow(ring, 1.3)
    if car.burnt:
        sketch.add(STANDING, ring, np.array((112, 98, 88)) + rng.normal(0, 14, 3), 120)
        sketch.add(
            STANDING, turn(body * 0.6, car.angle) + at, np.array((70, 64, 60)) + rng.normal(0, 8, 3), 120
        )
        return
    paints = ((226, 226, 226), (36, 38, 42), (128, 132, 138), (140, 36, 34), (44, 62, 104), (190, 186, 176))
    paint = np.array(paints[rng.integers(len(paints))])
    sketch.add(STANDING, ring, paint, 10)
    for x0, x1 in ((-1.5, -0.8), (0.5, 1.3)):
        sketch.add(STANDING, turn(_rectangle(x0, -0.75, x1, 0.75), car.angle) + at, (40, 46, 54), 10)


def _lit(tone: ArrayLike, facing: ArrayLike, angle: float) -> NDArray[np.float64]:
    """ArrayLike of a roof face that slopes down towards `facing` (house axes); (0, 0) is a flat roof."""
    down = turn(np.asarray([facing], np.float64), angle)[0]
    up = math.cos(_ROOF_SLOPE) if np.any(down) else 1.0
    light = float(down @ SUN[:2]) * math.sin(_ROOF_SLOPE) + up * float(SUN[2])
    return np.asarray(tone, np.float64) * (0.40 + 0.80 * max(light, 0.0))


def _roofed(sketch: _Sketch, house: House) -> None:
    """Draw a house that stands: shadow, roof faces, and what is on the roof."""
    rng = sketch.rng
    half_length, half_depth = house.length / 2 + 0.4, house.depth / 2 + 0.4
    rise = 0.0 if house.roof == "flat" else half_depth * math.tan(_ROOF_SLOPE)
    body = _rectangle(-half_length, -half_depth, half_length, half_depth)
    hip = half_depth if house.roof == "hip" else 0.0
    ridge = np.array([(hip - half_length, 0.0), (half_length - hip, 0.0)])

    sketch.shadow(house.place(body), house.height)
    if rise:
        sketch.shadow(house.place(np.concatenate([ridge, 0.8 * body])), house.height + 0.7 * rise)
    if rng.random() < 0.5:
        # A terrace or a path at the back.
        x0 = rng.uniform(-half_length, half_length - 4)
        slab = _rectangle(x0, half_depth - 0.5, x0 + rng.uniform(3, 6), half_depth + rng.uniform(1.5, 3.5))
        sketch.add(GROUND, house.place(slab), np.array((172, 166, 156)) + rng.normal(0, 10, 3), 40)

    grain = int(rng.integers(28, 70))

    def face(points: ArrayLike, facing: tuple[float, float]) -> None:
        sketch.add(STANDING, house.place(np.asarray(points)), _lit(house.tone, facing, house.angle), grain)

    south_west, south_east, north_east, north_west = body
    if house.roof == "flat":
        sketch.add(STANDING, house.place(body), _lit(house.tone, (0, 0), house.angle) * 0.8, grain)
        face(body * (1 - 0.9 / np.array([half_length, half_depth])), (0, 0))
    else:
        west, east = ridge
        face([south_west, south_east, east, west], (0, -1))
        face([north_east, north_west, west, east], (0, 1))
        if hip:
            face([south_east, north_east, east], (1, 0))
            face([north_west, south_west, west], (-1, 0))
        sketch.bar(STANDING, house.place(ridge), 0.35, _lit(house.tone, (0, 0), house.angle) * 1.12, 20)
    if house.wing is not None:
        _wing(sketch, house, face, half_depth)
    _roof_furniture(sketch, house, half_length, half_depth)
    if house.state == "opened":
        _hole(sketch, house)


def _wing(sketch: _Sketch, house: House, face: Face, half_depth: float) -> None:
    assert house.wing is not None
    offset, width, out = house.wing
    half, front = width / 2 + 0.4, -half_depth - out
    left, right, back = offset - half, offset + half, -half_depth
    sketch.shadow(house.place(_rectangle(left, front, right, back)), house.height)
    if house.roof == "flat":
        face(_rectangle(left, front, right, back), (0, 0))
        return
    # The wing's ridge runs into the main roof as far as the main roof is lower than it.
    inner = back + min(half, half_depth)
    tip = front + (half if house.roof == "hip" else 0.0)
    face([(left, front), (offset, tip), (offset, inner), (left, back)], (-1, 0))
    face([(right, front), (right, back), (offset, inner), (offset, tip)], (1, 0))
    if house.roof == "hip":
        face([(left, front), (right, front), (offset, tip)], (0, -1))


def _roof_furniture(sketch: _Sketch, house: House, half_length: float, half_depth: float) -> None:
    """Draw chimneys, vents, solar panels, air conditioners."""
    rng = sketch.rng
    for _ in range(rng.poisson(1.2)):
        at = np.array([rng.uniform(-0.7, 0.7) * half_length, rng.uniform(-0.6, 0.6) * half_depth])
        size = rng.uniform(0.35, 0.8)
        box = _rectangle(*(at - size / 2), *(at + size / 2))
        sketch.add(STANDING, house.place(box) + 1.2 * _SHADE, np.array(house.tone) * 0.4, 20)
        sketch.add(STANDING, house.place(box), np.full(3, rng.uniform(110, 215)), 20)
    if rng.random() < 0.16:
        x0, side = rng.uniform(-0.6, 0.0) * half_length, float(rng.choice([-1, 1]))
        y0, y1 = sorted((side * 0.2 * half_depth, side * 0.8 * half_depth))
        sketch.add(STANDING, house.place(_rectangle(x0, y0, x0 + rng.uniform(3, 5.5), y1)), (38, 46, 70), 15)


def _hole(sketch: _Sketch, house: House) -> None:
    """Draw a burnt-through part of a standing roof, with rafters and soot about it."""
    rng = sketch.rng
    reach = min(house.depth, house.length) * rng.uniform(0.26, 0.40)
    centre = np.array([rng.uniform(-0.3, 0.3) * house.length, rng.uniform(-0.15, 0.15) * house.depth])
    for grow, shade in ((1.35, 0.62), (1.15, 0.45)):
        at = house.place(centre[None])[0]
        sketch.blob(STANDING, at, reach * grow, np.array(house.tone) * shade + 12, 120)
    sketch.blob(STANDING, house.place(centre[None])[0], reach, (44, 40, 38), 190)
    for step in np.arange(-0.7, 0.8, 0.35):
        if rng.random() < 0.75:
            ends = centre + reach * np.array([(step, -0.8), (step, 0.8)]) * rng.uniform(0.5, 1.0)
            sketch.bar(STANDING, house.place(ends), 0.25, np.array((92, 82, 72)) + rng.normal(0, 14), 90)
    _rubble(sketch, house, house.place(centre[None] + rng.normal(0, reach * 0.4, (10, 2))), (70, 66, 62))


def _ruin(sketch: _Sketch, house: House) -> None:
    """Draw what fire leaves: a slab of ash, rubble, stubs of walls, perhaps a chimney."""
    rng = sketch.rng
    outline = house.outline
    # Ash may be as pale as a concrete roof or as dark as tar.
    ash = np.array((106, 101, 96)) + rng.normal(0, 24) + rng.normal(0, 2.5, 3)
    for reach, most_hidden in ((1.9, 150.0), (1.5, 210.0), (1.15, 250.0)):
        at = house.place(rng.normal(0, 0.10, (1, 2)) * (house.length, house.depth))[0]
        hidden = most_hidden * rng.uniform(0.6, 1.0)
        sketch.blob(
            SOOT, at, reach * 0.5 * math.sqrt(house.length * house.depth), [hidden] * 3, 150, corners=13
        )
    sketch.add(STANDING, _fray(rng, outline, 0.55), ash * 0.82, 200)
    for _ in range(int(rng.integers(9, 16))):
        at = house.place(rng.uniform(-0.42, 0.42, (1, 2)) * (house.length, house.depth))[0]
        tone = ash * rng.choice([0.55, 0.7, 0.85, 1.0, 1.15, 1.35]) + rng.normal(0, 3, 3)
        sketch.blob(STANDING, at, rng.uniform(0.7, 2.6), tone, 210)
    spill = rng.normal(0, 0.27, (int(rng.integers(15, 90)), 2)) * (house.length, house.depth)
    _rubble(sketch, house, house.place(spill), ash)
    _wall_stubs(sketch, house, outline, rng.uniform(0.1, 0.7))
    if rng.random() < 0.35:
        box = house.place(
            _rectangle(-0.6, -0.5, 0.6, 0.5) + rng.uniform(-0.3, 0.3, 2) * (house.length, house.depth)
        )
        sketch.add(STANDING, _convex_hull(np.concatenate([box, box + 4.0 * _SHADE])), ash * 0.35, 60)
        sketch.add(STANDING, box, np.array((168, 128, 108)) + rng.normal(0, 14), 60)


def _fray(rng: np.random.Generator, ring: NDArray[np.float64], metres: float) -> NDArray[np.float64]:
    """Break each side of a ring into short, crooked pieces."""
    pieces = []
    for a, b in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        share = np.arange(0.0, 1.0, 1.6 / max(float(np.hypot(*(b - a))), 1.6))[:, None]
        pieces.append(a + share * (b - a))
    whole = np.concatenate(pieces)
    return whole + rng.normal(0, metres, whole.shape)


def _rubble(sketch: _Sketch, house: House, places: NDArray[np.float64], ash: ArrayLike) -> None:
    """Draw boards, sheets and bricks, lying anyhow; the house's own roof is among them."""
    rng = sketch.rng
    kinds = np.array(
        [(186, 184, 180), (150, 142, 134), (112, 92, 76), (136, 88, 66), (58, 54, 52), (226, 226, 224)]
    )
    for at in places:
        size = rng.gamma(2.0, 0.26) + 0.15
        colour = (
            kinds[rng.choice(6, p=[0.2, 0.22, 0.2, 0.12, 0.18, 0.08])] if rng.random() < 0.8 else house.tone
        )
        half_width = size * rng.uniform(0.15, 0.6)
        piece = turn(_rectangle(-size, -half_width, size, half_width), rng.uniform(0, math.pi)) + at
        sketch.add(STANDING, piece, _mix(colour, ash, rng.uniform(0.1, 0.7)) + rng.normal(0, 8), 120)


def _wall_stubs(sketch: _Sketch, house: House, outline: NDArray[np.float64], share: float) -> None:
    """Draw pieces of outer and inner walls that still stand, with the thin shadows they throw."""
    rng = sketch.rng
    inner = []
    for place in (-0.22, 0.18):
        ends = np.array([(place, -0.45), (place, 0.45)]) * (house.length, house.depth)
        inner.append(house.place(ends))
    sides = [(a, b) for a, b in zip(outline, np.roll(outline, -1, axis=0), strict=True)] + [
        tuple(e) for e in inner
    ]
    tone = np.array((142, 138, 132)) + rng.normal(0, 24)
    for a, b in sides:
        for start in np.arange(0.0, 1.0, 0.2):
            if rng.random() > share:
                continue
            begin, end = a + start * (b - a), a + min(start + rng.uniform(0.12, 0.24), 1.0) * (b - a)
            height = rng.uniform(0.4, 2.2)
            sketch.add(
                STANDING,
                _convex_hull(np.stack([begin, end, begin + height * _SHADE, end + height * _SHADE])),
                (52, 50, 50),
                90,
            )
            sketch.bar(STANDING, [begin, end], 0.42, tone + rng.normal(0, 12), 50)


def _tree(sketch: _Sketch, tree: Tree) -> None:
    """Draw a crown of several clumps, lit from the sun's side; burnt ones are brown, then bare."""
    rng = sketch.rng
    at = np.array([tree.x, tree.y])
    height = 1.5 + 1.1 * tree.radius
    if tree.burnt > 0.55:
        _bare_tree(sketch, tree, at, height)
        return
    leaf = _mix(
        ((58, 78, 44), (74, 88, 52), (66, 84, 62), (86, 92, 58))[rng.integers(4)],
        (112, 88, 58),
        tree.burnt * 1.6,
    )
    leaf = leaf + rng.normal(0, 5, 3)
    sketch.blob(SHADOW, at + height * _SHADE * 0.8, tree.radius * 1.0, (165, 165, 165), 0)
    sketch.blob(STANDING, at, tree.radius, leaf * 0.62, 150, corners=11)
    sunward = SUN[:2] / np.hypot(*SUN[:2])
    for _ in range(4 + int(tree.radius * 2.2)):
        offset = rng.normal(0, 0.42, 2) * tree.radius
        light = 0.9 + 0.26 * float(offset @ sunward) / tree.radius + rng.normal(0, 0.06)
        sketch.blob(
            STANDING,
            at + offset + 0.15 * tree.radius * sunward,
            tree.radius * rng.uniform(0.2, 0.38),
            leaf * light,
            150,
            7,
        )


def _bare_tree(sketch: _Sketch, tree: Tree, at: NDArray[np.float64], height: float) -> None:
    rng = sketch.rng
    bark = np.array((58, 52, 48)) + rng.normal(0, 7)
    tip = at + height * _SHADE
    for angle in rng.uniform(0, 2 * math.pi, int(rng.integers(5, 10))):
        twig = tree.radius * rng.uniform(0.4, 0.95) * np.array([math.cos(angle), math.sin(angle)])
        sketch.bar(SHADOW, [tip, tip + twig], 0.35, (110, 110, 110), 0)
        sketch.bar(STANDING, [at, at + twig], rng.uniform(0.2, 0.4), bark, 60)
    sketch.bar(SHADOW, [at, tip], 0.45, (120, 120, 120), 0)
    if tree.burnt < 0.8:
        sketch.blob(STANDING, at, tree.radius * 0.55, (104, 84, 62), 170)
