"""torchvision's LRASPP on MobileNetV3-Large, a peer of RegSeg in its Table 9.

"Searching for MobileNetV3", Howard et al., ICCV 2019, Section 6.4. The layers are torchvision's, where
`torchvision.models.segmentation.lraspp_mobilenet_v3_large` has the full tail: 3,221,198 parameters and
15.775 G multiply-adds at 19 classes and 1024x2048. The paper halves the maps of the last block; torchvision's
way to do so ("reduced tail") makes 1,746,878 and 9.915 G. RegSeg's table quotes the paper's own 1.51 M and
9.74 G, which neither is: 1.51 M needs the expansion in the first dilated unit halved as well, and then the
work is 9.318 G.
Shapes: B images of H x W pixels.
"""

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.segmentation.lraspp import LRASPPHead

from segkit.memory.recompute import Segments
from segkit.models.blocks import Stage, check_classes, check_images, imagenet, norms_train, upsample

# units of torchvision's `features` (0 is the stem) by stage; the third gives the head its finer maps
STAGES = ((1,), (2, 3), (4,), (5, 6), (7, 8, 9, 10, 11, 12), (13, 14, 15, 16))


class LRASPPMobileNetV3(nn.Module):
    """A MobileNetV3-Large dilated to H/16, its deepest maps gated by their own average, and two classifiers.

    ``forward(x)`` takes normalized images (B, 3, H, W) of at least 16 pixels a side, odd sizes too, and
    returns ``{"out": logits (B, num_classes, H, W)}``, or with ``full_size=False`` at H/8; there are no
    auxiliary outputs. The layers themselves would run on a single pixel; below 16 the deepest maps have no
    full cell, and images are refused.

    Args:
        num_classes: maps of the logits.
        reduced_tail: half the maps in the last three residual units and in the convolution after them, which
            torchvision has no ImageNet weights for.
        recompute: segments to checkpoint: ``unit``, an inverted residual; ``block``, a stage (1 to 6: H/2,
            H/4, H/8 up to the maps for the head, the rest of H/8, H/16, H/16 dilated); ``stem``; ``tu``, the
            head. See `segkit.memory.recompute`.

    Raises:
        ValueError: if ``num_classes`` is below 1, or ``recompute`` names other segments.
    """

    def __init__(self, *, num_classes: int, reduced_tail: bool = False, recompute: str | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes = check_classes(num_classes)
        self.output_stride = 8
        self.minimum_size = 16
        self.reduced_tail = reduced_tail
        self.pretrained = False
        self.segment = segment = Segments(recompute, available=("unit", "block", "stem", "tu"))

        features = torchvision.models.mobilenet_v3_large(
            weights=None, dilated=True, reduced_tail=reduced_tail
        ).features
        self.stem = features[0]
        self.stages = nn.ModuleList(
            Stage(*(features[i] for i in units), segment=segment, place=str(place))
            for place, units in enumerate(STAGES, start=1)
        )
        fine, coarse = (features[i].out_channels for i in (STAGES[2][-1], STAGES[-1][-1]))  # 40; 960, or 480
        self.head = LRASPPHead(fine, coarse, num_classes, 128)
        segment.offer("stem", "", self.stem)
        segment.offer("tu", "", self.head)
        segment.check_places()

    def forward(
        self, x: Tensor, *, auxiliary: bool | None = None, full_size: bool = True
    ) -> dict[str, Tensor]:
        check_images(x, self.minimum_size)
        size = x.shape[-2:]
        if x.shape[0] == 1 and max(size) == 16 and norms_train(*self.stages[4:], self.head):
            raise ValueError(
                "Cannot train LRASPPMobileNetV3 on a single image of 16x16 pixels: its maps at H/16 hold one "
                "value per channel, from which batch norm can learn nothing. Use at least two images, a "
                "larger one, or model.eval()."
            )
        x = self.segment("stem", self.stem, x)  # (B, 16, H/2, W/2)
        for place, stage in enumerate(self.stages, start=1):
            x = self.segment("block", stage, x, place=str(place))
            if place == 3:
                fine = x  # (B, 40, H/8, W/8)
        # x: (B, 960, H/16, W/16), or 480 maps
        out = self.segment("tu", self.head, {"low": fine, "high": x})  # (B, num_classes, H/8, W/8)
        return {"out": upsample(out, size) if full_size else out}

    def load_imagenet(self) -> None:
        """Load torchvision's MobileNetV3-Large ImageNet weights (IMAGENET1K_V1) into the backbone.

        Raises:
            ValueError: if the tail is reduced, or the model on the meta device.
            RuntimeError: if they cannot be had; says how to go on.
        """
        if self.reduced_tail:
            raise ValueError(
                "torchvision's ImageNet weights for mobilenet_v3_large have the full tail; leave out "
                "reduced_tail or use weights='none'."
            )
        state = imagenet(
            self,
            "mobilenet_v3_large",
            lambda weights: weights.get_state_dict(progress=False, check_hash=True),
        )
        with torch.device("meta"):  # for the names: the same layers in the same order as here
            theirs = torchvision.models.mobilenet_v3_large(weights=None).features.state_dict()
        for ours, name in zip(self._backbone().state_dict().values(), theirs, strict=True):
            if not name.endswith("num_batches_tracked"):  # of no use here, and not in every file
                ours.copy_(state[f"features.{name}"])
        self.pretrained = True

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """The backbone's parameters if they came from ImageNet weights, to be trained at a lower rate."""
        return list(self._backbone().parameters()) if self.pretrained else []

    def _backbone(self) -> nn.ModuleList:
        return nn.ModuleList([self.stem, *self.stages])
