"""The decoders that RegSeg's is compared with in Table 5, on the same backbone.

"Rethink Dilated Convolution for Real-time Semantic Segmentation", Gao, Section 4.5. The first four follow
its text: a 1x1 convolution on the maps at H/16 and one on those at H/8, their sum or concatenation at H/8, a
convolution or a block, and a 1x1 convolution to the logits. The other three stand for LRASPP (MobileNetV3),
SFNet and BiSeNet, in the widths that the author's code gives them; they are not those networks' own heads.

Where paper and code differ: Table 5's "concat+1x1" ran with a sum. The text's [1x1, 128] convolution is in
SFNet's decoder a [1x1, 64], and LRASPP classifies both maps and adds the logits. From the author's code too:
which convolutions have a bias, which have no ReLU, nearest upsampling in BiSeNet's, aligned corners in
SFNet's last. In SFNet's FAM the grid runs from the first to the last pixel's center while the sampling counts
from border to border, so that even a flow of zero does not give bilinear upsampling.

Every decoder is made from the backbone's ``channels`` at H/4, H/8 and H/16, and ``forward(x4, x8, x16)``
returns logits (B, num_classes, H/8, W/8), with no use of x4. RegSeg's own decoder, and the names of all, are
in `segkit.models.regseg`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.models.blocks import ConvNormReLU, SqueezeExcite, norms_train, upsample


class Sum(nn.Module):
    """Table 5's "sum+...": 1x1 convolutions to 128 maps, added at H/8, one more convolution, the logits.

    Args:
        channels: of the maps at H/4, H/8 and H/16.
        num_classes: maps of the logits.
        kernel: side of the convolution after the sum.
    """

    output_stride = 8

    def __init__(self, channels: tuple[int, int, int], *, num_classes: int, kernel: int) -> None:
        super().__init__()
        self.head8 = ConvNormReLU(channels[1], 128)
        self.head16 = ConvNormReLU(channels[2], 128)
        self.conv = ConvNormReLU(128, 128, kernel)
        self.logits = nn.Conv2d(128, num_classes, 1)

    def forward(self, x4: Tensor, x8: Tensor, x16: Tensor) -> Tensor:
        x8, x16 = self.head8(x8), self.head16(x16)
        return self.logits(self.conv(x8 + upsample(x16, x8.shape[-2:])))


class Concat(nn.Module):
    """Table 5's "concat+...": 32 maps of H/8 and 128 of H/16 concatenated at H/8, ``join``, the logits.

    Args:
        channels: of the maps at H/4, H/8 and H/16.
        num_classes: maps of the logits.
        join: ``join(160, 128)`` makes what follows the concatenation: a convolution or a Y block.
    """

    output_stride = 8

    def __init__(
        self, channels: tuple[int, int, int], *, num_classes: int, join: Callable[[int, int], nn.Module]
    ) -> None:
        super().__init__()
        self.head8 = ConvNormReLU(channels[1], 32)
        self.head16 = ConvNormReLU(channels[2], 128)
        self.conv = join(32 + 128, 128)
        self.logits = nn.Conv2d(128, num_classes, 1)

    def forward(self, x4: Tensor, x8: Tensor, x16: Tensor) -> Tensor:
        x8, x16 = self.head8(x8), self.head16(x16)
        x = torch.cat([x8, upsample(x16, x8.shape[-2:])], dim=1)  # (B, 160, H/8, W/8)
        return self.logits(self.conv(x))


class LRASPP(nn.Module):
    """Table 5's "LRASPP": 128 maps of H/16 times a gate from its means; logits of those and of H/8, added."""

    output_stride = 8

    def __init__(self, channels: tuple[int, int, int], *, num_classes: int) -> None:
        super().__init__()
        self.head16 = ConvNormReLU(channels[2], 128)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels[2], 128, 1, bias=False), nn.Sigmoid()
        )
        self.logits8 = nn.Conv2d(channels[1], num_classes, 1)
        self.logits16 = nn.Conv2d(128, num_classes, 1)

    def forward(self, x4: Tensor, x8: Tensor, x16: Tensor) -> Tensor:
        x = self.head16(x16) * self.gate(x16)  # (B, 128, H/16, W/16)
        return self.logits16(upsample(x, x8.shape[-2:])) + self.logits8(x8)


class FlowAlignment(nn.Module):
    """SFNet's flow alignment module (FAM): the coarse maps, sampled where a predicted flow says.

    Args:
        channels: of both inputs, and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce_fine = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.reduce_coarse = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.flow = nn.Conv2d(channels, 2, 3, padding=1, bias=False)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """(B, C, h, w), (B, C, h/2, w/2) -> (B, C, h, w)."""
        h, w = fine.shape[-2:]
        reduced = upsample(self.reduce_coarse(coarse), (h, w))
        flow = self.flow(torch.cat([reduced, self.reduce_fine(fine)], dim=1))  # (B, 2, h, w): right, down
        # half precision cannot tell the columns of a wide map apart
        flow = flow.to(torch.promote_types(flow.dtype, torch.float32))
        rows, columns = (torch.linspace(-1, 1, n, dtype=flow.dtype, device=flow.device) for n in (h, w))
        grid = torch.stack([columns.expand(h, w), rows[:, None].expand(h, w)], dim=-1)  # (h, w, 2)
        grid = grid + flow.permute(0, 2, 3, 1) / flow.new_tensor([w, h])
        return F.grid_sample(coarse.to(grid.dtype), grid, align_corners=False).to(coarse.dtype)


class SFNetDecoder(nn.Module):
    """Table 5's "SFNetDecoder", 64 maps wide: pyramid pooling at H/16, brought to H/8 by a FAM.

    A single image cannot be trained on; see `_refuse_one`.
    """

    output_stride = 8

    def __init__(self, channels: tuple[int, int, int], *, num_classes: int) -> None:
        super().__init__()
        self.levels = nn.ModuleDict(
            {
                str(n): nn.Sequential(nn.AdaptiveAvgPool2d(n), ConvNormReLU(channels[2], 64, relu=False))
                for n in (1, 2, 3, 6)
            }
        )
        self.head16 = ConvNormReLU(channels[2] + 4 * 64, 64)
        self.head8 = ConvNormReLU(channels[1], 64)
        self.align = FlowAlignment(64)
        self.conv8 = ConvNormReLU(64, 64, 3)
        self.conv = ConvNormReLU(2 * 64, 64, 3)
        self.logits = nn.Conv2d(64, num_classes, 1)

    def forward(self, x4: Tensor, x8: Tensor, x16: Tensor) -> Tensor:
        _refuse_one(self, x16, {"levels['1']": self.levels["1"]})
        levels = [upsample(level(x16), x16.shape[-2:]) for level in self.levels.values()]
        x16 = self.head16(torch.cat([x16, *levels], dim=1))  # (B, 64, H/16, W/16)
        x8 = self.head8(x8)
        x8 = self.conv8(x8 + self.align(x8, x16))  # (B, 64, H/8, W/8)
        x16 = F.interpolate(x16, size=x8.shape[-2:], mode="bilinear", align_corners=True)
        return self.logits(self.conv(torch.cat([x8, x16], dim=1)))


class BiSeNetDecoder(nn.Module):
    """Table 5's "BiSeNetDecoder": attention refinement (ARM) at H/16, feature fusion (FFM) at H/8.

    A single image cannot be trained on; see `_refuse_one`.
    """

    output_stride = 8

    def __init__(self, channels: tuple[int, int, int], *, num_classes: int) -> None:
        super().__init__()
        self.context = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNormReLU(channels[2], 128))
        self.refine = ConvNormReLU(channels[2], 128, 3)
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), ConvNormReLU(128, 128, relu=False), nn.Sigmoid()
        )
        self.head16 = ConvNormReLU(128, 128, 3)
        self.fuse = ConvNormReLU(channels[1] + 128, 128)
        self.squeeze_excite = SqueezeExcite(128, 32)
        self.conv = ConvNormReLU(128, 128, 3)
        self.logits = nn.Conv2d(128, num_classes, 1)

    def forward(self, x4: Tensor, x8: Tensor, x16: Tensor) -> Tensor:
        _refuse_one(self, x16, {"context": self.context, "attention": self.attention})
        context = F.interpolate(self.context(x16), size=x16.shape[-2:])  # nearest: the same everywhere
        x16 = self.refine(x16)  # (B, 128, H/16, W/16)
        x16 = x16 * self.attention(x16) + context
        x16 = self.head16(F.interpolate(x16, size=x8.shape[-2:]))  # (B, 128, H/8, W/8)
        x = self.fuse(torch.cat([x8, x16], dim=1))
        return self.logits(self.conv(x + self.squeeze_excite(x)))


def _refuse_one(decoder: nn.Module, x: Tensor, pooled: dict[str, nn.Module]) -> None:
    """Refuse to train a batch norm behind global pooling on one image, whose single value has no variance.

    Norms that are in eval mode use their running statistics and may have it.

    Args:
        decoder: what to name.
        x: any of its inputs.
        pooled: path in the decoder -> part with such a norm.
    """
    if x.shape[0] == 1 and norms_train(*pooled.values()):
        cure = ", ".join(f"model.decoder.{path}.eval()" for path in pooled)
        raise ValueError(
            f"Cannot train {type(decoder).__name__} on a single image: its global pooling leaves one value "
            f"per channel, from which batch norm can learn nothing. Use at least two images, or "
            f"model.eval(). To measure a step all the same, put that part in eval mode: {cure}."
        )
