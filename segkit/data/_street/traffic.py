"""Who uses the street: vehicles that drive and park, people who walk, wait and ride."""

import math

from . import palette, people, roadside, vehicles
from .ids import BICYCLE, BUS, CAR, CARAVAN, MOTORCYCLE, PERSON, RIDER, TRAILER, TRAIN, TRUCK
from .people import Look
from .road import LANE
from .scenery import Shadow
from .site import KERB, Site
from .vehicles import Pose


def drive(site: Site) -> None:
    """Vehicles on the road: the rare one first, then the others where there is room."""
    dice, towards = site.dice, -LANE if site.oncoming else None
    _rare(site, towards)
    if dice.chance(0.8):  # our own lane
        z = dice.uniform(12, 45)
        while z < 110 and dice.chance(0.75):
            if site.free(0.0, z - 3.5, z + 3.5):
                _car(site, dice.uniform(-0.3, 0.3), z, 0.0, lit=dice.chance(0.4))
            z += dice.uniform(9, 34)
    for lane in range(1, site.oncoming + 1):
        z = dice.uniform(9, 50)
        while z < 120:
            if dice.chance(0.65) and site.free(-LANE * lane, z - 3.5, z + 3.5):
                if dice.chance(0.03):
                    _truck(site, -LANE * lane, z, math.pi)
                else:
                    lateral = -LANE * lane + dice.uniform(-0.25, 0.25)
                    _car(site, lateral, z, math.pi, lit=dice.chance(0.4))
            z += dice.uniform(9, 40)
    if site.crossing and site.turn != "crossing bus" and dice.chance(0.45):
        z, side = sum(site.crossing) / 2 + dice.uniform(-1, 1), dice.side()
        for _ in range(dice.randint(1, 2)):
            x = side * dice.uniform(3, 24 if site.gap[side] else site.edge[side])
            if site.free(x, z - 2.6, z + 2.6):
                _car(site, x, z, side * math.pi / 2)


def _rare(site: Site, towards: float | None) -> None:
    """The vehicle whose turn it is; `towards`: the oncoming lane, if there is one."""
    dice, turn = site.dice, site.turn
    away = towards is None or dice.chance(0.55)
    lane, yaw = (0.0, 0.0) if away else (towards, math.pi)
    if turn == "tram":
        away = dice.chance(0.3)
        z = dice.uniform(32, 62) if dice.chance(0.8) else dice.uniform(15, 22)  # beside us now and then
        pose, cars = Pose(lateral=site.rail, z=z, yaw=0.0 if away else math.pi), dice.randint(2, 3)
        site.free(site.rail, z - 13, z + 13)
        site.under(pose, 8.0 * cars, 2.5, 3.3)
        look = {"color": dice.color(palette.TRAMS), "trim": dice.color(palette.TRAM_TRIMS)}
        site.pose(vehicles.tram, pose, cars=cars, ident=site.ident(TRAIN), **look)
    elif turn == "bus":
        length = dice.uniform(9.5, 12.5)
        z = (dice.uniform(10, 15) if dice.chance(0.35) else dice.uniform(18, 45)) + length / 2
        site.free(lane, z - length / 2 - 2, z + length / 2 + 2)
        _bus(site, lane, z, yaw, length)
    elif turn == "crossing bus":
        z, side = sum(site.crossing) / 2, dice.side()
        x = side * dice.uniform(1, 9)
        site.free(x, z - 3, z + 3)
        _bus(site, x, z, side * math.pi / 2, dice.uniform(10, 12.5))
    elif turn == "truck":
        z = dice.uniform(20, 60)
        site.free(lane, z - 6, z + 6)
        _truck(site, lane, z, yaw)
    elif turn == "motorcycle":
        z = dice.uniform(11, 24)
        site.free(0.0, z - 3, z + 3)
        _ride(site, "motorcycle", dice.uniform(-0.4, 0.9), z, dice.gauss(0, 0.04))


def park(site: Site, side: int) -> None:
    """Parked vehicles of one side."""
    dice, turn = site.dice, site.turn
    if not site.parking[side]:
        return
    lateral, z = side * (site.edge[side] - 1.08), dice.uniform(6, 12)
    fill, rare = dice.uniform(0.3, 0.85), side > 0 and turn in ("parked truck", "trailer")
    yaw = 0.0 if side > 0 or site.oncoming == 0 else math.pi
    while z < 105:
        blocked = site.in_gap(side, z - 4) or site.in_gap(side, z + 4)
        blocked |= site.zebra is not None and abs(z - site.zebra - 1.5) < 5
        if not blocked and rare and z > 20:
            rare = False
            if turn == "parked truck":
                _truck(site, lateral, z + 3, yaw)
                z += 6
            else:
                _trailer(site, lateral, z + 1, yaw)
                z += 2
        elif not blocked and dice.chance(fill) and not site.taken(lateral, z - 2.5, z + 2.5, 1.6):
            turned = yaw + dice.gauss(0, 0.015) + (math.pi if dice.chance(0.1) else 0.0)
            _car(site, lateral + dice.uniform(-0.12, 0.12), z, turned)
        z += dice.uniform(5.3, 6.6)


def _car(site: Site, lateral: float, z: float, yaw: float, *, lit: bool = False) -> None:
    dice, pose = site.dice, Pose(lateral=lateral, z=z, yaw=yaw)
    shape = dice.pick({"hatchback": 0.34, "saloon": 0.2, "estate": 0.18, "suv": 0.18, "van": 0.10})
    spec, color = vehicles.CARS[shape], dice.color(palette.PAINTS)
    site.under(pose, spec.length, spec.width, spec.height)
    site.pose(vehicles.car, pose, shape=shape, color=color, ident=site.ident(CAR), lit=lit)


def _bus(site: Site, lateral: float, z: float, yaw: float, length: float) -> None:
    dice, pose = site.dice, Pose(lateral=lateral, z=z, yaw=yaw)
    look = {"color": dice.color(palette.BUSES), "trim": dice.color(palette.PAINTS)}
    site.under(pose, length, 2.55, 3.0)
    site.pose(vehicles.bus, pose, length=length, ident=site.ident(BUS), **look)


def _truck(site: Site, lateral: float, z: float, yaw: float) -> None:
    dice, pose = site.dice, Pose(lateral=lateral, z=z, yaw=yaw)
    length, height = dice.uniform(6.5, 9.0), dice.uniform(2.9, 3.6)
    look = {"color": dice.color(palette.PAINTS), "box": dice.color(palette.BOXES)}
    site.under(pose, length, 2.4, height)
    site.pose(vehicles.truck, pose, length=length, height=height, ident=site.ident(TRUCK), **look)


def _trailer(site: Site, lateral: float, z: float, yaw: float) -> None:
    dice, pose = site.dice, Pose(lateral=lateral, z=z, yaw=yaw)
    caravan, color = dice.chance(0.5), dice.color(palette.CARAVANS)
    site.under(pose, 4.5, 2.0, 2.0)
    ident = site.ident(CARAVAN if caravan else TRAILER)
    site.pose(vehicles.trailer, pose, caravan=caravan, color=color, ident=ident)


# -- people


def walk(site: Site, side: int) -> None:
    """People on the sidewalk of one side, a bus stop, a crowd."""
    dice, (a, b) = site.dice, site.walk[side]
    usual = {"urban": 9, "boulevard": 7, "residential": 3, "green": 3}[site.kind[side]]
    for _ in range(round(usual * dice.uniform(0.3, 1.6))):
        z, distance = 7 + 75 * dice.random() ** 1.5, dice.uniform(a + 0.35, max(a + 0.5, b - 0.4))
        if site.in_gap(side, z):
            continue
        yaw = dice.choice((0.0, math.pi)) + dice.gauss(0, 0.25)
        inwards = 0.6 if distance < b - 1 else -0.6
        for k in range(dice.pick({1: 0.66, 2: 0.28, 3: 0.06})):  # friends walk abreast
            _person(site, side * (distance + inwards * k), z + dice.uniform(-0.2, 0.2), yaw)
    if side > 0 and site.turn == "crowd":
        for _ in range(14):  # too far to tell apart: such a group has no instances
            z, yaw = dice.uniform(55, 66), dice.uniform(0, math.tau)
            _person(site, dice.uniform(a, b), z, yaw, ident=PERSON)
        for _ in range(7):
            z, yaw = dice.uniform(12, 26), dice.uniform(0, math.tau)
            _person(site, dice.uniform(a, b), z, yaw, standing=dice.chance(0.6))
    if side > 0 and site.turn == "bus stop":
        z = dice.uniform(12, 20)
        if not (site.in_gap(side, z) or site.in_gap(side, z + 4)):
            roadside.shelter(site, side, z)
            for k in range(dice.randint(2, 4)):
                distance, yaw = b - dice.uniform(0.8, 1.8), dice.uniform(0, math.tau)
                _person(site, side * distance, z + 0.8 + 0.9 * k, yaw, standing=True)


def cross(site: Site) -> None:
    """People on the zebra crossing."""
    dice = site.dice
    if site.zebra is None or dice.chance(0.5):
        return
    for _ in range(dice.randint(1, 4)):
        x, z = dice.uniform(-site.edge[-1], site.edge[1]), site.zebra + dice.uniform(0.3, 2.8)
        yaw = dice.side() * math.pi / 2 + dice.gauss(0, 0.2)
        if not site.taken(x, z, z, 1.6):
            _person(site, x, z, yaw, y=0.0)


def _look(site: Site, *, helmet: float = 0.0) -> Look:
    dice = site.dice
    child = not helmet and dice.chance(0.08)
    return Look(
        height=dice.uniform(1.05, 1.45) if child else dice.uniform(1.55, 1.92),
        skin=dice.color(palette.SKINS, 5),
        hair=dice.color(palette.HAIRS, 5),
        jacket=dice.color(palette.CLOTHES, 10),
        trousers=dice.color(palette.TROUSERS, 7),
        shoes=dice.choice(palette.SHOES),
        coat=not helmet and dice.chance(0.25),
        bag=dice.color(palette.CLOTHES, 6) if dice.chance(0.25) else None,
        helmet=dice.color(palette.PAINTS) if dice.chance(helmet) else None,
    )


def _person(
    site: Site,
    lateral: float,
    z: float,
    yaw: float,
    *,
    y: float = KERB,
    standing: bool = False,
    ident: int | None = None,
) -> None:
    dice, look, x = site.dice, _look(site), site.bend(lateral, z)
    below = tuple((x + 0.3 * math.cos(t), z + 0.25 * math.sin(t)) for t in range(6))
    site.street.shadows.append(Shadow(corners=below, keep=0.66))
    site.cast([(x - 0.2, z), (x + 0.2, z)], look.height)
    stride = 0.0 if standing else dice.side() * dice.uniform(0.15, 0.5)
    ident = site.ident(PERSON) if ident is None else ident
    pose = Pose(lateral=lateral, z=z, yaw=yaw, y=y)
    site.pose(people.person, pose, look=look, stride=stride, ident=ident)


# -- on two wheels


def ride(site: Site) -> None:
    """Riders on the road."""
    dice, turn = site.dice, site.turn
    lane = sum(site.bike_lane) / 2 if site.bike_lane else site.lane_right - 0.45
    for _ in range(dice.pick({0: 0.62, 1: 0.28, 2: 0.10}) + (2 if turn == "bicycles" else 0)):
        z = dice.uniform(10, 60)
        if site.free(lane + 1.1, z - 1, z + 1):
            _ride(site, "bicycle", lane + dice.uniform(-0.2, 0.2), z, dice.gauss(0, 0.06))
    if site.oncoming and dice.chance(0.3):
        z = dice.uniform(10, 45)
        if site.free(site.lane_left - 1.0, z - 1, z + 1):
            _ride(site, "bicycle", site.lane_left + 0.4, z, math.pi + dice.gauss(0, 0.06))
    if site.crossing and dice.chance(0.25):
        x, z = dice.uniform(-site.edge[-1], site.edge[1]), site.crossing[0] + dice.uniform(0.5, 2)
        if site.free(x, z - 1, z + 1):
            _ride(site, "bicycle", x, z, dice.side() * math.pi / 2)
    if dice.chance(0.05):
        z = dice.uniform(11, 24)
        if site.free(0.0, z - 2, z + 2):
            _ride(site, "motorcycle", dice.uniform(-0.4, 0.9), z, dice.gauss(0, 0.04))


def _ride(site: Site, on: str, lateral: float, z: float, yaw: float) -> None:
    dice, pose = site.dice, Pose(lateral=lateral, z=z, yaw=yaw)
    site.under(pose, 1.5, 0.3, 1.6)
    _cycle(site, on, pose)
    look, pedal = _look(site, helmet=0.5 if on == "bicycle" else 1.0), dice.uniform(0, math.tau)
    site.pose(people.rider, pose, look=look, pedal=pedal, on=on, ident=site.ident(RIDER))


def _cycle(site: Site, on: str, pose: Pose) -> None:
    paint, label = (people.bicycle, BICYCLE) if on == "bicycle" else (people.motorcycle, MOTORCYCLE)
    site.add(pose.z, paint, pose=pose, color=site.dice.color(palette.PAINTS), ident=site.ident(label))


def leave_cycles(site: Site, side: int) -> None:
    """Parked bicycles and motorcycles of one side."""
    dice, turn, (a, b) = site.dice, site.turn, site.walk[side]
    if dice.chance(0.45) or (turn == "bicycles" and side > 0):
        z, wall = dice.uniform(7, 26), dice.chance(0.5)  # along a wall, or side by side at the kerb
        for _ in range(dice.randint(1, 6)):
            if not site.in_gap(side, z):
                yaw = dice.gauss(0, 0.15) if wall else side * dice.uniform(0.9, 1.6)
                pose = Pose(lateral=side * (b - 0.4 if wall else a + 0.7), z=z, yaw=yaw, y=KERB)
                site.under(pose, 1.4, 0.1, 0.8)
                _cycle(site, "bicycle", pose)
            z += dice.uniform(1.8, 3) if wall else dice.uniform(0.6, 1.2)
    if dice.chance(0.03) or (turn == "motorcycles" and side > 0):
        z = dice.uniform(9, 18)
        for _ in range(dice.randint(2, 5)):
            if not site.in_gap(side, z):
                pose = Pose(lateral=side * (a + 0.7), z=z, yaw=side * dice.uniform(0.9, 1.4), y=KERB)
                site.under(pose, 1.7, 0.4, 1.0)
                _cycle(site, "motorcycle", pose)
            z += dice.uniform(1.0, 2.2)
