"""SwiftNetRN-18 (single scale), a peer of RegSeg in its Table 9: 11,797,071 parameters at 19 classes.

"In Defense of Pre-trained ImageNet Architectures for Real-time Semantic Segmentation of Road-driving Images",
Oršić, Krešo, Bevandić, Šegvić, CVPR 2019; Sections 3.1 and 3.2. Pyramid pooling and upsampling are those of
`segkit.models.ladder_densenet`, by the same group, in a narrower form: 128 maps everywhere. From the authors'
PyTorch release (swiftnet), where the paper is silent: three pooled levels of 42 maps, of 8, 4 and 2 rows; a
bias in the logits only; the norms' momentum; initialization. As in the paper, lateral connections begin at
the residual sums, before their ReLU; the release's ReLU writes over the sum that it hands on.
Shapes: B images of H x W pixels, sizes between rounded up; i, o = maps at a unit's input and output.
"""

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from segkit.memory.recompute import Segments
from segkit.models.blocks import (
    BNReLUConv,
    ConvNormReLU,
    Stage,
    check_classes,
    check_images,
    imagenet,
    norms_train,
    upsample,
)
from segkit.models.ladder_densenet import SpatialPyramid, TransitionUp

CHANNELS = (64, 128, 256, 512)  # of ResNet-18's stages, at H/4, H/8, H/16 and H/32
WIDTH = 128  # maps of everything after the encoder
GRIDS = (8, 4, 2)  # rows of the pooling grids, whose cells are square
MOMENTUM, PYRAMID_MOMENTUM = 0.1, 0.005  # of the batch norms; those of pyramid pooling change more slowly


class ResidualUnit(nn.Module):
    """ResNet's basic block, moved by half a step: it begins with the ReLU that ends the one before.

    So what comes out, and goes to the next unit or sideways, is the sum itself. Its parameters have
    torchvision's names.
    """

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample = nn.Identity()
        if stride > 1:
            self.downsample = ConvNormReLU(channels_in, channels_out, stride=stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, i, h, w) -> (B, o, h/stride, w/stride)."""
        x = F.relu(x)  # not in place: the sum is wanted by the lateral connection
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.bn2(self.conv2(out)) + self.downsample(x)


class Encoder(nn.Module):
    """ResNet-18 without its classifier and its last ReLU, 11,176,512 parameters with torchvision's names.

    ``forward(x)`` takes (B, 3, H, W) and returns the sums that end its four stages, at H/4, H/8, H/16, H/32.
    """

    def __init__(self, *, segment: Segments) -> None:
        super().__init__()
        self.segment = segment
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        segment.offer("stem", "", self)
        channels = 64
        for place, maps in enumerate(CHANNELS, start=1):
            units = ResidualUnit(channels, maps, stride=1 if place == 1 else 2), ResidualUnit(maps, maps)
            self.add_module(f"layer{place}", Stage(*units, segment=segment, place=str(place)))
            channels = maps

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.segment("stem", self.stem, x)  # (B, 64, H/4, W/4)
        sums = []
        for place, layer in enumerate((self.layer1, self.layer2, self.layer3, self.layer4), start=1):
            x = self.segment("block", layer, x, place=str(place))
            sums.append(x)  # (B, 64, H/4, W/4), then twice the maps at half the resolution
        return sums

    def stem(self, x: Tensor) -> Tensor:
        # the next unit's ReLU is the stem's too: it gives the same before a maximum as after it
        return F.max_pool2d(self.bn1(self.conv1(x)), 3, stride=2, padding=1)


class SwiftNet(nn.Module):
    """ResNet-18, spatial pyramid pooling at H/32 and three upsampling modules with lateral connections.

    ``forward(x)`` takes normalized images (B, 3, H, W) of at least 32 pixels a side, odd sizes too, and
    returns ``{"out": logits (B, num_classes, H, W)}``, with ``full_size=False`` at H/4; there are no
    auxiliary outputs. Smaller images would leave less than a pixel at H/32.

    Args:
        num_classes: maps of the logits.
        recompute: segments to checkpoint: ``unit``, a residual unit; ``block``, a stage of the encoder;
            ``stem``; ``spp``, pyramid pooling; ``tu``, an upsampling module, or its parts ``skip``, the
            lateral 1x1 convolution, and ``blend``, the rest; and the logits. Places are the stages 1 to 4,
            the upsampling modules 1 to 3, and ``logits``; see `segkit.memory.recompute`.

    Raises:
        ValueError: if ``num_classes`` is below 1, or ``recompute`` names other segments.
    """

    def __init__(self, *, num_classes: int, recompute: str | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes = check_classes(num_classes)
        self.output_stride = 4
        self.minimum_size = 32
        self.pretrained = False
        labels = ("unit", "block", "stem", "spp", "tu", "skip", "blend")
        self.segment = segment = Segments(recompute, available=labels)

        self.encoder = Encoder(segment=segment)
        self.spp = SpatialPyramid(
            CHANNELS[-1], WIDTH, segment=segment, grids=GRIDS, projected=WIDTH, level=WIDTH // len(GRIDS)
        )
        segment.offer("spp", "", self.spp)
        self.up = nn.ModuleList()  # from coarse to fine
        for place, maps in enumerate(CHANNELS[-2::-1], start=1):
            self.up.append(TransitionUp(WIDTH, maps, WIDTH, segment=segment, place=str(place)))
            for label in ("tu", "skip", "blend"):
                segment.offer(label, str(place), self.up[-1])
        self.logits = BNReLUConv(WIDTH, num_classes, 1, bias=True)
        segment.offer("tu", "logits", self.logits)
        segment.check_places()

        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = MOMENTUM
            elif isinstance(module, nn.Conv2d) and module is not self.logits.conv:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self.spp.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = PYRAMID_MOMENTUM

    def forward(
        self, x: Tensor, *, auxiliary: bool | None = None, full_size: bool = True
    ) -> dict[str, Tensor]:
        check_images(x, self.minimum_size)  # `auxiliary` is every model's keyword; there are no such outputs
        image_size, segment = x.shape[-2:], self.segment
        if x.shape[0] == 1 and max(image_size) <= 32 and norms_train(self.encoder.layer4, self.spp):
            raise ValueError(
                f"Cannot train SwiftNet on a single image of {image_size[0]}x{image_size[1]} pixels: one "
                f"value per channel is left of it, from which batch norm can learn nothing. Use at least two "
                f"images, more than 32 pixels in height or width, or model.eval()."
            )
        *sums, x = self.encoder(x)
        x, _ = segment("spp", self.spp, x)  # (B, 128, H/32, W/32)
        for place, up in enumerate(self.up, start=1):
            x = segment("tu", up, x, sums[-place], place=str(place))  # (B, 128, H/16, W/16), H/8, H/4
        out = segment("tu", self.logits, x, place="logits")  # (B, num_classes, H/4, W/4)
        return {"out": upsample(out, image_size) if full_size else out}

    def load_imagenet(self) -> None:
        """Load torchvision's ImageNet weights of ResNet-18 (IMAGENET1K_V1) into the encoder.

        Raises:
            ValueError: if the model is on the meta device.
            RuntimeError: if they cannot be had; says how to go on.
        """
        theirs = imagenet(
            self,
            "resnet18",
            lambda weights: torchvision.models.resnet18(weights=weights, progress=False),
        ).state_dict()
        self.encoder.load_state_dict({name: theirs[name] for name in self.encoder.state_dict()})
        self.pretrained = True

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """The encoder's parameters if they came from ImageNet weights, to be trained at a lower rate."""
        return list(self.encoder.parameters()) if self.pretrained else []
