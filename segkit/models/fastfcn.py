"""FastFCN: a ResNet at output stride 32, its last maps upsampled jointly, where others dilate it to 8.

"FastFCN: Rethinking Dilated Convolution in the Backbone for Semantic Segmentation", Wu, Zhang, Huang, Liang,
Yu: every row of Tables 1 and 2. With the Encoding head, ResNet-50 and 59 classes: 47,394,769 parameters with
the JPU, 36,047,825 dilated (the auxiliary head is in both).

The paper's: the backbones, the heads, what upsamples (Sections 3.2 and 4.2, Figure 2). From the authors'
code, where the text is silent: a stem of three 3x3 convolutions, the auxiliary head on the fourth stage's
output, all widths, dropout, corners aligned (see `segkit.models.jpu.resize`), initial weights, and where the
dilation begins: in the first block of a stage it is that of the stage before, so that dilated and strided
networks of the same weights compute the same values (Equations 2 and 3). Inferred: "FPN", which neither text
nor release has in a form that runs; it is taken to be the release's lateral connections, resized, whose
multiply-adds fit the speed in Table 2. Chosen: how ASPP and PSP, which the tables have without them, go with
bilinear upsampling and FPN, and what ``width`` scales.
Shapes: B images of H x W pixels; w = width; sizes round up.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from segkit.memory.recompute import Segments
from segkit.models.blocks import (
    ConvNormReLU,
    Stage,
    as_integer,
    check_classes,
    check_images,
    conv_classifier,
    load_features,
    norms_train,
)
from segkit.models.fastfcn_heads import ASPPHead, EncodingHead, PSPHead
from segkit.models.jpu import JointPyramidUpsampling, check_pyramid, resize

DEPTHS: dict[int, tuple[int, int, int, int]] = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
HEADS: dict[str, Callable[..., nn.Module]] = {"enc": EncodingHead, "aspp": ASPPHead, "psp": PSPHead}
UPSAMPLINGS = ("none", "bilinear", "fpn", "jpu")  # the tables'
OTHER_UPSAMPLINGS = ("bilinear-late",)
STEMS = ("deep", "torchvision")


class DeepStemResNet(nn.Module):
    """A ResNet of bottlenecks without its classifier, strided to 32 or dilated to 8 (Sections 3.1 and 3.2).

    ``forward(x)`` takes (B, 3, H, W) and returns the last maps of its four stages: 4w, 8w, 16w and 32w
    channels at H/4, H/8, H/16 and H/32; dilated, the last three are all at H/8. They are the paper's Conv2 to
    Conv5. Weights do not depend on ``dilated``, and in eval mode the strided maps are the dilated ones
    subsampled, bit for bit but for rounding.

    Args:
        depth: 50 or 101.
        dilated: whether the last two stages keep their resolution: 3x3 convolutions of stage 3 have dilation
            1 in the first block and 2 after it, of stage 4 then 2 and 4.
        stem: ``"deep"``, three 3x3 convolutions (the authors'; 128 maps), or ``"torchvision"``, one of 7x7
            (64 maps), for which there are ImageNet weights.
        width: of the first stage's bottlenecks; 64 in the paper.
        segment: runs the segments ``stem``, ``unit`` (a bottleneck) and ``block`` (a stage).

    Attributes:
        channels, strides: of the four maps.

    Raises:
        ValueError: if an argument is none of those above.
    """

    def __init__(
        self,
        depth: int,
        *,
        dilated: bool = False,
        stem: str = "deep",
        width: int = 64,
        segment: Segments | None = None,
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"No FastFCN with ResNet-{depth}; there are {', '.join(map(str, DEPTHS))}.")
        if stem not in STEMS:
            raise ValueError(f"stem={stem!r}: choose 'deep', the authors', or 'torchvision', pre-trained.")
        number = as_integer(width)
        if number is None or number < 1:
            raise ValueError(f"width={width!r}: an integer of at least 1 is needed; the paper's is 64.")
        width = number
        self.depth, self.width, self.stem_kind = depth, width, stem
        self.segment = segment = segment or Segments()

        conv1: nn.Module
        if stem == "deep":
            conv1 = nn.Sequential(
                *ConvNormReLU(3, width, 3, stride=2),
                *ConvNormReLU(width, width, 3),
                nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
            )
        else:
            conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        channels = 2 * width if stem == "deep" else width
        self.stem = nn.Sequential(
            OrderedDict(
                conv1=conv1,
                bn1=nn.BatchNorm2d(channels),
                relu=nn.ReLU(inplace=True),
                maxpool=nn.MaxPool2d(3, stride=2, padding=1),
            )
        )
        segment.offer("stem", "", self.stem)

        strides, dilations = ((1, 2, 1, 1), (1, 1, 2, 4)) if dilated else ((1, 2, 2, 2), (1, 1, 1, 1))
        before = 1
        for i, units in enumerate(DEPTHS[depth]):
            stage = _bottlenecks(
                channels, width * 2**i, units, stride=strides[i], dilations=(before, dilations[i])
            )
            setattr(self, f"layer{i + 1}", Stage(*stage, segment=segment, place=str(i + 1)))
            channels, before = 4 * width * 2**i, dilations[i]
        self.channels = [4 * width * 2**i for i in range(4)]
        self.strides = [4, 8, 8, 8] if dilated else [4, 8, 16, 32]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.segment("stem", self.stem, x)  # (B, 2w, H/4, W/4); w with torchvision's stem
        maps = []
        for place, stage in enumerate((self.layer1, self.layer2, self.layer3, self.layer4), start=1):
            x = self.segment("block", stage, x, place=str(place))
            maps.append(x)  # (B, 4w, H/4, W/4), (B, 8w, H/8, W/8), (B, 16w, ...), (B, 32w, ...)
        return maps

    def load_imagenet(self) -> None:
        """Load torchvision's ImageNet weights (IMAGENET1K_V1); see `FastFCN.load_imagenet`."""
        name = f"resnet{self.depth}"
        if self.stem_kind != "torchvision":
            raise ValueError(
                f"torchvision's ImageNet weights for {name} do not fit the deep stem of three 3x3 "
                f"convolutions; build the network with stem='torchvision', or use weights='none'."
            )
        if self.width != 64:
            raise ValueError(
                f"torchvision's ImageNet weights for {name} are 64 wide, and this one has "
                f"width={self.width}; leave out width, or use weights='none'."
            )
        load_features(self, self, name, prefix="stem.")


def _bottlenecks(
    channels: int, width: int, units: int, *, stride: int, dilations: tuple[int, int]
) -> list[Bottleneck]:
    """A stage of bottlenecks, stride and dilation in their 3x3 convolutions; the first dilation of two is the
    first unit's."""
    first = Bottleneck(
        channels,
        width,
        stride=stride,
        dilation=dilations[0],
        downsample=ConvNormReLU(channels, 4 * width, 1, stride=stride, relu=False),
    )
    return [first, *(Bottleneck(4 * width, width, dilation=dilations[1]) for _ in range(units - 1))]


class LastMap(nn.Module):
    """No upsampling, or bilinear: of three maps it returns the coarsest, at the finest's size if so told.

    Args:
        channels: of the three maps.
        upsampled: whether to resize it.
    """

    def __init__(self, channels: Sequence[int], *, upsampled: bool) -> None:
        super().__init__()
        self.out_channels, self.upsampled = channels[-1], upsampled

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, 8w, h, w), ..., (B, 32w, h/4, w/4) -> (B, 32w, h, w) or as it was."""
        return resize(maps[-1], maps[0].shape[-2:]) if self.upsampled else maps[-1]


class LateralFusion(nn.Module):
    """The release's lateral connections, which its option calls FPN, here at any sizes (inferred: see above).

    A 3x3 convolution on the coarsest map and 1x1 convolutions on the finer two make ``width`` maps of each;
    resized to the finest and concatenated, a 3x3 convolution makes ``width`` of them.

    Args:
        in_channels: of the three maps, from fine to coarse.
        width: channels of each embedded map, and of the output.
        halving: whether to refuse sizes that do not halve, as a dilated backbone's do not.
    """

    def __init__(self, in_channels: Sequence[int], width: int, *, halving: bool = True) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.halving = tuple(in_channels), width, halving
        fine, middle, coarse = in_channels
        self.reduce = ConvNormReLU(coarse, width, 3)
        self.connect = nn.ModuleList([ConvNormReLU(fine, width, 1), ConvNormReLU(middle, width, 1)])
        self.fusion = ConvNormReLU(3 * width, width, 3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, f1, h, w), (B, f2, h/2, w/2), (B, f3, h/4, w/4) -> (B, width, h, w).

        Raises:
            ValueError: if these are not three maps of ``in_channels`` whose sizes halve.
        """
        check_pyramid(maps, self.in_channels, halving=self.halving)
        fine, middle, coarse = maps
        parts = [self.reduce(coarse), self.connect[0](fine), self.connect[1](middle)]
        return self.fusion(torch.cat([resize(part, fine.shape[-2:]) for part in parts], dim=1))


class FastFCN(nn.Module):
    """A backbone, what upsamples its last maps, a head on the result, an auxiliary head (Figure 2).

    ``forward(x, *, auxiliary=None)`` takes normalized images (B, 3, H, W) of at least ``minimum_size`` pixels
    a side, any size, and returns a dict: ``"out"``, logits (B, num_classes, H, W); with ``auxiliary`` (in
    train mode unless told otherwise) also ``"aux"``, with the auxiliary head's logits on the fourth of the
    ResNet's five stages (Conv4) under ``"fcn"``, (B, num_classes, H/16, W/16), dilated H/8, and, with the
    Encoding head, ``"presence"``, (B, num_classes), a logit for each class to occur anywhere. With
    ``full_size=False``, ``"out"`` is left at H/8 (``output_stride``). The authors compute all of it in eval
    mode too, also where they time it: there, ask for it with ``auxiliary=True``.

    One image at a time cannot be trained on with ASPP and PSP: the mean over the image is one value per
    channel, from which batch norm can learn nothing. To measure such a step all the same, put that part alone
    in eval mode: ``model.get_submodule("head.pool").eval()`` for ASPP, ``"head.ppm.levels.1"`` for PSP.

    Args:
        depth: of the ResNet: 50 or 101.
        head: ``"enc"``, ``"aspp"`` or ``"psp"``; see `segkit.models.fastfcn_heads`.
        upsampling: of the backbone's last map. ``"none"``: it is dilated instead, and at H/8. All others have
            a backbone of stride 32: ``"bilinear"`` resizes its last map before the head, as the text says;
            ``"fpn"`` is `LateralFusion`, ``"jpu"`` is
            `segkit.models.jpu.JointPyramidUpsampling`. ``"bilinear-late"``, in none of the tables, is what
            the released code does without its options: the head runs at H/32 and its logits are resized.
        num_classes: maps of the logits.
        stem: ``"deep"``, the authors', or ``"torchvision"``, which takes torchvision's ImageNet weights.
        width: scales all channels, 64 in the paper; 16 is for laptops.
        lateral: with ``upsampling="none"`` alone: `LateralFusion` on the dilated backbone too, the release's
            option (43,915,217 parameters with Encoding and ResNet-50 at 59 classes).
        auxiliary_head: whether there is one.
        recompute: segments to checkpoint: ``stem``; ``unit``, a bottleneck; ``block``, a stage of the ResNet
            (places 1 to 4); ``tu``, in the places ``up``, what upsamples, where it has weights, and ``aux``;
            ``spp``, the head. See `segkit.memory.recompute`.

    Attributes:
        backbone, up, head: the three parts. The authors train all but the backbone at ten times its rate.
        aux: the auxiliary head under ``"fcn"``, or nothing.

    Raises:
        ValueError: if an argument is none of those above.
    """

    def __init__(
        self,
        depth: int,
        /,
        *,
        head: str,
        upsampling: str,
        num_classes: int,
        stem: str = "deep",
        width: int = 64,
        lateral: bool = False,
        auxiliary_head: bool = True,
        recompute: str | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes = check_classes(num_classes)
        if head not in HEADS:
            raise ValueError(f"Unknown head={head!r}; choose one of {', '.join(HEADS)}.")
        known = (*UPSAMPLINGS, *OTHER_UPSAMPLINGS)
        if upsampling not in known:
            raise ValueError(f"Unknown upsampling={upsampling!r}; choose one of {', '.join(known)}.")
        if lateral and upsampling != "none":
            raise ValueError(
                f"lateral=True with upsampling={upsampling!r}: it is for 'none' alone; 'fpn' is the same "
                f"connections on a backbone of stride 32."
            )
        dilated = upsampling == "none"
        self.segment = segment = Segments(recompute, available=("unit", "block", "stem", "tu", "spp"))
        self.backbone = DeepStemResNet(depth, dilated=dilated, stem=stem, width=width, segment=segment)
        width = self.backbone.width
        channels = tuple(self.backbone.channels[1:])
        self.minimum_size = self.backbone.strides[-1]
        self.output_stride = 32 if upsampling == "bilinear-late" else 8
        self.pretrained = False

        if upsampling == "jpu":
            self.up = JointPyramidUpsampling(channels, 8 * width)
        elif upsampling == "fpn" or lateral:
            self.up = LateralFusion(channels, 8 * width, halving=not dilated)
        else:
            self.up = LastMap(channels, upsampled=upsampling == "bilinear")
        make = HEADS[head]
        if head == "enc":  # lateral connections begin with the head's own first convolution
            kernel = None if isinstance(self.up, LateralFusion) else 1 if upsampling == "jpu" else 3
            make = partial(make, kernel=kernel)
        self.head = make(self.up.out_channels, num_classes=num_classes, width=width)
        self.aux = nn.ModuleDict()
        if auxiliary_head:
            self.aux["fcn"] = conv_classifier(channels[1], 4 * width, num_classes, dropout=0.1)
            segment.offer("tu", "aux", self.aux)
        if not isinstance(self.up, LastMap):
            segment.offer("tu", "up", self.up)
        segment.offer("spp", "", self.head)
        segment.check_places()

    def forward(
        self, x: Tensor, *, auxiliary: bool | None = None, full_size: bool = True
    ) -> dict[str, Tensor | dict[str, Tensor]]:
        check_images(x, self.minimum_size)
        if x.shape[0] == 1:
            self._check_single(x)
        auxiliary = self.training if auxiliary is None else auxiliary
        size, segment = x.shape[-2:], self.segment
        _, *maps = self.backbone(x)  # (B, 8w, H/8, W/8), (B, 16w, H/16, W/16), (B, 32w, H/32, W/32)
        x = segment("tu", self.up, maps, place="up")  # (B, 32w, H/8, W/8); 8w with lateral connections
        out, presence = segment("spp", self.head, x, auxiliary)  # (B, num_classes, H/8, W/8)
        result = {"out": resize(out, size) if full_size else out}
        if auxiliary and self.aux:
            result["aux"] = {"fcn": segment("tu", self.aux["fcn"], maps[1], place="aux")}
        if presence is not None:
            result["presence"] = presence
        return result

    def _check_single(self, x: Tensor) -> None:
        """Refuse to train on one image where that leaves a batch norm one value per channel.

        It runs with every single image, timed ones too: of an ordinary size, it visits a handful of modules.
        """
        height, width = x.shape[-2:]
        codes = getattr(self.head, "norm_of_codes", None)  # many values of each code in any image
        if max(height, width) <= self.minimum_size and norms_train(
            *(m for m in self.modules() if not any(m.children()) and m is not codes)
        ):
            raise ValueError(
                f"Cannot train FastFCN on a single image of {height}x{width} pixels: at stride "
                f"{self.minimum_size} it leaves one value per channel, from which batch norm can learn "
                f"nothing. Use a larger image, at least two of them, or model.eval()."
            )
        if self.head.single is not None and norms_train(self.head.get_submodule(self.head.single)):
            path = f"head.{self.head.single}"
            raise ValueError(
                f"Cannot train FastFCN on a single image: {type(self.head).__name__} takes the mean over the "
                f"image, which leaves one value per channel, from which batch norm can learn nothing. Use at "
                f"least two images, or model.eval(). To measure a step all the same, put that part in eval "
                f"mode: model.get_submodule({path!r}).eval()."
            )

    def load_imagenet(self) -> None:
        """Load torchvision's ImageNet weights (IMAGENET1K_V1) into the backbone, from the cache or the net.

        Raises:
            ValueError: if they do not fit: another stem than torchvision's, another width, the meta device.
            RuntimeError: if they cannot be had; says how to go on.
        """
        self.backbone.load_imagenet()
        self.pretrained = True

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """The parameters that came from ImageNet weights."""
        return list(self.backbone.parameters()) if self.pretrained else []
