"""The computations behind the claims: plain functions from arguments in a claims file to one number.

A claim names a function of `FUNCTIONS` and its arguments; what the function returns is compared with what the
paper prints, in the claim's unit. To check a new kind of claim, write a function and add it to the dict. What
only one later paper needs is in a module of its own, such as `vnet_checks`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torchvision
from torch import Tensor, nn

from segkit import models
from segkit.measure import cost, peak_memory
from segkit.measure.allocator import Requests
from segkit.measure.peak import largest_batch as search_largest_batch
from segkit.measure.peak import largest_fitting_batch, static_bytes
from segkit.models.densenet import DenseNet
from segkit.papers import denseaspp_checks, fastfcn_checks, regseg_checks, vnet_checks
from segkit.training.recipes import RECIPES

MEGAPIXEL = 1024  # "FLOP 1MPx" is the work on one 1024x1024 image (LDN Sec. 6.1)
MIB = 2**20
TABLE_12 = {"batch_size": 6, "image_size": (768, 768)}  # what LDN's Tables 12 and 13 measure memory on


def model_size(model: str, **options: object) -> float:
    """Parameters on the path to the prediction, in millions (auxiliary heads are not counted).

    Args:
        model: a name of `segkit.models.MODELS`.
        **options: options of its builder, such as `paper_count=True`.
    """
    return _model_cost(model, _frozen(options), MEGAPIXEL, MEGAPIXEL)[0] / 1e6


def flop(
    model: str,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    **options: object,
) -> float:
    """Multiply-adds per 1024x1024 image, in units of 1e9, as LDN's tables count them.

    A convolution's multiply-adds and one for each element that a BatchNorm puts out; auxiliary heads are not
    counted.

    Args:
        model: a name of `segkit.models.MODELS`.
        scales: the image is evaluated once per scale, resized by it (multi-scale evaluation).
        flip: every scale is evaluated a second time, mirrored.
        **options: options of the model's builder.
    """
    sizes = [round(MEGAPIXEL * scale) for scale in scales]
    macs = sum(_model_cost(model, _frozen(options), size, size)[1] for size in sizes)
    return macs * (2 if flip else 1) / 1e9


def classifier_size(name: str, *, unit: float = 1e6, over: str | None = None) -> float:
    """Parameters of torchvision's ImageNet classifier: in millions or another unit, or over another one's."""
    return _classifier_cost(name)[0] / (unit if over is None else _classifier_cost(over)[0])


def classifier_flop_excess(name: str, *, over: str) -> float:
    """How much more work one ImageNet classifier is than another on a 224x224 image, in percent."""
    return 100 * (_classifier_cost(name)[1] / _classifier_cost(over)[1] - 1)


def backbone_flop(name: str, *, dilated: bool = False) -> float:
    """Multiply-adds (1e9) of a backbone on a 1024x1024 image, counted as in `flop`.

    Args:
        name: `densenet121`, ... for the kit's own; `resnet50`, ... for torchvision's without its classifier.
        dilated: the last two stages dilate instead of striding, which leaves features at stride 8.
    """
    with torch.device("meta"):
        if name.startswith("densenet"):
            dilations = (1, 1, 2, 4) if dilated else (1, 1, 1, 1)
            network = _Deepest(DenseNet(int(name.removeprefix("densenet")), dilations=dilations))
        else:
            stages = [False, True, True] if dilated else None
            network = torchvision.models.get_model(name, replace_stride_with_dilation=stages)
            network.fc = nn.Identity()
    return cost(network, (MEGAPIXEL, MEGAPIXEL), convention="conv+bn").macs / 1e9


def block(network: str, number: int, *, quantity: str, over: str | None = None, unit: float = 1) -> float:
    """A property of a processing block, counted on the network's modules (LDN Sec. 3, Table 1).

    Args:
        network: `densenet121`, ... for the kit's own; `resnet50`, `resnet101`, ... for torchvision's.
        number: which block, 1 to 4.
        quantity: one of `QUANTITIES`.
        over: another network; the value is divided by that of its block.
        unit: what the value is expressed in.
    """
    value = QUANTITIES[quantity](_backbone(network), number)
    return value / (unit if over is None else QUANTITIES[quantity](_backbone(over), number))


def equivalent_residual_block(network: str, number: int, *, quantity: str) -> float:
    """How many times more than a dense block a residual block of as many units and maps takes (LDN Sec. 3.5).

    Its units are those of Section 3.1: 1x1 to a quarter of the maps, 3x3, 1x1 back to all F_out = F_in + nk.

    Args:
        network: `densenet121`, ...
        number: which block, 1 to 4.
        quantity: `weights` of convolutions (as many as multiply-adds per pixel), or `cached` maps, at one
            resolution: the block does not stride.
    """
    dense = _backbone(network)
    units, _ = _parts(dense, number)
    width = _maps(dense, number)
    with torch.device("meta"):
        residual = [torchvision.models.resnet.Bottleneck(width, width // 4) for _ in units]
    ratios = {
        "weights": _weights_of(*residual) / _weights_of(*units),
        "cached": sum(unit.conv1.in_channels for unit in residual) / _cached(dense, number),
    }
    return ratios[quantity]


def copies_kept(network: str) -> float:
    """How many times a dense unit keeps the maps that it reads, for the backward pass of a plain step.

    Counted on what autograd saves in the first block's last unit: storages as wide as the concatenation.
    """
    unit = _parts(_backbone(network), 1)[0][-1]
    width = unit.conv1.in_channels
    features = [torch.empty(2, width // 2, 8, 8, device="meta", requires_grad=True) for _ in range(2)]
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        unit(*features)
    return len({x.untyped_storage()._cdata for x in saved if x.dim() == 4 and x.shape[:2] == (2, width)})


def training_memory(
    model: str,
    *,
    recompute: str | None = None,
    batch_size: int = TABLE_12["batch_size"],
    image_size: Sequence[int] = TABLE_12["image_size"],
    unit: float = 1,
) -> float:
    """Peak memory of a training step in MiB, simulated: fp32, AMSGrad's state included, standard backbone.

    See `segkit.measure.peak_memory` for what is in it and what only a GPU can tell.

    Args:
        model: a name of `segkit.models.MODELS`.
        recompute: segments to checkpoint, see `segkit.memory.recompute`.
        batch_size: images in a batch.
        image_size: (H, W) in pixels.
        unit: what the value is expressed in, in MiB: 1024 for GiB.
    """
    return _step(model, recompute, batch_size, tuple(image_size))[0] / MIB / unit


def memory_factor(
    model: str,
    *,
    over: str,
    recompute: str | None = None,
    over_recompute: str | None = None,
    batch_size: int = TABLE_12["batch_size"],
    image_size: Sequence[int] = TABLE_12["image_size"],
) -> float:
    """How many times the memory of one training step is that of another, both as in `training_memory`."""
    setting = {"batch_size": batch_size, "image_size": image_size}
    return training_memory(model, recompute=recompute, **setting) / training_memory(
        over, recompute=over_recompute, **setting
    )


def largest_batch(
    model: str, *, recompute: str | None = None, budget_gib: float = 11.5, fragmentation: bool = True
) -> float:
    """The largest batch of 768x768 images whose training step stays within a budget, see `training_memory`.

    The same as `segkit.measure.max_batch` finds; it begins with batch 6, which another claim needs anyway.

    Args:
        model: a name of `segkit.models.MODELS`.
        recompute: segments to checkpoint.
        budget_gib: GiB; the default is a card of 12 GiB less half a GiB for the CUDA context, which the paper
            says nothing of.
        fragmentation: whether the budget is for what PyTorch's allocator takes from the card, gaps between
            tensors included, or for the tensors alone.
    """
    fixed = static_bytes(_network(model, _frozen({"recompute": recompute})), "amsgrad")

    def step(batch: int) -> tuple[int, Requests]:
        return _step(model, recompute, batch, TABLE_12["image_size"])

    first = TABLE_12["batch_size"]
    if fragmentation:
        return largest_fitting_batch(lambda n: step(n)[1], budget_gib, fixed=fixed, first=first)
    return search_largest_batch(lambda n: step(n)[0], budget_gib * 2**30, fixed=fixed, first=first)


def shrinkage(height: int, width: int, *, channels: int, stride: int) -> float:
    """How many times fewer numbers a feature map holds than its RGB image."""
    return 3 * height * width / (channels * (height // stride) * (width // stride))


def same_as(printed: float) -> float:
    """The number that the paper prints elsewhere (pass "@ID")."""
    return printed


def difference(a: float, b: float, *, unit: float = 1) -> float:
    """a - b, for gains that the text draws from a table, in another unit if need be."""
    return (a - b) / unit


def ratio(a: float, b: float) -> float:
    """a / b, for factors that the text draws from a table."""
    return a / b


def excess(a: float, over: float) -> float:
    """By how many percent a is more than another number."""
    return 100 * (a / over - 1)


def recipe_value(recipe: str, name: str, *, index: int | None = None) -> float:
    """A setting of a training recipe.

    Args:
        recipe: a name of `segkit.training.recipes.RECIPES`.
        name: the setting.
        index: which element, where the setting is a sequence.
    """
    value = getattr(RECIPES[recipe], name)
    return float(value if index is None else value[index])


def merged(*parts: dict[str, Callable[..., float]]) -> dict[str, Callable[..., float]]:
    """Functions of several modules in one dict.

    Raises:
        ValueError: if two have one name; a claim could not tell which it means.
    """
    result: dict[str, Callable[..., float]] = {}
    for part in parts:
        if doubled := sorted(result.keys() & part.keys()):
            raise ValueError(f"two functions for claims are named {', '.join(doubled)}; rename one of them")
        result |= part
    return result


FUNCTIONS = merged(
    {
        function.__name__: function
        for function in (
            model_size,
            flop,
            classifier_size,
            classifier_flop_excess,
            backbone_flop,
            block,
            equivalent_residual_block,
            copies_kept,
            training_memory,
            memory_factor,
            largest_batch,
            shrinkage,
            same_as,
            difference,
            ratio,
            excess,
            recipe_value,
        )
    },
    vnet_checks.FUNCTIONS,
    regseg_checks.FUNCTIONS,
    denseaspp_checks.FUNCTIONS,
    fastfcn_checks.FUNCTIONS,
)


def forget() -> None:
    """Drop what was counted, so that the next check sees a model that was edited in between."""
    for counted in (_network, _model_cost, _classifier_cost, _backbone, _step):
        counted.cache_clear()
    for module in (regseg_checks, denseaspp_checks, fastfcn_checks):
        module.forget()


def _frozen(options: dict[str, object]) -> tuple[tuple[str, object], ...]:
    return tuple(
        (key, tuple(value) if isinstance(value, list) else value) for key, value in sorted(options.items())
    )


@functools.cache
def _network(model: str, options: tuple[tuple[str, object], ...]) -> nn.Module:
    return models.build(model, device="meta", **dict(options))


@functools.cache
def _model_cost(
    model: str, options: tuple[tuple[str, object], ...], height: int, width: int
) -> tuple[int, int]:
    """(parameters, multiply-adds): a row's two claims share one count."""
    counted = cost(_network(model, options), (height, width), convention="conv+bn")
    return counted.params, counted.macs


@functools.cache
def _classifier_cost(name: str) -> tuple[int, int]:
    """(parameters, multiply-adds on 224x224) of torchvision's ImageNet classifier."""
    with torch.device("meta"):
        network = torchvision.models.get_model(name)
    counted = cost(network, (224, 224))
    return counted.params, counted.macs


@functools.cache
def _backbone(name: str) -> nn.Module:
    """A DenseNet of the kit or a ResNet of torchvision, as ImageNet weights fit it."""
    with torch.device("meta"):
        if name.startswith("densenet"):
            return DenseNet(int(name.removeprefix("densenet")))
        return torchvision.models.get_model(name)


def _parts(network: nn.Module, number: int) -> tuple[list[nn.Module], list[nn.Module]]:
    """A block's units, and what else belongs to it: a dense block's transition-down."""
    if not isinstance(network, DenseNet):
        return list(getattr(network, f"layer{number}")), []
    transitions = [] if number == 4 else [getattr(network, f"transition{number}")]
    return list(getattr(network, f"denseblock{number}").values()), transitions


def _weights_of(*modules: nn.Module) -> int:
    return sum(m.weight.numel() for module in modules for m in module.modules() if isinstance(m, nn.Conv2d))


def _weights(network: nn.Module, number: int) -> int:
    units, others = _parts(network, number)
    return _weights_of(*units, *others)


def _units(network: nn.Module, number: int) -> int:
    return len(_parts(network, number)[0])


def _convolutions(network: nn.Module, number: int) -> int:
    last = _parts(network, number)[0][-1]  # the first residual unit also projects its input
    return sum(isinstance(module, nn.Conv2d) for module in last.modules())


def _maps(network: nn.Module, number: int) -> int:
    last = _parts(network, number)[0][-1]
    if isinstance(network, DenseNet):
        return last.conv1.in_channels + last.conv2.out_channels
    return last.conv3.out_channels


def _inputs(network: nn.Module, number: int) -> list[int]:
    """Maps that each residual unit reads; one before a stride counts as four of the block's output size."""
    return [unit.conv1.in_channels * unit.stride**2 for unit in _parts(network, number)[0]]


def _cached(network: nn.Module, number: int) -> int:
    if isinstance(network, DenseNet):  # the last unit reads all that the others have read
        return _parts(network, number)[0][-1].conv1.in_channels
    return sum(_inputs(network, number))


def _first_input(network: nn.Module, number: int) -> float:
    return _inputs(network, number)[0] / _maps(network, number)


# What `block` counts, by name.
QUANTITIES: dict[str, Callable[[nn.Module, int], float]] = {
    "weights": _weights,  # of convolutions: projections and transition-down included
    "units": _units,  # n
    "convolutions": _convolutions,  # in a unit
    "maps": _maps,  # F_out
    "cached": _cached,  # maps per pixel that the units read, each once: what equations (1) and (2) are about
    "first input": _first_input,  # of a residual block's first unit, as a multiple of F_out
}


@functools.cache
def _step(
    model: str, recompute: str | None, batch_size: int, image_size: tuple[int, int]
) -> tuple[int, Requests]:
    """Bytes at the peak of a training step, and what it asks of the allocator; several claims share it."""
    network = _network(model, _frozen({"recompute": recompute}))
    peak = peak_memory(network, batch_size, image_size, optimizer="amsgrad")
    return peak.total, peak.requests


class _Deepest(nn.Module):
    """The coarsest of a backbone's maps."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)[-1]
