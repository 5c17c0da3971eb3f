"""Pascal Context (Mottaghi et al., CVPR 2014): VOC 2010's images, each pixel labeled, 59 classes.

Beside the images ROOT/JPEGImages/<id>.jpg lie the labels, in one of two forms:

    ROOT/trainval_merged.json                                masks as COCO run lengths; needs pycocotools

    ROOT/SegmentationClassContext/<id>.png                   0 = background, 1 to 59 = the classes
    ROOT/ImageSets/SegmentationContext/train.txt val.txt     one <id> a line

Where there are both, the PNG files are read. `python -m segkit.data pascal_context --convert` makes them from
the JSON file, which, like pycocotools, is then no longer needed. (PNG files that others made from the first
release, one .mat file an image, hold somewhat different masks: do not mix the two.)

Splits: train, val and trainval, by the `phase` of the JSON file's images. Train has 4,996 and val 5,104;
FastFCN's paper says 4,998 and 5,105, which are the counts of the .mat release. A pixel's label is the
category of the last mask in the file that covers it, as in the official reader (Pascal in Detail). What no
mask covers is background, which is ignored (255).

The JSON file is read once per process: about 1 second and, while it lasts, 0.2 GB of memory per 100 MB of
file, as what segmentation does not need is dropped on the way. A mask is decoded when it is asked for.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from segkit.data.labels import PASCAL_CONTEXT59
from segkit.data.pairs import IMAGE_MODES, Pair, PairDataset, check_choice, decode

PARTS = ("train", "val")
SPLITS = (*PARTS, "trainval")
HOW_TO_GET = (
    "unpack http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar there and put "
    "https://codalabuser.blob.core.windows.net/public/trainval_merged.json (Pascal in Detail) into its "
    "folder VOCdevkit/VOC2010, beside JPEGImages; or give that folder as --data-dir"
)

MARKERS = ("trainval_merged.json", "SegmentationClassContext", "JPEGImages")
"""One of these lies in the set's folder."""

FOLDERS = ("pascal_context/VOCdevkit/VOC2010", "VOCdevkit/VOC2010", "VOC2010", "pascal_context")
"""Where that folder is below the one for data, in the order in which it is looked for."""

CATEGORY_IDS = (
    *(0, 2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85),
    *(98, 104, 105, 113, 115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296),
    *(308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458),
)
"""The JSON file's numbers for background and, in order, the 59 classes."""


_INDEX = {category: index for index, category in enumerate(CATEGORY_IDS)}
_UNKNOWN = 255


class Mask(NamedTuple):
    """One annotation of the JSON file: where in an image of (H, W) a category is, as COCO run lengths."""

    id: int
    category: int
    size: tuple[int, int]
    counts: str


class Annotated(NamedTuple):
    """What the JSON file says of one image: its part, its (H, W) and its masks in the file's order."""

    phase: str
    size: tuple[int, int]
    masks: list[Mask]


class PascalContext(PairDataset):
    """Images and labels of one split.

    Args:
        root: the folder VOC2010, which holds JPEGImages/ and one of the two forms of labels.
        split: "train", "val" or "trainval".

    Raises:
        FileNotFoundError: if a folder or file is missing; says which and where to get it.
        RuntimeError: if there is only the JSON file and pycocotools is not installed.
        ValueError: for an unknown split, a JSON file that cannot be understood, or an unusable file.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        check_choice("Pascal Context split", split, SPLITS)
        self.root = Path(root)
        parts = PARTS if split == "trainval" else (split,)
        images, self._json = self.root / "JPEGImages", self.root / "trainval_merged.json"
        if not images.is_dir():
            raise FileNotFoundError(
                f"Pascal Context needs the folder {images}, which is missing: {HOW_TO_GET}"
            )
        self._annotated: dict[str, Annotated] = {}  # stays empty where the labels are PNG files
        if self._json.is_file() and not _is_converted(self.root):
            _pycocotools()  # rather now than at the first image
            for name, annotated in _read_json(self._json).items():
                if annotated.phase in parts:
                    self._annotated[name] = annotated
            found = {annotated.phase for annotated in self._annotated.values()}
            if missing := [part for part in parts if part not in found]:
                raise ValueError(f"{self._json} has no image of the phase {missing[0]!r}: {HOW_TO_GET}")
            pairs = [Pair(name, images / f"{name}.jpg", self._json) for name in self._annotated]
        else:
            pairs = [pair for part in parts for pair in _listed(self.root, part)]
        train_ids = {0: 255, **{index + 1: index for index in range(PASCAL_CONTEXT59.num_classes)}}
        super().__init__(pairs, space=PASCAL_CONTEXT59, split=split, train_ids=train_ids)

    def label_map(self, index: int) -> tv_tensors.Mask:
        """The labels of one pair, without its image; see :meth:`PairDataset.label_map`."""
        if not self._annotated:
            return super().label_map(index)
        pair = self.pairs[index]
        return tv_tensors.Mask(torch.from_numpy(self._looked_up(pair, self.own_ids(pair))))

    def own_ids(self, pair: Pair) -> np.ndarray:
        """The masks of the JSON file as one map, uint8 (H, W): 0 = background, 1 to 59 = the classes.

        Raises:
            ValueError: for run lengths that do not fit the image, or a category that is none of the 60.
        """
        annotated = self._annotated[pair.name]
        ids = np.zeros(annotated.size, np.uint8)
        for mask in annotated.masks:
            covered = _decoded(mask)
            if covered is None:
                height, width = mask.size
                raise ValueError(
                    f"{self._json}: the run lengths of annotation {mask.id} of {pair.name} do not fill its "
                    f"{height}x{width} pixels exactly; the file is damaged, get it again"
                )
            ids[covered] = _INDEX.get(mask.category, _UNKNOWN)
        if (unknown := ids == _UNKNOWN).any():
            row, column = np.argwhere(unknown)[0]
            others = sorted({mask.category for mask in annotated.masks if mask.category not in _INDEX})
            raise ValueError(
                f"{self._json}: {pair.name} has the category {', '.join(map(str, others))}, first at "
                f"row {row}, column {column}; the 60 categories are {', '.join(map(str, CATEGORY_IDS))}. "
                "Correct the file or get it again"
            )
        return ids

    def _files(self, pair: Pair) -> Iterator[tuple[Path, str, tuple[str, ...]]]:
        return (file for file in super()._files(pair) if file[0] != self._json)

    def _check_headers(self, pair: Pair) -> None:
        super()._check_headers(pair)
        if self._annotated:
            with Image.open(pair.image) as picture:
                self._check_sizes(pair, (picture.height, picture.width))

    def _check_sizes(self, pair: Pair, found: tuple[int, int]) -> None:
        annotated = self._annotated[pair.name]
        what = {"the image": annotated.size}
        what |= {f"the mask of annotation {mask.id}": mask.size for mask in annotated.masks}
        for thing, size in what.items():
            if size != found:
                raise ValueError(
                    f"{self._json}: {thing} of {pair.name} is {size[0]}x{size[1]}, but {pair.image} is "
                    f"{found[0]}x{found[1]} (height x width); the two are not of one release: {HOW_TO_GET}"
                )

    def _read(self, pair: Pair) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        if not self._annotated:
            return super()._read(pair)
        image = decode(pair.image, "image", IMAGE_MODES)
        self._check_sizes(pair, image.shape[:2])
        return image, self._looked_up(pair, self.own_ids(pair)), None


def convert(root: str | Path) -> int:
    """Writes the JSON file's label maps as PNG files, the second form above, into the same folder.

    Nothing counts as converted before everything is written, so that it can be broken off and begun again.

    Args:
        root: the folder that holds JPEGImages/ and trainval_merged.json.

    Returns:
        The number of files written; 0 where the PNG files are there already.

    Raises:
        FileExistsError: if there are PNG files without lists, which are not this function's.
        FileNotFoundError, RuntimeError, ValueError: as :class:`PascalContext`, or for a wrong mask.
    """
    root = Path(root)
    if _is_converted(root):
        return 0
    target = root / "SegmentationClassContext"
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(
            f"{target} holds files, but {_list(root, 'train')} or val.txt is missing; "
            "move that folder away, or add the lists"
        )
    if not (root / "trainval_merged.json").is_file():
        raise FileNotFoundError(f"{root / 'trainval_merged.json'} is missing: {HOW_TO_GET}")
    dataset = PascalContext(root, "trainval")
    aside = root / ".SegmentationClassContext.part"
    shutil.rmtree(aside, ignore_errors=True)  # of one that was broken off
    aside.mkdir()

    def write(pair: Pair) -> None:
        Image.fromarray(dataset.own_ids(pair)).save(aside / f"{pair.name}.png")

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for _ in pool.map(write, dataset.pairs):
            pass
    if target.exists():
        target.rmdir()
    for part in PARTS:
        path = _list(root, part)
        path.parent.mkdir(parents=True, exist_ok=True)
        names = sorted(name for name, annotated in dataset._annotated.items() if annotated.phase == part)
        path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    aside.rename(target)
    return len(dataset)


def _list(root: Path, part: str) -> Path:
    return root / "ImageSets" / "SegmentationContext" / f"{part}.txt"


def _is_converted(root: Path) -> bool:
    paths = (root / "SegmentationClassContext", *(_list(root, part) for part in PARTS))
    return all(path.exists() for path in paths)


def _listed(root: Path, part: str) -> Iterator[Pair]:
    """The pairs of one part, where the labels are PNG files."""
    listing, labels = _list(root, part), root / "SegmentationClassContext"
    for path in (listing, labels):
        if not path.exists():
            raise FileNotFoundError(
                f"Pascal Context needs {root / 'trainval_merged.json'}, or {path} and what belongs to it, "
                f"and both are missing: {HOW_TO_GET}"
            )
    names = listing.read_text(encoding="utf-8", errors="replace").split()
    if not names:
        raise FileNotFoundError(f"{listing} lists no images: {HOW_TO_GET}")
    for name in names:
        yield Pair(name, root / "JPEGImages" / f"{name}.jpg", labels / f"{name}.png")


def _pycocotools() -> ModuleType:
    try:
        from pycocotools import mask
    except ImportError:
        raise RuntimeError(
            "the masks in trainval_merged.json are COCO run lengths, and what decodes them is not installed: "
            "run `python -m pip install pycocotools` (or bring the PNG files that --convert made elsewhere)"
        ) from None
    return mask


def _compressed(counts: object, height: int, width: int) -> str:
    """Run lengths as the decoder takes them, from those or from a list of numbers.

    Raises:
        TypeError: if they are neither.
        ValueError: if a number is no length of a run.
    """
    if isinstance(counts, str):
        return counts
    if not isinstance(counts, list) or not all(type(run) is int for run in counts):
        raise TypeError
    if not all(0 <= run < 2**32 for run in counts):
        raise ValueError
    runs = {"size": [height, width], "counts": counts}
    return _pycocotools().frPyObjects(runs, height, width)["counts"].decode()


def _decoded(mask: Mask) -> np.ndarray | None:
    """What a mask covers, bool (H, W); None if its runs do not add up to its pixels."""
    decode = _pycocotools().decode
    height, width = mask.size
    # The decoder refuses runs that lead beyond the last pixel (since 2.0.5), but pixels that no run reaches
    # hold whatever the memory held. So the runs are right if they fit these pixels and not one pixel less.
    try:
        covered = decode({"size": [height, width], "counts": mask.counts})
    except ValueError:
        return None
    try:
        decode({"size": [height * width - 1, 1], "counts": mask.counts})
    except ValueError:
        return covered.astype(bool)
    return None


# What is kept of the file while it is read. The rest (parts, boundaries, occlusion edges) is most of it.
_KEPT = {
    *("images", "annos_segmentation", "image_id", "file_name", "height", "width", "phase"),
    *("id", "category_id", "segmentation", "size", "counts"),
}


def _read_json(path: Path) -> dict[str, Annotated]:
    status = path.stat()
    return _parsed(path.absolute(), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1)  # train and val are in one file
def _parsed(path: Path, _modified: int, _length: int) -> dict[str, Annotated]:
    """All images of the file by name, such as 2008_000002."""
    try:
        content = json.loads(
            path.read_bytes(),
            object_hook=lambda item: {key: value for key, value in item.items() if key in _KEPT},
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} cannot be read, it is damaged or cut short ({error}); copy or download it again"
        ) from None
    for key in ("images", "annos_segmentation"):
        if not isinstance(content, Mapping) or not isinstance(content.get(key), list) or not content[key]:
            raise ValueError(
                f"{path} has no masks: its list {key!r} is missing or empty, so it is not the one of "
                f"Pascal in Detail. To get that, {HOW_TO_GET}"
            )
    images: dict[int, Annotated] = {}
    named: dict[str, Annotated] = {}
    for number, item in enumerate(content["images"]):
        try:
            annotated = Annotated(str(item["phase"]), (int(item["height"]), int(item["width"])), [])
            images[item["image_id"]] = named[PurePosixPath(item["file_name"]).stem] = annotated
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"{path}: entry {number} of 'images' needs image_id, file_name, height, width and phase. "
                "Correct the file or get it again"
            ) from None
    for number, item in enumerate(content["annos_segmentation"]):
        try:
            annotated, shape = images.get(item["image_id"]), item["segmentation"]
            height, width = map(int, shape["size"])
            counts = _compressed(shape["counts"], height, width)
            mask = Mask(item.get("id", number), int(item["category_id"]), (height, width), counts)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError(
                f"{path}: entry {number} of 'annos_segmentation' has no mask: it needs image_id, category_id "
                "and a segmentation with size and counts (COCO run lengths, compressed or listed). "
                "Correct the file or get it again"
            ) from None
        if annotated is None:
            raise ValueError(
                f"{path}: annotation {mask.id} is of the image {item['image_id']}, which is not listed in "
                "'images'. Correct the file or get it again"
            )
        annotated.masks.append(mask)
    return named
