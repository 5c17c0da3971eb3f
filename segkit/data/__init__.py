"""Data sets, label spaces, augmentation and sampling.

    from segkit import data

    train = data.load("streets", "train", size=(128, 256))
    train[0]  # {"image": (3, H, W) uint8, "labels": (H, W) uint8, "name": str}

Where data lies: `data_dir` where one is given, which may be the set's folder itself or the one above it;
else a folder of the set's name in `data_root()`.
"""

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segkit.data import ade20k, camvid, cityscapes, folder, pascal_context
from segkit.data.pairs import PairDataset, check_choice

__all__ = ["DATASETS", "data_root", "load"]


def data_root() -> Path:
    """The folder for data: SEGKIT_DATA, else data/ in the checkout, else the user's cache folder.

    Nothing is created here.
    """
    if chosen := os.environ.get("SEGKIT_DATA"):
        return Path(chosen).expanduser()
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "notebooks").is_dir():
        return checkout / "data"
    if sys.platform == "win32":
        cache = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "segkit"


def locate(
    title: str, markers: tuple[str, ...], names: tuple[str, ...], data_dir: Path | None, cure: str
) -> Path:
    """The folder of a set: `data_dir` (or `data_root()`) itself or a subfolder of one of the names.

    Raises:
        FileNotFoundError: if none of them holds one of the markers; names the folders and the cure.
    """
    base = data_root() if data_dir is None else data_dir
    places = [base / name for name in names]
    if data_dir is not None:
        places.insert(0, base)
    for place in places:
        if any((place / marker).exists() for marker in markers):
            return place
    looked = ", ".join(map(str, places))
    raise FileNotFoundError(f"{title} is not there: no {' or '.join(markers)} in {looked}. To get it, {cure}")


def _streets(
    split: str,
    *,
    data_dir: Path | None,
    instances: bool,
    size: tuple[int, int] = (128, 256),
    train: int = 64,
    val: int = 16,
    seed: int = 0,
    num_classes: int = 19,
) -> PairDataset:
    check_choice("streets split", split, ("train", "val", "trainval"))
    if data_dir is not None and (data_dir / "leftImg8bit").is_dir():
        root = data_dir
    else:
        for part, count in (("train", train), ("val", val)):
            if part in split and count < 1:
                raise ValueError(f"streets with {part}={count} has no {part!r} images; ask for at least 1")
        from segkit.data import streets  # only here: the other sets need no renderer

        root = streets.generate(data_dir or data_root(), size=tuple(size), train=train, val=val, seed=seed)
    return cityscapes.Cityscapes(root, split, num_classes=num_classes, instances=instances)


def _cityscapes(split: str, *, data_dir: Path | None, instances: bool, num_classes: int = 19) -> PairDataset:
    markers, names = ("leftImg8bit", "gtFine"), ("cityscapes", "Cityscapes")
    root = locate("Cityscapes", markers, names, data_dir, cityscapes.HOW_TO_GET)
    return cityscapes.Cityscapes(root, split, num_classes=num_classes, instances=instances)


def _camvid(split: str, *, data_dir: Path | None) -> PairDataset:
    root = locate("CamVid", ("train.txt", "trainannot"), ("camvid", "CamVid"), data_dir, camvid.HOW_TO_GET)
    return camvid.CamVid(root, split)


def _folder(split: str, *, data_dir: Path | None) -> PairDataset:
    root = locate("your set", ("classes.txt", "images"), ("folder",), data_dir, folder.HOW_TO_GET)
    return folder.Folder(root, split)


def pascal_context_root(data_dir: Path | None) -> Path:
    """The folder of Pascal Context; nothing in it is opened. See :func:`locate`."""
    markers, names = pascal_context.MARKERS, pascal_context.FOLDERS
    return locate("Pascal Context", markers, names, data_dir, pascal_context.HOW_TO_GET)


def _pascal_context(split: str, *, data_dir: Path | None) -> PairDataset:
    return pascal_context.PascalContext(pascal_context_root(data_dir), split)


def _ade20k(split: str, *, data_dir: Path | None) -> PairDataset:
    markers = ("images/training", "images/validation", "annotations")
    names = ("ade20k/ADEChallengeData2016", "ADEChallengeData2016", "ade20k")
    root = locate("ADE20K", markers, names, data_dir, ade20k.HOW_TO_GET)
    return ade20k.ADE20K(root, split)


DATASETS: dict[str, Callable[..., PairDataset]] = {
    "streets": _streets,
    "cityscapes": _cityscapes,
    "camvid": _camvid,
    "folder": _folder,
    "pascal_context": _pascal_context,
    "ade20k": _ade20k,
}
"""Openers by name; what `load` calls."""


def load(
    name: str,
    split: str,
    *,
    data_dir: str | Path | None = None,
    instances: bool = False,
    **options: Any,
) -> PairDataset:
    """Opens one split of a data set; every pair's headers are checked before it returns.

    Args:
        name: "streets" (procedural, generated on first use), "cityscapes", "camvid", "folder" (your own),
            "pascal_context" or "ade20k".
        split: "train", "val" or "trainval"; "test" too where the set has one.
        data_dir: the set's folder or the one above it; None for `data_root()`.
        instances: give instance ids too (streets, cityscapes).
        options: streets: `size` (H, W), `train` and `val` (numbers of images), `seed`, which say what to
            generate and mean nothing where `data_dir` is itself a generated set; streets and cityscapes:
            `num_classes` 19, or 20 with background.

    Returns:
        A map-style data set with `.space`, `.split`, `.names` and `.verify()`.

    Raises:
        ValueError: for an unknown name, split or option, or an unusable file.
        FileNotFoundError: if the set or a part of it is missing; says where it belongs and how to get it.
    """
    check_choice("data set", name, DATASETS)
    opener = DATASETS[name]
    known = [key for key in inspect.signature(opener).parameters if key not in ("split", "data_dir")]
    if instances or "instances" in known:
        options["instances"] = instances
    for option in options:
        if option not in known:
            accepted = ", ".join(known) or "none"
            raise ValueError(f"data set {name!r} has no option {option!r} (its options: {accepted})")
    return opener(split, data_dir=None if data_dir is None else Path(data_dir).expanduser(), **options)
