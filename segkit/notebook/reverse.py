"""Reversible stacks taken apart, for notebook 04: round-off, memory, mistakes, and what small images lose.

"VNet: A Versatile Network for Efficient Real-Time Semantic Segmentation", Section III. A unit makes Z = X1 +
F(X2), Y1 = Z and Y2 = X2 + Z of the two halves X1 and X2 of its input, and can be undone from Y1 and Y2.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from segkit import models
from segkit.bench import reversible as bench
from segkit.evaluation import ConfusionMatrix
from segkit.measure import PeakMemory, peak_memory
from segkit.memory import chunked_step
from segkit.memory.reversible import ReversibleSequence
from segkit.models.vnet import asymmetric
from segkit.notebook import records

MIB = 2**20
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


# Round-off ----------------------------------------------------------------------------------------


def units(count: int, *, maps: int = 64, seed: int = 0) -> list[nn.Module]:
    """F of so many units as in VNet's last stage, in float64: 3x1, 1x3 Conv-BN-PReLU, dilations 2, 4, 8."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [asymmetric(maps, bench.DILATIONS[i % len(bench.DILATIONS)]).double() for i in range(count)]


def streams(*, maps: int = 64, size: tuple[int, int] = (16, 32), seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two halves (2, maps, *size) of standard normal numbers, in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 2 * maps, *size, generator=generator, dtype=torch.float64)
    return x.chunk(2, 1)


def stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What is left of a float64 tensor that was stored in another type."""
    return x.to(dtype).double()


@torch.no_grad()
def forward(functions: Sequence[nn.Module], x1: Tensor, x2: Tensor, dtype: torch.dtype):
    """The units one after the other, their two streams stored in ``dtype``; F itself runs in float64.

    Returns:
        (X1, X2) of each unit, and of the output at the end.
    """
    kept = [(stored(x1, dtype), stored(x2, dtype))]
    for f in functions:
        x1, x2 = kept[-1]
        z = stored(x1 + f(x2), dtype)
        kept.append((z, stored(x2 + z, dtype)))
    return kept


@torch.no_grad()
def undo(functions: Sequence[nn.Module], y1: Tensor, y2: Tensor, dtype: torch.dtype):
    """The input of the units from their output, with streams stored in ``dtype``."""
    for f in reversed(functions):
        x2 = stored(y2 - y1, dtype)
        y1, y2 = stored(y1 - f(x2), dtype), x2
    return y1, y2


def drift(depths: Sequence[int]) -> dict[str, dict[int, float]]:
    """How wrong the input is that is rebuilt from the output of so many units.

    Args:
        depths: numbers of units.

    Returns:
        By name of the type that the streams are stored in (`DTYPES`), by depth: the largest error of a value;
        the inputs are standard normal.
    """
    functions, x = units(max(depths)), streams()
    errors: dict[str, dict[int, float]] = {}
    for name, dtype in DTYPES.items():
        kept = forward(functions, *x, dtype)
        errors[name] = {
            depth: max(
                (found - true).abs().max().item()
                for found, true in zip(undo(functions[:depth], *kept[depth], dtype), kept[0], strict=True)
            )
            for depth in depths
        }
    return errors


def gradient_drift(depths: Sequence[int]) -> dict[str, dict[int, float]]:
    """How wrong the gradients of the parameters are that come from rebuilt streams.

    Args:
        depths: numbers of units.

    Returns:
        By type of the streams, by depth: norm of the error over the norm of the gradients from kept streams.
    """
    functions, x = units(max(depths)), streams()
    errors: dict[str, dict[int, float]] = {}
    for name, dtype in DTYPES.items():
        kept = forward(functions, *x, dtype)
        errors[name] = {}
        for depth in depths:
            right, found = (
                torch.cat(
                    [g.flatten() for g in _gradients(functions[:depth], kept[: depth + 1], dtype, rebuild)]
                )
                for rebuild in (False, True)
            )
            errors[name][depth] = ((found - right).norm() / right.norm()).item()
    return errors


def _gradients(functions, kept, dtype: torch.dtype, rebuild: bool, *, undo_first: bool = False):
    """Gradients of all parameters, with streams as they were kept, or rebuilt from the output."""
    (y1, y2), result = kept[-1], []
    d1, d2 = streams(maps=y1.shape[1], size=y1.shape[2:], seed=1)
    for i in range(len(functions) - 1, -1, -1):
        f = functions[i]
        x2 = stored(y2 - y1, dtype) if rebuild else kept[i][1]
        if undo_first:  # an inverse pass of its own, as in memcnn
            with torch.no_grad():
                f(x2)
        leaf = x2.requires_grad_()
        out = f(leaf)
        dz = d1 + d2
        g, *of_parameters = torch.autograd.grad(out, [leaf, *f.parameters()], dz)
        result = [*of_parameters, *result]
        y1, y2 = stored(y1 - out.detach(), dtype), x2.detach()
        d1, d2 = dz, d2 + g
    return result


def norm_updates() -> dict[str, tuple[int, float]]:
    """How often a step updates the statistics of a batch norm, by the way that the step is run.

    Returns:
        The counter, and the running mean over the batch's mean (0.1, PyTorch's momentum, where it is right).
    """

    def plain(functions, x):
        _stack(functions, x, reversible=False)

    def ours(functions, x):
        _stack(functions, x, reversible=True)

    def once_more(functions, x):
        _gradients(functions, forward(functions, *x.chunk(2, 1), torch.float64), torch.float64, True)

    def undone_first(functions, x):
        kept = forward(functions, *x.chunk(2, 1), torch.float64)
        _gradients(functions, kept, torch.float64, True, undo_first=True)

    found = {}
    for name, run in {
        "plain autograd": plain,
        "F again, carelessly": once_more,
        "inverse, then F again": undone_first,
        "ReversibleSequence": ours,
    }.items():
        functions, x = units(2, maps=8), torch.cat(streams(maps=8), 1)
        norm = functions[-1][0][1]
        run(functions, x)
        batch_mean = forward_mean(functions, x)
        ratio = (norm.running_mean / batch_mean).mean().item()
        found[name] = (int(norm.num_batches_tracked), ratio)
    return found


@torch.no_grad()
def forward_mean(functions: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Mean over the batch of what the first batch norm of the last unit sees."""
    fresh = units(len(functions), maps=x.shape[1] // 2)
    _, x2 = forward(fresh, *x.chunk(2, 1), torch.float64)[-2]
    return fresh[-1][0][0](x2).mean((0, 2, 3))


def _stack(functions, x: Tensor, *, reversible: bool) -> None:
    stack = ReversibleSequence(functions)
    stack.reversible = reversible
    stack(x).square().mean().backward()


# Memory -------------------------------------------------------------------------------------------

METHODS = ("plain", "checkpoint", "per unit", "per stage")
LOSSES = ("whole", "chunked")
BATCH, IMAGE = 4, (1024, 2048)  # Section IV-A


def vnet(method: str, depth: int = 1) -> nn.Module:
    """VNet on the meta device with ``depth`` times the V modules of the paper's, run in one of four ways.

    Args:
        method: "plain", all activations kept; "checkpoint", a checkpoint for each unit; "per unit", a
            reversible stack for each unit; "per stage", one for each stage, as `segkit.models` has it.
        depth: alpha = depth, beta = 2 depth.

    Raises:
        ValueError: for another method.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: choose {', '.join(map(repr, METHODS))}.")
    options: dict[str, dict[str, Any]] = {
        "plain": {"reversible": False},
        "checkpoint": {"recompute": "unit"},
    }
    model = models.build(
        "vnet", num_classes=19, device="meta", alpha=depth, beta=2 * depth, **options.get(method, {})
    )
    if method == "per unit":
        for name in ("stage2", "stage3"):
            stage = getattr(model, name)
            setattr(model, name, nn.Sequential(*(ReversibleSequence([unit]) for unit in stage.units)))
    return model


def loss_only(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Forward and loss at full resolution, the logits let go once the loss has been differentiated."""
    return F.cross_entropy(model(images)["out"], labels)


def step_peak(model: nn.Module, *, batch_size: int = BATCH, loss: str = "whole") -> PeakMemory:
    """Peak of a training step on 1024x2048 images, simulated in fp32, without an optimizer.

    Args:
        model: a network of `segkit.models`.
        batch_size: images.
        loss: "whole", at full resolution for the batch; "chunked", image by image (notebook 02).

    Raises:
        ValueError: for another loss.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss={loss!r}: choose {', '.join(map(repr, LOSSES))}.")
    return peak_memory(model, batch_size, IMAGE, step=chunked_step if loss == "chunked" else loss_only)


def vnet_peak(method: str, depth: int = 1, *, loss: str = "whole") -> float:
    """MiB at the peak of `step_peak` of `vnet`."""
    return step_peak(vnet(method, depth), loss=loss).total / MIB


def stack_peak(way: str | Callable[[list[nn.Module]], nn.Module], count: int) -> PeakMemory:
    """Peak of a step of a stack alone, in the setting of `segkit.bench.reversible`, simulated.

    Args:
        way: a key of ``segkit.bench.reversible.WAYS``, or a function that makes a module of a list of
            functions F.
        count: units.
    """
    maps = bench.WIDTH // 2
    with torch.device("meta"):
        functions = [asymmetric(maps, bench.DILATIONS[i % len(bench.DILATIONS)]) for i in range(count)]
        enter = nn.Conv2d(3, bench.WIDTH, 1)
    body = (bench.WAYS[way] if isinstance(way, str) else way)(functions)
    batch_size, size = bench.SIMULATED
    return peak_memory(nn.Sequential(enter, body), batch_size, size, step=bench.step)


def at_the_peak(peak: PeakMemory) -> dict[str, float]:
    """What is alive at a peak, in MiB: the loss's maps, what the network keeps, and the rest."""
    parts = {"loss at full resolution": 0.0, "activations of the network": 0.0, "everything else": 0.0}
    for (module, kind), size in peak.alive.items():
        if module == "(step)":
            parts["loss at full resolution"] += size / MIB
        elif kind == "activations":
            parts["activations of the network"] += size / MIB
        else:
            parts["everything else"] += size / MIB
    return parts


def recorded_line(result: Mapping | None) -> str:
    """Where and when a recorded measurement was made; without one, how to make it."""
    if result is None:
        return "not measured yet: python -m segkit.bench reversible --out data/measured"
    return f"{result['command']}\n{records.where(result)}, torch {result['versions']['torch']}"


def recorded_peaks(result: Mapping | None, ways: Mapping[str, str]) -> dict[str, dict[int, float]]:
    """Recorded peaks in MiB: by name, by number of units; without those that could not be simulated.

    Args:
        result: the record, reversible.json.
        ways: by name, the way as it is recorded.
    """
    peaks: dict[str, dict[int, float]] = {name: {} for name in ways}
    for row in result["rows"] if result else ():
        for name, way in ways.items():
            if row["way"] == way and "peak" in row:
                peaks[name][row["units"]] = row["peak"] / MIB
    return {name: line for name, line in peaks.items() if line}


def recorded_table(result: Mapping | None) -> str:
    """The recorded ways at the largest depth: peak, time by plain autograd's, batch norms, gradients."""
    if result is None:
        return ""
    deepest = max(row["units"] for row in result["rows"])
    lines = [f"{deepest} units{'':<14}peak MiB   time   batch-norm updates   error"]
    for row in result["rows"]:
        if row["units"] != deepest:
            continue
        cells = [
            f"{row[key] / unit:{form}}" if key in row else "-"
            for key, unit, form in (
                ("peak", MIB, ",.0f"),
                ("ratio", 1, ".2f"),
                ("norm_updates", 1, ".0f"),
                ("gradient_error", 1, ".0e"),
            )
        ]
        widths = (10, 7, 21, 8)
        lines.append(f"{row['way']:<20}" + "".join(c.rjust(w) for c, w in zip(cells, widths, strict=True)))
    return "\n".join(lines)


def unit_parameters() -> int:
    """Parameters of one unit of VNet's last stage."""
    return sum(p.numel() for p in asymmetric(bench.WIDTH // 2, 1).parameters())


# The network --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A part of VNet. Attributes: ``params``; ``macs``, multiply-adds for one image; ``inferred``, whether
    the paper's text leaves its content open."""

    params: int
    macs: int
    inferred: bool


def anatomy(image_size: tuple[int, int] = IMAGE) -> dict[str, Part]:
    """Parameters and multiply-adds of VNet's parts, in the order of the forward pass."""
    names = {
        "stage1": ("stage 1: three 3x3", False),
        "down2": ("CPP, 8→32", True),
        "stage2": ("1 V module, 32 maps", True),
        "down3": ("CPP, 32→128", True),
        "stage3": ("2 V modules, 128 maps", True),
        "logits": ("1x1 classifier", True),
    }
    model = models.build("vnet", num_classes=19, device="meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, *image_size, device="meta"))
    flops = {key.partition(".")[2]: sum(counts.values()) for key, counts in counter.get_flop_counts().items()}
    return {
        label: Part(sum(p.numel() for p in getattr(model, name).parameters()), flops[name] // 2, inferred)
        for name, (label, inferred) in names.items()
    }


class Downsampler(nn.Module):
    """The ordinary downsampler that CPP replaces (Figure 2a, after ERFNet): strided 3x3 beside max-pooling.

    Args:
        channels_in: i.
        channels_out: o; the convolution gives o - i maps.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out - channels_in, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)
        self.activation = nn.PReLU(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, i, h, w) -> (B, o, h/2, w/2), rounded up."""
        pooled = F.max_pool2d(x, 3, stride=2, padding=1)
        return self.activation(self.norm(torch.cat([self.conv(x), pooled], 1)))


def square(maps: int) -> nn.Sequential:
    """F with one 3x3 Conv-BN-PReLU for the pair of 3x1 and 1x3."""
    conv = nn.Conv2d(maps, maps, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(maps), nn.PReLU(maps))


def weights_and_macs(module: nn.Module, channels: int, size: tuple[int, int]) -> tuple[int, int, int]:
    """Parameters, weights of convolutions alone, and multiply-adds on one map (channels, *size)."""
    module = module.to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.empty(1, channels, *size, device="meta"))
    convolutions = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv2d))
    return sum(p.numel() for p in module.parameters()), convolutions, counter.get_total_flops() // 2


# Mistakes -----------------------------------------------------------------------------------------


class Overwrites(ReversibleSequence):
    """A mistake: the input is not needed for the backward pass, so its memory is used for something else."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        with torch.no_grad():
            x.zero_()
        return y


def step_after(layer: nn.Module, stack: type[ReversibleSequence]) -> None:
    """One training step of an ordinary layer with 8 maps, then a stack of two units."""
    net = nn.Sequential(layer, stack([asymmetric(4, 1), asymmetric(4, 1)]))
    net(torch.randn(2, 3, 8, 8)).square().mean().backward()


# What a crop and a resized image lose -------------------------------------------------------------

SIZES = {"small": (0, 30), "medium": (30, 150), "large": (150, None)}  # objects, px of a 128x256 image


def objects(instances: Tensor) -> tuple[Tensor, Tensor]:
    """Cityscapes' things in a map of instance ids (H, W): their ids, and their areas in px."""
    ids, areas = instances.unique(return_counts=True)
    return ids[ids >= 1000], areas[ids >= 1000]


class Found:
    """How much of the objects is found, by their area: one share a thing, however large.

    A prediction of classes tells no things apart, so that this is a recall, not an IoU: claiming too much
    costs nothing.

    Args:
        scale: (H, W) area of an image over that of a 128x256 one, which `SIZES` are for.
    """

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.shares: dict[str, list[float]] = {name: [] for name in SIZES}

    def update(self, right: Tensor, instances: Tensor) -> None:
        """Adds an image. ``right``: bool (H, W), where the answer is right; ``instances``: int (H, W)."""
        for number, area in zip(*objects(instances), strict=True):
            self.shares[self.size_of(area.item())].append(right[instances == number].float().mean().item())

    def update_from(self, sample: Mapping[str, Any], prediction: Tensor) -> None:
        """Adds an image; for ``on_image`` of `segkit.evaluation.evaluate`."""
        labels = sample["labels"].as_subclass(Tensor)
        self.update(prediction.cpu() == labels, sample["instances"].as_subclass(Tensor))

    def size_of(self, area: float) -> str:
        """Name of the bin for an area in px."""
        return next(name for name, (_, above) in SIZES.items() if above is None or area < above * self.scale)

    def mean(self) -> dict[str, float]:
        """The mean share of each bin, NaN for an empty one."""
        return {n: sum(s) / len(s) if s else float("nan") for n, s in self.shares.items()}

    def count(self) -> dict[str, int]:
        """Objects in each bin."""
        return {name: len(shares) for name, shares in self.shares.items()}


def shrink(labels: Tensor, factor: float) -> Tensor:
    """A label map (H, W) brought to another resolution and back, to the nearest pixel each time."""
    size = [max(1, round(side * factor)) for side in labels.shape]
    small = F.interpolate(labels[None, None].float(), size, mode="nearest-exact")
    return F.interpolate(small, labels.shape, mode="nearest-exact")[0, 0].to(labels.dtype)


def best_when_resized(dataset: Any, factor: float) -> tuple[float, Found]:
    """What a perfect prediction at a lower resolution scores on the full-size labels.

    Args:
        dataset: samples with "labels" (H, W) and "instances".
        factor: of height and width.

    Returns:
        mIoU, and how much of the objects is found.
    """
    space = dataset.space
    matrix, found = ConfusionMatrix(space.num_classes, ignore_index=space.ignore_index), None
    for i in range(len(dataset)):
        sample = dataset[i]
        labels = sample["labels"].as_subclass(Tensor).long()
        found = found or Found(labels.numel() / (128 * 256))
        answer = shrink(labels, factor)
        # where the nearest pixel is unlabelled there is no answer; class 0 stands in for a guess
        matrix.update(answer.where(answer != space.ignore_index, 0)[None], labels[None])
        found.update(answer == labels, sample["instances"].as_subclass(Tensor))
    return matrix.miou(), found


def cut_by_crops(
    dataset: Any, crop: tuple[int, int], *, crops: int = 20, seed: int = 0
) -> dict[str, tuple[int, int]]:
    """How many of the objects that random crops show are cut by a crop's edge, by their area.

    Args:
        dataset: samples with "instances" (H, W).
        crop: (H, W) in pixels, no larger than the images.
        crops: for each image.
        seed: of their places.

    Returns:
        By name of `SIZES`: objects shown, and those of them that are cut.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = {name: [0, 0] for name in SIZES}
    for i in range(len(dataset)):
        instances = dataset[i]["instances"].as_subclass(Tensor)
        height, width = instances.shape
        bins = Found(instances.numel() / (128 * 256))
        whole = dict(zip(*(t.tolist() for t in objects(instances)), strict=True))
        for _ in range(crops):
            top = int(torch.randint(height - crop[0] + 1, (), generator=generator))
            left = int(torch.randint(width - crop[1] + 1, (), generator=generator))
            shown = objects(instances[top : top + crop[0], left : left + crop[1]])
            for number, area in zip(*(t.tolist() for t in shown), strict=True):
                count = counts[bins.size_of(whole[number])]
                count[0] += 1
                count[1] += area < whole[number]
    return {name: (shown, cut) for name, (shown, cut) in counts.items()}
