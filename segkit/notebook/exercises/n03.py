"""The exercises of notebook 03: the ladder, how it is scored and how it is trained."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.notebook.exercises.kinds import Choice, Exercise, Function, Value
from segkit.training.losses import label_distribution
from segkit.training.schedules import cosine

# 03.2: rows are the truth, columns the prediction, in pixels.
CONFUSION = ((60, 3, 1), (10, 15, 0), (2, 4, 5))


def _shares(confusion: tuple[tuple[int, ...], ...]) -> dict[str, float]:
    """Every score that gets mistaken for the mIoU, with the mIoU itself."""
    matrix = torch.tensor(confusion, dtype=torch.float64)
    hits, truth, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
    iou = hits / (truth + predicted - hits)
    return {
        "miou": iou.mean().item(),
        "accuracy": (hits.sum() / matrix.sum()).item(),
        "recall": (hits / truth).mean().item(),
        "precision": (hits / predicted).mean().item(),
        "counted twice": (hits / (truth + predicted)).mean().item(),
        "weighted": (iou * truth / truth.sum()).sum().item(),
    }


_SCORE = _shares(CONFUSION)


# 03.3
def _soft_target(labels: Tensor, n: int, num_classes: int) -> Tensor:
    cells = (labels.shape[1] // n, labels.shape[2] // n)
    return label_distribution(labels, cells, num_classes=num_classes)[0]


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """float (B, C, H, W), zeros where a pixel is ignored."""
    planes = F.one_hot(labels.masked_fill(labels == 255, num_classes), num_classes + 1)  # (B, H, W, C + 1)
    return planes[..., :num_classes].permute(0, 3, 1, 2).float()


def _mean_over_all_pixels(labels: Tensor, n: int, num_classes: int) -> Tensor:
    return F.avg_pool2d(_one_hot(labels, num_classes), n)


def _ignored_as_class_0(labels: Tensor, n: int, num_classes: int) -> Tensor:
    planes = F.one_hot(labels.masked_fill(labels == 255, 0), num_classes)
    return F.avg_pool2d(planes.permute(0, 3, 1, 2).float(), n)


def _ignored_as_last_class(labels: Tensor, n: int, num_classes: int) -> Tensor:
    planes = F.one_hot(labels.clamp(max=num_classes - 1), num_classes)
    return F.avg_pool2d(planes.permute(0, 3, 1, 2).float(), n)


def _winner_takes_all(labels: Tensor, n: int, num_classes: int) -> Tensor:
    share = _soft_target(labels, n, num_classes)  # (B, C, h, w)
    winner = F.one_hot(share.argmax(1), num_classes).permute(0, 3, 1, 2).float()
    return winner * (share.sum(1, keepdim=True) > 0)


def _nan_without_labels(labels: Tensor, n: int, num_classes: int) -> Tensor:
    share = _mean_over_all_pixels(labels, n, num_classes)
    return share / share.sum(1, keepdim=True)


def _counts(labels: Tensor, n: int, num_classes: int) -> Tensor:
    return _mean_over_all_pixels(labels, n, num_classes) * n**2


def _label_case(height: int, width: int, n: int, num_classes: int) -> Callable[[], tuple]:
    def make() -> tuple:
        generator = torch.Generator().manual_seed(height)
        labels = torch.randint(num_classes, (2, height, width), generator=generator)
        labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
        labels[0, :n, :n] = 255  # one window without any label
        return labels, n, num_classes

    return make


# 03.4
def _transition_up(x: Tensor, skip: Tensor, project: nn.Module, blend: nn.Module) -> Tensor:
    x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
    return blend(x + project(skip))


def _skip_resized(x: Tensor, skip: Tensor, project: nn.Module, blend: nn.Module) -> Tensor:
    skip = F.interpolate(project(skip), size=x.shape[-2:], mode="bilinear", align_corners=False)
    return blend(x + skip)


def _skip_doubled(x: Tensor, skip: Tensor, project: nn.Module, blend: nn.Module) -> Tensor:
    skip = F.interpolate(project(skip), scale_factor=2, mode="bilinear", align_corners=False)
    return blend(x + skip)


def _projected_after_the_sum(x: Tensor, skip: Tensor, project: nn.Module, blend: nn.Module) -> Tensor:
    x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
    return blend(project(x + skip))


def _doubled(x: Tensor, skip: Tensor, project: nn.Module, blend: nn.Module) -> Tensor:
    return blend(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False) + project(skip))


def _nearest(x: Tensor, skip: Tensor, project: nn.Module, blend: nn.Module) -> Tensor:
    return blend(F.interpolate(x, size=skip.shape[-2:]) + project(skip))


def _corners(x: Tensor, skip: Tensor, project: nn.Module, blend: nn.Module) -> Tensor:
    x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=True)
    return blend(x + project(skip))


def _not_blended(x: Tensor, skip: Tensor, project: nn.Module, blend: nn.Module) -> Tensor:
    return F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False) + project(skip)


def _ladder_case(channels: int, skip_channels: int, size: tuple[int, int], skip_size: tuple[int, int]):
    def brc(wide: int, narrow: int, kernel: int) -> nn.Module:
        conv = nn.Conv2d(wide, narrow, kernel, padding=kernel // 2, bias=False)
        return nn.Sequential(nn.BatchNorm2d(wide), nn.ReLU(), conv)

    def make() -> tuple:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(channels)
            x = torch.randn(2, channels, *size, requires_grad=True)
            skip = torch.randn(2, skip_channels, *skip_size, requires_grad=True)
            return x, skip, brc(skip_channels, channels, 1), brc(channels, 4, 3)

    return make


# 03.5
def _rate(epoch: int, epochs: int, initial: float) -> float:
    return initial * cosine(epoch, epochs)


def _half_forgotten(epoch: int, epochs: int, initial: float) -> float:
    return initial * (1 + math.cos(math.pi * epoch / epochs))


def _whole_wave(epoch: int, epochs: int, initial: float) -> float:
    return initial * (1 + math.cos(2 * math.pi * epoch / epochs)) / 2


def _quarter_wave(epoch: int, epochs: int, initial: float) -> float:
    return initial * math.cos(math.pi * epoch / epochs / 2)


def _raw_cosine(epoch: int, epochs: int, initial: float) -> float:
    return initial * math.cos(math.pi * epoch / epochs)


def _rising(epoch: int, epochs: int, initial: float) -> float:
    return initial * (1 - math.cos(math.pi * epoch / epochs)) / 2


def _ends_at_zero(epoch: int, epochs: int, initial: float) -> float:
    return initial * (1 + math.cos(math.pi * epoch / (epochs - 1))) / 2


def _in_degrees(epoch: int, epochs: int, initial: float) -> float:
    return initial * (1 + math.cos(180 * epoch / epochs)) / 2


def _straight_line(epoch: int, epochs: int, initial: float) -> float:
    return initial * (1 - epoch / epochs)


EXERCISES: dict[str, Exercise] = {
    "03.1": Choice(
        "resolution",
        {
            "channels": "the up path is the narrow one: 256 or 128 maps against up to 1024 in the down path",
            "kernels": "kernel size multiplies parameters and MACs alike, so it cannot move their ratio",
            "upsampling": "bilinear upsampling counts no MACs at all in this convention",
            "skips": "skips are read, not computed; projecting them takes 1x1 convolutions, the smaller part",
        },
    ),
    "03.2": Value(
        _SCORE["miou"],
        {
            _SCORE[
                "accuracy"
            ]: "this is the pixel accuracy: hits over all pixels, which the large class decides",
            _SCORE[
                "recall"
            ]: "this is the mean recall: a class must also pay for pixels it claims wrongly (columns)",
            _SCORE[
                "precision"
            ]: "this is the mean precision: a class must also pay for pixels it misses (rows)",
            _SCORE["counted twice"]: "row sum + column sum counts the hits twice: the union has them once",
            _SCORE[
                "weighted"
            ]: "this is weighted by class frequency: in the mIoU every class counts the same",
            100 * _SCORE["miou"]: "right in percent; give the fraction, between 0 and 1",
        },
    ),
    "03.3": Function(
        _soft_target,
        [_label_case(8, 16, 4, 3), _label_case(15, 21, 3, 4), _label_case(32, 16, 8, 5)],
        {
            _mean_over_all_pixels: "the shares of a window with ignored pixels add up to less than 1: "
            "divide by the labelled pixels, not by all",
            _ignored_as_class_0: "the ignored pixels were counted as class 0",
            _ignored_as_last_class: "the ignored pixels were counted as the last class",
            _winner_takes_all: "this is the most frequent class; the target keeps the share of every class",
            _nan_without_labels: "a window without any label must give zeros: here 0 / 0 gives NaN",
            _counts: "these are pixel counts; a distribution adds up to 1",
        },
    ),
    "03.4": Function(
        _transition_up,
        [
            _ladder_case(8, 8, (4, 8), (8, 16)),
            _ladder_case(8, 6, (4, 4), (8, 8)),
            _ladder_case(6, 10, (4, 5), (7, 9)),
        ],
        {
            _skip_resized: "the skip was brought to the size of x, losing its detail: upsample x instead",
            _skip_doubled: "the skip was upsampled; it is the larger one already: upsample x instead",
            _projected_after_the_sum: "the projection comes after the sum: only the skip is projected, so "
            "that both have the same number of maps before they are added",
            _doubled: "right where the skip is exactly twice as large, but scale_factor=2 fails on odd "
            "sizes: upsample to the skip's size",
            _nearest: "the upsampling is nearest-neighbor; Section 4.3 asks for bilinear",
            _corners: "align_corners=True shifts the maps against each other; leave it False",
            _not_blended: "the sum is right, the 3x3 convolution after it is missing",
        },
    ),
    "03.5": Function(
        _rate,
        [
            lambda: (0, 300, 4e-4),
            lambda: (7, 21, 4e-4),
            lambda: (150, 300, 1e-3),
            lambda: (7, 8, 4e-4),
        ],
        {
            _half_forgotten: "the rate starts at twice the initial one: 1 + cos runs from 2 to 0; halve it",
            _whole_wave: "this falls and rises again: the angle runs from 0 to pi, half a wave",
            _quarter_wave: "this is a quarter of a wave: the angle runs from 0 to pi, and 1 is added",
            _raw_cosine: "a rate below 0 in the second half: add 1 to the cosine, then halve",
            _rising: "this one rises: the rate starts at the initial one and falls",
            _ends_at_zero: "dividing by epochs - 1 makes the last epoch train with rate 0; divide by epochs",
            _in_degrees: "math.cos takes radians: 180 degrees are math.pi",
            _straight_line: "this falls along a straight line, not along a cosine",
        },
        atol=1e-9,
    ),
}
