"""ERFNet, a peer of VNet in its Table 2: 2,066,642 parameters at 19 classes.

"ERFNet: Efficient Residual Factorized ConvNet for Real-Time Semantic Segmentation", Romera, Álvarez, Bergasa,
Arroyo, IEEE Transactions on Intelligent Transportation Systems 2018; Table I and Figures 2 and 3. Biases, the
norms' eps and the dropout rates are those of the authors' PyTorch release; the count confirms the layout. Of
the parameters, 2,451 are the encoder's own classifier, on which the authors train the encoder first.
Shapes: B images of H x W pixels; i, o = maps at a layer's input and output.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.memory.recompute import Segments
from segkit.models.blocks import FromScratch, Stage, check_classes, check_images
from segkit.models.peers import check_divisible


class Downsampler(nn.Module):
    """3x3 convolution with stride 2 to o - i maps beside a 2x2 max-pool of the input's i; norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out - channels_in, 3, stride=2, padding=1)
        self.norm = _norm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, i, h, w) -> (B, o, h/2, w/2), h and w even."""
        x = torch.cat([self.conv(x), F.max_pool2d(x, 2)], dim=1)
        return F.relu(self.norm(x), inplace=True)


class NonBottleneck1D(nn.Module):
    """Two 3x3 convolutions, each as a 3x1 and a 1x3, the second pair dilated; dropout, sum, ReLU (Figure 2c).

    Args:
        channels: maps in, between and out.
        dropout: share of maps set to zero in training.
        dilation: of the second pair.
    """

    def __init__(self, channels: int, *, dropout: float = 0.0, dilation: int = 1) -> None:
        super().__init__()
        d = dilation
        layers = [
            nn.Conv2d(channels, channels, (3, 1), padding=(1, 0)),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, (1, 3), padding=(0, 1)),
            _norm(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, (3, 1), padding=(d, 0), dilation=(d, 1)),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, (1, 3), padding=(0, d), dilation=(1, d)),
            _norm(channels),
        ]
        if dropout:
            layers.append(nn.Dropout2d(dropout))
        self.main = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.main(x), inplace=True)


class Upsampler(nn.Module):
    """Transposed 3x3 convolution with stride 2, norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels_in, channels_out, 3, stride=2, padding=1, output_padding=1)
        self.norm = _norm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, i, h, w) -> (B, o, 2h, 2w)."""
        return F.relu(self.norm(self.conv(x)), inplace=True)


class ERFNet(FromScratch):
    """Encoder down to H/8, of factorized residual units, and a small decoder without skip connections.

    ``forward(x, *, auxiliary=None)`` takes normalized images (B, 3, H, W), H and W divisible by 8, and
    returns a dict: ``"out"``, logits (B, num_classes, H, W); with ``auxiliary`` (in train mode unless told
    otherwise) also ``"aux"``, with the encoder's classifier under ``"encoder"``: (B, num_classes, H/8, W/8).
    The logits are made at this size: ``full_size=False`` changes nothing.

    Args:
        num_classes: maps of the logits.
        dropout: shares of maps dropped in units at H/4 and at H/8; none in the decoder.
        dilations: of the units at H/8, in turn; the paper has them twice over.
        recompute: segments to checkpoint: ``unit``, a non-bottleneck-1D unit; ``block``, those of one stage
            together; ``stem``, the first downsampler; ``td``, the others; ``tu``, upsamplers and classifiers.
            Their places are the stages 2 to 5, ``logits`` and ``aux``; see `segkit.memory.recompute`.

    Raises:
        ValueError: if ``num_classes`` is below 1, or ``recompute`` names other segments.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        dropout: tuple[float, float] = (0.03, 0.3),
        dilations: tuple[int, ...] = (2, 4, 8, 16),
        recompute: str | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes = check_classes(num_classes)
        self.output_stride = 1
        self.minimum_size = self.size_divisor = 8
        self.segment = segment = Segments(recompute, available=("unit", "block", "stem", "td", "tu"))

        self.down1 = Downsampler(3, 16)
        segment.offer("stem", "", self.down1)
        self.down2 = Downsampler(16, 64)
        segment.offer("td", "2", self.down2)
        units = [NonBottleneck1D(64, dropout=dropout[0]) for _ in range(5)]
        self.stage2 = Stage(*units, segment=segment, place="2")
        self.down3 = Downsampler(64, 128)
        segment.offer("td", "3", self.down3)
        units = [NonBottleneck1D(128, dropout=dropout[1], dilation=d) for d in 2 * tuple(dilations)]
        self.stage3 = Stage(*units, segment=segment, place="3")
        self.up4 = Upsampler(128, 64)
        segment.offer("tu", "4", self.up4)
        self.stage4 = Stage(NonBottleneck1D(64), NonBottleneck1D(64), segment=segment, place="4")
        self.up5 = Upsampler(64, 16)
        segment.offer("tu", "5", self.up5)
        self.stage5 = Stage(NonBottleneck1D(16), NonBottleneck1D(16), segment=segment, place="5")
        self.logits = nn.ConvTranspose2d(16, num_classes, 2, stride=2)
        segment.offer("tu", "logits", self.logits)
        self.aux = nn.ModuleDict({"encoder": nn.Conv2d(128, num_classes, 1)})
        segment.offer("tu", "aux", self.aux)
        segment.check_places()

    def forward(
        self, x: Tensor, *, auxiliary: bool | None = None, full_size: bool = True
    ) -> dict[str, Tensor | dict[str, Tensor]]:
        check_images(x, self.minimum_size)
        check_divisible(x, self.size_divisor)
        auxiliary = self.training if auxiliary is None else auxiliary
        segment = self.segment
        x = segment("stem", self.down1, x)  # (B, 16, H/2, W/2)
        x = segment("td", self.down2, x, place="2")
        x = segment("block", self.stage2, x, place="2")  # (B, 64, H/4, W/4)
        x = segment("td", self.down3, x, place="3")
        encoded = segment("block", self.stage3, x, place="3")  # (B, 128, H/8, W/8)
        x = segment("tu", self.up4, encoded, place="4")
        x = segment("block", self.stage4, x, place="4")  # (B, 64, H/4, W/4)
        x = segment("tu", self.up5, x, place="5")
        x = segment("block", self.stage5, x, place="5")  # (B, 16, H/2, W/2)
        result = {"out": segment("tu", self.logits, x, place="logits")}  # (B, num_classes, H, W)
        if auxiliary:
            result["aux"] = {"encoder": segment("tu", self.aux["encoder"], encoded, place="aux")}
        return result

    def load_imagenet(self) -> None:
        """Raises ValueError: torchvision has no ImageNet weights for this encoder."""
        raise ValueError("torchvision has no ImageNet weights for ERFNet; use weights='none'.")


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)
