"""What an output sees, for notebook 05: fields step by step, masks, Table 4, the kit's models, gradients.

"Rethink Dilated Convolution for Real-time Semantic Segmentation", Gao, Section 3.1. The instruments are in
`segkit.measure.receptive_field`; here are the subjects that the notebook holds against them.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

from segkit import models
from segkit.data import streets
from segkit.data.transforms import normalize
from segkit.evaluation.inference import load_model
from segkit.measure import cost
from segkit.measure.receptive_field import (
    Bound,
    EffectiveField,
    Layer,
    ReceptiveField,
    bound,
    compose,
    effective,
    largest_path,
    receptive_field,
    support,
)
from segkit.models.regseg import DILATIONS, RegSegBackbone
from segkit.models.vnet import VNet
from segkit.notebook import records

IMAGE = (1024, 2048)  # Cityscapes
MEGAPIXEL = (1024, 1024)  # what the Ladder-DenseNet tables call 1 MPx
WEIGHTS = records.WEIGHTS / "vnet_streets.pt"
TRAIN = (
    "python -m segkit.train vnet_streets --dataset-options size=256x512 train=96 val=16 --crop 256x512 "
    "--epochs 20 --val-every 10 --device cpu --out-dir runs/vnet_field"
)
SHIP = "python -m segkit.training.export runs/vnet_field data/weights/vnet_streets.pt"


def across(side: int) -> int:
    """The field that lets a corner pixel see the opposite corner, in pixels (Section 3.1: 2 side - 1).

    A field is centered on its pixel, so that a corner sees half of its own.

    Args:
        side: pixels of the image along that axis.

    Raises:
        ValueError: if there is no pixel.
    """
    if side < 1:
        raise ValueError(f"side={side!r}: an image has at least one pixel.")
    return 2 * side - 1


# Step by step -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A layer, and what all up to it compose to: ``size`` (k) and ``stride`` (s) in pixels of the image."""

    layer: Layer
    size: int | float
    stride: int | float


def steps(layers: Sequence) -> list[Step]:
    """`compose` after each layer.

    Args:
        layers: as for `segkit.measure.receptive_field.compose`.
    """
    entries = bound(layers)  # which holds what is composed before each layer
    after = [(entry.size, entry.stride) for entry in entries[1:]]
    if entries:
        whole = compose(layers)
        after.append((whole.size, whole.stride))
    return [Step(entry.layer, *pair) for entry, pair in zip(entries, after, strict=True)]


def lines(layers: Sequence) -> list[Tensor]:
    """The pixels that the first layer, the first two, … touch along one axis, each bool (size,)."""
    return [support(layers[: i + 1]).diagonal() for i in range(len(layers))]


def chain(dilations: Sequence[int]) -> nn.Sequential:
    """3x3 convolutions of given dilations one after the other, one channel, same padding."""
    return nn.Sequential(*(nn.Conv2d(1, 1, 3, padding=d, dilation=d, bias=False) for d in dilations))


class Branches(nn.Module):
    """Chains side by side, added up.

    Args:
        branches: the dilations of each chain of 3x3 convolutions; none is the identity.
    """

    def __init__(self, branches: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(chain(dilations) for dilations in branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([branch(x) for branch in self.branches]).sum(0)


def moved(model: nn.Module, image_size: tuple[int, int]) -> Tensor:
    """By brute force: the pixels that change the middle output pixel when changed, one after another.

    Args:
        model: small, from one channel to one; its output has the image's size.
        image_size: (H, W), small: the model runs on H * W images.

    Returns:
        bool (H, W).
    """
    height, width = image_size
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, height, width, generator=generator, dtype=torch.float64)
    changes = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
    with torch.no_grad():
        model = model.double().eval()
        out = model(image + changes)[:, 0, height // 2, width // 2]
        plain = model(image)[0, 0, height // 2, width // 2]
    return ((out - plain).abs() > 1e-12).view(height, width)


@dataclass(frozen=True)
class Three:
    """Three 3x3 convolutions.

    Attributes:
        dilations: theirs, in order from the input.
        mask: the pixels touched, bool (size, size).
        size: of the field, px.
        coverage: share of the field that is touched, 0 to 1.
        bounds: each against k/s >= r.
    """

    dilations: tuple[int, ...]
    mask: Tensor
    size: int
    coverage: float
    bounds: tuple[Bound, ...]

    @property
    def whole(self) -> bool:
        """Whether no pixel of the field is left out."""
        return bool(self.mask.all())

    @property
    def holds(self) -> bool:
        """Whether all layers keep the bound."""
        return all(entry.holds for entry in self.bounds)


def three(*dilations: int) -> Three:
    """What 3x3 convolutions of these dilations see; see `Three`."""
    mask = support(dilations)
    return Three(dilations, mask, len(mask), mask.double().mean().item(), tuple(bound(dilations)))


def widest_whole(most: int = 15) -> tuple[tuple[int, int, int], int, int]:
    """The largest field without a hole of three 3x3 convolutions of stride 1, by trying all dilations.

    Args:
        most: the largest dilation tried.

    Returns:
        The dilations, ascending; their field; and how many sets were tried.
    """
    tried = [three(*d) for d in itertools.combinations_with_replacement(range(1, most + 1), 3)]
    best = max((found for found in tried if found.whole), key=lambda found: found.size)
    return best.dilations, best.size, len(tried)


# RegSeg -------------------------------------------------------------------------------------------


def backbone(row: int) -> RegSegBackbone:
    """RegSeg's backbone with the dilations of a row of Table 4, on the meta device.

    Raises:
        ValueError: for a row that is not 1 to 9.
    """
    if row not in DILATIONS:
        raise ValueError(f"row={row!r}: RegSeg's rows of Table 4 are {min(DILATIONS)} to {max(DILATIONS)}.")
    with torch.device("meta"):
        return RegSegBackbone(DILATIONS[row])


@dataclass(frozen=True)
class Row:
    """A row of Table 4.

    Attributes:
        layers: along which the field grows largest.
        formula: its field by the papers' formula, px.
        field: what probing the backbone finds.
        broken: the layers that break k/s >= r.
    """

    layers: tuple[Layer, ...]
    formula: int
    field: ReceptiveField
    broken: tuple[Bound, ...]


def table4_row(row: int) -> Row:
    """A row of Table 4, 1 to 9, by formula and by probing."""
    network = backbone(row)
    layers = largest_path(network, output=-1)
    broken = tuple(entry for entry in bound(layers) if not entry.holds)
    return Row(tuple(layers), compose(layers).size, receptive_field(network, output=-1), broken)


def row_10() -> list[Layer]:
    """The 3x3 convolutions of Table 4's row 10, a RegNetY-600MF whose last stage dilates instead of striding.

    The stem, then 1, 3, 7 and 4 blocks; the last four at dilations 1, 2, 2, 2.
    """
    layers = [Layer(3, 2)]
    for depth in (1, 3, 7):
        layers += [Layer(3, 2), *(depth - 1) * [Layer(3)]]
    return [*layers, Layer(3), *3 * [Layer(3, dilation=2)]]


# The kit's models ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A network, as far as it sees and what it costs.

    Attributes:
        field: height of the field, px.
        coverage: share of the field that is touched, 0 to 1.
        gmac: multiply-adds in 1e9 for an image of 1024x1024, without auxiliary heads.
        pools: number of parts that see the whole image, which the field leaves out.
    """

    field: int
    coverage: float
    gmac: float
    pools: int


def see(model: nn.Module, **where) -> Seen:
    """Field, coverage and cost of a network.

    Args:
        model: on any device, the meta device included.
        **where: which output: ``at`` and ``output`` of `segkit.measure.receptive_field.receptive_field`. The
            cost is that of the whole model.
    """
    found = receptive_field(model, **where)
    macs = cost(model, MEGAPIXEL).macs
    return Seen(found.size[0], found.coverage, macs / 1e9, len(found.global_parts))


def _resnet(name: str) -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.get_model(name)


def _deeplab() -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.get_model(
            "deeplabv3_resnet50", weights=None, weights_backbone=None, num_classes=19
        )


def _ours(name: str) -> Callable[[], nn.Module]:
    return lambda: models.build(name, device="meta")


# By group: label, how to build it, and where to look if not at the logits.
KIT: dict[str, dict[str, tuple[Callable[[], nn.Module], dict]]] = {
    "classifier, up to its last maps": {
        "ResNet-50": (lambda: _resnet("resnet50"), {"at": "layer4"}),
        "ResNet-101": (lambda: _resnet("resnet101"), {"at": "layer4"}),
    },
    "dilated classifier": {
        "DDN121, 8↓": (_ours("ddn121-8"), {}),
        "PSPNet R50": (_ours("pspnet-r50"), {}),
        "PSPNet R101": (_ours("pspnet-r101"), {}),
        "R50 + ASPP": (_deeplab, {}),
        "DenseASPP121": (_ours("denseaspp121"), {}),
    },
    "strided, upsampled again": {
        "LDN121 32→4": (_ours("ldn121-32-4"), {}),
        "LDN121 64→4": (_ours("ldn121-64-4"), {}),
        "LDN121 128→4": (_ours("ldn121-128-4"), {}),
        "SegNet": (_ours("segnet"), {}),
        "DDRNet-23": (_ours("ddrnet23"), {}),
        "R50 + JPU": (_ours("fastfcn-r50-psp-jpu"), {}),
    },
    "small, dilated inside": {
        "VNet": (_ours("vnet"), {}),
        "ENet": (_ours("enet"), {}),
        "ERFNet": (_ours("erfnet"), {}),
        "ESPNet": (_ours("espnet"), {}),
        "RegSeg": (_ours("regseg"), {}),
    },
}


def through_the_kit() -> dict[str, dict[str, Seen]]:
    """`Seen` of each network of `KIT`, by group and label."""
    return {
        group: {label: see(build(), **where) for label, (build, where) in members.items()}
        for group, members in KIT.items()
    }


def ladder_fields(names: Sequence[str]) -> dict[str, int]:
    """Height of the field of the coarsest maps of Ladder-DenseNet backbones, px, by name."""
    return {
        name: receptive_field(models.build(name, device="meta").backbone, output=-1).size[0] for name in names
    }


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling on its own grid: 3x3 convolutions side by side (DeepLab)."""

    def __init__(self, rates: Sequence[int] = (6, 12, 18, 24)) -> None:
        super().__init__()
        self.body = Branches([(rate,) for rate in rates])

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


# By gradient --------------------------------------------------------------------------------------


def equal_taps(count: int, *, share: float = 0.9) -> EffectiveField:
    """The effective field of so many 3x3 convolutions of equal weights; its field is 2 count + 1 px.

    Args:
        count: convolutions.
        share: of the gradient that the extent holds.
    """
    model = chain([1] * count)
    for layer in model:
        nn.init.constant_(layer.weight, 1 / 9)
    side = 2 * count + 3
    return effective(model, torch.zeros(1, 1, side, side), share=share)


def pictures(count: int, *, size: tuple[int, int] = (256, 512), seed: int = 0) -> Tensor:
    """The first validation scenes of ``streets``, drawn here: uint8 (count, 3, *size)."""
    scenes = [streets.render(size=size, seed=seed, split="val", index=i).image for i in range(count)]
    return torch.stack([torch.from_numpy(image.copy()).permute(2, 0, 1) for image in scenes])


def trained(path: str = "") -> nn.Module:
    """A trained network, in eval mode.

    Args:
        path: a checkpoint of `segkit.train` or `segkit.training.export`; empty for the VNet that ships.

    Raises:
        FileNotFoundError: if it is missing; the message says how to make it.
        ValueError: if it is no checkpoint.
    """
    return load_model(records.weights(path, WEIGHTS, f"{TRAIN}\n  {SHIP}"))[0]


def untrained(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """A VNet as another one was before training, in eval mode: of its classes, with fresh weights.

    Raises:
        TypeError: for another network.
    """
    if not isinstance(model, VNet):
        raise TypeError(f"expected a VNet, got {type(model).__name__}: build the untrained one by hand.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VNet(num_classes=model.num_classes).eval()


def winner(output: Mapping[str, Tensor]) -> Tensor:
    """The score of the winning class (B, 1, H, W): the sum of all classes' scores says little."""
    return output["out"].amax(1, keepdim=True)


def weighed(model: nn.Module, images: Tensor, *, share: float = 0.9) -> EffectiveField:
    """How much each pixel weighs in the winning score of the middle pixel, over images uint8 (B, 3, H, W)."""
    mean, std = getattr(model, "image_mean", None), getattr(model, "image_std", None)
    known = {"mean": mean, "std": std} if mean and std else {}
    return effective(model, normalize(images, **known), output=winner, share=share)
