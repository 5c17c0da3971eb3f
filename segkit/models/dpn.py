"""DPN-68, a dual path network, under the ladder of `segkit.models.ladder_densenet` (LDN paper, Table 2).

"Dual Path Networks", Chen et al., https://arxiv.org/abs/1707.01629: each unit adds to a residual path of
constant width and appends to a densely connected one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.memory.recompute import Segments
from segkit.models.blocks import BatchNorm, BNReLUConv, norm_relu
from segkit.models.ladder_densenet import LADDER_LABELS, Ladder

# per block: units, width of the residual path, maps that a unit appends to the dense path, bottleneck width
BLOCKS = ((3, 64, 16, 128), (4, 128, 32, 256), (12, 256, 32, 512), (3, 512, 64, 1024))
GROUPS = 32  # of every 3x3 convolution


class DualPathUnit(nn.Module):
    """BN-ReLU-conv three times (1x1, grouped 3x3, 1x1); the result is split over the two paths.

    Args:
        width: maps in, of both paths together.
        residual: maps of the residual path.
        growth: maps appended to the dense path.
        bottleneck: maps of the 3x3 convolution.
        stride: of the 3x3 convolution and of the projection.
        first: whether this is a block's first unit, which projects its input onto new paths.
    """

    def __init__(
        self, width: int, residual: int, growth: int, bottleneck: int, *, stride: int, first: bool
    ) -> None:
        super().__init__()
        self.residual = residual
        self.project = BNReLUConv(width, residual + 2 * growth, 1, stride=stride) if first else None
        self.reduce = BNReLUConv(width, bottleneck, 1)
        self.conv3x3 = BNReLUConv(bottleneck, bottleneck, 3, stride=stride, groups=GROUPS)
        self.expand = BNReLUConv(bottleneck, residual + growth, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) -> (B, width', h/stride, w/stride), the maps of the residual path first."""
        paths = x if self.project is None else self.project(x)
        new = self.expand(self.conv3x3(self.reduce(x)))  # (B, residual + growth, h/stride, w/stride)
        total = paths[:, : self.residual] + new[:, : self.residual]
        return torch.cat([total, paths[:, self.residual :], new[:, self.residual :]], dim=1)


class DPN68(nn.Module):
    """DPN-68's convolutional part: outputs of its four blocks, at H/4, H/8, H/16 and H/32.

    Args:
        recompute: segments to checkpoint, of ``block`` and ``stem``; see `segkit.memory.recompute`.
    """

    torchvision_name = None  # torchvision has no dual path network, so no weights either

    def __init__(self, *, recompute: str | None = None) -> None:
        super().__init__()
        self.segment = Segments(recompute, available=("stem", "block", *LADDER_LABELS))
        self.segment.offer("stem", "", self)
        width = 10
        self.conv = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.norm = BatchNorm(width)
        self.blocks = nn.ModuleList()
        self.channels, self.strides = [], [4, 8, 16, 32]
        for b, (units, residual, growth, bottleneck) in enumerate(BLOCKS):
            block = []
            for i in range(units):
                stride = 2 if i == 0 and b > 0 else 1
                block.append(DualPathUnit(width, residual, growth, bottleneck, stride=stride, first=i == 0))
                width = (residual + 2 * growth if i == 0 else width) + growth
            self.blocks.append(nn.Sequential(*block))
            self.segment.offer("block", str(b + 1), self.blocks[-1])
            self.channels.append(width)  # 144, 320, 704, 832

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.segment("stem", self.stem, x)  # (B, 10, H/4, W/4)
        maps = []
        for place, block in enumerate(self.blocks, start=1):
            x = self.segment("block", block, x, place=str(place))
            maps.append(x)
        return maps

    def stem(self, x: Tensor) -> Tensor:
        x = norm_relu(self.norm, self.conv(x))  # (B, 10, H/2, W/2)
        return F.max_pool2d(x, 3, stride=2, padding=1)


def ladder_dpn68(
    *,
    num_classes: int,
    recompute: str | None = None,
    spp_grids: tuple[int, ...] = (8, 4, 2, 1),
    spp_width: int = 256,
) -> Ladder:
    """DPN-68 32 -> 4: the same SPP and upsampling modules as with DenseNet (Table 2).

    Args:
        num_classes: maps of the logits.
        recompute: segments to checkpoint, of those of the ladder, and ``stem`` and ``block``.
        spp_grids: see `segkit.models.ladder_densenet.Ladder`, as is the next.
        spp_width: maps of the context-aware features C; 256 gives the table's parameter count (inferred).
    """
    return Ladder(
        DPN68(recompute=recompute), num_classes=num_classes, spp_grids=spp_grids, spp_width=spp_width
    )
