"""RegSeg taken apart, for notebook 06: blocks, decoders, sampling, and how far equal runs are apart.

"Rethink Dilated Convolution for Real-time Semantic Segmentation", Gao, Sections 3 and 4.
"""

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import tv_tensors

from segkit import models
from segkit.bench import dblock
from segkit.data.class_uniform import Centroids, ClassShares, class_shares
from segkit.data.sampling import Augmented, EpochBatches, read_labels
from segkit.data.transforms import RandomInnerCrop
from segkit.measure import Latency, cost
from segkit.measure.latency import compared, interleaved
from segkit.models.regseg import DILATIONS, DBlock, RegSeg
from segkit.notebook import records
from segkit.notebook.records import MEASURED
from segkit.papers import Ledger
from segkit.training import Recipe, Run, recipe
from segkit.training.schedules import poly, warmup

IMAGE = (1024, 2048)  # Section 4.7: an image of Cityscapes

# The D block --------------------------------------------------------------------------------------


@torch.no_grad()
def footprints(block: DBlock, *, size: int = 15) -> dict[int, Tensor]:
    """Where the branches of a block put what comes in at one pixel.

    Args:
        block: its 3x3 convolutions are looked at, with their weights as they are.
        size: height and width of the maps; the pixel is in the middle.

    Returns:
        By dilation: (size, size), the mean over the branch's channels of the absolute response.
    """
    found = {}
    for conv in block.branches:
        x = torch.zeros(1, conv.in_channels, size, size)
        x[..., size // 2, size // 2] = 1
        found[conv.dilation[0]] = conv(x)[0].abs().mean(0)
    return found


def table_1() -> dict[str, tuple[int, int, float]]:
    """Table 1's blocks: parameters, multiply-adds on its 1x256x64x128 input, and the printed milliseconds."""
    found = {}
    for name, (dilations, printed) in dblock.TABLE_1.items():
        with torch.device("meta"):
            block = dblock.branched(dblock.y_block(), dilations)
        found[name] = (sum(p.numel() for p in block.parameters()), _macs(block), printed)
    return found


def _macs(block: DBlock) -> int:
    """Multiply-adds of a block on Table 1's maps."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        block.eval()(torch.empty(1, dblock.WIDTH, *dblock.MAPS, device="meta"))
    return counter.get_total_flops() // 2


@contextmanager
def threads(count: int = 1) -> Iterator[None]:
    """Computes on so many threads of the CPU for as long as this lasts.

    The layers here are small: on a busy machine two threads wait for each other longer than they compute.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def block_times(*, maps: tuple[int, int] = (32, 64), rounds: int = 9) -> dict[str, Latency]:
    """Table 1's blocks timed on one thread of the CPU, in eval mode and in turns; ratios are to the Y block.

    Args:
        maps: (h, w) of the 256 maps; Table 1 has 64x128.
        rounds: timed passes of each.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        y = dblock.y_block()
        x = torch.randn(1, dblock.WIDTH, *maps).relu_()
    way = dblock.WAYS[dblock.PLAIN]
    blocks = {name: (way, dblock.branched(y, d)) for name, (d, _) in dblock.TABLE_1.items()}
    with threads(1):  # whose time other programs disturb less than that of the clock on the wall
        times, _ = dblock.time_all(
            blocks,
            x,
            training=False,
            rounds=rounds,
            warmup=2,
            precision="fp32",
            clock=time.process_time,
        )
    return compared(times)


def recorded_blocks(folder: Path = MEASURED) -> str:
    """What ``python -m segkit.bench dblock`` measured last, as lines of text; without it, how to measure."""
    result = records.read("dblock.json", folder)
    if result is None:
        return "not measured on a quiet machine yet: python -m segkit.bench dblock --out data/measured"
    lines = [f"{result['command']}: {records.where(result)}"]
    lines += [
        f"{row['block']:<16} {1e3 * row['eval']['median']:6.1f} ms, ratio {row['eval']['ratio']:.2f}, "
        f"paper {row['paper_ratio']:.1f}"
        for row in result["table1"]
    ]
    return "\n".join(lines)


# The network --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operator:
    """A row of Table 2.

    Attributes:
        name: of the operator.
        dilations: of its branches; empty where there are none.
        stride: of the first of them.
        channels: that it puts out.
        repeat: how many follow each other.
        params: of all of them.
    """

    name: str
    dilations: tuple[int, ...]
    stride: int
    channels: int
    repeat: int
    params: int


def assembly(model: RegSeg) -> list[Operator]:
    """The operators of a RegSeg in order, equal ones that follow each other in one row, the decoder last.

    A block of stride 1 whose dilations are all 1 is listed with one of them: nothing in it is split.
    """
    backbone = model.backbone
    rows = [_operator("3x3 conv", (), backbone.stem[0], backbone.stem)]
    for stage in (backbone.stage4, backbone.stage8, backbone.stage16):
        for block in stage:
            dilations = tuple(conv.dilation[0] for conv in block.branches)
            row = _operator("D block", dilations, block.branches[0], block, block.conv3[0].out_channels)
            last = rows[-1]
            if (row.dilations, row.stride, row.channels) == (last.dilations, 1, last.channels):
                rows[-1] = Operator(
                    row.name,
                    row.dilations,
                    last.stride,
                    row.channels,
                    last.repeat + 1,
                    last.params + row.params,
                )
            else:
                rows.append(row)
    decoder = sum(p.numel() for p in model.decoder.parameters())
    return [*rows, Operator("decoder", (), 1, model.num_classes, 1, decoder)]


def _operator(name: str, dilations: tuple[int, ...], conv: nn.Conv2d, part: nn.Module, channels: int = 0):
    params = sum(p.numel() for p in part.parameters())
    return Operator(name, dilations, conv.stride[0], channels or conv.out_channels, 1, params)


def assembly_table(rows: Sequence[Operator]) -> str:
    """Table 2 with a column of parameters, and their sum."""
    lines = [f"{'operator':<10}{'dilations':>10}{'stride':>8}{'channels':>10}{'repeat':>8}{'parameters':>13}"]
    for row in rows:
        dilations = ",".join(map(str, row.dilations)) or "-"
        lines.append(
            f"{row.name:<10}{dilations:>10}{row.stride:>8}{row.channels:>10}{row.repeat:>8}{row.params:>13,}"
        )
    total = sum(row.params for row in rows)
    return "\n".join([*lines, f"{'all':<10}{total:>49,}"])


def conventions() -> dict[str, dict[str, float]]:
    """G multiply-adds of RegSeg and DDRNet-23 on one image, counted in the two ways of Tables 9 and 10."""
    return {
        label: {
            way: cost(models.build(name, device="meta"), IMAGE, convention=way).macs / 1e9
            for way in ("conv", "fvcore")
        }
        for label, name in (("RegSeg", "regseg"), ("DDRNet-23", "ddrnet23"))
    }


# Table 5's rows from the best to the worst: the kit's decoder, its name here, its row in the ledger.
DECODERS = {
    "regseg": ("Sec. 3.4", "regseg"),
    "sum3x3": ("sum+3x3", "sum3x3"),
    "concat-yblock": ("concat+Y block", "concat-yblock"),
    "concat3x3": ("concat+3x3", "concat3x3"),
    "sum1x1": ("sum+1x1", "concat1x1"),  # so in the author's code and log; "concat+1x1" in the paper
    "lraspp": ("LRASPP", "lraspp"),
    "sfnet": ("SFNet", "sfnet"),
    "bisenet": ("BiSeNet", "bisenet"),
}


@dataclass(frozen=True)
class Decoder:
    """Attributes: ``params`` of the decoder alone; ``gmacs``, G multiply-adds of convolutions of the whole
    network on one image; ``score``, the printed mIoU^R in percent."""

    params: int
    gmacs: float
    score: float


def decoder_network(decoder: str, *, device: str | None = None) -> nn.Module:
    """Table 5's network: the backbone of Table 4's row 2 and one of `DECODERS`."""
    return models.build("regseg", dilations=DILATIONS[2], decoder=decoder, device=device)


def decoders(claims: Ledger) -> dict[str, Decoder]:
    """Table 5's decoders by their names here."""
    found = {}
    for decoder, (label, row) in DECODERS.items():
        model = decoder_network(decoder, device="meta")
        found[label] = Decoder(
            params=sum(p.numel() for p in model.decoder.parameters()),
            gmacs=cost(model, IMAGE).macs / 1e9,
            score=claims[f"regseg.table5.{row}.reduced"].value,
        )
    return found


def decoder_times(size: tuple[int, int] = (128, 256), *, rounds: int = 5) -> dict[str, Latency]:
    """Table 5's networks timed on one thread of the CPU, in turns; ratios are to the paper's decoder.

    As `segkit.measure.latency` times them, but by the processor's time, which other programs disturb less.

    Args:
        size: of the image, (H, W).
        rounds: timed passes of each.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {label: decoder_network(name).eval() for name, (label, _) in DECODERS.items()}
        images = torch.randn(1, 3, *size)
    with threads(1), torch.inference_mode():
        calls = {label: partial(network, images) for label, network in networks.items()}
        return compared(interleaved(calls, rounds=rounds, warmup=1, clock=time.process_time))


# Sampling and schedule ----------------------------------------------------------------------------


class LabelMaps(Dataset):
    """The label maps of a data set, kept in memory: samples without images, for what labels alone decide."""

    def __init__(self, dataset: Any) -> None:
        self.space, self.split, self.names = dataset.space, dataset.split, dataset.names
        self._maps = [tv_tensors.Mask(read_labels(dataset, i)) for i in range(len(dataset))]

    def __len__(self) -> int:
        return len(self._maps)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"labels": self._maps[index], "name": self.names[index]}

    def label_map(self, index: int) -> Tensor:
        """The labels (H, W) of a sample."""
        return self._maps[index]


def sampled(
    maps: LabelMaps, centroids: Centroids, share: float, crop: int, *, epochs: int = 8, seed: int = 0
) -> ClassShares:
    """How often classes come up in random crops of an epoch, the mean over some epochs.

    Args:
        maps: what is drawn from.
        centroids: of the same maps.
        share: of the samples that are drawn class by class.
        crop: height and width, pixels; images are not resized first.
        epochs: so many.
        seed: of their order and crops.
    """
    augmented = Augmented(maps, RandomInnerCrop((crop, crop)))

    def crops() -> Iterator[dict[str, Tensor]]:
        for epoch in range(epochs):
            for keys in EpochBatches(
                len(maps), batch_size=1, seed=seed, epoch=epoch, centroids=centroids, share=share
            ):
                yield {"labels": augmented[keys[0]]["labels"].as_subclass(Tensor)[None]}

    with threads(1):
        return class_shares(crops(), maps.space.num_classes)


def rates(how: Recipe, batches: int, steps: Sequence[int]) -> list[float]:
    """The learning rate of a recipe that has a poly schedule, at some of its steps.

    Args:
        how: the recipe.
        batches: steps of an epoch.
        steps: which, from 0.
    """
    total = how.epochs * batches
    return [
        how.learning_rate
        * poly(step, total, power=how.poly_power)
        * warmup(step, how.warmup_steps, factor=how.warmup_factor)
        for step in steps
    ]


# Runs ---------------------------------------------------------------------------------------------

# What the three networks have in common is the recipe; they differ by this alone.
NETWORKS: dict[str, dict[str, Any]] = {
    "D blocks": {},
    "Y blocks": {"model_options": {"dilations": [[1]] * len(DILATIONS[1])}},
    "DDRNet-23": {"model": "ddrnet23"},
}


# What a run on streets has of its own: smaller pictures than the paper's, and few steps.
SMALL: dict[str, Any] = {
    "dataset_options": {"size": (128, 256), "train": 64, "val": 16},
    "short_side": (64, 192),  # about the paper's share of the height
    "crop": (96, 96),  # 3/4 of the height, as the paper's
    "warmup_steps": 4,
}


def setting(network: str, *, dataset: str = "streets", **changes: Any) -> Recipe:
    """One recipe for all three networks: RegSeg's, as small as streets is, or as large as Cityscapes.

    Nothing is measured on the way. Order and augmentation are the same with every ``seed`` (Section 4.3).

    Args:
        network: a key of `NETWORKS`.
        dataset: "streets" or "cityscapes".
        **changes: further fields of the recipe.

    Raises:
        ValueError: for another network.
    """
    if network not in NETWORKS:
        raise ValueError(f"network={network!r}: choose {', '.join(map(repr, NETWORKS))}.")
    base, own = ("regseg_streets", SMALL) if dataset == "streets" else ("regseg_cityscapes_ablation", {})
    return recipe(base, **{"val_split": "", **own, **NETWORKS[network], **changes})


def same_bits(one: Run, other: Run) -> bool:
    """Whether two runs had the same loss in each step and ended with the same weights, to the last bit."""
    losses = [[step["loss"] for step in run.steps] for run in (one, other)]
    mine, theirs = one.model.state_dict(), other.model.state_dict()
    return losses[0] == losses[1] and all(torch.equal(mine[name], theirs[name]) for name in mine)


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Means of so many values that follow each other; the first stands for the first ``window`` of them."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(b - a) / window for a, b in zip(sums, sums[window:], strict=False)]


def scores(runs: Sequence[Run]) -> dict[str, list[float]]:
    """Score by name, one value a run: the IoU of each class that is in the truth, mIoU and reduced mIoU."""
    found: dict[str, list[float]] = {}
    for run in runs:
        result = run.evaluation
        there = result.matrix.sum(1) > 0
        for name, iou, seen in zip(result.space.classes, result.iou.tolist(), there.tolist(), strict=True):
            if seen:
                found.setdefault(name, []).append(iou)
        found.setdefault("mIoU", []).append(result.miou)
        found.setdefault("mIoU^R", []).append(result.reduced_miou)
    return found


# What a difference proves -------------------------------------------------------------------------


def table_3(claims: Ledger) -> dict[str, list[float]]:
    """Table 3 by column, in percent, one value for each of its four runs."""
    columns = {"truck": "truck", "bus": "bus", "train": "train", "mIoU": "miou", "mIoU^R": "reduced"}
    return {
        label: [claims[f"regseg.table3.run-{run}.{column}"].value for run in range(1, 5)]
        for label, column in columns.items()
    }


def table_10(claims: Ledger) -> dict[str, list[float]]:
    """The three runs behind each mean of Table 10, mIoU in percent, from the author's logs."""
    return {
        label: list(claims[f"regseg.table10.{row}.spread"].how["runs"])
        for label, row in (("RegSeg", "regseg"), ("DDRNet-23", "ddrnet"))
    }


@dataclass(frozen=True)
class Comparison:
    """Two groups of runs compared by Welch's test, which does not take their deviations to be equal.

    Attributes:
        difference: of the means.
        t: difference over its standard error.
        df: degrees of freedom (Welch and Satterthwaite).
        p: how often a difference at least as large, either way, would come from two groups of one mean.
        interval: of 95 % for the difference.
    """

    difference: float
    t: float
    df: float
    p: float
    interval: tuple[float, float]


def welch(a: Sequence[float], b: Sequence[float]) -> Comparison:
    """Compares the means of two groups of runs.

    Args:
        a: at least two values that are not all equal.
        b: likewise.

    Raises:
        ValueError: if a group has fewer values, or neither has any spread.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"groups of {len(a)} and {len(b)}: a spread takes at least two values each.")
    parts = [statistics.variance(group) / len(group) for group in (a, b)]
    error = math.sqrt(sum(parts))
    if not error:
        raise ValueError("neither group has any spread, so there is nothing to hold the difference against.")
    df = sum(parts) ** 2 / sum(part**2 / (len(group) - 1) for part, group in zip(parts, (a, b), strict=True))
    difference = statistics.fmean(a) - statistics.fmean(b)
    half = error * _t_of(0.05, df)
    t = difference / error
    return Comparison(difference, t, df, student_p(t, df), (difference - half, difference + half))


def student_p(t: float, df: float) -> float:
    """Two-sided probability of a t at least this far from 0, of Student's distribution.

    With t = sqrt(df) tan(a) its density is cos(a)^(df - 1) up to a factor: smooth, and on a finite range.

    Args:
        t: any number.
        df: degrees of freedom, at least 1.

    Raises:
        ValueError: for fewer degrees of freedom.
    """
    if not df >= 1:
        raise ValueError(f"df={df}: at least 1 degree of freedom is needed.")
    steps = 4000  # midpoints; the error is far below 1e-6
    start = math.atan(abs(t) / math.sqrt(df))
    end = min(math.pi / 2, start + 40 / math.sqrt(df))  # beyond it there is nothing: exp(-800)
    width = (end - start) / steps
    area = width * sum(math.cos(start + (i + 0.5) * width) ** (df - 1) for i in range(steps))
    factor = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
    return 2 * factor * area


def _t_of(p: float, df: float) -> float:
    """The t that has a two-sided probability of p."""
    low, high = 0.0, 1.0
    while student_p(high, df) > p:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, df) > p else (low, middle)
    return high
