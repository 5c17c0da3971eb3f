"""From a composed street to pixels of any size."""

import numpy as np

from .canvas import Canvas
from .layout import compose
from .scenery import finish, paint_bonnet, paint_ground, paint_sky
from .site import Street


def supersampling(height: int) -> int:
    """How many times finer small pictures are painted: a pixel gets the mean color, its centre's id."""
    return 1 if height > 512 else 2 if height > 96 else 3


def paint(size: tuple[int, int], seed: int, split: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Paints the scene of (seed, split number, index).

    Returns:
        Picture uint8 (H, W, 3) and Cityscapes instance ids int32 (H, W).
    """
    return paint_street(size, compose(seed, split, index))


def paint_street(size: tuple[int, int], street: Street) -> tuple[np.ndarray, np.ndarray]:
    """Paints a composed street at `size` (H, W)."""
    fine = supersampling(size[0])
    canvas = Canvas((size[0] * fine, size[1] * fine), street.view, street.light)
    paint_sky(canvas, street.sky)
    paint_ground(canvas, street.patches, street.shadows, street.surfaces, street.base, street.texture_offset)
    for _, thing in sorted(street.things, key=lambda item: -item[0]):
        thing(canvas)
    paint_bonnet(canvas, street.bonnet, street.border)
    picture = canvas.image.reduce(fine) if fine > 1 else canvas.image
    ids = np.asarray(canvas.ids)[fine // 2 :: fine, fine // 2 :: fine]
    return finish(picture, street.grade, soften=fine == 1), np.ascontiguousarray(ids)
