"""RegSeg's reduced RandAug (Sec. 4.2): two of seven operations on each image, at one fixed magnitude.

The seven are auto contrast, equalize, rotate, color, contrast, brightness and sharpness. The paper names them
and the magnitude, 0.2 out of 1; what a magnitude means is as in its authors' code:

- rotate turns by 30 * magnitude degrees, 6 at 0.2, to the left or to the right. Images are resampled
  bilinearly, label maps take the nearest pixel; corners that come into view are filled.
- color, contrast, brightness and sharpness are Pillow's enhancers with the factor 1 + 0.9 * magnitude or
  1 - 0.9 * magnitude: 1.18 or 0.82 at 0.2.
- auto contrast and equalize have no strength: they ignore magnitude and sign.

Pillow does it all, as in the authors' code. torchvision's functions on tensors are close, but not the same:
auto contrast, color, contrast and (seldom) sharpness differ by one gray level; rotate by one level in half of
the pixels, and along the picture's edge by far more, because torchvision blends the fill in there and Pillow
cuts sharp. Their contrast also rests on a mean in float32, whose last bits change with the number of threads,
so that a batch could change with the number of workers. Equalize and brightness are the same.

    image, labels = rand_augment(sample["image"], sample["labels"], "rotate", 0.2, sign=-1)
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2


class InstanceMask(tv_tensors.Mask):
    """A map of instance ids: it moves as a mask does, but new pixels become 0 (no instance), not 255."""


MEAN_PIXEL = (123, 116, 103)
"""Red, green and blue of what is filled in: 255 times ImageNet's mean, cut off as in the authors' code."""
IGNORED = 255
"""The label of pixels that were not in the picture."""
FILL: Mapping[type, Any] = {tv_tensors.Image: MEAN_PIXEL, tv_tensors.Mask: IGNORED, InstanceMask: 0}
"""By type, what new pixels get: the mean pixel, the label that is ignored, no instance."""

ROTATION = 30.0
"""Degrees at magnitude 1."""
ENHANCEMENT = 0.9
"""What the enhancers' factor differs from 1 by, at magnitude 1."""

_PLAIN: dict[str, Callable[[Image.Image], Image.Image]] = {
    "auto_contrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
}
_ENHANCERS: dict[str, Callable[[Image.Image], Any]] = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}
OPERATIONS = (*_PLAIN, "rotate", *_ENHANCERS)
"""The names of the seven operations."""


def rand_augment(
    image: Tensor,
    labels: Tensor,
    operation: str,
    magnitude: float = 0.2,
    sign: int = 1,
) -> tuple[Tensor, Tensor]:
    """One operation on an image and its label map; nothing is random.

    Args:
        image: uint8 (3, H, W).
        labels: uint8 (H, W), or instance ids as an `InstanceMask`, int32 (H, W).
        operation: one of `OPERATIONS`.
        magnitude: from 0 to 1; the paper's is 0.2.
        sign: 1 turns left or strengthens, -1 turns right or weakens.

    Returns:
        Image and label map of the same types and sizes. Only rotate changes the labels.

    Raises:
        ValueError: if operation, magnitude, sign, or the type of a tensor is none of these.
    """
    _check_magnitude(magnitude)
    if operation not in OPERATIONS:
        names = ", ".join(map(repr, OPERATIONS))
        raise ValueError(f"unknown operation {operation!r} of RandAug: there are {names}")
    if sign not in (1, -1):
        raise ValueError(f"sign must be 1 or -1, got {sign}")
    picture = _change(_picture(image), operation, magnitude, sign)
    return _like(picture, image), _moved(labels, operation, magnitude, sign)


class RandAugment(v2.Transform):
    """Distinct random operations on a sample, each with a random sign; the labels turn with the image.

    torchvision's transform of this name has other operations and strengths, and draws some of them twice.

    Args:
        operations: how many of the seven; the paper's is 2.
        magnitude: of each, from 0 to 1; the paper's is 0.2.

    Raises:
        ValueError: if there are not so many operations, or the magnitude is none.
    """

    def __init__(self, operations: int = 2, magnitude: float = 0.2) -> None:
        super().__init__()
        if not 0 <= operations <= len(OPERATIONS):
            raise ValueError(
                f"RandAugment takes 0 to {len(OPERATIONS)} distinct operations an image, got {operations}"
            )
        _check_magnitude(magnitude)
        self.operations, self.magnitude = operations, magnitude

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the operations, in the order in which they are done, and a sign for each."""
        chosen = torch.randperm(len(OPERATIONS))[: self.operations].tolist()
        signs = torch.randint(0, 2, (self.operations,)).tolist()
        return {"steps": [(OPERATIONS[i], 2 * sign - 1) for i, sign in zip(chosen, signs, strict=True)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Changes one image or map."""
        if isinstance(inpt, tv_tensors.Mask):
            for operation, sign in params["steps"]:
                inpt = _moved(inpt, operation, self.magnitude, sign)
            return inpt
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        picture = _picture(inpt)
        for operation, sign in params["steps"]:
            picture = _change(picture, operation, self.magnitude, sign)
        return _like(picture, inpt)


def _check_magnitude(magnitude: float) -> None:
    if not 0 <= magnitude <= 1:  # NaN too
        raise ValueError(
            f"the magnitude of RandAug lies between 0 and 1, the paper's is 0.2; got {magnitude}"
        )


def _change(picture: Image.Image, operation: str, magnitude: float, sign: int) -> Image.Image:
    if operation in _PLAIN:
        return _PLAIN[operation](picture)
    if operation in _ENHANCERS:
        return _ENHANCERS[operation](picture).enhance(1 + sign * ENHANCEMENT * magnitude)
    return picture.rotate(sign * ROTATION * magnitude, Image.Resampling.BILINEAR, fillcolor=MEAN_PIXEL)


def _moved(labels: Tensor, operation: str, magnitude: float, sign: int) -> Tensor:
    """A label map after an operation on its image."""
    if labels.ndim != 2 or labels.dtype not in (torch.uint8, torch.int32):
        raise ValueError(
            f"RandAug takes labels uint8 (H, W) or instance ids int32 (H, W), got {labels.dtype} "
            f"{tuple(labels.shape)}"
        )
    if operation != "rotate":
        return labels
    picture = Image.fromarray(labels.as_subclass(Tensor).numpy())
    fill = FILL[InstanceMask if isinstance(labels, InstanceMask) else tv_tensors.Mask]
    turned = picture.rotate(sign * ROTATION * magnitude, Image.Resampling.NEAREST, fillcolor=fill)
    return _wrapped(torch.from_numpy(np.array(turned)), labels)


def _picture(image: Tensor) -> Image.Image:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"RandAug takes images uint8 (3, H, W), got {image.dtype} {tuple(image.shape)}")
    return Image.fromarray(image.as_subclass(Tensor).permute(1, 2, 0).contiguous().numpy())


def _like(picture: Image.Image, image: Tensor) -> Tensor:
    return _wrapped(torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous(), image)


def _wrapped(result: Tensor, like: Tensor) -> Tensor:
    return tv_tensors.wrap(result, like=like) if isinstance(like, tv_tensors.TVTensor) else result
