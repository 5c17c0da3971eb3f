"""RegSeg: blocks whose 3x3 convolution runs at several dilations side by side, and a lightweight decoder.

"Rethink Dilated Convolution for Real-time Semantic Segmentation", Gao, Sections 3.2 to 3.4; 3,334,951
parameters at 19 classes (3.34 M in Table 9). Initialization is PyTorch's default (Section 4.2).

The paper's: the layers of a D block and their order, batch norm after every convolution, where the ReLUs are,
2x2 average pooling on the shortcut of stride 2 (Section 3.2, Figures 3 and 4), widths, strides and dilations
(Table 2), the decoder (Section 3.4, Figure 5).

From the author's code, where the text is silent: squeeze-and-excitation narrows to a quarter of the block's
input channels (RegNet's rule) and has biases; the stride is in the 3x3 convolution; the pooling rounds odd
sizes up (ceil_mode), as the convolution beside it does; the 256 -> 320 shortcut is a 1x1 convolution without
pooling; branches take channels in the order of their dilations; the decoder concatenates the coarse maps
first, the fine ones last; upsampling is bilinear, corners not aligned, to the size of the finer maps.

Shapes: B images of H x W pixels; i, o = a block's channels in and out; sizes that 4, 8 or 16 do not divide
round up.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.memory.recompute import Segments
from segkit.models.blocks import (
    ConvNormReLU,
    FromScratch,
    SqueezeExcite,
    Stage,
    as_integer,
    check_classes,
    check_images,
    norms_train,
    upsample,
)
from segkit.models.regseg_decoders import LRASPP, BiSeNetDecoder, Concat, SFNetDecoder, Sum

# Table 4's rows: dilations of the 13 blocks of stride 1 at H/16. RegSeg is row 1 (Table 2).
DILATIONS: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((1, 1), (1, 2), *4 * ((1, 4),), *7 * ((1, 14),)),
    2: ((1, 1), (1, 2), (1, 4), (1, 6), (1, 8), (1, 10), *7 * ((1, 12),)),
    3: ((1, 1), (1, 2), (1, 4), (1, 6), (1, 8), (1, 10), *7 * ((1, 3, 6, 12),)),
    4: ((1, 1), (1, 2), (1, 4), (1, 6), (1, 8), *8 * ((1, 10),)),
    5: ((1, 1), (1, 2), *6 * ((1, 4),), *5 * ((1, 6, 12, 18),)),
    6: ((1, 1), (1, 2), (1, 4), *10 * ((1, 6),)),
    7: ((1, 1), (1, 2), (1, 4), (1, 6), (1, 8), (1, 10), (1, 12), *6 * ((1, 14),)),
    8: (*5 * ((1, 4),), *8 * ((1, 10),)),
    9: ((1, 1), (1, 2), (1, 4), (1, 6), (1, 8), (1, 10), *7 * ((1, 4, 8, 12),)),
}


class DBlock(nn.Module):
    """The dilated block (Section 3.2): 1x1, grouped 3x3 in branches, squeeze-and-excitation, 1x1, shortcut.

    Each branch convolves its part of the channels at its own dilation; the branches' sizes in parameters and
    multiply-adds do not depend on the dilations. Where all dilations are equal nothing is split, and the
    block is RegNet's Y block (end of Section 3.2).

    Args:
        channels_in: i, at least 4.
        channels_out: o, a multiple of the group width.
        dilations: of the branches, (1, 14) for two; o divides into as many parts, each a multiple of the
            group width.
        stride: 1, or 2 to halve the resolution.
        group_width: channels that a group of the 3x3 convolution reads and writes (g).

    Attributes:
        conv1: the first 1x1 convolution, its norm and ReLU.
        branches: the 3x3 convolutions, in the order of their channels; ``norm`` comes after all of them.
        conv3: the last 1x1 convolution and its norm.

    Raises:
        ValueError: if an argument is none of those above.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        dilations: tuple[int, ...] = (1,),
        *,
        stride: int = 1,
        group_width: int = 16,
    ) -> None:
        super().__init__()
        channels_in, channels_out, dilations, stride, group_width = _checked(
            channels_in, channels_out, dilations, stride, group_width
        )
        if len(set(dilations)) == 1:
            dilations = dilations[:1]
        part = channels_out // len(dilations)

        self.conv1 = ConvNormReLU(channels_in, channels_out)
        self.branches = nn.ModuleList(
            nn.Conv2d(
                part, part, 3, stride=stride, padding=d, dilation=d, groups=part // group_width, bias=False
            )
            for d in dilations
        )
        self.norm = nn.BatchNorm2d(channels_out)
        self.squeeze_excite = SqueezeExcite(channels_out, channels_in // 4)
        self.conv3 = ConvNormReLU(channels_out, channels_out, relu=False)
        if stride == 2:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(2, ceil_mode=True), ConvNormReLU(channels_in, channels_out, relu=False)
            )
        elif channels_in != channels_out:
            self.shortcut = ConvNormReLU(channels_in, channels_out, relu=False)
        else:
            self.shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, i, h, w) -> (B, o, h/stride, w/stride), rounded up."""
        main = self.conv1(x)  # (B, o, h, w)
        if len(self.branches) == 1:
            main = self.branches[0](main)
        else:
            parts = main.chunk(len(self.branches), dim=1)
            main = torch.cat([conv(part) for conv, part in zip(self.branches, parts, strict=True)], dim=1)
        main = self.squeeze_excite(F.relu(self.norm(main), inplace=True))  # (B, o, h/stride, w/stride)
        return F.relu(self.conv3(main) + self.shortcut(x), inplace=True)


class RegSegBackbone(nn.Module):
    """The backbone (Section 3.3, Table 2). ``forward(x)`` returns the last maps at H/4, H/8 and H/16.

    Args:
        dilations: for each block of stride 1 at H/16; the last of these blocks has 320 channels, the others
            256. The paper has 13 of them.
        segment: runs the segments ``stem``, ``unit`` and ``block``.

    Attributes:
        channels: of the three maps.

    Raises:
        ValueError: if there are no dilations, or a block cannot be made with its own.
    """

    channels = (48, 128, 320)

    def __init__(
        self, dilations: tuple[tuple[int, ...], ...] = DILATIONS[1], *, segment: Segments | None = None
    ) -> None:
        super().__init__()
        if not isinstance(dilations, (tuple, list)) or not dilations:
            raise ValueError(
                f"dilations={dilations!r}: give a tuple of dilations for each block of stride 1 at H/16, at "
                f"least one, e.g. DILATIONS[1]."
            )
        self.segment = segment = segment or Segments()
        self.stem = ConvNormReLU(3, 32, 3, stride=2)
        segment.offer("stem", "", self.stem)
        self.stage4 = Stage(DBlock(32, 48, stride=2), segment=segment, place="4")
        self.stage8 = Stage(
            DBlock(48, 128, stride=2), DBlock(128, 128), DBlock(128, 128), segment=segment, place="8"
        )
        self.stage16 = Stage(
            DBlock(128, 256, stride=2),
            *(DBlock(256, 256, d) for d in dilations[:-1]),
            DBlock(256, 320, dilations[-1]),
            segment=segment,
            place="16",
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        segment = self.segment
        x = segment("stem", self.stem, x)  # (B, 32, H/2, W/2)
        x4 = segment("block", self.stage4, x, place="4")  # (B, 48, H/4, W/4)
        x8 = segment("block", self.stage8, x4, place="8")  # (B, 128, H/8, W/8)
        x16 = segment("block", self.stage16, x8, place="16")  # (B, 320, H/16, W/16)
        return [x4, x8, x16]


class RegSegDecoder(nn.Module):
    """The decoder (Section 3.4, Figure 5). ``forward(x4, x8, x16)`` returns logits at H/4.

    Args:
        channels: of the maps at H/4, H/8 and H/16.
        num_classes: maps of the logits.
    """

    output_stride = 4

    def __init__(self, channels: tuple[int, int, int], *, num_classes: int) -> None:
        super().__init__()
        self.head4 = ConvNormReLU(channels[0], 8)
        self.head8 = ConvNormReLU(channels[1], 128)
        self.head16 = ConvNormReLU(channels[2], 128)
        self.conv8 = ConvNormReLU(128, 64, 3)
        self.conv4 = ConvNormReLU(64 + 8, 64, 3)
        self.logits = nn.Conv2d(64, num_classes, 1)

    def forward(self, x4: Tensor, x8: Tensor, x16: Tensor) -> Tensor:
        x4, x8, x16 = self.head4(x4), self.head8(x8), self.head16(x16)
        x = self.conv8(x8 + upsample(x16, x8.shape[-2:]))  # (B, 64, H/8, W/8)
        x = self.conv4(torch.cat([upsample(x, x4.shape[-2:]), x4], dim=1))  # (B, 64, H/4, W/4)
        return self.logits(x)


# Table 5's decoders. Each is made from the channels at H/4, H/8 and H/16; the others are in
# `segkit.models.regseg_decoders`.
DECODERS: dict[str, Callable[..., nn.Module]] = {
    "regseg": RegSegDecoder,
    "sum3x3": partial(Sum, kernel=3),  # which all of Table 4's backbones have too
    "sum1x1": partial(Sum, kernel=1),  # what ran under the table's "concat+1x1 conv"
    "concat3x3": partial(Concat, join=partial(ConvNormReLU, kernel=3)),
    "concat1x1": partial(Concat, join=ConvNormReLU),  # what the text describes
    "concat-yblock": partial(Concat, join=DBlock),
    "lraspp": LRASPP,
    "sfnet": SFNetDecoder,
    "bisenet": BiSeNetDecoder,
}


class BackboneAndDecoder(FromScratch):
    """What the rows of Tables 4 and 5 have in common: a backbone's three maps, and a decoder to logits.

    ``forward(x)`` takes normalized images (B, 3, H, W) of at least 16 pixels a side and returns ``{"out":
    logits (B, num_classes, H, W)}``, with ``full_size=False`` at H/4, or at H/8 for every decoder but
    ``"regseg"`` (``output_stride``); there are no auxiliary outputs.

    Args:
        backbone: has ``channels`` and ``segment``.
        num_classes: maps of the logits.
        decoder: a key of ``DECODERS``.
    """

    def __init__(self, backbone: nn.Module, *, num_classes: int, decoder: str) -> None:
        super().__init__()
        self.num_classes = num_classes = check_classes(num_classes)
        if decoder not in DECODERS:
            raise ValueError(f"Unknown decoder={decoder!r}; choose one of {', '.join(DECODERS)}.")
        backbone.segment.check_places()
        self.backbone = backbone
        self.decoder = DECODERS[decoder](backbone.channels, num_classes=num_classes)
        self.output_stride = self.decoder.output_stride
        self.minimum_size = 16

    def forward(
        self, x: Tensor, *, auxiliary: bool | None = None, full_size: bool = True
    ) -> dict[str, Tensor]:
        check_images(x, self.minimum_size)  # `auxiliary` is every model's keyword; there are no such outputs
        if x.shape[0] == 1 and max(x.shape[-2:]) <= 16 and norms_train(self):
            raise ValueError(
                f"Cannot train on a single image of {x.shape[-2]}x{x.shape[-1]} pixels: at H/16 it leaves "
                f"one value per channel, from which batch norm can learn nothing. Use a larger image, at "
                f"least two of them, or model.eval()."
            )
        out = self.decoder(*self.backbone(x))  # (B, num_classes, H/4, W/4) or, by the decoder, H/8
        return {"out": upsample(out, x.shape[-2:]) if full_size else out}


class RegSeg(BackboneAndDecoder):
    """RegSeg (Section 3), and with other dilations and decoders the rows of Tables 4 and 5.

    For ``forward`` see `BackboneAndDecoder`.

    Args:
        num_classes: maps of the logits.
        dilations: of the D blocks of stride 1 at H/16; ``DILATIONS`` has Table 4's rows.
        decoder: a key of ``DECODERS``; ``"regseg"`` is Section 3.4's.
        recompute: segments to checkpoint: ``stem``; ``unit``, a D block; ``block``, all blocks of a
            resolution. Places are the resolutions 4, 8 and 16; see `segkit.memory.recompute`.

    Raises:
        ValueError: if an argument is none of those above.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        dilations: tuple[tuple[int, ...], ...] = DILATIONS[1],
        decoder: str = "regseg",
        recompute: str | None = None,
    ) -> None:
        segment = Segments(recompute, available=("stem", "unit", "block"))
        super().__init__(RegSegBackbone(dilations, segment=segment), num_classes=num_classes, decoder=decoder)


def _checked(
    channels_in: int, channels_out: int, dilations: tuple[int, ...], stride: int, group_width: int
) -> tuple[int, int, tuple[int, ...], int, int]:
    """The arguments of `DBlock`, as Python's integers; refuses what no D block can be made of."""
    listed = isinstance(dilations, (tuple, list))
    found = tuple(as_integer(d) for d in dilations) if listed else ()
    if not found or any(d is None or d < 1 for d in found):
        raise ValueError(
            f"dilations={dilations!r}: give the dilation of each branch, an integer of at least 1, "
            f"e.g. (1, 4)."
        )
    step = as_integer(stride)
    if step not in (1, 2):
        raise ValueError(f"stride={stride!r}: a D block has stride 1 or 2.")
    narrow, wide, group = (as_integer(n) for n in (channels_in, channels_out, group_width))
    if narrow is None or narrow < 4:
        raise ValueError(
            f"channels_in={channels_in!r}: an integer of at least 4 is needed, for squeeze-and-excitation "
            f"narrows to a quarter."
        )
    if group is None or wide is None or group < 1 or wide < 1:
        raise ValueError(
            f"channels_out={channels_out!r}, group_width={group_width!r}: integers of at least 1 are needed."
        )
    if wide % group:
        raise ValueError(
            f"channels_out={channels_out!r} is not a multiple of group_width={group_width!r}; choose widths "
            f"that are."
        )
    branches = len(found) if len(set(found)) > 1 else 1
    if wide % (branches * group):
        raise ValueError(
            f"dilations={found}: {branches} branches of groups of {group} do not divide channels_out={wide}; "
            f"it must be a multiple of {branches * group}."
        )
    return narrow, wide, found, step, group
