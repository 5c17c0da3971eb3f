"""From a trained model to predictions and figures: multi-scale inference, evaluation, checkpoints.

Inference in sliding windows is in `segkit.evaluation.windows`.
"""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from segkit import models
from segkit.data.labels import CITYSCAPES20, PASCAL_CONTEXT59, LabelSpace
from segkit.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize
from segkit.evaluation.metrics import (
    ConfusionMatrix,
    InstanceIoU,
    MeanIoUs,
    reduce_over_ranks,
    reduced_miou,
    sixty_class_miou,
    three_mious,
)
from segkit.evaluation.windows import FASTFCN_SCALES, Windows, sliding_scores

# "MS" in the tables of Ladder-DenseNet: five scales, each with its mirror image (Sec. 6.1).
MULTI_SCALE = (0.5, 0.75, 1.0, 1.5, 2.0)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of a model on a data set; all are fractions in [0, 1], and NaN where there is nothing to score.

    Attributes:
        space: the classes.
        matrix: pixels by true (row) and predicted (column) class, int64 (C, C).
        iou: IoU of each class, float64 (C,); NaN for a class in neither the truth nor the prediction.
        miou: mean of `iou` over the other classes.
        pixel_accuracy: share of the labeled pixels that are right.
        category_ious: IoU of each category, in the space's order; empty where it has none.
        category_iou: mean of them, or None.
        iious: iIoU of each instance class, in the space's order; empty where the data has no instances.
        iiou: mean of them, or None.
        instance_sizes: mean size in pixels of an instance of each of those classes, which iIoU weighs with.
        images: how many images these are.
        scales: rescaling factors whose predictions were averaged.
        flip: whether mirror images took part too.
        windows: the sliding windows in which the images were seen; None: each as a whole.
    """

    space: LabelSpace
    matrix: Tensor
    iou: Tensor
    miou: float
    pixel_accuracy: float
    category_ious: dict[str, float]
    category_iou: float | None
    iious: dict[str, float]
    iiou: float | None
    instance_sizes: dict[str, float]
    images: int
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    windows: Windows | None = None

    @property
    def reduced_miou(self) -> float | None:
        """Mean IoU without truck, bus and train (RegSeg paper, Sec. 4.3); None where the space lacks them."""
        return reduced_miou(self.iou, self.space.classes)

    @property
    def three_mious(self) -> MeanIoUs | None:
        """The three readings of "mIoU" with Cityscapes' 20 classes (DenseASPP report); None elsewhere."""
        if self.space.name != CITYSCAPES20.name:
            return None
        return three_mious(self.matrix, background=self.space.classes.index("background"))

    @property
    def sixty_class_miou(self) -> float | None:
        """`miou` * 59/60, as in FastFCN's Table 3, with Pascal Context's 59 classes; None elsewhere."""
        return sixty_class_miou(self.miou) if self.space.name == PASCAL_CONTEXT59.name else None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values for JSON, with None for NaN; `iou_by_class` names the matrix's rows."""
        return {
            "images": self.images,
            "space": self.space.name,
            "scales": list(self.scales),
            "flip": self.flip,
            "windows": self.windows.as_dict() if self.windows else None,
            "miou": _plain(self.miou),
            "reduced_miou": _plain(self.reduced_miou),
            "three_mious": _plain_dict(three._asdict().items()) if (three := self.three_mious) else None,
            "sixty_class_miou": _plain(self.sixty_class_miou),
            "pixel_accuracy": _plain(self.pixel_accuracy),
            "category_iou": _plain(self.category_iou),
            "iiou": _plain(self.iiou),
            "iou_by_class": _plain_dict(zip(self.space.classes, self.iou.tolist(), strict=True)),
            "iou_by_category": _plain_dict(self.category_ious.items()),
            "iiou_by_class": _plain_dict(self.iious.items()),
            "instance_sizes": _plain_dict(self.instance_sizes.items()),
            "matrix": self.matrix.tolist(),
        }

    def table(self) -> str:
        """One line for each class, category and mean, in percent; `-` where there is nothing to score."""
        share = self.matrix.sum(1).double() / self.matrix.sum()
        rows = [("class", "IoU", "iIoU", "share")]
        for name, iou, part in zip(self.space.classes, self.iou.tolist(), share.tolist(), strict=True):
            iiou = _percent(self.iious[name]) if name in self.iious else ""
            rows.append((name, _percent(iou), iiou, _percent(part)))
        mean_iiou = "" if self.iiou is None else _percent(self.iiou)
        rows.append(("mean over classes", _percent(self.miou), mean_iiou, ""))
        if three := self.three_mious:
            rows.append(("- 20, with background", _percent(three.iou20), "", ""))
            rows.append(("- 19, background ignored", _percent(three.iou19_official), "", ""))
            rows.append(("- 19, on all pixels", _percent(three.iou19), "", ""))
        if self.sixty_class_miou is not None:
            rows.append(("- 60, with 0 for background", _percent(self.sixty_class_miou), "", ""))
        rows += [(f"category {name}", _percent(iou), "", "") for name, iou in self.category_ious.items()]
        if self.category_iou is not None:
            rows.append(("mean over categories", _percent(self.category_iou), "", ""))
        rows.append(("pixel accuracy", _percent(self.pixel_accuracy), "", ""))
        columns = [0, 1, 2, 3] if self.iious else [0, 1, 3]
        name_width = max(len(row[0]) for row in rows)
        lines = [row[0].ljust(name_width) + "".join(row[c].rjust(8) for c in columns[1:]) for row in rows]
        lines = [line.rstrip() for line in lines]
        rule = "-" * max(map(len, lines))
        mean = 1 + self.space.num_classes
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        title = (
            f"{self.images} image{'s' * (self.images != 1)}, scale{'s' * (len(self.scales) != 1)} {scales}"
        )
        title += f"{' with mirror images' if self.flip else ''}"
        title += f"; {self.windows}" * (self.windows is not None) + "; all figures in percent"
        return "\n".join([title, "", lines[0], rule, *lines[1:mean], rule, *lines[mean:]])

    __str__ = table


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model into eval mode and afterwards each of its modules back into the mode it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def predict(
    model: nn.Module,
    images: Tensor,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    windows: Windows | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Tensor:
    """Predicts the class probabilities of each pixel.

    For each scale the images are rescaled (bilinear, antialiased; sizes rounded), the model's softmax is
    brought back to the input size (bilinear), and the results are averaged with equal weights, as for "MS"
    in Sec. 6.1 of Ladder-DenseNet.

    A model that takes some sizes only has an attribute `size_divisor`, a side's divisor. Its images are then
    padded at the right and the bottom with the mean pixel, as crops are in training, and the logits there are
    dropped: no pixel of the image is resampled for it.

    Args:
        model: takes float (B, 3, h, w), returns a dict with logits "out" of the same size. It runs in eval
            mode and is left in the mode it was in.
        images: normalized, float (B, 3, H, W), on the model's device.
        scales: rescaling factors; `MULTI_SCALE` is the paper's.
        flip: also predict the mirror image of each scale.
        windows: show the model square windows of the images, and combine their scores as these say; None
            shows it whole images.
        mean: with which the images were normalized, see `evaluate`; windows are filled up with black, which
            normalization turns into -mean / std.
        std: the same for the standard deviation.

    Returns:
        Probabilities, float32 (B, C, H, W).

    Raises:
        ValueError: when the images are not normalized floats of that shape or a scale is not positive; the
            model's own error where a size does not suit it.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; "
            "they have to be normalized floats (B, 3, H, W)"
        )
    if not scales or not all(s > 0 and math.isfinite(s) for s in scales):
        raise ValueError(f"scales are {tuple(scales)}; give at least one, all of them positive")
    size = images.shape[-2:]
    total: Tensor | None = None
    with evaluation_mode(model):
        if windows is not None:
            mean, std = _normalization(model, mean, std)
            black = [-m / s for m, s in zip(mean, std, strict=True)]
            return sliding_scores(
                partial(_logits, model), images, windows, scales=scales, flip=flip, black=black
            )
        for scale in scales:
            scaled_size = [max(1, round(side * scale)) for side in size]
            scaled = images
            if scaled_size != list(size):
                scaled = F.interpolate(images, scaled_size, mode="bilinear", antialias=True)
            for mirrored in (False, True) if flip else (False,):
                logits = _logits(model, scaled.flip(-1) if mirrored else scaled)  # (B, C, scale*H, scale*W)
                probabilities = logits.float().softmax(1)
                if mirrored:
                    probabilities = probabilities.flip(-1)
                if probabilities.shape[-2:] != size:
                    probabilities = F.interpolate(probabilities, size, mode="bilinear")
                total = probabilities if total is None else total.add_(probabilities)
    return total / (len(scales) * (2 if flip else 1))  # (B, C, H, W)


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """The model's logits (B, C, h, w) for images (B, 3, h, w), padded where it wants multiples."""
    height, width = images.shape[-2:]
    divisor = getattr(model, "size_divisor", 1)
    below, right = -height % divisor, -width % divisor
    if below or right:
        images = F.pad(images, (0, right, 0, below))  # normalized: the mean pixel is 0
    return model(images)["out"][..., :height, :width]


def _normalization(
    model: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation as given, else the model's own, else ImageNet's."""
    mean = getattr(model, "image_mean", IMAGENET_MEAN) if mean is None else mean
    std = getattr(model, "image_std", IMAGENET_STD) if std is None else std
    return mean, std


def evaluate(
    model: nn.Module,
    dataset: Any,
    *,
    device: torch.device | str | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    windows: Windows | None = None,
    limit: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    amp: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    instance_sizes: Mapping[str, float] | None = None,
    on_image: Callable[[dict[str, Any], Tensor], object] | None = None,
) -> Evaluation:
    """Scores a model on a data set, image by image at full size, so that sizes may differ.

    Args:
        model: see `predict`; left in the mode it was in.
        dataset: has a `space`, and gives samples with "image" uint8 (3, H, W), "labels" (H, W) and "name",
            and "instances" (H, W) where iIoU is wanted.
        device: where to run; the model is moved there. By default where the model is.
        scales: see `predict`.
        flip: see `predict`.
        windows: see `predict`.
        limit: only the first so many images; None or 0 for all.
        rank: this process takes every `world_size`-th image, from this one on.
        world_size: number of processes; the counts are added up, and all of them return the same.
        amp: run the model in bfloat16 where it may (only on a GPU).
        mean: mean of red, green and blue that the model was trained with, in [0, 1]; by default the one that
            `load_model` put on the model, else ImageNet's.
        std: the same for the standard deviation.
        instance_sizes: mean instance size by class name for iIoU; by default that of the evaluated images.
            `CITYSCAPES_MEAN_SIZES` gives figures that compare with the benchmark's on full-size images.
        on_image: called after each image with its sample and the predicted labels, int64 (H, W).

    Returns:
        The scores, from one confusion matrix of all images.

    Raises:
        ValueError: when the data set is empty, the model has other classes than it, or an image and its
            labels do not fit; the message names the image.
        RuntimeError: when there are several processes but no process group.
    """
    space: LabelSpace = dataset.space
    images = min(limit or len(dataset), len(dataset))
    if images <= 0:
        raise ValueError(f"nothing to evaluate: {len(dataset)} images in the data set, limit {limit}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size} processes; ranks are 0 … {world_size - 1}")
    if world_size > 1 and not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            f"world_size is {world_size}, but torch.distributed has no process group to sum over"
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module  # its forward talks to the other ranks, which may hold fewer images
    device = _device(model) if device is None else torch.device(device)
    model.to(device)
    mean, std = _normalization(model, mean, std)
    if instance_sizes is not None:
        names = [space.classes[c] for c in space.instance_classes]
        if missing := [name for name in names if name not in instance_sizes]:
            raise ValueError(f"instance_sizes has no size for class {missing[0]!r}")
        instance_sizes = [instance_sizes[name] for name in names]

    confusion = ConfusionMatrix(space.num_classes, ignore_index=space.ignore_index, device=device)
    instance_iou = InstanceIoU(space.instance_classes, mean_sizes=instance_sizes)
    with_instances = False
    with evaluation_mode(model):
        for index in range(rank, images, world_size):
            sample = dataset[index]
            image = sample["image"].as_subclass(Tensor)[None].to(device, non_blocking=True)  # (1, 3, H, W)
            # Only around the model: what inference mode makes, such as moved weights, cannot be trained on.
            autocast = torch.autocast(device.type, torch.bfloat16, enabled=amp and device.type == "cuda")
            with torch.inference_mode(), autocast:
                image = normalize(image, mean=mean, std=std)
                probabilities = predict(
                    model, image, scales=scales, flip=flip, windows=windows, mean=mean, std=std
                )
            if probabilities.shape[1] != space.num_classes:
                raise ValueError(
                    f"the model predicts {probabilities.shape[1]} classes, but the data set's "
                    f"{space.name!r} has {space.num_classes}"
                )
            prediction = probabilities.argmax(1)  # (1, H, W)
            labels = sample["labels"][None]
            try:
                confusion.update(prediction, labels)
                if space.instance_classes and "instances" in sample:
                    with_instances = True
                    instance_iou.update(prediction, labels, sample["instances"][None])
            except ValueError as error:
                raise ValueError(f"{sample['name']}: {error}") from error
            if on_image is not None:
                on_image(sample, prediction[0])
    if world_size > 1:
        confusion.all_reduce()
        instance_iou.all_reduce()
        # A rank that got no image does not know whether there are instances.
        with_instances = bool(reduce_over_ranks(torch.tensor(int(with_instances)), "MAX"))
    how = {"images": images, "scales": tuple(scales), "flip": flip, "windows": windows}
    return _scores(space, confusion, instance_iou if with_instances else None, **how)


def _scores(
    space: LabelSpace,
    confusion: ConfusionMatrix,
    instance_iou: InstanceIoU | None,
    **how: Any,
) -> Evaluation:
    category_ious = confusion.category_iou(space.categories)
    iious = sizes = torch.zeros(0)
    names: list[str] = []
    if instance_iou is not None:
        iious, sizes = instance_iou.iou(confusion.matrix), instance_iou.mean_sizes
        names = [space.classes[c] for c in space.instance_classes]
    return Evaluation(
        space=space,
        matrix=confusion.matrix.cpu(),
        iou=confusion.iou(),
        miou=confusion.miou(),
        pixel_accuracy=confusion.pixel_accuracy(),
        category_ious=dict(zip([n for n, _ in space.categories], category_ious.tolist(), strict=True)),
        category_iou=category_ious.nanmean().item() if len(category_ious) else None,
        iious=dict(zip(names, iious.tolist(), strict=True)),
        iiou=iious.nanmean().item() if names else None,
        instance_sizes=dict(zip(names, sizes.tolist(), strict=True)),
        **how,
    )


# What `segkit.train` writes for those who use a model; the rest of a checkpoint is for going on training.
_CHECKPOINT_KEYS = ("model_name", "model_options", "num_classes", "space", "model", "mean", "std")


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a checkpoint which training wrote, without running any code from it.

    Args:
        path: the checkpoint file.

    Returns:
        Its content, on the CPU.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is truncated, or no checkpoint of segkit.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a checkpoint file in it")
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, ValueError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} cannot be read: it is truncated, damaged or no checkpoint; "
            "take an earlier one, or train again"
        ) from error
    missing = [key for key in _CHECKPOINT_KEYS if not isinstance(state, dict) or key not in state]
    if missing:
        raise ValueError(f"{path} is no checkpoint of segkit.train: it has no {', '.join(missing)}")
    return state


def load_model(
    path: str | os.PathLike[str], *, device: torch.device | str = "cpu"
) -> tuple[nn.Module, LabelSpace]:
    """Builds the model of a checkpoint which training wrote.

    What it expects of its images comes along as attributes: `image_mean` and `image_std` (each red, green,
    blue, of pixels in [0, 1]), which `evaluate` uses; `image_resolution`, the factor by which images of the
    data set were resized before training, or `image_size`, the (H, W) that they were all resized to (None:
    they were not); `image_windows`, the windows in which it was measured while training (None: whole images);
    `image_scales`, those that its recipe has for several, else `MULTI_SCALE` or, in windows, FastFCN's.

    Args:
        path: the checkpoint file.
        device: where to put the model.

    Returns:
        The model in eval mode, and its label space.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is truncated, no checkpoint of segkit, or does not fit the model it names.
    """
    state = read_checkpoint(path)
    space = LabelSpace(**state["space"])
    if space.num_classes != state["num_classes"]:
        raise ValueError(
            f"{path} contradicts itself: a model of {state['num_classes']} classes, "
            f"{space.num_classes} class names"
        )
    # The weights come from the checkpoint, not from wherever training started.
    options = {**state["model_options"], "weights": None}
    try:
        model = models.build(state["model_name"], num_classes=space.num_classes, **options)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the model of {path} cannot be built: {error}") from error
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {path} do not fit the model {state['model_name']!r}; "
            "was it written by another version?"
        ) from error
    model.image_mean, model.image_std = tuple(state["mean"]), tuple(state["std"])
    model.image_resolution = float(state.get("resolution", 1.0))
    size = tuple(state.get("image_size", (0, 0)))
    model.image_size = size if any(size) else None
    model.image_windows, model.image_scales = _measured(state.get("settings", {}).get("recipe", {}))
    return model.to(device).eval(), space


def _measured(recipe: Mapping[str, Any]) -> tuple[Windows | None, tuple[float, ...]]:
    """The windows and the scales of a recipe, which a checkpoint need not have."""
    windows = None
    if side := recipe.get("windows", 0):
        base_size, combine = recipe.get("base_size", 0), recipe.get("combine", Windows.combine)
        windows = Windows(side=side, base_size=base_size, combine=combine)
    if "eval_scales" in recipe:
        return windows, tuple(float(scale) for scale in recipe["eval_scales"].split(","))
    return windows, FASTFCN_SCALES if windows else MULTI_SCALE


def _device(model: nn.Module) -> torch.device:
    tensor = next(model.parameters(), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _plain(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _plain_dict(items: Iterable[tuple[str, float]]) -> dict[str, float | None]:
    return {name: _plain(value) for name, value in items}


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"
