"""Label spaces: what the numbers in a label map mean, and how they are drawn.

A data set on disk has its own numbers (Cityscapes: ids 0 to 33); a network is trained on *train ids*, counted
from 0 without gaps, with 255 for pixels that neither the loss nor a metric looks at. A `LabelSpace` describes
train ids.
"""

import colorsys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Color = tuple[int, int, int]


@dataclass(frozen=True)
class LabelSpace:
    """The classes a label map can hold.

    Lists are accepted wherever tuples are declared, so that `LabelSpace(**values)` rebuilds one from JSON or
    from a checkpoint.

    Args:
        name: of the space, such as "cityscapes19".
        classes: one name per train id, in order.
        palette: one (red, green, blue) per train id, each 0 to 255.
        categories: (name, train ids) pairs for category IoU; may be empty.
        instance_classes: train ids of the classes with instances (iIoU); may be empty.
        ignore_index: the label that is no class.

    Raises:
        ValueError: if the parts do not fit together.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    categories: tuple[tuple[str, tuple[int, ...]], ...] = ()
    instance_classes: tuple[int, ...] = ()
    ignore_index: int = 255

    def __post_init__(self) -> None:
        def settle(field: str, value: tuple) -> None:
            object.__setattr__(self, field, value)

        settle("classes", tuple(self.classes))
        settle("palette", tuple(tuple(color) for color in self.palette))
        settle("categories", tuple((name, tuple(members)) for name, members in self.categories))
        settle("instance_classes", tuple(self.instance_classes))

        if not 1 <= len(self.classes) <= 255:
            raise ValueError(
                f"label space {self.name!r} has {len(self.classes)} classes; 8-bit labels hold 1 to 255"
            )
        if len(set(self.classes)) != len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise ValueError(
                f"label space {self.name!r} names the class {twice!r} twice; give each its own name"
            )
        if len(self.palette) != len(self.classes):
            raise ValueError(
                f"label space {self.name!r} has {len(self.classes)} classes but {len(self.palette)} colors; "
                "give one color per class"
            )
        for color in self.palette:
            if len(color) != 3 or not all(0 <= value <= 255 for value in color):
                raise ValueError(
                    f"color {color} in label space {self.name!r} is not three values from 0 to 255"
                )
        used = {index for _, members in self.categories for index in members} | set(self.instance_classes)
        if unknown := sorted(used - set(range(self.num_classes))):
            raise ValueError(
                f"label space {self.name!r} groups the class indices {unknown}, "
                f"but has only 0 to {self.num_classes - 1}"
            )
        if 0 <= self.ignore_index < self.num_classes:
            raise ValueError(
                f"ignore_index {self.ignore_index} of label space {self.name!r} is also its class "
                f"{self.classes[self.ignore_index]!r}; use 255"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes a network predicts."""
        return len(self.classes)

    def color(self, labels: object) -> np.ndarray:
        """Paints a label map.

        Args:
            labels: (H, W) integers, numpy array or CPU tensor: train ids, or the ignore index.

        Returns:
            uint8 (H, W, 3): each class in its color, ignored pixels black.

        Raises:
            ValueError: for another shape, or a label that is neither a class nor ignored.
        """
        labels = np.asarray(labels)
        if labels.ndim != 2:
            raise ValueError(f"labels have shape {labels.shape}; color() paints one map (H, W)")
        is_class = (labels >= 0) & (labels < self.num_classes)
        unknown = ~is_class & (labels != self.ignore_index)
        if unknown.any():
            raise ValueError(
                f"label {labels[unknown].flat[0]} is no class of {self.name!r} (0 to {self.num_classes - 1}) "
                f"and not the ignored {self.ignore_index}"
            )
        colors = np.array([*self.palette, (0, 0, 0)], np.uint8)
        return colors[np.where(is_class, labels, self.num_classes)]  # (H, W, 3)


def distinct_colors(count: int) -> tuple[Color, ...]:
    """Colors that are easy to tell apart, always the same: golden-angle steps around the hue circle."""
    colors = []
    for i in range(count):
        hue, value = (0.08 + i * 0.618034) % 1.0, (0.95, 0.7, 0.5)[i % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, value)
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colors)


class CityscapesLabel(NamedTuple):
    """One row of the Cityscapes label definition; `train_id` 255 is not evaluated."""

    name: str
    id: int
    train_id: int
    category: str
    has_instances: bool
    color: Color


def _cityscapes(
    category: str, has_instances: bool, *rows: tuple[str, int, int, Color]
) -> tuple[CityscapesLabel, ...]:
    return tuple(
        CityscapesLabel(name, id, train, category, has_instances, rgb) for name, id, train, rgb in rows
    )


# The 35 labels of Cityscapes (Cordts et al., CVPR 2016), in the order of their ids. The license plate has no
# id of its own in the label files: -1 is never drawn, and 255 is what -1 becomes in 8 bits.
CITYSCAPES_LABELS: tuple[CityscapesLabel, ...] = (
    *_cityscapes(
        "void",
        False,
        ("unlabeled", 0, 255, (0, 0, 0)),
        ("ego vehicle", 1, 255, (0, 0, 0)),
        ("rectification border", 2, 255, (0, 0, 0)),
        ("out of roi", 3, 255, (0, 0, 0)),
        ("static", 4, 255, (0, 0, 0)),
        ("dynamic", 5, 255, (111, 74, 0)),
        ("ground", 6, 255, (81, 0, 81)),
    ),
    *_cityscapes(
        "flat",
        False,
        ("road", 7, 0, (128, 64, 128)),
        ("sidewalk", 8, 1, (244, 35, 232)),
        ("parking", 9, 255, (250, 170, 160)),
        ("rail track", 10, 255, (230, 150, 140)),
    ),
    *_cityscapes(
        "construction",
        False,
        ("building", 11, 2, (70, 70, 70)),
        ("wall", 12, 3, (102, 102, 156)),
        ("fence", 13, 4, (190, 153, 153)),
        ("guard rail", 14, 255, (180, 165, 180)),
        ("bridge", 15, 255, (150, 100, 100)),
        ("tunnel", 16, 255, (150, 120, 90)),
    ),
    *_cityscapes(
        "object",
        False,
        ("pole", 17, 5, (153, 153, 153)),
        ("polegroup", 18, 255, (153, 153, 153)),
        ("traffic light", 19, 6, (250, 170, 30)),
        ("traffic sign", 20, 7, (220, 220, 0)),
    ),
    *_cityscapes(
        "nature",
        False,
        ("vegetation", 21, 8, (107, 142, 35)),
        ("terrain", 22, 9, (152, 251, 152)),
    ),
    *_cityscapes("sky", False, ("sky", 23, 10, (70, 130, 180))),
    *_cityscapes(
        "human",
        True,
        ("person", 24, 11, (220, 20, 60)),
        ("rider", 25, 12, (255, 0, 0)),
    ),
    *_cityscapes(
        "vehicle",
        True,
        ("car", 26, 13, (0, 0, 142)),
        ("truck", 27, 14, (0, 0, 70)),
        ("bus", 28, 15, (0, 60, 100)),
        ("caravan", 29, 255, (0, 0, 90)),
        ("trailer", 30, 255, (0, 0, 110)),
        ("train", 31, 16, (0, 80, 100)),
        ("motorcycle", 32, 17, (0, 0, 230)),
        ("bicycle", 33, 18, (119, 11, 32)),
    ),
    CityscapesLabel("license plate", -1, 255, "vehicle", False, (0, 0, 142)),
)

CITYSCAPES_IDS: dict[int, int] = {label.id: label.train_id for label in CITYSCAPES_LABELS}
"""From the id in a `*_labelIds.png` file (0 to 33, and -1) to the train id (0 to 18, or 255 = ignored)."""


def _cityscapes19() -> LabelSpace:
    evaluated = sorted(
        (label for label in CITYSCAPES_LABELS if label.train_id != 255), key=lambda row: row.train_id
    )
    categories: dict[str, list[int]] = {}
    for label in evaluated:
        categories.setdefault(label.category, []).append(label.train_id)
    return LabelSpace(
        name="cityscapes19",
        classes=tuple(label.name for label in evaluated),
        palette=tuple(label.color for label in evaluated),
        categories=tuple((name, tuple(members)) for name, members in categories.items()),
        instance_classes=tuple(label.train_id for label in evaluated if label.has_instances),
    )


CITYSCAPES19 = _cityscapes19()
"""The 19 evaluated classes, 7 categories and 8 instance classes of Cityscapes; everything else is ignored."""

CITYSCAPES20 = LabelSpace(
    name="cityscapes20",
    classes=(*CITYSCAPES19.classes, "background"),
    palette=(*CITYSCAPES19.palette, (0, 0, 0)),
    categories=CITYSCAPES19.categories,
    instance_classes=CITYSCAPES19.instance_classes,
)
"""The same 19 and, as index 19, one background class of the other 16 labels (DenseASPP report). No label on
disk is ignored then; 255 remains for padding. Background belongs to no category."""

CAMVID11 = LabelSpace(
    name="camvid11",
    classes=(
        "Sky",
        "Building",
        "Pole",
        "Road",
        "Pavement",
        "Tree",
        "SignSymbol",
        "Fence",
        "Car",
        "Pedestrian",
        "Bicyclist",
    ),
    palette=(
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
)
"""The 11 classes of the SegNet split of CamVid; on disk 11 is void, here ignored (255)."""


def _names(text: str) -> tuple[str, ...]:
    """The names in a text, between its commas."""
    return tuple(" ".join(name.split()) for name in text.split(","))


PASCAL_CONTEXT59 = LabelSpace(
    name="pascal_context59",
    classes=_names("""
    aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, cabinet, car,
    cat, ceiling, chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, food, grass,
    ground, horse, keyboard, light, motorbike, mountain, mouse, person, plate, platform, pottedplant, road,
    rock, sheep, shelves, sidewalk, sign, sky, snow, sofa, table, track, train, tree, truck, tvmonitor,
    wall, water, window, wood
"""),
    palette=distinct_colors(59),
)
"""The 59 classes of Pascal Context (Mottaghi et al., CVPR 2014) in the order of their ids, which is that of
the alphabet. On disk 0 is background, here ignored (255), and 1 to 59 are these. The colors are ours."""

ADE20K150 = LabelSpace(
    name="ade20k150",
    classes=_names("""
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person,
    earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea,
    mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base,
    box, column, signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator,
    grandstand, path, stairs, runway, case, pool table, pillow, screen door, stairway, river, bridge,
    bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop, stove, palm, kitchen
    island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower,
    chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land,
    bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt,
    canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle,
    oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen,
    blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate,
    monitor, bulletin board, shower, radiator, glass, clock, flag
"""),
    palette=distinct_colors(150),
)
"""The 150 classes of SceneParse150 (Zhou et al., CVPR 2017), each with one of its names in objectInfo150.txt,
in that file's order. On disk 0 is everything else, here ignored (255), and 1 to 150 are these. The colors are
ours."""

_OWN_IDS: dict[str, tuple[int, ...]] = {
    CITYSCAPES19.name: tuple(
        next(label.id for label in CITYSCAPES_LABELS if label.train_id == index) for index in range(19)
    ),
    PASCAL_CONTEXT59.name: tuple(range(1, 60)),
    ADE20K150.name: tuple(range(1, 151)),
}


def to_ids(labels: object, space: LabelSpace) -> np.ndarray:
    """Train ids as the numbers that the data set's own label files hold; what its servers want to see.

    Args:
        labels: (H, W) integers, numpy array or CPU tensor: train ids, such as an argmax.
        space: what they mean; cityscapes19, pascal_context59 or ade20k150.

    Returns:
        uint8 (H, W): 7 for Cityscapes' road, train id + 1 for Pascal Context and ADE20K.

    Raises:
        ValueError: for another space, or a label that is none of its classes.
    """
    if space.name not in _OWN_IDS:
        raise ValueError(
            f"label space {space.name!r} has no other numbers than its train ids; {', '.join(_OWN_IDS)} have"
        )
    labels = np.asarray(labels)
    if (wrong := (labels < 0) | (labels >= space.num_classes)).any():
        raise ValueError(
            f"label {labels[wrong].flat[0]} is no class of {space.name!r} (0 to {space.num_classes - 1})"
        )
    return np.array(_OWN_IDS[space.name], np.uint8)[labels]  # (H, W)
