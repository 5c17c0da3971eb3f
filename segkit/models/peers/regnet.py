"""Dilated RegNetY-600MF, row 10 of RegSeg's Table 4: 5,688,995 parameters at 19 classes.

"Designing Network Design Spaces", Radosavovic et al., CVPR 2020, has the network: stem of 32 maps, depths 1,
3, 7, 4 and widths 48, 112, 256, 608 of Y blocks with groups of 16. RegSeg's row dilates it to output stride
16. From its author's code: the last stage keeps the resolution, its first block has dilation 1 and the other
three dilation 2, as the row's "8*(1,1)+3*(2,2)" says of all 11 blocks at H/16 (rows 1 to 9 do not count the
strided one). The receptive field of that is 479, and not the 607 that the table prints.
Shapes: B images of H x W pixels.
"""

from torch import Tensor, nn

from segkit.memory.recompute import Segments
from segkit.models.blocks import ConvNormReLU, Stage
from segkit.models.regseg import BackboneAndDecoder, DBlock


class YBlock(DBlock):
    """RegNet's Y block: a D block of one branch, whose strided shortcut is a 1x1 convolution alone.

    Args:
        channels_in: maps in, at least 4.
        channels_out: maps out, a multiple of 16.
        dilation: of the 3x3 convolution.
        stride: 1 or 2.
    """

    def __init__(self, channels_in: int, channels_out: int, *, dilation: int = 1, stride: int = 1) -> None:
        super().__init__(channels_in, channels_out, (dilation,), stride=stride)
        if stride == 2:
            self.shortcut = ConvNormReLU(channels_in, channels_out, stride=2, relu=False)


class DilatedRegNetYBackbone(nn.Module):
    """``forward(x)`` returns the last maps at H/4, H/8 and H/16.

    Args:
        segment: runs the segments ``stem``, ``unit`` and ``block``.

    Attributes:
        channels: of the three maps.
    """

    channels = (48, 112, 608)

    def __init__(self, *, segment: Segments | None = None) -> None:
        super().__init__()
        self.segment = segment = segment or Segments()
        self.stem = ConvNormReLU(3, 32, 3, stride=2)
        segment.offer("stem", "", self.stem)
        self.stage4 = Stage(YBlock(32, 48, stride=2), segment=segment, place="4")
        self.stage8 = Stage(
            YBlock(48, 112, stride=2), *(YBlock(112, 112) for _ in range(2)), segment=segment, place="8"
        )
        self.stage16 = Stage(  # RegNet's stages 3 and 4
            YBlock(112, 256, stride=2),
            *(YBlock(256, 256) for _ in range(6)),
            YBlock(256, 608),
            *(YBlock(608, 608, dilation=2) for _ in range(3)),
            segment=segment,
            place="16",
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        segment = self.segment
        x = segment("stem", self.stem, x)  # (B, 32, H/2, W/2)
        x4 = segment("block", self.stage4, x, place="4")  # (B, 48, H/4, W/4)
        x8 = segment("block", self.stage8, x4, place="8")  # (B, 112, H/8, W/8)
        x16 = segment("block", self.stage16, x8, place="16")  # (B, 608, H/16, W/16)
        return [x4, x8, x16]


class DilatedRegNetY(BackboneAndDecoder):
    """Dilated RegNetY-600MF with a decoder of RegSeg's Table 5. For ``forward`` see `BackboneAndDecoder`.

    Args:
        num_classes: maps of the logits.
        decoder: a key of `segkit.models.regseg.DECODERS`; Table 4's row has ``"sum3x3"``.
        recompute: segments to checkpoint: ``stem``; ``unit``, a Y block; ``block``, all blocks of a
            resolution. Places are the resolutions 4, 8 and 16; see `segkit.memory.recompute`.

    Raises:
        ValueError: if an argument is none of those above.
    """

    def __init__(self, *, num_classes: int, decoder: str = "sum3x3", recompute: str | None = None) -> None:
        segment = Segments(recompute, available=("stem", "unit", "block"))
        super().__init__(DilatedRegNetYBackbone(segment=segment), num_classes=num_classes, decoder=decoder)
