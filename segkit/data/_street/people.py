"""Pedestrians, riders, bicycles and motorcycles: jointed sticks in metres, seen from any side."""

import math
from dataclasses import dataclass

from .canvas import Canvas, Color, Point3
from .vehicles import Frame, Pose


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a person wears.

    Attributes:
        height: Metres.
        skin, hair, jacket, trousers, shoes: Colors.
        coat: Whether the jacket reaches the knees.
        bag: Color of a rucksack, or None.
        helmet: Color of a helmet, or None.
    """

    height: float
    skin: Color
    hair: Color
    jacket: Color
    trousers: Color
    shoes: Color
    coat: bool = False
    bag: Color | None = None
    helmet: Color | None = None


def _head_and_torso(
    frame: Frame,
    look: Look,
    hip: Point3,
    neck: Point3,
    ident: int,
    shade: float,
) -> None:
    canvas, h = frame.canvas, look.height
    facing = abs(frame.cos)  # 1: seen from behind or ahead, 0: from the side
    shoulder, waist = (0.065 + 0.055 * facing) * h, (0.055 + 0.025 * facing) * h
    start, end = frame(*hip), frame(neck[0], neck[1] - 0.05 * h, neck[2])
    canvas.limb(start, end, waist, shoulder, look.jacket, ident, shade)
    if look.bag and frame.cos > -0.2:
        low = frame(hip[0], hip[1] + 0.12 * h, hip[2] - 0.08 * h)
        high = frame(neck[0], neck[1] - 0.08 * h, neck[2] - 0.09 * h)
        canvas.limb(low, high, 0.07 * h, 0.075 * h, look.bag, ident, shade)
    head = frame(neck[0], neck[1] + 0.085 * h, neck[2] + 0.01 * h)
    canvas.limb(frame(*neck), head, 0.03 * h, 0.03 * h, look.skin, ident, shade)
    u, v = canvas.project(head)
    r = max(0.6, canvas.pixels(0.062 * h, head[2]))
    light = canvas.light
    factor = light.factor((0.0, 0.4, -0.9), shade)
    canvas.ellipse(u, v, r * 0.88, r * 1.1, light.tone(look.skin, factor, head[2]), ident)
    top = look.helmet or look.hair
    tone = light.tone(top, factor, head[2])
    if frame.cos > 0.3 or r < 2:  # from behind: hair only
        canvas.ellipse(u, v - 0.15 * r, r * 0.95, r * 1.05, tone, ident)
    else:
        canvas.ellipse(u, v - 0.5 * r, r * 0.97, r * 0.72, tone, ident)
        if frame.cos > -0.5:
            canvas.ellipse(u + math.copysign(0.4 * r, frame.sin), v - 0.1 * r, r * 0.6, r * 0.9, tone, ident)


def person(canvas: Canvas, *, pose: Pose, look: Look, stride: float, ident: int, shade: float = 1.0) -> None:
    """A pedestrian.

    Args:
        stride: Angle of the leading leg, radians; 0 = standing.
    """
    frame, h = Frame(canvas, pose), look.height
    near_side = 1.0 if frame.sin > 0 else -1.0  # which side of the body looks at us
    hip, neck = (0.0, 0.50 * h, 0.0), (0.0, 0.86 * h, 0.015 * h)
    if canvas.pixels(h, pose.z) < 14:  # too far for arms and knees
        for side in (-1.0, 1.0):
            foot = frame(side * 0.05 * h, 0.0, side * 0.45 * h * math.sin(stride))
            canvas.limb(
                frame(side * 0.04 * h, 0.5 * h, 0.0), foot, 0.05 * h, 0.035 * h, look.trousers, ident, shade
            )
        _head_and_torso(frame, look, hip, neck, ident, shade)
        return
    # own x is to the right when seen from behind, so that side's limbs lie deeper when the body turns left

    def leg(side: float) -> None:
        angle = stride * side
        knee = (side * 0.045 * h, 0.50 * h - 0.245 * h * math.cos(angle), 0.245 * h * math.sin(angle))
        bent = angle - (0.55 * abs(stride) if angle < 0 else 0.0)
        foot = (
            knee[0],
            max(0.03 * h, knee[1] - 0.225 * h * math.cos(bent)),
            knee[2] + 0.225 * h * math.sin(bent),
        )
        tone = 0.88 * shade if side != near_side else shade
        canvas.limb(
            frame(side * 0.04 * h, 0.5 * h, 0.0),
            frame(*knee),
            0.05 * h,
            0.038 * h,
            look.trousers,
            ident,
            tone,
        )
        canvas.limb(frame(*knee), frame(*foot), 0.038 * h, 0.028 * h, look.trousers, ident, tone)
        toe = (foot[0], 0.02 * h, foot[2] + 0.08 * h)
        canvas.limb(
            frame(foot[0], 0.025 * h, foot[2]), frame(*toe), 0.024 * h, 0.02 * h, look.shoes, ident, tone
        )

    def arm(side: float) -> None:
        angle = -0.8 * stride * side
        elbow = (side * 0.125 * h, 0.82 * h - 0.165 * h * math.cos(angle), 0.165 * h * math.sin(angle))
        hand = (
            side * 0.13 * h,
            elbow[1] - 0.145 * h * math.cos(angle + 0.3),
            elbow[2] + 0.145 * h * math.sin(angle + 0.3),
        )
        tone = 0.85 * shade if side != near_side else 0.95 * shade
        canvas.limb(
            frame(side * 0.11 * h, 0.82 * h, 0.0),
            frame(*elbow),
            0.035 * h,
            0.03 * h,
            look.jacket,
            ident,
            tone,
        )
        canvas.limb(frame(*elbow), frame(*hand), 0.03 * h, 0.024 * h, look.jacket, ident, tone)
        canvas.limb(
            frame(*hand),
            frame(hand[0], hand[1] - 0.03 * h, hand[2]),
            0.022 * h,
            0.022 * h,
            look.skin,
            ident,
            tone,
        )

    arm(-near_side)
    leg(-near_side)
    leg(near_side)
    if look.coat:
        canvas.limb(
            frame(0.0, 0.30 * h, 0.0),
            frame(0.0, 0.55 * h, 0.0),
            0.095 * h,
            0.08 * h,
            look.jacket,
            ident,
            shade,
        )
    _head_and_torso(frame, look, hip, neck, ident, shade)
    arm(near_side)


def _wheel(frame: Frame, z: float, radius: float, width: float, ident: int, spokes: bool) -> None:
    """A wheel in the bicycle's plane; between its spokes one sees through, yet it is labeled whole."""
    canvas = frame.canvas
    ring = [(math.cos(t * math.tau / 18), math.sin(t * math.tau / 18)) for t in range(18)]
    outer = [canvas.project(frame(0.0, radius + radius * s, z + radius * c)) for c, s in ring]
    if spokes:
        canvas.veil(outer, (120, 122, 126), 0.25, ident)
    else:
        canvas.polygon(outer, (38, 38, 40), ident)
        rim = [canvas.project(frame(0.0, radius + 0.55 * radius * s, z + 0.55 * radius * c)) for c, s in ring]
        canvas.polygon(rim, (112, 114, 118), ident)
    thick = canvas.pixels(width if abs(frame.sin) > 0.25 else width * 1.3, frame.origin[2]) * 2
    points = [canvas.project(frame(0.0, radius + 0.96 * radius * s, z + 0.96 * radius * c)) for c, s in ring]
    canvas.line([*points, points[0], points[1]], thick, (26, 26, 28), ident)
    if spokes and canvas.pixels(radius, frame.origin[2]) > 30:
        hub = canvas.project(frame(0.0, radius, z))
        for point in points[::2]:
            canvas.line([hub, point], 1, (150, 152, 156), ident)


def bicycle(canvas: Canvas, *, pose: Pose, color: Color, ident: int) -> None:
    """A bicycle, 1.75 m long."""
    frame = Frame(canvas, pose)
    for z in (-0.52, 0.52) if math.cos(pose.yaw) < 0 else (0.52, -0.52):
        _wheel(frame, z, 0.34, 0.022, ident, True)
    bottom, seat, head = (0.0, 0.30, -0.08), (0.0, 0.85, -0.22), (0.0, 0.84, 0.36)
    tubes = [
        (bottom, seat),
        (bottom, head),
        ((0.0, 0.76, -0.2), head),
        ((0.0, 0.34, -0.52), bottom),
        ((0.0, 0.34, -0.52), (0.0, 0.74, -0.19)),
        (head, (0.0, 0.34, 0.52)),
        (head, (0.0, 1.02, 0.33)),
    ]
    for a, b in tubes:
        canvas.limb(frame(*a), frame(*b), 0.022, 0.022, color, ident)
    canvas.limb(frame(-0.28, 1.04, 0.30), frame(0.28, 1.04, 0.30), 0.018, 0.018, (40, 40, 42), ident)
    canvas.limb(frame(0.0, 0.90, -0.36), frame(0.0, 0.90, -0.10), 0.05, 0.025, (34, 30, 28), ident)
    if frame.cos > 0.2:  # mudguard and lamp, seen from behind
        canvas.limb(frame(0.0, 0.2, -0.85), frame(0.0, 0.7, -0.75), 0.03, 0.03, (48, 48, 50), ident)
        canvas.limb(frame(0.0, 0.66, -0.86), frame(0.0, 0.72, -0.86), 0.03, 0.03, (220, 30, 30), ident, 1.3)


def motorcycle(canvas: Canvas, *, pose: Pose, color: Color, ident: int) -> None:
    """A motorcycle, 2.1 m long."""
    frame = Frame(canvas, pose)
    away = math.cos(pose.yaw) >= 0

    def body() -> None:
        dark = tuple(int(c * 0.6) for c in color)
        canvas.limb(frame(0.0, 0.42, -0.15), frame(0.0, 0.42, 0.25), 0.19, 0.17, (62, 62, 66), ident)
        canvas.limb(frame(0.0, 0.66, -0.5), frame(0.0, 0.68, 0.0), 0.11, 0.13, dark, ident)
        canvas.limb(frame(0.0, 0.80, 0.05), frame(0.0, 0.84, 0.34), 0.14, 0.16, color, ident)
        canvas.limb(frame(0.0, 0.76, -0.62), frame(0.0, 0.76, -0.02), 0.09, 0.12, (30, 28, 28), ident)
        canvas.limb(frame(0.0, 0.95, 0.48), frame(0.0, 0.36, 0.72), 0.05, 0.05, (120, 122, 126), ident)
        canvas.limb(frame(-0.36, 1.02, 0.36), frame(0.36, 1.02, 0.36), 0.028, 0.028, (30, 30, 32), ident)
        canvas.limb(frame(0.16, 0.34, -0.75), frame(0.16, 0.32, 0.0), 0.06, 0.05, (160, 162, 166), ident)

    def front() -> None:
        canvas.limb(frame(0.0, 0.84, 0.52), frame(0.0, 0.98, 0.50), 0.17, 0.15, color, ident)
        if not away:
            canvas.limb(
                frame(0.0, 0.90, 0.62), frame(0.0, 0.91, 0.62), 0.10, 0.10, (255, 250, 225), ident, 1.3
            )

    def rear() -> None:
        canvas.limb(frame(0.0, 0.72, -0.82), frame(0.0, 0.84, -0.70), 0.10, 0.10, color, ident)
        if away:
            canvas.limb(
                frame(-0.06, 0.78, -0.92), frame(0.06, 0.78, -0.92), 0.045, 0.045, (215, 30, 28), ident, 1.3
            )
            canvas.limb(
                frame(-0.06, 0.58, -0.93), frame(0.06, 0.58, -0.93), 0.06, 0.06, (224, 224, 212), ident
            )

    order = (0.70, front, body, rear, -0.70) if away else (-0.70, rear, body, front, 0.70)
    for part in order:
        if isinstance(part, float):
            _wheel(frame, part, 0.31, 0.075, ident, False)
        else:
            part()


def rider(
    canvas: Canvas,
    *,
    pose: Pose,
    look: Look,
    pedal: float,
    on: str,
    ident: int,
    shade: float = 1.0,
) -> None:
    """Who sits on a bicycle or a motorcycle (painted after it, before which `pose` is the same).

    Args:
        pedal: The right pedal's angle, radians.
        on: "bicycle" or "motorcycle".
    """
    frame, h = Frame(canvas, pose), look.height
    near_side = 1.0 if frame.sin > 0 else -1.0
    if on == "bicycle":
        hip, neck, grip = (0.0, 0.98, -0.2), (0.0, 0.98 + 0.34 * h, 0.06), (0.26, 1.06, 0.30)
    else:
        hip, neck, grip = (0.0, 0.86, -0.25), (0.0, 0.86 + 0.34 * h, 0.0), (0.33, 1.04, 0.36)

    def leg(side: float) -> None:
        if on == "bicycle":
            turn = pedal if side > 0 else pedal + math.pi
            foot = (side * 0.11, 0.30 + 0.17 * math.sin(turn), -0.06 + 0.17 * math.cos(turn))
        else:
            foot = (side * 0.24, 0.28, -0.05)
        knee = (
            side * 0.14 if on == "bicycle" else side * 0.24,
            (hip[1] + foot[1]) / 2 + 0.06,
            (hip[2] + foot[2]) / 2 + 0.27,
        )
        tone = 0.85 * shade if side != near_side else shade
        canvas.limb(
            frame(side * 0.07, hip[1], hip[2]), frame(*knee), 0.085, 0.065, look.trousers, ident, tone
        )
        canvas.limb(frame(*knee), frame(*foot), 0.065, 0.045, look.trousers, ident, tone)
        canvas.limb(
            frame(*foot), frame(foot[0], foot[1] - 0.03, foot[2] + 0.12), 0.04, 0.035, look.shoes, ident, tone
        )

    def arm(side: float) -> None:
        hand = (side * grip[0], grip[1], grip[2])
        shoulder = (side * 0.19, neck[1] - 0.06, neck[2])
        elbow = (side * (0.24 + 0.03), (hand[1] + shoulder[1]) / 2 - 0.05, (hand[2] + shoulder[2]) / 2 - 0.04)
        tone = 0.85 * shade if side != near_side else 0.95 * shade
        canvas.limb(frame(*shoulder), frame(*elbow), 0.06, 0.05, look.jacket, ident, tone)
        canvas.limb(frame(*elbow), frame(*hand), 0.05, 0.04, look.jacket, ident, tone)

    parts = [
        lambda: arm(-near_side),
        lambda: leg(-near_side),
        lambda: leg(near_side),
        lambda: _head_and_torso(frame, look, hip, neck, ident, shade),
        lambda: arm(near_side),
    ]
    if math.cos(pose.yaw) > 0.7:  # from behind the arms are beyond the torso
        parts = [parts[0], parts[4], parts[1], parts[2], parts[3]]
    for part in parts:
        part()
