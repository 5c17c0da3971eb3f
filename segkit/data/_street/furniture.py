"""What stands along a street: trees, hedges, poles, signs, lights, fences, walls and small things."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from . import textures
from .buildings import wall_texture
from .canvas import Canvas, Color, Point3
from .ids import FENCE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN, VEGETATION, WALL

UPRIGHT = (0.0, 0.3, -0.95)


def leaf_ramp(canvas: Canvas, color: Color, z: float, shade: float) -> tuple[bytes, ...]:
    """Tables from a leaf's shade to R, G and B: dark in the crown's depth, yellow where the sun is."""
    light = canvas.light
    factor = light.factor((0.0, 0.8, -0.6), shade)
    keep = math.exp(-z / light.haze_length)
    share = np.arange(256) / 150
    tables = []
    for channel, bright in enumerate((1.25, 1.15, 0.75)):
        tone = color[channel] * factor[channel] * share * (1 + (bright - 1) * np.minimum(1, share)) + 6
        hazy = np.minimum(255, tone) * keep + light.haze[channel] * (1 - keep)
        tables.append(hazy.astype(np.uint8).tobytes())
    return tuple(tables)


def tree(
    canvas: Canvas,
    *,
    lateral: float,
    z: float,
    crown: tuple[float, float],
    clear: float,
    kind: int,
    color: Color,
    bark: Color,
    flip: bool,
    y: float = 0.0,
    shade: float = 1.0,
) -> None:
    """A tree; trunk and crown are both vegetation.

    Args:
        crown: Width and height of the crown, metres.
        clear: Height of its lower edge above the ground, metres.
        kind: Index of the foliage.
    """
    x = canvas.bend(lateral, z)
    left, top = canvas.project((x - crown[0] / 2, y + clear + crown[1], z))
    right, bottom = canvas.project((x + crown[0] / 2, y + clear, z))
    if right < 0 or left > canvas.width:
        return
    trunk = 0.035 * crown[0] + 0.06
    fork = y + clear + 0.35 * crown[1]
    canvas.limb((x, y, z), (x, y + clear, z), trunk, trunk * 0.75, bark, VEGETATION, shade)
    if right - left < 7:  # too far for leaves
        for part, bright in ((1.0, 0.55), (0.6, 0.95)):
            tone = canvas.light.tone(color, canvas.light.factor((0.0, 0.8, -0.6), bright * shade), z)
            high = bottom - top
            canvas.ellipse(
                (left + right) / 2,
                top + 0.48 * part * high,
                0.46 * part * (right - left),
                0.46 * part * high,
                tone,
                VEGETATION,
            )
        return
    if kind in textures.CROWNS and canvas.pixels(trunk, z) > 1:
        for dx in (-0.22, 0.2):
            canvas.limb(
                (x, y + clear - 0.2, z),
                (x + dx * crown[0], fork, z),
                trunk * 0.6,
                trunk * 0.3,
                bark,
                VEGETATION,
                0.8 * shade,
            )
        canvas.limb((x, y + clear, z), (x, fork, z), trunk * 0.75, trunk * 0.4, bark, VEGETATION, 0.9 * shade)
    canvas.sprite(
        textures.foliage(kind),
        (left, top, right, bottom),
        leaf_ramp(canvas, color, z, shade),
        VEGETATION,
        flip,
    )


def hedge(
    canvas: Canvas,
    *,
    lateral: float,
    z: float,
    width: float,
    height: float,
    kind: int,
    color: Color,
    flip: bool,
    y: float = 0.0,
    shade: float = 1.0,
) -> None:
    """A bush, or one metre-wide piece of a hedge."""
    x = canvas.bend(lateral, z)
    left, top = canvas.project((x - width / 2, y + height * 1.04, z))
    right, bottom = canvas.project((x + width / 2, y - 0.05 * height, z))
    canvas.sprite(
        textures.foliage(kind),
        (left, top, right, bottom),
        leaf_ramp(canvas, color, z, shade),
        VEGETATION,
        flip,
    )


def post(
    canvas: Canvas,
    *,
    lateral: float,
    z: float,
    height: float,
    radius: float,
    color: Color,
    y: float = 0.0,
    ident: int = POLE,
    shade: float = 1.0,
) -> Point3:
    """A round pole with a lit side; returns its tip."""
    x = canvas.bend(lateral, z)
    canvas.limb((x, y, z), (x, y + height, z), radius, radius * 0.8, color, ident, shade)
    if canvas.pixels(radius, z) > 1.5:
        side = math.copysign(0.35 * radius, canvas.light.sun[0])
        bright = tuple(min(255, int(c * 1.22) + 8) for c in color)
        canvas.limb(
            (x + side, y + 0.05, z),
            (x + side, y + height - 0.05, z),
            radius * 0.4,
            radius * 0.32,
            bright,
            ident,
            shade,
        )
    return x, y + height, z


def lamp(
    canvas: Canvas,
    *,
    lateral: float,
    z: float,
    height: float,
    reach: float,
    color: Color,
    y: float,
    radius: float = 0.075,
    shade: float = 1.0,
) -> None:
    """A street lamp whose arm reaches over the road; all of it is `pole`."""
    x, top, _ = post(
        canvas, lateral=lateral, z=z, height=height, radius=radius, color=color, y=y, shade=shade
    )
    canvas.limb((x, y, z), (x, y + 0.8, z), radius * 1.6, radius * 1.5, color, POLE, shade)
    tip = (x + reach, top + 0.35, z)
    canvas.limb((x, top, z), (x + 0.5 * reach, top + 0.28, z), radius * 0.8, radius * 0.6, color, POLE, shade)
    canvas.limb((x + 0.5 * reach, top + 0.28, z), tip, radius * 0.6, radius * 0.6, color, POLE, shade)
    canvas.limb(
        (tip[0] - 0.1 * reach, tip[1], z),
        (tip[0] + 0.22 * reach, tip[1] - 0.02, z),
        0.10,
        0.06,
        (70, 72, 76),
        POLE,
    )


def _disc(
    canvas: Canvas,
    x: float,
    y: float,
    z: float,
    radius: float,
    color: Color,
    sides: int = 20,
    turn: float = 0.0,
    squeeze: float = 1.0,
) -> None:
    tone = canvas.light.tone(color, canvas.light.factor(UPRIGHT), z)
    points = []
    for k in range(sides):
        angle = turn + k * math.tau / sides
        points.append(
            canvas.project((x + squeeze * radius * math.cos(angle), y + radius * math.sin(angle), z))
        )
    canvas.polygon(points, tone, TRAFFIC_SIGN)


def _plate(
    canvas: Canvas,
    x: float,
    y: float,
    z: float,
    half_w: float,
    half_h: float,
    color: Color,
    ident: int = TRAFFIC_SIGN,
) -> None:
    tone = canvas.light.tone(color, canvas.light.factor(UPRIGHT), z)
    left, top = canvas.project((x - half_w, y + half_h, z))
    right, bottom = canvas.project((x + half_w, y - half_h, z))
    canvas.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], tone, ident)


# those that drivers meet; "back" (seen from behind), "name" and "guide" (plates) come where they fit
SIGNS = ("limit", "stop", "yield", "priority", "parking", "no_entry", "arrow", "warning", "no_stopping")


def sign(canvas: Canvas, *, x: float, y: float, z: float, kind: str, size: float) -> None:
    """A traffic sign that faces the camera; `y` is its centre, `size` half its height, metres."""
    z = z - 0.06  # in front of its pole
    white, red, blue, black = (238, 238, 234), (198, 28, 34), (24, 78, 168), (30, 30, 32)
    fine = canvas.pixels(size, z) > 3
    if kind == "limit":
        _disc(canvas, x, y, z, size, red)
        _disc(canvas, x, y, z, size * 0.76, white)
        if fine:
            for dx in (-0.28, 0.28):
                _plate(canvas, x + dx * size, y, z, 0.18 * size, 0.36 * size, black)
                _plate(canvas, x + dx * size, y, z, 0.07 * size, 0.24 * size, white)
    elif kind == "stop":
        _disc(canvas, x, y, z, size, white, 8, math.pi / 8)
        _disc(canvas, x, y, z, size * 0.92, red, 8, math.pi / 8)
        if fine:
            for k in range(4):
                _plate(canvas, x + (k - 1.5) * 0.36 * size, y, z, 0.13 * size, 0.22 * size, white)
    elif kind in ("yield", "warning"):
        turn = -math.pi / 2 if kind == "yield" else math.pi / 2
        _disc(canvas, x, y, z, size * 1.15, red, 3, turn)
        _disc(canvas, x, y, z, size * 0.72, white, 3, turn)
        if kind == "warning" and fine:
            _plate(canvas, x, y, z, 0.06 * size, 0.25 * size, black)
    elif kind == "priority":
        _disc(canvas, x, y, z, size * 1.15, white, 4)
        _disc(canvas, x, y, z, size * 0.85, (244, 190, 22), 4)
    elif kind == "parking":
        _plate(canvas, x, y, z, size * 0.85, size * 0.85, white)
        _plate(canvas, x, y, z, size * 0.78, size * 0.78, blue)
        if fine:
            _plate(canvas, x - 0.2 * size, y, z, 0.10 * size, 0.5 * size, white)
            _plate(canvas, x + 0.1 * size, y + 0.22 * size, z, 0.28 * size, 0.28 * size, white)
            _plate(canvas, x + 0.1 * size, y + 0.22 * size, z, 0.13 * size, 0.13 * size, blue)
    elif kind == "no_entry":
        _disc(canvas, x, y, z, size, red)
        _plate(canvas, x, y, z, 0.68 * size, 0.17 * size, white)
    elif kind == "no_stopping":
        _disc(canvas, x, y, z, size, red)
        _disc(canvas, x, y, z, size * 0.78, blue)
        if fine:
            tone = canvas.light.tone(red, canvas.light.factor(UPRIGHT), z)
            a, b = 0.62 * size, 0.46 * size
            canvas.polygon(
                [
                    canvas.project(p)
                    for p in ((x - a, y + b, z), (x - b, y + a, z), (x + a, y - b, z), (x + b, y - a, z))
                ],
                tone,
                TRAFFIC_SIGN,
            )
    elif kind == "arrow":
        _disc(canvas, x, y, z, size, white)
        _disc(canvas, x, y, z, size * 0.94, blue)
        if fine:
            _plate(canvas, x, y - 0.15 * size, z, 0.10 * size, 0.5 * size, white)
            _disc(canvas, x, y + 0.35 * size, z, 0.36 * size, white, 3, math.pi / 2)
    elif kind == "back":
        _disc(canvas, x, y, z, size, (132, 134, 138))
        _disc(canvas, x, y, z, size * 0.9, (152, 154, 158))
    elif kind == "name":
        _plate(canvas, x, y, z, size * 1.9, size * 0.42, white)
        _plate(canvas, x, y, z, size * 1.82, size * 0.34, (20, 70, 120))
        if fine:
            _plate(canvas, x - 0.2 * size, y, z, size * 1.2, size * 0.1, white)
    else:  # "guide"
        _plate(canvas, x, y, z, size * 1.7, size * 1.1, white)
        _plate(canvas, x, y, z, size * 1.62, size * 1.02, (246, 204, 46) if size > 0.6 else (16, 84, 160))
        if fine:
            ink = black if size > 0.6 else white
            for row in (0.5, 0.0, -0.5):
                _plate(
                    canvas,
                    x + (0.2 - abs(row) * 0.4) * size,
                    y + row * size,
                    z,
                    (1.1 - abs(row)) * size,
                    0.1 * size,
                    ink,
                )


def sign_post(
    canvas: Canvas,
    *,
    lateral: float,
    z: float,
    y: float,
    height: float,
    signs: Sequence[tuple[str, float]],
    color: Color,
    shade: float = 1.0,
) -> None:
    """A pole with signs, the highest first, each (kind, half height)."""
    x, top, _ = post(canvas, lateral=lateral, z=z, height=height, radius=0.04, color=color, y=y, shade=shade)
    for kind, size in signs:
        sign(canvas, x=x, y=top - size, z=z, kind=kind, size=size)
        top -= 2 * size + 0.06


def lights(
    canvas: Canvas, *, x: float, y: float, z: float, state: int, facing: bool, shade: float = 1.0
) -> None:
    """A traffic light's housing, 0.95 m high, centred on (x, y). `state`: 0 red, 1 amber, 2 green."""
    z = z - 0.12
    _plate(canvas, x, y, z, 0.27, 0.56, (14, 15, 16), TRAFFIC_LIGHT)
    _plate(canvas, x, y, z, 0.18, 0.47, (40, 43, 44), TRAFFIC_LIGHT)
    if not facing or canvas.pixels(0.1, z) < 0.7:
        return
    on, off = ((255, 44, 36), (255, 184, 30), (46, 240, 120)), ((58, 18, 18), (58, 44, 16), (16, 50, 30))
    for k in range(3):
        u, v = canvas.project((x, y + 0.31 - 0.31 * k, z))
        r = canvas.pixels(0.115, z)
        canvas.ellipse(u, v, r, r, on[k] if k == state else off[k], TRAFFIC_LIGHT)
        if k == state and r > 3:
            canvas.ellipse(u, v, 0.5 * r, 0.5 * r, tuple(min(255, c + 70) for c in on[k]), TRAFFIC_LIGHT)


def signal(
    canvas: Canvas,
    *,
    lateral: float,
    z: float,
    y: float,
    reach: float,
    state: int,
    facing: bool,
    color: Color,
    shade: float = 1.0,
) -> None:
    """A traffic light on a pole; with `reach` (metres to the right) another one hangs over the road."""
    height = 3.4 if reach == 0 else 5.6
    x, top, _ = post(canvas, lateral=lateral, z=z, height=height, radius=0.07, color=color, y=y, shade=shade)
    if reach:
        canvas.limb((x, top - 0.1, z), (x + reach, top + 0.15, z), 0.06, 0.045, color, POLE, shade)
        lights(canvas, x=x + 0.94 * reach, y=top - 0.25, z=z, state=state, facing=facing)
    lights(canvas, x=x, y=y + 2.75, z=z, state=state, facing=facing)


def fence(
    canvas: Canvas,
    *,
    side: int,
    lateral: float,
    z0: float,
    z1: float,
    height: float,
    kind: str,
    color: Color,
    y: float = 0.0,
    shade: float = 1.0,
    ident: int = FENCE,
) -> None:
    """A fence along the street: "planks", "bars", "mesh" or "rail"; what one sees through it is fence too."""
    length = z1 - z0
    scale = min(64.0, max(10.0, 0.8 * canvas.pixels(1.0, max(z0, 1.8 * lateral))))
    w, h = max(4, int(length * scale)), max(4, int(height * scale))
    factor = canvas.light.factor((-side, 0.0, 0.0), shade)
    z = (z0 + z1) / 2
    tone = canvas.light.tone(color, factor, z)
    dark = canvas.light.tone(tuple(int(c * 0.7) for c in color), factor, z)
    texture, mask = Image.new("RGB", (w, h), tone), Image.new("L", (w, h), 0)
    draw, cover = ImageDraw.Draw(texture), ImageDraw.Draw(mask)
    if kind == "planks":
        mask.paste(255, (0, 0, w, h))
        step = 0.16 * scale
        for k in range(int(w / step) + 1):
            if k % 2:
                draw.rectangle((k * step, 0, (k + 1) * step, h), fill=tuple(int(0.92 * c) for c in tone))
            draw.line((k * step, 0, k * step, h), fill=dark, width=max(1, int(0.02 * scale)))
        draw.rectangle((0, 0, w, 0.06 * scale), fill=tuple(min(255, int(1.1 * c)) for c in tone))
    elif kind == "bars":
        step, wide = 0.14 * scale, max(1, int(0.045 * scale))
        for k in range(int(w / step) + 1):
            left = int(k * step)
            cover.rectangle((left, int(0.04 * h), left + wide - 1, h), fill=255)
        for t in (0.08, 0.88):
            cover.rectangle((0, t * h, w, t * h + 0.06 * scale), fill=255)
        cover.rectangle((0, 0, max(1, 0.08 * scale), h), fill=255)
    elif kind == "mesh":
        mask.paste(96, (0, 0, w, h))
        step = max(3.0, 0.12 * scale)
        for k in range(int((w + h) / step) + 1):
            cover.line((k * step, 0, k * step - h, h), fill=210)
            cover.line((k * step - h, 0, k * step, h), fill=210)
        cover.rectangle((0, 0, max(1, 0.08 * scale), h), fill=255)
        cover.rectangle((0, 0, w, max(1, 0.06 * scale)), fill=255)
    else:  # "rail"
        for t in (0.0, 0.45):
            cover.rectangle((0, t * h, w, (t + 0.2) * h), fill=255)
        for s in (0.0, 0.5):
            cover.rectangle((s * w, 0, s * w + 0.1 * scale, h), fill=255)
        mask.paste(60, (0, int(0.2 * h), w, int(0.45 * h)))
    corners = _along(canvas, side, lateral, z0, z1, y, height)
    canvas.textured(texture, corners, ident, tone, mask)


def _along(
    canvas: Canvas, side: int, lateral: float, z0: float, z1: float, y: float, height: float
) -> list[Point3]:
    """Corners of an upright strip along the street, upper left first as the camera sees it."""
    near, far = (canvas.bend(side * lateral, z0), z0), (canvas.bend(side * lateral, z1), z1)
    first, last = (far, near) if side > 0 else (near, far)
    return [
        (first[0], y + height, first[1]),
        (last[0], y + height, last[1]),
        (last[0], y, last[1]),
        (first[0], y, first[1]),
    ]


def wall(
    canvas: Canvas,
    *,
    side: int,
    lateral: float,
    z0: float,
    z1: float,
    height: float,
    kind: str,
    color: Color,
    y: float = 0.0,
    shade: float = 1.0,
    seed: int = 0,
) -> None:
    """A garden or retaining wall along the street: "plaster", "brick" or "stone", with a coping."""
    length, z = z1 - z0, (z0 + z1) / 2
    scale = min(48.0, max(8.0, 0.8 * canvas.pixels(1.0, max(z0, 1.8 * lateral))))
    factor = canvas.light.factor((-side, 0.0, 0.0), shade)
    texture = wall_texture(kind, color, length, height, scale, seed)
    draw = ImageDraw.Draw(texture)
    light = tuple(min(255, int(c * 1.12) + 6) for c in color)
    draw.rectangle((0, 0, texture.width, 0.12 * scale), fill=light)
    draw.rectangle((0, 0.12 * scale, texture.width, 0.16 * scale), fill=tuple(int(c * 0.6) for c in color))
    texture = texture.point(canvas.light.tables(factor, z))
    fill = canvas.light.tone(color, factor, z)
    x0, x1 = canvas.bend(side * lateral, z0), canvas.bend(side * lateral, z1)
    if height < canvas.view.height:  # its top is seen
        deep = side * 0.3
        top = [
            (x0, y + height, z0),
            (x1, y + height, z1),
            (x1 + deep, y + height, z1),
            (x0 + deep, y + height, z0),
        ]
        canvas.surface(top, light, WALL, canvas.light.factor((0.0, 1.0, 0.0), shade))
    end = [(x0, y, z0), (x0 + side * 0.3, y, z0), (x0 + side * 0.3, y + height, z0), (x0, y + height, z0)]
    canvas.surface(end, color, WALL, canvas.light.factor((0.0, 0.0, -1.0), shade))
    canvas.textured(texture, _along(canvas, side, lateral, z0, z1, y, height), WALL, fill)


def box(
    canvas: Canvas,
    *,
    lateral: float,
    z: float,
    y: float,
    size: tuple[float, float, float],
    color: Color,
    ident: int,
    lid: Color | None = None,
    shade: float = 1.0,
) -> None:
    """A bin, a cabinet, a parcel: width, height, depth in metres."""
    x, (w, h, d) = canvas.bend(lateral, z), size
    light = canvas.light
    side = -1.0 if x > 0 else 1.0  # the flank that looks at the road
    flank = x + side * w / 2
    canvas.surface(
        [(flank, y, z), (flank, y, z + d), (flank, y + h, z + d), (flank, y + h, z)],
        color,
        ident,
        light.factor((side, 0.0, 0.0), shade),
    )
    if y + h < canvas.view.height:
        canvas.surface(
            [
                (x - w / 2, y + h, z),
                (x + w / 2, y + h, z),
                (x + w / 2, y + h, z + d),
                (x - w / 2, y + h, z + d),
            ],
            lid or color,
            ident,
            light.factor((0.0, 1.0, 0.0), shade),
        )
    front = light.factor((0.0, 0.0, -1.0), shade)
    canvas.surface(
        [(x - w / 2, y, z), (x + w / 2, y, z), (x + w / 2, y + h, z), (x - w / 2, y + h, z)],
        color,
        ident,
        front,
    )
    if lid:
        canvas.surface(
            [
                (x - w / 2, y + 0.85 * h, z),
                (x + w / 2, y + 0.85 * h, z),
                (x + w / 2, y + h, z),
                (x - w / 2, y + h, z),
            ],
            lid,
            ident,
            front,
        )
