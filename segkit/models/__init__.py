"""All networks of the kit, by name: ``build("ldn121-64-4")``."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from functools import partial

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from segkit.models.denseaspp import DenseASPP
from segkit.models.denseaspp_student import StudentDenseASPP
from segkit.models.dpn import ladder_dpn68
from segkit.models.fastfcn import DEPTHS, HEADS, UPSAMPLINGS, FastFCN
from segkit.models.ladder_densenet import ladder_densenet
from segkit.models.peers.ddrnet import DDRNet
from segkit.models.peers.enet import ENet
from segkit.models.peers.erfnet import ERFNet
from segkit.models.peers.espnet import ESPNet
from segkit.models.peers.hardnet import FCHarDNet
from segkit.models.peers.lraspp import LRASPPMobileNetV3
from segkit.models.peers.pspnet import PSPNet
from segkit.models.peers.regnet import DilatedRegNetY
from segkit.models.peers.segnet import SegNet
from segkit.models.peers.swiftnet import SwiftNet
from segkit.models.regseg import DECODERS, DILATIONS, RegSeg
from segkit.models.resnet import ladder_resnet
from segkit.models.vnet import VNet

__all__ = ["MODELS", "build"]

# LDN: "Efficient Ladder-style DenseNets for Semantic Segmentation of Large Images". In `ldn121-64-4`, 121 is
# DenseNet's depth, 64 the subsampling of the deepest features, 4 that of the logits. Where spp_width or
# residual is given, the paper does not say so: with it the row's printed size and operation count come out.
_LDN: dict[str, Callable[..., nn.Module]] = {
    # Tables 2, 4 and 6
    "dn121-32": partial(ladder_densenet, 121, upsample_to=32, spp_width=512),
    "ldn121-64-4": partial(ladder_densenet, 121, split=(3,)),
    "ldn121-32-4": partial(ladder_densenet, 121),
    "ldn121-128-4": partial(ladder_densenet, 121, split=(3, 4), spp_grids=(4, 2, 1)),  # 768 / 128 < 8 rows
    "ldn121-32-2": partial(ladder_densenet, 121, upsample_to=2),  # one more TU, onto the stem (inferred)
    "ldn169-32-4": partial(ladder_densenet, 169, spp_width=512),
    "ldn169-64-4": partial(ladder_densenet, 169, split=(3,), spp_width=512),
    "ldn161-32-4": partial(ladder_densenet, 161),
    "ldn161-64-4": partial(ladder_densenet, 161, split=(3,)),
    "ladder-resnet18-32-4": partial(ladder_resnet, 18),
    "ladder-resnet50-32-4": partial(ladder_resnet, 50),
    "ladder-resnet101-32-4": partial(ladder_resnet, 101),
    "ladder-dpn68-32-4": ladder_dpn68,
    # Table 3
    "ddn121-8": partial(ladder_densenet, 121, dilations=(1, 1, 2, 4), upsample_to=8, spp_width=512),
    "lddn121-8-4": partial(ladder_densenet, 121, dilations=(1, 1, 2, 4), spp_width=512, residual=True),
    "lddn121-16-4": partial(ladder_densenet, 121, dilations=(1, 1, 1, 2), spp_width=512),
    # Table 7; the paper gives no layout: inferred as 32 -> 4 without the stem's max-pool
    "ldn121-16-2": partial(ladder_densenet, 121, stem_pool=False, upsample_to=2),
    # Table 8
    "ldn121-64-4-s4": partial(ladder_densenet, 121, split=(4,)),
    # Table 10
    "ldn121-64-4-nospp": partial(ladder_densenet, 121, split=(3,), spp="none"),
    "ldn121-64-4-pspnet-spp": partial(ladder_densenet, 121, split=(3,), spp="pspnet"),
    "ldn121-64-4-dws": partial(ladder_densenet, 121, split=(3,), separable=True),
}

# VNet: "VNet: A Versatile Network for Efficient Real-Time Semantic Segmentation"; its Tables 2 and 3.
_VNET: dict[str, Callable[..., nn.Module]] = {
    "vnet": VNet,  # 0.16 M, the tables' size
    "vnet-018": partial(VNet, widths=(8, 64, 128)),  # 0.18 M, the size that Section IV-B gives
    "enet": ENet,
    "espnet": ESPNet,
    "erfnet": ERFNet,
    "segnet": SegNet,
    "pspnet-r50": partial(PSPNet, 50),
    "pspnet-r101": partial(PSPNet, 101),
}

# RegSeg: "Rethink Dilated Convolution for Real-time Semantic Segmentation".
_REGSEG: dict[str, Callable[..., nn.Module]] = {
    "regseg": RegSeg,
    # Table 4's rows, trained with the decoder that Table 5 calls sum+3x3 (the authors' code)
    **{f"regseg-row{row}": partial(RegSeg, dilations=DILATIONS[row], decoder="sum3x3") for row in DILATIONS},
    "regnety-600mf": partial(DilatedRegNetY, decoder="sum3x3"),  # row 10
    # Table 5's decoders, on the backbone of row 2 (the authors' code); sum+3x3 on it is regseg-row2
    **{
        f"regseg-{decoder}": partial(RegSeg, dilations=DILATIONS[2], decoder=decoder)
        for decoder in DECODERS
        if decoder not in ("regseg", "sum3x3")
    },
    # Tables 9 and 10
    "ddrnet23": DDRNet,
    "lraspp-mobilenetv3": LRASPPMobileNetV3,
    "fc-hardnet70": FCHarDNet,
    "swiftnet-rn18": SwiftNet,
}

# FastFCN: "FastFCN: Rethinking Dilated Convolution in the Backbone for Semantic Segmentation"; the rows of
# Tables 1 and 2, and those that these leave out.
_FASTFCN: dict[str, Callable[..., nn.Module]] = {
    f"fastfcn-r{depth}-{head}-{upsampling}": partial(FastFCN, depth, head=head, upsampling=upsampling)
    for depth in DEPTHS
    for head in HEADS
    for upsampling in UPSAMPLINGS
}

# DenseASPP: the original as released, and the five models in Table 1 of the report "Semantic Segmentation
# with DenseASPP". The parameters printed there hold with the report's classes, 20 and in #5 19, which are
# their num_classes for who calls the builder itself. `build` gives its own, 19 unless told otherwise.
_DENSEASPP: dict[str, Callable[..., nn.Module]] = {
    **{f"denseaspp{depth}": partial(DenseASPP, depth) for depth in (121, 161, 169, 201)},
    "denseaspp-student1": partial(
        StudentDenseASPP, num_classes=20, dilations=(3, 6, 9, 12), growth=32, taken=2
    ),
    "denseaspp-student2": partial(
        StudentDenseASPP, num_classes=20, dilations=(3, 6, 9, 12), growth=32, taken=3
    ),
    "denseaspp-student3": partial(
        StudentDenseASPP, num_classes=20, dilations=(6, 12, 18, 24), growth=32, taken=3
    ),
    "denseaspp-student4": partial(
        StudentDenseASPP, num_classes=20, dilations=(3, 6, 12, 18, 24), growth=64, squeeze=256
    ),
    "denseaspp-student5": partial(
        StudentDenseASPP,
        num_classes=19,
        dilations=(3, 6, 9, 12, 18, 24),
        growth=64,
        squeeze=256,
        norm_out=True,
    ),
}

MODELS: dict[str, Callable[..., nn.Module]] = {**_LDN, **_VNET, **_REGSEG, **_DENSEASPP, **_FASTFCN}


def build(
    name: str,
    *,
    num_classes: int = 19,
    recompute: str | None = None,
    weights: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options,
) -> nn.Module:
    """Build a network by name.

    Args:
        name: a key of ``MODELS``.
        num_classes: maps of the logits.
        recompute: segments to checkpoint in training, e.g. ``"unit,stem,td,tu"``; see
            `segkit.memory.recompute`.
        weights: None or ``"none"`` for random initialization; ``"imagenet"`` for torchvision's weights in the
            backbone.
        device: where the parameters live; ``"meta"`` allocates nothing.
        dtype: of the parameters and buffers.
        options: keyword arguments of the builder, e.g. ``paper_count=True``.

    Returns:
        A module in train mode; ``forward(x)`` takes float (B, 3, H, W) and returns a dict with logits
        ``"out"`` (B, num_classes, H, W).

    Raises:
        ValueError: if the name, an option or a value is unknown (the message lists near ones).
        RuntimeError: if ImageNet weights cannot be had.
    """
    if name not in MODELS:
        raise ValueError(
            f"Unknown model {name!r}.{_near(name, MODELS)} All names: {', '.join(sorted(MODELS))}."
        )
    if weights not in (None, "none", "imagenet"):
        raise ValueError(f"weights={weights!r}: choose 'none' (random initialization) or 'imagenet'.")
    known = set(inspect.signature(MODELS[name]).parameters) - {"num_classes", "recompute"}
    for option in options:
        if option not in known:
            raise ValueError(
                f"{name} has no option {option!r}.{_near(option, known)} It has {', '.join(sorted(known))}."
            )
    with _where(device):
        model = MODELS[name](num_classes=num_classes, recompute=recompute, **options)
    if dtype is not None:
        model = model.to(dtype=dtype)
    if weights == "imagenet":
        model.load_imagenet()
    return model


@contextmanager
def _where(device: torch.device | str | None) -> Iterator[None]:
    """Makes new tensors on a device; on the meta device without drawing weights, which it cannot hold."""
    with torch.device(device) if device is not None else nullcontext():
        meta = torch.get_default_device().type == "meta"
        with _Undrawn() if meta else nullcontext():
            yield


class _Undrawn(TorchFunctionMode):
    """Leaves out what fills tensors with random numbers: half of the time that building on meta takes."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def _near(word: str, words) -> str:
    near = get_close_matches(word, words, n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(near)}?" if near else ""
