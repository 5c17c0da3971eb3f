"""Computations behind the claims of FastFCN, beside the general ones of `segkit.papers.checks`.

Networks have 59 classes. Work is multiply-adds on one 512x512 image, the auxiliary head included, as the
authors' speeds have it. What a training step keeps is what autograd saves in the forward pass on two 512x512
images, in bytes: each storage once, parameters and buffers apart. Stages have the paper's names: Conv1 is the
stem, Conv5 the last.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from segkit import models
from segkit.data.labels import ADE20K150, PASCAL_CONTEXT59
from segkit.evaluation.metrics import sixty_class_miou
from segkit.measure import cost, peak_memory
from segkit.measure.meta import FastMeta
from segkit.training.recipes import RECIPES

IMAGE_SIZE = (
    512,
    512,
)  # Section 4.2; a test holds it against the benchmark's, which this layer cannot import
BASE_SIDE = 520  # px of the short side at the random scale 1, in the release's training
CLASSES = 59  # of Pascal Context
BATCH = 2  # of what is kept
GIB = 2**30
SPACES = {"pascal_context": PASCAL_CONTEXT59, "ade20k": ADE20K150}


def output_stride(model: str, *, at: str = "backbone") -> float:
    """OS: the stride of the last maps of a network's ``backbone``, or of what is ``up`` above it, in px."""
    maps = _maps(model)
    last = maps[-1] if at == "backbone" else _network(model).up(maps[1:])
    return IMAGE_SIZE[0] / last.shape[2]


def halvings(model: str, *, fewer_than: str | None = None) -> float:
    """How many times a backbone halves the image, or how many times fewer than another one."""
    number = math.log2(output_stride(model))
    return number if fewer_than is None else halvings(fewer_than) - number


def resolution_factor(model: str, *, over: str) -> float:
    """How many times larger, along an axis, the last maps of a backbone are than those of another one."""
    return output_stride(over) / output_stride(model)


def stages(model: str) -> float:
    """Convolution stages of a backbone: the stem and what gives it a map each."""
    return 1 + len(_maps(model))


def in_stage(model: str, stage: int, *, what: str) -> float:
    """A property of a stage of a backbone.

    Args:
        model: a name of `segkit.models.MODELS`.
        stage: 4 or 5.
        what: its residual ``blocks``; their ``convolutions``, those of shortcuts apart; the ``dilation`` of
            the 3x3 convolutions after the first block's; the ``stride`` of the first block.

    Raises:
        ValueError: if the blocks after the first differ in their dilation.
    """
    blocks = _blocks(model, stage)
    if what == "dilation":
        found = {block.conv2.dilation[0] for block in blocks[1:]}
        if len(found) > 1:
            raise ValueError(f"dilations {sorted(found)} in Conv{stage} of {model}")
        return found.pop()
    return {
        "blocks": len(blocks),
        "convolutions": sum(
            isinstance(m, nn.Conv2d)
            for block in blocks
            for name, m in block.named_modules()
            if not name.startswith("downsample")
        ),
        "stride": blocks[0].conv2.stride[0],
    }[what]


def stage_factor(model: str, stage: int, *, over: str, what: str, part: str = "all") -> float:
    """How many times the work or memory of a stage of one backbone is that of another one's.

    Args:
        model: a name of `segkit.models.MODELS`.
        stage: 4 or 5.
        over: the other network.
        what: ``work``, or ``kept``: of the forward pass, for the backward pass; the stage's input apart.
        part: ``all`` blocks, the ``first``, or those ``after the first``.
    """
    one, other = (_of_stage(name, stage, what, part) for name in (model, over))
    return one / other


def less_work(
    model: str, *, than: str, lateral: bool = False, part: str = "network", limit: float = math.inf
) -> float:
    """How many times less work a network takes than another one.

    Args:
        model: a name of `segkit.models.MODELS`.
        than: the other one.
        lateral: whether the other one has lateral connections, the release's option.
        part: ``network``, or ``backbone`` alone.
        limit: of a text that says more than so many times: nothing above it is told apart.
    """
    backbone = part == "backbone"
    work = _work(than, lateral=lateral, backbone=backbone) / _work(model, backbone=backbone)
    return min(work, limit)


def less_kept(model: str, *, than: str, limit: float = math.inf) -> float:
    """How many times less a network keeps of the forward pass for the backward pass than another one.

    Args:
        model: a name of `segkit.models.MODELS`.
        than: the other one.
        limit: as in `less_work`.
    """
    return min(_kept_by(than) / _kept_by(model), limit)


def more_than(a: float, b: float, *, limit: float) -> float:
    """a / b, where a text says that it is more than a limit: nothing above that is told apart."""
    return min(a / b, limit)


def more_by_than(a: float, b: float, *, limit: float) -> float:
    """a - b, where a text says that it is more than a limit: nothing above that is told apart."""
    return min(a - b, limit)


def memory_within(model: str, *, batch_size: int, image_size: Sequence[int], card: float) -> float:
    """GiB at the peak of a training step, or those of a card that it fits: fp32, SGD's momentum, simulated.

    See `segkit.measure.peak_memory` for what is in it and what only a GPU can tell.

    Args:
        model: a name of `segkit.models.MODELS`.
        batch_size: images in a batch.
        image_size: (H, W) in pixels.
        card: GiB; nothing below is told apart.
    """
    return max(_peak(model, batch_size, tuple(image_size)) / GIB, card)


def memory_beyond(model: str, *, batch_size: int, image_size: Sequence[int], card: float) -> float:
    """As `memory_within`, of a step that is said to be too large for a card: nothing above is told apart."""
    return min(_peak(model, batch_size, tuple(image_size)) / GIB, card)


def jpu(model: str, *, what: str, dilations: Sequence[int] = ()) -> float:
    """A property of a network's JPU.

    Args:
        model: a name of `segkit.models.MODELS`.
        what: the ``maps`` that it takes; its ``branches`` that are a depthwise 3x3 convolution of these
            dilations, in this order, followed by a 1x1 convolution.
        dilations: of the branches.
    """
    module = _network(model).up
    if what == "maps":
        return len(module.embed)
    wanted = [((3, 3), (d, d), True) for d in dilations]
    found = []
    for branch in module.branches:
        first, second = (m for m in branch.modules() if isinstance(m, nn.Conv2d))
        separable = first.groups == first.in_channels and second.kernel_size == (1, 1)
        found.append((first.kernel_size, first.dilation, separable))
    return sum(a == b for a, b in zip(wanted, found, strict=False))


def of_sixty_classes(miou: float) -> float:
    """The mIoU of 60 classes that the paper makes of one of 59: the background counts 0."""
    return sixty_class_miou(miou)


def classes_of(dataset: str) -> float:
    """Classes that the kit's loader of a data set gives to train and evaluate on."""
    return SPACES[dataset].num_classes


def random_scale(recipe: str, *, index: int) -> float:
    """The smallest (0) or largest (1) random scale of a recipe's images in training; 1 is `BASE_SIDE`."""
    return RECIPES[recipe].short_side[index] / BASE_SIDE


def timed_image(*, index: int) -> float:
    """Height (0) or width (1) in pixels of the image that the benchmark ``jpu`` times."""
    return IMAGE_SIZE[index]


FUNCTIONS: dict[str, Callable[..., float]] = {
    function.__name__: function
    for function in (
        output_stride,
        halvings,
        resolution_factor,
        stages,
        in_stage,
        stage_factor,
        less_work,
        less_kept,
        more_than,
        more_by_than,
        memory_within,
        memory_beyond,
        jpu,
        of_sixty_classes,
        classes_of,
        random_scale,
        timed_image,
    )
}


def forget() -> None:
    """Drop what was counted, as `segkit.papers.checks.forget`."""
    for counted in (_network, _maps, _work, _kept_by, _peak):
        counted.cache_clear()


@functools.cache
def _network(model: str, **options: object) -> nn.Module:
    return models.build(model, num_classes=CLASSES, device="meta", **options).eval()


@functools.cache
def _maps(model: str) -> list[Tensor]:
    """The maps of a backbone, Conv2 to Conv5, of one image."""
    with torch.no_grad(), FastMeta():
        return _network(model).backbone(torch.empty(1, 3, *IMAGE_SIZE, device="meta"))


def _blocks(model: str, stage: int) -> list[nn.Module]:
    """The residual blocks of Conv4 or Conv5, which torchvision calls layer3 and layer4."""
    return list(getattr(_network(model).backbone, f"layer{stage - 1}").children())


@functools.cache
def _work(model: str, *, lateral: bool = False, backbone: bool = False) -> int:
    network = _network(model, lateral=True) if lateral else _network(model)
    if backbone:
        return cost(_Last(network.backbone), IMAGE_SIZE).macs
    return cost(network, IMAGE_SIZE, auxiliary=True).macs


@functools.cache
def _kept_by(model: str) -> int:
    return _kept(_network(model), torch.empty(BATCH, 3, *IMAGE_SIZE, device="meta"))


@functools.cache
def _peak(model: str, batch_size: int, image_size: tuple[int, int]) -> int:
    return peak_memory(_network(model), batch_size, image_size, optimizer="sgd").total


def _of_stage(model: str, stage: int, what: str, part: str) -> int:
    """Multiply-adds of blocks of a stage, or the bytes that they keep."""
    first, *others = _blocks(model, stage)
    before = _maps(model)[stage - 3]  # the maps are those of Conv2 to Conv5
    if part == "after the first":
        before = _maps(model)[stage - 2]
    blocks = nn.Sequential(*{"all": [first, *others], "first": [first], "after the first": others}[part])
    if what == "work":
        return cost(_Alone(blocks, before.shape[1]), before.shape[2:]).macs
    x = before.new_empty(BATCH, *before.shape[1:]).requires_grad_()
    return _kept(blocks, x) - x.untyped_storage().nbytes()


def _kept(module: nn.Module, x: Tensor) -> int:
    """Bytes that autograd saves in a module's forward pass in training; the module is left in eval mode."""
    own = {_address(tensor) for tensor in (*module.parameters(), *module.buffers())}
    saved: dict[int, Tensor] = {}  # holds them, so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        if _address(tensor) not in own:
            saved.setdefault(_address(tensor), tensor)
        return tensor

    module.train()
    try:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), FastMeta():
            module(x)
    finally:
        module.eval()
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # data_ptr() is 0 on the meta device


class _Last(nn.Module):
    """The last of a backbone's maps, as `cost` wants a single tensor."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)[-1]


class _Alone(nn.Module):
    """Blocks on maps made of an image's first channel: `cost` counts what is done to an image."""

    def __init__(self, blocks: nn.Module, channels: int) -> None:
        super().__init__()
        self.blocks, self.channels = blocks, channels

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x[:, :1].expand(-1, self.channels, -1, -1))
