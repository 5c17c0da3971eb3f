"""Tiny data sets on disk, in the layouts that the loaders read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _save(path: Path, array: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture
def save():
    """Writes an array as a picture and makes the folders above it."""
    return _save


@pytest.fixture
def make_cityscapes():
    """Writes `count` images per split, 8x16, ids 0 to 33 in a known pattern."""

    def make(root: Path, splits=("train", "val"), count: int = 3) -> Path:
        rng = np.random.default_rng(0)
        for split in splits:
            for i in range(count):
                city = ("zurich", "aachen")[i % 2]
                stem = f"{city}_{i:06d}_000019"
                ids = ((np.arange(8 * 16).reshape(8, 16) + i) % 34).astype(np.uint8)
                things = np.where(ids >= 24, ids.astype(np.uint16) * 1000 + 1, ids.astype(np.uint16))
                image = rng.integers(0, 256, (8, 16, 3), np.uint8)
                truth = root / "gtFine" / split / city
                _save(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", image)
                _save(truth / f"{stem}_gtFine_labelIds.png", ids)
                _save(truth / f"{stem}_gtFine_instanceIds.png", things)
        return root

    return make


@pytest.fixture
def make_camvid():
    """Writes the SegNet layout: 3 train, 2 val, 2 test images, 6x8, lists with another machine's paths."""

    def make(root: Path, suffix: str = ".png", prefix: str = "/SegNet/CamVid/") -> Path:
        rng = np.random.default_rng(0)
        for part, count in (("train", 3), ("val", 2), ("test", 2)):
            lines = []
            for i in reversed(range(count)):  # the lists need not be sorted
                name = f"0001{part}_{i:05d}"
                _save(root / part / f"{name}{suffix}", rng.integers(0, 256, (6, 8, 3), np.uint8))
                _save(
                    root / f"{part}annot" / f"{name}.png", (np.arange(48).reshape(6, 8) % 12).astype(np.uint8)
                )
                lines.append(f"{prefix}{part}/{name}{suffix} {prefix}{part}annot/{name}.png\n")
            (root / f"{part}.txt").write_text("".join(lines))
        return root

    return make


@pytest.fixture
def make_folder():
    """Writes the layout for one's own pictures: 2 train and 1 val image, 5x7, three classes."""

    def make(root: Path) -> Path:
        rng = np.random.default_rng(0)
        for split, stems in (("train", ("b.jpg", "a.webp")), ("val", ("c.png",))):
            for name in stems:
                _save(root / "images" / split / name, rng.integers(0, 256, (5, 7, 3), np.uint8))
                labels = (np.arange(35).reshape(5, 7) % 3).astype(np.uint8)
                labels[0, 0] = 255
                _save(root / "masks" / split / f"{name.split('.')[0]}.png", labels)
        (root / "classes.txt").write_text("road, 128 64 128\ngrass\nsky\t70 130 180\n")
        return root

    return make
