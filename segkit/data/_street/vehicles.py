"""Cars, vans, trucks, buses, trams and caravans: profiles in metres, lofted across and shaded flat."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .canvas import Canvas, Color, Point3

GLASS = (52, 64, 76)
TYRE = (28, 28, 30)


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where a thing stands.

    Attributes:
        lateral: Metres right of the road's line.
        z: Metres ahead.
        yaw: Radians to the left of driving away from us (pi = towards us).
        y: Metres above the road.
    """

    lateral: float
    z: float
    yaw: float = 0.0
    y: float = 0.0


class Frame:
    """A thing's own coordinates (x right, y up, z forward) in the world."""

    def __init__(self, canvas: Canvas, pose: Pose):
        slope = math.atan(2 * canvas.view.curve * pose.z)  # the street's direction at this depth
        self.canvas = canvas
        self.cos, self.sin = math.cos(pose.yaw - slope), math.sin(pose.yaw - slope)
        self.origin = (canvas.bend(pose.lateral, pose.z), pose.y, pose.z)

    def __call__(self, x: float, y: float, z: float) -> Point3:
        ox, oy, oz = self.origin
        return ox + x * self.cos - z * self.sin, oy + y, oz + x * self.sin + z * self.cos

    def face(
        self, points: Sequence[Point3], color: Color, ident: int, inside: Point3, shade: float = 1.0
    ) -> bool:
        """Paints a flat face, given in own coordinates, where it looks towards the camera.

        Args:
            points: At least three corners.
            color: Unlit color.
            ident: Instance id.
            inside: A point on the face's inner side, own coordinates.
            shade: Factor on the light.

        Returns:
            Whether it was seen.
        """
        world = [self(*p) for p in points]
        (ax, ay, az), (bx, by, bz), (cx, cy, cz) = world[0], world[1], world[2]
        nx = (by - ay) * (cz - az) - (bz - az) * (cy - ay)
        ny = (bz - az) * (cx - ax) - (bx - ax) * (cz - az)
        nz = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        ix, iy, iz = self(*inside)
        if nx * (ax - ix) + ny * (ay - iy) + nz * (az - iz) < 0:
            nx, ny, nz = -nx, -ny, -nz
        if nx * ax + ny * (ay - self.canvas.view.height) + nz * az >= 0:
            return False
        size = math.sqrt(nx * nx + ny * ny + nz * nz) or 1.0
        factor = self.canvas.light.factor((nx / size, ny / size, nz / size), shade)
        self.canvas.surface(world, color, ident, factor)
        return True


def _on(quad: Sequence[Point3], left: float, bottom: float, right: float, top: float) -> list[Point3]:
    """A rectangle on a quadrilateral (from the lower left, anticlockwise), as shares of its sides."""

    def at(s: float, t: float) -> Point3:
        a, b, c, d = quad
        return tuple(
            (1 - t) * ((1 - s) * a[i] + s * b[i]) + t * ((1 - s) * d[i] + s * c[i]) for i in range(3)
        )

    return [at(left, bottom), at(right, bottom), at(right, top), at(left, top)]


def _wheel(frame: Frame, side: float, x: float, z: float, radius: float, ident: int, shade: float) -> None:
    ring = [(math.cos(t * math.tau / 14), math.sin(t * math.tau / 14)) for t in range(14)]
    inside = (0.0, radius, z)
    seen = frame.face(
        [(side * x, radius + radius * s, z + radius * c) for c, s in ring], TYRE, ident, inside, shade
    )
    if seen and frame.canvas.pixels(radius, frame.origin[2]) > 4:
        for size, color in ((0.66, (150, 152, 156)), (0.5, (88, 90, 94)), (0.16, (170, 172, 176))):
            frame.face(
                [(side * (x + 0.01), radius + size * radius * s, z + size * radius * c) for c, s in ring],
                color,
                ident,
                inside,
                shade,
            )


@dataclass(frozen=True, kw_only=True)
class CarShape:
    """A car's profile, metres; the cabin's corners as shares of the length, rear (0) to front (1).

    Attributes:
        length, width, height: Of the whole car.
        belt: Height of the windows' lower edge.
        bonnet: Height of the bonnet's front edge.
        cabin: z shares of the rear window's foot and top, the windscreen's top and foot.
    """

    length: float
    width: float
    height: float
    belt: float
    bonnet: float
    cabin: tuple[float, float, float, float]


CARS = {
    "hatchback": CarShape(
        length=3.9, width=1.74, height=1.48, belt=0.93, bonnet=0.78, cabin=(0.01, 0.13, 0.55, 0.76)
    ),
    "saloon": CarShape(
        length=4.6, width=1.80, height=1.44, belt=0.92, bonnet=0.76, cabin=(0.13, 0.28, 0.56, 0.74)
    ),
    "estate": CarShape(
        length=4.7, width=1.80, height=1.48, belt=0.93, bonnet=0.77, cabin=(0.01, 0.08, 0.58, 0.76)
    ),
    "suv": CarShape(
        length=4.5, width=1.88, height=1.70, belt=1.06, bonnet=0.95, cabin=(0.01, 0.09, 0.56, 0.75)
    ),
    "van": CarShape(
        length=5.0, width=1.94, height=2.05, belt=1.15, bonnet=0.98, cabin=(0.0, 0.02, 0.72, 0.90)
    ),
}


def car(
    canvas: Canvas,
    *,
    pose: Pose,
    shape: str,
    color: Color,
    ident: int,
    shade: float = 1.0,
    lit: bool = False,
) -> None:
    """A car. `lit`: brake lights and headlights are on."""
    spec, frame = CARS[shape], Frame(canvas, pose)
    half, w, belt = spec.length / 2, spec.width / 2, spec.belt
    rear_foot, rear_top, front_top, front_foot = (share * spec.length - half for share in spec.cabin)
    top, floor = spec.height, 0.24
    inside = (0.0, 0.55, 0.0)
    size = canvas.pixels(spec.height, pose.z)
    dark = tuple(int(c * 0.55) for c in color)

    # the underside in shadow, then wheels half behind the sills
    outline = [
        (-half, floor),
        (-half + 0.05, belt - 0.03),
        (rear_foot, belt),
        (front_foot, belt),
        (half - 0.12, spec.bonnet),
        (half, 0.5),
        (half - 0.04, floor),
    ]
    radius = 0.17 * spec.height / 1.48 + 0.15
    for side in (-1.0, 1.0):
        frame.face(
            [
                (side * (w - 0.25), 0.05, -half + 0.2),
                (side * (w - 0.25), 0.05, half - 0.2),
                (side * (w - 0.25), 0.4, half - 0.2),
                (side * (w - 0.25), 0.4, -half + 0.2),
            ],
            (18, 18, 20),
            ident,
            inside,
            0.5,
        )
    for end in (-half + 0.1, half - 0.1):
        frame.face(
            [(-w + 0.2, 0.1, end), (w - 0.2, 0.1, end), (w - 0.2, 0.4, end), (-w + 0.2, 0.4, end)],
            (18, 18, 20),
            ident,
            inside,
            0.5,
        )
    for end in (-1.0, 1.0):  # the axle's far ends seen from behind or ahead
        for side in (-1.0, 1.0):
            x0, x1, z = side * (w - 0.05), side * (w - 0.27), end * (half - 0.75)
            near = z + math.copysign(radius * 0.8, z)
            frame.face(
                [(x0, 0.0, near), (x1, 0.0, near), (x1, 0.4, near), (x0, 0.4, near)], TYRE, ident, inside, 0.7
            )

    for (z0, y0), (z1, y1) in pairwise(outline):
        frame.face([(-w, y0, z0), (w, y0, z0), (w, y1, z1), (-w, y1, z1)], color, ident, inside, shade)
    for side in (-1.0, 1.0):
        seen = frame.face([(side * w, y, z) for z, y in outline], color, ident, inside, shade)
        if seen and size > 9:
            frame.face(
                [
                    (side * w, floor, -half + 0.1),
                    (side * w, floor, half - 0.1),
                    (side * w, 0.38, half - 0.1),
                    (side * w, 0.38, -half + 0.1),
                ],
                dark,
                ident,
                inside,
                shade,
            )
            if size > 40:  # a crease that catches the light, and the doors' gaps
                crease = belt - 0.13
                bright = tuple(min(255, int(c * 1.18) + 10) for c in color)
                frame.face(
                    [
                        (side * w, crease, -half + 0.1),
                        (side * w, crease, front_foot),
                        (side * w, crease + 0.04, front_foot),
                        (side * w, crease + 0.04, -half + 0.1),
                    ],
                    bright,
                    ident,
                    inside,
                    shade,
                )
                for z in (rear_top + 0.55, (rear_top + front_top) / 2 + 0.15, front_foot - 0.12):
                    frame.face(
                        [
                            (side * w, 0.36, z),
                            (side * w, 0.36, z + 0.025),
                            (side * w, belt, z + 0.025),
                            (side * w, belt, z),
                        ],
                        dark,
                        ident,
                        inside,
                        shade,
                    )
        for z in (-half + 0.78, half - 0.78):
            _wheel(frame, side, w + 0.01, z, radius, ident, shade)

    # the cabin narrows towards the roof
    foot, roof = w - 0.04, w - 0.04 - 0.32 * (top - belt)
    cabin_inside = (0.0, belt, (rear_top + front_top) / 2)
    rear = [
        (-foot, belt, rear_foot),
        (foot, belt, rear_foot),
        (roof, top - 0.04, rear_top),
        (-roof, top - 0.04, rear_top),
    ]
    front = [
        (foot, belt, front_foot),
        (-foot, belt, front_foot),
        (-roof, top - 0.04, front_top),
        (roof, top - 0.04, front_top),
    ]
    middle = (rear_top + front_top) / 2
    frame.face(
        [
            (-roof, top - 0.04, rear_top),
            (roof, top - 0.04, rear_top),
            (roof * 0.9, top, middle),
            (-roof * 0.9, top, middle),
        ],
        color,
        ident,
        cabin_inside,
        shade,
    )
    frame.face(
        [
            (-roof * 0.9, top, middle),
            (roof * 0.9, top, middle),
            (roof, top - 0.04, front_top),
            (-roof, top - 0.04, front_top),
        ],
        color,
        ident,
        cabin_inside,
        shade,
    )
    for screen in (rear, front):
        if frame.face(screen, color, ident, cabin_inside, shade):
            frame.face(_on(screen, 0.07, 0.06, 0.93, 0.90), GLASS, ident, cabin_inside, 1.0)
            if size > 25:
                sheen = (96, 112, 128)
                frame.face(_on(screen, 0.12, 0.55, 0.62, 0.86), sheen, ident, cabin_inside, 1.0)
                if screen is front or size > 60:  # headrests
                    for s in (0.28, 0.72):
                        frame.face(
                            _on(screen, s - 0.08, 0.1, s + 0.08, 0.45), (30, 32, 36), ident, cabin_inside, 1.0
                        )
    for side in (-1.0, 1.0):
        pane = [
            (side * foot, belt, rear_foot),
            (side * foot, belt, front_foot),
            (side * roof, top - 0.04, front_top),
            (side * roof, top - 0.04, rear_top),
        ]
        if frame.face(pane, color, ident, cabin_inside, shade):
            windows = ((0.10, 0.50), (0.53, 0.90)) if shape != "van" else ((0.58, 0.93),)
            for s0, s1 in windows:
                frame.face(_on(pane, s0, 0.08, s1, 0.84), GLASS, ident, cabin_inside, 1.0)
                if size > 40:
                    frame.face(
                        _on(pane, s0 + 0.02, 0.5, s0 + 0.6 * (s1 - s0), 0.8),
                        (92, 106, 120),
                        ident,
                        cabin_inside,
                        1.0,
                    )
        if size > 30:  # mirrors
            z = front_foot - 0.25
            for points in (
                [
                    (side * w, belt, z),
                    (side * (w + 0.2), belt, z),
                    (side * (w + 0.2), belt + 0.16, z),
                    (side * w, belt + 0.16, z),
                ],
            ):
                frame.face(points, dark, ident, (0.0, belt, z + 0.1), shade)
                frame.face(points, dark, ident, (0.0, belt, z - 0.1), shade)
    _car_ends(frame, spec, ident, shade, size, lit)


def _car_ends(frame: Frame, spec: CarShape, ident: int, shade: float, size: float, lit: bool) -> None:
    """Lights, plates, grille and bumpers."""
    if size < 7:
        return
    half, w, inside = spec.length / 2, spec.width / 2, (0.0, 0.55, 0.0)
    rear = [
        (-w, 0.24, -half),
        (w, 0.24, -half),
        (w, spec.belt - 0.03, -half + 0.05),
        (-w, spec.belt - 0.03, -half + 0.05),
    ]
    front = [(w, 0.24, half), (-w, 0.24, half), (-w, spec.bonnet, half - 0.12), (w, spec.bonnet, half - 0.12)]
    red = (235, 40, 34) if lit else (165, 26, 28)
    white = (255, 252, 235) if lit else (205, 210, 215)
    marks = [
        (rear, (0.02, 0.58, 0.17, 0.88), red),
        (rear, (0.83, 0.58, 0.98, 0.88), red),
        (rear, (0.37, 0.42, 0.63, 0.58), (226, 226, 214)),
        (rear, (0.05, 0.02, 0.95, 0.22), (42, 42, 46)),
        (front, (0.03, 0.52, 0.22, 0.80), white),
        (front, (0.78, 0.52, 0.97, 0.80), white),
        (front, (0.28, 0.44, 0.72, 0.70), (34, 35, 38)),
        (front, (0.37, 0.22, 0.63, 0.36), (226, 226, 214)),
        (front, (0.08, 0.02, 0.92, 0.18), (40, 40, 44)),
    ]
    for quad, box, color in marks:
        frame.face(_on(quad, *box), color, ident, inside, max(shade, 1.0) if lit else shade)


def _block(
    frame: Frame,
    x: float,
    floor: float,
    top: float,
    z0: float,
    z1: float,
    color: Color,
    ident: int,
    shade: float,
) -> dict[str, list[Point3]]:
    """A box; returns its seen faces as quadrilaterals (lower left, lower right, upper right, upper left)."""
    inside = (0.0, (floor + top) / 2, (z0 + z1) / 2)
    faces = {
        "roof": [(-x, top, z0), (x, top, z0), (x, top, z1), (-x, top, z1)],
        "rear": [(-x, floor, z0), (x, floor, z0), (x, top, z0), (-x, top, z0)],
        "front": [(x, floor, z1), (-x, floor, z1), (-x, top, z1), (x, top, z1)],
        "left": [(-x, floor, z1), (-x, floor, z0), (-x, top, z0), (-x, top, z1)],
        "right": [(x, floor, z0), (x, floor, z1), (x, top, z1), (x, top, z0)],
    }
    return {name: quad for name, quad in faces.items() if frame.face(quad, color, ident, inside, shade)}


def _mark(
    frame: Frame, quad: Sequence[Point3], box: tuple[float, ...], color: Color, ident: int, shade: float
) -> None:
    """A rectangle on a face that is seen."""
    world = [frame(*p) for p in _on(quad, *box)]
    normal = frame(*quad[1]), frame(*quad[0])
    along = (normal[0][0] - normal[1][0], normal[0][2] - normal[1][2])
    size = math.hypot(*along) or 1.0
    factor = frame.canvas.light.factor((along[1] / size, 0.0, -along[0] / size), shade)
    frame.canvas.surface(world, color, ident, factor)


def _panes(
    frame: Frame,
    quad: Sequence[Point3],
    count: int,
    bottom: float,
    top: float,
    ident: int,
    glass: Color = GLASS,
) -> None:
    """A row of windows along a face."""
    _mark(frame, quad, (0.015, bottom, 0.985, top), (24, 28, 32), ident, 1.0)
    for k in range(count):
        left, right = 0.02 + 0.96 * k / count, 0.02 + 0.96 * (k + 1) / count
        _mark(frame, quad, (left + 0.004, bottom + 0.015, right - 0.004, top - 0.015), glass, ident, 1.0)
        wide = right - left
        _mark(
            frame,
            quad,
            (left + 0.15 * wide, bottom + 0.6 * (top - bottom), left + 0.6 * wide, top - 0.03),
            tuple(min(255, c + 34) for c in glass),
            ident,
            1.0,
        )


def bus(
    canvas: Canvas,
    *,
    pose: Pose,
    length: float,
    color: Color,
    trim: Color,
    ident: int,
    shade: float = 1.0,
) -> None:
    """A city bus, 3.05 m high and 2.55 m wide."""
    frame = Frame(canvas, pose)
    half, x = length / 2, 1.275
    _block(frame, x - 0.2, 0.08, 0.4, -half + 0.3, half - 0.3, (20, 20, 22), ident, 0.5)
    seen = _block(frame, x, 0.32, 3.05, -half, half, color, ident, shade)
    for name in ("left", "right"):
        if name not in seen:
            continue
        quad = seen[name]
        _mark(frame, quad, (0.0, 0.0, 1.0, 0.13), trim, ident, shade)
        _panes(frame, quad, max(4, round(length / 1.7)), 0.40, 0.80, ident)
        doors = (0.20, 0.52, 0.88) if name == "right" else ()  # right-hand traffic
        for s in doors:
            _mark(frame, quad, (s - 0.045, 0.04, s + 0.045, 0.80), (30, 34, 38), ident, 1.0)
            for left, right in ((s - 0.04, s - 0.004), (s + 0.004, s + 0.04)):
                _mark(frame, quad, (left, 0.07, right, 0.77), GLASS, ident, 1.1)
        side = -1.0 if name == "left" else 1.0
        for z in (-half + 0.25 * length, half - 0.2 * length):
            _wheel(frame, side, x + 0.01, z, 0.48, ident, shade)
    if "front" in seen:
        quad = seen["front"]
        _mark(frame, quad, (0.05, 0.30, 0.95, 0.84), (40, 50, 60), ident, 1.0)
        _mark(frame, quad, (0.10, 0.58, 0.55, 0.80), (92, 108, 122), ident, 1.0)
        _mark(frame, quad, (0.15, 0.87, 0.85, 0.97), (22, 22, 24), ident, 1.0)
        _mark(frame, quad, (0.22, 0.90, 0.78, 0.945), (250, 170, 40), ident, 1.2)
        for s in (0.06, 0.80):
            _mark(frame, quad, (s, 0.08, s + 0.14, 0.16), (245, 244, 230), ident, 1.2)
        _mark(frame, quad, (0.0, 0.0, 1.0, 0.05), (40, 40, 42), ident, shade)
    if "rear" in seen:
        quad = seen["rear"]
        _mark(frame, quad, (0.08, 0.50, 0.92, 0.86), (34, 40, 46), ident, 1.0)
        _mark(frame, quad, (0.14, 0.70, 0.60, 0.83), (84, 98, 110), ident, 1.0)
        _mark(frame, quad, (0.30, 0.89, 0.70, 0.96), (250, 170, 40), ident, 1.1)
        _mark(frame, quad, (0.12, 0.14, 0.88, 0.42), tuple(int(c * 0.8) for c in color), ident, shade)
        for t in (0.17, 0.23, 0.29, 0.35):
            _mark(frame, quad, (0.2, t, 0.8, t + 0.02), tuple(int(c * 0.5) for c in color), ident, shade)
        for s in (0.02, 0.90):
            _mark(frame, quad, (s, 0.12, s + 0.08, 0.40), (180, 28, 28), ident, 1.1)
        _mark(frame, quad, (0.40, 0.05, 0.60, 0.10), (226, 226, 214), ident, 1.0)


def truck(
    canvas: Canvas,
    *,
    pose: Pose,
    length: float,
    height: float,
    color: Color,
    box: Color,
    ident: int,
    shade: float = 1.0,
) -> None:
    """A delivery truck: a cab of 2 m and a box of the rest."""
    frame = Frame(canvas, pose)
    half, x = length / 2, 1.2
    cab = half - 2.0
    _block(frame, x - 0.25, 0.2, 1.0, -half + 0.1, half - 0.2, (30, 30, 32), ident, 0.6)

    def front_part() -> None:
        seen = _block(frame, x - 0.05, 0.45, min(2.75, height - 0.3), cab + 0.1, half, color, ident, shade)
        for name in ("left", "right"):
            if name in seen:
                _mark(frame, seen[name], (0.25, 0.50, 0.80, 0.86), GLASS, ident, 1.0)
        if "front" in seen:
            quad = seen["front"]
            _mark(frame, quad, (0.06, 0.48, 0.94, 0.90), (42, 52, 62), ident, 1.0)
            _mark(frame, quad, (0.12, 0.66, 0.55, 0.86), (92, 108, 122), ident, 1.0)
            _mark(frame, quad, (0.2, 0.16, 0.8, 0.40), (40, 42, 46), ident, 1.0)
            for s in (0.04, 0.82):
                _mark(frame, quad, (s, 0.10, s + 0.14, 0.2), (245, 244, 230), ident, 1.2)

    def box_part() -> None:
        seen = _block(frame, x, 0.95, height, -half, cab, box, ident, shade)
        for name in ("left", "right"):
            if name in seen:
                _mark(frame, seen[name], (0.0, 0.0, 1.0, 0.05), (90, 92, 96), ident, shade)
                _mark(frame, seen[name], (0.14, 0.35, 0.86, 0.66), color, ident, shade)
                _mark(frame, seen[name], (0.20, 0.46, 0.70, 0.55), box, ident, shade)
        if "rear" in seen:
            quad = seen["rear"]
            _mark(frame, quad, (0.03, 0.03, 0.97, 0.97), tuple(int(c * 0.9) for c in box), ident, shade)
            _mark(frame, quad, (0.495, 0.02, 0.505, 0.98), (70, 72, 76), ident, shade)
            for s in (0.38, 0.60):
                _mark(frame, quad, (s, 0.05, s + 0.012, 0.95), (120, 122, 126), ident, shade)

    away = math.cos(pose.yaw) > 0  # the nearer part is painted last
    for part in (front_part, box_part) if away else (box_part, front_part):
        part()
    for side in (-1.0, 1.0):
        for z in (-half + 0.22 * length, half - 0.9):
            _wheel(frame, side, x + 0.01, z, 0.48, ident, shade)
    rear = [
        (-x, 0.4, -half - 0.02),
        (x, 0.4, -half - 0.02),
        (x, 0.75, -half - 0.02),
        (-x, 0.75, -half - 0.02),
    ]
    if frame.face(rear, (44, 44, 48), ident, (0.0, 0.6, 0.0), shade):
        for s in (0.02, 0.83):
            _mark(frame, rear, (s, 0.3, s + 0.15, 0.8), (190, 30, 30), ident, 1.1)
        _mark(frame, rear, (0.40, 0.2, 0.60, 0.7), (226, 226, 214), ident, 1.0)


def tram(
    canvas: Canvas,
    *,
    pose: Pose,
    cars: int,
    color: Color,
    trim: Color,
    ident: int,
    shade: float = 1.0,
) -> None:
    """A tram of sections 8 m long: Cityscapes' class `train`."""
    section = 8.0
    order = range(cars) if math.cos(pose.yaw) < 0 else range(cars - 1, -1, -1)
    total = cars * section
    frame = Frame(canvas, pose)
    for k in order:
        z0 = -total / 2 + k * section
        z1 = z0 + section - 0.35
        if k < cars - 1:
            _block(frame, 1.0, 0.5, 3.0, z1, z1 + 0.35, (34, 34, 38), ident, 0.8)
        _block(frame, 1.1, 0.1, 0.4, z0 + 0.2, z1 - 0.2, (26, 26, 28), ident, 0.6)
        seen = _block(frame, 1.25, 0.3, 3.35, z0, z1, color, ident, shade)
        for name in ("left", "right"):
            if name not in seen:
                continue
            quad = seen[name]
            _mark(frame, quad, (0.0, 0.0, 1.0, 0.16), trim, ident, shade)
            _mark(frame, quad, (0.0, 0.86, 1.0, 0.93), trim, ident, shade)
            _panes(frame, quad, 5, 0.42, 0.80, ident)
            _mark(frame, quad, (0.40, 0.03, 0.58, 0.82), (40, 44, 48), ident, 1.0)
            for left, right in ((0.41, 0.485), (0.495, 0.57)):
                _mark(frame, quad, (left, 0.06, right, 0.80), (60, 74, 86), ident, 1.0)
        for name in ("front", "rear"):
            if name in seen and (k == cars - 1 if name == "front" else k == 0):
                quad = seen[name]
                _mark(frame, quad, (0.0, 0.0, 1.0, 0.16), trim, ident, shade)
                _mark(frame, quad, (0.07, 0.34, 0.93, 0.80), (38, 48, 58), ident, 1.0)
                _mark(frame, quad, (0.14, 0.56, 0.55, 0.76), (88, 104, 118), ident, 1.0)
                _mark(frame, quad, (0.2, 0.84, 0.8, 0.95), (20, 20, 22), ident, 1.0)
                _mark(frame, quad, (0.3, 0.87, 0.7, 0.92), (250, 176, 46), ident, 1.2)
                for s in (0.08, 0.80):
                    light = (250, 248, 230) if name == "front" else (200, 34, 30)
                    _mark(frame, quad, (s, 0.19, s + 0.12, 0.26), light, ident, 1.2)
    joint, tip = frame(0.0, 3.4, 0.0), frame(0.0, 4.7, 0.6)
    knee = frame(0.0, 4.1, -0.8)
    canvas.limb(joint, knee, 0.04, 0.04, (60, 60, 64), ident)
    canvas.limb(knee, tip, 0.04, 0.04, (60, 60, 64), ident)
    canvas.limb(frame(-0.7, 4.7, 0.6), frame(0.7, 4.7, 0.6), 0.04, 0.04, (60, 60, 64), ident)


def trailer(
    canvas: Canvas,
    *,
    pose: Pose,
    caravan: bool,
    color: Color,
    ident: int,
    shade: float = 1.0,
) -> None:
    """A parked caravan or a low trailer, both ignored by the 19 classes."""
    frame = Frame(canvas, pose)
    long, top = (2.6, 2.5) if caravan else (1.6, 1.2)
    _block(frame, 0.8, 0.2, 0.6, -long + 0.2, long - 0.2, (34, 34, 36), ident, 0.6)
    seen = _block(frame, 1.05, 0.45, top, -long, long, color, ident, shade)
    for name, quad in seen.items():
        if name == "roof":
            continue
        if caravan:
            _mark(frame, quad, (0.0, 0.22, 1.0, 0.30), (150, 90, 60), ident, shade)
            _mark(frame, quad, (0.2, 0.52, 0.8, 0.82), GLASS, ident, 1.0)
        else:
            _mark(frame, quad, (0.0, 0.45, 1.0, 0.52), (60, 62, 66), ident, shade)
    for side in (-1.0, 1.0):
        _wheel(frame, side, 1.06, 0.0, 0.33, ident, shade)
