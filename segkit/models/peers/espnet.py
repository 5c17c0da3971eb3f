"""ESPNet, a peer of VNet in its Tables 2 and 3: 363,462 parameters at 19 classes.

"ESPNet: Efficient Spatial Pyramid of Dilated Convolutions for Semantic Segmentation", Mehta, Rastegari,
Caspi, Shapiro and Hajishirzi, https://arxiv.org/abs/1803.06815. Where the text is open, the layout of the
authors' release decides; p and q are its names for the numbers of modules.
Shapes: B images of H x W pixels; i, o = maps at a module's input and output; C = classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.memory.recompute import Segments
from segkit.models.blocks import FromScratch, check_classes, check_images
from segkit.models.peers import check_divisible


class NormActivation(nn.Sequential):
    """Batch norm and a PReLU with one slope per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.BatchNorm2d(channels, eps=1e-3), nn.PReLU(channels))


class ESP(nn.Module):
    """Reduce, split into five dilated 3x3 convolutions, transform, merge: efficient spatial pyramid.

    Sums over ever larger dilations (hierarchical feature fusion) fill the holes that a single one leaves.

    Args:
        channels_in: i.
        channels_out: o, at least 5. Each branch has o/5 maps, the first one the remainder too.
        down: halve the resolution: the reduction is a 3x3 convolution of stride 2.
        residual: add the input to the output; needs i = o.
    """

    def __init__(self, channels_in: int, channels_out: int, *, down: bool = False, residual: bool = False):
        super().__init__()
        n = channels_out // 5
        if down:
            self.reduce = nn.Conv2d(channels_in, n, 3, stride=2, padding=1, bias=False)
        else:
            self.reduce = nn.Conv2d(channels_in, n, 1, bias=False)
        self.branches = nn.ModuleList(
            nn.Conv2d(n, channels_out - 4 * n if d == 1 else n, 3, padding=d, dilation=d, bias=False)
            for d in (1, 2, 4, 8, 16)
        )
        self.residual = residual
        self.activation = NormActivation(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, i, h, w) -> (B, o, h, w), or half of that height and width."""
        reduced = self.reduce(x)  # (B, n, h, w)
        first, total, *others = [branch(reduced) for branch in self.branches]
        merged = [first, total]
        for branch in others:
            total = total + branch
            merged.append(total)
        out = torch.cat(merged, dim=1)  # (B, o, h, w)
        return self.activation(x + out if self.residual else out)


class ESPNet(FromScratch):
    """ESP modules at H/4 and H/8, the image itself fed in anew at each resolution, and a light decoder.

    ``forward(x)`` takes normalized images (B, 3, H, W), H and W divisible by 8, and returns ``{"out": logits
    (B, num_classes, H, W)}``; there are no auxiliary outputs. The logits are made at this size:
    ``full_size=False`` changes nothing.

    Args:
        num_classes: C, at least 5, because the decoder has an ESP module of that many maps.
        p: ESP modules at H/4.
        q: ESP modules at H/8; the tables' 0.36 M parameters are p=2, q=8.
        recompute: segments to checkpoint: ``unit`` is an ESP module, its place the level, 2 or 3; see
            `segkit.memory.recompute`.

    Raises:
        ValueError: if an argument is none of those above.
    """

    def __init__(self, *, num_classes: int, p: int = 2, q: int = 8, recompute: str | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes = check_classes(
            num_classes, 5, because="ESPNet's decoder splits as many maps into five branches, so "
        )
        if p < 0 or q < 0:
            raise ValueError(f"p={p!r}, q={q!r}: give numbers of modules, at least 0, e.g. p=2, q=8.")
        self.output_stride = 1
        self.minimum_size = self.size_divisor = 8
        self.segment = Segments(recompute, available=("unit",))

        self.conv1 = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), NormActivation(16))
        self.norm1 = NormActivation(16 + 3)
        self.down2 = ESP(16 + 3, 64, down=True)
        self.level2 = nn.ModuleList(ESP(64, 64, residual=True) for _ in range(p))
        self.norm2 = NormActivation(64 + 64 + 3)
        self.down3 = ESP(64 + 64 + 3, 128, down=True)
        self.level3 = nn.ModuleList(ESP(128, 128, residual=True) for _ in range(q))
        self.norm3 = NormActivation(128 + 128)

        self.head3 = nn.Sequential(
            nn.Conv2d(256, num_classes, 1, bias=False), nn.BatchNorm2d(num_classes, eps=1e-3)
        )
        self.up3 = nn.ConvTranspose2d(num_classes, num_classes, 2, stride=2, bias=False)
        self.head2 = nn.Conv2d(131, num_classes, 1, bias=False)
        self.norm_up2 = NormActivation(2 * num_classes)
        self.combine2 = ESP(2 * num_classes, num_classes)
        self.up2 = nn.Sequential(
            nn.ConvTranspose2d(num_classes, num_classes, 2, stride=2, bias=False), NormActivation(num_classes)
        )
        self.combine1 = nn.Sequential(
            nn.Conv2d(num_classes + 19, num_classes, 3, padding=1, bias=False), NormActivation(num_classes)
        )
        self.logits = nn.ConvTranspose2d(num_classes, num_classes, 2, stride=2, bias=False)
        self.segment.offer("unit", "2", self.down2, self.level2)
        self.segment.offer("unit", "3", self.down3, self.level3)
        self.segment.offer("unit", "up", self.combine2)
        self.segment.check_places()

    def forward(
        self, x: Tensor, *, auxiliary: bool | None = None, full_size: bool = True
    ) -> dict[str, Tensor]:
        check_images(x, self.minimum_size)
        check_divisible(x, self.size_divisor)
        image2 = F.avg_pool2d(x, 3, stride=2, padding=1)  # (B, 3, H/2, W/2)
        image4 = F.avg_pool2d(image2, 3, stride=2, padding=1)  # (B, 3, H/4, W/4)

        level1 = self.norm1(torch.cat([self.conv1(x), image2], dim=1))  # (B, 19, H/2, W/2)
        first = self.segment("unit", self.down2, level1, place="2")  # (B, 64, H/4, W/4)
        x = first
        for unit in self.level2:
            x = self.segment("unit", unit, x, place="2")
        level2 = self.norm2(torch.cat([x, first, image4], dim=1))  # (B, 131, H/4, W/4)
        first = self.segment("unit", self.down3, level2, place="3")  # (B, 128, H/8, W/8)
        x = first
        for unit in self.level3:
            x = self.segment("unit", unit, x, place="3")
        x = self.norm3(torch.cat([first, x], dim=1))  # (B, 256, H/8, W/8)

        x = self.up3(self.head3(x))  # (B, C, H/4, W/4)
        x = self.norm_up2(torch.cat([self.head2(level2), x], dim=1))  # (B, 2C, H/4, W/4)
        x = self.up2(self.segment("unit", self.combine2, x, place="up"))  # (B, C, H/2, W/2)
        x = self.combine1(torch.cat([x, level1], dim=1))  # (B, C, H/2, W/2)
        return {"out": self.logits(x)}  # (B, C, H, W)
