"""Sky, ground, the own car's bonnet, and what the camera does to the picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from . import textures
from .canvas import NEAR, Canvas, Color, Point2
from .ids import EGO_VEHICLE, OUT_OF_ROI, SKY


@dataclass(frozen=True, kw_only=True)
class Sky:
    """Colors of zenith, horizon and clouds; `cover` 0 (clear) .. 1 (closed); `offset` picks the clouds."""

    zenith: Color
    horizon: Color
    cloud: Color
    cover: float
    offset: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A flat piece of ground: corners (metres right of the road's line, metres ahead), height, color, id."""

    corners: tuple[Point2, ...]
    color: Color
    ident: int
    y: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Shadow:
    """A shadow on the ground: corners in metres (X, Z), and what it leaves of the light (0..1)."""

    corners: tuple[Point2, ...]
    keep: float


@dataclass(frozen=True, kw_only=True)
class Bonnet:
    """The own car's bonnet: share of the picture's height, color, how much its edge falls to the sides."""

    height: float
    color: Color
    fall: float


@dataclass(frozen=True, kw_only=True)
class Grade:
    """The camera's color curve: gain of R, G, B and gamma; strength of the vignette; the noise's offset."""

    gain: tuple[float, float, float]
    gamma: float
    vignette: float
    noise: tuple[int, int]


def paint_sky(canvas: Canvas, sky: Sky) -> None:
    """Gradient and clouds down to the horizon, computed at a quarter of the size: both are smooth."""
    rows = max(1, math.ceil(canvas.cy) + 1)
    h, w = max(2, rows // 4), max(2, canvas.width // 4)
    v = (np.arange(h, dtype=np.float32) + 0.5) * rows / h
    u = (np.arange(w, dtype=np.float32) + 0.5) * canvas.width / w
    rise = np.maximum(0, canvas.cy - v) / canvas.focal  # tangent of the elevation, (h,)
    share = np.minimum(1, rise / 0.24)[:, None, None] ** 0.7
    base = (
        np.array(sky.horizon, np.float32) * (1 - share) + np.array(sky.zenith, np.float32) * share
    )  # (h, 1, 3)
    # clouds hang in a plane: they shrink towards the horizon as the road does
    distance = 1 / (rise + 0.05)
    noise = textures.fractal(512, 4, 6, 41)
    along = ((distance + sky.offset[1]) * 26).astype(np.int32) % 512
    across = ((u[None] - canvas.cx) / canvas.focal * distance[:, None] + sky.offset[0]) * 26  # (h, w)
    cloud = noise[along[:, None], across.astype(np.int32) % 512]
    amount = np.clip((cloud - 1.5 + 3.0 * sky.cover) * 0.75, 0, 1)[..., None]
    amount *= 0.25 + 0.75 * np.minimum(1, rise / 0.1)[:, None, None]  # the haze hides far clouds
    lit = np.clip(1.0 - 0.07 * (cloud - 0.4), 0.8, 1.06)[..., None] * np.array(sky.cloud, np.float32)
    picture = np.clip(base * (1 - amount) + lit * amount, 0, 255).astype(np.uint8)
    smooth = Image.fromarray(picture).resize((canvas.width, rows), Image.Resampling.BICUBIC)
    canvas.image.paste(smooth, (0, 0))
    canvas.ids.paste(SKY, (0, 0, canvas.width, rows))


def paint_ground(
    canvas: Canvas,
    patches: Sequence[Patch],
    shadows: Sequence[Shadow],
    surfaces: dict[int, int],
    base: tuple[Color, int],
    offset: tuple[int, int],
) -> None:
    """Everything that lies flat: colors and ids first, then texture, shadows and haze over all of it.

    Args:
        canvas: With the sky on it.
        patches: In painting order.
        shadows: In any order.
        surfaces: Ground id -> texture (`textures.ASPHALT`, ...).
        base: Color and id of ground that no patch covers.
        offset: Shift of the texture, texels, so that no two scenes show the same grain.
    """
    top = min(canvas.height - 1, max(0, math.ceil(canvas.cy)))
    rows, width = canvas.height - top, canvas.width
    light = canvas.light
    factor = [f * 255 / textures.GROUND_MEAN for f in light.factor((0.0, 1.0, 0.0))]

    def tone(color: Color) -> Color:
        return tuple(int(min(255.0, c * f)) for c, f in zip(color, factor, strict=True))

    canvas.polygon(
        [(0, top), (width, top), (width, canvas.height), (0, canvas.height)], tone(base[0]), base[1]
    )
    for patch in patches:
        points = [canvas.project((canvas.bend(x, z), patch.y, z)) for x, z in patch.corners]
        canvas.polygon(points, tone(patch.color), patch.ident)

    texture = Image.fromarray(_ground_texture(canvas, top, surfaces, offset))
    shade = _shadow_plane(canvas, top, shadows)
    area = (0, top, width, canvas.height)
    flat = canvas.image.crop(area)
    if light.shadow < 1:  # what is in shadow keeps the sky's light only, which is bluer
        cool = [shade.point([int(255 - (255 - v) * k) for v in range(256)]) for k in (1.0, 0.96, 0.86)]
        channels = [ImageChops.multiply(texture, c) for c in cool]
    else:
        channels = [ImageChops.multiply(texture, shade)] * 3
    flat = ImageChops.multiply(flat, Image.merge("RGB", channels))
    v = np.arange(rows, dtype=np.float32) + (top + 0.5 - canvas.cy)
    depth = canvas.focal * canvas.view.height / np.maximum(v, 0.05)
    fade = np.round(255 * (1 - np.exp(-depth / light.haze_length))).astype(np.uint8)
    veil = Image.fromarray(np.ascontiguousarray(np.broadcast_to(fade[:, None], (rows, width))))
    flat.paste(light.haze, (0, 0), veil)
    canvas.image.paste(flat, (0, top))


def _ground_texture(
    canvas: Canvas, top: int, surfaces: dict[int, int], offset: tuple[int, int]
) -> np.ndarray:
    """The ground's structure, uint8 (rows, W): a row has one depth, so it is a row of a tile."""
    levels = textures.ground()
    kind = np.zeros(256, np.uint8)
    for ident, surface in surfaces.items():
        kind[ident] = surface
    ids = np.asarray(canvas.ids)[top:]
    rows, width = ids.shape
    v = np.arange(rows, dtype=np.float32) + np.float32(top + 0.5 - canvas.cy)
    depth = np.float32(canvas.focal * canvas.view.height) / np.maximum(v, np.float32(0.05))
    per_metre = textures.GROUND_TILE / textures.GROUND_METRES
    # a pixel covers z / f metres across, but z / f * z / h along: take a tile as coarse as their mean
    texels = depth / canvas.focal * np.sqrt(np.maximum(1, depth / canvas.view.height)) * per_metre * 0.8
    level = np.clip(np.floor(np.log2(np.maximum(texels, 1))), 0, len(levels) - 1).astype(int)
    across = (np.arange(width, dtype=np.float32) + np.float32(0.5 - canvas.cx)) / np.float32(canvas.focal)
    picture = np.empty((rows, width), np.uint8)
    for step in range(len(levels)):
        chosen = np.flatnonzero(level == step)
        if not len(chosen):
            continue
        part = slice(chosen[0], chosen[-1] + 1)  # depth falls with the row, so a level is a band
        tile = levels[step]
        n, scale = tile.shape[-1], np.float32(per_metre / 2**step)
        z = np.minimum(depth[part], 2000)
        x = across * (z * scale)[:, None]  # (rows of the band, W) in texels
        x += (offset[0] / 2**step - canvas.view.curve * z * z * scale)[:, None]
        x = x.astype(np.int32)
        x &= n - 1
        along = ((z * scale).astype(np.int32) + offset[1] // 2**step) & (n - 1)
        x += (along * n)[:, None]
        surface = kind[ids[part] & 255]
        picture[part] = tile.reshape(4, -1)[0].take(x)
        for other in range(1, 4):
            mask = surface == other
            if mask.any():
                np.copyto(picture[part], tile.reshape(4, -1)[other].take(x), where=mask)
    return picture


def _shadow_plane(canvas: Canvas, top: int, shadows: Sequence[Shadow]) -> Image.Image:
    """What shadows leave of the ground's light, L (rows, W); drawn at half the size, for soft edges."""
    rows = canvas.height - top
    size = (max(1, canvas.width // 2), max(1, rows // 2))
    plane = Image.new("L", size, 255)
    draw = ImageDraw.Draw(plane)
    for shadow in sorted(shadows, key=lambda s: -s.keep):
        points = []
        for x, z in shadow.corners:
            u, v = canvas.project((x, 0.0, max(NEAR, z)))
            points.append((u / 2, (v - top) / 2))
        draw.polygon(points, fill=int(255 * shadow.keep))
    plane = plane.filter(ImageFilter.BoxBlur(max(0.5, canvas.height / 700)))
    return plane.resize((canvas.width, rows), Image.Resampling.BILINEAR)


def paint_bonnet(canvas: Canvas, bonnet: Bonnet, border: float) -> None:
    """The own car, and the strip along the picture's edge that is out of the region of interest."""
    w, h = canvas.width, canvas.height
    sky = canvas.light.haze
    for k in range(7):  # nested bands: the bonnet mirrors the sky towards its far edge
        share = bonnet.height * (1 - 0.13 * k)
        edge = []
        for step in range(33):
            t = step / 16 - 1
            drop = bonnet.fall * share * (0.25 * t * t + 0.75 * t**6)
            edge.append((w / 2 + t * w * 0.54, h * (1 - share + drop)))
        mirror = 0.42 * math.exp(-0.5 * k)
        tone = canvas.light.tone(bonnet.color, canvas.light.factor((0.0, 0.9, -0.3)), 0.0)
        color = tuple(
            int(c * (1 - mirror) * (1 - 0.05 * k) + s * mirror) for c, s in zip(tone, sky, strict=True)
        )
        canvas.polygon([*edge, (w * 1.1, h * 1.1), (-w * 0.1, h * 1.1)], color, EGO_VEHICLE)
    thick = round(border * h)
    if thick:
        frame = ((0, 0, w, thick), (0, h - thick, w, h), (0, 0, thick, h), (w - thick, 0, w, h))
        for box in frame:
            canvas.ids.paste(OUT_OF_ROI, box)


def finish(picture: Image.Image, grade: Grade, *, soften: bool) -> np.ndarray:
    """What lens and sensor do: a soft edge, a vignette, a color curve, noise.

    Args:
        picture: RGB.
        grade: The camera's color curve.
        soften: Mixes each pixel with its neighbor, for a picture that was painted without anti-aliasing.

    Returns:
        uint8 (H, W, 3).
    """
    if soften:
        picture = Image.blend(picture, ImageChops.offset(picture, 1, 0), 0.3)
        picture = Image.blend(picture, ImageChops.offset(picture, 0, 1), 0.3)
    w, h = picture.size
    if grade.vignette:
        x = np.linspace(-1, 1, 64, dtype=np.float32)[None]
        y = np.linspace(-1, 1, 32, dtype=np.float32)[:, None]
        dark = 255 * (1 - grade.vignette * (0.6 * x * x + 0.4 * y * y) ** 1.5)
        veil = Image.fromarray(dark.astype(np.uint8)).resize((w, h), Image.Resampling.BICUBIC)
        picture = ImageChops.multiply(picture, Image.merge("RGB", (veil, veil, veil)))
    curve = [
        int(min(247, max(8, 255 * (gain * v / 255) ** grade.gamma)))
        for gain in grade.gain
        for v in range(256)
    ]  # leaves room for the noise, which wraps
    pixels = np.array(picture.point(curve))
    tile = np.roll(textures.sensor_noise(), grade.noise, axis=(0, 1))
    for top in range(0, h, 512):
        for left in range(0, w, 512):
            part = pixels[top : top + 512, left : left + 512]
            part += tile[: part.shape[0], : part.shape[1]]
    return pixels
