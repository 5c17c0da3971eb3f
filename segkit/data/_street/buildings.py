"""Buildings: facades composed floor by floor, mapped onto boxes in perspective."""

import math
import random
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageChops, ImageDraw

from . import palette, textures
from .canvas import NEAR, Canvas, Color
from .ids import BUILDING


@dataclass(frozen=True, kw_only=True)
class Facade:
    """How a building looks; lengths in metres.

    Attributes:
        seed: Which windows have blinds, light or flowers, which shop is where.
        style: "classic" (framed windows), "ribbon" (window bands), "glass" (curtain wall) or "house".
        wall: "plaster", "brick" or "stone".
        color, trim, roof: Colors of wall, frames and roof.
        floor: Height of a floor.
        bay: Distance of the windows.
        window: Width and height of a window.
        shops: Whether the ground floor has shop windows.
        balconies: Whether some bays have balconies.
        lit: Share of windows with light behind.
        pitch: Height of the roof above the eaves (0 = flat).
    """

    seed: int
    style: str
    wall: str
    color: Color
    trim: Color
    roof: Color
    floor: float
    bay: float
    window: tuple[float, float]
    shops: bool
    balconies: bool
    lit: float
    pitch: float


@lru_cache(maxsize=4096)
def _scaled(color: Color, factor: float) -> Color:
    return tuple(min(255, int(c * factor)) for c in color)


def wall_texture(
    kind: str, color: Color, width: float, height: float, scale: float, seed: int
) -> Image.Image:
    """A bare wall of width x height metres at `scale` texels a metre."""
    w, h = max(2, round(width * scale)), max(2, round(height * scale))
    level = min(4, max(0, round(math.log2(48 / scale))))  # 48 texels a metre at the finest
    grain, fine = textures.plaster(kind)[level], 48 / 2**level
    span = (min(grain.width, round(width * fine)), min(grain.height, round(height * fine)))
    ox, oy = seed % 7 * (grain.width - span[0]) // 7, seed % 5 * (grain.height - span[1]) // 5
    grain = grain.resize((w, h), Image.Resampling.BILINEAR, box=(ox, oy, ox + span[0], oy + span[1]))
    base = Image.new("RGB", (w, h), _scaled(color, 255 / 225))
    return ImageChops.multiply(base, Image.merge("RGB", (grain, grain, grain)))


def facade(spec: Facade, width: float, height: float, scale: float) -> Image.Image:
    """The unlit picture of a facade, RGB, `scale` texels a metre."""
    rng = random.Random(spec.seed)
    picture = wall_texture(spec.wall, spec.color, width, height, scale, spec.seed)
    draw = ImageDraw.Draw(picture)
    h = picture.height

    def rect(x0: float, y0: float, x1: float, y1: float, color: Color) -> None:  # metres from the lower left
        left, right, top, bottom = x0 * scale, x1 * scale - 1, h - y1 * scale, h - y0 * scale - 1
        if right >= left and bottom >= top:  # what is finer than a texel is left out
            draw.rectangle((left, top, right, bottom), fill=color)

    detail, medium = scale >= 12, scale >= 7
    ground = max(spec.floor, 3.6) if spec.shops else spec.floor
    floors = max(1, int((height - ground - 0.3) / spec.floor + 0.15)) if height > ground + 2 else 0
    step = (height - ground - 0.5) / floors if floors else 0.0
    bays = max(1, round(width / spec.bay))
    bay = width / bays
    glass_tint = rng.choice(palette.PANES)
    balcony_bays = {k for k in range(bays) if rng.random() < 0.4} if spec.balconies else set()

    for level in range(floors):
        y = ground + level * step
        if spec.style == "ribbon":
            rect(0.3, y + 0.28 * step, width - 0.3, y + 0.80 * step, _scaled(glass_tint, 0.8))
        elif spec.style == "glass":
            rect(0.15, y + 0.10 * step, width - 0.15, y + 0.98 * step, _scaled(glass_tint, 1.0))
        elif detail and spec.style == "classic" and level > 0:
            rect(0, y - 0.06, width, y + 0.06, _scaled(spec.color, 0.88))
        for k in range(bays):
            pick, reflection = rng.random(), rng.uniform(0.75, 1.5)
            pane = (250, 214, 140) if pick < spec.lit else _scaled(glass_tint, reflection)
            x = (k + 0.5) * bay
            if spec.style in ("ribbon", "glass"):
                bottom, top = (
                    (y + 0.30 * step, y + 0.78 * step)
                    if spec.style == "ribbon"
                    else (y + 0.14 * step, y + 0.94 * step)
                )
                rect(x - 0.47 * bay, bottom, x + 0.47 * bay, top, pane)
                if pick > 0.75:
                    rect(
                        x - 0.47 * bay,
                        bottom + (top - bottom) * (pick - 0.6),
                        x + 0.47 * bay,
                        top,
                        _scaled(spec.trim, 0.85),
                    )
                elif detail:
                    rect(
                        x - 0.3 * bay, bottom + 0.45 * (top - bottom), x + 0.1 * bay, top, _scaled(pane, 1.25)
                    )
                continue
            half, tall = min(spec.window[0], 0.8 * bay) / 2, min(spec.window[1], 0.72 * step)
            bottom = y + 0.26 * step if tall < 0.6 * step else y + 0.16 * step
            top = bottom + tall
            if medium:
                rect(x - half - 0.10, bottom - 0.08, x + half + 0.10, top + 0.12, spec.trim)
            rect(x - half, bottom, x + half, top, pane)
            if pick > 0.82:  # blinds
                rect(x - half, bottom + tall * (pick - 0.8) * 4, x + half, top, _scaled(spec.trim, 0.9))
            elif detail:
                rect(x - half, bottom + 0.5 * tall, x - 0.1 * half, top, _scaled(pane, 1.28))
                if pick > 0.5:  # curtains
                    rect(x - half, bottom, x - 0.6 * half, top, (196, 190, 180))
                    rect(x + 0.6 * half, bottom, x + half, top, (196, 190, 180))
            if detail:
                rect(x - 0.04, bottom, x + 0.04, top, spec.trim)
                rect(x - half, bottom + 0.66 * tall, x + half, bottom + 0.66 * tall + 0.06, spec.trim)
                rect(x - half - 0.16, bottom - 0.18, x + half + 0.16, bottom - 0.06, _scaled(spec.trim, 0.92))
                rect(
                    x - half - 0.16, bottom - 0.26, x + half + 0.16, bottom - 0.18, _scaled(spec.color, 0.72)
                )
                if spec.style == "house" and pick < 0.5:  # shutters
                    for left in (x - half - 0.48, x + half + 0.10):
                        rect(left, bottom - 0.04, left + 0.38, top + 0.04, _scaled(spec.roof, 0.9))
            if k in balcony_bays:
                rect(x - half - 0.5, y - 0.02, x + half + 0.5, y + 0.14, _scaled(spec.color, 0.8))
                rect(x - half - 0.5, y + 0.14, x + half + 0.5, y + 1.0, _scaled(spec.trim, 0.62))
                if detail:
                    for t in range(9):
                        left = x - half - 0.44 + t * (2 * half + 0.9) / 9
                        rect(left, y + 0.18, left + 0.05, y + 0.94, _scaled(spec.color, 0.75))

    # the ground floor
    if spec.shops:
        rect(0, 0, width, ground, _scaled(spec.color, 0.82))
        shop = max(1, round(width / 6.0))
        for k in range(shop):
            x0, x1 = (k + 0.05) * width / shop, (k + 0.95) * width / shop
            band, behind, door = (
                rng.choice(palette.SHOP_BANDS),
                rng.choice(palette.SHOP_GLASS),
                rng.uniform(x0 + 0.2, x1 - 1.3),
            )
            awning, fine = (
                rng.random() < 0.35,
                random.Random(rng.random()),
            )  # details must not shift what follows
            rect(x0, 0.45, x1, ground - 0.75, behind)
            for _ in range(3 if medium else 0):  # goods and reflections
                left = fine.uniform(x0, x1 - 0.9)
                rect(
                    left,
                    0.5,
                    left + fine.uniform(0.3, 0.9),
                    fine.uniform(1.0, 2.2),
                    fine.choice(palette.SHOP_GOODS),
                )
            rect(door, 0.05, door + 1.1, 2.5, (36, 34, 34))
            rect(door + 0.12, 0.3, door + 0.98, 2.35, (86, 96, 104))
            rect(x0, ground - 0.75, x1, ground - 0.12, band)
            if detail:
                text, letters = _scaled(band, 0.4) if sum(band) > 400 else (240, 236, 224), fine.randint(4, 9)
                start = (x0 + x1) / 2 - letters * 0.16
                for letter in range(letters):
                    left = start + letter * 0.32
                    rect(left, ground - 0.6, left + fine.choice((0.12, 0.22)), ground - 0.27, text)
                rect(x0, 0.0, x0 + 0.1, ground, _scaled(spec.color, 0.95))
            if awning:
                for stripe in range(10):
                    left = x0 + stripe * (x1 - x0) / 10
                    color = band if stripe % 2 else (236, 232, 222)
                    rect(left, ground - 1.35, left + (x1 - x0) / 10, ground - 0.72, color)
    elif floors or height > 2.2:
        door_bay = rng.randrange(bays)
        for k in range(bays):
            x, half = (k + 0.5) * bay, min(spec.window[0], 0.8 * bay) / 2
            if k == door_bay:
                rect(x - 0.75, 0, x + 0.75, 2.55, spec.trim)
                rect(x - 0.6, 0, x + 0.6, 2.4, rng.choice(palette.DOORS))
            else:
                pane = _scaled(glass_tint, rng.uniform(0.75, 1.4))
                tall = min(spec.window[1], ground - 1.3)
                rect(x - half - 0.10, 0.92, x + half + 0.10, 1.1 + tall, spec.trim)
                rect(x - half, 1.0, x + half, 1.0 + tall, pane)
                if detail:
                    rect(x - half, 1.0 + 0.5 * tall, x - 0.1 * half, 1.0 + tall, _scaled(pane, 1.28))
                    rect(x - 0.04, 1.0, x + 0.04, 1.0 + tall, spec.trim)
    rect(0, 0, width, 0.45, _scaled(spec.color, 0.6))
    if detail:
        rect(width - 0.16, 0.4, width - 0.06, height, _scaled(spec.color, 0.7))  # the rain pipe
    rect(0, height - 0.35, width, height, spec.trim if spec.style != "glass" else _scaled(spec.color, 0.8))
    rect(0, height - 0.45, width, height - 0.35, _scaled(spec.color, 0.62))
    return picture


def building(
    canvas: Canvas,
    *,
    side: int,
    lateral: float,
    z0: float,
    z1: float,
    height: float,
    depth: float,
    spec: Facade,
    open_front: bool,
    shade: float = 1.0,
) -> None:
    """A building along the street between depths `z0` and `z1`.

    Args:
        side: -1 left of the road, 1 right of it.
        lateral: Metres from the road's line to the facade.
        height: Of the eaves.
        depth: Away from the street.
        open_front: Whether the wall that looks at the camera has windows (a corner, a detached house).
    """
    start = max(z0, 1.3 * NEAR)
    if z1 <= start + 0.2:
        return
    view, light = canvas.view, canvas.light
    x0, x1 = canvas.bend(side * lateral, z0), canvas.bend(side * lateral, z1)
    back0 = x0 + side * depth
    mid = (start + z1) / 2
    factor = light.factor((-side, 0.0, 0.0), shade)
    front = light.factor((0.0, 0.0, -1.0), shade)

    # the wall that looks at us
    if z0 > start - 1e-6:
        left, right = min(x0, back0), max(x0, back0)
        u0, _ = canvas.project((left, height, z0))
        u1, _ = canvas.project((right, 0.0, z0))
        if u1 > 0 and u0 < canvas.width:
            if open_front and u1 - u0 > 10:
                scale = min(40.0, max(4.0, 0.7 * canvas.pixels(1.0, z0)))
                picture = facade(spec, depth, height, scale).point(light.tables(front, z0))
                canvas.textured(
                    picture,
                    [(left, height, z0), (right, height, z0), (right, 0.0, z0), (left, 0.0, z0)],
                    BUILDING,
                    light.tone(spec.color, front, z0),
                )
            else:
                corners = [(left, height, z0), (right, height, z0), (right, 0.0, z0), (left, 0.0, z0)]
                canvas.surface(corners, _scaled(spec.color, 0.93), BUILDING, front)
            if spec.pitch:
                gable = [
                    (left, height, z0),
                    ((left + right) / 2, height + spec.pitch, z0),
                    (right, height, z0),
                ]
                canvas.surface(gable, _scaled(spec.color, 0.97), BUILDING, front)

    # the roof, then the facade
    first = canvas.bend(side * lateral, start)
    if spec.pitch:
        ridge = side * depth / 2
        eaves = -side * 0.35
        slope = light.factor((-side * 0.6, 0.8, 0.0), shade)
        roof = [
            (first + eaves, height - 0.1, start),
            (x1 + eaves, height - 0.1, z1),
            (x1 + ridge, height + spec.pitch, z1),
            (first + ridge, height + spec.pitch, start),
        ]
        canvas.surface(roof, spec.roof, BUILDING, slope)
        rng = random.Random(spec.seed + 1)
        span = z1 - z0
        for _ in range(int(span / 7)):
            z = z0 + span * rng.uniform(0.15, 0.85)
            share = rng.uniform(0.25, 0.45)
            if z < start + 0.6:
                continue
            cx = canvas.bend(side * lateral, z) + share * ridge
            y = height + share * spec.pitch
            canvas.surface(
                [(cx, y, z - 0.6), (cx, y, z + 0.6), (cx, y + 1.1, z + 0.6), (cx, y + 1.1, z - 0.6)],
                (66, 76, 88),
                BUILDING,
                slope,
            )
        z = z0 + span * rng.uniform(0.2, 0.8)
        if z > start + 1:
            cx = canvas.bend(side * lateral, z) + 0.85 * ridge
            y = height + 0.8 * spec.pitch
            for points, normal in (
                ([(cx, y, z), (cx, y, z + 0.9), (cx, y + 1.5, z + 0.9), (cx, y + 1.5, z)], (-side, 0.0, 0.0)),
                (
                    [(cx, y, z), (cx + side * 0.7, y, z), (cx + side * 0.7, y + 1.5, z), (cx, y + 1.5, z)],
                    (0.0, 0.0, -1.0),
                ),
            ):
                canvas.surface(points, (146, 92, 76), BUILDING, light.factor(normal, shade))
    # the nearest part of the facade that the picture shows decides how fine its texture must be
    edge = canvas.width / 2 + abs(view.shift) * canvas.height
    seen = max(start, lateral * canvas.focal / edge)
    if seen >= z1:
        return
    u0, u1 = (
        canvas.project((canvas.bend(side * lateral, seen), 0.0, seen))[0],
        canvas.project((x1, 0.0, z1))[0],
    )
    if max(u0, u1) < 0 or min(u0, u1) > canvas.width or abs(u1 - u0) < 1.0:
        return
    if abs(u1 - u0) < 12:  # too narrow for windows: their rows must do
        near, far = (first, start), (x1, z1)
        canvas.surface(
            [(x, y, z) for y, (x, z) in ((0.0, near), (height, near), (height, far), (0.0, far))],
            spec.color,
            BUILDING,
            factor,
        )
        for row in range(max(1, round(height / spec.floor))):
            y = row * spec.floor + 1.0
            canvas.surface(
                [
                    (x, min(height, y + up), z)
                    for up, (x, z) in ((0.0, near), (1.3, near), (1.3, far), (0.0, far))
                ],
                _scaled(spec.color, 0.68),
                BUILDING,
                factor,
            )
        return
    scale = min(48.0, max(4.0, 0.8 * canvas.focal / seen))
    scale = 2.0 ** (math.floor(2 * math.log2(scale)) / 2)
    picture = facade(spec, z1 - z0, height, scale)
    if side > 0:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)  # so that z0 is at the right
    if start > z0:
        cut = min(picture.width - 2, round((start - z0) * picture.width / (z1 - z0)))
        picture = (
            picture.crop((cut, 0, picture.width, picture.height))
            if side < 0
            else picture.crop((0, 0, picture.width - cut, picture.height))
        )
    picture = picture.point(light.tables(factor, mid))
    near, far = (first, start), (x1, z1)
    a, b = (far, near) if side > 0 else (near, far)
    corners = [(a[0], height, a[1]), (b[0], height, b[1]), (b[0], 0.0, b[1]), (a[0], 0.0, a[1])]
    canvas.textured(picture, corners, BUILDING, light.tone(spec.color, factor, mid))
