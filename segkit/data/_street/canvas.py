"""A pinhole camera and a canvas that paints a picture and its ids with the very same strokes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Color = tuple[int, int, int]
Point3 = tuple[float, float, float]  # metres: X to the right, Y up from the road, Z ahead
Point2 = tuple[float, float]  # pixels: to the right and down

NEAR = 1.2  # metres; nothing nearer is projected


@dataclass(frozen=True, kw_only=True)
class View:
    """Where the camera is. Lengths in the picture are in picture heights, so a view fits every size.

    Attributes:
        focal: Focal length.
        horizon: The horizon's distance from the picture's top.
        shift: How far right of the centre the straight-ahead point lies.
        height: Camera above the road, metres.
        curve: The road's bend: what is `l` metres right of the road's line stands at X = l + curve * Z**2.
    """

    focal: float
    horizon: float
    shift: float
    height: float
    curve: float

    def bend(self, lateral: float, z: float) -> float:
        """X of what stands `lateral` metres right of the road's line at depth `z`."""
        return lateral + self.curve * z * z


@dataclass(frozen=True, kw_only=True)
class Light:
    """Sun, sky and haze of a scene.

    Attributes:
        sun: Unit vector towards the sun.
        direct: Color of what the sun adds to a surface that faces it.
        ambient: Color of what reaches every surface.
        haze: Color that far things fade to (0..255).
        haze_length: Metres after which a thing has kept 1/e of its own color.
        shadow: What a cast shadow leaves of the light, 0..1; 1 = no cast shadows (overcast).
    """

    sun: Point3
    direct: tuple[float, float, float]
    ambient: tuple[float, float, float]
    haze: Color
    haze_length: float
    shadow: float

    def factor(self, normal: Point3, shade: float = 1.0) -> tuple[float, float, float]:
        """What a surface with this unit normal multiplies its color by."""
        x, y, z = normal
        sun = max(0.0, x * self.sun[0] + y * self.sun[1] + z * self.sun[2])
        up = 0.82 + 0.18 * y  # the sky lights what looks up
        (ar, ag, ab), (dr, dg, db) = self.ambient, self.direct
        return shade * (ar * up + dr * sun), shade * (ag * up + dg * sun), shade * (ab * up + db * sun)

    def tone(self, color: Color, factor: Sequence[float], z: float) -> Color:
        """A surface's color as the camera sees it from `z` metres."""
        keep = math.exp(-z / self.haze_length)
        (r, g, b), (fr, fg, fb), (hr, hg, hb) = color, factor, self.haze
        return (
            int(min(255.0, r * fr) * keep + hr * (1 - keep)),
            int(min(255.0, g * fg) * keep + hg * (1 - keep)),
            int(min(255.0, b * fb) * keep + hb * (1 - keep)),
        )

    def tables(self, factor: Sequence[float], z: float) -> list[int]:
        """`tone` for whole RGB pictures: a lookup table for `Image.point`."""
        keep = math.exp(-z / self.haze_length)
        lit = np.minimum(255, np.arange(256) * np.array(factor)[:, None]) * keep  # (3, 256)
        return (lit + np.array(self.haze)[:, None] * (1 - keep)).astype(int).ravel().tolist()


class Canvas:
    """Picture and ids of one size. Every stroke paints both: no pixel's id differs from what it shows.

    Args:
        size: (H, W) in pixels.
        view: The camera.
        light: The light.

    Attributes:
        image: RGB picture.
        ids: Mode I picture of Cityscapes instance ids (`id * 1000 + k`, or `id` without instances).
        focal, cx, cy: The camera in pixels.
    """

    def __init__(self, size: tuple[int, int], view: View, light: Light):
        self.height, self.width = size
        self.view, self.light = view, light
        self.focal = view.focal * self.height
        self.cx = self.width / 2 + view.shift * self.height
        self.cy = view.horizon * self.height
        self.image = Image.new("RGB", (self.width, self.height))
        self.ids = Image.new("I", (self.width, self.height))
        self._draw, self._draw_ids = ImageDraw.Draw(self.image), ImageDraw.Draw(self.ids)

    # -- projection

    def project(self, point: Point3) -> Point2:
        """Pixel of a point."""
        scale = self.focal / max(NEAR, point[2])
        return self.cx + scale * point[0], self.cy + scale * (self.view.height - point[1])

    def pixels(self, metres: float, z: float) -> float:
        """How many pixels a length has at depth `z`."""
        return metres * self.focal / max(NEAR, z)

    def bend(self, lateral: float, z: float) -> float:
        """X of what stands `lateral` metres right of the road's line at depth `z`."""
        return lateral + self.view.curve * z * z

    # -- strokes in pixels

    def polygon(self, points: Sequence[Point2], color: Color, ident: int) -> None:
        """Fills a polygon given in pixels."""
        self._draw.polygon(points, fill=color)
        self._draw_ids.polygon(points, fill=ident)

    def ellipse(self, u: float, v: float, ru: float, rv: float, color: Color, ident: int) -> None:
        """Fills an upright ellipse given in pixels."""
        box = (u - ru, v - rv, u + ru, v + rv)
        self._draw.ellipse(box, fill=color)
        self._draw_ids.ellipse(box, fill=ident)

    def _visible_box(self, points: Sequence[Point2]) -> tuple[int, int, int, int] | None:
        left = max(0, math.floor(min(p[0] for p in points)))
        top = max(0, math.floor(min(p[1] for p in points)))
        right = min(self.width, math.ceil(max(p[0] for p in points)) + 1)
        bottom = min(self.height, math.ceil(max(p[1] for p in points)) + 1)
        return (left, top, right, bottom) if left < right and top < bottom else None

    def veil(self, points: Sequence[Point2], color: Color, opacity: float, ident: int) -> None:
        """Tints a polygon that one sees through, yet labels it, as Cityscapes does with wheels and fences."""
        box = self._visible_box(points)
        if box is None:
            return
        mask = Image.new("L", (box[2] - box[0], box[3] - box[1]))
        ImageDraw.Draw(mask).polygon([(u - box[0], v - box[1]) for u, v in points], fill=int(255 * opacity))
        self.image.paste(color, box, mask)
        self._draw_ids.polygon(points, fill=ident)

    def line(self, points: Sequence[Point2], width: float, color: Color, ident: int) -> None:
        """A line through pixels, at least one pixel wide."""
        thick = max(1, round(width))
        self._draw.line(points, fill=color, width=thick)
        self._draw_ids.line(points, fill=ident, width=thick)

    def sprite(
        self,
        sizes: Sequence[tuple[Image.Image, Image.Image]],
        box: Sequence[float],
        ramp: tuple[bytes, ...],
        ident: int,
        flip: bool = False,
    ) -> None:
        """Paints shaded leaves into a box.

        Args:
            sizes: (shade, mask) pairs of the same sprite, the finest first.
            box: left, top, right, bottom in pixels.
            ramp: Three tables of 256 bytes: shade to R, G and B.
            ident: Id where the mask is more than half.
            flip: Mirrored.
        """
        left, top, right, bottom = box
        seen = self._visible_box(((left, top), (right - 1, bottom - 1)))
        if seen is None or right - left < 1 or bottom - top < 1:
            return
        wide, high = right - left, bottom - top
        shade, mask = next((pair for pair in reversed(sizes) if pair[0].width >= 0.8 * wide), sizes[0])
        if flip:
            shade = shade.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        n = shade.width
        source = (
            max(0.0, (seen[0] - left) / wide * n),
            max(0.0, (seen[1] - top) / high * n),
            min(float(n), (seen[2] - left) / wide * n),
            min(float(n), (seen[3] - top) / high * n),
        )
        if source[2] - source[0] < 1 or source[3] - source[1] < 1:
            return
        size = (seen[2] - seen[0], seen[3] - seen[1])
        shade = shade.resize(size, Image.Resampling.BILINEAR, box=source)
        mask = mask.resize(size, Image.Resampling.BILINEAR, box=source)
        # bytes.translate is far quicker than Image.point for the many small ones
        mask, data = Image.frombytes("L", size, mask.tobytes().translate(_HALF)), shade.tobytes()
        leaves = Image.merge("RGB", [Image.frombytes("L", size, data.translate(table)) for table in ramp])
        self.image.paste(leaves, seen, mask)
        self.ids.paste(ident, seen, mask)

    # -- strokes in metres

    def surface(self, corners: Sequence[Point3], color: Color, ident: int, factor: Sequence[float]) -> None:
        """Fills a polygon given in metres with one color under one light factor."""
        z = sum(c[2] for c in corners) / len(corners)
        self.polygon([self.project(c) for c in corners], self.light.tone(color, factor, z), ident)

    def limb(
        self,
        start: Point3,
        end: Point3,
        r0: float,
        r1: float,
        color: Color,
        ident: int,
        shade: float = 1.0,
    ) -> None:
        """A round stick between two points with radii `r0` and `r1` metres (a pole, an arm, a tube)."""
        (u0, v0), (u1, v1) = self.project(start), self.project(end)
        w0, w1 = self.pixels(r0, start[2]), self.pixels(r1, end[2])
        du, dv = u1 - u0, v1 - v0
        length = math.hypot(du, dv) or 1.0
        nu, nv = -dv / length, du / length
        tone = self.light.tone(color, self.light.factor((0.0, 0.3, -0.95), shade), start[2])
        self.polygon(
            [
                (u0 + nu * w0, v0 + nv * w0),
                (u1 + nu * w1, v1 + nv * w1),
                (u1 - nu * w1, v1 - nv * w1),
                (u0 - nu * w0, v0 - nv * w0),
            ],
            tone,
            ident,
        )
        if w0 > 1.5:
            self.ellipse(u0, v0, w0, w0, tone, ident)
        if w1 > 1.5:
            self.ellipse(u1, v1, w1, w1, tone, ident)

    def textured(
        self,
        texture: Image.Image,
        corners: Sequence[Point3],
        ident: int,
        fill: Color,
        mask: Image.Image | None = None,
    ) -> None:
        """Maps a texture onto a flat quadrilateral in perspective.

        Args:
            texture: RGB, already lit.
            corners: Of the texture: upper left, upper right, lower right, lower left.
            ident: Id of the whole quadrilateral (see-through parts too).
            fill: Color just beyond the texture's edge.
            mask: L, where the texture is opaque (None = everywhere).
        """
        points = [self.project(c) for c in corners]
        box = self._visible_box(points)
        if box is None:
            return
        size = (box[2] - box[0], box[3] - box[1])
        local = [(u - box[0], v - box[1]) for u, v in points]
        cover = Image.new("L", size)
        ImageDraw.Draw(cover).polygon(local, fill=255)
        matrix = homography(local, texture.size)
        if matrix is None:  # seen edge-on
            return
        how = {"method": Image.Transform.PERSPECTIVE, "data": matrix, "resample": Image.Resampling.BILINEAR}
        painted = texture.transform(size, **how, fillcolor=fill)
        self.ids.paste(ident, box, cover)
        if mask is not None:
            opaque = mask.transform(size, **how)
            cover = Image.composite(opaque, cover, cover)
        self.image.paste(painted, box, cover)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The picture (H, W, 3) uint8 and the ids (H, W) int32."""
        return np.asarray(self.image), np.asarray(self.ids)


_HALF = bytes([0] * 128 + [255] * 128)


def homography(corners: Sequence[Point2], size: tuple[int, int]) -> tuple[float, ...] | None:
    """The eight numbers with which `Image.transform` maps a picture of `size` (W, H) onto a quadrilateral.

    Square to quadrilateral in closed form, then inverted by its adjugate: no linear-algebra library is asked.

    Args:
        corners: Pixels of the upper left, upper right, lower right and lower left corner.
        size: Of the picture to be mapped.

    Returns:
        (a, ..., h), or None for a quadrilateral without an area.
    """
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners
    dx1, dx2, dx3 = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
    dy1, dy2, dy3 = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
    area = dx1 * dy2 - dx2 * dy1
    if abs(area) < 1e-6:
        return None
    g = (dx3 * dy2 - dx2 * dy3) / area
    h = (dx1 * dy3 - dx3 * dy1) / area
    a, b, c = x1 - x0 + g * x1, x3 - x0 + h * x3, x0
    d, e, f = y1 - y0 + g * y1, y3 - y0 + h * y3, y0
    # adjugate of ((a, b, c), (d, e, f), (g, h, 1)): from pixels to the unit square
    inverse = (
        e - f * h,
        c * h - b,
        b * f - c * e,
        f * g - d,
        a - c * g,
        c * d - a * f,
        d * h - e * g,
        b * g - a * h,
        a * e - b * d,
    )
    if abs(inverse[8]) < 1e-12:
        return None
    w, t = (size[0] - 1) / inverse[8], (size[1] - 1) / inverse[8]
    last = [value / inverse[8] for value in inverse[6:8]]
    # half a texel inside the border, where bilinear interpolation still has four neighbors
    first = [w * v for v in inverse[:3]]
    second = [t * v for v in inverse[3:6]]
    return (
        first[0] + 0.5 * last[0],
        first[1] + 0.5 * last[1],
        first[2] + 0.5,
        second[0] + 0.5 * last[0],
        second[1] + 0.5 * last[1],
        second[2] + 0.5,
        *last,
    )
