"""VNet: few channels at full resolution, and a reversible core whose depth costs no memory.

"VNet: A Versatile Network for Efficient Real-Time Semantic Segmentation", Lin, Lu, Gao, Qiao and Li, Section
III. No code was published, and its Table 1 and Figures 2 and 4 are pictures, so that parts are inferred here.

The paper's: three stages; three 3x3 Conv-BN-PReLU of 8 maps at H/2; at H/4 and H/8 a contextual pyramid
pooling (CPP), which concatenates a 1x1 convolution of stride 2 with a sum of pyramid poolings, then alpha = 1
and beta = 2 V modules; the reversible function Z = X1 + F(X2), Y1 = Z, Y2 = X2 + Z; asymmetric convolutions
(3x1, 1x3), dilated ones among them; 0.16 M parameters (Table 2), 0.18 M in Section IV-B.

Inferred: 32 and 128 maps in stages 2 and 3 with three reversible units in a V module. Of the few powers of
two that give 0.16 M, these give 162,291 parameters, and with 64 maps in stage 2 also the 0.18 M: 177,779.
That is no proof. Further: no bias before a batch norm, one slope per channel in PReLU, the stride in the
first 3x3; average pooling over 3x3, 5x5 and 7x7; dilations 1, 2, 4 for the units of stage 2 and 2, 4, 8 in
stage 3; a 1x1 classifier and bilinear upsampling; initialization, and PyTorch's defaults for batch norm.
Shapes: B images of H x W pixels; i, o = maps at a module's input and output.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.memory.recompute import Segments
from segkit.memory.reversible import ReversibleSequence, ReversibleUnit
from segkit.models.blocks import FromScratch, check_classes, check_images, initialize, upsample

POOLS = (3, 5, 7)


class ConvBNPReLU(nn.Sequential):
    """What Table 1 calls Conv: convolution without bias ('same' padding), batch norm, PReLU."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: tuple[int, int],
        *,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__(
            nn.Conv2d(
                channels_in,
                channels_out,
                kernel,
                stride=stride,
                padding=tuple(dilation * (side // 2) for side in kernel),
                dilation=dilation,
                bias=False,
            ),
            nn.BatchNorm2d(channels_out),
            nn.PReLU(channels_out),
        )


class ContextualPyramidPooling(nn.Module):
    """CPP (Section III-1): halves the resolution; a 1x1 convolution beside the sum of three average poolings.

    Args:
        channels_in: i.
        channels_out: o, more than i: the convolution gives o - i maps.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out - channels_in, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)
        self.activation = nn.PReLU(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, i, h, w) -> (B, o, h/2, w/2), rounded up."""
        # windows centred on the pixels that the convolution takes; outside of the image there is nothing
        pooled = sum(
            F.avg_pool2d(x, side, stride=2, padding=side // 2, count_include_pad=False) for side in POOLS
        )  # (B, i, h/2, w/2)
        return self.activation(self.norm(torch.cat([self.conv(x), pooled], dim=1)))


def asymmetric(channels: int, dilation: int) -> nn.Sequential:
    """F of a reversible unit (Section III-2): 3x1, then 1x3, a third less to compute than one 3x3."""
    return nn.Sequential(
        ConvBNPReLU(channels, channels, (3, 1), dilation=dilation),
        ConvBNPReLU(channels, channels, (1, 3), dilation=dilation),
    )


def v_modules(count: int, width: int, dilations: tuple[int, ...], *, second: bool) -> nn.Module:
    """V modules in a row (Section III-2), each a reversible unit per dilation, as one reversible stack.

    One stack for the whole stage: one for each module would keep each module's output, and memory would grow
    with their number.
    """
    if count == 0:
        return nn.Identity()
    half = width // 2
    return ReversibleSequence(
        [
            ReversibleUnit(asymmetric(half, dilation), asymmetric(half, dilation) if second else None)
            for dilation in count * tuple(dilations)
        ]
    )


class VNet(FromScratch):
    """VNet, Table 1.

    ``forward(x)`` takes normalized images (B, 3, H, W) of at least 8 pixels a side and returns ``{"out":
    logits (B, num_classes, H, W)}``, with ``full_size=False`` at H/8; there are no auxiliary outputs. The
    units of a stage run as one reversible stack, which keeps its output only.

    Args:
        num_classes: maps of the logits.
        alpha: V modules in stage 2, at H/4.
        beta: V modules in stage 3, at H/8.
        widths: maps of the three stages, each more than the one before, the last two even.
        dilations: for stage 2 and stage 3, the dilation of each unit of a V module.
        second: RevNet's form, Y2 = X2 + G(Z) with G built like F, in place of the paper's Y2 = X2 + Z. More
            parameters.
        reversible: False keeps all activations for the backward pass, as an ordinary network does. The
            parameters are the same.
        recompute: segments to checkpoint: ``unit``, a reversible unit by itself (then no reversible stack);
            ``stem``, stage 1; ``td``, a CPP. See `segkit.memory.recompute`.

    Raises:
        ValueError: if an argument is none of those above.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        alpha: int = 1,
        beta: int = 2,
        widths: tuple[int, int, int] = (8, 32, 128),
        dilations: tuple[tuple[int, ...], tuple[int, ...]] = ((1, 2, 4), (2, 4, 8)),
        second: bool = False,
        reversible: bool = True,
        recompute: str | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes = check_classes(num_classes)
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in (alpha, beta)):
            raise ValueError(
                f"alpha={alpha!r}, beta={beta!r}: give numbers of V modules, at least 0, e.g. alpha=1, "
                f"beta=2."
            )
        if len(widths) != 3 or not 0 < widths[0] < widths[1] < widths[2]:
            raise ValueError(
                f"widths={widths!r}: give three numbers of maps, each more than the one before (CPP adds to "
                f"its input's maps), e.g. (8, 32, 128)."
            )
        if widths[1] % 2 or widths[2] % 2:
            raise ValueError(f"widths={widths!r}: the last two are split in halves, so they must be even.")
        if len(dilations) != 2 or not all(stage and min(stage) >= 1 for stage in dilations):
            raise ValueError(
                f"dilations={dilations!r}: give the dilations of the units of a V module, at least 1, for "
                f"two stages, e.g. ((1, 2, 4), (2, 4, 8))."
            )
        self.output_stride = self.minimum_size = 8
        self.segment = Segments(recompute, available=("unit", "stem", "td"))

        self.stage1 = nn.Sequential(
            ConvBNPReLU(3, widths[0], (3, 3), stride=2),
            ConvBNPReLU(widths[0], widths[0], (3, 3)),
            ConvBNPReLU(widths[0], widths[0], (3, 3)),
        )
        self.down2 = ContextualPyramidPooling(widths[0], widths[1])
        self.stage2 = v_modules(alpha, widths[1], dilations[0], second=second)
        self.down3 = ContextualPyramidPooling(widths[1], widths[2])
        self.stage3 = v_modules(beta, widths[2], dilations[1], second=second)
        self.segment.offer("stem", "", self.stage1)
        for place, down, stage in (("2", self.down2, self.stage2), ("3", self.down3, self.stage3)):
            self.segment.offer("td", place, down)
            if isinstance(stage, ReversibleSequence):
                self.segment.offer("unit", place, stage)
                stage.reversible = reversible
        self.segment.check_places()
        self.logits = nn.Conv2d(widths[2], num_classes, 1)

        initialize(self)
        nn.init.xavier_normal_(self.logits.weight)

    def forward(
        self, x: Tensor, *, auxiliary: bool | None = None, full_size: bool = True
    ) -> dict[str, Tensor]:
        check_images(x, self.minimum_size)  # `auxiliary` is every model's keyword; there are no such outputs
        image_size = x.shape[-2:]
        x = self.segment("stem", self.stage1, x)  # (B, 8, H/2, W/2)
        x = self.segment("td", self.down2, x, place="2")
        x = self._run(self.stage2, x, "2")  # (B, 32, H/4, W/4)
        x = self.segment("td", self.down3, x, place="3")
        x = self._run(self.stage3, x, "3")  # (B, 128, H/8, W/8)
        out = self.logits(x)  # (B, num_classes, H/8, W/8)
        return {"out": upsample(out, image_size) if full_size else out}

    def _run(self, stage: nn.Module, x: Tensor, place: str) -> Tensor:
        if not self.segment.has("unit", place) or isinstance(stage, nn.Identity):
            return stage(x)
        # the streams have the parameters' type, not autocast's, as they have in the reversible stack
        x1, x2 = x.to(self.logits.weight.dtype).chunk(2, dim=1)
        for unit in stage.units:
            x1, x2 = self.segment("unit", unit, x1, x2, place=place)
        return torch.cat([x1, x2], dim=1)
