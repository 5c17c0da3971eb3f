"""ENet, a peer of VNet in its Tables 2 and 3: 364,311 parameters at 19 classes.

"ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation", Paszke, Chaurasia, Kim and
Culurciello, https://arxiv.org/abs/1606.02147, Table 1 and Figure 2. Where the text is open, the layout of
the authors' Torch7 release decides: a bottleneck narrows to a quarter of its output (also where it
downsamples; some ports take a quarter of its input), its middle convolution has a bias, and PReLU learns one
slope per channel.
Shapes: B images of H x W pixels; i, o = maps at a bottleneck's input and output.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.memory.recompute import Segments
from segkit.models.blocks import FromScratch, check_classes, check_images
from segkit.models.peers import check_divisible


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _relu(channels: int) -> nn.ReLU:
    return nn.ReLU(inplace=True)


class Bottleneck(nn.Module):
    """1x1 to o/4 maps, a middle convolution, 1x1 to o maps, added to the skip path (Figure 2b).

    Args:
        channels_in: i.
        channels_out: o, divisible by 4.
        middle: ``"3x3"``; ``"5"`` for 1x5 and 5x1; ``"up"`` for a transposed 3x3 that doubles the resolution.
        dilation: of the 3x3 convolution.
        down: halve the resolution: the first convolution is 2x2 with stride 2, the skip path a 2x2 max-pool
            with maps of zeros added.
        dropout: probability that a map at the end of the main path is set to zero.
        activation: makes an activation for a number of maps.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        middle: str = "3x3",
        dilation: int = 1,
        down: bool = False,
        dropout: float = 0.0,
        activation: Callable[[int], nn.Module] = nn.PReLU,
    ) -> None:
        super().__init__()
        n = channels_out // 4
        if middle == "up":
            convolutions = [nn.ConvTranspose2d(n, n, 3, stride=2, padding=1, output_padding=1)]
        elif middle == "5":
            convolutions = [
                nn.Conv2d(n, n, (1, 5), padding=(0, 2), bias=False),
                nn.Conv2d(n, n, (5, 1), padding=(2, 0)),
            ]
        else:
            convolutions = [nn.Conv2d(n, n, 3, padding=dilation, dilation=dilation)]
        side = 2 if down else 1
        self.main = nn.Sequential(
            nn.Conv2d(channels_in, n, side, stride=side, bias=False),
            _norm(n),
            activation(n),
            *convolutions,
            _norm(n),
            activation(n),
            nn.Conv2d(n, channels_out, 1, bias=False),
            _norm(channels_out),
            nn.Dropout2d(dropout),
        )
        if middle == "up":
            self.project = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, bias=False), _norm(channels_out)
            )
        self.down = down
        self.added_maps = channels_out - channels_in
        self.activation = activation(channels_out)

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """(B, i, h, w) -> (B, o, h, w).

        Going down returns (B, o, h/2, w/2) and where in x the maxima were, (B, i, h/2, w/2). Going up takes
        such indices, (B, o, h, w), and returns (B, o, 2h, 2w).
        """
        main = self.main(x)
        if self.down:
            x, found = F.max_pool2d(x, 2, return_indices=True)  # (B, i, h/2, w/2) each
            x = F.pad(x, (0, 0, 0, 0, 0, self.added_maps))  # (B, o, h/2, w/2)
            return self.activation(main + x), found
        if indices is not None:
            x = F.max_unpool2d(self.project(x), indices, 2)  # (B, o, 2h, 2w), zero where no maximum was
        return self.activation(main + x)


class ENet(FromScratch):
    """A large encoder, and a small decoder that unpools to where the encoder's max-pools found their maxima.

    ``forward(x)`` takes normalized images (B, 3, H, W), H and W divisible by 8, and returns ``{"out": logits
    (B, num_classes, H, W)}``; there are no auxiliary outputs. The logits are made at this size:
    ``full_size=False`` changes nothing.

    Args:
        num_classes: maps of the logits.
        recompute: segments to checkpoint: ``unit`` is a bottleneck, its place the stage, 1, 2, 4 or 5; see
            `segkit.memory.recompute`.

    Raises:
        ValueError: if an argument is none of those above.
    """

    def __init__(self, *, num_classes: int, recompute: str | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes = check_classes(num_classes)
        self.output_stride = 1
        self.minimum_size = self.size_divisor = 8
        self.segment = Segments(recompute, available=("unit",))

        self.initial_conv = nn.Conv2d(3, 13, 3, stride=2, padding=1)
        self.initial_norm = _norm(16)
        self.initial_activation = nn.PReLU(16)
        self.down1 = Bottleneck(16, 64, down=True, dropout=0.01)
        self.stage1 = nn.ModuleList(Bottleneck(64, 64, dropout=0.01) for _ in range(4))
        self.down2 = Bottleneck(64, 128, down=True, dropout=0.1)
        middles = [
            {},
            {"dilation": 2},
            {"middle": "5"},
            {"dilation": 4},
            {},
            {"dilation": 8},
            {"middle": "5"},
            {"dilation": 16},
        ]
        # the paper's stages 2 and 3, which are alike and of one resolution
        self.stage2 = nn.ModuleList(Bottleneck(128, 128, dropout=0.1, **middle) for middle in 2 * middles)
        # the decoder: ReLU, where PReLU did worse (Section 4), and no dropout
        self.up4 = Bottleneck(128, 64, middle="up", activation=_relu)
        self.stage4 = nn.ModuleList(Bottleneck(64, 64, activation=_relu) for _ in range(2))
        self.up5 = Bottleneck(64, 16, middle="up", activation=_relu)
        self.stage5 = nn.ModuleList([Bottleneck(16, 16, activation=_relu)])
        self.logits = nn.ConvTranspose2d(16, num_classes, 2, stride=2)
        self.segment.offer("unit", "1", self.down1, self.stage1)
        self.segment.offer("unit", "2", self.down2, self.stage2)
        self.segment.offer("unit", "4", self.up4, self.stage4)
        self.segment.offer("unit", "5", self.up5, self.stage5)
        self.segment.check_places()

    def forward(
        self, x: Tensor, *, auxiliary: bool | None = None, full_size: bool = True
    ) -> dict[str, Tensor]:
        check_images(x, self.minimum_size)
        check_divisible(x, self.size_divisor)
        x = torch.cat([self.initial_conv(x), F.max_pool2d(x, 2)], dim=1)
        x = self.initial_activation(self.initial_norm(x))  # (B, 16, H/2, W/2)
        x, indices1 = self.segment("unit", self.down1, x, place="1")
        for unit in self.stage1:
            x = self.segment("unit", unit, x, place="1")  # (B, 64, H/4, W/4)
        x, indices2 = self.segment("unit", self.down2, x, place="2")
        for unit in self.stage2:
            x = self.segment("unit", unit, x, place="2")  # (B, 128, H/8, W/8)
        x = self.segment("unit", self.up4, x, indices2, place="4")
        for unit in self.stage4:
            x = self.segment("unit", unit, x, place="4")  # (B, 64, H/4, W/4)
        x = self.segment("unit", self.up5, x, indices1, place="5")
        for unit in self.stage5:
            x = self.segment("unit", unit, x, place="5")  # (B, 16, H/2, W/2)
        return {"out": self.logits(x)}  # (B, num_classes, H, W)
