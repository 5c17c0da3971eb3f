"""DenseASPP taken apart, for notebook 07: fields and holes of heads, objects by size, what layers are for.

"Semantic Segmentation with DenseASPP", Tepliashin, Paltov and Smirnov, Sections 4.1, 5.2 and 5.3. A cell is a
place of the head's own grid, 8 pixels of the image; K = classes, N = objects, n = atrous layers.
"""

import logging
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit import models
from segkit.data.labels import LabelSpace
from segkit.data.transforms import normalize
from segkit.evaluation.inference import load_model
from segkit.evaluation.metrics import FIRST_INSTANCE_ID, ConfusionMatrix
from segkit.measure import cost
from segkit.measure.receptive_field import ReceptiveField, receptive_field
from segkit.models.blocks import upsample
from segkit.models.denseaspp_student import (
    AtrousPyramid,
    DenselyConnectedASPP,
    ParallelASPP,
    StudentDenseASPP,
)
from segkit.notebook import records
from segkit.notebook.records import MEASURED
from segkit.papers import Ledger
from segkit.training import Recipe, recipe

PARALLEL = (6, 12, 18, 24)  # ASPP's rates
BEST = (3, 6, 12, 18, 24)  # Section 4.2: the head of model #4
FILLED = (1, 3, 8, 24, 27)  # ours: BEST's field without a hole
CELL = 8  # px
WEIGHTS = records.WEIGHTS / "denseaspp_streets.pt"
TRAIN = (
    "python -m segkit.train denseaspp_streets --dataset-options size=256x512 train=256 val=32 num_classes=20 "
    "--crop 256x512 --flip 0.5 --scale 0.75,1.5 --learning-rate 0.002 --exact-batchnorm --epochs 8 "
    "--val-every 4 --device cpu --out-dir runs/denseaspp_field"
)
SHIP = "python -m segkit.training.export runs/denseaspp_field data/weights/denseaspp_streets.pt"

# What a head sees ---------------------------------------------------------------------------------


def scales(dilations: Sequence[int]) -> list[int]:
    """The distinct fields of all ways through densely connected 3x3 layers, ascending, in cells.

    A way takes some of the layers and jumps over the others: 1 + 2 times the sum of their dilations
    (Section 4.1: R = (d - 1)(K - 1) + K and K = K1 + K2 - 1). The way that takes none sees one cell.

    Args:
        dilations: of the layers.
    """
    sums = {0}
    for dilation in dilations:
        sums |= {known + dilation for known in sums}
    return sorted(1 + 2 * total for total in sums)


def parallel_scales(dilations: Sequence[int]) -> list[int]:
    """The distinct fields of 3x3 layers side by side and of the input beside them, ascending, in cells."""
    return sorted({1, *(1 + 2 * dilation for dilation in dilations)})


@dataclass(frozen=True)
class Head:
    """What a head sees of its own grid, found by probing it.

    Attributes:
        dilations: of its 3x3 layers, from the input on.
        dense: whether they are connected densely, or side by side.
        taps: field of each layer's output, cells.
        mask: cells of the whole head's field that are touched, bool (size, size).
        scales: distinct fields of all ways through it, cells; the first is the input, handed on as it is.
    """

    dilations: tuple[int, ...]
    dense: bool
    taps: tuple[int, ...]
    mask: Tensor
    scales: tuple[int, ...]

    @property
    def size(self) -> int:
        """The whole field, cells."""
        return len(self.mask)

    @property
    def coverage(self) -> float:
        """Share of the field that is touched, 0 to 1."""
        return self.mask.double().mean().item()


def head(dilations: Sequence[int], *, dense: bool = True) -> Head:
    """Probes a head of the kit with these dilations; its widths do not matter here.

    Args:
        dilations: of its 3x3 layers, increasing.
        dense: `DenselyConnectedASPP`, or else `ParallelASPP`.
    """
    kind = DenselyConnectedASPP if dense else ParallelASPP
    with torch.device("meta"):
        module = _Taps(kind(1, dilations=tuple(dilations), growth=1))
    taps = [receptive_field(module, channels=1, output=i + 1) for i in range(len(dilations))]
    whole = receptive_field(module, channels=1, output=lambda maps: torch.cat(maps, 1))
    ways = scales(dilations) if dense else parallel_scales(dilations)
    return Head(tuple(dilations), dense, tuple(seen.size[0] for seen in taps), whole.mask, tuple(ways))


class _Taps(nn.Module):
    def __init__(self, module: AtrousPyramid) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.module.taps(x)


def taps_inside(dilation: int, grid: tuple[int, int]) -> float:
    """The share of a 3x3 layer's taps that fall into a grid, over all of its cells; the others read padding.

    Args:
        dilation: of the layer.
        grid: (h, w), cells.
    """
    along = [(1 + 2 * max(0, 1 - dilation / side)) / 3 for side in grid]
    return along[0] * along[1]


def filled_up(mask: Tensor, sides: Iterable[int]) -> list[float]:
    """The share of a field that is touched once each cell of the head's grid has seen a square below.

    Args:
        mask: of the head, bool (size, size).
        sides: of that square, cells, odd.

    Returns:
        For each side: the share of the field that head and square have together, 0 to 1.
    """
    found = []
    for side in sides:
        reach = side // 2
        around = F.pad(mask[None, None].double(), 4 * [2 * reach])
        found.append(F.max_pool2d(around, 2 * reach + 1, 1).mean().item())
    return found


class _Step(nn.Module):
    """A part of a model as a network of its own: its features, or its logits before they are upsampled."""

    def __init__(self, model: StudentDenseASPP, *, features: bool) -> None:
        super().__init__()
        self.model, self.features = model, features

    def forward(self, x: Tensor) -> Tensor:
        return self.model.features(x) if self.features else self.model(x, full_size=False)["out"]


def image_field(model: StudentDenseASPP, *, features: bool = False) -> ReceptiveField:
    """What a cell of a model's logits sees of the image, px.

    Args:
        model: on any device, the meta device included.
        features: what the features see that its head is given, instead.
    """
    return receptive_field(_Step(model, features=features))


# Table 1 ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Student:
    """A row of Table 1.

    Attributes:
        number: of the model.
        head: its head.
        channels: c0, maps of the features.
        growth: maps that each layer adds.
        squeeze: maps that the 1x1 convolution before each layer puts out; None for none.
        classes: of the classifier.
        params: trained parameters: head and classifier.
        gmacs: multiply-adds in 1e9 of the whole network on one image of its own size.
        image_size: (H, W), px.
        train: printed mIoU on the training set, %.
        val: printed mIoU on the validation set, %.
    """

    number: int
    head: Head
    channels: int
    growth: int
    squeeze: int | None
    classes: int
    params: int
    gmacs: float
    image_size: tuple[int, int]
    train: float
    val: float


SIZES = {1: (224, 224), 2: (224, 224), 3: (512, 512), 4: (512, 1024), 5: (512, 1024)}  # Table 1


def table_1(claims: Ledger) -> dict[str, Student]:
    """Table 1's five models, by name (#1 to #5), on the meta device."""
    found = {}
    for number, size in SIZES.items():
        model = models.build(
            f"denseaspp-student{number}", num_classes=19 if number == 5 else 20, device="meta"
        )
        layer = model.head.layers[0]
        found[f"#{number}"] = Student(
            number=number,
            head=head(model.head.dilations),
            channels=model.channels,
            growth=model.head.growth,
            squeeze=layer.reduce.out_channels if layer.reduce is not None else None,
            classes=model.num_classes,
            params=sum(p.numel() for p in model.parameters() if p.requires_grad),
            gmacs=cost(model, size).macs / 1e9,
            image_size=size,
            train=claims[f"denseaspp.table1.{number}.train"].value,
            val=claims[f"denseaspp.table1.{number}.val"].value,
        )
    return found


# The trained network ------------------------------------------------------------------------------


def trained(path: str = "") -> tuple[StudentDenseASPP, LabelSpace]:
    """A trained network, in eval mode, and what its classes are.

    Args:
        path: a checkpoint of `segkit.train` or `segkit.training.export`; empty for the one that ships.

    Raises:
        FileNotFoundError: if it is missing; the message says how to make it.
        TypeError: if it is a checkpoint of another network.
        ValueError: if it is no checkpoint.
    """
    file = records.weights(path, WEIGHTS, f"{TRAIN}\n  {SHIP}")
    model, space = load_model(file)
    if not isinstance(model, StudentDenseASPP):
        raise TypeError(
            f"{file.name} holds a {type(model).__name__}; this notebook takes a StudentDenseASPP."
        )
    return model, space


def prepared(image: Tensor, model: nn.Module) -> Tensor:
    """A picture uint8 (3, H, W) as the model takes it: float (1, 3, H, W), normalized."""
    mean, std = getattr(model, "image_mean", None), getattr(model, "image_std", None)
    known = {"mean": mean, "std": std} if mean and std else {}
    return normalize(image.as_subclass(Tensor)[None], **known)


# Heads on a frozen backbone -----------------------------------------------------------------------

# What is trained on the features of one frozen backbone: dilations, and how the layers are connected.
HEADS: dict[str, tuple[tuple[int, ...], str]] = {
    "ASPP": (PARALLEL, "parallel"),
    "DenseASPP": (BEST, "dense"),
    "holes filled": (FILLED, "dense"),
}


def with_new_head(backbone: StudentDenseASPP, name: str, *, seed: int = 0) -> StudentDenseASPP:
    """A network with another one's backbone, frozen, and a head of `HEADS` with fresh weights.

    Args:
        backbone: the network whose backbone is copied, with its weights.
        name: of the head.
        seed: of its weights.
    """
    dilations, kind = HEADS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = StudentDenseASPP(
            num_classes=backbone.num_classes,
            dilations=dilations,
            growth=16,
            squeeze=64,
            backbone=backbone.backbone_name,
            head=kind,
        )
    model.backbone.load_state_dict(backbone.backbone.state_dict())
    return model


def on_imagenet(num_classes: int) -> StudentDenseASPP:
    """The paper's backbone: DenseNet-121 with ImageNet weights, frozen, below a head that knows nothing yet.

    Raises:
        RuntimeError: if the weights cannot be had; says how to go on.
    """
    return models.build(
        "denseaspp-student4", num_classes=num_classes, growth=16, squeeze=64, weights="imagenet"
    ).eval()


def head_recipe(size: tuple[int, int], **changes: Any) -> Recipe:
    """How a head is trained on `streets` in a few steps, on whole pictures that never change.

    Args:
        size: (H, W) of the pictures, px.
        **changes: further fields of the recipe.
    """
    own = {
        "dataset_options": {"size": size, "train": 64, "val": 16, "num_classes": 20},
        "crop": size,
        "batch_size": 8,
        "val_split": "",
    }
    return recipe("denseaspp_streets", **{**own, **changes})


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps what training has to say, such as how much room features take, out of a notebook; errors stay."""
    log = logging.getLogger("segkit")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def recorded_features(folder: Path = MEASURED) -> str:
    """What ``python -m segkit.bench features`` measured last, in lines; without it, how to measure."""
    result = records.read("features.json", folder)
    if result is None:
        return "not measured on a quiet machine yet: python -m segkit.bench features --out data/measured"
    size = "x".join(map(str, result["image_size"]))
    lines = [f"{result['command']}: {records.where(result)}, {result['model']}, {size}"]
    lines += [f"{name:<20} {row['median']:7.2f} s an epoch" for name, row in result["epoch"].items()]
    lines += [
        f"{result['faster']:.2f} times as fast; the multiply-adds promise {result['macs']['promised']:.2f}"
    ]
    return "\n".join(lines)


# Similarity (Section 5.2) -------------------------------------------------------------------------


def similarity(maps: Tensor, cell: tuple[int, int]) -> Tensor:
    """The cosine between the features of one cell and those of every cell.

    Args:
        maps: features (C, h, w).
        cell: row and column.

    Returns:
        (h, w), from -1 to 1; 1 at the cell itself.

    Raises:
        ValueError: if there is no such cell.
    """
    rows, columns = maps.shape[-2:]
    if not (0 <= cell[0] < rows and 0 <= cell[1] < columns):
        raise ValueError(f"cell={cell!r}: the maps have rows 0 to {rows - 1}, columns 0 to {columns - 1}.")
    unit = F.normalize(maps, dim=0)
    return torch.einsum("chw,c->hw", unit, unit[:, cell[0], cell[1]])


def apart(heat: Tensor, labels: Tensor, wanted: int, *, ignore: int = 255) -> tuple[float, float]:
    """The mean of a heat map over the cells of a class, and over the cells of all others.

    Args:
        heat: (h, w).
        labels: the class of each cell (h, w).
        wanted: the class.
        ignore: cells of this label are in neither.
    """
    inside = labels == wanted
    outside = ~inside & (labels != ignore)
    return heat[inside].mean().item(), heat[outside].mean().item()


def cell_labels(labels: Tensor) -> Tensor:
    """The class at the middle of each cell: (H, W) -> (H / 8, W / 8)."""
    return labels.as_subclass(Tensor)[CELL // 2 :: CELL, CELL // 2 :: CELL].long()


def middle(mask: np.ndarray) -> tuple[int, int]:
    """The cell of a mask (h, w) that is farthest from its rim (city blocks), the first one if several are."""
    left = np.pad(mask, 1)
    last = left
    while left.any():
        last = left
        left = left.copy()
        for axis in (0, 1):
            left &= np.roll(last, 1, axis) & np.roll(last, -1, axis)
    row, column = (int(place[0]) - 1 for place in last.nonzero())
    return row, column


def points(labels: Tensor, wanted: Iterable[int], *, count: int = 6) -> list[tuple[int, int, int]]:
    """A cell in the thickest part of each class, for the classes that come first in a list.

    Args:
        labels: the class of each cell (h, w).
        wanted: classes, the most wanted first; those that are not there are passed over.
        count: how many points.

    Returns:
        (row, column, class) of each.

    Raises:
        ValueError: if fewer of these classes are there.
    """
    there = [label for label in wanted if (labels == label).any()][:count]
    if len(there) < count:
        raise ValueError(f"{len(there)} of these classes are in the picture; {count} are needed.")
    return [(*middle((labels == label).numpy()), label) for label in there]


# Objects and their size (Section 5.3) -------------------------------------------------------------


@dataclass(frozen=True)
class Objects:
    """The single objects of a picture.

    Attributes:
        map: the number of the object that each pixel belongs to, from 0 on, -1 for none; int64 (H, W).
        labels: class of each object (N,).
        areas: pixels of each object (N,).
    """

    map: np.ndarray
    labels: np.ndarray
    areas: np.ndarray


def objects(labels: Tensor, instances: Tensor, *, least: int = 1) -> Objects:
    """The objects that have a number of their own: vehicles and people.

    Args:
        labels: classes (H, W).
        instances: id * 1000 + number where such an object is, the bare id elsewhere (H, W).
        least: objects with fewer pixels are left out.
    """
    classes, ids = (np.asarray(part).astype(np.int64) for part in (labels, instances))
    known, first, which, areas = np.unique(ids, return_index=True, return_inverse=True, return_counts=True)
    counted = (known >= FIRST_INSTANCE_ID) & (areas >= least)
    number = np.where(counted, counted.cumsum() - 1, -1)
    return Objects(
        number[which.reshape(ids.shape)], classes.ravel()[first[counted]], areas[counted].astype(np.int64)
    )


# The removal of top layers (Section 5.2) ----------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """What a network with some of its layers answered on a set of pictures.

    Attributes:
        matrix: confusion matrix (K, K), rows are the truth.
        objects: of each picture.
        hits: for each picture, the pixels of each object (N,) that are labelled right.
        predictions: of the pictures that were asked for, by their place in the set: classes (H, W).
    """

    matrix: Tensor
    objects: list[Objects]
    hits: list[np.ndarray]
    predictions: dict[int, Tensor]

    @property
    def iou(self) -> Tensor:
        """Of each class (K,), 0 to 1, NaN where it is neither there nor answered."""
        hits = self.matrix.diagonal().double()
        return hits / (self.matrix.sum(0) + self.matrix.sum(1) - hits)

    def found(self, edges: Sequence[float]) -> list[float]:
        """The mean share of an object that is labelled right, by area: below the first edge, to the last."""
        areas = np.concatenate([one.areas for one in self.objects])
        shares = np.concatenate(self.hits) / areas
        places = np.digitize(areas, edges)
        return [float(shares[places == i].mean()) for i in range(len(edges) + 1)]


def counted(found: Iterable[Objects], edges: Sequence[float]) -> list[int]:
    """How many objects are in each of the bins of `Answers.found`."""
    areas = np.concatenate([one.areas for one in found])
    return np.bincount(np.digitize(areas, edges), minlength=len(edges) + 1).tolist()


@torch.inference_mode()
def without_top_layers(
    model: StudentDenseASPP,
    dataset: Any,
    space: LabelSpace,
    *,
    keep: Iterable[int] = (),
    least: int = 1,
) -> list[Answers]:
    """Evaluates a network with all of its atrous layers, without the top one, without the top two, ...

    Zeros take the place of what is removed, as the classifier expects as many maps as before. The backbone
    runs once a picture, and so does each layer: those below do not see the ones that are removed.

    Args:
        model: in eval mode.
        dataset: pictures with "labels" and "instances".
        space: what the classes are.
        keep: places of the pictures whose predictions are kept.
        least: objects with fewer pixels are left out.

    Returns:
        One entry for each number of layers removed: 0, 1, ..., n.
    """
    n = len(model.head.layers)
    confusion = [ConfusionMatrix(space.num_classes, ignore_index=space.ignore_index) for _ in range(n + 1)]
    kept: list[dict[int, Tensor]] = [{} for _ in range(n + 1)]
    hits: list[list[np.ndarray]] = [[] for _ in range(n + 1)]
    shown, seen = set(keep), []
    for at in range(len(dataset)):
        sample = dataset[at]
        labels = sample["labels"].as_subclass(Tensor)
        one = objects(labels, sample["instances"], least=least)
        seen.append(one)
        taps = model.head.taps(model.features(prepared(sample["image"], model)))
        for removed in range(n + 1):
            logits = _classified(model, taps, removed, labels.shape)
            prediction = logits.max(1).indices  # which is faster than argmax
            confusion[removed].update(prediction, labels[None])
            right = (prediction[0] == labels).numpy() & (one.map >= 0)
            hits[removed].append(np.bincount(one.map[right], minlength=len(one.areas)))
            if at in shown:
                kept[removed][at] = prediction[0]
    return [Answers(confusion[r].matrix, seen, hits[r], kept[r]) for r in range(n + 1)]


def _classified(model: StudentDenseASPP, taps: list[Tensor], removed: int, size: torch.Size) -> Tensor:
    """Logits (1, K, H, W) from the head's maps, zeros in the place of the last so many."""
    kept = len(taps) - removed
    parts = [tap if i < kept else torch.zeros_like(tap) for i, tap in enumerate(taps)]
    return upsample(model.classify(*parts), size)


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's: the correlation of ranks, equal values sharing the mean of theirs; -1 to 1.

    Raises:
        ValueError: if the lists are not equally long, or hold fewer than two different values.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values against {len(b)}: each needs a partner.")
    ranks = []
    for values in (a, b):
        if len(set(values)) < 2:
            raise ValueError("values that are all equal have no ranks to compare.")
        ordered = sorted(values)
        ranks.append([ordered.index(v) + (ordered.count(v) - 1) / 2 for v in values])
    return statistics.correlation(*ranks)
