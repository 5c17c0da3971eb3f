"""`folder`: your own images and your own masks.

    ROOT/classes.txt
    ROOT/images/<split>/*.jpg (or .jpeg, .png, .webp)
    ROOT/masks/<split>/*.png   the same names, the ending apart

Splits are the folders there are, normally train and val; trainval is the two together.

A mask is an 8-bit grayscale or palette PNG of its image's size. Its values are class numbers, counted from 0
in the order of the lines of classes.txt; 255 is ignored. classes.txt (UTF-8) has one class name a line and,
if you like, after a tab or comma the red, green and blue to draw it in:

    road, 128 64 128
    grass
    sky, 70 130 180
"""

from collections.abc import Iterator
from pathlib import Path

from segkit.data.labels import Color, LabelSpace, distinct_colors
from segkit.data.pairs import Pair, PairDataset, check_choice, files

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
HOW_TO_GET = (
    "put your images in images/train and images/val, masks of the same names in masks/train and masks/val, "
    "and the class names, one a line, in classes.txt"
)


class Folder(PairDataset):
    """Images and masks of one split.

    Args:
        root: the folder that holds classes.txt, images/ and masks/.
        split: a folder name in images/, or "trainval".

    Raises:
        FileNotFoundError: if a folder or file is missing.
        ValueError: for an unknown split, a classes.txt that cannot be understood, or an unusable file.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.root = Path(root)
        space = read_classes(self.root / "classes.txt")
        for part in ("images", "masks"):
            if not (self.root / part).is_dir():
                raise FileNotFoundError(f"the folder {self.root / part} is missing: {HOW_TO_GET}")
        splits = [path.name for path in files(self.root / "images", "*") if path.is_dir()]
        check_choice(
            f"split of {self.root}", split, [*splits, "trainval"] if {"train", "val"} <= {*splits} else splits
        )
        parts = ("train", "val") if split == "trainval" and "trainval" not in splits else (split,)
        pairs = [pair for part in parts for pair in _pairs(self.root, part)]
        train_ids = {index: index for index in (*range(space.num_classes), space.ignore_index)}
        super().__init__(pairs, space=space, split=split, train_ids=train_ids)


def _pairs(root: Path, part: str) -> Iterator[Pair]:
    images, masks = root / "images" / part, root / "masks" / part
    if not masks.is_dir():
        raise FileNotFoundError(f"the folder {masks} is missing, the masks of {images}: {HOW_TO_GET}")
    found = [path for path in files(images, "*") if path.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise FileNotFoundError(f"{images} holds no {', '.join(IMAGE_SUFFIXES)} image: {HOW_TO_GET}")
    stems = {path.stem for path in found}
    for path in files(masks, "*.png"):
        if path.stem not in stems:
            raise FileNotFoundError(
                f"{images / path.stem}.* is missing, the image of {path}; add it or remove the mask"
            )
    for path in found:
        yield Pair(path.stem, path, masks / f"{path.stem}.png")


def read_classes(path: Path) -> LabelSpace:
    """The label space that a classes.txt describes; classes without a color get one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the line that cannot be understood.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, the file of class names: {HOW_TO_GET}")
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    if not lines:
        raise ValueError(f"{path} is empty; write one class name a line")
    names: list[str] = []
    palette: list[Color] = []
    for number, (line, spare) in enumerate(zip(lines, distinct_colors(len(lines)), strict=True), 1):
        name, *values = (part.strip() for part in line.replace(",", "\t").split("\t"))
        if not name:
            raise ValueError(f"{path}, line {number} has no class name; mask value {number - 1} needs one")
        names.append(name)
        palette.append(_color(path, number, " ".join(values)) if values else spare)
    try:
        return LabelSpace(name=path.resolve().parent.name, classes=tuple(names), palette=tuple(palette))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _color(path: Path, number: int, text: str) -> Color:
    values = text.split()
    if len(values) != 3 or not all(value.isdecimal() and int(value) <= 255 for value in values):
        raise ValueError(
            f"{path}, line {number}: {text!r} is not a color; write red, green and blue from 0 to 255, "
            "such as 'road, 128 64 128'"
        )
    red, green, blue = (int(value) for value in values)
    return red, green, blue
