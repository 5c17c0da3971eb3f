"""The computations behind the claims: plain functions from arguments in a claims file to one number.

A claim names a function of `FUNCTIONS` and its arguments; what the function returns is compared with what the
paper prints, in the claim's unit. To check a new kind of claim, write a function and add it to the dict.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torchvision
from torch import Tensor, nn

from segkit import models
from segkit.measure import cost
from segkit.models.densenet import DenseNet
from segkit.training.recipes import RECIPES

MEGAPIXEL = 1024  # "FLOP 1MPx" is the work on one 1024x1024 image (LDN Sec. 6.1)


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


def classifier_size(name: str, *, unit: float = 1e6) -> float:
    """Parameters of torchvision's ImageNet classifier, in millions or another unit."""
    return _classifier_cost(name)[0] / unit


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


def shrinkage(height: int, width: int, *, channels: int, stride: int) -> float:
    """How many times fewer numbers a feature map holds than its RGB image."""
    return 3 * height * width / (channels * (height // stride) * (width // stride))


def same_as(printed: float) -> float:
    """The number that the paper prints elsewhere (pass "@ID")."""
    return printed


def difference(a: float, b: float) -> float:
    """a - b, for gains that the text draws from a table."""
    return a - b


def ratio(a: float, b: float) -> float:
    """a / b, for factors that the text draws from a table."""
    return a / b


def recipe_value(recipe: str, name: str, *, index: int | None = None) -> float:
    """A setting of a training recipe.

    Args:
        recipe: a name of `segkit.training.recipes.RECIPES`.
        name: the setting.
        index: which element, where the setting is a sequence.
    """
    value = getattr(RECIPES[recipe], name)
    return float(value if index is None else value[index])


FUNCTIONS: dict[str, Callable[..., float]] = {
    function.__name__: function
    for function in (
        model_size,
        flop,
        classifier_size,
        classifier_flop_excess,
        backbone_flop,
        shrinkage,
        same_as,
        difference,
        ratio,
        recipe_value,
    )
}


def forget() -> None:
    """Drop what was counted, so that the next check sees a model that was edited in between."""
    for counted in (_network, _model_cost, _classifier_cost):
        counted.cache_clear()


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


class _Deepest(nn.Module):
    """The coarsest of a backbone's maps."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)[-1]
