"""Class-uniform sampling with centroids (Zhu et al., CVPR 2019), as RegSeg uses it (Sec. 4.2).

Trains and riders are rare, and a random crop of a random image seldom shows one. So a share of each epoch is
drawn class by class: the same number of samples for every class, each an image that holds the class with a
place in it, the class's center of mass in one tile of the image, which the crop is made to contain. The rest
of the epoch is random images, none of them twice.

    centroids = Centroids(dataset)
    centroids.by_class["rider"][0]  # Centroid(image=3, x=411.6, y=120.9)
    batches = EpochBatches(len(dataset), batch_size=8, seed=0, epoch=0, centroids=centroids, share=0.5)

The long side is cut into equal tiles, as few as make none longer than the short side, so that a 1024x2048
image has two squares, and one of half that size too. (RegSeg's release has tiles of 1024 pixels: of images
stored at half size none is left, and its sampling turns into a plain shuffle without a word.)
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from segkit.data.pairs import PairDataset, check_choice
from segkit.data.sampling import Point, read_labels, shuffled

READERS = 8  # threads that read label files


def class_uniform_counts(length: int, classes: int, share: float) -> tuple[int, int, int]:
    """How many samples of an epoch are drawn for what: (for each class, for all classes, plain ones).

    For Cityscapes and a share of one half (2975, 19, 0.5) it is (78, 1482, 1493).

    Args:
        length: samples in the data set, and in the epoch.
        classes: that are drawn for.
        share: of the epoch, from 0 to 1; each class gets an equal part of it, rounded down.

    Raises:
        ValueError: if an argument is outside its range, or if the share gives a class less than one sample.
    """
    if length < 1 or classes < 1:
        raise ValueError(f"there must be at least one sample and one class, got {length} and {classes}")
    if not 0 <= share <= 1:
        raise ValueError(f"the share of class-uniform samples lies between 0 and 1, got {share}")
    each = int(Fraction(str(share)) * length / classes)  # 0.57 of 100 is 57, and in floating point less
    if share and not each:
        raise ValueError(
            f"a share of {share} of {length} samples is less than one for each of {classes} classes: take "
            "more samples, a larger share, fewer classes (class_uniform_without), or a share of 0"
        )
    return each, each * classes, length - each * classes


class Centroid(NamedTuple):
    """A class's center of mass in one tile of an image.

    Args:
        image: index in the data set.
        x: pixels from the image's left edge; the first pixel's center is at 0.5.
        y: pixels from its upper edge.
    """

    image: int
    x: float
    y: float


class Centroids:
    """Where each class is in a data set; reads all its label maps once.

    Args:
        dataset: a map-style data set with `.space`; one with `label_map(index)` is not asked for images.
        without: names of classes that are not drawn for.

    Attributes:
        length: samples in the data set.
        by_class: for each class name that is drawn for, its centroids in the order of images and tiles.

    Raises:
        ValueError: if a class never occurs, none is labeled or left, or a name in `without` is no class.
    """

    def __init__(self, dataset: Any, *, without: Sequence[str] = ()) -> None:
        names = dataset.space.classes
        for name in without:
            check_choice("class in class_uniform_without", name, names)
        self.length = len(dataset)
        self.by_class: dict[str, list[Centroid]] = {name: [] for name in names if name not in without}
        if not self.by_class:
            raise ValueError(
                "class_uniform_without leaves no class that could be drawn for; name fewer classes, or set "
                "class_uniform=0"
            )
        seen = False
        for index, labels in enumerate(_all_labels(dataset)):
            for label, x, y in tile_centroids(labels, len(names)):
                seen = True
                if names[label] in self.by_class:
                    self.by_class[names[label]].append(Centroid(index, x, y))
        if not seen:
            raise ValueError(
                f"class-uniform sampling found nothing to draw from: no tile of the {self.length} label maps "
                f"of the {dataset.split!r} split holds a labeled pixel. Take a split with labels, or set "
                "class_uniform=0"
            )
        if missing := [name for name, found in self.by_class.items() if not found]:
            listed = ",".join([*without, *missing])
            raise ValueError(
                f"class-uniform sampling cannot draw for {', '.join(map(repr, missing))}: no pixel of the "
                f"{self.length} label maps of the {dataset.split!r} split is labeled so. Leave such classes "
                f"out with class_uniform_without={listed!r}, or set class_uniform=0"
            )

    def counts(self, share: float) -> tuple[int, int, int]:
        """`class_uniform_counts` of this data set and its classes."""
        return class_uniform_counts(self.length, len(self.by_class), share)

    def epoch(self, share: float, *, seed: int, epoch: int) -> list[tuple[int, Point | None]]:
        """The samples of one epoch in order: index, and the place that the crop shall hold, if any.

        Each class's centroids are shuffled anew each epoch and taken from the front, a second time where
        they are too few.

        Args:
            share: of samples that are drawn class by class, from 0 to 1.
            seed: of the run's data.
            epoch: from 0.

        Returns:
            As many samples as the data set has.
        """
        each, _, plain = self.counts(share)
        samples: list[tuple[int, Point | None]] = []
        for name, found in self.by_class.items():
            order = shuffled(len(found), seed, epoch, "class", name)
            chosen = (found[order[i % len(found)]] for i in range(each))
            samples += [(image, (x, y)) for image, x, y in chosen]
        samples += [(index, None) for index in shuffled(self.length, seed, epoch, "order")[:plain]]
        return [samples[i] for i in shuffled(self.length, seed, epoch, "mixed")]


def tile_centroids(labels: np.ndarray, classes: int) -> Iterator[tuple[int, float, float]]:
    """The centers of mass of the classes in the tiles of one label map.

    Args:
        labels: integers (H, W); what is not from 0 to `classes` - 1 is ignored.
        classes: number of classes.

    Yields:
        Class, x and y (pixels from the map's left and upper edge), class by class in each tile.
    """
    shorter, longer = sorted(labels.shape)
    count = -(-longer // shorter) if shorter else 0
    wide = labels.shape[1] == longer
    for start, end in ((i * longer // count, (i + 1) * longer // count) for i in range(count)):
        top, left = (0, start) if wide else (start, 0)
        tile = labels[:, start:end] if wide else labels[start:end]
        # Label maps are large and smooth: sums over runs of equal labels are many times faster than sums
        # over pixels. A run's center is half its length after its beginning.
        begins = np.ones(tile.shape, bool)  # (h, w): whether a run begins here
        np.not_equal(tile[:, 1:], tile[:, :-1], out=begins[:, 1:])
        starts = np.flatnonzero(begins)
        lengths = np.diff(starts, append=tile.size)
        rows, columns = np.divmod(starts, tile.shape[1])
        runs = tile[rows, columns].astype(np.int64)
        runs[(runs < 0) | (runs > classes)] = classes  # ignored
        pixels, xs, ys = (
            np.bincount(runs, lengths * weight, classes)
            for weight in (1, left + columns + lengths / 2, top + rows + 0.5)
        )
        for label in np.flatnonzero(pixels[:classes]):
            yield int(label), float(xs[label] / pixels[label]), float(ys[label] / pixels[label])


def _all_labels(dataset: Any) -> Iterator[np.ndarray]:
    """The label maps (H, W) in order; files are read by several threads, someone's own data set by one."""
    inner = dataset
    while hasattr(inner, "dataset"):
        inner = inner.dataset
    if not isinstance(inner, PairDataset):
        yield from (read_labels(dataset, index).numpy() for index in range(len(dataset)))
        return
    with ThreadPoolExecutor(READERS) as pool:
        for first in range(0, len(dataset), 64):  # so many at a time: all of them would not fit into memory
            indices = range(first, min(first + 64, len(dataset)))
            yield from pool.map(lambda index: read_labels(dataset, index).numpy(), indices)


class ClassShares(NamedTuple):
    """How often classes come up.

    Args:
        pixels: (classes,) share of each class in the labeled pixels; adds up to 1.
        images: (classes,) share of the images (or crops) that hold the class.
    """

    pixels: Tensor
    images: Tensor


def class_shares(batches: Iterable[dict[str, Any]], classes: int) -> ClassShares:
    """How often classes come up in batches, such as an epoch's with and without class-uniform sampling.

    Args:
        batches: with "labels" (B, H, W); what is not from 0 to `classes` - 1 is ignored.
        classes: number of classes.

    Raises:
        ValueError: if no pixel is labeled.
    """
    counts = [
        torch.bincount(labels[(labels >= 0) & (labels < classes)].flatten().long(), minlength=classes)
        for batch in batches
        for labels in batch["labels"]
    ]
    table = torch.stack(counts).double() if counts else torch.zeros(1, classes)  # (images, classes)
    if not table.any():
        raise ValueError(f"no pixel of the {len(counts)} images is labeled, so classes have no shares")
    return ClassShares(table.sum(0) / table.sum(), (table > 0).double().mean(0))
