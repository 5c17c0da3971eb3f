"""DenseASPP as its authors released it: densely connected atrous layers on a dilated DenseNet.

"DenseASPP for Semantic Segmentation in Street Scenes", Yang, Yu, Zhang, Li, Yang, CVPR 2018; the release has
8,280,851 parameters with DenseNet-121 at 19 classes, and 35,395,427, 18,420,675 and 28,639,987 with
DenseNet-161, -169 and -201. Written from its description; `segkit.models.denseaspp_student` is a report's
reproduction of it, in which several of these choices are others.

The paper's: a DenseNet without its last two poolings, whose last two blocks are dilated by 2 and 4 instead;
atrous layers of dilations 3, 6, 12, 18 and 24, each a 1x1 and a 3x3 convolution on the concatenation of the
input and all earlier outputs; a 1x1 convolution to the logits; bilinear upsampling by 8.

From the release, where it says more or something else: a fourth transition that halves the maps (without
pooling), and DenseNet's last norm after it; the widths of `WIDTHS` instead of the paper's rule (c0/2 and
c0/8 for c0 maps), which none of the four follows; biases in all of the head's convolutions; norms of momentum
3e-4 there, none at the input of the first layer; dropout of whole maps, 0.1, after every layer and before the
classifier; concatenation in the order (new, old): layer i of n puts its maps in front, so the head's output
is the last layer's maps, ..., the first layer's, the input.

Not as released: there the first layer, which has no norm, begins with a ReLU that works in place, on the very
features that all other layers and the classifier concatenate afterwards. They get the rectified features
then, and the text's dense connection to the backbone's output is one to its positive part. Here that ReLU
leaves the shared features alone. Parameters and work are the same; weights trained with the released code
would need a ReLU after ``norm5``. The backbone's norms keep this kit's momentum, and convolutions start as
they do in the kit's DenseNets (Kaiming-normal, biases zero): chosen.

Shapes: B images of H x W pixels; c0 = maps of the shared features; d0, d1 = maps that an atrous layer's 1x1
and 3x3 convolutions put out. The features have (H + 3) // 8 rows, H/8 where 8 divides H, and columns alike.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.memory.recompute import Segments
from segkit.models.blocks import (
    BatchNorm,
    as_integer,
    check_classes,
    check_images,
    initialize,
    load_features,
    norm_relu,
    norms_train,
    upsample,
)
from segkit.models.densenet import CONFIGURATIONS, DenseNet, Transition

DILATIONS = (3, 6, 12, 18, 24)  # Section 4.1: DenseASPP(3, 6, 12, 18, 24)
AT_STRIDE_8 = (1, 1, 2, 4)  # dilations of DenseNet's blocks in place of its last two poolings
BACKBONE_LABELS = ("cat1x1", "3x3", "unit", "block", "stem", "td", "cat", "nested")

# depth: d0 and d1
WIDTHS: dict[int, tuple[int, int]] = {
    121: (128, 64),  # c0 = 512: c0/4, c0/8
    161: (512, 128),  # 1104
    169: (336, 168),  # 832
    201: (480, 240),  # 960: c0/2, c0/4
}


class ReleasedAtrousLayer(nn.Module):
    """Norm (unless it is the first), ReLU, 1x1, norm, ReLU, dilated 3x3, dropout of whole maps.

    Args:
        channels: maps in.
        squeezed: d0, maps between the two convolutions.
        growth: d1, maps out.
        dilation: of the 3x3 convolution.
        norm: whether it begins with one.
        dropout: share of maps that are dropped.
    """

    def __init__(
        self, channels: int, *, squeezed: int, growth: int, dilation: int, norm: bool, dropout: float
    ) -> None:
        super().__init__()
        self.norm1 = _norm(channels) if norm else None
        self.conv1 = nn.Conv2d(channels, squeezed, 1)
        self.norm2 = _norm(squeezed)
        self.conv2 = nn.Conv2d(squeezed, growth, 3, padding=dilation, dilation=dilation)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, *features: Tensor) -> Tensor:
        """(B, channels, h, w), in parts -> (B, d1, h, w)."""
        x = torch.cat(features, dim=1) if len(features) > 1 else features[0]
        # without a norm x is the shared feature itself: in place its ReLU would change what the others see
        x = F.relu(x) if self.norm1 is None else norm_relu(self.norm1, x)
        x = self.conv1(x)  # (B, d0, h, w)
        return self.dropout(self.conv2(norm_relu(self.norm2, x)))


class ReleasedHead(nn.Module):
    """The atrous layers. ``forward(x)`` takes (B, c0, h, w), returns (B, c0 + n d1, h, w) of n layers.

    ``parts(x)`` returns the same as the list of its parts: the last layer's maps first, the input last.

    Args:
        channels: c0.
        dilations: of the layers, increasing.
        squeezed: d0.
        growth: d1.
        dropout: share of maps that each layer drops.
        segment: runs each layer as the segment ``spp`` in the place of its number; None: no recomputation.
    """

    def __init__(
        self,
        channels: int,
        *,
        dilations: tuple[int, ...],
        squeezed: int,
        growth: int,
        dropout: float,
        segment: Segments | None = None,
    ) -> None:
        super().__init__()
        self.dilations = dilations = check_dilations(dilations)
        self.segment = segment = segment or Segments()
        self.layers = nn.ModuleList()
        for i, dilation in enumerate(dilations):
            self.layers.append(
                ReleasedAtrousLayer(
                    channels + i * growth,
                    squeezed=squeezed,
                    growth=growth,
                    dilation=dilation,
                    norm=i > 0,
                    dropout=dropout,
                )
            )
            segment.offer("spp", str(i + 1), self.layers[-1])
        self.channels_out = channels + len(dilations) * growth

    def parts(self, x: Tensor) -> list[Tensor]:
        parts = [x]
        for i, layer in enumerate(self.layers, start=1):
            parts.insert(0, self.segment("spp", layer, *parts, place=str(i)))  # (new, old)
        return parts

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.parts(x), dim=1)


class DenseASPP(nn.Module):
    """DenseNet dilated to H/8, the atrous layers, logits.

    ``forward(x)`` takes normalized images (B, 3, H, W) of at least 8 pixels a side, odd sizes too, and
    returns ``{"out": logits (B, num_classes, H, W)}``, with ``full_size=False`` at the features' own size;
    there are no auxiliary outputs. Where 8 does not divide a side, DenseNet's first layers round up and its
    poolings round down, and the logits are resized to the image.

    Args:
        depth: of the DenseNet: 121, 161, 169 or 201.
        num_classes: maps of the logits.
        dilations: of the atrous layers, increasing.
        dropout: share of maps dropped after each atrous layer, and before the classifier.
        recompute: segments to checkpoint: those of the DenseNet (``unit``, ``block``, ...; ``td:4`` is the
            fourth transition); ``spp``, an atrous layer, its place the number; ``tu``, concatenation and
            classifier. See `segkit.memory.recompute`.

    Attributes:
        backbone, transition4, norm5: they make the shared features.
        head: the atrous layers.

    Raises:
        ValueError: if an argument is none of those above.
    """

    def __init__(
        self,
        depth: int,
        /,
        *,
        num_classes: int,
        dilations: tuple[int, ...] = DILATIONS,
        dropout: float = 0.1,
        recompute: str | None = None,
    ) -> None:
        super().__init__()
        if depth not in CONFIGURATIONS:
            raise ValueError(
                f"No DenseASPP with DenseNet-{depth}; there are {', '.join(map(str, CONFIGURATIONS))}."
            )
        self.num_classes = num_classes = check_classes(num_classes)
        self.depth, self.output_stride, self.minimum_size = depth, 8, 8
        self.pretrained = False
        Segments(recompute, available=(*BACKBONE_LABELS, "spp", "tu"))  # refuses labels of ladders alone

        self.backbone = DenseNet(depth, dilations=AT_STRIDE_8, recompute=recompute)
        self.segment = segment = self.backbone.segment
        width = self.backbone.channels[-1]
        self.transition4 = Transition(width, pool=False, pool_first=False, segment=segment)
        segment.offer("td", "4", self.transition4)
        self.norm5 = BatchNorm(width // 2)
        squeezed, growth = WIDTHS[depth]
        self.head = ReleasedHead(
            width // 2,
            dilations=dilations,
            squeezed=squeezed,
            growth=growth,
            dropout=dropout,
            segment=segment,
        )
        self.classifier = nn.Sequential(
            nn.Dropout2d(dropout), nn.Conv2d(self.head.channels_out, num_classes, 1)
        )
        segment.offer("tu", "logits", self.classifier)
        segment.offer("nested", "", self)
        segment.check_places()
        initialize(self)

    def features(self, images: Tensor) -> Tensor:
        """The shared features: (B, 3, H, W) -> (B, c0, H/8, W/8)."""
        maps = self.backbone(images)[-1]
        maps = maps if isinstance(maps, tuple) else (maps,)  # in parts if "cat" was chosen
        return self.norm5(self.segment("td", self.transition4, *maps, place="4"))

    def forward(
        self, x: Tensor, *, auxiliary: bool | None = None, full_size: bool = True
    ) -> dict[str, Tensor]:
        check_images(x, self.minimum_size)  # `auxiliary` is every model's keyword; there are no such outputs
        check_cells(self, x, 12)  # (12 + 3) // 8 = 1
        parts = self.head.parts(self.features(x))
        out = self.segment("tu", self.classify, *parts, place="logits")  # (B, num_classes, H/8, W/8)
        return {"out": upsample(out, x.shape[-2:]) if full_size else out}

    def classify(self, *parts: Tensor) -> Tensor:
        return self.classifier(torch.cat(parts, dim=1))

    def load_imagenet(self) -> None:
        """Load torchvision's ImageNet weights (IMAGENET1K_V1) into the DenseNet; the rest stays as it is.

        `transition4` and `norm5` are no part of them: torchvision's last norm comes before any halving.

        Raises:
            ValueError: if the model is on the meta device.
            RuntimeError: if the weights cannot be had; says how to go on.
        """
        load_features(self, self.backbone, self.backbone.torchvision_name)
        self.pretrained = True

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """The DenseNet's parameters if they came from ImageNet weights, otherwise none."""
        return list(self.backbone.parameters()) if self.pretrained else []


def check_dilations(dilations: tuple[int, ...]) -> tuple[int, ...]:
    """Dilations of atrous layers, as Python's integers.

    Raises:
        ValueError: if they are not positive integers, each greater than the one before.
    """
    found = tuple(as_integer(d) for d in dilations) if isinstance(dilations, (tuple, list)) else ()
    if not found or any(d is None or d < 1 for d in found):
        raise ValueError(
            f"dilations={dilations!r}: give the dilation of each atrous layer, an integer of at least 1, "
            f"e.g. {DILATIONS}."
        )
    for below, above in pairwise(found):
        if above <= below:
            raise ValueError(
                f"dilations={found}: {above} after {below} does not increase. Layers with small dilations "
                f"come first (Section 4.1), each greater than the one before, e.g. {DILATIONS}."
            )
    return found


def check_cells(model: nn.Module, images: Tensor, largest: int) -> None:
    """Refuse to train batch norms on a single image whose coarsest map is a single cell.

    Args:
        model: whose norms they are.
        images: (B, 3, H, W).
        largest: side of the largest square image for which that is so, in pixels.

    Raises:
        ValueError: if it is one; says what to do.
    """
    height, width = images.shape[-2:]
    if images.shape[0] == 1 and max(height, width) <= largest and norms_train(model):
        raise ValueError(
            f"Cannot train on a single image of {height}x{width} pixels: up to {largest}x{largest}, the "
            f"coarsest map is one cell, one value per channel, from which batch norm can learn nothing. Use "
            f"a larger image, at least two of them, or model.eval()."
        )


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, momentum=3e-4)  # the release's; PyTorch's default is 0.1
