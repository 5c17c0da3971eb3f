"""Augmentation and normalization, on samples whose images and label maps are `tv_tensors`.

A sample is a dict as the data sets return it: "image" (`tv_tensors.Image`, uint8 (3, H, W)), "labels"
(`tv_tensors.Mask`, uint8 (H, W)), perhaps "instances" (`InstanceMask`, int32 (H, W)), and strings, which pass
through. torchvision's own `transforms.v2` do the flip and the crop; only the rescaling is ours, because
torchvision has none that multiplies an image's own size by a random factor.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of red, green and blue on ImageNet, pixels in [0, 1]."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of red, green and blue on ImageNet, pixels in [0, 1]."""
IGNORED = 255
"""The label of padded pixels."""


class InstanceMask(tv_tensors.Mask):
    """A map of instance ids: it moves as a mask does, but padded pixels become 0 (no instance), not 255."""


def normalize(
    images: Tensor,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Turns pixels into network input, (pixel / 255 - mean) / std, on the device where the pixels are.

    Args:
        images: uint8 (B, 3, H, W).
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        dtype: of the result; the arithmetic is float32.

    Returns:
        (B, 3, H, W) of `dtype`.

    Raises:
        ValueError: if the images are not uint8 with three channels (normalizing twice is a silent error).
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"normalize() takes uint8 images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}; "
            "pass the pixels as the data set returns them"
        )
    images = images.as_subclass(Tensor)
    return F.normalize(F.to_dtype(images, torch.float32, scale=True), list(mean), list(std)).to(dtype)


class RandomRescale(v2.Transform):
    """Multiplies height and width by one factor drawn uniformly from `scale`.

    Images are resampled bilinearly with antialiasing. Label and instance maps take the nearest pixel
    ("nearest-exact": centers on centers. torchvision's own mask resize rounds down, which shifts labels
    against the image by up to half a pixel).

    Args:
        scale: (lowest, highest) factor, both above 0.

    Raises:
        ValueError: if `scale` is not such a range.
    """

    def __init__(self, scale: tuple[float, float]) -> None:
        super().__init__()
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ValueError(
                f"scale must be (lowest, highest) with 0 < lowest <= highest, got {tuple(scale)}"
            )
        self.scale = (float(scale[0]), float(scale[1]))

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the factor; the size it gives is at least one pixel."""
        low, high = self.scale
        factor = low + (high - low) * torch.rand(()).item()
        height, width = F.get_size(flat_inputs[0])
        return {"size": [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resizes one image or map."""
        size = params["size"]
        if isinstance(inpt, tv_tensors.Mask):
            plain = inpt.as_subclass(Tensor).unsqueeze(0)  # (1, H, W): resized as an image of one channel
            plain = F.resize(plain, size, interpolation=InterpolationMode.NEAREST_EXACT)
            return tv_tensors.wrap(plain.squeeze(0), like=inpt)
        return F.resize(inpt, size, interpolation=InterpolationMode.BILINEAR, antialias=True)


def training_transform(
    *,
    crop: tuple[int, int],
    scale: tuple[float, float] = (0.5, 2.0),
    flip: float = 0.5,
    mean_pixel: Sequence[float] | None = None,
) -> v2.Compose:
    """The augmentation of Ladder-DenseNet, Sec. 6.1: random flip, then random rescale, then random crop.

    Where the crop is larger than the rescaled image, the image lies at a random place in the crop; the rest
    is filled with the mean pixel, with label 255 and with instance 0.

    Args:
        crop: (H, W) of the result, pixels.
        scale: range of the rescaling factor.
        flip: probability of the left-right flip.
        mean_pixel: red, green, blue from 0 to 255 for padding; None for ImageNet's mean.

    Returns:
        A transform from sample to sample; all its randomness comes from torch's global generator.

    Raises:
        ValueError: if an argument is outside its range.
    """
    if len(crop) != 2 or not all(isinstance(side, int) and side > 0 for side in crop):
        raise ValueError(f"crop must be (height, width) in whole pixels above 0, got {crop}")
    if not 0 <= flip <= 1:
        raise ValueError(f"flip is a probability from 0 to 1, got {flip}")
    pixel = [255 * value for value in IMAGENET_MEAN] if mean_pixel is None else list(mean_pixel)
    if len(pixel) != 3 or not all(0 <= value <= 255 for value in pixel):
        raise ValueError(f"mean_pixel must be red, green, blue from 0 to 255, got {mean_pixel}")
    fill = {
        tv_tensors.Image: [round(value) for value in pixel],
        tv_tensors.Mask: IGNORED,
        InstanceMask: 0,
    }
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(flip),
            RandomRescale(scale),
            v2.RandomCrop(tuple(crop), pad_if_needed=True, fill=fill),
        ]
    )
