"""Joint Pyramid Upsampling (JPU): maps at three strides become one at the finest, in place of dilation.

"FastFCN: Rethinking Dilated Convolution in the Backbone for Semantic Segmentation", Wu, Zhang, Huang, Liang,
Yu, Section 3.3.3, Figure 4; 19,735,552 parameters on a ResNet's 512, 1024 and 2048 maps.

The paper's: a regular convolution block on each map, upsampling and concatenation, four separable
convolutions of dilation 1, 2, 4 and 8 side by side. From the authors' code, where the text is silent: 512
maps wherever a width is free; the coarsest come first in the concatenation; a batch norm but no ReLU between
the depthwise and the pointwise convolution; corners are aligned. Figure 4c's last "convolution block" is not
part of it: it is the first convolution of the head above.

Shapes: B images, f = maps of a level, w = width; fine, middle and coarse sizes halve each time, up or down.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.models.blocks import ConvNormReLU, as_integer

LEVELS = ("fine", "middle", "coarse")


class JointPyramidUpsampling(nn.Module):
    """JPU (Section 3.3.3, Figure 4). ``forward([fine, middle, coarse])`` returns one map at the finest size.

    Any backbone's three levels will do, as long as their sizes halve.

    Args:
        in_channels: of the three maps, from fine to coarse.
        width: channels that each map is embedded in, and of each branch.
        dilations: one for each branch.

    Attributes:
        embed: the 3x3 convolution, norm and ReLU of each level (Figure 4a), from fine to coarse.
        branches: the separable convolutions (Figure 4b), in the order of their maps in the output.
        in_channels: as given.
        out_channels: ``width`` for each branch.

    Raises:
        ValueError: if an argument is none of those above.
    """

    def __init__(
        self,
        in_channels: Sequence[int] = (512, 1024, 2048),
        width: int = 512,
        *,
        dilations: Sequence[int] = (1, 2, 4, 8),
    ) -> None:
        super().__init__()
        self.in_channels = _integers("in_channels", in_channels, "(512, 1024, 2048)")
        if len(self.in_channels) != 3:
            raise ValueError(
                f"in_channels={in_channels!r}: give the channels of three maps, from fine to coarse."
            )
        (width,) = _integers("width", (width,), "512")
        self.dilations = _integers("dilations", dilations, "(1, 2, 4, 8)")
        self.out_channels = len(self.dilations) * width

        self.embed = nn.ModuleList(ConvNormReLU(channels, width, 3) for channels in self.in_channels)
        joined = 3 * width
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(joined, joined, 3, padding=d, dilation=d, groups=joined, bias=False),
                nn.BatchNorm2d(joined),  # and no ReLU, by the authors' code
                *ConvNormReLU(joined, width, 1),
            )
            for d in self.dilations
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, f1, h, w), (B, f2, h/2, w/2), (B, f3, h/4, w/4) -> (B, out_channels, h, w).

        Raises:
            ValueError: if these are not three maps of ``in_channels`` whose sizes halve.
        """
        check_pyramid(maps, self.in_channels)
        fine, middle, coarse = (embed(x) for embed, x in zip(self.embed, maps, strict=True))
        size = fine.shape[-2:]
        x = torch.cat([resize(coarse, size), resize(middle, size), fine], dim=1)  # (B, 3w, h, w)
        return torch.cat([branch(x) for branch in self.branches], dim=1)  # (B, 4w, h, w)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear interpolation to (H, W), corners aligned, as the authors' code has it everywhere.

    It is kept because the paper's accuracies were reached with it. By Section 3.3.2 the pixel i of a map at
    stride 32 belongs at 4i in one at stride 8; aligned corners put it there only if the image measures
    32k + 1 pixels. At 480 and 512 they are up to 0.71 coarse pixels off, by place; corners not aligned would
    be off by 0.375 everywhere but at the border.
    """
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def check_pyramid(maps: Sequence[Tensor], channels: Sequence[int], *, halving: bool = True) -> None:
    """Refuse what are not three maps of these channels, from fine to coarse, whose sizes halve.

    Args:
        maps: what was given.
        channels: that each must have.
        halving: False takes any sizes.

    Raises:
        ValueError: says which map is wrong, and how. An odd size may be halved up or down.
    """
    if not isinstance(maps, (tuple, list)) or len(maps) != 3 or any(not isinstance(x, Tensor) for x in maps):
        what = f"{len(maps)} things" if isinstance(maps, (tuple, list)) else type(maps).__name__
        raise ValueError(f"Expected a list of three maps, [fine, middle, coarse], got {what}.")
    for level, x, expected in zip(LEVELS, maps, channels, strict=True):
        if x.dim() != 4 or x.shape[1] != expected:
            raise ValueError(
                f"The {level} map is {tuple(x.shape)}, but (B, {expected}, h, w) is expected: the maps come "
                f"from fine to coarse, with {', '.join(map(str, channels))} channels."
            )
    sizes = [tuple(x.shape[-2:]) for x in maps]
    for i in (1, 2):
        halves = [(side // 2, -(-side // 2)) for side in sizes[i - 1]]  # down, up
        if halving and any(side not in half for side, half in zip(sizes[i], halves, strict=True)):
            listed = ", ".join(f"{height}x{width}" for height, width in sizes)
            raise ValueError(
                f"The sizes of a pyramid must halve from map to map, and these are {listed}: the {LEVELS[i]} "
                f"one is not half of the one before. Take maps of a backbone that is not dilated, each at "
                f"twice the stride of the one before."
            )


def _integers(name: str, values: Sequence[int], example: str) -> tuple[int, ...]:
    found = tuple(as_integer(v) for v in values) if isinstance(values, (tuple, list)) else ()
    if not found or any(v is None or v < 1 for v in found):
        given = values[0] if name == "width" else values
        raise ValueError(f"{name}={given!r}: integers of at least 1 are needed, e.g. {example}.")
    return found
