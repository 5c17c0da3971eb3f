"""ResNet-18, -50, -101 under the ladder of `segkit.models.ladder_densenet` (LDN paper, Tables 2, 6, 13)."""

import torchvision
from torch import Tensor, nn

from segkit.memory.recompute import Segments
from segkit.models.blocks import BatchNorm
from segkit.models.ladder_densenet import LADDER_LABELS, Ladder


class ResNet(nn.Module):
    """torchvision's ResNet (post-activation, as pre-trained) without its classifier.

    ``forward(x)`` takes (B, 3, H, W) and returns the outputs of its four blocks, at H/4, H/8, H/16 and H/32.

    Args:
        depth: 18, 50 or 101.
        recompute: segments to checkpoint, of ``block`` and ``stem``; see `segkit.memory.recompute`.
    """

    def __init__(self, depth: int, *, recompute: str | None = None) -> None:
        super().__init__()
        self.torchvision_name = f"resnet{depth}"
        self.segment = Segments(recompute, available=("stem", "block", *LADDER_LABELS))
        self.segment.offer("stem", "", self)
        network = torchvision.models.get_model(self.torchvision_name, weights=None, norm_layer=BatchNorm)
        self.conv1, self.bn1 = network.conv1, network.bn1
        self.relu, self.maxpool = network.relu, network.maxpool
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        for place, layer in enumerate((self.layer1, self.layer2, self.layer3, self.layer4), start=1):
            self.segment.offer("block", str(place), layer)
        self.channels = [network.fc.in_features // divisor for divisor in (8, 4, 2, 1)]
        self.strides = [4, 8, 16, 32]

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.segment("stem", self.stem, x)  # (B, 64, H/4, W/4)
        maps = []
        for place, layer in enumerate((self.layer1, self.layer2, self.layer3, self.layer4), start=1):
            x = self.segment("block", layer, x, place=str(place))
            maps.append(x)  # (B, F_out, H/4, W/4), then twice the maps at half the resolution
        return maps

    def stem(self, x: Tensor) -> Tensor:
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))


def ladder_resnet(
    depth: int,
    /,
    *,
    num_classes: int,
    recompute: str | None = None,
    spp_grids: tuple[int, ...] = (8, 4, 2, 1),
    spp_width: int = 512,
    residual: bool = True,
) -> Ladder:
    """ResNet 32 -> 4: the same SPP and upsampling modules as with DenseNet (Table 2).

    Args:
        depth: 18, 50 or 101.
        num_classes: maps of the logits.
        recompute: segments to checkpoint, of those of the ladder, and ``stem`` and ``block``.
        spp_grids: see `segkit.models.ladder_densenet.Ladder`, as are the next two. Their defaults are those
            with which the tables' parameter counts come out (inferred).
        spp_width: maps of the context-aware features C.
        residual: whether transition-up blocks add their upsampled input to their output.
    """
    return Ladder(
        ResNet(depth, recompute=recompute),
        num_classes=num_classes,
        spp_grids=spp_grids,
        spp_width=spp_width,
        residual=residual,
    )
