"""Tileable noise, ground surfaces and foliage: built once a process from fixed seeds, for every scene."""

import math
import random
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

GROUND_TILE = 1024  # texels a side of the finest ground tile ...
GROUND_METRES = 4.0  # ... and the metres that it covers
GROUND_MEAN = 200  # a ground texel of this value leaves the surface's color as it is
ASPHALT, PAVING, GRASS, COBBLES = range(4)
FOLIAGE = 512  # texels a side of a crown
CROWNS, CONIFERS, HEDGES = range(0, 6), range(6, 8), range(8, 11)  # indices that `foliage` takes


@cache
def fractal(size: int, base: int, octaves: int, seed: int) -> np.ndarray:
    """Periodic fractal noise, float32 (size, size), mean 0 and standard deviation 1.

    Args:
        size: Texels a side.
        base: Cells a side of the coarsest octave; each further octave has twice as many at half the weight.
        octaves: How many octaves, as far as the size holds them.
        seed: Which noise.
    """
    rng = np.random.default_rng(seed)
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        cells = base << octave
        if cells > size:
            break
        grid = np.pad(rng.random((cells, cells), dtype=np.float32), 2, mode="wrap")
        inner = (2, 2, cells + 2, cells + 2)  # the padding makes the interpolation wrap around
        smooth = Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC, box=inner)
        total += np.asarray(smooth) * 0.5**octave
    return (total - total.mean()) / total.std()


def _bytes(texture: np.ndarray) -> np.ndarray:
    return np.clip(texture, 0, 255).astype(np.uint8)


@cache
def ground() -> tuple[np.ndarray, ...]:
    """The ground surfaces as a pyramid: level l is uint8 (4, n, n) with n = GROUND_TILE / 2**l.

    The surfaces are ASPHALT, PAVING, GRASS, COBBLES.
    """
    n = GROUND_TILE
    rng = np.random.default_rng(11)
    grain = rng.standard_normal((n, n), dtype=np.float32)
    asphalt = 200 + 10 * grain + 5 * fractal(n, 8, 6, 1)
    row, column = np.mgrid[0:n, 0:n]

    slab = n // 8  # 0.5 m slabs, every other row shifted by half
    shifted = column + (row // slab % 2) * (slab // 2)
    tone = rng.normal(0, 7, (8, 8)).astype(np.float32)[row // slab, shifted // slab % 8]
    joint = ((row % slab) < 3) | ((shifted % slab) < 3)
    paving = 203 + tone + 5 * grain + 4 * fractal(n, 8, 6, 2) - 40 * joint

    stone = n // 32  # 12.5 cm setts
    shifted = column + (row // stone % 2) * (stone // 2)
    tone = rng.normal(0, 16, (32, 32)).astype(np.float32)[row // stone, shifted // stone % 32]
    joint = ((row % stone) < 4) | ((shifted % stone) < 4)
    cobbles = 205 + tone + 6 * grain - 60 * joint

    grass = 200 + 22 * fractal(n, 64, 4, 3) + 10 * fractal(n, 4, 3, 4) + 12 * grain
    levels = [np.stack([_bytes(surface) for surface in (asphalt, paving, grass, cobbles)])]
    while levels[-1].shape[-1] > 32:
        fine = levels[-1].astype(np.uint16)
        coarse = fine[:, ::2, ::2] + fine[:, 1::2, ::2] + fine[:, ::2, 1::2] + fine[:, 1::2, 1::2]
        levels.append((coarse // 4).astype(np.uint8))
    return tuple(levels)


@cache
def plaster(kind: str) -> tuple[Image.Image, ...]:
    """A wall's fine structure, L, 225 where the wall keeps its color; 1024 texels a side, then 512 ... 64.

    Args:
        kind: "plaster", "brick" or "stone".
    """
    n = 1024
    rng = np.random.default_rng(21)
    texture = 225 + 5 * fractal(n, 4, 7, 5) + rng.normal(0, 3, (n, n)).astype(np.float32)
    row, column = np.mgrid[0:n, 0:n]
    if kind != "plaster":
        high, wide = (4, 16) if kind == "brick" else (16, 32)  # texels; 48 a metre at the finest level
        shifted = column + (row // high % 2) * (wide // 2)
        rows, columns = n // high, n // wide
        tone = rng.normal(0, 9, (rows, columns)).astype(np.float32)
        texture += tone[row // high, shifted // wide % columns]
        texture -= 22 * ((row % high == 0) | (shifted % wide == 0))
    fine = Image.fromarray(_bytes(texture))
    return tuple(fine.reduce(factor) if factor > 1 else fine for factor in (1, 2, 4, 8, 16))


@cache
def foliage(index: int) -> tuple[tuple[Image.Image, Image.Image], ...]:
    """Leaves of one crown at five sizes, each half the last: (shade L, mask L), light from the upper left.

    Args:
        index: Which one: of CROWNS (broad-leaved), CONIFERS or HEDGES.
    """
    rng = random.Random(100 + index)
    n = FOLIAGE
    shade, mask = Image.new("L", (n, n), 90), Image.new("L", (n, n), 0)
    draw, cover = ImageDraw.Draw(shade), ImageDraw.Draw(mask)
    if index in CONIFERS:
        clumps = []
        for step in range(70):
            height = step / 69
            half = 0.40 * (1 - height) ** 0.9 + 0.02
            clumps.append((rng.uniform(-half, half), 0.46 - 0.92 * height, 0.05 + 0.06 * (1 - height)))
    elif index in HEDGES:
        clumps = [
            (rng.uniform(-0.40, 0.40), rng.uniform(-0.38, 0.44), rng.uniform(0.07, 0.12)) for _ in range(80)
        ]
    else:
        clumps = []
        wide, high = rng.uniform(0.34, 0.39), rng.uniform(0.32, 0.39)
        for _ in range(52):
            angle, radius = rng.uniform(0, math.tau), math.sqrt(rng.random())
            clumps.append(
                (wide * radius * math.cos(angle), high * radius * math.sin(angle), rng.uniform(0.07, 0.13))
            )
    # back to front: low, dark clumps first, so that lit ones overlap them
    clumps.sort(key=lambda clump: -(clump[1] + rng.uniform(-0.25, 0.25)))
    for x, y, radius in clumps:
        lit = 118 - 95 * y - 45 * x + rng.uniform(-22, 22)
        for _ in range(46):
            angle, distance = rng.uniform(0, math.tau), radius * math.sqrt(rng.random())
            dx, dy = distance * math.cos(angle), distance * math.sin(angle)
            leaf = rng.uniform(0.010, 0.026)
            value = lit - 300 * dy - 140 * dx + rng.uniform(-28, 28)
            box = [(0.5 + x + dx - leaf) * n, (0.5 + y + dy - leaf) * n]
            box += [box[0] + 2 * leaf * n, box[1] + 1.7 * leaf * n]
            draw.ellipse(box, fill=int(min(255, max(15, value))))
            cover.ellipse(box, fill=255)
    return tuple(
        (shade.reduce(factor), mask.reduce(factor)) if factor > 1 else (shade, mask)
        for factor in (1, 2, 4, 8, 16)
    )


@cache
def sensor_noise() -> np.ndarray:
    """Camera noise as wrapping uint8 (512, 512, 3), standard deviation about 2, never beyond 7 either way."""
    rng = np.random.default_rng(31)
    shared = rng.normal(0, 1.6, (512, 512, 1)) + rng.normal(0, 1.1, (512, 512, 3))
    return np.clip(np.round(shared), -7, 7).astype(np.int8).view(np.uint8)
