"""DenseNet-121, -161, -169 and -201 feature extractors, with the paper's split blocks and with dilation.

"Efficient Ladder-style DenseNets for Semantic Segmentation of Large Images" (LDN), Sections 3, 4.1 and 6.2.
Shapes: B images of H x W pixels; k = growth rate; F_in, F_out = maps at a block's input and output.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.memory.recompute import Segments
from segkit.models.blocks import BatchNorm, as_integer, norm_relu, norm_relu_of_cat

# depth: growth rate k, maps of the stem, units per dense block
CONFIGURATIONS: dict[int, tuple[int, int, tuple[int, int, int, int]]] = {
    121: (32, 64, (6, 12, 24, 16)),
    161: (48, 96, (6, 12, 36, 24)),
    169: (32, 64, (6, 12, 32, 32)),
    201: (32, 64, (6, 12, 48, 32)),
}


class DenseUnit(nn.Module):
    """k new maps from all maps so far: concatenation, BN-ReLU-1x1 to 4k maps, BN-ReLU-3x3 (Section 3.1)."""

    def __init__(
        self, width: int, k: int, *, bottleneck: bool, dilation: int, segment: Segments, place: str
    ) -> None:
        super().__init__()
        self.segment, self.place = segment, place
        self.bottleneck = bottleneck
        if bottleneck:
            self.norm1 = BatchNorm(width)
            self.conv1 = nn.Conv2d(width, 4 * k, 1, bias=False)
            width = 4 * k
        self.norm2 = BatchNorm(width)
        self.conv2 = nn.Conv2d(width, k, 3, padding=dilation, dilation=dilation, bias=False)

    def forward(self, *features: Tensor) -> Tensor:
        label = "nested" if self.segment.has("nested") else "cat1x1"
        x = self.segment(label, self.cat1x1, *features, place=self.place)  # (B, 4k, h, w)
        return self.segment("3x3", self.conv3x3, x, place=self.place)  # (B, k, h, w)

    def cat1x1(self, *features: Tensor) -> Tensor:
        """F_in + i*k maps, in parts -> (B, 4k, h, w)."""
        if self.bottleneck and self.segment.has("nested"):
            return self.conv1(norm_relu_of_cat(self.norm1, features, self.segment))
        x = torch.cat(features, dim=1)  # (B, F_in + i*k, h, w)
        return self.conv1(norm_relu(self.norm1, x)) if self.bottleneck else x

    def conv3x3(self, x: Tensor) -> Tensor:
        return self.conv2(norm_relu(self.norm2, x))


class DenseBlock(nn.ModuleDict):
    """Units that each see the block's input and the outputs of all units before them."""

    def __init__(self, units: dict[str, DenseUnit], segment: Segments, place: str) -> None:
        super().__init__(units)
        self.segment, self.place = segment, place

    def forward(self, start: int, stop: int | None, *features: Tensor) -> tuple[Tensor, ...]:
        """(B, F_in, h, w), in parts -> (B, F_in + (stop - start) * k, h, w), through the units start..stop-1.

        In parts too if ``cat`` was chosen, otherwise the concatenation as the only part.
        """
        for unit in list(self.values())[start:stop]:
            features = (*features, self.segment("unit", unit, *features, place=self.place))
        return features if self.segment.has("cat") else (torch.cat(features, dim=1),)


class Transition(nn.Module):
    """Transition-down layer (TD): BN-ReLU-1x1 to half of the maps, 2x2 average pooling unless dilated.

    Args:
        width: maps in.
        pool: whether it pools.
        pool_first: pool before the convolution. They commute: a quarter of the work, the same result up to
            rounding. The paper's counts are with the convolution first.
        segment: how its parts run.
    """

    def __init__(self, width: int, *, pool: bool, pool_first: bool, segment: Segments) -> None:
        super().__init__()
        self.norm = BatchNorm(width)
        self.conv = nn.Conv2d(width, width // 2, 1, bias=False)
        self.pool, self.pool_first = pool, pool_first
        self.segment = segment

    def forward(self, *features: Tensor) -> Tensor:
        """Maps (B, F_out, h, w), in parts -> (B, F_out/2, h/2, w/2)."""
        x = self.segment("nested", self.convolve, *features)
        return F.avg_pool2d(x, 2) if self.pool and not self.pool_first else x

    def convolve(self, *features: Tensor) -> Tensor:
        x = norm_relu_of_cat(self.norm, features, self.segment)
        return self.conv(F.avg_pool2d(x, 2) if self.pool and self.pool_first else x)


class DenseNet(nn.Module):
    """DenseNet's convolutional part; parameters are named as under ``features.`` in torchvision's DenseNet.

    ``forward(x)`` takes (B, 3, H, W) and returns the last maps of each resolution, from fine to coarse: with
    split=(3,) the outputs of DB1, DB2, DB3a, DB3b and DB4 at H/4, H/8, H/16, H/32, H/64. ``channels`` and
    ``strides`` describe them. Maps are taken before the transition's convolution. If ``recompute`` has
    ``cat``, those of a block come as the tuple of tensors whose concatenation they are.

    Args:
        depth: 121, 161, 169 or 201.
        units: of each dense block, 1 to 4 blocks; None for those of ``depth``. Pre-trained weights still fit
            where these are its first blocks, such as (6, 12) of DenseNet-121. No transition follows the last.
        growth: k; None for that of ``depth``. If given, the stem has 2k maps, as in every DenseNet.
        split: dense blocks (1 to 4) with a 2x2 average pooling after half of their units (Section 4.1).
            Pooling has no parameters, so pre-trained weights fit a split block as they are.
        dilations: of the 3x3 convolutions in each block, always four; where it grows, the transition before
            does not pool (Section 6.2: (1, 1, 2, 4) for a map at H/8).
        stem_pool: whether the stem ends in a max-pool; without it every map is twice as large.
        stem_map: whether the stem's map at H/2, before the max-pool, is returned too.
        pool_first: whether transition layers pool before their convolution, see `Transition`.
        paper_count: the backbone on which the paper's tables were counted, an inferred rule: units whose
            input is not wider than 4k maps have no 1x1 convolution (in a dilated network: units whose input
            is narrower than 4k). ImageNet weights do not fit it.
        recompute: segments to checkpoint, see `segkit.memory.recompute`.

    Raises:
        ValueError: if ``depth``, ``units``, ``growth``, ``split`` or ``dilations`` is none of those above.
    """

    def __init__(
        self,
        depth: int,
        *,
        units: tuple[int, ...] | None = None,
        growth: int | None = None,
        split: tuple[int, ...] = (),
        dilations: tuple[int, int, int, int] = (1, 1, 1, 1),
        stem_pool: bool = True,
        stem_map: bool = False,
        pool_first: bool = False,
        paper_count: bool = False,
        recompute: str | None = None,
    ) -> None:
        super().__init__()
        if depth not in CONFIGURATIONS:
            raise ValueError(f"No DenseNet-{depth}; there are {', '.join(map(str, CONFIGURATIONS))}.")
        k, width, all_units = CONFIGURATIONS[depth]
        units = _units(units) if units is not None else all_units
        fits = growth is None and units == all_units[: len(units)]  # torchvision's weights
        if growth is not None:
            k = as_integer(growth)
            if k is None or k < 1:
                raise ValueError(f"growth={growth!r}: an integer of at least 1 is needed, e.g. 32.")
            width = 2 * k
        if not set(split) <= {1, 2, 3, 4}:
            raise ValueError(
                f"split={split!r}: give the numbers (1 to 4) of the dense blocks to split, e.g. (3,)."
            )
        if split and max(split) > len(units):
            raise ValueError(f"split={split!r}: units={units} makes {len(units)} dense block(s) only.")
        if len(dilations) != 4 or min(dilations) < 1:
            raise ValueError(f"dilations={dilations!r}: give four factors of at least 1, e.g. (1, 1, 2, 4).")
        self.torchvision_name = f"densenet{depth}" if fits else None
        self.paper_count = paper_count
        self.segment = Segments(recompute)
        self.blocks = len(units)
        self.split, self.stem_pool, self.stem_map = tuple(split), stem_pool, stem_map
        self.channels: list[int] = []
        self.strides: list[int] = []
        no_bottleneck_to = 0 if not paper_count else 4 * k if max(dilations) == 1 else 4 * k - 1

        self.segment.offer("cat", "", self)
        self.segment.offer("stem", "", self)
        self.conv0 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.norm0 = BatchNorm(width)
        stride = 2
        if stem_pool:
            if stem_map:
                self._note_map(width, stride)
            stride *= 2
        for b in range(self.blocks):
            place = str(b + 1)
            block: dict[str, DenseUnit] = {}
            for i in range(units[b]):
                block[f"denselayer{i + 1}"] = DenseUnit(
                    width,
                    k,
                    bottleneck=width > no_bottleneck_to,
                    dilation=dilations[b],
                    segment=self.segment,
                    place=place,
                )
                width += k
                if b + 1 in split and i + 1 == units[b] // 2:
                    self._note_map(width, stride)
                    stride *= 2
            dense_block = DenseBlock(block, self.segment, place)
            self.add_module(f"denseblock{b + 1}", dense_block)
            for label in ("cat1x1", "3x3", "unit", "block"):
                self.segment.offer(label, place, dense_block)
            if b + 1 == self.blocks:
                break
            pool = dilations[b + 1] <= dilations[b]
            transition = Transition(width, pool=pool, pool_first=pool_first, segment=self.segment)
            self.add_module(f"transition{b + 1}", transition)
            self.segment.offer("td", place, transition)
            if pool:
                self._note_map(width, stride)
                stride *= 2
            width //= 2
        self._note_map(width, stride)

    def _note_map(self, channels: int, stride: int) -> None:
        self.channels.append(channels)
        self.strides.append(stride)

    def forward(self, x: Tensor) -> list[Tensor | tuple[Tensor, ...]]:
        maps = []
        x = self.segment("stem", self.stem, x)
        if self.stem_pool and self.stem_map:
            stem_map, x = x
            maps.append((stem_map,))  # (B, 64, H/2, W/2)
        x = (x,)  # from here on in parts
        for b in range(1, self.blocks + 1):
            block = getattr(self, f"denseblock{b}")
            half = len(block) // 2 if b in self.split else 0
            if half:
                x = self.segment("block", block, 0, half, *x, place=str(b))
                maps.append(x)  # DB3a: (B, 640, H/16, W/16)
                x = tuple(F.avg_pool2d(part, 2) for part in x)
            x = self.segment("block", block, half, None, *x, place=str(b))
            if b == self.blocks:
                break
            transition = getattr(self, f"transition{b}")
            if transition.pool:
                maps.append(x)  # DB1: (B, 256, H/4, W/4), DB2: (B, 512, H/8, W/8), DB3: (B, 1024, ...)
            x = (self.segment("td", transition, *x, place=str(b)),)
        maps.append(x)  # DB4: (B, 1024, H/32, W/32), half of that per split
        return [parts if len(parts) > 1 else parts[0] for parts in maps]

    def stem(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = norm_relu(self.norm0, self.conv0(x))  # (B, 64, H/2, W/2)
        if not self.stem_pool:
            return x
        pooled = F.max_pool2d(x, 3, stride=2, padding=1)  # (B, 64, H/4, W/4)
        return (x, pooled) if self.stem_map else pooled


def _units(units: tuple[int, ...]) -> tuple[int, ...]:
    """The units of each block, as Python's integers."""
    found = tuple(as_integer(n) for n in units) if isinstance(units, (tuple, list)) else ()
    if not 1 <= len(found) <= 4 or any(n is None or n < 1 for n in found):
        raise ValueError(
            f"units={units!r}: give the units of each of 1 to 4 dense blocks, integers of at least 1, e.g. "
            f"(6, 12, 24, 16)."
        )
    return found
