"""The road: lanes, kerbs, sidewalks, a crossing street, markings."""

from . import palette
from .canvas import Color
from .ids import PARKING, ROAD, SIDEWALK, TERRAIN
from .site import KERB, SIDES, Site, circle

LANE = 3.3  # metres
RIM = 0.18  # width of the kerb stone


def lay_road(site: Site) -> None:
    """Plans the street's cross-section and lays its ground."""
    _plan(site)
    left, right = -site.edge[-1], site.edge[1]
    for side in SIDES:
        if site.kind[side] in ("green", "residential"):
            site.ribbon(side * site.edge[side], side * 140, 1.5, 1500, site.grass, TERRAIN)
    site.ribbon(left - 0.1, right + 0.1, 1.5, 1500, site.asphalt, ROAD)  # reaches below the kerbs
    for side in SIDES:
        _pave(site, side)
    _wear(site)
    if site.rail is not None:
        groove = tuple(int(0.72 * c) for c in site.asphalt)
        for x in (site.rail - 0.72, site.rail + 0.72):
            site.ribbon(x - 0.10, x + 0.10, 1.5, 400, groove, ROAD)
            site.ribbon(x - 0.035, x + 0.035, 1.5, 400, (178, 180, 184), ROAD)
    if site.dice.chance(0.94):
        _mark(site)


def _plan(site: Site) -> None:
    dice, turn = site.dice, site.turn
    site.oncoming = dice.pick({0: 0.18, 1: 0.72, 2: 0.10})
    rails = turn == "tram" or dice.chance(0.05)
    if rails or turn == "bus":
        site.oncoming = max(1, site.oncoming)
    site.lane_right = LANE / 2 + dice.uniform(0, 0.5)
    site.lane_left = -LANE / 2 - LANE * site.oncoming - dice.uniform(0, 0.4)
    site.rail = site.lane_left + 1.8 if rails else None
    right = site.lane_right
    if dice.chance(0.25):
        right += 1.5
        site.bike_lane = (site.lane_right, right)
    site.parking = {-1: dice.chance(0.6), 1: dice.chance(0.5) or turn in ("parked truck", "trailer")}
    site.edge = {
        side: distance + (2.15 if site.parking[side] else 0.3)
        for side, distance in ((-1, -site.lane_left), (1, right))
    }
    across = turn == "crossing bus"
    if dice.chance(0.62) or across:
        z = dice.uniform(24, 34) if across else dice.uniform(17, 58)
        site.crossing = (z, z + dice.uniform(9, 13))
        for side in SIDES:
            if dice.chance(0.72) or across:
                site.gap[side] = site.crossing
    usual = {"urban": 0.54, "boulevard": 0.18, "residential": 0.17, "green": 0.11}
    kind = dice.pick(usual)
    for side in SIDES:
        other = dice.pick(usual)
        site.kind[side] = kind if dice.chance(0.6) else other
    if turn in ("wall", "fence"):
        site.kind[dice.side()] = dice.choice(("residential", "green"))


def _pave(site: Site, side: int) -> None:
    """Kerb, verge and sidewalk of one side; the line of what stands behind follows from them."""
    dice, kind, edge = site.dice, site.kind[side], site.edge[side]
    verge, walk = {
        "urban": (None, (2.8, 5.8)),
        "boulevard": ((1.6, 3.2), (2.6, 4.2)),
        "residential": (None, (2.0, 3.4)),
        "green": ((1.0, 2.5) if dice.chance(0.6) else None, (1.8, 2.8)),
    }[kind]
    at, strips = edge + RIM, []
    if verge:
        site.verge[side] = (at, at + dice.uniform(*verge))
        at = site.verge[side][1]
        strips.append((*site.verge[side], site.grass, TERRAIN))
    site.walk[side] = (at, at + dice.uniform(*walk))
    site.line[side] = site.walk[side][1]
    strips.append((*site.walk[side], site.paving, SIDEWALK))
    if kind in ("urban", "boulevard"):
        strips.append((site.line[side], site.line[side] + 60, site.paving, SIDEWALK))

    kerb, gap = dice.vary((168, 166, 160), 10), site.gap[side]
    bays = dice.vary((126, 120, 114), 8) if site.parking[side] and dice.chance(0.2) else None
    for z0, z1 in ((1.5, 400.0),) if gap is None else ((1.5, gap[0]), (gap[1], 400.0)):
        if bays:  # marked places: Cityscapes' class `parking`
            site.ribbon(side * (edge - 2.1), side * edge, z0, z1, bays, PARKING)
        _kerb_face(site, side * edge, z0, z1, tuple(int(0.72 * c) for c in kerb))
        for near, far, color, ident in reversed(strips):  # each reaches below the next: no crack is left
            site.ribbon(side * (near - 0.1), side * far, z0, z1, color, ident, KERB)
        site.ribbon(side * edge, side * (edge + RIM), z0, z1, kerb, SIDEWALK, KERB)
    if gap:
        a, b, c = side * edge, side * (edge + 2), side * 80
        site.patch(_rectangle(a, c, gap[0] + 1.6, gap[1] - 1.6), site.asphalt, ROAD)
        for z0, z1 in ((gap[0], gap[0] + 1.6), (gap[1] - 1.6, gap[1])):
            site.patch(_rectangle(b, c, z0, z1), site.paving, SIDEWALK, 0.02)
            site.patch(_rectangle(a, b, z0, z1), site.asphalt, ROAD)


def _rectangle(left: float, right: float, z0: float, z1: float) -> list[tuple[float, float]]:
    return [(left, z0), (right, z0), (right, z1), (left, z1)]


def _kerb_face(site: Site, lateral: float, z0: float, z1: float, color: Color) -> None:
    """The kerb stone's upright face: the strip between its rim and its foot.

    A patch has one height, here the rim's. From the camera's height h the foot, at depth z, is seen where a
    point of the rim's height would be at the depth z * (h - KERB) / h.
    """
    share = (site.street.view.height - KERB) / site.street.view.height
    depths = [z0 * (z1 / z0) ** (k / 24) for k in range(25)]
    rim = [(lateral + (0.08 if lateral > 0 else -0.08), z) for z in depths]  # reaches below the kerb stone
    foot = []
    for z in reversed(depths):
        x = site.bend(lateral, z) * share
        foot.append((x - site.street.view.curve * (z * share) ** 2, z * share))
    site.patch(rim + foot, color, SIDEWALK, KERB)


def _wear(site: Site) -> None:
    """Mended asphalt and manholes."""
    dice, left, right = site.dice, -site.edge[-1], site.edge[1]
    for _ in range(dice.randint(2, 7)):
        x, z, fade = dice.uniform(left, right - 1), dice.uniform(5, 60), dice.uniform(0.78, 0.95)
        wide, long = dice.uniform(0.5, 1.8), dice.uniform(1, 14)
        tone = tuple(int(c * fade) for c in site.asphalt)
        site.ribbon(x, min(right - 0.2, x + wide), z, z + long, tone, ROAD)
    for _ in range(dice.randint(0, 3)):
        x, z = dice.uniform(left + 1, right - 1), dice.uniform(6, 40)
        site.patch(circle(x, z, 0.36, 16), (70, 70, 70), ROAD)
        site.patch(circle(x, z, 0.29, 16), (92, 90, 88), ROAD)


def _mark(site: Site) -> None:
    """Lines, a zebra crossing, a stop line, an arrow, a red bicycle lane."""
    dice, white = site.dice, site.dice.vary((206, 206, 200), 12)
    spans = [(1.5, 300.0)]
    if site.crossing:
        spans = [(1.5, site.crossing[0] - 1.5), (site.crossing[1] + 1.5, 300.0)]
    solid, dashed, short = (None, (3.0, 6.0), (1.0, 1.0))  # a line's dash and hole, metres
    lines = []
    for k in range(site.oncoming):
        lines.append((-LANE / 2 - LANE * k, dashed if k or dice.chance(0.7) else solid))
    if site.bike_lane:
        lines.append((site.lane_right, solid))
    elif site.parking[1]:
        lines.append((site.lane_right, short))
    if site.parking[-1]:
        lines.append((site.lane_left, short))
    for x, rhythm in lines:
        for z0, z1 in spans:
            if rhythm is None:
                site.ribbon(x - 0.06, x + 0.06, z0, z1, white, ROAD)
                continue
            z = z0 + dice.uniform(0, 2)
            while z + rhythm[0] < min(z1, 110):
                site.ribbon(x - 0.06, x + 0.06, z, z + rhythm[0], white, ROAD)
                z += sum(rhythm)
    if site.bike_lane and dice.chance(0.4):
        a, b = site.bike_lane
        red = dice.color(palette.BIKE_LANES, 6)
        for z0, z1 in spans:
            site.ribbon(a + 0.1, b - 0.05, z0, z1, red, ROAD)

    if not site.crossing and dice.chance(0.8):
        return
    z = site.crossing[0] - 4.2 if site.crossing else dice.uniform(9, 30)
    if z > 6 and dice.chance(0.8):
        site.zebra = z
        x = -site.edge[-1] + 0.4
        while x < site.edge[1] - 0.6:
            site.ribbon(x, x + 0.5, z, z + 3.2, white, ROAD)
            x += 1.0
    if z > 8:
        site.ribbon(-1.5, site.lane_right - 0.1, z - 1.4, z - 1.0, white, ROAD)
        if dice.chance(0.5):
            foot = max(5.5, z - 9)
            site.ribbon(-0.09, 0.09, foot, foot + 2.4, white, ROAD)
            site.patch([(-0.42, foot + 2.3), (0.42, foot + 2.3), (0.0, foot + 3.9)], white, ROAD)
