"""Accuracy near object boundaries: IoU on the pixels of a trimap, a narrow band around each class boundary.

Most pixels of a scene lie inside of large regions, which a coarse prediction gets right as well; what
upsampling does shows at the boundaries. Krähenbühl and Koltun (fully connected CRFs, NIPS 2011) and DeepLab
(Chen et al., 2018) plot accuracy against the width of such a band.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segkit.evaluation.metrics import ConfusionMatrix

WIDTHS = (1, 2, 3, 4, 6, 8)

_NOTHING = -(2**31 - 1)  # below every label, and so is its negative above them


class TrimapIoU:
    """IoU on the labeled pixels within some distance of a class boundary of the truth, for several distances.

    A pixel lies in the band of width w when the square of 2w + 1 pixels a side around it holds labels of two
    classes. Between fully labeled regions that is: at most w pixels, counted as a king moves on a chessboard,
    from a pixel of another class; so width 1 takes the pixels on either side of a boundary, one pixel thick,
    diagonal contact included. Papers do not say how they measure; this is chosen, because it is exact in
    integers and takes maxima alone, on any device.

    Ignored pixels are never scored. By default they make no boundary either, and hide none: two classes with
    a strip of ignored pixels between them have a boundary from the width on that reaches across it. Where
    the ignored pixels themselves mark the objects' outlines, as the void ribbons of Pascal VOC do, which
    DeepLab's trimaps follow, give `ignored_edges`.

    Args:
        num_classes: number of classes C; labels and predictions are 0 … C-1.
        widths: distances in pixels, in any order.
        ignore_index: label of the pixels that are left out.
        ignored_edges: whether the border of ignored pixels counts as a boundary too.
        device: where the counts live; give the device of the predictions.

    Raises:
        ValueError: when there is no class, no width, or a width is not a whole number of at least 1, or
            occurs twice.

    Example, beside the usual scores:

        trimap = TrimapIoU(space.num_classes)
        evaluate(model, dataset, on_image=lambda sample, prediction: trimap.update(
            prediction[None], sample["labels"][None]))
        trimap.miou()  # {1: …, 2: …, …}
    """

    def __init__(
        self,
        num_classes: int,
        widths: Sequence[int] = WIDTHS,
        *,
        ignore_index: int = 255,
        ignored_edges: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        whole = all(isinstance(w, int) and not isinstance(w, bool) and w >= 1 for w in widths)
        if not widths or not whole or len(set(widths)) != len(widths):
            raise ValueError(
                f"widths are {tuple(widths)}; give at least one, different whole numbers of pixels from 1 on"
            )
        self.widths = tuple(sorted(widths))
        self.num_classes, self.ignore_index, self.ignored_edges = num_classes, ignore_index, ignored_edges
        # A band without the one inside of it is a ring. Each pixel lies in one ring alone; the last ring is
        # what lies in no band, which the share and the check of all labels and predictions need.
        self._rings = [
            ConfusionMatrix(num_classes, ignore_index=ignore_index, device=device)
            for _ in range(len(self.widths) + 1)
        ]

    def update(self, prediction: Tensor, labels: Tensor) -> None:
        """Adds images.

        Args:
            prediction: integers (B, H, W) in 0 … C-1; not looked at where the label is ignored.
            labels: integers (B, H, W) in 0 … C-1, or `ignore_index`.

        Raises:
            ValueError: when the labels are not maps, the shapes differ, a tensor is not of integers, or a
                value is out of range.
        """
        if labels.ndim != 3:
            raise ValueError(f"the labels have shape {tuple(labels.shape)}; they have to be maps (B, H, W)")
        labels = labels.as_subclass(Tensor).to(prediction.device)
        if labels.numel() == 0:
            return
        bands = boundary_bands(
            labels, self.widths, ignore_index=self.ignore_index, ignored_edges=self.ignored_edges
        )
        if labels.dtype == torch.uint8 and not 0 <= self.ignore_index <= 255:
            labels = labels.long()
        for ring, counts in enumerate(self._rings):
            counts.update(prediction, labels.where(bands == ring, self.ignore_index))

    def all_reduce(self) -> None:
        """Adds up the counts of all processes, once, when all images are in; a lone one keeps its own."""
        for counts in self._rings:
            counts.all_reduce()

    @property
    def matrices(self) -> Tensor:
        """Counts within each width, int64 (widths, C, C): rows are true classes, columns predicted ones."""
        return torch.stack([counts.matrix for counts in self._rings]).cumsum(0)[:-1]

    def iou(self) -> Tensor:
        """IoU of each class within each width, float64 (widths, C) on the CPU.

        NaN for a class which neither the truth nor the prediction has in that band.
        """
        matrices = self.matrices.cpu().double()
        both = matrices.diagonal(dim1=1, dim2=2)
        return both / (matrices.sum(1) + matrices.sum(2) - both)

    def miou(self) -> dict[int, float]:
        """Mean IoU within each width, narrowest first; NaN where there was no boundary at all."""
        return dict(zip(self.widths, self.iou().nanmean(1).tolist(), strict=True))

    def share(self) -> dict[int, float]:
        """Share of the labeled pixels that lie within each width; NaN when there are none."""
        inside = self.matrices.sum((1, 2)).tolist()
        labeled = inside[-1] + self._rings[-1].matrix.sum().item()
        return {w: n / labeled if labeled else math.nan for w, n in zip(self.widths, inside, strict=True)}


def boundary_bands(
    labels: Tensor, widths: Sequence[int], *, ignore_index: int = 255, ignored_edges: bool = False
) -> Tensor:
    """Which of several bands around the class boundaries each pixel lies in; see `TrimapIoU`.

    Args:
        labels: integers (B, H, W) from 0 on, or `ignore_index`.
        widths: half widths of the bands in pixels, ascending.
        ignore_index: label of the pixels without a class.
        ignored_edges: whether the border of ignored pixels counts as a boundary too.

    Returns:
        Index of the narrowest band that holds the pixel, `len(widths)` where none does, int16 (B, H, W).
        Ignored pixels get an index too.
    """
    values = labels.int()
    # The highest label in a square, and the lowest one as the highest of the negatives: they differ where
    # the square holds two classes. `_NOTHING` takes part in neither.
    extremes = torch.stack([values, -values], 1)  # (B, 2, H, W)
    if not ignored_edges:
        extremes = extremes.masked_fill((labels == ignore_index)[:, None], _NOTHING)
    bands = torch.full_like(labels, len(widths), dtype=torch.int16)
    reached = 0
    for index, width in enumerate(widths):
        extremes = _highest_within(extremes, width - reached)
        reached = width
        high, low = extremes[:, 0], -extremes[:, 1]
        # A square without any label has a high below its low.
        bands = bands.where((bands < len(widths)) | (high <= low), index)
    return bands


def _highest_within(maps: Tensor, distance: int) -> Tensor:
    """Highest value in the square of 2 * distance + 1 pixels around each pixel, (B, 2, H, W).

    Columns first, then rows; and in each, the maximum over twice as many pixels from that over so many. On a
    CPU this is several times faster than `max_pool2d`, which also finds where the maxima lie.
    """
    for dim, side in zip((-2, -1), maps.shape[-2:], strict=True):
        beyond = min(distance, side)
        maps = F.pad(maps, (0, 0, beyond, beyond) if dim == -2 else (beyond, beyond), value=_NOTHING)
        reach, whole = 1, 2 * beyond + 1
        while reach < whole:
            step = min(reach, whole - reach)
            length = maps.shape[dim] - step
            maps = torch.maximum(maps.narrow(dim, 0, length), maps.narrow(dim, step, length))
            reach += step
    return maps
