"""The exercises of notebook 08: a ratio, phases, the JPU's merge, sixty classes, and the optimizer's list."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.evaluation.metrics import sixty_class_miou
from segkit.models.jpu import JointPyramidUpsampling
from segkit.notebook.exercises.kinds import Exercise, Function, Value
from segkit.notebook.phases import split_conv_merge

# 08.1: multiply-adds of the two networks, G, and their printed frames per second (tests recompute the first)
PSP_DILATED, PSP_JPU = 271.54, 157.77
_FPS_DILATED, _FPS_JPU = 11.36, 23.87


# 08.2
def _from_phases(x: Tensor, weight: Tensor, rate: int) -> Tensor:
    return split_conv_merge(x, weight, rate=rate)


def _phases(x: Tensor, weight: Tensor, rate: int, *, padding: int, mode: str = "constant") -> Tensor:
    out = torch.empty_like(x)
    for start in range(rate):
        phase = F.pad(x[..., start::rate], (padding, padding), mode=mode)
        out[..., start::rate] = F.conv1d(phase, weight)
    return out


def _dilated_padding(x: Tensor, weight: Tensor, rate: int) -> Tensor:
    return _phases(x, weight, rate, padding=rate * (weight.shape[2] // 2))


def _no_padding(x: Tensor, weight: Tensor, rate: int) -> Tensor:
    return _phases(x, weight, rate, padding=0)


def _reflected(x: Tensor, weight: Tensor, rate: int) -> Tensor:
    return _phases(x, weight, rate, padding=weight.shape[2] // 2, mode="reflect")


def _blocks(x: Tensor, weight: Tensor, rate: int) -> Tensor:
    parts = x.tensor_split(rate, dim=2)
    return torch.cat([F.conv1d(part, weight, padding=weight.shape[2] // 2) for part in parts], dim=2)


def _one_after_the_other(x: Tensor, weight: Tensor, rate: int) -> Tensor:
    parts = [x[..., start::rate] for start in range(rate)]
    return torch.cat([F.conv1d(part, weight, padding=weight.shape[2] // 2) for part in parts], dim=2)


def _not_split(x: Tensor, weight: Tensor, rate: int) -> Tensor:
    return F.conv1d(x, weight, padding=weight.shape[2] // 2)


def _first_phase(x: Tensor, weight: Tensor, rate: int) -> Tensor:
    return F.conv1d(x[..., ::rate], weight, padding=weight.shape[2] // 2)


def _signal_case(length: int, kernel: int, rate: int) -> Callable[[], tuple]:
    def make() -> tuple:
        generator = torch.Generator().manual_seed(length)
        x = torch.randn(2, 3, length, generator=generator, requires_grad=True)
        return x, torch.randn(3, 3, kernel, generator=generator), rate

    return make


# 08.3
def _merge(jpu: JointPyramidUpsampling, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
    return jpu([fine, middle, coarse])


def _merged(
    jpu: JointPyramidUpsampling,
    maps: Sequence[Tensor],
    *,
    fine_first: bool = False,
    to_coarse: bool = False,
    aligned: bool = True,
    before: bool = False,
) -> Tensor:
    """The joined maps, with one of several mistakes."""
    size = maps[2 if to_coarse else 0].shape[-2:]

    def resized(x: Tensor) -> Tensor:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=aligned)

    if before:
        parts = [embed(resized(x)) for embed, x in zip(jpu.embed, maps, strict=True)]
    else:
        parts = [resized(embed(x)) for embed, x in zip(jpu.embed, maps, strict=True)]
    return torch.cat(parts if fine_first else parts[::-1], dim=1)


def _looked_at(jpu: JointPyramidUpsampling, joined: Tensor) -> Tensor:
    return torch.cat([branch(joined) for branch in jpu.branches], dim=1)


def _fine_first(jpu: JointPyramidUpsampling, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
    return _looked_at(jpu, _merged(jpu, (fine, middle, coarse), fine_first=True))


def _to_coarse(jpu: JointPyramidUpsampling, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
    return _looked_at(jpu, _merged(jpu, (fine, middle, coarse), to_coarse=True))


def _corners_free(jpu: JointPyramidUpsampling, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
    return _looked_at(jpu, _merged(jpu, (fine, middle, coarse), aligned=False))


def _resized_first(jpu: JointPyramidUpsampling, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
    return _looked_at(jpu, _merged(jpu, (fine, middle, coarse), before=True))


def _summed(jpu: JointPyramidUpsampling, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
    joined = _merged(jpu, (fine, middle, coarse))
    return sum(branch(joined) for branch in jpu.branches)


def _relu_between(jpu: JointPyramidUpsampling, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
    joined = _merged(jpu, (fine, middle, coarse))
    return torch.cat([branch[2:](F.relu(branch[:2](joined))) for branch in jpu.branches], dim=1)


def _joined_only(jpu: JointPyramidUpsampling, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
    return _merged(jpu, (fine, middle, coarse))


def _pyramid_case(height: int, width: int) -> Callable[[], tuple]:
    def make() -> tuple:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(height)
            jpu = JointPyramidUpsampling((3, 4, 5), 2, dilations=(1, 2))
            maps = [
                torch.randn(2, channels, -(-height // step), -(-width // step)).requires_grad_()
                for channels, step in ((3, 1), (4, 2), (5, 4))
            ]
        return jpu, *maps

    return make


# 08.5
class Groups(list):
    """An optimizer's ``param_groups``; shown in hints by their number and how many tensors they hold."""

    def __repr__(self) -> str:
        tensors = sum(len(group["params"]) for group in self)
        return f"of {len(self)} group{'s' * (len(self) != 1)}, {tensors} tensors"


def _missing(model: nn.Module, groups: Sequence[dict]) -> int:
    given = {id(p) for group in groups for p in group["params"]}
    return sum(p.numel() for p in model.parameters() if p.requires_grad and id(p) not in given)


def _tensors_not_values(model: nn.Module, groups: Sequence[dict]) -> int:
    given = {id(p) for group in groups for p in group["params"]}
    return sum(p.requires_grad and id(p) not in given for p in model.parameters())


def _frozen_too(model: nn.Module, groups: Sequence[dict]) -> int:
    given = {id(p) for group in groups for p in group["params"]}
    return sum(p.numel() for p in model.parameters() if id(p) not in given)


def _first_group(model: nn.Module, groups: Sequence[dict]) -> int:
    return _missing(model, groups[:1])


def _by_shape(model: nn.Module, groups: Sequence[dict]) -> int:
    given = {p.shape for group in groups for p in group["params"]}
    return sum(p.numel() for p in model.parameters() if p.requires_grad and p.shape not in given)


def _what_is_there(model: nn.Module, groups: Sequence[dict]) -> int:
    return sum(p.numel() for group in groups for p in group["params"])


def _net() -> nn.ModuleDict:
    parts = {"backbone": nn.Conv2d(3, 4, 3), "up": nn.Conv2d(4, 4, 3), "head": nn.Conv2d(4, 2, 1)}
    return nn.ModuleDict(parts | {"aux": nn.Conv2d(4, 2, 1)})


def _groups_case(*groups: Sequence[str], frozen: str = "") -> Callable[[], tuple]:
    def make() -> tuple:
        net = _net()
        if frozen:
            net[frozen].requires_grad_(False)
        return net, Groups(
            {"params": [p for part in parts for p in net[part].parameters()]} for parts in groups
        )

    return make


EXERCISES: dict[str, Exercise] = {
    "08.1": Value(
        PSP_DILATED / PSP_JPU,
        {
            PSP_JPU / PSP_DILATED: "this is the JPU's network by the dilated one: turn it over",
            _FPS_JPU / _FPS_DILATED: "this is the ratio of the printed frames per second; multiply-adds are "
            "asked for",
            193.96 / 138.37: "these are the networks with ResNet-50",
            234.04 / 85.91: "these are the networks with the Encoding head",
            PSP_DILATED - PSP_JPU: "this is the difference, in G; a ratio is asked for",
        },
        tolerance=3e-3,
    ),
    "08.2": Function(
        _from_phases,
        [_signal_case(11, 3, 2), _signal_case(18, 5, 3), _signal_case(13, 3, 4)],
        {
            _dilated_padding: "the phases were padded as the dilated convolution is: within a phase the taps "
            "are neighbors, so that it takes k // 2, not rate times that",
            _no_padding: "the phases were not padded: each takes k // 2 zeros on both sides",
            _reflected: "the padding is not of zeros: reflection brings in values of the signal",
            _blocks: "the signal was cut into pieces that lie side by side; a phase is every rate-th sample",
            _one_after_the_other: "the phases are right, but were put one after the other: sample i of phase "
            "r belongs at place rate * i + r",
            _not_split: "this is the regular convolution of the whole signal: split it first",
            _first_phase: "this is the first phase alone (the strided network's share): all are asked for",
        },
    ),
    "08.3": Function(
        _merge,
        [_pyramid_case(8, 12), _pyramid_case(9, 7), _pyramid_case(16, 8)],
        {
            _fine_first: "the order is turned round: in the authors' code the coarsest maps come first",
            _to_coarse: "the maps were resized to the coarsest one: the finest size is the JPU's output",
            _corners_free: "resized with align_corners=False; the authors align corners everywhere",
            _resized_first: "the maps were resized before their 3x3 convolutions, which then run at full "
            "size and cost up to 16 times as much",
            _summed: "the branches were added up; they are concatenated",
            _relu_between: "there is no ReLU between the depthwise and the pointwise convolution of a branch",
            _joined_only: "these are the joined maps; the branches come after them",
        },
    ),
    "08.4": Value(
        sixty_class_miou(52.10),
        {
            52.10 * 60 / 59: "turned over: with another class at 0 the mean becomes smaller",
            52.10: "this is the mean of 59 classes; the 60th counts 0 in the paper's figure",
            52.10 - 1: "one class of 60 less is not one point less",
            52.10 / 60: "this is a 60th of it; the sum of 59 classes is 59 times their mean",
            (59 * 52.10 + 100) / 60: "the background counts 0 here, not 100 %",
        },
        tolerance=2e-4,
    ),
    "08.5": Function(
        _missing,
        [
            _groups_case(("backbone",), ("head", "aux")),  # as in the authors' first release
            _groups_case(("backbone", "up", "head")),
            _groups_case(("up",), ("head",), ("aux",), frozen="backbone"),
            _groups_case(("backbone", "up"), ("head", "aux")),
        ],
        {
            _tensors_not_values: "these are tensors; count their values (numel)",
            _frozen_too: "frozen parameters were counted: who needs no gradient needs no optimizer",
            _first_group: "only the first group was looked at",
            _by_shape: "compared by shape: two layers may have equal shapes; compare the tensors themselves "
            "(by id, for == compares values)",
            _what_is_there: "these are the values that the optimizer has; what it lacks is asked for",
        },
    ),
}
