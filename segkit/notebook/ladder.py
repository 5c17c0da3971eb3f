"""Inside a Ladder-DenseNet, for notebook 03: its parts in the paper's words, and what each rung answers."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from segkit import models
from segkit.data.transforms import normalize
from segkit.evaluation import evaluation_mode
from segkit.models.blocks import upsample
from segkit.models.ladder_densenet import Ladder


@dataclass(frozen=True)
class Part:
    """A part of the network as Figure 2 of the paper names it.

    Attributes: ``params``, number of parameters; ``macs``, multiply-adds of its convolutions.
    """

    params: int
    macs: int


def _part_of(name: str, model: Ladder) -> str | None:
    """The paper's name for the part that a parameter or module belongs to; None for what has no part."""
    if name.startswith("backbone."):
        inside = name.removeprefix("backbone.")
        if inside.startswith(("conv0", "norm0")):
            return "stem"
        if found := re.match(r"transition(\d)", inside):
            return f"TD{found[1]}"
        if found := re.match(r"denseblock(\d)\.denselayer(\d+)", inside):
            block, unit = int(found[1]), int(found[2])
            if block not in model.backbone.split:
                return f"DB{block}"
            half = len(getattr(model.backbone, f"denseblock{block}")) // 2
            return f"DB{block}{'a' if unit <= half else 'b'}"
    if found := re.match(r"up\.(\d)", name):
        return f"TU{int(found[1]) + 1}"
    if name.startswith("spp."):
        return "SPP"
    return "logits" if name.startswith("logits.") else None


def anatomy(name: str, image_size: tuple[int, int], *, num_classes: int = 19, **options) -> dict[str, Part]:
    """Where parameters and work are in a Ladder-DenseNet, in the order of the forward pass.

    Auxiliary heads are left out, as in the paper's tables; bilinear upsampling and pooling count nothing.

    Args:
        name: a Ladder-DenseNet of `segkit.models`, such as "ldn121-64-4".
        image_size: (H, W) in pixels.
        num_classes: maps of the logits.
        options: further keywords of `segkit.models.build`.

    Raises:
        ValueError: if the model is not a Ladder-DenseNet.
    """
    model = models.build(name, num_classes=num_classes, device="meta", **options).eval()
    if not isinstance(model, Ladder) or not hasattr(model.backbone, "denseblock1"):
        raise ValueError(f"{name} is not a Ladder-DenseNet; take one such as 'ldn121-64-4'")
    params: dict[str, int] = {}
    for parameter_name, parameter in model.named_parameters():
        if part := _part_of(parameter_name, model):
            params[part] = params.get(part, 0) + parameter.numel()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, *image_size, device="meta"))
    macs = dict.fromkeys(params, 0)
    leaves = {n for n, module in model.named_modules() if not list(module.children())}
    for module_name, flops in counter.get_flop_counts().items():
        inside = module_name.partition(".")[2]  # without the model's own class name
        if inside in leaves and (part := _part_of(inside, model)):
            macs[part] += sum(flops.values()) // 2
    order = ["stem", "DB1", "TD1", "DB2", "TD2", "DB3", "DB3a", "DB3b", "TD3", "DB4", "DB4a", "DB4b", "SPP"]
    order += [f"TU{i + 1}" for i in range(len(model.up))] + ["logits"]
    return {part: Part(params[part], macs[part]) for part in order if part in params}


def ribbon(model: Ladder, height: int) -> tuple[list[tuple[str, int, int]], list[tuple[str, str]]]:
    """What `plots.ladder_ribbon` draws: the maps along the two paths, and the skip connections between them.

    Args:
        model: a Ladder-DenseNet.
        height: of the image, in pixels.

    Returns:
        (name, channels, height of the map in px) in the order of the forward pass, and (from, to) names, the
        outermost skip first.
    """
    names = []
    for block in (1, 2, 3, 4):
        names += [f"DB{block}a", f"DB{block}b"] if block in model.backbone.split else [f"DB{block}"]
    channels, strides = list(model.backbone.channels), list(model.backbone.strides)
    if len(channels) > len(names):
        names.insert(0, "stem")
    stages = [
        (name, width, height // stride) for name, width, stride in zip(names, channels, strides, strict=True)
    ]
    stages.append(("SPP", model.spp.fuse.conv.out_channels, height // strides[-1]))
    skips = []
    for i, up in enumerate(model.up):
        stride, skip = strides[-2 - i], names[-2 - i]
        stages.append((f"TU{i + 1}", up.blend[-1].conv.out_channels, height // stride))
        skips.insert(0, (skip, f"TU{i + 1}"))
    return stages, skips


@torch.no_grad()
def rungs(model: Ladder, image: Tensor) -> dict[int, Tensor]:
    """What each rung of the ladder would answer, as the paper's Figure 4 shows it.

    Args:
        model: a trained Ladder-DenseNet; left in the mode it is in.
        image: uint8 (3, H, W).

    Returns:
        By subsampling, from the coarsest: classes (H, W), the logits of that rung upsampled to the image.
    """
    device = next(model.parameters()).device
    with evaluation_mode(model):
        output = model(normalize(image[None].to(device)), auxiliary=True)
    logits = {int(n.removeprefix("level")): out for n, out in output["aux"].items() if n.startswith("level")}
    logits[model.output_stride] = output["out"]
    size = image.shape[-2:]
    return {level: upsample(out, size)[0].argmax(0).cpu() for level, out in logits.items()}
