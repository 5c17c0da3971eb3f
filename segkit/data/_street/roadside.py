"""What stands beside the road: buildings, gardens, trees, fences and walls, lamps, signs, small things."""

from . import buildings, furniture, palette, textures
from .buildings import Facade
from .canvas import Color
from .ids import DYNAMIC, FENCE, GUARD_RAIL, STATIC
from .site import FAR, KERB, Site


def build_side(site: Site, side: int) -> None:
    """Buildings, gardens and trees of one side."""
    if site.kind[side] in ("urban", "boulevard"):
        _row(site, side)
    elif site.kind[side] == "residential":
        _houses(site, side)
    else:
        _park(site, side)
    _avenue(site, side)


def close_street(site: Site) -> None:
    """What closes the street at its end: far houses and a line of trees."""
    dice, x = site.dice, -70.0
    while x < 70:
        wide = dice.uniform(9, 20)
        if dice.chance(0.6):
            z, height = dice.uniform(FAR + 8, FAR + 40), dice.uniform(7, 20)
            spec = _facade(site, "classic", 0.0)
            where = {"side": 1, "lateral": x, "z0": z, "z1": z + 1, "height": height, "depth": wide}
            site.add(z + 60, buildings.building, **where, spec=spec, open_front=True)
        x += wide
    x = -150.0
    while x < 150:
        z, height = dice.uniform(FAR + 2, FAR + 30), dice.uniform(6, 13)
        _tree(site, x, z, (height * 1.3, height), 0.0, dice.choice(textures.CROWNS), depth=z + 60, y=0.0)
        x += dice.uniform(5, 11)


# -- buildings


def _facade(site: Site, style: str, pitch: float) -> Facade:
    dice = site.dice
    return Facade(
        seed=dice.randrange(1 << 30),
        style=style,
        wall=dice.pick({"plaster": 0.6, "brick": 0.26, "stone": 0.14}),
        color=dice.color(palette.WALLS, 12),
        trim=dice.color(palette.TRIMS, 6),
        roof=dice.color(palette.ROOFS),
        floor=dice.uniform(2.9, 3.7),
        bay=dice.uniform(2.1, 3.4),
        window=(dice.uniform(0.9, 1.5), dice.uniform(1.3, 2.0)),
        shops=style != "house" and dice.chance(0.55),
        balconies=style == "classic" and dice.chance(0.3),
        lit=dice.uniform(0.05, 0.25) if site.golden else 0.02,
        pitch=pitch,
    )


def _building(
    site: Site, side: int, distance: float, z: tuple[float, float], height: float, depth: float, **options
) -> None:
    where = {"side": side, "lateral": distance, "z0": z[0], "z1": z[1], "height": height, "depth": depth}
    site.add(z[1], buildings.building, **where, **options)
    if z[0] < 90:
        base = [(site.bend(side * (distance + d), at), at) for at in z for d in (0.0, depth)]
        site.cast(base, height + 0.5 * options["spec"].pitch, dark=True)


def _row(site: Site, side: int) -> None:
    """Houses wall to wall, interrupted by the crossing street."""
    dice, gap = site.dice, site.gap[side]
    usual = dice.uniform(13, 26)  # metres high
    styles = dice.choice(("classic", "classic classic ribbon glass", "classic ribbon", "classic house"))
    z, corner = dice.uniform(-8, 0), True
    while z < FAR:
        end = z + dice.uniform(9, 24)
        if gap and z + 3 < gap[0] < end + 6:
            end = gap[0]
        depth = dice.uniform(10, 14)
        style = dice.choice(styles.split())
        pitch = dice.uniform(2, 4.5) if style in ("classic", "house") and dice.chance(0.6) else 0.0
        if gap and gap[0] - 0.01 <= z < gap[1]:  # the corner house beyond: its long side looks at us
            z, end = gap[1], gap[1] + dice.uniform(10, 22)
            depth, pitch, corner = dice.uniform(30, 60), 0.0, True
        setback = dice.uniform(2, 6) if dice.chance(0.06) else dice.choice((0.0, 0.0, 0.0, 0.6))
        height = max(6.5, dice.gauss(usual, 3.0))
        spec = _facade(site, style, pitch)
        _building(
            site, side, site.line[side] + setback, (z, end), height, depth, spec=spec, open_front=corner
        )
        z, corner = end + (dice.uniform(3, 9) if dice.chance(0.07) else 0.0), False


def _houses(site: Site, side: int) -> None:
    """Detached houses behind gardens."""
    dice, gap, line = site.dice, site.gap[side], site.line[side]
    _boundary(site, side, dice.pick({"fence": 0.38, "wall": 0.26, "hedge": 0.28, "open": 0.08}))
    garden, z = dice.uniform(3.0, 8.0), dice.uniform(-6, 4)
    while z < FAR:
        length = dice.uniform(8, 13)
        if gap and z < gap[1] and z + length > gap[0]:
            z = gap[1] + dice.uniform(2, 4)
            continue
        distance, height = line + garden + dice.uniform(0, 1.5), dice.uniform(5.0, 9.5)
        spec = _facade(site, "house", dice.uniform(2.5, 4.5))
        depth = dice.uniform(8, 10)
        _building(site, side, distance, (z, z + length), height, depth, spec=spec, open_front=True)
        z += length + dice.uniform(2.5, 9)
    for _ in range(dice.randint(8, 16)):
        z, distance = dice.uniform(6, 90), line + dice.uniform(1.2, garden)
        if not site.in_gap(side, z):
            _plant(site, side * distance, z, bush=0.5)
    for _ in range(9):
        _plant(site, side * (line + garden + dice.uniform(13, 24)), dice.uniform(20, 150), behind=45)


def _park(site: Site, side: int) -> None:
    """Grass and trees."""
    dice, line = site.dice, site.line[side]
    _boundary(site, side, dice.pick({"fence": 0.3, "wall": 0.2, "hedge": 0.15, "open": 0.35}))
    for _ in range(dice.randint(16, 30)):
        z = 5 + 120 * dice.random() ** 1.3
        if not site.in_gap(side, z):
            _plant(site, side * (line + dice.uniform(1.5, 16)), z, bush=0.3)
    for _ in range(15):
        _plant(site, side * (line + dice.uniform(16, 34)), dice.uniform(25, 150), behind=45)


# -- fences, walls and plants


def _boundary(site: Site, side: int, kind: str) -> None:
    """Fence, wall or hedge between street and garden, in pieces short enough to be sorted by depth."""
    dice, line, gap = site.dice, site.line[side], site.gap[side]
    if site.turn in ("wall", "fence"):
        kind = site.turn
    if kind == "open":
        return
    wall, wood = dice.color(palette.WALLS, 10), dice.color(palette.FENCES)
    fence = dice.pick({"planks": 0.36, "bars": 0.32, "mesh": 0.16, "rail": 0.16})
    masonry = dice.choice(("plaster", "brick", "stone"))
    low, high = {"wall": (0.9, 2.5), "hedge": (0.9, 2.2), "planks": (1.0, 1.9), "rail": (0.75, 1.0)}.get(
        fence if kind == "fence" else kind, (1.0, 2.0)
    )
    height, z, end = dice.uniform(low, high), 2.0, dice.uniform(40, 110)
    while z < end:
        step = max(0.7, 0.03 * z) if kind == "hedge" else max(2.0, 0.10 * z)
        if gap and z < gap[1] + 0.5 and z + step > gap[0] - 0.5:
            z = gap[1] + 0.6
            continue
        mid, shade = z + step / 2, site.shade_at(side * line, z + step / 2)
        where = {"side": side, "lateral": line, "z0": z, "z1": z + step, "height": height, "y": KERB}
        if kind == "fence":
            site.add(mid, furniture.fence, **where, kind=fence, color=wood, shade=shade)
        elif kind == "wall":
            number = dice.randrange(1000)
            site.add(mid, furniture.wall, **where, kind=masonry, color=wall, shade=shade, seed=number)
        else:
            color, leaves = dice.vary(site.green, 4), dice.choice(textures.HEDGES)
            shape = {"width": max(1.7, 3.2 * step), "height": height, "kind": leaves, "color": color}
            site.stand(furniture.hedge, side * (line + 0.6), mid, **shape, flip=dice.chance(0.5))
        z += step
    if gap is None:
        base = [(site.bend(side * (line + d), at), at) for at in (2.0, end) for d in (0.0, 0.2)]
        site.cast(base, height)


def _tree(
    site: Site,
    lateral: float,
    z: float,
    crown: tuple[float, float],
    clear: float,
    kind: int,
    *,
    color: Color | None = None,
    bark: Color | None = None,
    depth: float | None = None,
    y: float = KERB,
) -> None:
    dice = site.dice
    options = {
        "color": color or dice.vary(site.green, 8),
        "bark": bark or dice.choice(palette.BARKS),
        "flip": dice.chance(0.5),
        "shade": site.shade_at(lateral, z),
    }
    where = {"lateral": lateral, "z": z, "y": y, "crown": crown, "clear": clear, "kind": kind}
    site.add(z if depth is None else depth, furniture.tree, **where, **options)


def _plant(site: Site, lateral: float, z: float, *, bush: float = 0.0, behind: float = 0.0) -> None:
    """A tree, or with the probability `bush` a bush; `behind`: metres by which it is painted earlier."""
    dice = site.dice
    color = dice.vary(site.green if dice.chance(0.7) else dice.choice(palette.GREENS), 9)
    if dice.chance(bush):
        size, kind = dice.uniform(0.8, 2.2), dice.choice(textures.HEDGES)
        shape = {"width": size * dice.uniform(1.0, 1.5), "height": size, "kind": kind, "color": color}
        site.stand(furniture.hedge, lateral, z, y=0.0, **shape, flip=dice.chance(0.5))
        return
    if dice.chance(0.12):
        height, kind, clear = dice.uniform(6, 12), dice.choice(textures.CONIFERS), 0.4
        wide = height * dice.uniform(0.35, 0.5)
    else:
        height, kind = dice.uniform(5, 12), dice.choice(textures.CROWNS)
        wide, clear = height * dice.uniform(0.6, 0.85), height * dice.uniform(0.16, 0.3)
    _tree(site, lateral, z, (wide, height - clear), clear, kind, color=color, depth=z + behind, y=0.0)
    if not behind:
        site.cast_crown(lateral, z, clear, height, 0.45 * wide)


def _avenue(site: Site, side: int) -> None:
    """Street trees in a row."""
    dice, kind = site.dice, site.kind[side]
    if not dice.chance({"urban": 0.42, "boulevard": 0.95, "residential": 0.4, "green": 0.5}[kind]):
        return
    distance = sum(site.verge[side]) / 2 if side in site.verge else site.walk[side][0] + 0.55
    lateral = side * distance
    spacing, usual = dice.uniform(7, 14), dice.uniform(5.5, 10)
    color, bark, leaves = dice.vary(site.green, 8), dice.choice(palette.BARKS), dice.choice(textures.CROWNS)
    z = dice.uniform(5, 5 + spacing)
    while z < 120:
        if not site.in_gap(side, z) and dice.chance(0.9):
            height, clear = usual * dice.uniform(0.85, 1.15), dice.uniform(2.3, 3.1)
            wide = height * dice.uniform(0.55, 0.75)
            other = leaves if dice.chance(0.6) else dice.choice(textures.CROWNS)
            crown = (wide, max(2.5, height - clear))
            _tree(site, lateral, z, crown, clear, other, color=dice.vary(color, 4), bark=bark)
            site.cast([(site.bend(lateral, z) + dx, z) for dx in (-0.12, 0.12)], clear)
            site.cast_crown(lateral, z, clear, height, 0.45 * wide)
        z += spacing * dice.uniform(0.85, 1.15)


# -- poles, signs and small things


def furnish(site: Site, side: int) -> None:
    """Lamps, signs, traffic lights, bollards, bins, rails of one side."""
    dice, kerb = site.dice, side * (site.edge[side] + 0.5)
    metal = dice.choice(palette.METALS)
    if dice.chance(0.7):
        _lamps(site, side, kerb, metal)
    z = dice.uniform(7, 16)
    while z < 90:
        if not site.in_gap(side, z) and dice.chance(0.6):
            _signs(site, side, kerb, z)
        z += dice.uniform(7, 26)
    if site.gap[side] and dice.chance(0.75):
        _signals(site, side, kerb, metal)
    if dice.chance(0.35):
        z, step, color = dice.uniform(7, 18), dice.uniform(1.4, 2.5), dice.choice(palette.BOLLARDS)
        for _ in range(dice.randint(4, 12)):
            if not site.in_gap(side, z):
                lateral = side * (site.edge[side] + 0.32)
                site.stand(furniture.post, lateral, z, height=0.9, radius=0.06, color=color)
            z += step
    for _ in range(dice.randint(0, 4)):
        _bin(site, side, kerb)
    if site.turn == "fence" and dice.chance(0.7):
        _rail(site, side)


def _lamps(site: Site, side: int, lateral: float, metal: Color) -> None:
    dice = site.dice
    spacing, height, reach = dice.uniform(18, 32), dice.uniform(6, 9), -side * dice.uniform(1.0, 2.6)
    radius, z = dice.uniform(0.05, 0.08), dice.uniform(6, 6 + spacing)
    while z < 130:
        if not site.in_gap(side, z):
            site.stand(furniture.lamp, lateral, z, height=height, reach=reach, color=metal, radius=radius)
            site.cast([(site.bend(lateral, z) + dx, z) for dx in (-0.06, 0.06)], height)
        z += spacing * dice.uniform(0.9, 1.1)


def _signs(site: Site, side: int, kerb: float, z: float) -> None:
    dice, ours = site.dice, side > 0 or site.oncoming == 0
    pool = furniture.SIGNS if ours else ("back", "back", "parking", "name")
    signs = [(dice.choice(pool), dice.uniform(0.27, 0.36))]
    if dice.chance(0.4):
        signs.append((dice.choice(pool), dice.uniform(0.24, 0.32)))
    if dice.chance(0.12):
        signs = [("name", 0.3)]
    elif ours and z > 14 and dice.chance(0.12):
        signs = [("guide", dice.uniform(0.45, 0.75))]
    lateral, height = kerb + side * dice.uniform(-0.15, 0.3), dice.uniform(2.5, 3.4)
    color = dice.choice(palette.METALS)
    site.stand(furniture.sign_post, lateral, z, height=height, signs=tuple(signs), color=color)


def _signals(site: Site, side: int, kerb: float, metal: Color) -> None:
    """Traffic lights before and behind the crossing street."""
    dice, state = site.dice, site.dice.pick({0: 0.5, 1: 0.1, 2: 0.4})
    near, far = site.crossing[0] - 1.2, site.crossing[1] + 1.2
    for z in (near, far):
        facing = side > 0 or z == far or dice.chance(0.3)
        reach = -side * dice.uniform(3.0, 5.0) if dice.chance(0.4) else 0.0
        site.stand(furniture.signal, kerb, z, reach=reach, state=state, facing=facing, color=metal)


def _bin(site: Site, side: int, kerb: float) -> None:
    """A bin, a cabinet, a post box, a crate: `static`, or `dynamic` if it could be carried away."""
    dice, z = site.dice, site.dice.uniform(8, 55)
    if site.in_gap(side, z):
        return
    size = (dice.uniform(0.35, 1.1), dice.uniform(0.5, 1.35), dice.uniform(0.3, 0.6))
    lateral = side * (site.line[side] - 0.4) if dice.chance(0.6) else kerb
    color, ident = dice.color(palette.BINS), DYNAMIC if dice.chance(0.35) else STATIC
    lid = tuple(int(c * 0.7) for c in color) if dice.chance(0.5) else None
    site.stand(furniture.box, lateral, z, size=size, color=color, ident=ident, lid=lid)


def _rail(site: Site, side: int) -> None:
    """A rail between road and sidewalk."""
    dice, z = site.dice, site.dice.uniform(8, 20)
    look = {"kind": "bars", "color": dice.vary((150, 152, 154), 10)}
    ident = FENCE if dice.chance(0.8) else GUARD_RAIL
    for _ in range(dice.randint(5, 12)):
        if not (site.in_gap(side, z) or site.in_gap(side, z + 2)):
            where = {"side": side, "lateral": site.edge[side] + 0.25, "z0": z, "z1": z + 2, "y": KERB}
            site.add(z + 1, furniture.fence, **where, height=1.0, **look, ident=ident)
        z += 2


def shelter(site: Site, side: int, z: float) -> None:
    """A bus stop's shelter of glass and posts, `static`; `z` is its near end."""
    line = site.line[side]
    for k in (0.0, 3.6):
        options = {"height": 2.4, "radius": 0.05, "color": (70, 74, 78), "ident": STATIC}
        site.stand(furniture.post, side * (line - 1.5), z + k, **options)
    for z0 in (z, z + 1.8):
        where = {"side": side, "lateral": line - 0.3, "z0": z0, "z1": z0 + 1.8, "height": 2.3, "y": KERB}
        site.add(z0 + 1, furniture.fence, **where, kind="mesh", color=(96, 108, 116), ident=STATIC)
    roof = {"y": 2.45, "size": (1.5, 0.12, 3.5), "color": (84, 88, 92), "ident": STATIC}
    site.add(z - 0.1, furniture.box, lateral=side * (line - 0.9), z=z + 0.1, **roof)
