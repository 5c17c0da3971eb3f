"""DenseNet-121, -161 and -169 feature extractors, with the paper's split blocks and with dilation.

"Efficient Ladder-style DenseNets for Semantic Segmentation of Large Images" (LDN), Sections 3, 4.1 and 6.2.
Shapes: B images of H x W pixels; k = growth rate; F_in, F_out = maps at a block's input and output.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.memory.recompute import Segments
from segkit.models.blocks import BatchNorm

# depth: growth rate k, maps of the stem, units per dense block
CONFIGURATIONS: dict[int, tuple[int, int, tuple[int, int, int, int]]] = {
    121: (32, 64, (6, 12, 24, 16)),
    161: (48, 96, (6, 12, 36, 24)),
    169: (32, 64, (6, 12, 32, 32)),
}


class DenseUnit(nn.Module):
    """k new maps from all maps so far: concatenation, BN-ReLU-1x1 to 4k maps, BN-ReLU-3x3 (Section 3.1)."""

    def __init__(self, width: int, k: int, *, bottleneck: bool, dilation: int, segment: Segments) -> None:
        super().__init__()
        self.segment = segment
        self.bottleneck = bottleneck
        if bottleneck:
            self.norm1 = BatchNorm(width)
            self.conv1 = nn.Conv2d(width, 4 * k, 1, bias=False)
            width = 4 * k
        self.norm2 = BatchNorm(width)
        self.conv2 = nn.Conv2d(width, k, 3, padding=dilation, dilation=dilation, bias=False)

    def forward(self, *features: Tensor) -> Tensor:
        x = self.segment("cat1x1", self.cat1x1, *features)  # (B, 4k, h, w)
        return self.segment("3x3", self.conv3x3, x)  # (B, k, h, w)

    def cat1x1(self, *features: Tensor) -> Tensor:
        x = torch.cat(features, dim=1)  # (B, F_in + i*k, h, w)
        return self.conv1(F.relu(self.norm1(x), inplace=True)) if self.bottleneck else x

    def conv3x3(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.norm2(x), inplace=True))


class DenseBlock(nn.ModuleDict):
    """Units that each see the block's input and the outputs of all units before them."""

    def __init__(self, units: dict[str, DenseUnit], segment: Segments) -> None:
        super().__init__(units)
        self.segment = segment

    def forward(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """(B, F_in, h, w) -> (B, F_in + (stop - start) * k, h, w), through the units start..stop-1 only."""
        features = [x]
        for unit in list(self.values())[start:stop]:
            features.append(self.segment("unit", unit, *features))
        return torch.cat(features, dim=1)


class Transition(nn.Module):
    """Transition-down layer (TD): BN-ReLU-1x1 to half of the maps, 2x2 average pooling unless dilated."""

    def __init__(self, width: int, *, pool: bool) -> None:
        super().__init__()
        self.norm = BatchNorm(width)
        self.conv = nn.Conv2d(width, width // 2, 1, bias=False)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.relu(self.norm(x), inplace=True))
        return F.avg_pool2d(x, 2) if self.pool else x


class DenseNet(nn.Module):
    """DenseNet's convolutional part; parameters are named as under ``features.`` in torchvision's DenseNet.

    ``forward(x)`` takes (B, 3, H, W) and returns the last map of each resolution, from fine to coarse: with
    split=(3,) the outputs of DB1, DB2, DB3a, DB3b and DB4 at H/4, H/8, H/16, H/32, H/64. ``channels`` and
    ``strides`` describe them. Maps are taken before the transition's convolution.

    Args:
        depth: 121, 161 or 169.
        split: dense blocks (1 to 4) with a 2x2 average pooling after half of their units (Section 4.1).
            Pooling has no parameters, so pre-trained weights fit a split block as they are.
        dilations: of the 3x3 convolutions in each block; where it grows, the transition before does not pool
            (Section 6.2: (1, 1, 2, 4) for a map at H/8).
        stem_pool: whether the stem ends in a max-pool; without it every map is twice as large.
        stem_map: whether the stem's map at H/2, before the max-pool, is returned too.
        paper_count: the backbone on which the paper's tables were counted, an inferred rule: units whose
            input is not wider than 4k maps have no 1x1 convolution (in a dilated network: units whose input
            is narrower than 4k). ImageNet weights do not fit it.
        recompute: segments to checkpoint, see `segkit.memory.recompute`.

    Raises:
        ValueError: if ``depth``, ``split`` or ``dilations`` is none of those above.
    """

    def __init__(
        self,
        depth: int,
        *,
        split: tuple[int, ...] = (),
        dilations: tuple[int, int, int, int] = (1, 1, 1, 1),
        stem_pool: bool = True,
        stem_map: bool = False,
        paper_count: bool = False,
        recompute: str | None = None,
    ) -> None:
        super().__init__()
        if depth not in CONFIGURATIONS:
            raise ValueError(f"No DenseNet-{depth}; there are {', '.join(map(str, CONFIGURATIONS))}.")
        if not set(split) <= {1, 2, 3, 4}:
            raise ValueError(
                f"split={split!r}: give the numbers (1 to 4) of the dense blocks to split, e.g. (3,)."
            )
        if len(dilations) != 4 or min(dilations) < 1:
            raise ValueError(f"dilations={dilations!r}: give four factors of at least 1, e.g. (1, 1, 2, 4).")
        k, width, units = CONFIGURATIONS[depth]
        self.torchvision_name = f"densenet{depth}"
        self.paper_count = paper_count
        self.segment = Segments(recompute)
        self.split, self.stem_pool, self.stem_map = tuple(split), stem_pool, stem_map
        self.channels: list[int] = []
        self.strides: list[int] = []
        no_bottleneck_to = 0 if not paper_count else 4 * k if max(dilations) == 1 else 4 * k - 1

        self.conv0 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.norm0 = BatchNorm(width)
        stride = 2
        if stem_pool:
            if stem_map:
                self._note_map(width, stride)
            stride *= 2
        for b in range(4):
            block: dict[str, DenseUnit] = {}
            for i in range(units[b]):
                block[f"denselayer{i + 1}"] = DenseUnit(
                    width, k, bottleneck=width > no_bottleneck_to, dilation=dilations[b], segment=self.segment
                )
                width += k
                if b + 1 in split and i + 1 == units[b] // 2:
                    self._note_map(width, stride)
                    stride *= 2
            self.add_module(f"denseblock{b + 1}", DenseBlock(block, self.segment))
            if b == 3:
                break
            pool = dilations[b + 1] <= dilations[b]
            self.add_module(f"transition{b + 1}", Transition(width, pool=pool))
            if pool:
                self._note_map(width, stride)
                stride *= 2
            width //= 2
        self._note_map(width, stride)

    def _note_map(self, channels: int, stride: int) -> None:
        self.channels.append(channels)
        self.strides.append(stride)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        x = self.segment("stem", self.stem, x)
        if self.stem_pool and self.stem_map:
            stem_map, x = x
            maps.append(stem_map)  # (B, 64, H/2, W/2)
        for b in range(1, 5):
            block = getattr(self, f"denseblock{b}")
            half = len(block) // 2 if b in self.split else 0
            if half:
                x = self.segment("block", block, x, 0, half)
                maps.append(x)  # DB3a: (B, 640, H/16, W/16)
                x = F.avg_pool2d(x, 2)
            x = self.segment("block", block, x, half)
            if b == 4:
                break
            transition = getattr(self, f"transition{b}")
            if transition.pool:
                maps.append(x)  # DB1: (B, 256, H/4, W/4), DB2: (B, 512, H/8, W/8), DB3: (B, 1024, ...)
            x = self.segment("td", transition, x)
        return [*maps, x]  # DB4: (B, 1024, H/32, W/32), half of that per split

    def stem(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.norm0(self.conv0(x)), inplace=True)  # (B, 64, H/2, W/2)
        if not self.stem_pool:
            return x
        pooled = F.max_pool2d(x, 3, stride=2, padding=1)  # (B, 64, H/4, W/4)
        return (x, pooled) if self.stem_map else pooled
