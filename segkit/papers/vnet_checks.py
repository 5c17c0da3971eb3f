"""Computations behind the claims of VNet, beside the general ones of `segkit.papers.checks`.

The sizes of networks that the kit does not build (BiSeNet, ICNet) are counted from their layers, as their
authors' releases list them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from segkit import models
from segkit.data.labels import CITYSCAPES19
from segkit.measure import peak_memory
from segkit.measure.peak import default_step

IMAGE_SIZE = (1024, 2048)  # "all experiments results ... are reported for 1024x2048" (Section IV-A)
CLASSES = 19
MIB = 2**20


def size_with_auxiliary(model: str, **options: object) -> float:
    """All parameters of a network in millions, those of its auxiliary heads too.

    Args:
        model: a name of `segkit.models.MODELS`.
        **options: options of its builder.
    """
    return sum(p.numel() for p in _on_meta(model, **options).parameters()) / 1e6


def size_of_release(network: str) -> float:
    """Parameters, in millions at 19 classes, of a network counted from its authors' release.

    Args:
        network: one of `RELEASES`. BiSeNet (TorchSeg) with both auxiliary heads, as it is trained; ICNet (the
            Caffe prototxt) as it is deployed.
    """
    return RELEASES[network]() / 1e6


def peak_of_training(
    model: str, *, batch_size: int = 4, validation: bool = False, card: float | None = None, **options: object
) -> float:
    """Peak memory, in MiB, of a training step on 1024x2048 images: fp32, Adam's state included, simulated.

    See `segkit.measure.peak_memory` for what is in it and what only a GPU can tell. PSPNet on one image has
    the batch norm of its 1x1 bin in eval mode; it cannot be trained otherwise.

    Args:
        model: a name of `segkit.models.MODELS`.
        batch_size: images in a batch.
        validation: afterwards a batch of the same size is evaluated, without gradients.
        card: memory of the card in MiB: where more is needed, all that is seen is this number.
        **options: options of the model's builder.
    """
    network = _on_meta(model, **options)
    if model.startswith("pspnet") and batch_size == 1:
        network.ppm.levels["1"].eval()
    step = _train_and_validate if validation else None
    peak = peak_memory(network, batch_size, IMAGE_SIZE, optimizer="adam", step=step).total / MIB
    return peak if card is None else min(peak, card)


def map_of(model: str, module: str, *, quantity: str) -> float:
    """What a module puts out: its ``channels``, or its ``subsampling`` against the image.

    Args:
        model: a name of `segkit.models.MODELS`.
        module: the module's name in the network.
        quantity: ``channels`` or ``subsampling``.
    """
    network = _on_meta(model).eval()
    shapes: list[torch.Size] = []
    handle = network.get_submodule(module).register_forward_hook(lambda _, __, out: shapes.append(out.shape))
    with torch.no_grad():
        network(torch.empty(1, 3, *IMAGE_SIZE, device="meta"))
    handle.remove()
    _, channels, height, _ = shapes[0]
    return {"channels": channels, "subsampling": IMAGE_SIZE[0] / height}[quantity]


def convolutions(model: str, module: str, *, kernel: int) -> float:
    """How many square convolutions of this size a module has."""
    part = _on_meta(model).get_submodule(module)
    return sum(isinstance(m, nn.Conv2d) and m.kernel_size == (kernel, kernel) for m in part.modules())


def asymmetric_saving(model: str) -> float:
    """Percentage of weights saved by a network's nx1 and 1xn convolutions, each pair in place of one nxn."""
    ours = square = 0
    for module in _on_meta(model).modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size[0] != module.kernel_size[1]:
            ours += module.weight.numel()
            if module.kernel_size[1] == 1:  # one nxn for each pair, counted at its nx1
                square += module.in_channels * module.out_channels * module.kernel_size[0] ** 2
    return 100 * (1 - ours / square)


def classes() -> float:
    """Classes that the kit's Cityscapes loader gives to train and evaluate on."""
    return CITYSCAPES19.num_classes


FUNCTIONS: dict[str, Callable[..., float]] = {
    function.__name__: function
    for function in (
        size_with_auxiliary,
        size_of_release,
        peak_of_training,
        map_of,
        convolutions,
        asymmetric_saving,
        classes,
    )
}


def _on_meta(model: str, **options: object) -> nn.Module:
    return models.build(model, num_classes=CLASSES, device="meta", **options)


def _train_and_validate(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """A training step, then the loss of a batch in validation; nothing of the first is kept but gradients."""
    loss, _ = default_step(model, images, labels)
    loss.backward()
    del loss, _
    model.eval()
    with torch.no_grad():
        F.cross_entropy(model(images)["out"], labels)


def _conv(i: int, o: int, kernel: int, *, groups: int = 1, norm: bool = True, bias: bool = False) -> int:
    """Weights of a convolution from i to o maps, with its batch norm or bias."""
    return i * o * kernel**2 // groups + (2 * o if norm else 0) + (o if bias else 0)


def _bisenet(backbone: int, deepest: tuple[int, int], auxiliary: int) -> int:
    """BiSeNet: spatial path, context path of 128 maps, feature fusion, three classifiers.

    Args:
        backbone: parameters of the context path's network.
        deepest: maps of its last two stages, the deepest first.
        auxiliary: maps in the two auxiliary heads.
    """
    spatial = _conv(3, 64, 7) + 2 * _conv(64, 64, 3) + _conv(64, 128, 1)
    context = _conv(deepest[0], 128, 1)  # of the globally pooled features
    for maps in deepest:  # attention refinement and the convolution after it
        context += _conv(maps, 128, 3) + _conv(128, 128, 1) + _conv(128, 128, 3)
    fusion = _conv(256, 256, 1) + 2 * _conv(256, 256, 1, norm=False)
    heads = _conv(256, 64, 3) + _conv(64, CLASSES, 1, norm=False, bias=True)
    heads += 2 * (_conv(128, auxiliary, 3) + _conv(auxiliary, CLASSES, 1, norm=False, bias=True))
    return backbone + spatial + context + fusion + heads


def _bisenet_resnet18() -> int:
    with torch.device("meta"):
        resnet = torchvision.models.resnet18()
    resnet.fc = nn.Identity()
    return _bisenet(sum(p.numel() for p in resnet.parameters()), (512, 256), 256)


def _bisenet_xception39() -> int:
    def separable(i: int, o: int) -> int:
        return _conv(i, i, 3, groups=i, norm=False) + _conv(i, o, 1)

    xception, maps = _conv(3, 8, 3), 8
    for units, middle in ((4, 16), (8, 32), (4, 64)):
        xception += separable(maps, 4 * middle)  # the projection of the stage's first unit
        for _ in range(units):
            xception += separable(maps, middle) + separable(middle, middle) + separable(middle, 4 * middle)
            maps = 4 * middle
    return _bisenet(xception, (256, 128), 128)


def _icnet() -> int:
    """ICNet: PSPNet-50 at half width for the two smaller images, three convolutions for the largest."""
    stem = _conv(3, 32, 3) + _conv(32, 32, 3) + _conv(32, 64, 3)
    resnet, maps = stem, 64
    for units, middle in ((3, 32), (4, 64), (6, 128), (3, 256)):
        resnet += _conv(maps, 4 * middle, 1)  # the projection of the stage's first unit
        for _ in range(units):
            resnet += _conv(maps, middle, 1) + _conv(middle, middle, 3) + _conv(middle, 4 * middle, 1)
            maps = 4 * middle
    reduction = _conv(1024, 256, 1)
    quarter = _conv(256, 128, 3) + _conv(256, 128, 1)  # fused with the half-size branch
    half = _conv(128, 128, 3) + _conv(64, 128, 1)  # fused with the full-size branch
    return resnet + reduction + quarter + half + stem + _conv(128, CLASSES, 1, norm=False, bias=True)


# Networks that the kit does not build, by name.
RELEASES: dict[str, Callable[[], int]] = {
    "bisenet-resnet18": _bisenet_resnet18,
    "bisenet-xception39": _bisenet_xception39,
    "icnet": _icnet,
}
