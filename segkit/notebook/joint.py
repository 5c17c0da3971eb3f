"""FastFCN taken apart, for notebook 08: phases, what a network spends where, and a short ablation.

"FastFCN: Rethinking Dilated Convolution in the Backbone for Semantic Segmentation", Wu, Zhang, Huang, Liang,
Yu, Sections 3 and 4. Networks are the paper's, with 59 classes; work is multiply-adds on one 512x512 image,
auxiliary head included. Nothing is allocated: they are counted on the meta device.
"""

import functools
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from segkit import models
from segkit.bench import jpu as bench
from segkit.evaluation.boundary import WIDTHS, TrimapIoU
from segkit.evaluation.inference import Evaluation, evaluate
from segkit.measure import meta, peak_memory
from segkit.measure.latency import Latency
from segkit.models.densenet import DenseNet
from segkit.models.fastfcn import HEADS, UPSAMPLINGS, DeepStemResNet, FastFCN
from segkit.models.jpu import JointPyramidUpsampling, resize
from segkit.models.regseg import RegSegBackbone
from segkit.notebook import records
from segkit.notebook.dilated import threads
from segkit.notebook.phases import split
from segkit.notebook.records import MEASURED
from segkit.papers import Ledger
from segkit.training import Recipe, recipe

CLASSES, IMAGE = bench.CLASSES, bench.IMAGE_SIZE
CROP, PER_GPU = (480, 480), 4  # Section 4.1: 16 crops on four GPUs
BATCH = 2  # of what is kept, then divided by it: batch norms do not train on one value per channel
MIB, GIB = 2**20, 2**30
PAPERS_NAMES = {"none": "None", "bilinear": "Bilinear", "fpn": "FPN", "jpu": "JPU"}
HEAD_NAMES = {"enc": "Encoding", "aspp": "ASPP", "psp": "PSP"}

# From dilated to strided ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Apart:
    """A dilated and a strided convolution of one signal, taken apart (Figure 3); all are lists of numbers.

    Attributes:
        signal: what comes in.
        phases: its phases, each after the regular convolution (Figure 3a).
        dilated: what the dilated convolution puts out.
        regular: the regular convolution of the whole signal (Figure 3b).
        strided: what the strided convolution puts out.
    """

    signal: list[float]
    phases: list[list[float]]
    dilated: list[float]
    regular: list[float]
    strided: list[float]


def taken_apart(x: Tensor, weight: Tensor, *, rate: int = 2) -> Apart:
    """Both convolutions of a signal with one kernel, the same number being dilation and stride.

    Args:
        x: (1, 1, L).
        weight: (1, 1, k), k odd.
        rate: dilation, and stride.
    """
    padding = weight.shape[2] // 2
    return Apart(
        signal=x.flatten().tolist(),
        phases=[F.conv1d(phase, weight, padding=padding).flatten().tolist() for phase in split(x, rate)],
        dilated=F.conv1d(x, weight, padding=rate * padding, dilation=rate).flatten().tolist(),
        regular=F.conv1d(x, weight, padding=padding).flatten().tolist(),
        strided=F.conv1d(x, weight, padding=padding, stride=rate).flatten().tolist(),
    )


@dataclass(frozen=True)
class Twin:
    """A map of the dilated and of the strided backbone. Attributes: ``stage``, the paper's name; ``dilated``
    and ``strided``, shapes; ``step``, every which pixel of the dilated map is in the strided one; ``error``,
    the largest difference there, by the map's largest value."""

    stage: str
    dilated: tuple[int, ...]
    strided: tuple[int, ...]
    step: int
    error: float


@torch.no_grad()
def twins(depth: int = 50, *, width: int = 8, size: tuple[int, int] = (96, 128), seed: int = 0) -> list[Twin]:
    """The maps of a dilated and a strided ResNet of the same weights, in float64 and eval mode.

    Args:
        depth: 50 or 101.
        width: of its first stage; the paper's is 64.
        size: of the image.
        seed: of weights, image and of the norms' statistics, which are random, too.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dilated, strided = (
            DeepStemResNet(depth, dilated=is_dilated, width=width).double().eval()
            for is_dilated in (True, False)
        )
        for norm in (module for module in dilated.modules() if isinstance(module, nn.BatchNorm2d)):
            for values in (norm.weight, norm.running_var):
                values.uniform_(0.5, 1.5)
            for values in (norm.bias, norm.running_mean):
                values.normal_(std=0.1)
        strided.load_state_dict(dilated.state_dict())
        images = torch.randn(1, 3, *size, dtype=torch.float64)
    found = []
    for i, (wide, small) in enumerate(zip(dilated(images), strided(images), strict=True)):
        step = strided.strides[i] // dilated.strides[i]
        error = (wide[..., ::step, ::step] - small).abs().max() / small.abs().max()
        found.append(Twin(f"Conv{i + 2}", tuple(wide.shape), tuple(small.shape), step, error.item()))
    return found


def offsets(coarse: int, fine: int = 0, *, aligned: bool, factor: int = 4) -> list[float]:
    """Where bilinear interpolation reads a coarse map, minus where the theory has it (Equation 3).

    By the theory the coarse pixel i is the fine pixel ``factor * i``.

    Args:
        coarse: pixels of the coarse map along an axis.
        fine: of the fine one; 0 for ``factor`` times as many. It is ``factor * (coarse - 1) + 1`` where the
            image measures 32k + 1.
        aligned: whether corners are aligned.
        factor: between the maps' strides.

    Returns:
        For each fine pixel from the first coarse one to the last: coarse pixels.
    """
    fine = fine or factor * coarse
    ramp = torch.arange(coarse, dtype=torch.float64).expand(1, 1, 2, coarse)
    if aligned:
        read = resize(ramp, (2, fine))
    else:
        read = F.interpolate(ramp, size=(2, fine), mode="bilinear", align_corners=False)
    last = factor * (coarse - 1) + 1
    return (read[0, 0, 0] - torch.arange(fine) / factor)[:last].tolist()


# The JPU ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A step of the JPU. Attributes: ``name``; ``shape``, (channels, h, w) that it puts out; ``params``."""

    name: str
    shape: tuple[int, ...]
    params: int


def steps_of(jpu: JointPyramidUpsampling, sizes: Sequence[tuple[int, int]]) -> list[Step]:
    """What the JPU does to three maps, step by step (Figure 4).

    Args:
        jpu: the module, anywhere; it is left as it was.
        sizes: (h, w) of the maps, from fine to coarse.
    """
    with torch.device("meta"), torch.no_grad():
        copy = JointPyramidUpsampling(
            jpu.in_channels, jpu.out_channels // len(jpu.dilations), dilations=jpu.dilations
        ).eval()
        maps = [torch.empty(1, c, *s) for c, s in zip(jpu.in_channels, sizes, strict=True)]
        embedded = [embed(x) for embed, x in zip(copy.embed, maps, strict=True)]
        fine = embedded[0].shape[-2:]
        joined = torch.cat([resize(x, fine) for x in reversed(embedded)], dim=1)
        seen = [branch(joined) for branch in copy.branches]
        out = copy(maps)
    names = ("fine", "middle", "coarse")
    steps = [Step(f"{name} map", tuple(x.shape[1:]), 0) for name, x in zip(names, maps, strict=True)]
    steps += [
        Step(f"3x3 on the {name} one", tuple(x.shape[1:]), _params(embed))
        for name, x, embed in zip(names, embedded, copy.embed, strict=True)
    ]
    steps.append(Step("resized, concatenated", tuple(joined.shape[1:]), 0))
    steps += [
        Step(f"separable, dilation {d}", tuple(x.shape[1:]), _params(branch))
        for d, x, branch in zip(copy.dilations, seen, copy.branches, strict=True)
    ]
    return [*steps, Step("concatenated", tuple(out.shape[1:]), 0)]


def _params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@dataclass(frozen=True)
class Fitted:
    """A JPU on a backbone. Attributes: ``maps``, shapes of the backbone's three; ``out``, of the JPU's
    (channels, h, w); ``params`` of the JPU, ``gmacs`` of it; ``backbone``, the backbone's parameters."""

    maps: tuple[tuple[int, ...], ...]
    out: tuple[int, ...]
    params: int
    gmacs: float
    backbone: int


def fitted(backbone: str, *, width: int, size: tuple[int, int] = IMAGE) -> Fitted:
    """A JPU on the last three maps of a backbone that was not made for it.

    Args:
        backbone: ``"densenet"``, Ladder-DenseNet's DenseNet-121; ``"regseg"``; ``"resnet"``, the paper's 50.
        width: of the JPU.
        size: of the image.
    """
    makers = {
        "resnet": lambda: DeepStemResNet(50),
        "densenet": lambda: DenseNet(121),
        "regseg": RegSegBackbone,
    }
    with torch.device("meta"), torch.no_grad():
        network = makers[backbone]().eval()
        maps = network(torch.empty(1, 3, *size))[-3:]
        jpu = JointPyramidUpsampling([x.shape[1] for x in maps], width).eval()
        with _Work() as work:
            out = jpu(maps)
    return Fitted(
        maps=tuple(tuple(x.shape[1:]) for x in maps),
        out=tuple(out.shape[1:]),
        params=_params(jpu),
        gmacs=work.macs / 1e9,
        backbone=_params(network),
    )


# What is spent where ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spent:
    """What a part takes of one image. Attributes: ``params``; ``macs``, multiply-adds; ``kept``, bytes that
    autograd keeps of its forward pass in training, parameters and buffers apart."""

    params: int = 0
    macs: int = 0
    kept: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.params + other.params, self.macs + other.macs, self.kept + other.kept)


class _Work(TorchDispatchMode):
    """Counts multiply-adds, and runs meta tensors' operators by the kit's own kernels where it has some."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = meta.run(func, args, kwargs)
        if func.overloadpacket in flop_registry:
            self.macs += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out) // 2
        return out


def spent(network: nn.Module, parts: Mapping[str, nn.Module], size: tuple[int, int]) -> dict[str, Spent]:
    """What each part of a network takes, in one forward pass in training.

    A tensor that two parts keep counts for the one that kept it first.

    Args:
        network: on the meta device; takes images. Its mode is left as it was.
        parts: by name, of which none lies inside of another.
        size: (H, W) of the image.

    Returns:
        By name, and under ``"rest"`` all else.
    """
    own = {_address(tensor) for tensor in (*network.parameters(), *network.buffers())}
    saved: dict[int, Tensor] = {}  # holds them, so that no address is used twice
    kept: dict[str, int] = dict.fromkeys((*parts, "rest"), 0)
    macs = dict.fromkeys(kept, 0)
    at = ["rest"]

    def note(tensor: Tensor) -> Tensor:
        address = _address(tensor)
        if address not in own and address not in saved:
            saved[address] = tensor
            kept[at[-1]] += tensor.untyped_storage().nbytes()
        return tensor

    training = network.training
    with ExitStack() as stack:
        work = stack.enter_context(_Work())

        def enter(name: str) -> None:
            macs[at[-1]] += work.macs
            work.macs = 0
            at.append(name)

        def leave() -> None:
            macs[at.pop()] += work.macs
            work.macs = 0

        for name, part in parts.items():
            for hook in (
                part.register_forward_pre_hook(lambda *_, name=name: enter(name)),
                part.register_forward_hook(lambda *_: leave()),
            ):
                stack.callback(hook.remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor))
        try:
            network.train()
            network(torch.empty(BATCH, 3, *size, device="meta"))
        finally:
            network.train(training)
        macs["rest"] += work.macs
    params = {name: _params(part) for name, part in parts.items()}
    params["rest"] = _params(network) - sum(params.values())
    return {name: Spent(params[name], macs[name] // BATCH, kept[name] / BATCH) for name in kept}


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # data_ptr() is 0 on the meta device


def network(model: str, **options: Any) -> nn.Module:
    """A network on the meta device: one of the paper's, such as ``"r50-enc-jpu"``, or with an upsampling that
    the paper has not, ``"r50-enc-bilinear-late"``."""
    if f"fastfcn-{model}" in models.MODELS:
        return models.build(f"fastfcn-{model}", num_classes=CLASSES, device="meta", **options)
    backbone, head, upsampling = model.split("-", 2)
    with torch.device("meta"):
        return FastFCN(int(backbone[1:]), head=head, upsampling=upsampling, num_classes=CLASSES, **options)


PARTS = ("Conv1 to Conv3", "Conv4", "Conv5", "upsampling", "head", "auxiliary head")


@functools.cache
def by_part(model: str, **options: Any) -> dict[str, Spent]:
    """What the parts of a network take, in the order of `PARTS`.

    Args:
        model: such as ``"r50-enc-jpu"``.
        **options: of the network.
    """
    made = network(model, **options)
    backbone = made.backbone
    found = spent(
        made,
        {
            "Conv4": backbone.layer3,
            "Conv5": backbone.layer4,
            "upsampling": made.up,
            "head": made.head,
            "auxiliary head": made.aux["fcn"],
            **{
                f"early {i}": part for i, part in enumerate((backbone.stem, backbone.layer1, backbone.layer2))
            },
        },
        IMAGE,
    )
    early = sum((found.pop(f"early {i}") for i in range(3)), found.pop("rest"))
    return {"Conv1 to Conv3": early, **{part: found[part] for part in PARTS[1:]}}


def whole(model: str, **options: Any) -> Spent:
    """What a network takes in all; arguments as for `by_part`."""
    return sum(by_part(model, **options).values(), Spent())


@dataclass(frozen=True)
class Block:
    """A residual block of Conv4 or Conv5, dilated and strided. Attributes: ``stage``, ``number`` from 0;
    ``dilated`` and ``strided``, what it takes."""

    stage: str
    number: int
    dilated: Spent
    strided: Spent


@functools.cache
def blocks(backbone: str = "r101") -> list[Block]:
    """The residual blocks of Conv4 and Conv5 of both backbones, in order."""
    found = []
    for upsampling in ("none", "jpu"):
        with torch.device("meta"):
            resnet = DeepStemResNet(int(backbone[1:]), dilated=upsampling == "none")
        parts = {
            (stage, i): block
            for stage, layer in (("Conv4", resnet.layer3), ("Conv5", resnet.layer4))
            for i, block in enumerate(layer.children())
        }
        found.append(spent(resnet, parts, IMAGE))
    dilated, strided = found
    return [Block(*key, dilated[key], strided[key]) for key in dilated if key != "rest"]


@dataclass(frozen=True)
class Peak:
    """The peak of a simulated training step. Attributes: ``total`` bytes; ``by_kind``, see
    `segkit.measure.peak.PeakMemory`."""

    total: int
    by_kind: dict[str, int]


@functools.cache
def peak(model: str, batch_size: int = PER_GPU, size: tuple[int, int] = CROP) -> Peak:
    """The peak of a step of SGD with momentum, by default with one GPU's share of the paper's batch."""
    found = peak_memory(network(model), batch_size, size, optimizer="sgd")
    return Peak(found.total, dict(found.by_kind))


# The ablation -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of Table 2, and of Table 1 where that has it.

    Attributes:
        backbone, head, upsampling: as in the names of the networks.
        spent: what the network takes of one image.
        peak: of a training step.
        fps: printed frames per second.
        pixacc, miou: printed percent; None with ResNet-101, which Table 1 has not.
        median: seconds of a pass on one thread, as `segkit.bench jpu` measured; None where it has not.
    """

    backbone: str
    head: str
    upsampling: str
    spent: Spent
    peak: Peak
    fps: float
    pixacc: float | None
    miou: float | None
    median: float | None


def ablation(claims: Ledger, *, folder: Path = MEASURED) -> list[Row]:
    """The rows of Table 2, ours beside the paper's.

    Args:
        claims: FastFCN's.
        folder: where `segkit.bench jpu` wrote how long they take.
    """
    known = {claim.id: claim.value for claim in claims}
    timed = records.read("jpu.json", folder) or {"rows": ()}
    medians = {row["model"].removeprefix("fastfcn-"): row["median"] for row in timed["rows"]}
    rows = []
    for backbone in bench.BACKBONES:
        for head in HEADS:
            for upsampling in UPSAMPLINGS:
                key = f"{backbone}-{head}-{upsampling}"
                fps = known.get(f"fastfcn.table2.{key}.fps")
                if fps is None:
                    continue
                printed = [
                    known.get(f"fastfcn.table1.{head}-{upsampling}.{column}") if backbone == "r50" else None
                    for column in ("pixacc", "miou")
                ]
                rows.append(
                    Row(backbone, head, upsampling, whole(key), peak(key), fps, *printed, medians.get(key))
                )
    return rows


def ablation_table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [
        f"{'':<26}{'ours, of a 512x512 image':^40}{'step':>8}{'paper':>9}",
        f"{'backbone, head, upsampling':<26}{'parameters':>12}{'GMAC':>9}{'kept MiB':>11}{'CPU s':>8}"
        f"{'GiB':>8}{'FPS':>9}{'pixAcc %':>10}{'mIoU %':>8}",
    ]
    for row in rows:
        name = f"{row.backbone.upper():<5}{HEAD_NAMES[row.head]:<9}{PAPERS_NAMES[row.upsampling]}"
        printed = "".join(
            f"{value:>{room}.2f}" if value is not None else " " * room
            for value, room in ((row.pixacc, 10), (row.miou, 8))
        )
        seconds = f"{row.median:>8.2f}" if row.median is not None else f"{'-':>8}"
        lines.append(
            (
                f"{name:<26}{row.spent.params:>12,}{row.spent.macs / 1e9:>9.2f}{row.spent.kept / MIB:>11.0f}"
                f"{seconds}{row.peak.total / GIB:>8.2f}{row.fps:>9.2f}{printed}"
            ).rstrip()
        )
    return "\n".join(lines)


def times_less(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """How many times less the JPU's networks take than the dilated ones, by measure, by backbone and head.

    The last measure is the paper's: how many times more frames per second.
    """
    by_name = {(row.backbone, row.head, row.upsampling): row for row in rows}
    pairs = {
        f"{backbone.upper()} {HEAD_NAMES[head]}": (row, by_name[backbone, head, "jpu"])
        for (backbone, head, upsampling), row in by_name.items()
        if upsampling == "none"
    }
    measures = {
        "parameters": lambda a, b: a.spent.params / b.spent.params,
        "multiply-adds": lambda a, b: a.spent.macs / b.spent.macs,
        "activations kept": lambda a, b: a.spent.kept / b.spent.kept,
        "peak of a step": lambda a, b: a.peak.total / b.peak.total,
        "printed FPS": lambda a, b: b.fps / a.fps,
    }
    return {
        measure: {name: ratio(*pair) for name, pair in pairs.items()} for measure, ratio in measures.items()
    }


# Times --------------------------------------------------------------------------------------------


def pair_times(
    group: str = "r50-enc", *, size: tuple[int, int] = (192, 192), rounds: int = 3
) -> dict[str, Latency]:
    """A dilated network and that with a JPU in turns, on one thread, by the processor's time.

    `segkit.bench.jpu` measures the whole of Table 2, at its size.

    Args:
        group: backbone and head.
        size: of the image.
        rounds: timed passes of each.
    """
    with threads(1):
        return bench.measure(group, ("none", "jpu"), size, rounds=rounds, warmup=0, clock=time.process_time)


def recorded(folder: Path = MEASURED) -> str:
    """What ``python -m segkit.bench jpu`` measured last, as lines of text; without it, how to measure."""
    lines = []
    for name in ("jpu.json", "jpu_cuda.json"):
        result = records.read(name, folder)
        if result is None:
            continue
        lines.append(f"{result['command']}: {records.where(result)}")
        for row in result["rows"]:
            paper = row["paper_speed_ratio"]
            lines.append(
                f"{row['model'].removeprefix('fastfcn-'):<16}{1e3 * row['median']:9.1f} ms, speed "
                f"{row['speed_ratio']:.2f}" + (f", paper {paper:.2f}" if paper else "")
            )
    if not lines:
        return "not measured on a quiet machine yet: python -m segkit.bench jpu --out data/measured"
    return "\n".join(lines)


# Runs ---------------------------------------------------------------------------------------------


def setting(upsampling: str, *, dataset: str = "streets", width: int = 8, **changes: Any) -> Recipe:
    """One recipe for all upsamplings: FastFCN's, as small as streets is, or as large as Pascal Context.

    The Encoding head on a ResNet-50 from random weights. On streets the learning rate is twice the recipe's,
    for networks that are narrower and learn more slowly.

    Args:
        upsampling: one of the paper's.
        dataset: "streets" or "pascal_context".
        width: of the network; the paper's is 64.
        **changes: further fields of the recipe.

    Raises:
        ValueError: for another upsampling.
    """
    if upsampling not in UPSAMPLINGS:
        raise ValueError(f"upsampling={upsampling!r}: choose {', '.join(map(repr, UPSAMPLINGS))}.")
    base, own = (
        ("fastfcn_streets", {"learning_rate": 0.02}) if dataset == "streets" else ("fastfcn_pcontext", {})
    )
    own |= {
        "model": f"fastfcn-r50-enc-{upsampling}",
        "model_options": {"width": width},
        "weights": "none",
        "val_every": 10_000,  # the last epoch alone, and that by `at_boundaries`
    }
    return recipe(base, **(own | changes))


@dataclass(frozen=True, eq=False)
class Scores:
    """How a trained network does.

    Attributes:
        evaluation: on whole images.
        trimap: mIoU by distance in pixels from a boundary of the truth.
        share: of the pixels so near.
        predictions: of the first images, classes (H, W).
    """

    evaluation: Evaluation
    trimap: dict[int, float]
    share: dict[int, float]
    predictions: tuple[Tensor, ...]


def at_boundaries(
    model: nn.Module, dataset: Any, *, widths: Sequence[int] = WIDTHS, shown: int = 1, **options: Any
) -> Scores:
    """Scores a network near the boundaries of the truth, and everywhere, in one pass.

    Args:
        model: the network.
        dataset: images with labels.
        widths: distances from a boundary, px.
        shown: how many predictions to keep.
        **options: of `segkit.evaluation.inference.evaluate`.
    """
    bands = TrimapIoU(dataset.space.num_classes, widths, ignore_index=dataset.space.ignore_index)
    predictions: list[Tensor] = []

    def on_image(sample: Mapping[str, Any], prediction: Tensor) -> None:
        bands.update(prediction[None].cpu(), torch.as_tensor(sample["labels"])[None].cpu())
        if len(predictions) < shown:
            predictions.append(prediction.cpu())

    found = evaluate(model, dataset, on_image=on_image, **options)
    return Scores(found, bands.miou(), bands.share(), tuple(predictions))
