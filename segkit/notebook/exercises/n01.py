"""The exercises of notebook 01: what a dense block keeps, and the residual unit that does the same."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.notebook.dense import dense_block, dense_channels, eq1, eq2
from segkit.notebook.exercises.kinds import Choice, Exercise, Function, Value

# 01.2: DB2 of DenseNet-121
UNITS, F_IN, K, F_OUT = 12, 128, 32, 512


# 01.3
def _naive(n: int, f: int, k: int) -> int:
    return dense_channels(n, f, k)["naive"]


def _reads(n: int, f: int, k: int) -> int:
    return sum(f + i * k for i in range(n))


def _once_without_bottleneck(n: int, f: int, k: int) -> int:
    return _reads(n, f, k)


def _without_bottleneck(n: int, f: int, k: int) -> int:
    return 2 * _reads(n, f, k)


def _normalized_forgotten(n: int, f: int, k: int) -> int:
    return _reads(n, f, k) + 8 * k * n


def _bottleneck_once(n: int, f: int, k: int) -> int:
    return 2 * _reads(n, f, k) + 4 * k * n


def _one_read_too_many(n: int, f: int, k: int) -> int:
    return 2 * _reads(n + 1, f, k) + 8 * k * n


def _first_read_missing(n: int, f: int, k: int) -> int:
    return 2 * (_reads(n + 1, f, k) - f) + 8 * k * n


def _constant_width(n: int, f: int, k: int) -> int:
    return 2 * n * (f + n * k) + 8 * k * n


def _outputs_too(n: int, f: int, k: int) -> int:
    return _naive(n, f, k) + k * n


# 01.4
def _residual_unit(x: Tensor, unit: nn.Module, width: int) -> Tensor:
    return x + _placed(x, unit(x[:, :width]), width)


def _placed(x: Tensor, new: Tensor, start: int) -> Tensor:
    """The new maps at `start`, zeros elsewhere, in the shape of x."""
    return F.pad(new, (0, 0, 0, 0, start, x.shape[1] - start - new.shape[1]))


def _too_far_right(x: Tensor, unit: nn.Module, width: int) -> Tensor:
    new = unit(x[:, :width])
    return x + _placed(x, new, width + new.shape[1])


def _too_far_left(x: Tensor, unit: nn.Module, width: int) -> Tensor:
    new = unit(x[:, :width])
    return x + _placed(x, new, width - new.shape[1])


def _at_the_front(x: Tensor, unit: nn.Module, width: int) -> Tensor:
    return x + _placed(x, unit(x[:, :width]), 0)


def _without_sum(x: Tensor, unit: nn.Module, width: int) -> Tensor:
    return _placed(x, unit(x[:, :width]), width)


def _assigned(x: Tensor, unit: nn.Module, width: int) -> Tensor:
    new, out = unit(x[:, :width]), x.clone()
    out[:, width : width + new.shape[1]] = new
    return out


def _concatenated(x: Tensor, unit: nn.Module, width: int) -> Tensor:
    return torch.cat([x[:, :width], unit(x[:, :width])], dim=1)


def _reads_all(x: Tensor, unit: nn.Module, width: int) -> Tensor:
    return x + _placed(x, unit(x), width)


def _unit_case(f_in: int, k: int, spare: int, size: tuple[int, int]) -> Callable[[], tuple]:
    def make() -> tuple:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(f_in)
            (unit,) = dense_block(1, f_in, k, device="cpu").double().units
            x = torch.randn(2, f_in, *size, dtype=torch.float64)
            x = F.pad(x, (0, 0, 0, 0, 0, k + spare))  # zeros where this unit and later ones write
            return x.requires_grad_(), unit, f_in

    return make


EXERCISES: dict[str, Exercise] = {
    "01.1": Choice(
        "units",
        {
            "maps": "both end with 1024 maps, and DB4 even begins with more: 512 against 256",
            "growth": "the growth rate is 32 in every block",
            "resolution": "these are channels per pixel: the number of pixels is not in them",
            "bottleneck": "every unit reduces to 4k = 128 maps, in DB3 as in DB4",
        },
    ),
    "01.2": Value(
        eq2(UNITS, F_IN, K),
        {
            eq2(UNITS + 1, F_IN, K): "these are all maps of the block: no unit of it reads the last one's, "
            "hence n - 1 and not n",
            eq1(UNITS, F_OUT): "this is equation (1) with DB2's n and F_out",
            eq1(4, F_OUT): "this is equation (1): the second block of ResNet-50",
            eq2(UNITS, 64, K): "64 maps enter DB1; what enters DB2 is half of DB1's 256",
            eq2(UNITS, 256, K): "DB1 puts out 256 maps, and the transition after it halves them",
        },
    ),
    "01.3": Function(
        _naive,
        [lambda: (6, 64, 32), lambda: (5, 30, 12), lambda: (24, 256, 48)],
        {
            _once_without_bottleneck: "each concatenation is there once; its BN-ReLU, which the 1x1 "
            "convolution reads, is kept too, and so is what lies between the two convolutions",
            _without_bottleneck: "the concatenations are right; the 4k maps between the two "
            "convolutions are missing",
            _normalized_forgotten: "each concatenation is kept twice: as the batch norm's input, and after "
            "BN-ReLU as the convolution's",
            _bottleneck_once: "the 4k maps are kept twice as well: before and after their BN-ReLU",
            _one_read_too_many: "there are n concatenations; the one after the last unit is the next "
            "layer's to keep",
            _first_read_missing: "the first unit reads F_in maps, not F_in + k",
            _constant_width: "this takes every unit to read F_out maps; the first one reads F_in only",
            _outputs_too: "a unit's output is not kept by itself: the next concatenations hold copies of it",
        },
    ),
    "01.4": Function(
        _residual_unit,
        [_unit_case(16, 4, 8, (5, 7)), _unit_case(9, 3, 3, (4, 4)), _unit_case(24, 6, 7, (3, 6))],
        {
            _too_far_right: "the new maps are k places too far right: they belong right behind the first "
            "`width` maps, where the next unit reads them",
            _too_far_left: "the new maps are k places too far left: they are added to another unit's maps",
            _at_the_front: "the new maps are added to the block's input: the first `width` places are taken",
            _without_sum: "the earlier maps are erased: a residual unit puts out x + r(x)",
            _assigned: "the values are right, but only because those places are zero: assigning is not "
            "adding, and it cuts the gradient there",
            _concatenated: "this is the dense unit: it concatenates, and the number of maps grows; a "
            "residual unit puts out as many as it takes",
            _reads_all: "the unit can only read the first `width` maps, those that are filled already",
        },
    ),
}
