"""The exercises of notebook 06: the rate, the hard pixels, the split of a D block, scores, and a test."""

import math
import statistics
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segkit.evaluation.metrics import REDUCED_WITHOUT
from segkit.evaluation.metrics import reduced_miou as _reduced_miou
from segkit.notebook.exercises.kinds import Exercise, Function, Value
from segkit.training.schedules import poly, warmup

# 06.1: Section 4.2, on Cityscapes: 2975 images, 8 in a step, the rest of an epoch left out, 1000 epochs
_STEPS = 2975 // 8 * 1000
_RATE = 0.05
_POLY, _WARMUP = poly(1500, _STEPS, power=0.9), warmup(1500, 3000, factor=0.1)

# 06.2: 8 crops of 768x768
_PIXELS = 8 * 768 * 768


# 06.3
def _split(x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int], groups: int) -> Tensor:
    parts = x.chunk(len(dilations), dim=1)
    return torch.cat(
        [
            F.conv2d(part, weight, padding=d, dilation=d, groups=groups)
            for part, weight, d in zip(parts, weights, dilations, strict=True)
        ],
        dim=1,
    )


def _interleaved(x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int], groups: int) -> Tensor:
    n = len(dilations)
    mixed = torch.cat([x[:, i::n] for i in range(n)], dim=1)
    return _split(mixed, weights, dilations, groups)


def _padding_of_one(x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int], groups: int) -> Tensor:
    parts = x.chunk(len(dilations), dim=1)
    return torch.cat(
        [
            F.conv2d(part, weight, padding=1, dilation=d, groups=groups)
            for part, weight, d in zip(parts, weights, dilations, strict=True)
        ],
        dim=1,
    )


def _no_dilation(x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int], groups: int) -> Tensor:
    return _split(x, weights, [1] * len(dilations), groups)


def _swapped(x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int], groups: int) -> Tensor:
    return _split(x, weights, list(dilations)[::-1], groups)


def _summed(x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int], groups: int) -> Tensor:
    return sum(_split(x, weights, dilations, groups).chunk(len(dilations), dim=1))


def _split_case(width: int, dilations: tuple[int, ...], size: tuple[int, int]) -> Callable[[], tuple]:
    def make() -> tuple:
        generator = torch.Generator().manual_seed(width)
        part = width // len(dilations)
        x = torch.randn(2, width, *size, generator=generator, requires_grad=True)
        weights = [torch.randn(part, part // 2, 3, 3, generator=generator) for _ in dilations]
        return x, weights, dilations, 2

    return make


# 06.4
def _reduced(iou: Sequence[float], names: Sequence[str]) -> float:
    return _reduced_miou(torch.tensor(iou), names)


def _without_train_only(iou: Sequence[float], names: Sequence[str]) -> float:
    return _reduced_miou(torch.tensor(iou), names, without=("train",))


def _plain_mean(iou: Sequence[float], names: Sequence[str]) -> float:
    return _reduced_miou(torch.tensor(iou), names, without=())


def _by_all_classes(iou: Sequence[float], names: Sequence[str]) -> float:
    kept = [value for value, name in zip(iou, names, strict=True) if name not in REDUCED_WITHOUT]
    return sum(kept) / len(names)


def _iou_case(*values: float) -> Callable[[], tuple]:
    names = ("road", "car", "truck", "bus", "train", "bicycle", "rider")
    return lambda: (values, names[: len(values)])


# 06.5: Table 10's last epochs, from the author's logs
_REGSEG, _DDRNET = (77.683, 78.799, 77.903), (77.520, 77.724, 77.532)


def _t(variance: Callable[[Sequence[float]], float], *, mean: bool = True) -> float:
    n = len(_REGSEG)
    difference = statistics.fmean(_REGSEG) - statistics.fmean(_DDRNET)
    return difference / math.sqrt((variance(_REGSEG) + variance(_DDRNET)) / (n if mean else 1))


EXERCISES: dict[str, Exercise] = {
    "06.1": Value(
        _RATE * _POLY * _WARMUP,
        {
            _RATE * _WARMUP: "this is the warm-up alone; poly has begun as well, and multiplies it",
            _RATE * _POLY: "this is poly alone: the warm-up is half over, its factor is 0.1 + 0.9 * 0.5",
            _RATE * _POLY / 2: "the warm-up starts at 0.1, not at 0: its factor half way is 0.1 + 0.9 * 0.5",
            _POLY * _WARMUP: "this is the factor; multiply it by the initial rate, 0.05",
        },
        tolerance=1e-3,
    ),
    "06.2": Value(
        _PIXELS // 16,
        {
            _PIXELS // 16 / 8: "this is for one crop; the pixels of the whole batch are ranked together",
            _PIXELS: "these are all pixels of the batch; a sixteenth of them is the least",
            768 * 768: "these are all pixels of one crop; take the batch, and a sixteenth of it",
            8 * 1024 * 1024 // 16: "this is for crops of 1024x1024; here they are 768x768",
        },
        tolerance=1e-6,
    ),
    "06.3": Function(
        _split,
        [
            _split_case(8, (1, 4), (10, 12)),
            _split_case(16, (1, 3, 6, 12), (15, 13)),
            _split_case(12, (2, 5), (11, 9)),
        ],
        {
            _interleaved: "every second channel went to a branch: the parts are neighbors, the first half to "
            "the first branch",
            _padding_of_one: "the padding must grow with the dilation, or the maps shrink and do not fit "
            "together",
            _no_dilation: "the dilations are not used: convolution and padding both take them",
            _swapped: "the dilations are in the wrong order: the first one is for the first channels",
            _summed: "the branches are concatenated, not added: each keeps its channels",
        },
    ),
    "06.4": Function(
        _reduced,
        [
            _iou_case(0.9, 0.8, 0.1, 0.2, 0.3, 0.5),
            _iou_case(0.5, 0.25, 0.75, 0.5, 1.0, 0.75, 0.0),
            _iou_case(0.97, 0.9, 0.6, 0.7, 0.0, 0.7, 0.4),
        ],
        {
            _plain_mean: "this is the mean of all classes; leave out truck, bus and train",
            _without_train_only: "only train is left out (as in the author's own logs); truck and bus go too",
            _by_all_classes: "the sum is right; divide by the number of classes that are left",
        },
    ),
    "06.5": Value(
        _t(statistics.variance),
        {
            _t(statistics.pvariance): "this divides by n inside of the deviations: that of a sample divides "
            "by n - 1 (statistics.variance)",
            _t(statistics.variance, mean=False): "the variances are those of single runs; those of the means "
            "are a third of them",
            statistics.fmean(_REGSEG) - statistics.fmean(_DDRNET): "this is the difference; divide it by its "
            "standard error",
        },
        tolerance=2e-3,
    ),
}
