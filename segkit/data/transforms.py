"""Augmentation and normalization, on samples whose images and label maps are `tv_tensors`.

A sample is a dict as the data sets return it: "image" (`tv_tensors.Image`, uint8 (3, H, W)), "labels"
(`tv_tensors.Mask`, uint8 (H, W)), perhaps "instances" (`InstanceMask`, int32 (H, W)), perhaps "point"
(`tv_tensors.KeyPoints`, x and y of a place that the crop shall hold), and strings, which pass through.
torchvision's own `transforms.v2` do the flip and the padding; ours are the rescaling, because torchvision has
none that multiplies an image's own size by a random factor or draws its short side from a whole range, the
crop around a point, padding on two sides up to a size, and Pillow's blur.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from segkit.data.augment import FILL, IGNORED, InstanceMask, RandAugment

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of red, green and blue on ImageNet, pixels in [0, 1]."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of red, green and blue on ImageNet, pixels in [0, 1]."""


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
        return _resized(inpt, params["size"])


class RandomShortSide(v2.Transform):
    """Resizes so that the short side is a whole number of pixels drawn uniformly from a range (RegSeg, 4.2).

    The long side follows, rounded, so that the aspect is kept. Resampling is as in `RandomRescale`.

    Args:
        short_side: (lowest, highest), pixels, both included.

    Raises:
        ValueError: if `short_side` is not such a range.
    """

    def __init__(self, short_side: tuple[int, int]) -> None:
        super().__init__()
        whole = len(short_side) == 2 and all(isinstance(side, int) for side in short_side)
        if not whole or not 1 <= short_side[0] <= short_side[1]:
            raise ValueError(
                "short_side must be (lowest, highest) in whole pixels with 1 <= lowest <= highest, "
                f"got {tuple(short_side)}"
            )
        self.short_side = tuple(short_side)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the short side."""
        low, high = self.short_side
        short = int(torch.randint(low, high + 1, ()))
        size = F.get_size(flat_inputs[0])
        return {"size": [round(side * short / min(size)) for side in size]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resizes one image, map or point."""
        return _resized(inpt, params["size"])


def _resized(inpt: Any, size: list[int]) -> Any:
    """An image, a map or points at another size (H, W)."""
    if isinstance(inpt, tv_tensors.Mask):
        plain = inpt.as_subclass(Tensor).unsqueeze(0)  # (1, H, W): resized as an image of one channel
        plain = F.resize(plain, size, interpolation=InterpolationMode.NEAREST_EXACT)
        return tv_tensors.wrap(plain.squeeze(0), like=inpt)
    if isinstance(inpt, tv_tensors.Image) and size == [1, 1]:
        # torch's antialiasing kernel for 8 bits (2.14) fails an assertion where a single pixel comes out.
        plain = inpt.as_subclass(Tensor).float()
        plain = F.resize(plain, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
        return tv_tensors.wrap(plain.round().to(inpt.dtype), like=inpt)
    return F.resize(inpt, size, interpolation=InterpolationMode.BILINEAR, antialias=True)


class RandomInnerCrop(v2.Transform):
    """Crops to `size`, or to the image's own height or width where that is smaller: nothing is padded.

    The window's place is uniform. Where the sample has a "point", it is uniform among all windows that hold
    the point's pixel, then moved into the image; the point is left out of the result, as it has served.

    Args:
        size: (H, W), pixels.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = tuple(size)

    def forward(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Crops a sample."""
        return {key: value for key, value in super().forward(sample).items() if key != "point"}

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the window."""
        height, width = F.get_size(flat_inputs[0])
        window = {"height": min(self.size[0], height), "width": min(self.size[1], width)}
        points = [inpt for inpt in flat_inputs if isinstance(inpt, tv_tensors.KeyPoints)]
        x, y = points[0].flatten().tolist() if points else (None, None)
        top = _window_start(height, window["height"], y)
        return {"top": top, "left": _window_start(width, window["width"], x), **window}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crops one image or map."""
        return F.crop(inpt, **params)


def _window_start(length: int, window: int, place: float | None) -> int:
    """Where a window begins on an axis, so that it holds the place (pixels from the axis' beginning)."""
    room = length - window
    if place is None:
        return int(torch.randint(0, room + 1, ()))
    pixel = min(max(int(place), 0), length - 1)  # a place on the far edge belongs to the last pixel
    return min(max(int(torch.randint(pixel - window + 1, pixel + 1, ())), 0), room)


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
    _check_crop_and_flip(crop, flip)
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


def regseg_transform(
    *,
    crop: tuple[int, int],
    short_side: tuple[int, int] = (400, 1600),
    flip: float = 0.5,
    rand_augment: int = 2,
    rand_magnitude: float = 0.2,
) -> v2.Compose:
    """The augmentation of RegSeg, Sec. 4.2, in the order of its authors' code.

    Random short side; crop to the given size, or the image's where that is smaller; random flip; RandAug;
    then padding: where the crop is larger than what is left of the image, that lies at a random place in it,
    and the rest gets the mean pixel, label 255 and instance 0. So RandAug never sees padding, but fills the
    corners of what it turns. (For CamVid the authors pad before they crop. Without RandAug, which they leave
    out there, images fall in the same places equally often.)

    Args:
        crop: (H, W) of the result, pixels.
        short_side: range of the short side that images are resized to, pixels.
        flip: probability of the left-right flip.
        rand_augment: how many of RandAug's operations an image gets; 0 for none.
        rand_magnitude: of each operation, from 0 to 1.

    Returns:
        A transform from sample to sample; all its randomness comes from torch's global generator. A crop
        holds the sample's "point", where it has one.

    Raises:
        ValueError: if an argument is outside its range.
    """
    _check_crop_and_flip(crop, flip)
    fill = {kind: list(value) if isinstance(value, tuple) else value for kind, value in FILL.items()}
    return v2.Compose(
        [
            RandomShortSide(short_side),
            RandomInnerCrop(crop),
            v2.RandomHorizontalFlip(flip),
            RandAugment(rand_augment, rand_magnitude),
            v2.RandomCrop(tuple(crop), pad_if_needed=True, fill=fill),  # only pads: see RandomInnerCrop
        ]
    )


class PadBelowAndRight(v2.Transform):
    """Pads at the bottom and the right up to `size`: black, with label 255 and with instance 0.

    An image that is as large or larger is left alone.

    Args:
        size: (H, W), pixels.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = tuple(size)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Finds how much is missing."""
        height, width = F.get_size(flat_inputs[0])
        return {"below": max(0, self.size[0] - height), "right": max(0, self.size[1] - width)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Pads one image or map."""
        is_labels = isinstance(inpt, tv_tensors.Mask) and not isinstance(inpt, InstanceMask)
        fill = IGNORED if is_labels else 0
        return F.pad(inpt, [0, 0, params["right"], params["below"]], fill=fill)


class RandomBlur(v2.Transform):
    """Blurs an image with a Gaussian whose deviation is uniform in [0, 1) pixels; maps stay sharp.

    It is Pillow's filter, as in FastFCN's authors' code: repeated box blurs, close to a Gaussian.

    Args:
        probability: of blurring at all.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws whether and how much; always two numbers, so that the stream does not depend on the first."""
        chance, deviation = torch.rand(2).tolist()
        return {"deviation": deviation if chance < self.probability else 0.0}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Blurs one image."""
        if not isinstance(inpt, tv_tensors.Image) or not params["deviation"]:
            return inpt
        picture = Image.fromarray(inpt.permute(1, 2, 0).numpy())
        picture = picture.filter(ImageFilter.GaussianBlur(params["deviation"]))
        blurred = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()  # (3, H, W)
        return tv_tensors.wrap(blurred, like=inpt)


def fastfcn_transform(
    *,
    crop: tuple[int, int],
    short_side: tuple[int, int] = (260, 1040),
    flip: float = 0.5,
    blur: float = 0.5,
) -> v2.Compose:
    """The augmentation of FastFCN (Sec. 4.1), in the order of its authors' code.

    Random flip; random short side; padding at the bottom and the right up to the crop; random crop; random
    Gaussian blur, which the paper does not mention. "Scale from 0.5 to 2.0" is that of 520 pixels, whatever
    the image's own size. Padding is black before normalization, and ignored. (The authors cut the long side
    down to whole pixels; here it is rounded.)

    Args:
        crop: (H, W) of the result, pixels.
        short_side: range of the short side that images are resized to, pixels, both ends included.
        flip: probability of the left-right flip.
        blur: probability of the blur.

    Returns:
        A transform from sample to sample; all its randomness comes from torch's global generator.

    Raises:
        ValueError: if an argument is outside its range.
    """
    _check_crop_and_flip(crop, flip)
    if not 0 <= blur <= 1:
        raise ValueError(f"blur is a probability from 0 to 1, got {blur}")
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(flip),
            RandomShortSide(short_side),
            PadBelowAndRight(crop),
            v2.RandomCrop(tuple(crop)),
            RandomBlur(blur),
        ]
    )


def _check_crop_and_flip(crop: tuple[int, int], flip: float) -> None:
    if len(crop) != 2 or not all(isinstance(side, int) and side > 0 for side in crop):
        raise ValueError(f"crop must be (height, width) in whole pixels above 0, got {crop}")
    if not 0 <= flip <= 1:
        raise ValueError(f"flip is a probability from 0 to 1, got {flip}")
