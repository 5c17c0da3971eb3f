"""What stands where in a scene. All its randomness is spent here, in metres, before a pixel is painted: so a
scene is the same at every size.
"""

import math

import numpy as np

from . import palette, textures
from .canvas import Light, View
from .ids import GROUND, PARKING, ROAD, SIDEWALK, TERRAIN
from .road import lay_road
from .roadside import build_side, close_street, furnish
from .scenery import Bonnet, Grade, Sky
from .site import SIDES, Dice, Site, Street, dice_for
from .traffic import cross, drive, leave_cycles, park, ride, walk

# The rare ones take turns, so that every sixteen scenes in a row have each of them.
TURNS = (
    *("tram", "wall", "bus", "motorcycles", "truck", "fence", "bicycles", "bus stop"),
    *("plain", "wall", "motorcycle", "crossing bus", "fence", "trailer", "parked truck", "crowd"),
)

# How often; the sun's elevation (degrees), its light and the sky's; what a shadow leaves of the light; colors
# of zenith, horizon, haze and clouds; clouds' cover; metres after which 1/e of a color is left.
WEATHER = {
    "clear": {
        "share": 0.24,
        "elevation": (35, 62),
        "direct": (0.62, 0.58, 0.50),
        "ambient": (0.50, 0.53, 0.60),
        "shadow": 0.48,
        "zenith": (84, 134, 194),
        "horizon": (180, 206, 226),
        "haze": (190, 208, 226),
        "cloud": (250, 250, 250),
        "cover": (0.02, 0.35),
        "sight": (420, 900),
    },
    "fair": {
        "share": 0.26,
        "elevation": (28, 58),
        "direct": (0.52, 0.50, 0.45),
        "ambient": (0.57, 0.59, 0.63),
        "shadow": 0.56,
        "zenith": (92, 142, 200),
        "horizon": (196, 214, 228),
        "haze": (198, 210, 220),
        "cloud": (246, 247, 250),
        "cover": (0.35, 0.65),
        "sight": (320, 600),
    },
    "hazy": {
        "share": 0.14,
        "elevation": (30, 55),
        "direct": (0.28, 0.27, 0.25),
        "ambient": (0.72, 0.73, 0.75),
        "shadow": 0.78,
        "zenith": (176, 192, 206),
        "horizon": (222, 226, 226),
        "haze": (214, 218, 218),
        "cloud": (232, 234, 236),
        "cover": (0.2, 0.7),
        "sight": (130, 220),
    },
    "overcast": {
        "share": 0.26,
        "elevation": (60, 80),
        "direct": (0.10, 0.10, 0.10),
        "ambient": (0.84, 0.86, 0.90),
        "shadow": 1.0,
        "zenith": (188, 194, 202),
        "horizon": (224, 226, 228),
        "haze": (208, 212, 216),
        "cloud": (236, 238, 240),
        "cover": (0.6, 0.9),
        "sight": (220, 420),
    },
    "golden": {
        "share": 0.10,
        "elevation": (13, 24),
        "direct": (0.78, 0.60, 0.38),
        "ambient": (0.58, 0.56, 0.62),
        "shadow": 0.56,
        "zenith": (110, 140, 184),
        "horizon": (246, 214, 164),
        "haze": (236, 206, 168),
        "cloud": (252, 222, 184),
        "cover": (0.1, 0.55),
        "sight": (240, 420),
    },
}


def compose(seed: int, split: int, index: int) -> Street:
    """The scene of (seed, split, index).

    Args:
        seed: Of the data set.
        split: Number of the split.
        index: Of the scene in its split.
    """
    dice = dice_for(seed, split, index)
    first = int(np.random.SeedSequence(seed, spawn_key=(split,)).generate_state(1)[0])
    site = _site(dice, TURNS[(first + index) % len(TURNS)])
    # the order of the parts is the order in which random numbers are used: part of the set's VERSION
    lay_road(site)
    for side in SIDES:
        build_side(site, side)
    close_street(site)
    drive(site)
    for side in SIDES:
        park(site, side)
    cross(site)
    for side in SIDES:
        furnish(site, side)
        walk(site, side)
        leave_cycles(site, side)
    ride(site)
    return site.street


def _site(dice: Dice, turn: str) -> Site:
    """Weather, camera and the scene's usual colors."""
    name = dice.pick({name: weather["share"] for name, weather in WEATHER.items()})
    weather = WEATHER[name]
    elevation, azimuth = math.radians(dice.uniform(*weather["elevation"])), dice.uniform(0, math.tau)
    flat = math.cos(elevation)
    light = Light(
        sun=(flat * math.sin(azimuth), math.sin(elevation), flat * math.cos(azimuth)),
        direct=weather["direct"],
        ambient=weather["ambient"],
        haze=dice.vary(weather["haze"], 6),
        haze_length=dice.uniform(*weather["sight"]),
        shadow=weather["shadow"],
    )
    sky = Sky(
        zenith=dice.vary(weather["zenith"], 8),
        horizon=dice.vary(weather["horizon"], 5),
        cloud=weather["cloud"],
        cover=dice.uniform(*weather["cover"]),
        offset=(dice.uniform(0, 500), dice.uniform(0, 500)),
    )
    view = View(
        focal=2.2 * dice.uniform(0.9, 1.06),  # Cityscapes' camera has 2.2 picture heights
        horizon=dice.uniform(0.375, 0.43),
        shift=dice.uniform(-0.12, 0.12),
        height=dice.uniform(1.22, 1.5),
        curve=0.0 if dice.chance(0.4) else max(-0.0011, min(0.0011, dice.gauss(0, 0.0006))),
    )
    exposure, warm = dice.uniform(1.0, 1.22), dice.gauss(0, 0.03)
    grade = Grade(
        gain=(exposure * (1 + warm), exposure, exposure * (1 - warm)),
        gamma=dice.uniform(0.74, 0.96),
        vignette=dice.uniform(0.05, 0.3),
        noise=(dice.randrange(512), dice.randrange(512)),
    )
    bonnet = Bonnet(
        height=dice.uniform(0.03, 0.10), color=dice.color(palette.PAINTS, 6), fall=dice.uniform(0.25, 0.7)
    )
    paving = dice.color(palette.PAVINGS)
    surfaces = {
        ROAD: textures.COBBLES if dice.chance(0.07) else textures.ASPHALT,
        SIDEWALK: dice.pick({textures.PAVING: 0.72, textures.COBBLES: 0.12, textures.ASPHALT: 0.16}),
        PARKING: textures.COBBLES,
        GROUND: textures.PAVING,
        TERRAIN: textures.GRASS,
    }
    street = Street(
        view=view,
        light=light,
        sky=sky,
        bonnet=bonnet,
        grade=grade,
        base=(paving, GROUND),
        surfaces=surfaces,
        texture_offset=(dice.randrange(1024), dice.randrange(1024)),
        border=0.005 if dice.chance(0.7) else 0.0,
    )
    site = Site(dice, turn, street)
    site.golden, site.paving = name == "golden", paving
    site.green = dice.choice(palette.AUTUMN if dice.chance(0.14) else palette.GREENS)
    site.grass = dice.color(palette.GRASSES)
    grey, tint = dice.uniform(84, 132), dice.gauss(0, 5)
    site.asphalt = (int(grey + tint), int(grey + 0.2 * tint), int(grey - 0.6 * tint + 2))
    return site
