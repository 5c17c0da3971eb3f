"""SegNet, a peer of VNet in its Table 2: 29,453,971 parameters at 19 classes.

"SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation", Badrinarayanan, Kendall,
Cipolla, TPAMI 2017; Section 3 and Figures 2 and 3. The paper leaves the decoder's widths to "corresponds to";
they follow the authors' Caffe release (segnet_train.prototxt), where every decoder convolution undoes one of
the encoder's and the last one gives the logits, without norm or ReLU. Another code in circulation appends a
convolution of its own for the logits and counts 29,483,046.
Shapes: B images of H x W pixels.
"""

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from segkit.memory.recompute import Segments
from segkit.models.blocks import check_classes, check_images, imagenet, initialize

# VGG16's convolutions: maps out, stage by stage; a 2x2 max-pool ends each stage
ENCODER = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class Encoder(nn.Module):
    """Convolutions of one stage, then 2x2 max-pooling that remembers where the maxima were."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.convolve = nn.Sequential(*_conv_norm_relu(channels, widths))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, i, h, w) -> (B, o, h/2, w/2) and the maxima's places, of that shape too; rounded down."""
        return F.max_pool2d(self.convolve(x), 2, return_indices=True)


class Decoder(nn.Module):
    """Puts values where the encoder's maxima were and zeros elsewhere, then convolves (Section 3.1)."""

    def __init__(self, channels: int, widths: tuple[int, ...], *, logits: int | None = None) -> None:
        super().__init__()
        layers = _conv_norm_relu(channels, widths)
        if logits is not None:
            layers.append(nn.Conv2d(widths[-1], logits, 3, padding=1))
        self.convolve = nn.Sequential(*layers)

    def forward(self, x: Tensor, indices: Tensor, size: torch.Size) -> Tensor:
        """(B, i, h, w) -> (B, o, *size); an odd last row or column was not pooled and stays zero."""
        return self.convolve(F.max_unpool2d(x, indices, 2, output_size=size))


class SegNet(nn.Module):
    """VGG16's 13 convolutions with batch norm, and their mirror image, which upsamples by unpooling.

    ``forward(x)`` takes normalized images (B, 3, H, W) of at least 32 pixels a side, odd sizes too, and
    returns ``{"out": logits (B, num_classes, H, W)}``; there are no auxiliary outputs. The logits are made at
    this size: ``full_size=False`` changes nothing.

    Args:
        num_classes: maps of the logits.
        recompute: segments to checkpoint: ``block``, one stage of the encoder; ``tu``, one of the decoder.
            Their places are 1 to 5 in the forward pass; see `segkit.memory.recompute`.

    Raises:
        ValueError: if ``num_classes`` is below 1, or ``recompute`` names other segments.
    """

    def __init__(self, *, num_classes: int, recompute: str | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes = check_classes(num_classes)
        self.output_stride = 1
        self.minimum_size = 32
        self.pretrained = False
        self.segment = Segments(recompute, available=("block", "tu"))

        inputs = [3, *(widths[-1] for widths in ENCODER)]  # maps into each stage
        self.encoder = nn.ModuleList(map(Encoder, inputs[:-1], ENCODER))
        self.decoder = nn.ModuleList()  # from coarse to fine
        for i in reversed(range(len(ENCODER))):
            # as many convolutions as in the encoder's stage; the last goes back to the maps that came into it
            widths = (*ENCODER[i][1:], inputs[i]) if i else ENCODER[i][1:]
            self.decoder.append(Decoder(ENCODER[i][-1], widths, logits=None if i else num_classes))
        for label, stages in (("block", self.encoder), ("tu", self.decoder)):
            for place, stage in enumerate(stages, start=1):
                self.segment.offer(label, str(place), stage)
        self.segment.check_places()
        initialize(self)

    def forward(
        self, x: Tensor, *, auxiliary: bool | None = None, full_size: bool = True
    ) -> dict[str, Tensor]:
        check_images(x, self.minimum_size)
        pooled = []
        for place, encoder in enumerate(self.encoder, start=1):
            size = x.shape[-2:]
            x, indices = self.segment("block", encoder, x, place=str(place))
            pooled.append((indices, size))  # x: (B, 64, H/2, W/2), ..., (B, 512, H/32, W/32)
        for place, decoder in enumerate(self.decoder, start=1):
            x = self.segment("tu", decoder, x, *pooled[-place], place=str(place))
            # (B, 512, H/16, W/16), ..., (B, 64, H/2, W/2), and the logits
        return {"out": x}  # (B, num_classes, H, W)

    def load_imagenet(self) -> None:
        """Load torchvision's VGG16-BN ImageNet weights (IMAGENET1K_V1) into the encoder.

        Raises:
            ValueError: if the model is on the meta device.
            RuntimeError: if they cannot be had; says how to go on.
        """
        state = imagenet(
            self, "vgg16_bn", lambda weights: weights.get_state_dict(progress=False, check_hash=True)
        )
        with torch.device("meta"):  # for the names: the same layers in the same order as here
            theirs = torchvision.models.vgg16_bn(weights=None).features.state_dict()
        for ours, name in zip(self.encoder.state_dict().values(), theirs, strict=True):
            if not name.endswith("num_batches_tracked"):  # the file's batch norms did not count them yet
                ours.copy_(state[f"features.{name}"])
        self.pretrained = True

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """The encoder's parameters if they came from ImageNet weights, to be trained at a lower rate."""
        return list(self.encoder.parameters()) if self.pretrained else []


def _conv_norm_relu(channels: int, widths: tuple[int, ...]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width in widths:
        conv = nn.Conv2d(channels, width, 3, padding=1)  # biased as in the release, though a norm follows
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels = width
    return layers
