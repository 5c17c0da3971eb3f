"""Ladder-DenseNet (LDN): a lean ladder of upsampling blocks on a DenseNet.

"Efficient Ladder-style DenseNets for Semantic Segmentation of Large Images", Krešo, Krapac, Šegvić,
https://arxiv.org/abs/1905.05661, Section 4 and Figure 2. The paper leaves some widths open; those here make
the sizes and operation counts of its tables come out.
Shapes: B images of H x W pixels; D = maps of the deepest features F; C = context-aware features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.memory.recompute import Segments
from segkit.models.blocks import (
    BatchNorm,
    BNReLUConv,
    CatBNReLUConv,
    check_classes,
    check_images,
    initialize,
    load_features,
    upsample,
)
from segkit.models.densenet import DenseNet

LADDER_LABELS = ("tu", "skip", "blend", "spp", "nested")  # of segments that there are above any backbone


class SpatialPyramid(nn.Module):
    """Spatial pyramid pooling (SPP, Section 4.2): blends the features with their averages over coarse grids.

    Args:
        channels: D, maps in.
        width: maps out.
        segment: how its parts run; None: without recomputation.
        grids: rows of each grid. A grid has as many columns as make its cells square.
        square_cells: False gives every grid as many columns as rows, whatever the image's shape, as PSPNet
            has it.
        projected: maps that F is projected to before it is pooled.
        level: maps of each pooled level. The paper writes D/2, D/8 and D/4 for projected, level and width;
            its tables come out with 512 and 128 in all networks, and with a width of 256 in some rows and
            512 in others (inferred).
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        segment: Segments | None = None,
        grids: tuple[int, ...] = (8, 4, 2, 1),
        square_cells: bool = True,
        projected: int = 512,
        level: int = 128,
    ) -> None:
        super().__init__()
        self.grids, self.square_cells = tuple(grids), square_cells
        self.level_channels = level
        self.project = CatBNReLUConv(channels, projected, 1, segment=segment)
        self.levels = nn.ModuleList(BNReLUConv(projected, level, 1) for _ in grids)
        self.fuse = BNReLUConv(projected + len(grids) * level, width, 1)

    def forward(self, *features: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, D, h, w), in parts -> C (B, width, h, w), levels before upsampling (B, 128, rows, columns).

        A grid with more rows or columns than the map has is clamped to the map.
        """
        x = self.project(*features)  # (B, 512, h, w)
        height, width = x.shape[-2:]
        levels = []
        for rows, convolution in zip(self.grids, self.levels, strict=True):
            columns = max(1, round(width / height * rows)) if self.square_cells else rows
            pooled = F.adaptive_avg_pool2d(x, (min(rows, height), min(columns, width)))
            levels.append(convolution(pooled))  # (B, 128, rows, columns)
        parts = [x, *(upsample(level, (height, width)) for level in levels)]
        return self.fuse(torch.cat(parts, dim=1)), levels


class NoPyramid(nn.Module):
    """NoSPP in Table 10: a 3x3 convolution (after a 1x1 projection, inferred from the parameter count)."""

    grids = ()

    def __init__(self, channels: int, width: int, *, segment: Segments | None = None) -> None:
        super().__init__()
        self.project = CatBNReLUConv(channels, 512, 1, segment=segment)
        self.convolve = BNReLUConv(512, width, 3)

    def forward(self, *features: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.convolve(self.project(*features)), []


class TransitionUp(nn.Module):
    """Transition-up block (TU, Section 4.3): blends coarse features with the finer ones of a skip connection.

    Args:
        channels: maps of the coarse features.
        skip_channels: maps of the finer features.
        width: maps out.
        segment: how its parts run; None: without recomputation.
        place: its number, 1 for the coarsest.
        separable: depthwise separable 3x3 convolution instead of 1x1 reduction and 3x3 convolution (DWS,
            Table 10).
        residual: whether the upsampled input is added to the output: not in the paper, but needed for the
            counts of its ResNet and LDDN 8 -> 4 rows.
    """

    def __init__(
        self,
        channels: int,
        skip_channels: int,
        width: int,
        *,
        segment: Segments | None = None,
        place: str = "",
        separable: bool = False,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.segment, self.place = segment or Segments(), place
        self.project = CatBNReLUConv(skip_channels, channels, 1, segment=segment)
        if separable:
            depthwise = BNReLUConv(channels, channels, 3, groups=channels)
            self.blend = nn.Sequential(depthwise, nn.Conv2d(channels, width, 1, bias=False))
        elif channels > 128:
            self.blend = nn.Sequential(BNReLUConv(channels, 128, 1), BNReLUConv(128, width, 3))
        else:
            self.blend = nn.Sequential(BNReLUConv(channels, width, 3))
        self.residual = residual
        self.shortcut = BNReLUConv(channels, width, 1) if residual and channels != width else nn.Identity()

    def forward(self, x: Tensor, *skip: Tensor) -> Tensor:
        """(B, channels, h/2, w/2) and (B, skip_channels, h, w), in parts -> (B, width, h, w), any h and w."""
        projected = self.segment("skip", self.project, *skip, place=self.place)
        return self.segment("blend", self.blend_with, x, projected, place=self.place)

    def blend_with(self, x: Tensor, projected: Tensor) -> Tensor:
        x = upsample(x, projected.shape[-2:])
        out = self.blend(x + projected)
        return out + self.shortcut(x) if self.residual else out


class Ladder(nn.Module):
    """A backbone, spatial pyramid pooling, the ladder up to a chosen resolution, and logits.

    ``forward(x, *, auxiliary=None)`` takes normalized images (B, 3, H, W) of at least ``minimum_size`` pixels
    a side and returns a dict: ``"out"``, logits (B, num_classes, H, W); with ``auxiliary`` (in train mode
    unless told otherwise) also ``"aux"``, the logits of the auxiliary heads by name in forward order:
    ``"spp8"``, ... at the size of the SPP grid with that many rows, ``"level64"``, ... at the input of the
    transition-up block at H/64. With ``full_size=False``, ``"out"`` is left at the ladder's own resolution: a
    loss that upsamples a piece at a time needs no more (`segkit.memory.chunked_cross_entropy`).

    Args:
        backbone: returns a list of maps from fine to coarse, each a tensor or a tuple of the tensors whose
            concatenation it is; its lists ``channels`` and ``strides`` describe them.
        num_classes: maps of the logits.
        upsample_to: subsampling of the logits before the last bilinear upsampling; the backbone's coarsest
            stride for no ladder at all.
        spp: ``"square"``: the paper's, with square cells; ``"pspnet"``: PSPNet's (SPP [22] in Table 10;
            widths inferred); ``"none"``: NoSPP.
        spp_grids: rows of the pooling grids; None for (8, 4, 2, 1), with ``"pspnet"`` (6, 3, 2, 1).
        spp_width: maps of C; None for 256, with ``"pspnet"`` 512.
        separable: see `TransitionUp`, as is the next.
        residual: whether transition-up blocks are residual.

    Raises:
        ValueError: if an argument is none of those above.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_classes: int,
        upsample_to: int = 4,
        spp: str = "square",
        spp_grids: tuple[int, ...] | None = None,
        spp_width: int | None = None,
        separable: bool = False,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes = check_classes(num_classes)
        if spp not in ("square", "pspnet", "none"):
            raise ValueError(f"spp={spp!r}: choose 'square', 'pspnet' or 'none'.")
        if upsample_to not in backbone.strides:
            raise ValueError(f"upsample_to={upsample_to!r}: this backbone has maps at {backbone.strides}.")
        grids = ((6, 3, 2, 1) if spp == "pspnet" else (8, 4, 2, 1)) if spp_grids is None else tuple(spp_grids)
        if not grids or min(grids) < 1 or len(set(grids)) < len(grids):
            raise ValueError(
                f"spp_grids={spp_grids!r}: give different numbers of rows, at least 1, e.g. (8, 4, 2, 1)."
            )
        self.output_stride = upsample_to
        self.minimum_size = backbone.strides[-1]
        self.pretrained = False

        self.backbone = backbone
        self.segment: Segments = backbone.segment
        channels = (512 if spp == "pspnet" else 256) if spp_width is None else spp_width
        if spp == "square":
            self.spp = SpatialPyramid(backbone.channels[-1], channels, segment=self.segment, grids=grids)
        elif spp == "pspnet":
            self.spp = SpatialPyramid(
                backbone.channels[-1],
                channels,
                segment=self.segment,
                grids=grids,
                square_cells=False,
                level=256,
            )
        else:
            self.spp = NoPyramid(backbone.channels[-1], channels, segment=self.segment)
        self.segment.offer("spp", "", self.spp)
        self.aux = nn.ModuleDict()
        for rows in self.spp.grids:
            self.aux[f"spp{rows}"] = BNReLUConv(self.spp.level_channels, num_classes, 1, bias=True)

        coarse_to_fine = list(zip(backbone.channels, backbone.strides, strict=True))[::-1]
        rungs = coarse_to_fine[: backbone.strides[::-1].index(upsample_to) + 1]
        self.up = nn.ModuleList()
        for i, (skip_channels, _) in enumerate(rungs[1:]):
            width = 256 if i < len(rungs) - 3 else 128  # 128 in the last two, Figure 2
            self.aux[f"level{rungs[i][1]}"] = BNReLUConv(channels, num_classes, 1, bias=True)
            self.up.append(
                TransitionUp(
                    channels,
                    skip_channels,
                    width,
                    segment=self.segment,
                    place=str(i + 1),
                    separable=separable,
                    residual=residual,
                )
            )
            for label in ("tu", "skip", "blend"):
                self.segment.offer(label, str(i + 1), self.up[-1])
            channels = width
        self.logits = BNReLUConv(channels, num_classes, 1, bias=True)
        self.segment.offer("tu", "logits", self.logits)
        self.segment.offer("tu", "aux", self.aux)
        self.segment.offer("nested", "", self)
        self.segment.check_places()

        initialize(self)
        for head in (self.logits, *self.aux.values()):
            nn.init.xavier_normal_(head.conv.weight)

    def forward(
        self, x: Tensor, *, auxiliary: bool | None = None, full_size: bool = True
    ) -> dict[str, Tensor | dict[str, Tensor]]:
        check_images(x, self.minimum_size)
        auxiliary = self.training if auxiliary is None else auxiliary
        image_size = x.shape[-2:]
        *skips, x = (maps if isinstance(maps, tuple) else (maps,) for maps in self.backbone(x))
        x, pooled = self.segment("spp", self.spp, *x)  # C: (B, 256, H/64, W/64)
        inputs = list(pooled)  # of the auxiliary heads
        for i, up in enumerate(self.up, start=1):
            inputs.append(x)
            x = self.segment("tu", up, x, *skips[-i], place=str(i))  # (B, 256 or 128, H/32, W/32), ..., H/4
        out = self.segment("tu", self.logits, x, place="logits")  # (B, num_classes, H/4, W/4)
        result = {"out": upsample(out, image_size) if full_size else out}
        if auxiliary:
            heads = zip(self.aux.items(), inputs, strict=True)
            result["aux"] = {
                name: self.segment("tu", head, features, place="aux") for (name, head), features in heads
            }
        return result

    def load_imagenet(self) -> None:
        """Load torchvision's ImageNet weights (IMAGENET1K_V1) into the backbone, from the cache or the net.

        Raises:
            ValueError: if there are none that fit this backbone.
            RuntimeError: if they cannot be had; says how to go on.
        """
        name = self.backbone.torchvision_name
        if name is None:
            raise ValueError(
                f"torchvision has no ImageNet weights for {type(self.backbone).__name__}; use weights='none'."
            )
        if getattr(self.backbone, "paper_count", False):
            raise ValueError(
                "ImageNet weights do not fit the backbone of paper_count=True, which lacks some 1x1 "
                "convolutions; leave out paper_count or use weights='none'."
            )
        load_features(self, self.backbone, name)
        self.pretrained = True

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """The parameters that came from ImageNet weights, which are trained at a lower rate (Section 6.1)."""
        return list(self.backbone.parameters()) if self.pretrained else []


def ladder_densenet(
    depth: int,
    /,
    *,
    num_classes: int,
    recompute: str | None = None,
    split: tuple[int, ...] = (),
    dilations: tuple[int, int, int, int] = (1, 1, 1, 1),
    stem_pool: bool = True,
    upsample_to: int = 4,
    spp: str = "square",
    spp_grids: tuple[int, ...] | None = None,
    spp_width: int | None = None,
    separable: bool = False,
    residual: bool = False,
    pool_first: bool = False,
    inplace: bool = True,
    paper_count: bool = False,
) -> Ladder:
    """LDN, DDN or LDDN: see `DenseNet` for split, dilations, stem_pool, pool_first and paper_count, `Ladder`
    for the rest.

    Args:
        depth: of the DenseNet: 121, 161, 169 or 201, which the paper has no ladder on.
        num_classes: maps of the logits.
        recompute: segments to checkpoint, see `segkit.memory.recompute`.
        inplace: whether a ReLU writes over the batch norm's output; the same result either way.
    """
    backbone = DenseNet(
        depth,
        split=split,
        dilations=dilations,
        stem_pool=stem_pool,
        stem_map=upsample_to == 2,
        pool_first=pool_first,
        paper_count=paper_count,
        recompute=recompute,
    )
    model = Ladder(
        backbone,
        num_classes=num_classes,
        upsample_to=upsample_to,
        spp=spp,
        spp_grids=spp_grids,
        spp_width=spp_width,
        separable=separable,
        residual=residual,
    )
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.relu_in_place = inplace
    return model
