"""The scene while it is composed: its random numbers, its plan, and the ways to put something into it.

Lateral positions are metres right of our own lane's centre, depths metres ahead of the camera; a side is -1
(left) or 1 (right), and a distance from the road's line on a side is positive.
"""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from .canvas import Canvas, Color, Light, View
from .scenery import Bonnet, Grade, Patch, Shadow, Sky
from .vehicles import Pose

KERB = 0.12  # height of the kerb, metres
FAR = 165.0  # where the street ends, metres
SIDES = (-1, 1)

Spot = tuple[float, float]  # metres: right, ahead


@dataclass(kw_only=True)
class Street:
    """A scene, ready to be painted at any size.

    Attributes:
        view, light, sky, bonnet, grade: The camera and the weather.
        base: Color and id of ground that no patch covers.
        surfaces: Ground id -> texture.
        texture_offset: Shift of the ground's texture, texels.
        border: Width of the out-of-roi frame, in picture heights.
        patches, shadows: What lies on the ground, in painting order.
        things: (depth, how to paint it on a canvas): painted from far to near.
    """

    view: View
    light: Light
    sky: Sky
    bonnet: Bonnet
    grade: Grade
    base: tuple[Color, int]
    surfaces: dict[int, int]
    texture_offset: tuple[int, int]
    border: float
    patches: list[Patch] = field(default_factory=list)
    shadows: list[Shadow] = field(default_factory=list)
    things: list[tuple[float, Callable[[Canvas], None]]] = field(default_factory=list)


class Dice(random.Random):
    """A scene's own random numbers."""

    def chance(self, share: float) -> bool:
        """True with this probability."""
        return self.random() < share

    def pick(self, weights: dict[str | int, float]) -> str | int:
        """One of the keys, as often as its weight says."""
        return self.choices(tuple(weights), tuple(weights.values()))[0]

    def side(self) -> int:
        """Left or right."""
        return self.choice(SIDES)

    def vary(self, color: Color, spread: float) -> Color:
        """A color near this one: brightness and hue both move."""
        level = self.gauss(0, spread)
        return tuple(int(min(250, max(8, c + level + self.gauss(0, 0.35 * spread)))) for c in color)

    def color(self, colors: Sequence[Color], spread: float = 8) -> Color:
        """A color near one of these."""
        return self.vary(self.choice(colors), spread)


def dice_for(seed: int, split: int, index: int) -> Dice:
    """The random numbers of one scene; no two (seed, split, index) share theirs.

    numpy's SeedSequence hashes the three as separate words, so that neighbors are unrelated.
    """
    words = np.random.SeedSequence(seed, spawn_key=(split, index)).generate_state(4, np.uint64)
    return Dice(int.from_bytes(words.astype("<u8").tobytes(), "little"))


class Site:
    """A street under construction.

    Attributes:
        dice: Its random numbers.
        turn: The rare thing whose turn it is (`layout.TURNS`).
        street: What has been composed so far.
        golden: Whether the sun is low.
        green, asphalt, paving, grass: This scene's usual colors.
        lane_left, lane_right: Lateral positions between which vehicles move.
        oncoming: Number of lanes towards us, left of ours.
        bike_lane: Its lateral positions, or None.
        rail: Lateral position of the tram's track, or None.
        parking, edge: By side: whether cars park there; distance of the kerb.
        crossing: Depths of a crossing street, or None.
        zebra: Depth of a zebra crossing, or None.
        gap: By side: where the crossing street interrupts it, or None.
        kind: By side: "urban", "boulevard", "residential" or "green".
        walk, verge, line: By side: distances of the sidewalk, of the strip of grass (if any), of what is
            behind them.
    """

    golden: bool
    green: Color
    asphalt: Color
    paving: Color
    grass: Color
    lane_left: float
    lane_right: float
    oncoming: int

    def __init__(self, dice: Dice, turn: str, street: Street):
        self.dice, self.turn, self.street = dice, turn, street
        self.bike_lane: Spot | None = None
        self.rail: float | None = None
        self.crossing: Spot | None = None
        self.zebra: float | None = None
        self.parking: dict[int, bool] = {}
        self.edge: dict[int, float] = {}
        self.gap: dict[int, Spot | None] = dict.fromkeys(SIDES)
        self.kind: dict[int, str] = {}
        self.walk: dict[int, Spot] = {}
        self.verge: dict[int, Spot] = {}
        self.line: dict[int, float] = {}
        self._counts: dict[int, int] = {}
        self._taken: list[tuple[float, float, float]] = []  # lateral, from, to: vehicles on the road
        self._dark: list[tuple[Spot, ...]] = []  # shadows of buildings

    # -- things

    def ident(self, label: int) -> int:
        """The next instance id of a class."""
        self._counts[label] = self._counts.get(label, -1) + 1
        return label * 1000 + self._counts[label]

    def add(self, depth: float, paint: Callable, /, **options) -> None:
        """Puts a thing into the scene; the nearer it is, the later it is painted."""
        self.street.things.append((depth, partial(paint, **options)))

    def stand(self, paint: Callable, lateral: float, z: float, /, y: float = KERB, **options) -> None:
        """Puts something at a place, in that place's light."""
        shade = self.shade_at(lateral, z)
        self.add(z, paint, lateral=lateral, z=z, y=y, shade=shade, **options)

    def pose(self, paint: Callable, pose: Pose, /, **options) -> None:
        """Puts something that has a direction at a place, in that place's light."""
        self.add(pose.z, paint, pose=pose, shade=self.shade_at(pose.lateral, pose.z), **options)

    def free(self, lateral: float, z0: float, z1: float) -> bool:
        """Takes a piece of the road, if nothing stands there."""
        if self.taken(lateral, z0, z1, 2.2):
            return False
        self._taken.append((lateral, z0, z1))
        return True

    def taken(self, lateral: float, z0: float, z1: float, width: float) -> bool:
        """Whether a vehicle stands there."""
        return any(abs(lateral - at) < width and z0 < b and z1 > a for at, a, b in self._taken)

    def in_gap(self, side: int, z: float) -> bool:
        """Whether a crossing street interrupts this side here."""
        gap = self.gap[side]
        return gap is not None and gap[0] - 0.5 < z < gap[1] + 0.5

    def bend(self, lateral: float, z: float) -> float:
        """X of a place on the bending street."""
        return self.street.view.bend(lateral, z)

    # -- ground

    def patch(self, corners: Iterable[Spot], color: Color, ident: int, y: float = 0.0) -> None:
        """A flat piece of ground."""
        self.street.patches.append(Patch(corners=tuple(corners), color=color, ident=ident, y=y))

    def ribbon(
        self, left: float, right: float, z0: float, z1: float, color: Color, ident: int, y: float = 0.0
    ) -> None:
        """A strip of ground along the street."""
        steps = max(1, min(24, int((z1 - z0) / 6)))
        ratio = (z1 / z0) ** (1 / steps)
        depths = [z0 * ratio**k for k in range(steps)] + [z1]  # dense where a metre is many pixels
        self.patch([(left, z) for z in depths] + [(right, z) for z in reversed(depths)], color, ident, y)

    # -- shadows

    def shade_at(self, lateral: float, z: float) -> float:
        """How much light a thing at this place has: less in a building's shadow."""
        point = (self.bend(lateral, z), z)
        dark = any(_inside(point, outline) for outline in self._dark)
        return 0.62 + 0.25 * self.street.light.shadow if dark else 1.0

    def cast(self, base: Iterable[Spot], height: float, *, dark: bool = False) -> None:
        """The shadow of an upright thing.

        Args:
            base: Its outline on the ground, (X, Z).
            height: Metres.
            dark: Whether things in this shadow are to be darker.
        """
        light = self.street.light
        if light.shadow >= 1:
            return
        base = list(base)
        dx, dz = (-light.sun[k] / light.sun[1] * height for k in (0, 2))
        outline = hull(base + [(x + dx, z + dz) for x, z in base])
        self.street.shadows.append(Shadow(corners=outline, keep=light.shadow))
        if dark:
            self._dark.append(outline)

    def cast_crown(self, lateral: float, z: float, low: float, high: float, radius: float) -> None:
        """The shadow of a tree's crown between two heights."""
        light = self.street.light
        if light.shadow >= 1:
            return
        x, outline = self.bend(lateral, z), []
        for y, r in ((low, 0.6 * radius), ((low + high) / 2, radius), (high, 0.6 * radius)):
            cx, cz = (at - light.sun[k] / light.sun[1] * y for at, k in ((x, 0), (z, 2)))
            outline += circle(cx, cz, r, 8)
        keep = light.shadow + 0.12 * (1 - light.shadow)  # leaves let some light through
        self.street.shadows.append(Shadow(corners=hull(outline), keep=keep))

    def under(self, pose: Pose, length: float, width: float, height: float) -> None:
        """The dark below a vehicle, and the shadow that it casts."""
        yaw = pose.yaw - math.atan(2 * self.street.view.curve * pose.z)
        c, s, x = math.cos(yaw), math.sin(yaw), self.bend(pose.lateral, pose.z)

        def footprint(grow: float) -> tuple[Spot, ...]:
            a, b = width / 2 + grow, length / 2 + grow
            corners = ((-a, -b), (a, -b), (a, b), (-a, b))
            return hull([(x + u * c - v * s, pose.z + u * s + v * c) for u, v in corners])

        for grow, keep in ((0.12, 0.42), (0.4, 0.72)):
            self.street.shadows.append(Shadow(corners=footprint(grow), keep=keep))
        self.cast(footprint(0.0), height)


def circle(x: float, z: float, radius: float, sides: int) -> list[Spot]:
    """A regular polygon."""
    turns = (k * math.tau / sides for k in range(sides))
    return [(x + radius * math.cos(t), z + radius * math.sin(t)) for t in turns]


def hull(points: Iterable[Spot]) -> tuple[Spot, ...]:
    """Convex hull, counter-clockwise."""
    ordered = sorted(set(points))
    chains = []
    for order in (ordered, ordered[::-1]):
        chain: list[Spot] = []
        for x, z in order:
            while len(chain) > 1:
                (ax, az), (bx, bz) = chain[-2:]
                if (bx - ax) * (z - az) > (bz - az) * (x - ax):
                    break
                chain.pop()
            chain.append((x, z))
        chains.append(chain[:-1])
    return tuple(chains[0] + chains[1])


def _inside(point: Spot, outline: tuple[Spot, ...]) -> bool:
    (x, z), after = point, outline[1:] + outline[:1]
    corners = zip(outline, after, strict=True)
    return all((bx - ax) * (z - az) >= (bz - az) * (x - ax) for (ax, az), (bx, bz) in corners)
