"""DDRNet-23, a peer of RegSeg in its Tables 9 and 10: 20,148,819 parameters at 19 classes.

"Deep Dual-resolution Networks for Real-time and Accurate Semantic Segmentation of Road Scenes", Hong, Pan,
Sun and Jia, 2021, Section III. Where the text is open, the authors' release decides: ReLU comes after a
fusion and not before it, average pooling counts the zeros around a map, convolutions start from Kaiming's
fan-out. As RegSeg's authors count it, the stem's convolutions have no bias (the release gives them 128) and
there is no auxiliary head; ``auxiliary_head=True`` adds the release's, which RegSeg's comparison trains
without. The release makes its logits at floor(H/8), so that sizes must be multiples of 8; here the
high-resolution branch's own size is taken, and with it any size.
Shapes: B images of H x W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.memory.recompute import Segments
from segkit.models.blocks import (
    ConvNormReLU,
    FromScratch,
    Stage,
    check_classes,
    check_images,
    norms_train,
    upsample,
)

# DAPPM's average pooling: branch -> side of the window and stride; "1" is the map itself
POOLS: dict[str, tuple[int, int] | None] = {
    "1": (1, 1),
    "5": (5, 2),
    "9": (9, 4),
    "17": (17, 8),
    "whole": None,
}


class ResidualUnit(nn.Module):
    """Convolutions beside an identity, or beside a 1x1 convolution and norm where the shape changes.

    Args:
        main: the convolutions, with stride and without a last ReLU.
        channels_in: maps in.
        channels_out: maps that ``main`` puts out.
        stride: of ``main``.
        relu: whether the sum is rectified; the sums that a fusion adds to are not.
    """

    def __init__(
        self, main: nn.Module, channels_in: int, channels_out: int, *, stride: int = 1, relu: bool = True
    ) -> None:
        super().__init__()
        self.main = main
        same = stride == 1 and channels_in == channels_out
        self.shortcut = (
            nn.Identity() if same else ConvNormReLU(channels_in, channels_out, stride=stride, relu=False)
        )
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.main(x) + self.shortcut(x)
        return F.relu(x, inplace=True) if self.relu else x


def basic_blocks(channels_in: int, width: int, *, stride: int = 1, relu: bool = True) -> list[ResidualUnit]:
    """Two residual basic blocks, the first with the stride; ``relu`` says whether the second ends in one."""
    units = []
    for channels, step, last in ((channels_in, stride, True), (width, 1, relu)):
        main = nn.Sequential(
            *ConvNormReLU(channels, width, 3, stride=step),
            *ConvNormReLU(width, width, 3, relu=False),
        )
        units.append(ResidualUnit(main, channels, width, stride=step, relu=last))
    return units


def bottleneck(channels: int, *, stride: int = 1) -> ResidualUnit:
    """The residual bottleneck block that ends either branch: twice the maps, no ReLU after the sum."""
    main = nn.Sequential(
        *ConvNormReLU(channels, channels),
        *ConvNormReLU(channels, channels, 3, stride=stride),
        *ConvNormReLU(channels, 2 * channels, relu=False),
    )
    return ResidualUnit(main, channels, 2 * channels, stride=stride, relu=False)


class BilateralFusion(nn.Module):
    """Either branch, rectified, is brought to the other's shape and added to it (bilateral fusion).

    Args:
        low_channels: maps of the low-resolution branch.
        high_channels: maps of the high-resolution branch.
        halvings: how many 3x3 convolutions of stride 2 lead from the high resolution to the low one. Each
            doubles the maps, so that ``low_channels`` is ``high_channels`` times 2 ** halvings.
    """

    def __init__(self, low_channels: int, high_channels: int, *, halvings: int) -> None:
        super().__init__()
        self.compress = ConvNormReLU(low_channels, high_channels, relu=False)
        self.down = nn.Sequential()
        for i in range(1, halvings + 1):
            width = high_channels * 2**i
            self.down.extend(ConvNormReLU(width // 2, width, 3, stride=2, relu=i < halvings))

    def forward(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """(B, l, h', w'), (B, k, h, w) -> the same shapes, not rectified."""
        up = upsample(self.compress(F.relu(low)), high.shape[-2:])
        return low + self.down(F.relu(high)), high + up


class DAPPM(nn.Module):
    """Deep aggregation pyramid pooling: context of growing extent, each added to the last.

    Every convolution follows a norm and a ReLU. With y_1 the map itself through a 1x1 convolution, y_i is a
    3x3 convolution of (pooled map i through a 1x1, upsampled) + y_(i-1); a 1x1 convolution joins the five,
    and another one around everything is added.

    Args:
        channels: maps in.
        width: maps of each y_i.
        channels_out: maps out.

    Attributes:
        levels: branch (``"1"``, ``"5"``, ``"9"``, ``"17"``, ``"whole"``) -> pooling and 1x1 convolution.
    """

    def __init__(self, channels: int, width: int, channels_out: int) -> None:
        super().__init__()
        self.levels, self.process = nn.ModuleDict(), nn.ModuleDict()
        for name, pool in POOLS.items():
            convolution = _norm_relu_conv(channels, width, 1)
            if name == "1":
                self.levels[name] = convolution
                continue
            pooling = nn.AvgPool2d(pool[0], pool[1], pool[0] // 2) if pool else nn.AdaptiveAvgPool2d(1)
            self.levels[name] = nn.Sequential(pooling, convolution)
            self.process[name] = _norm_relu_conv(width, width, 3)
        self.compress = _norm_relu_conv(len(POOLS) * width, channels_out, 1)
        self.shortcut = _norm_relu_conv(channels, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, i, h, w) -> (B, o, h, w)."""
        y = [self.levels["1"](x)]
        for name, process in self.process.items():
            y.append(process(upsample(self.levels[name](x), x.shape[-2:]) + y[-1]))
        return self.compress(torch.cat(y, dim=1)) + self.shortcut(x)

    def one_value(self, height: int, width: int) -> list[str]:
        """The branches whose norms are in train mode and that leave one value per channel of such a map."""
        return [
            name
            for name, pool in POOLS.items()
            if norms_train(self.levels[name]) and (pool is None or max(height, width) <= pool[1])
        ]


class DDRNet(FromScratch):
    """Two branches from H/8 on: one stays there, one goes down to H/64 and ends in `DAPPM`; fused on the way.

    ``forward(x, *, auxiliary=None, full_size=True)`` takes normalized images (B, 3, H, W) of at least 64
    pixels a side, odd sizes too, and returns a dict: ``"out"``, logits (B, num_classes, H, W), or with
    ``full_size=False`` at H/8. With ``auxiliary_head``, and ``auxiliary`` (in train mode unless told
    otherwise), also ``"aux"``, with a classifier on the high-resolution branch after its first fusion under
    ``"high4"``: (B, num_classes, H/8, W/8). The layers themselves would run on a single pixel; below 64 the
    deepest maps have no full cell, and images are refused.

    One image at a time cannot be trained on: DAPPM's branch ``whole`` leaves one value per channel, from
    which its batch norm can learn nothing; up to 512 pixels a side so does the branch of 17x17 windows, up to
    256 that of 9x9 and up to 128 that of 5x5. To measure such a step all the same, put those branches in eval
    mode, where their norms use their running statistics, e.g. ``model.dappm.levels["whole"].eval()``.
    `segkit.measure.peak_memory` keeps it so; ``model.train()`` undoes it.

    Args:
        num_classes: maps of the logits.
        width: maps of the stem; 64 is DDRNet-23, 32 the paper's DDRNet-23-slim (5,695,923 parameters).
        auxiliary_head: whether there is a second classifier, 150,419 parameters at 19 classes.
        recompute: segments to checkpoint: ``unit``, a residual unit; ``block``, a stage of one branch;
            ``stem``; ``spp``, DAPPM; ``tu``, the classifiers. Places are 2 and 3, low4 to low6 and high4 to
            high6, and ``logits`` and ``aux``; see `segkit.memory.recompute`.

    Raises:
        ValueError: if an argument is none of those above.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        width: int = 64,
        auxiliary_head: bool = False,
        recompute: str | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes = check_classes(num_classes)
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ValueError(
                f"width={width!r}: give a number of maps of at least 1, e.g. 64, or 32 for slim."
            )
        self.output_stride = 8
        self.minimum_size = 64
        self.segment = segment = Segments(recompute, available=("unit", "block", "stem", "spp", "tu"))

        self.stem = nn.Sequential(
            *ConvNormReLU(3, width, 3, stride=2), *ConvNormReLU(width, width, 3, stride=2)
        )
        segment.offer("stem", "", self.stem)
        high = 2 * width
        stages = {
            "2": basic_blocks(width, width),
            "3": basic_blocks(width, high, stride=2),
            "low4": basic_blocks(high, 4 * width, stride=2, relu=False),
            "high4": basic_blocks(high, high, relu=False),
            "low5": basic_blocks(4 * width, 8 * width, stride=2, relu=False),
            "high5": basic_blocks(high, high, relu=False),
            "low6": [bottleneck(8 * width, stride=2)],
            "high6": [bottleneck(high)],
        }
        self.stages = nn.ModuleDict(
            {place: Stage(*units, segment=segment, place=place) for place, units in stages.items()}
        )
        self.fuse4 = BilateralFusion(4 * width, high, halvings=1)
        self.fuse5 = BilateralFusion(8 * width, high, halvings=2)
        self.dappm = DAPPM(16 * width, 128, 4 * width)
        segment.offer("spp", "", self.dappm)
        self.logits = _head(4 * width, high, num_classes)
        segment.offer("tu", "logits", self.logits)
        self.aux = nn.ModuleDict()
        if auxiliary_head:
            self.aux["high4"] = _head(high, high, num_classes)
            segment.offer("tu", "aux", self.aux)
        segment.check_places()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(
        self, x: Tensor, *, auxiliary: bool | None = None, full_size: bool = True
    ) -> dict[str, Tensor | dict[str, Tensor]]:
        check_images(x, self.minimum_size)
        self._check_values(x)
        auxiliary = self.training if auxiliary is None else auxiliary
        size = x.shape[-2:]
        x = self.segment("stem", self.stem, x)  # (B, 64, H/4, W/4)
        x = self._stage("3", self._stage("2", x))  # (B, 128, H/8, W/8), rectified
        low = self._stage("low4", x)  # (B, 256, H/16, W/16), from here on not rectified
        high = self._stage("high4", x)  # (B, 128, H/8, W/8)
        low, high = self.fuse4(low, high)
        high4 = high
        low = self._stage("low5", F.relu(low))  # (B, 512, H/32, W/32)
        high = self._stage("high5", F.relu(high))  # (B, 128, H/8, W/8)
        low, high = self.fuse5(low, high)
        low = self._stage("low6", F.relu(low))  # (B, 1024, H/64, W/64)
        high = self._stage("high6", F.relu(high))  # (B, 256, H/8, W/8)
        low = self.segment("spp", self.dappm, low)  # (B, 256, H/64, W/64)
        x = high + upsample(low, high.shape[-2:])  # (B, 256, H/8, W/8)
        out = self.segment("tu", self.logits, x, place="logits")  # (B, num_classes, H/8, W/8)
        result = {"out": upsample(out, size) if full_size else out}
        if auxiliary and "high4" in self.aux:
            result["aux"] = {"high4": self.segment("tu", self.aux["high4"], high4, place="aux")}
        return result

    def load_imagenet(self) -> None:
        """Raises ValueError: torchvision has no ImageNet weights for this network."""
        raise ValueError("torchvision has no ImageNet weights for DDRNet; use weights='none'.")

    def _stage(self, place: str, x: Tensor) -> Tensor:
        return self.segment("block", self.stages[place], x, place=place)

    def _check_values(self, x: Tensor) -> None:
        """Refuse to train on one image where that leaves a batch norm one value per channel."""
        if x.shape[0] != 1:
            return
        height, width = (-(-side // 64) for side in x.shape[-2:])  # of DAPPM's input
        branches = self.dappm.one_value(height, width)
        if height == width == 1 and norms_train(self.dappm, self.stages["low6"]):
            reason, cure = "its deepest maps hold", " Or take a larger image."
        elif branches:
            reason = f"after pooling, DAPPM's branches {', '.join(branches)} hold"
            evals = "; ".join(f"model.dappm.levels['{name}'].eval()" for name in branches)
            cure = f" To measure a step all the same, put those branches in eval mode: {evals}."
        else:
            return
        raise ValueError(
            f"Cannot train DDRNet on a single image of {x.shape[-2]}x{x.shape[-1]} pixels: {reason} one "
            f"value per channel, from which batch norm can learn nothing. Use at least two images, or "
            f"model.eval().{cure}"
        )


def _norm_relu_conv(channels: int, width: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False),
    )


def _head(channels: int, width: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        *_norm_relu_conv(channels, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, num_classes, 1),
    )
