"""Evaluation in sliding windows, as FastFCN's figures were measured (its Tables 1, 3, 4 and 5).

The paper says "single scale" or "multi-scale with flip" and no more. Its released code never shows a network
a whole image: the image is resized to a fixed long side, cut into square windows of the training crop's size
that overlap by a third, and the windows' scores are averaged where they overlap. This file does that, with
two ways to combine scores; which of them a figure comes from stands in the figure's record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# "MS" in the tables of FastFCN, each scale with its mirror image; from the released code.
FASTFCN_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)

COMBINE = ("probability", "exp")

_CLASSES_AT_ONCE = 8  # resized together in the log domain: bounds the temporaries, changes no result


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How an image is cut into windows, and how their scores become one answer.

    Sizes, padding, positions and counts are the released code's; the paper gives none of them:

    - The long side is resized to ceil(base_size * scale) pixels, the short one with it (rounded).
    - A side shorter than the window is padded with black at its end, so that one window covers it.
    - Windows begin at 0, stride, 2 * stride, … until one reaches the end; that last one is not moved back,
      but filled up with black. What the padding scores is dropped.
    - Where windows overlap, their scores are averaged.

    Attributes:
        side: of the square windows in pixels: the side of the crops that the model was trained on.
        base_size: long side of the image at scale 1 in pixels; 0 keeps the image's own size.
        stride: from one window to the next in pixels; 0 is two thirds of the side, rounded down.
        combine: what is averaged over windows and mirror images and summed over scales. "probability", the
            kit's own: softmax probabilities, images and scores resized as `predict` does without windows.
            "exp", the release's: exp(l(x) + flip(l(flip x))) of the raw logits l, images and scores resized
            bilinearly, corners on corners, without antialiasing. A softmax does not change when all logits of
            a pixel grow by the same amount; the release's scores do, so a window or scale with larger logits
            outvotes the others. It is there to reproduce the paper; logits that would overflow do no harm,
            because the sums are formed in the log domain.
        batch: windows that go through the model together; for speed and memory alone.

    Raises:
        ValueError: when a value is out of range.
    """

    side: int = 480
    base_size: int = 520
    stride: int = 0
    combine: str = "probability"
    batch: int = 4

    def __post_init__(self) -> None:
        for name, least in (("side", 1), ("base_size", 0), ("stride", 0), ("batch", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"windows: {name} is {value!r}; it has to be a whole number from {least} on")
        if self.stride > self.side:
            raise ValueError(
                f"windows: a stride of {self.stride} px leaves gaps between windows of {self.side} px; "
                f"give at most {self.side}, or 0 for two thirds of it"
            )
        if self.combine not in COMBINE:
            raise ValueError(f"windows: combine is {self.combine!r}; choose one of {', '.join(COMBINE)}")

    @property
    def step(self) -> int:
        """Pixels from one window to the next."""
        return self.stride or max(1, 2 * self.side // 3)

    def scaled_size(self, size: Sequence[int], scale: float) -> tuple[int, int]:
        """Height and width to which an image of `size` (H, W) is resized at a scale."""
        height, width = size
        if not self.base_size:
            return max(1, round(height * scale)), max(1, round(width * scale))
        long = math.ceil(self.base_size * scale)
        # Halves are rounded up, as in the release; Python's round() takes them to the even neighbor.
        short = max(1, (2 * min(size) * long + max(size)) // (2 * max(size)))
        return (long, short) if height > width else (short, long)

    def starts(self, length: int) -> list[int]:
        """First pixels of the windows along a side of `length`: as many as it takes to reach its end."""
        return [self.step * i for i in range(-(-max(0, length - self.side) // self.step) + 1)]

    def as_dict(self) -> dict[str, Any]:
        """What a figure depends on, as plain values for JSON; the stride in pixels."""
        return {
            "side": self.side,
            "base_size": self.base_size,
            "stride": self.step,
            "combine": self.combine,
        }

    def __str__(self) -> str:
        resized = f", long side {self.base_size} px" if self.base_size else ""
        return f"windows of {self.side} px, stride {self.step}{resized}, combined as {self.combine}"


@torch.no_grad()
def sliding_scores(
    logits: Callable[[Tensor], Tensor],
    images: Tensor,
    windows: Windows,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    black: Sequence[float] = (0.0, 0.0, 0.0),
) -> Tensor:
    """Scores each pixel from windows of its image.

    Besides the result, memory holds the scores of the images at one scale, and the logits of `windows.batch`
    windows and as many mirror images.

    Args:
        logits: takes float (B', 3, side, side), gives logits (B', C, side, side).
        images: normalized, float (B, 3, H, W).
        windows: see there.
        scales: rescaling factors; `FASTFCN_SCALES` is the paper's "MS".
        flip: also score the mirror image of each window.
        black: a black pixel after normalization, -mean / std of each channel, which fills windows up.

    Returns:
        Scores in [0, 1] that add up to 1 over the classes, float32 (B, C, H, W). For "exp" they are the
        release's, divided by their sum at each pixel, which leaves their order as it is.
    """
    exp = windows.combine == "exp"
    total: Tensor | None = None
    for scale in scales:
        size = windows.scaled_size(images.shape[-2:], scale)
        scaled = images
        if size != tuple(images.shape[-2:]):
            how = {"align_corners": True} if exp else {"antialias": True}
            scaled = F.interpolate(images, size, mode="bilinear", **how)
        scores = _scores(logits, scaled, windows, flip=flip, black=black)  # (B, C, scale*H, scale*W)
        if exp:
            total = _add_resized_logs(total, scores, images.shape[-2:])
            continue
        if size != tuple(images.shape[-2:]):
            scores = F.interpolate(scores, images.shape[-2:], mode="bilinear")
        total = scores if total is None else total.add_(scores)
    return total.softmax(1) if exp else total / len(scales)  # (B, C, H, W)


def _scores(
    logits: Callable[[Tensor], Tensor],
    images: Tensor,
    windows: Windows,
    *,
    flip: bool,
    black: Sequence[float],
) -> Tensor:
    """Mean score over the windows that hold a pixel, (B, C, h, w), at one scale; its logarithm for "exp"."""
    number, _, height, width = images.shape
    side, exp = windows.side, windows.combine == "exp"
    tops, lefts = windows.starts(height), windows.starts(width)
    padded = _padded(images, tops[-1] + side, lefts[-1] + side, black)
    total: Tensor | None = None
    for places in _batches(product(tops, lefts), windows.batch):
        crops = torch.cat([padded[..., top : top + side, left : left + side] for top, left in places])
        votes = _votes(logits, crops, flip=flip, exp=exp)  # (windows * B, C, side, side)
        if total is None:
            empty = -math.inf if exp else 0.0
            total = votes.new_full((number, votes.shape[1], height, width), empty)
        for (top, left), vote in zip(places, votes.split(number), strict=True):
            here = total[..., top : top + side, left : left + side]  # ends with the image
            vote = vote[..., : here.shape[-2], : here.shape[-1]]
            if exp:
                torch.logaddexp(here, vote, out=here)
            else:
                here.add_(vote)
    down, across = (
        _counts(starts, side, length).to(total) for starts, length in ((tops, height), (lefts, width))
    )
    count = down[:, None] * across  # (h, w)
    return total.sub_(count.log()) if exp else total.div_(count)


def _votes(logits: Callable[[Tensor], Tensor], crops: Tensor, *, flip: bool, exp: bool) -> Tensor:
    """One score for each class and pixel of each window, float32; its logarithm for "exp"."""
    straight = logits(crops).float()
    mirrored = logits(crops.flip(-1)).float().flip(-1) if flip else None
    if exp:
        return straight if mirrored is None else straight + mirrored
    return straight.softmax(1) if mirrored is None else (straight.softmax(1) + mirrored.softmax(1)) / 2


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def _padded(images: Tensor, height: int, width: int, black: Sequence[float]) -> Tensor:
    """Images (B, 3, h, w) with black below and at the right, (B, 3, height, width)."""
    if tuple(images.shape[-2:]) == (height, width):
        return images
    padded = images.new_tensor(black)[:, None, None].repeat(len(images), 1, height, width)
    padded[..., : images.shape[-2], : images.shape[-1]] = images
    return padded


def _counts(starts: Sequence[int], side: int, length: int) -> Tensor:
    """How many windows hold each pixel along one side, (length,)."""
    counts = torch.zeros(length)
    for start in starts:
        counts[start : start + side] += 1
    return counts


def _add_resized_logs(total: Tensor | None, logs: Tensor, size: Sequence[int]) -> Tensor:
    """log(exp(total) + resized exp(logs)), (B, C, *size); a few classes at a time."""
    if total is None:
        total = logs.new_full((*logs.shape[:2], *size), -math.inf)
    for sums, part in zip(total.split(_CLASSES_AT_ONCE, 1), logs.split(_CLASSES_AT_ONCE, 1), strict=True):
        for dim, length in zip((-2, -1), size, strict=True):
            part = _resized_log(part, dim, length)
        sums.copy_(torch.logaddexp(sums, part))
    return total


def _resized_log(logs: Tensor, dim: int, length: int) -> Tensor:
    """The logarithm of exp(logs) resized linearly along one dimension, corners on corners.

    Each new value is a weighted sum of two old ones, so its logarithm is a logaddexp of both: nothing
    overflows, and a pixel of small scores keeps its digits beside one of large scores, which subtracting one
    maximum from the whole map would not grant.
    """
    old = logs.shape[dim]
    if old == length:
        return logs
    places = torch.arange(length, device=logs.device, dtype=torch.float64) * ((old - 1) / max(1, length - 1))
    low = places.long().clamp_(max=old - 1)
    high = (low + 1).clamp_(max=old - 1)
    weight = (places - low).to(logs.dtype)  # of the higher neighbor
    if dim == -2:
        weight = weight[:, None]
    # log1p(-weight) is the logarithm of the lower one's; a weight of 0 gives -inf, which adds nothing.
    return torch.logaddexp(
        logs.index_select(dim, low) + torch.log1p(-weight), logs.index_select(dim, high) + weight.log()
    )
