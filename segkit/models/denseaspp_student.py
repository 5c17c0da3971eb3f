"""DenseASPP as a report rebuilt it: five heads of densely connected atrous layers on a frozen DenseNet-121.

"Semantic Segmentation with DenseASPP", Tepliashin, Paltov, Smirnov; its Tables 1 and 2. It follows Yang et
al., whose release is in `segkit.models.denseaspp`. Trainable parameters of #1 to #5, as Table 1 prints them:
662,420, 1,266,580, 1,266,580, 2,252,820 and 2,748,179. They hold with the report's classes, 20, and 19 in #5;
``build("denseaspp-student4")`` has 19 unless given ``num_classes=20``.

The report's: features from ImageNet weights, without the last two poolings and with dilations 2 and 4 instead
(#4, #5), without the last two blocks (#1), or without the last block and upsampled by 2 (#2, #3; Section 5);
dilations and growth of each model (Table 1); a 1x1 convolution to 256 maps before each atrous one in #4 and
#5 (Section 4.2); concatenation; a 1x1 classifier; upsampling by 8; 20 classes, 19 in #5; "extra upsampling"
of what other backbones put out at H/32 (Section 5.1).

Inferred, because the printed counts come out with it to the unit: the backbone is frozen and not counted (the
report has it pre-trained instead of trained, but nowhere frozen); features are taken after the last block
kept and before its transition; atrous layers' convolutions have no biases, the classifier has one; norms come
before the convolutions, as many channels as these read; 256 maps in every layer, where the text's "1/4 of its
original size" would grow from layer to layer; in #5 one more norm of 64 channels after each layer, 768
parameters in all. #5's count would also fit a first layer without its norm and a norm before the classifier;
counts cannot tell the two. That each norm is followed by a ReLU and this by the convolution (pre-activation)
follows from the norms' place, not from a count.

Chosen, where the report is silent: the frozen backbone's norms stay in eval mode, whatever ``train()`` says
(in train mode their statistics would drift from ImageNet's while nothing else in it moves); no ReLU after
DenseNet's last norm, ``norm5``, since torchvision's ``features`` end there; upsampling is bilinear, corners
not aligned; the concatenation's order is (old, new): the input, the first layer's maps, ..., the last's (the
release has it the other way round); MobileNetV3 is torchvision's Large and ConvNeXt its Tiny, up to where
their classifiers would pool; the head's initialization is PyTorch's default.

Shapes: B images of H x W pixels; c0 = maps of the features; k = growth, maps that an atrous layer adds. The
features of every backbone have (H + 3) // 8 rows, H/8 where 8 divides H, and columns alike.
"""

from contextlib import nullcontext

import torch
import torchvision
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
from segkit.models.denseaspp import AT_STRIDE_8, BACKBONE_LABELS, check_cells, check_dilations
from segkit.models.densenet import CONFIGURATIONS, DenseNet

# name: torchvision's network with these `features`, and their maps at H/32
OTHERS: dict[str, tuple[str, int]] = {
    "mobilenetv3": ("mobilenet_v3_large", 960),
    "convnext": ("convnext_tiny", 768),
}
DENSENETS: dict[str, dict] = {
    **{f"densenet{depth}": {"depth": depth} for depth in (121, 161, 169, 201)},
    "small": {"depth": 121, "units": (2, 4, 4, 2), "growth": 16},  # not the report's: for laptops
}
BACKBONES = (*DENSENETS, *OTHERS)


class AtrousLayer(nn.Module):
    """BN, ReLU and a dilated 3x3 convolution; with ``squeeze``, BN, ReLU and a 1x1 convolution before that.

    Args:
        channels: maps in.
        growth: k, maps out.
        dilation: of the 3x3 convolution.
        squeeze: maps that the 1x1 convolution puts out; None for no such convolution (#1 to #3).
        norm_out: whether a norm follows the 3x3 convolution (#5).
    """

    def __init__(
        self,
        channels: int,
        *,
        growth: int,
        dilation: int,
        squeeze: int | None = None,
        norm_out: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.reduce = None
        if squeeze is not None:
            self.reduce = nn.Conv2d(channels, squeeze, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(squeeze)
            channels = squeeze
        self.conv = nn.Conv2d(channels, growth, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm_out = nn.BatchNorm2d(growth) if norm_out else nn.Identity()

    def forward(self, *features: Tensor) -> Tensor:
        """(B, channels, h, w), in parts -> (B, k, h, w)."""
        x = torch.cat(features, dim=1) if len(features) > 1 else features[0]
        x = norm_relu(self.norm1, x)
        if self.reduce is not None:
            x = norm_relu(self.norm2, self.reduce(x))  # (B, 256, h, w)
        return self.norm_out(self.conv(x))


class AtrousPyramid(nn.Module):
    """What the two heads have in common: a row of atrous layers, and their outputs beside the input.

    ``forward(x, layers=m)`` takes (B, channels, h, w) and returns (B, channels + n k, h, w): x, then the maps
    of the n layers, in order. With m below n, the layers above the m-th are not run and zeros stand in their
    place, so that a classifier trained on all of them still fits (removal of top layers, Section 5.2).

    Args:
        channels: c0.
        dilations: of the layers, increasing.
        growth: k, maps that each layer adds.
        squeeze: see `AtrousLayer`, as is the next.
        norm_out: whether a norm follows each layer.
        segment: runs each layer as the segment ``spp`` in the place of its number; None: no recomputation.

    Attributes:
        layers: the atrous layers.
        channels_out: channels + n k.

    Raises:
        ValueError: if an argument is none of those above.
    """

    dense: bool  # whether a layer sees the layers before it

    def __init__(
        self,
        channels: int,
        *,
        dilations: tuple[int, ...],
        growth: int,
        squeeze: int | None = None,
        norm_out: bool = False,
        segment: Segments | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.growth = _maps("channels", channels), _maps("growth", growth)
        squeeze = _maps("squeeze", squeeze) if squeeze is not None else None
        self.dilations = check_dilations(dilations)
        self.segment = segment = segment or Segments()
        self.layers = nn.ModuleList()
        for i, dilation in enumerate(self.dilations):
            self.layers.append(
                AtrousLayer(
                    self.channels + i * self.growth * self.dense,
                    growth=self.growth,
                    dilation=dilation,
                    squeeze=squeeze,
                    norm_out=norm_out,
                )
            )
            segment.offer("spp", str(i + 1), self.layers[-1])
        self.channels_out = self.channels + len(self.dilations) * self.growth

    def taps(self, x: Tensor, layers: int | None = None) -> list[Tensor]:
        """x itself and the output of each of the first ``layers`` layers (None: all), (B, k, h, w) each."""
        number = len(self.layers) if layers is None else as_integer(layers)
        if number is None or not 0 <= number <= len(self.layers):
            raise ValueError(
                f"layers={layers!r}: this head has {len(self.layers)} atrous layers; give how many of them "
                f"run, 0 to {len(self.layers)}, or None for all."
            )
        maps = [x]
        for i, layer in enumerate(self.layers[:number], start=1):
            seen = maps if self.dense else maps[:1]
            maps.append(self.segment("spp", layer, *seen, place=str(i)))
        return maps

    def parts(self, x: Tensor, layers: int | None = None) -> list[Tensor]:
        """The parts of what ``forward`` concatenates: `taps`, and zeros for the layers that were left out."""
        maps = self.taps(x, layers)
        missing = (len(self.layers) + 1 - len(maps)) * self.growth
        return [*maps, x.new_zeros(x.shape[0], missing, *x.shape[2:])] if missing else maps

    def forward(self, x: Tensor, *, layers: int | None = None) -> Tensor:
        return torch.cat(self.parts(x, layers), dim=1)


class DenselyConnectedASPP(AtrousPyramid):
    """DenseASPP (Section 4.1, Figure 2): each layer sees the input and the outputs of all before it."""

    dense = True


class ParallelASPP(AtrousPyramid):
    """Plain ASPP, for comparison: the same layers side by side, each of which sees the input only.

    What comes out has the same shape as `DenselyConnectedASPP`'s, so that heads differ in wiring alone; that
    the input is among it is chosen, DeepLab's own ASPP has other branches beside.
    """

    dense = False


HEADS: dict[str, type[AtrousPyramid]] = {"dense": DenselyConnectedASPP, "parallel": ParallelASPP}


class DenseNetFeatures(DenseNet):
    """The maps of one dense block of a DenseNet: (B, 3, H, W) -> (B, c0, H/8, W/8), or H/16 with taken=3.

    Args:
        depth: see `DenseNet`, as are ``units``, ``growth`` and ``recompute``.
        taken: see `StudentDenseASPP`.
    """

    def __init__(
        self,
        depth: int,
        *,
        taken: int,
        units: tuple[int, ...] | None = None,
        growth: int | None = None,
        recompute: str | None = None,
    ) -> None:
        super().__init__(
            depth,
            units=(units or CONFIGURATIONS[depth][2])[:taken],
            growth=growth,
            dilations=AT_STRIDE_8 if taken == 4 else (1, 1, 1, 1),
            recompute=recompute,
        )
        self.norm5 = BatchNorm(self.channels[-1]) if taken == 4 else nn.Identity()
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        maps = super().forward(x)[-1]
        return self.norm5(torch.cat(maps, dim=1) if isinstance(maps, tuple) else maps)


class StudentDenseASPP(nn.Module):
    """Features of a backbone at H/8, a head of atrous layers, a 1x1 classifier.

    ``forward(x, *, layers=None)`` takes normalized images (B, 3, H, W) of at least ``minimum_size`` pixels a
    side, odd sizes too, and returns ``{"out": logits (B, num_classes, H, W)}``, with ``full_size=False`` at
    the features' own size; there are no auxiliary outputs. With ``layers=m`` only the first m atrous layers
    run, see `AtrousPyramid`. For features that `features` returned before (they can be kept, if the backbone
    is frozen): ``forward(None, features=F, image_size=(H, W))``, the size of the images that they come from.

    Frozen, the backbone is never trained: its parameters do not require gradients, it is in eval mode
    whatever ``train()`` says, and it runs without a graph unless the images themselves require gradients.
    `segkit.measure.cost` then counts the parameters that are trained, as Table 1 does, and the work of all.
    Such a network is of use with ``weights="imagenet"`` or a checkpoint only.

    Args:
        num_classes: maps of the logits.
        dilations: of the atrous layers, increasing.
        growth: k, maps that each adds.
        squeeze: see `AtrousLayer`, as is the next.
        norm_out: whether a norm follows each atrous layer.
        backbone: ``"densenet121"``, ``"densenet161"``, ``"densenet169"``, ``"densenet201"``,
            ``"mobilenetv3"``, ``"convnext"``, or ``"small"``, a DenseNet of (2, 4, 4, 2) units and growth 16
            that there are no ImageNet weights for, to be trained with ``frozen=False``.
        taken: the dense block that the features come from: 4, dilated to H/8 and with the norm after it; 3,
            at H/16 and upsampled by 2; 2, at H/8. Later blocks are not built. MobileNetV3 and ConvNeXt are
            taken whole, at H/32 and upsampled by 4.
        frozen: whether the backbone stays as it is.
        head: ``"dense"`` or ``"parallel"``.
        recompute: segments to checkpoint: ``spp``, an atrous layer, its place the number; ``tu``,
            concatenation and classifier. A DenseNet that is not frozen has its own beside (``unit``,
            ``block``, ``stem``, ``td``, ...); a frozen one keeps nothing that could be recomputed. See
            `segkit.memory.recompute`.

    Attributes:
        backbone: with the names that torchvision has under ``features``.
        head: the atrous layers.
        classifier: the 1x1 convolution.
        channels: c0.
        largest_cell: the side of the largest square image whose coarsest map is a single cell, in pixels.

    Raises:
        ValueError: if an argument is none of those above.
    """

    def __init__(
        self,
        *,
        num_classes: int = 20,
        dilations: tuple[int, ...],
        growth: int,
        squeeze: int | None = None,
        norm_out: bool = False,
        backbone: str = "densenet121",
        taken: int = 4,
        frozen: bool = True,
        head: str = "dense",
        recompute: str | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes = check_classes(num_classes)
        if backbone not in BACKBONES:
            raise ValueError(f"Unknown backbone={backbone!r}; choose one of {', '.join(BACKBONES)}.")
        if head not in HEADS:
            raise ValueError(f"Unknown head={head!r}; choose one of {', '.join(HEADS)}.")
        blocks = as_integer(taken)
        if blocks not in ((2, 3, 4) if backbone in DENSENETS else (4,)):
            has = (
                "2, 3 or 4, the dense block to take the features from" if backbone in DENSENETS else "4 only"
            )
            raise ValueError(f"taken={taken!r}: for {backbone} it is {has}.")
        self.output_stride, self.pretrained, self.frozen = 8, False, bool(frozen)
        segment = self._segments(recompute, backbone)

        if backbone in DENSENETS:
            self.backbone = DenseNetFeatures(**DENSENETS[backbone], taken=blocks, recompute=recompute)
            segment = self.backbone.segment
            if frozen:
                segment.offers.clear()  # it keeps nothing, so a planner has nothing to choose in it
            self.channels = self.backbone.channels[-1]
            self.minimum_size = stride = self.backbone.strides[-1]
            self.torchvision_name = self.backbone.torchvision_name
            self.largest_cell = 2 * stride - 4
        else:
            self.torchvision_name, self.channels = OTHERS[backbone]
            self.backbone = torchvision.models.get_model(self.torchvision_name, weights=None).features
            self.minimum_size = stride = 32
            self.largest_cell = 32 if backbone == "mobilenetv3" else 63  # one rounds up, the other down
        self.extra_upsampling = stride // 8
        self.backbone_name, self.segment = backbone, segment
        self.head = HEADS[head](
            self.channels,
            dilations=dilations,
            growth=growth,
            squeeze=squeeze,
            norm_out=norm_out,
            segment=segment,
        )
        self.classifier = nn.Conv2d(self.head.channels_out, num_classes, 1)
        segment.offer("tu", "logits", self.classifier)
        if not frozen and backbone in DENSENETS:
            segment.offer("nested", "", self)
        segment.check_places()
        if frozen:
            self.backbone.requires_grad_(False)
            self.backbone.eval()

    def _segments(self, recompute: str | None, backbone: str) -> Segments:
        """Those of the head; refuses labels that neither it nor a trained backbone has segments for."""
        labels = ("spp", "tu")
        if backbone in DENSENETS:
            found = Segments(recompute, available=(*BACKBONE_LABELS, *labels))
            lost = sorted(token for token in found.chosen if token.partition(":")[0] not in labels)
            if lost and self.frozen:
                raise ValueError(
                    f"recompute={recompute!r}: the backbone is frozen, runs without a graph and keeps "
                    f"nothing that could be recomputed. Leave out {', '.join(lost)}; spp and tu remain."
                )
            return found
        return Segments(recompute, available=labels)

    def train(self, mode: bool = True) -> "StudentDenseASPP":
        """Puts the head in train mode, and the backbone too unless it is frozen."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """What the head works on: (B, 3, H, W) -> (B, c0, H/8, W/8), without a graph if frozen."""
        check_images(images, self.minimum_size)
        # asked for gradients of the image (a saliency map, an effective field), a frozen backbone gives them
        alone = self.frozen and not images.requires_grad
        with torch.no_grad() if alone else nullcontext():
            x = self.backbone(images)
            if self.extra_upsampling > 1:
                x = upsample(x, tuple((side + 3) // 8 for side in images.shape[-2:]))
        return x

    def forward(
        self,
        x: Tensor | None,
        *,
        auxiliary: bool | None = None,  # every model's keyword; there are no such outputs
        full_size: bool = True,
        layers: int | None = None,
        features: Tensor | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> dict[str, Tensor]:
        if (x is None) == (features is None):
            raise ValueError(
                "Give either images, model(x), or features computed before, model(None, features=F, "
                "image_size=(H, W))."
            )
        if features is None:
            check_images(x, self.minimum_size)
            check_cells(self, x, self.largest_cell)
            features, image_size = self.features(x), x.shape[-2:]
        else:
            self._check_features(features, image_size, full_size)
        parts = self.head.parts(features, layers)
        out = self.segment("tu", self.classify, *parts, place="logits")  # (B, num_classes, H/8, W/8)
        return {"out": upsample(out, image_size) if full_size else out}

    def _check_features(self, features: Tensor, image_size: tuple[int, int] | None, full_size: bool) -> None:
        """Refuse what are not features of this backbone, and of images of this size if it is given."""
        if getattr(features, "ndim", 0) != 4 or features.shape[1] != self.channels:
            found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(
                f"Expected features of shape (B, {self.channels}, h, w), got {found}; were they computed "
                f"with another backbone?"
            )
        rows, columns = features.shape[-2:]
        if full_size or image_size is not None:
            if not _is_size(image_size):
                raise ValueError(
                    f"image_size={image_size!r}: features do not tell the size of the logits; give the "
                    f"images' (H, W), or full_size=False."
                )
            height, width = image_size
            expected = ((height + 3) // 8, (width + 3) // 8)
            if (rows, columns) != expected:
                raise ValueError(
                    f"Features of {rows}x{columns} cells are not those of images of {height}x{width} pixels, "
                    f"which have {expected[0]}x{expected[1]}; give the size of the images that they were "
                    f"computed from."
                )
        if features.shape[0] == rows == columns == 1 and norms_train(self.head):
            raise ValueError(
                "Cannot train on the features of a single image that are a single cell, one value per "
                "channel, from which batch norm can learn nothing. Use those of a larger image, of at least "
                "two of them, or model.eval()."
            )

    def classify(self, *parts: Tensor) -> Tensor:
        return self.classifier(torch.cat(parts, dim=1))

    def load_imagenet(self) -> None:
        """Load torchvision's ImageNet weights (IMAGENET1K_V1) into the backbone, from the cache or the net.

        Raises:
            ValueError: if there are none that fit this backbone, or the model is on the meta device.
            RuntimeError: if they cannot be had; says how to go on.
        """
        if self.torchvision_name is None:
            raise ValueError(
                f"There are no ImageNet weights for the backbone {self.backbone_name!r}, which is trained "
                f"from scratch (frozen=False); use weights='none', or backbone='densenet121'."
            )
        load_features(self, self.backbone, self.torchvision_name)
        self.pretrained = True

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """The backbone's parameters, frozen or not, if they came from ImageNet weights, otherwise none."""
        return list(self.backbone.parameters()) if self.pretrained else []


def _maps(name: str, number: int) -> int:
    """A number of maps, as Python's integer."""
    found = as_integer(number)
    if found is None or found < 1:
        raise ValueError(f"{name}={number!r}: a number of maps is an integer of at least 1.")
    return found


def _is_size(image_size: tuple[int, int] | None) -> bool:
    if not isinstance(image_size, (tuple, list)) or len(image_size) != 2:
        return False
    return all((as_integer(side) or 0) >= 1 for side in image_size)
