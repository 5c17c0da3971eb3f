"""PSPNet, a peer of VNet in its Tables 2 and 3: 65,707,475 parameters with ResNet-101 at 19 classes.

"Pyramid Scene Parsing Network", Zhao, Shi, Qi, Wang, Jia, CVPR 2017; Sections 3.2 and 3.3, Figures 3 and 4.
From counting and the authors' PyTorch release (semseg), where the paper is silent: the stem is three 3x3
convolutions (64, 64, 128 maps) instead of a 7x7, which the printed 65.7 M needs; the auxiliary head is a 3x3
convolution to 256 maps and a classifier, 2,364,691 parameters that the paper's figure leaves out; both
classifiers follow a dropout of 0.1. The release takes sizes of a multiple of 8 plus 1 only and aligns corners
when it upsamples; here, as in the rest of the kit, any size is taken and corners are not aligned.
Shapes: B images of H x W pixels.
"""

import torchvision
from torch import Tensor, nn

from segkit.memory.recompute import Segments
from segkit.models.blocks import (
    ConvNormReLU,
    FromScratch,
    PyramidPooling,
    Stage,
    check_classes,
    check_images,
    conv_classifier,
    norms_train,
    upsample,
)

DEPTHS = (50, 101, 152)


class PSPNet(FromScratch):
    """A dilated ResNet with features at H/8, pyramid pooling, a 3x3 convolution and bilinear upsampling.

    ``forward(x, *, auxiliary=None)`` takes normalized images (B, 3, H, W) of at least 8 pixels a side and
    returns a dict: ``"out"``, logits (B, num_classes, H, W); with ``auxiliary`` (in train mode unless told
    otherwise) also ``"aux"``, with the classifier on the ResNet's fourth stage, res4, under ``"res4"``: (B,
    num_classes, H/8, W/8). With ``full_size=False``, ``"out"`` is left at H/8.

    One image at a time cannot be trained on: the 1x1 bin leaves one value per channel, from which its batch
    norm can learn nothing. To measure such a step all the same, put that level alone in eval mode, where its
    norm uses its running statistics: ``model.ppm.levels["1"].eval()``. `segkit.measure.peak_memory` keeps it
    so; ``model.train()`` undoes it.

    Args:
        depth: of the ResNet: 50, 101 or 152.
        num_classes: maps of the logits.
        bins: rows and columns of the pooling grids.
        dropout: share of maps dropped before each classifier.
        recompute: segments to checkpoint: ``unit``, a bottleneck; ``block``, a stage of the ResNet;
            ``stem``; ``spp``, pyramid pooling; ``tu``, the classifiers. Places are the stages 2 to 5, res2 to
            res5, and ``logits`` and ``aux``; see `segkit.memory.recompute`.

    Raises:
        ValueError: if an argument is none of those above.
    """

    def __init__(
        self,
        depth: int,
        /,
        *,
        num_classes: int,
        bins: tuple[int, ...] = (1, 2, 3, 6),
        dropout: float = 0.1,
        recompute: str | None = None,
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"No PSPNet with ResNet-{depth}; there are {', '.join(map(str, DEPTHS))}.")
        self.num_classes = num_classes = check_classes(num_classes)
        if not bins or min(bins) < 1 or len(set(bins)) < len(bins):
            raise ValueError(f"bins={bins!r}: give different sizes of at least 1, e.g. (1, 2, 3, 6).")
        self.output_stride = self.minimum_size = 8
        self.depth = depth
        self.segment = segment = Segments(recompute, available=("unit", "block", "stem", "spp", "tu"))

        resnet = torchvision.models.get_model(
            f"resnet{depth}", weights=None, replace_stride_with_dilation=(False, True, True)
        )
        for stage, rate in ((resnet.layer3, 2), (resnet.layer4, 4)):
            # torchvision starts a stage with the rate of the one before; the release dilates all of it alike
            stage[0].conv2.dilation = stage[0].conv2.padding = (rate, rate)
        first = resnet.layer1[0]  # its inputs are 128 maps instead of torchvision's 64
        first.conv1 = nn.Conv2d(128, 64, 1, bias=False)
        first.downsample[0] = nn.Conv2d(128, 256, 1, bias=False)
        self.stem = nn.Sequential(
            *ConvNormReLU(3, 64, 3, stride=2),
            *ConvNormReLU(64, 64, 3),
            *ConvNormReLU(64, 128, 3),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        for conv in (first.conv1, first.downsample[0], *self.stem[0:9:3]):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        segment.offer("stem", "", self.stem)
        self.res2 = Stage(*resnet.layer1, segment=segment, place="2")
        self.res3 = Stage(*resnet.layer2, segment=segment, place="3")
        self.res4 = Stage(*resnet.layer3, segment=segment, place="4")
        self.res5 = Stage(*resnet.layer4, segment=segment, place="5")

        self.ppm = PyramidPooling(2048, tuple(bins))
        ppm_channels = 2048 + len(bins) * (2048 // len(bins))
        self.logits = conv_classifier(ppm_channels, 512, num_classes, dropout=dropout)
        self.aux = nn.ModuleDict({"res4": conv_classifier(1024, 256, num_classes, dropout=dropout)})
        segment.offer("spp", "", self.ppm)
        segment.offer("tu", "logits", self.logits)
        segment.offer("tu", "aux", self.aux)
        segment.check_places()

    def forward(
        self, x: Tensor, *, auxiliary: bool | None = None, full_size: bool = True
    ) -> dict[str, Tensor | dict[str, Tensor]]:
        check_images(x, self.minimum_size)
        if x.shape[0] == 1 and "1" in self.ppm.levels and norms_train(self.ppm.levels["1"]):
            raise ValueError(
                "Cannot train PSPNet on a single image: its 1x1 pooling bin leaves one value per channel, "
                "from which batch norm can learn nothing. Use at least two images, or model.eval(). "
                "To measure a step all the same, put that level in eval mode: model.ppm.levels['1'].eval()."
            )
        auxiliary = self.training if auxiliary is None else auxiliary
        size, segment = x.shape[-2:], self.segment
        x = segment("stem", self.stem, x)  # (B, 128, H/4, W/4)
        x = segment("block", self.res2, x, place="2")  # (B, 256, H/4, W/4)
        x = segment("block", self.res3, x, place="3")  # (B, 512, H/8, W/8)
        res4 = segment("block", self.res4, x, place="4")  # (B, 1024, H/8, W/8)
        x = segment("block", self.res5, res4, place="5")  # (B, 2048, H/8, W/8)
        x = segment("spp", self.ppm, x)  # (B, 4096, H/8, W/8)
        out = segment("tu", self.logits, x, place="logits")  # (B, num_classes, H/8, W/8)
        result = {"out": upsample(out, size) if full_size else out}
        if auxiliary:
            result["aux"] = {"res4": segment("tu", self.aux["res4"], res4, place="aux")}
        return result

    def load_imagenet(self) -> None:
        """Raises ValueError: torchvision's ResNets have another stem."""
        raise ValueError(
            f"torchvision's ImageNet weights for resnet{self.depth} do not fit PSPNet's stem of three 3x3 "
            f"convolutions; use weights='none'."
        )
