"""Computations behind the claims of RegSeg, beside the general ones of `segkit.papers.checks`.

Dilations are written as in the paper: ``(1,1)+4*(1,14)`` is one block of dilations 1 and 1 and four of 1, 14.
"""

from __future__ import annotations

import functools
import itertools
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

from segkit import models
from segkit.data.labels import CAMVID11
from segkit.measure import cost
from segkit.measure.latency import PAPERS_ROUNDS, PAPERS_WARMUP
from segkit.measure.receptive_field import Layer, bound, compose, largest_path
from segkit.models.regseg import DBlock

IMAGE_SIZE = (1024, 2048)  # Sections 3.1 and 4.7: an image of Cityscapes
CLASSES = 19
BLOCK_INPUT = (256, 64, 128)  # Table 1: channels, height and width of what the timed blocks read
BEFORE = ((3, 2), (3, 2), (3, 2), 1, 1, (3, 2))  # Table 2: the 3x3 convolutions until one strides to 1/16


def work(model: str, *, convention: str, **options: object) -> float:
    """Multiply-adds on one 1024x2048 image, in units of 1e9.

    Args:
        model: a name of `segkit.models.MODELS`.
        convention: what counts: ``conv``, ``conv+bn`` or ``fvcore``, see `segkit.measure.cost`.
        **options: options of the model's builder.
    """
    return cost(_on_meta(model, **options), IMAGE_SIZE, convention=convention).macs / 1e9


def field_of_backbone(model: str) -> float:
    """The field-of-view of a backbone's maps at 1/16, in pixels: equation (1) along its largest path."""
    return compose(_path(model)).size


def stride_of_backbone(model: str) -> float:
    """The stride of a backbone's coarsest maps, in pixels."""
    return compose(_path(model)).stride


def field_of_rates(rates: str) -> float:
    """The field-of-view that dilations give after the backbone's layers up to 1/16, in pixels (equation (1)).

    Args:
        rates: dilations as the paper writes them, of blocks of stride 1; each counts with its largest.
    """
    return compose([*BEFORE, *(max(block) for block in _parsed(rates))]).size


def field_of_convolutions(dilations: Sequence[int]) -> float:
    """The field-of-view of 3x3 convolutions of these dilations, one after the other, in pixels."""
    return compose(dilations).size


def field_across(pixels: int) -> float:
    """The field-of-view with which the first output pixel sees so many input pixels (Section 3.1).

    A 3x3 convolution with its padding of one pixel lets the first output pixel see one pixel more; the field
    is that of as many as it takes.
    """
    return compose([1] * (pixels - 1)).size


def beyond_bound(models: Sequence[str]) -> float:
    """How many convolutions along the largest paths of these models' backbones have k/s < r (Section 3.1)."""
    return sum(not entry.holds for model in models for entry in bound(_path(model)))


def blocks_as_printed(model: str, rates: str) -> float:
    """How many blocks of a text are those of a model: the same dilations at the same place.

    The text's last block stands for the backbone's last.

    Args:
        model: a name of `segkit.models.MODELS`.
        rates: dilations as the paper writes them.

    Raises:
        ValueError: if the model has fewer blocks.
    """
    printed, built = _parsed(rates), _operators(model)[1:]
    if len(printed) > len(built):
        raise ValueError(f"{model} has {len(built)} blocks, fewer than the {len(printed)} of {rates!r}")
    pairs = zip(printed, built[len(built) - len(printed) :], strict=True)
    return sum(_distinct(dilations) == block.dilations for dilations, block in pairs)


def operator(number: int, *, quantity: str) -> float:
    """A cell of Table 2, read off RegSeg's backbone: like operators after one another are a row.

    Args:
        number: which row, from 1.
        quantity: ``d1``, ``d2``, ``stride`` (of the row's first operator), ``channels`` or ``repeat``.
    """
    rows: list[list[_Operator]] = []
    for each in _operators("regseg"):
        if rows and each.stride == 1 and each.like(rows[-1][0]):
            rows[-1].append(each)
        else:
            rows.append([each])
    first = rows[number - 1][0]
    return {
        "d1": first.dilations[0],
        "d2": first.dilations[-1],
        "stride": first.stride,
        "channels": first.channels,
        "repeat": len(rows[number - 1]),
    }[quantity]


def blocks(
    *,
    subsampling: int | None = None,
    channels: int | None = None,
    stride: int | None = None,
    dilations: Sequence[int] | None = None,
) -> float:
    """How many D blocks of RegSeg's backbone are such.

    Args:
        subsampling: of their output against the image; None for any, like the others.
        channels: out.
        stride: 1 or 2.
        dilations: of the branches.
    """
    count, reached = 0, 1
    for number, each in enumerate(_operators("regseg")):
        reached *= each.stride
        found = {
            "subsampling": (subsampling, reached),
            "channels": (channels, each.channels),
            "stride": (stride, each.stride),
            "dilations": (None if dilations is None else _distinct(dilations), each.dilations),
        }
        count += number > 0 and all(wanted in (None, is_) for wanted, is_ in found.values())
    return count


def largest_dilation(model: str) -> float:
    """The largest dilation in a network's backbone."""
    return max(max(each.dilations) for each in _operators(model))


def block_factor(dilations: Sequence[int], *, quantity: str) -> float:
    """How many times a D block takes what the Y block takes, w = 256 and g = 16 (Table 1, Section 3.2).

    Args:
        dilations: of its branches.
        quantity: ``params`` or ``macs``.
    """
    channels, *size = BLOCK_INPUT
    with torch.device("meta"):
        counted = [cost(_Block(channels, rates), tuple(size)) for rates in (tuple(dilations), (1,))]
    return getattr(counted[0], quantity) / getattr(counted[1], quantity)


def convolution(model: str, module: str, *, quantity: str) -> float:
    """A property of the convolution in a module, such as a decoder's.

    Args:
        model: a name of `segkit.models.MODELS`.
        module: the module's name in the network.
        quantity: ``channels`` that it puts out, or ``kernel``, its taps along an axis.

    Raises:
        ValueError: if the module has none, or several.
    """
    part = _on_meta(model).get_submodule(module)
    found = [m for m in part.modules() if isinstance(m, nn.Conv2d)]
    if len(found) != 1:
        raise ValueError(
            f"{module!r} of {model} has {len(found)} convolutions; name a module that has exactly one"
        )
    return {"channels": found[0].out_channels, "kernel": found[0].kernel_size[0]}[quantity]


def stride_of_logits(models: Sequence[str]) -> float:
    """The stride of what the decoder makes, the logits before they are upsampled to the image, in pixels.

    Raises:
        ValueError: if the models differ in it.
    """
    strides = {}
    for model in models:
        network = _on_meta(model)
        sides = zip(
            network.backbone.channels, (16, 8, 4), strict=True
        )  # two images of 64x64 at 1/4, 1/8, 1/16
        maps = (torch.empty(2, channels, side, side, device="meta") for channels, side in sides)
        strides[model] = 64 / network.decoder(*maps).shape[-2]
    if len(set(strides.values())) > 1:
        raise ValueError(f"logits at several strides: {strides}")
    return strides[models[0]]


def classifier(name: str, *, quantity: str) -> float:
    """What torchvision's ImageNet classifier ends with: ``channels`` of its last maps, or its ``classes``."""
    with torch.device("meta"):
        last = torchvision.models.get_model(name).fc
    return {"channels": last.in_features, "classes": last.out_features}[quantity]


def camvid_classes() -> float:
    """Classes that the kit's CamVid loader gives to train and evaluate on."""
    return CAMVID11.num_classes


def timing(*, quantity: str) -> float:
    """Iterations in which the benchmarks time on a GPU: ``warmup``, not timed, or timed ``rounds``."""
    return {"warmup": PAPERS_WARMUP, "rounds": PAPERS_ROUNDS}[quantity]


def mean(numbers: Sequence[float]) -> float:
    """The mean of printed numbers."""
    return statistics.fmean(numbers)


def deviation(runs: Sequence[float]) -> float:
    """The standard deviation of listed runs, dividing by their number."""
    return statistics.pstdev(runs)


def deviation_factor(runs: Sequence[float], *, over: Sequence[float]) -> float:
    """The `deviation` of listed runs over that of others."""
    return deviation(runs) / deviation(over)


FUNCTIONS: dict[str, Callable[..., float]] = {
    function.__name__: function
    for function in (
        work,
        field_of_backbone,
        stride_of_backbone,
        field_of_rates,
        field_of_convolutions,
        field_across,
        beyond_bound,
        blocks_as_printed,
        operator,
        blocks,
        largest_dilation,
        block_factor,
        convolution,
        stride_of_logits,
        classifier,
        camvid_classes,
        timing,
        mean,
        deviation,
        deviation_factor,
    )
}


def forget() -> None:
    """Drop what was read off networks, as `segkit.papers.checks.forget`."""
    _on_meta.cache_clear()
    _path.cache_clear()


@dataclass(frozen=True)
class _Operator:
    """A line of Table 2, not yet counted: the stem or a block."""

    kind: type[nn.Module]
    stride: int
    channels: int
    dilations: tuple[int, ...]

    def like(self, other: _Operator) -> bool:
        return (self.kind, self.channels, self.dilations) == (other.kind, other.channels, other.dilations)


class _Block(nn.Module):
    """A D block on maps made of an image's first channel: `cost` counts what is done to an image."""

    def __init__(self, channels: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.block = DBlock(channels, channels, dilations)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x[:, :1].expand(-1, self.channels, -1, -1))


@functools.cache
def _on_meta(model: str, **options: object) -> nn.Module:
    return models.build(model, num_classes=CLASSES, device="meta", **options)


@functools.cache
def _path(model: str) -> tuple[Layer, ...]:
    """The convolutions along which the field of a backbone's coarsest maps grows largest."""
    return tuple(largest_path(_on_meta(model), at="backbone", output=-1))


def _operators(model: str) -> list[_Operator]:
    """A backbone's stem and blocks, in order."""
    backbone = _on_meta(model).backbone
    stem = next(module for module in backbone.stem.modules() if isinstance(module, nn.Conv2d))
    found = [_Operator(type(stem), stem.stride[0], stem.out_channels, stem.dilation[:1])]
    for block in backbone.modules():
        if isinstance(block, DBlock):
            branches = list(block.branches)
            dilations = tuple(branch.dilation[0] for branch in branches)
            channels = sum(branch.out_channels for branch in branches)
            found.append(_Operator(type(block), branches[0].stride[0], channels, dilations))
    return found


def _parsed(rates: str) -> list[tuple[int, ...]]:
    """Dilations of each block, from the paper's shorthand."""
    parts = rates.replace(" ", "").split("+")
    matches = [re.fullmatch(r"(?:(\d+)\*)?\((\d+(?:,\d+)*)\)", part) for part in parts]
    if not all(matches):
        raise ValueError(f"{rates!r} is not dilations such as (1,1)+4*(1,14)")
    counted = ([tuple(map(int, m[2].split(",")))] * int(m[1] or 1) for m in matches)
    return list(itertools.chain.from_iterable(counted))


def _distinct(dilations: Sequence[int]) -> tuple[int, ...]:
    """Dilations as a block has them: equal ones need no branches (end of Section 3.2)."""
    return tuple(dilations[:1]) if len(set(dilations)) == 1 else tuple(dilations)
