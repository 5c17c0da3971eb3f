"""FC-HarDNet-70, a peer of RegSeg in its Table 9: 4,119,257 parameters at 19 classes.

"HarDNet: A Low Memory Traffic Network", Chao, Kao, Ruan, Huang, Lin, ICCV 2019, Sections 3.1 and 3.2: a dense
block in which layer l reads only the layers l - 2^n where 2^n divides l, so that most maps are read once and
can soon be forgotten. The paper has the block and other networks of it; this one, of 70 convolutions, is from
its authors' PyTorch release (FCHarDNet): widths, rounding to even numbers, halving by 3x3 convolutions and
2x2 average pooling, Xavier initialization. The release aligns corners when it upsamples; here, as in the rest
of the kit, they are not aligned, which changes neither parameters nor work.
Shapes: B images of H x W pixels; sizes between are rounded up in the stem and down by the poolings.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segkit.memory.recompute import Segments
from segkit.models.blocks import ConvNormReLU, FromScratch, check_classes, check_images, norms_train, upsample

STEM = (16, 24, 32, 48)  # maps of the four 3x3 convolutions before the first block
# per block of the encoder: its layers, growth k, maps of the 1x1 convolution that follows. The decoder's
# blocks, from H/32 to H/4, have the layers and growths of those that they mirror.
BLOCKS = ((4, 10, 64), (4, 16, 96), (8, 18, 160), (8, 24, 224), (8, 32, 320))
MULTIPLIER = 1.7  # m


def links(layer: int) -> list[int]:
    """What layer ``layer`` (from 1) reads (Section 3.1): layer - 2^n for all 2^n that divide it.

    0 is the block's input. The nearest comes first, the order in which the release concatenates them.
    """
    powers = (2**n for n in range(layer.bit_length()))
    return [layer - power for power in powers if layer % power == 0]


def width(layer: int, growth: int, multiplier: float) -> int:
    """Maps of layer ``layer``: k m^n, 2^n the largest power that divides it, rounded to an even number.

    So layers that more others read are wider. Half-way between two even numbers it is the larger.
    """
    n = len(links(layer)) - 1
    return 2 * int((growth * multiplier**n + 1) / 2)


class CatConvNormReLU(ConvNormReLU):
    """`ConvNormReLU` on a concatenation: takes its parts, so that no one else has to keep the whole."""

    def forward(self, *features: Tensor) -> Tensor:
        return super().forward(_cat(features))


class HarmonicBlock(nn.Module):
    """A harmonic dense block (Section 3): 3x3 convolutions that are linked by powers of two.

    Args:
        channels: maps in.
        layers: its convolutions.
        growth: k, maps of the layers with an odd number.
        multiplier: m, by which a layer is wider for each further layer that it reads.
        segment: how its layers run; None: without recomputation.
        place: its number in the network.

    Attributes:
        channels: maps out, those of the layers with an odd number and of the last (Section 3.2). The input
            is no part of them.
    """

    def __init__(
        self,
        channels: int,
        layers: int,
        growth: int,
        *,
        multiplier: float = MULTIPLIER,
        segment: Segments | None = None,
        place: str = "",
    ) -> None:
        super().__init__()
        self.segment, self.place = segment or Segments(), place
        self.links = [links(layer) for layer in range(1, layers + 1)]
        self.kept = [layer for layer in range(1, layers + 1) if layer % 2 or layer == layers]
        widths = [channels, *(width(layer, growth, multiplier) for layer in range(1, layers + 1))]
        self.layers = nn.ModuleList(
            CatConvNormReLU(sum(widths[source] for source in sources), maps, 3)
            for sources, maps in zip(self.links, widths[1:], strict=True)
        )
        self.channels = sum(widths[layer] for layer in self.kept)
        for label in ("unit", "block"):
            self.segment.offer(label, place, self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, i, h, w) -> (B, channels, h, w)."""
        maps = [x]
        for layer, sources in zip(self.layers, self.links, strict=True):
            maps.append(self.segment("unit", layer, *(maps[source] for source in sources), place=self.place))
        return _cat([maps[layer] for layer in self.kept])


class TransitionUp(nn.Module):
    """Upsamples to a skip connection's size, concatenates both, halves their maps by a 1x1 convolution."""

    def __init__(self, channels: int, skip_channels: int) -> None:
        super().__init__()
        self.channels = (channels + skip_channels) // 2
        self.reduce = ConvNormReLU(channels + skip_channels, self.channels, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, i, h/2, w/2) and (B, s, h, w) -> (B, (i + s) / 2, h, w), any h and w."""
        return self.reduce(torch.cat([upsample(x, skip.shape[-2:]), skip], dim=1))


class FCHarDNet(FromScratch):
    """FC-HarDNet-70: harmonic blocks down to H/64 and, with skip connections, up again to H/4.

    ``forward(x)`` takes normalized images (B, 3, H, W) of at least 61 pixels a side, which leave one row of
    the coarsest map, and returns ``{"out": logits (B, num_classes, H, W)}``, with ``full_size=False`` at H/4;
    there are no auxiliary outputs.

    Args:
        num_classes: maps of the logits.
        recompute: segments to checkpoint: ``unit``, one convolution of a harmonic block with the
            concatenation before it; ``block``, a harmonic block; ``stem``; ``td``, the 1x1 convolution after
            a block of the encoder, and the pooling that follows; ``tu``, what is before a block of the
            decoder, and the logits. Places are the blocks 1 to 9, of which 1 to 5 are the encoder's, and
            ``logits``; see `segkit.memory.recompute`.

    Raises:
        ValueError: if ``num_classes`` is below 1, or ``recompute`` names other segments.
    """

    def __init__(self, *, num_classes: int, recompute: str | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes = check_classes(num_classes)
        self.output_stride = 4
        # the stem leaves a quarter of the pixels, rounded up; four poolings need 16 of them for one
        self.minimum_size = 61
        self.segment = segment = Segments(recompute, available=("unit", "block", "stem", "td", "tu"))

        self.stem = nn.Sequential(
            ConvNormReLU(3, STEM[0], 3, stride=2),
            ConvNormReLU(STEM[0], STEM[1], 3),
            ConvNormReLU(STEM[1], STEM[2], 3, stride=2),
            ConvNormReLU(STEM[2], STEM[3], 3),
        )
        segment.offer("stem", "", self.stem)
        channels, skips = STEM[3], []
        self.blocks, self.down = nn.ModuleList(), nn.ModuleList()
        for place, (layers, growth, maps) in enumerate(BLOCKS, start=1):
            self.blocks.append(HarmonicBlock(channels, layers, growth, segment=segment, place=str(place)))
            self.down.append(nn.Sequential(ConvNormReLU(self.blocks[-1].channels, maps, 1)))
            if place < len(BLOCKS):
                self.down[-1].append(nn.AvgPool2d(2))
            segment.offer("td", str(place), self.down[-1])
            skips.append(self.blocks[-1].channels)
            channels = maps

        self.up, self.up_blocks = nn.ModuleList(), nn.ModuleList()  # from coarse to fine
        for i in reversed(range(len(BLOCKS) - 1)):
            layers, growth, _ = BLOCKS[i]
            place = str(2 * len(BLOCKS) - 1 - i)
            self.up.append(TransitionUp(channels, skips[i]))
            segment.offer("tu", place, self.up[-1])
            self.up_blocks.append(
                HarmonicBlock(self.up[-1].channels, layers, growth, segment=segment, place=place)
            )
            channels = self.up_blocks[-1].channels
        self.logits = nn.Conv2d(channels, num_classes, 1)
        segment.offer("tu", "logits", self.logits)
        segment.check_places()

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)

    def forward(
        self, x: Tensor, *, auxiliary: bool | None = None, full_size: bool = True
    ) -> dict[str, Tensor]:
        self._check(x)  # `auxiliary` is every model's keyword; there are no such outputs
        image_size, segment, skips = x.shape[-2:], self.segment, []
        x = segment("stem", self.stem, x)  # (B, 48, H/4, W/4)
        for i, (block, down) in enumerate(zip(self.blocks, self.down, strict=True)):
            x = segment("block", block, x, place=str(i + 1))
            skips.append(x)  # (B, 48, H/4, W/4), (B, 78, H/8, W/8), 160 maps, 214, (B, 286, H/64, W/64)
            x = segment("td", down, x, place=str(i + 1))
        skips.pop()  # x: (B, 320, H/64, W/64), made of it without pooling
        for i, (up, block) in enumerate(zip(self.up, self.up_blocks, strict=True), start=len(BLOCKS) + 1):
            x = segment("tu", up, x, skips.pop(), place=str(i))  # 267 maps, 187, 119, 63
            x = segment("block", block, x, place=str(i))  # (B, 214, H/32, W/32), ..., (B, 48, H/4, W/4)
        out = segment("tu", self.logits, x, place="logits")  # (B, num_classes, H/4, W/4)
        return {"out": upsample(out, image_size) if full_size else out}

    def _check(self, x: Tensor) -> None:
        check_images(x, 1)
        height, width = x.shape[-2:]
        least = self.minimum_size
        if min(height, width) < least:
            raise ValueError(
                f"Images of {height}x{width} pixels are too small: this network halves its maps six times, "
                f"the last four times rounding down, and needs at least {least}x{least}."
            )
        # one row and column are left of up to 124 pixels, where four poolings of 31 leave 1
        alone = x.shape[0] == 1 and max(height, width) <= 124
        if alone and norms_train(self.blocks[-1], self.down[-1]):
            raise ValueError(
                f"Cannot train FC-HarDNet on a single image of {height}x{width} pixels: one value per "
                f"channel is left of it, from which batch norm can learn nothing. Use at least two images, "
                f"more than 124 pixels in height or width, or model.eval()."
            )

    def load_imagenet(self) -> None:
        """Raises ValueError: torchvision has no ImageNet weights for this encoder."""
        raise ValueError("torchvision has no ImageNet weights for FC-HarDNet; use weights='none'.")


def _cat(features: Sequence[Tensor]) -> Tensor:
    return torch.cat(features, dim=1) if len(features) > 1 else features[0]  # of one it would be a copy
