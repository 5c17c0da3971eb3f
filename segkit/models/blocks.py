"""What two or more architectures share: norm and convolution in either order, checks, initial weights."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from segkit.memory.recompute import Segments

BN_MOMENTUM = (
    0.05  # the LDN paper is silent; its authors' released code says 0.05 (and PyTorch's default eps, 1e-5)
)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that says what to do when a batch holds one value per channel only.

    Attributes:
        relu_in_place: whether the ReLU that follows writes over what the norm puts out. That is safe: nothing
            else reads it, the norm's backward needs its input only, and the ReLU's its output.
    """

    relu_in_place = True

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=BN_MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:
        self.check_values(x)
        return super().forward(x)

    def check_values(self, x: Tensor) -> None:
        """Refuse to train on one value per channel, whose variance would be 0.

        Raises:
            ValueError: if that is all that ``x`` holds; says what to do.
        """
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            raise ValueError(
                f"Cannot train batch norm on a single value per channel (a batch of one with a 1x1 map, "
                f"{tuple(x.shape)}), such as the one-cell grid of spatial pyramid pooling. Use at least two "
                f"images in a batch, a crop at least 1.5 times as wide as high, spp_grids without 1, or "
                f"model.eval()."
            )

    def relu_of_maps(self, begin: int, *features: Tensor) -> Tensor:
        """Norm and ReLU of the concatenated ``features``, the maps from ``begin`` on of all that come.

        What a batch norm does to one map does not depend on the others, so parts give the same as the whole.
        """
        x = torch.cat(features, dim=1)
        self.check_values(x)
        maps = slice(begin, begin + x.shape[1])
        factor = self.momentum
        if self.training and begin == 0:
            self.num_batches_tracked.add_(1)
        if self.training and factor is None:
            factor = 1 / float(self.num_batches_tracked)
        x = F.batch_norm(
            x,
            self.running_mean[maps],
            self.running_var[maps],
            self.weight[maps],
            self.bias[maps],
            self.training,
            factor,
            self.eps,
        )
        return F.relu(x, inplace=self.relu_in_place)


def norm_relu(norm: BatchNorm, x: Tensor) -> Tensor:
    """Batch norm and ReLU, any shape. The norm may have been replaced by one of another kind."""
    return F.relu(norm(x), inplace=getattr(norm, "relu_in_place", True))


def norm_relu_of_cat(norm: BatchNorm, features: tuple[Tensor, ...], segment: Segments) -> Tensor:
    """BN-ReLU of a concatenation: in one piece, or with the label ``nested`` a quarter of its maps at a time.

    In quarters, each a checkpointed segment, the backward pass never has the whole concatenation in hand
    together with its norm and the gradients of both.
    """
    if not segment.has("nested"):
        x = torch.cat(features, dim=1) if len(features) > 1 else features[0]  # of one it would be a copy
        return norm_relu(norm, x)
    if not isinstance(norm, BatchNorm) or norm.running_mean is None:
        raise TypeError(
            f"The label 'nested' needs segkit's own BatchNorm with running statistics, and a "
            f"{type(norm).__name__} took its place; leave 'nested' out of recompute."
        )
    if len(features) == 1:
        features = features[0].chunk(4, dim=1)
    quarter, begin, group, parts = sum(x.shape[1] for x in features) / 4, 0, [], []
    for i, x in enumerate(features):
        group.append(x)
        width = sum(x.shape[1] for x in group)
        if width >= quarter or i == len(features) - 1:
            parts.append(segment("nested", norm.relu_of_maps, begin, *group))
            begin, group = begin + width, []
    return torch.cat(parts, dim=1)


class BNReLUConv(nn.Module):
    """The pre-activation unit of Section 3.1: batch norm, ReLU, convolution ('same' padding).

    Args:
        channels_in: maps in, which the batch norm sees.
        channels_out: maps out.
        kernel: side of the kernel, odd.
        stride: stride of the convolution.
        groups: groups of the convolution.
        bias: whether the convolution has one; of use only where no batch norm follows, before a loss.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.norm = BatchNorm(channels_in)
        self.conv = nn.Conv2d(
            channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(norm_relu(self.norm, x))


class CatBNReLUConv(BNReLUConv):
    """The same on a concatenation: takes its parts, so that no one else has to keep the whole."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, *, segment: Segments | None = None
    ) -> None:
        super().__init__(channels_in, channels_out, kernel)
        self.segment = segment or Segments()

    def forward(self, *features: Tensor) -> Tensor:
        return self.segment("nested", self.whole, *features)

    def whole(self, *features: Tensor) -> Tensor:
        return self.conv(norm_relu_of_cat(self.norm, features, self.segment))


class ConvNormReLU(nn.Sequential):
    """The usual order: convolution without bias ('same' padding), batch norm and, unless told not to, ReLU.

    Args:
        channels_in: maps in.
        channels_out: maps out, which the batch norm sees.
        kernel: side of the kernel, odd.
        stride: stride of the convolution.
        relu: whether there is one.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int = 1, *, stride: int = 1, relu: bool = True
    ) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(channels_out),
            *([nn.ReLU(inplace=True)] if relu else []),
        )


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation: each channel times a gate in (0, 1) found from the means of all channels.

    Args:
        channels: in and out.
        squeezed: channels between the two 1x1 convolutions.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(squeezed, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)  # (B, channels, h, w)


class Stage(nn.Sequential):
    """Units in a row, each a segment ``unit`` that can be recomputed, all together a ``block``."""

    def __init__(self, *units: nn.Module, segment: Segments, place: str) -> None:
        super().__init__(*units)
        self.segment, self.place = segment, place
        for label in ("unit", "block"):
            segment.offer(label, place, self)

    def forward(self, x: Tensor) -> Tensor:
        for unit in self:
            x = self.segment("unit", unit, x, place=self.place)
        return x


class PyramidPooling(nn.Module):
    """PSPNet's pyramid pooling module (its Section 3.2): averages over grids, reduced, upsampled, beside
    their input.

    Args:
        channels: maps in; as many are added, in equal parts.
        bins: rows and columns of each grid.
        resize: how the averages come to their input's size; None: `upsample`.

    Attributes:
        levels: bin ("1", "2", ...) -> pooling, 1x1 convolution, batch norm, ReLU.
    """

    def __init__(
        self, channels: int, bins: tuple[int, ...], *, resize: Callable[..., Tensor] | None = None
    ) -> None:
        super().__init__()
        self.resize = resize or upsample
        self.levels = nn.ModuleDict()
        for n in bins:
            self.levels[str(n)] = nn.Sequential(
                nn.AdaptiveAvgPool2d(n), *ConvNormReLU(channels, channels // len(bins), 1)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, 2D, h, w)."""
        levels = [self.resize(level(x), x.shape[-2:]) for level in self.levels.values()]
        return torch.cat([x, *levels], dim=1)


def conv_classifier(channels: int, width: int, num_classes: int, *, dropout: float) -> nn.Sequential:
    """PSPNet's way to end a head: 3x3 convolution, norm, ReLU, dropout of whole maps, 1x1 with bias."""
    return nn.Sequential(
        *ConvNormReLU(channels, width, 3), nn.Dropout2d(dropout), nn.Conv2d(width, num_classes, 1)
    )


def upsample(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Bilinear interpolation to (H, W), pixels seen as areas (corners not aligned)."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def as_integer(value: Any) -> int | None:
    """An integer of Python's, NumPy's or PyTorch's as Python's own; None for all else, bools too."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def check_classes(num_classes: int, least: int = 1, *, because: str = "") -> int:
    """A number of classes, as Python's int.

    Args:
        num_classes: what was given.
        least: how many there must be.
        because: why, if it is not plain: ``"..., so "``.

    Raises:
        ValueError: if it is no integer or below ``least``.
    """
    number = as_integer(num_classes)
    if number is None or number < least:
        raise ValueError(
            f"num_classes={num_classes!r}: {because}an integer of at least {least} is needed, e.g. 19."
        )
    return number


def norms_train(*parts: nn.Module) -> bool:
    """Whether a batch norm in these parts is in train mode, where one value per channel has no variance.

    The mode of the parts themselves says nothing: norms may be frozen within a model that is trained. Norms
    synchronized over several processes do not count, as each of these adds values. It visits every module, so
    ask what is cheaper first, the size of a batch.
    """
    return any(
        module.training and not _synchronized(module)
        for part in parts
        for module in part.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    )


def _synchronized(norm: nn.Module) -> bool:
    """Whether a norm takes its statistics over more than one process."""
    if not isinstance(norm, nn.SyncBatchNorm) or not (dist.is_available() and dist.is_initialized()):
        return False
    return dist.get_world_size(norm.process_group) > 1


def check_images(x: Tensor, minimum: int) -> None:
    """Refuse what is not a batch of normalized images of at least ``minimum`` pixels a side.

    Raises:
        TypeError: if ``x`` is not a floating-point tensor.
        ValueError: if its shape is not (B, 3, H, W), or H or W is below the minimum.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = f"{x.dtype} tensor" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"Expected a floating-point batch of images, got {kind}; normalize the images first.")
    if x.dim() != 4 or x.shape[1] != 3:
        raise ValueError(f"Expected images of shape (B, 3, H, W), got {tuple(x.shape)}.")
    if min(x.shape[-2:]) < minimum:
        raise ValueError(
            f"Images of {x.shape[-2]}x{x.shape[-1]} pixels are too small: this network subsamples {minimum} "
            f"times and needs at least {minimum}x{minimum}."
        )


def initialize(model: nn.Module) -> None:
    """Kaiming-normal convolutions, as the LDN authors' release has them; biases zero. In place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class FromScratch(nn.Module):
    """A network for which there are no ImageNet weights."""

    def load_imagenet(self) -> None:
        """Raises ValueError: there are no ImageNet weights for this network."""
        raise ValueError(
            f"There are no ImageNet weights for {type(self).__name__}, which is trained from scratch; use "
            f"weights='none'."
        )

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """None: no parameter came from ImageNet weights."""
        return []


def imagenet(model: nn.Module, name: str, load: Callable[[Any], Any]) -> Any:
    """torchvision's ImageNet weights (IMAGENET1K_V1) of one of its networks, from the cache or the net.

    Args:
        model: what they are for.
        name: of torchvision's network.
        load: ``load(weights)`` gets them in the form wanted; its result is returned.

    Raises:
        ValueError: if ``model`` is on the meta device.
        RuntimeError: if they cannot be had; says how to go on.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("A model on the meta device holds no weights; use weights='none' or a real device.")
    weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    try:
        return load(weights)
    except Exception as error:  # no network, no permission, a broken file: the cure is the same
        raise RuntimeError(
            f"Could not load torchvision's ImageNet weights for {name}: {error}. Download {weights.url} by "
            f"hand into {torch.hub.get_dir()}/checkpoints (replacing a broken file there), or use "
            f"weights='none'."
        ) from error


def load_features(model: nn.Module, backbone: nn.Module, name: str, *, prefix: str = "") -> None:
    """Load ImageNet weights into a backbone named like ``features`` of one of torchvision's networks.

    Networks without such a part are taken as a whole. torchvision itself brings the names in its older
    DenseNet files up to date.

    Args:
        model: the network that has the backbone.
        backbone: what is filled, all of it; torchvision's network may have more.
        name: of torchvision's network, ``"densenet121"``.
        prefix: what names in the backbone begin with that in torchvision's do not.

    Raises:
        ValueError: if ``model`` is on the meta device.
        RuntimeError: if the weights cannot be had; says how to go on.
    """
    pretrained = imagenet(
        model, name, lambda weights: torchvision.models.get_model(name, weights=weights, progress=False)
    )
    state = getattr(pretrained, "features", pretrained).state_dict()
    backbone.load_state_dict({key: state[key.removeprefix(prefix)] for key in backbone.state_dict()})
