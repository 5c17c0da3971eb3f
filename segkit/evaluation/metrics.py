"""Segmentation scores, all taken from one confusion matrix over the whole evaluated set.

Summing pixels over all images first and dividing once is what "IoU" means in the papers; an average of
per-image scores is a different, noisier number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from segkit.models.blocks import check_classes

# Mean size in pixels of one instance of each class on 1024x2048 images: the constants which the Cityscapes
# benchmark weights instances with. They only suit images of that size.
CITYSCAPES_MEAN_SIZES = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}

# What the reduced mIoU of the RegSeg paper (Sec. 4.3) leaves out: on Cityscapes these three classes vary
# between equal runs much more than the others do.
REDUCED_WITHOUT = ("truck", "bus", "train")

# An instance image holds `class id * 1000 + k` where an instance is, and the bare class id elsewhere.
FIRST_INSTANCE_ID = 1000


def reduce_over_ranks(tensor: Tensor, op: Literal["SUM", "MAX"] = "SUM") -> Tensor:
    """Returns `tensor` reduced over all processes; as it is where no process group is initialized.

    Every process has to call it. NCCL only moves GPU tensors, so a CPU tensor takes a detour over the GPU.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    device = torch.device("cuda") if dist.get_backend() == "nccl" and not tensor.is_cuda else tensor.device
    reduced = tensor.to(device, copy=True)
    dist.all_reduce(reduced, getattr(dist.ReduceOp, op))
    return reduced.to(tensor.device)


def reduced_miou(
    iou: Tensor, classes: Sequence[str], *, without: Sequence[str] = REDUCED_WITHOUT
) -> float | None:
    """Mean IoU over all classes but some that vary too much to compare runs by (RegSeg paper, Sec. 4.3).

    The left out classes still take part in the IoU of the others, as wrong answers.

    Args:
        iou: IoU of each class, float (C,), as `ConfusionMatrix.iou` gives it; NaN is left out of the mean.
        classes: the C names of the classes.
        without: names of the classes to leave out.

    Returns:
        The mean, NaN where no other class has an IoU; None where there is no such class to leave out.

    Raises:
        ValueError: when there are more or fewer names than IoUs.
    """
    if len(iou) != len(classes):
        raise ValueError(f"{len(classes)} class names for {len(iou)} IoUs; there has to be one for each")
    if not set(without) <= set(classes):
        return None
    kept = torch.tensor([name not in without for name in classes])
    return iou.cpu()[kept].nanmean().item()


class MeanIoUs(NamedTuple):
    """Three figures that are all called mIoU where one class of C is "background"; see `three_mious`.

    Args:
        iou20: of all C classes, background among them (20 on Cityscapes).
        iou19_official: of the others, on pixels that truly are one of them; what the benchmark's script does.
        iou19: of the others, on all pixels.
    """

    iou20: float
    iou19_official: float
    iou19: float


def three_mious(matrix: Tensor, background: int = 19) -> MeanIoUs:
    """The mean IoU with and without a background class, from one confusion matrix of a whole set.

    The DenseASPP report maps Cityscapes' 35 labels to 20 classes, one of them background (Sec. 3), and does
    not say which mean its mIoU is: `iou20` is likely. The benchmark ignores those pixels:
    `iou19_official` drops them, so that what is predicted there is no mistake; a class taken for background
    stays one. `iou19` counts what is predicted there as false positives, too.

    What holds for every matrix where they are numbers: `iou19_official` >= `iou19`, as it lacks some false
    positives and nothing else, and a class that is predicted on background alone, which has IoU 0 in
    `iou19`, is not in it. They are equal where nothing but background is predicted on background. With every
    class present `iou20` lies between `iou19` and the background's own IoU, so that a good background raises
    it, perhaps above both. Which one is the largest therefore depends on the data; only this order is fixed.

    Args:
        matrix: pixel counts (C, C), rows true and columns predicted, as `ConfusionMatrix.matrix` gives them.
        background: the background's class; 19 keeps the train ids of Cityscapes (chosen, the report is
            silent).

    Returns:
        Fractions in [0, 1]. A class that occurs neither in the truth nor in the prediction is left out of a
        mean; one without classes is NaN.

    Raises:
        ValueError: if the matrix is not square or has negative counts, or there is no such class.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(
            f"a confusion matrix is (C, C), rows true and columns predicted, not {_shape(matrix)}"
        )
    if not 0 <= background < len(matrix):
        raise ValueError(
            f"background={background} is none of the classes 0 … {len(matrix) - 1}; give the class of all "
            "pixels that belong to no other"
        )
    counts = matrix.cpu().double()
    if not (counts >= 0).all():
        raise ValueError("a confusion matrix holds numbers of pixels; some of these are negative or NaN")
    others = torch.arange(len(counts)) != background
    labeled = counts.clone()
    labeled[background] = 0  # the benchmark ignores these pixels, whatever is predicted there
    iou = _iou(counts)
    return MeanIoUs(
        iou20=iou.nanmean().item(),
        iou19_official=_iou(labeled)[others].nanmean().item(),
        iou19=iou[others].nanmean().item(),
    )


def sixty_class_miou(miou59: float) -> float:
    """The mIoU on PASCAL-Context's 60 classes as FastFCN has it: that of 59, with 0 for background.

    The paper says that it measures on 60 classes (Sec. 4.3), but its figures are those of 59 times 59/60:
    52.10 becomes 51.23 and 54.03 becomes 53.13. Nothing is predicted as background.

    Args:
        miou59: mean IoU over the 59 classes, a fraction or in percent.

    Returns:
        The mean over 60, in the same unit.

    Raises:
        ValueError: if it is outside 0 … 100.
    """
    if not 0 <= miou59 <= 100:
        raise ValueError(f"miou59={miou59!r} is no mean IoU: give a fraction, or percent from 0 to 100")
    return miou59 * 59 / 60


def _iou(counts: Tensor) -> Tensor:
    """IoU of each class from float64 counts (C, C); NaN for a class that occurs nowhere."""
    true_positives = counts.diagonal()
    return true_positives / (counts.sum(0) + counts.sum(1) - true_positives)


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


class ConfusionMatrix:
    """Counts of pixels by true and predicted class, and the scores that follow from them.

    Args:
        num_classes: number of classes C; labels and predictions are 0 … C-1.
        ignore_index: label of the pixels that are left out, whatever is predicted there.
        device: where the counts live; give the device of the predictions. On a GPU `update` never waits for
            it: a value out of range is then reported when the scores are read, on the CPU at once.

    Raises:
        ValueError: if `num_classes` is no integer of at least 1.
    """

    def __init__(
        self, num_classes: int, *, ignore_index: int = 255, device: torch.device | str | None = None
    ) -> None:
        self.num_classes = num_classes = check_classes(num_classes)
        self.ignore_index = ignore_index
        # One bin for each (true, predicted) pair, and a last one that takes what is ignored.
        self._counts = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=device)
        # -min and max of the labels, -min and max of the predictions: all four grow, so one MAX merges them.
        self._extremes = torch.zeros(4, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, labels: Tensor) -> None:
        """Adds images.

        Args:
            prediction: integers (B, H, W) in 0 … C-1; not looked at where the label is ignored.
            labels: integers (B, H, W) in 0 … C-1, or `ignore_index`.

        Raises:
            ValueError: when the shapes differ, a tensor is not of integers, or a value is out of range.
        """
        if prediction.shape != labels.shape:
            raise ValueError(
                f"the prediction has shape {tuple(prediction.shape)} and the labels {tuple(labels.shape)}; "
                "they have to be the same"
            )
        for name, tensor in (("prediction", prediction), ("labels", labels)):
            if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
                raise ValueError(f"the {name} is {tensor.dtype}; it has to hold integer class numbers")
        if labels.numel() == 0:
            return
        device = self._counts.device
        labels = _plain(labels).to(device, torch.int64, non_blocking=True).flatten()
        prediction = _plain(prediction).to(device, torch.int64, non_blocking=True).flatten()
        counted = labels != self.ignore_index
        labels, prediction = labels.where(counted, 0), prediction.where(counted, 0)
        extremes = torch.stack([-labels.min(), labels.max(), -prediction.min(), prediction.max()])
        if device.type == "cpu":
            self._check(extremes)
        self._extremes = torch.maximum(self._extremes, extremes)
        ignored = self.num_classes**2
        # Clamped, because a GPU cannot raise here: `_check` rejects the counts before anyone reads them.
        bins = (labels * self.num_classes + prediction).where(counted, ignored).clamp_(0, ignored)
        # `bincount` would ask the GPU for the largest bin and wait for the answer; this does not.
        self._counts.scatter_add_(0, bins, torch.ones_like(bins))

    def all_reduce(self) -> None:
        """Adds up the counts of all processes, once, when all images are in; a lone one keeps its own."""
        self._extremes = reduce_over_ranks(self._extremes, "MAX")
        self._counts = reduce_over_ranks(self._counts)

    @property
    def matrix(self) -> Tensor:
        """Counts, int64 (C, C): rows are the true classes, columns the predicted ones.

        Raises:
            ValueError: when a label or a prediction was out of range.
        """
        self._check(self._extremes)
        return self._counts[:-1].view(self.num_classes, self.num_classes)

    def iou(self) -> Tensor:
        """IoU of each class, TP / (TP + FP + FN): float64 (C,) on the CPU.

        NaN for a class that occurs neither in the truth nor in the prediction: it is neither right nor wrong,
        and is left out of means. A class that is predicted but never true has IoU 0 and counts.
        """
        return _iou(self.matrix.cpu().double())

    def miou(self) -> float:
        """Mean IoU over the classes which occur in the truth or the prediction."""
        return self.iou().nanmean().item()

    def pixel_accuracy(self) -> float:
        """Share of the labeled pixels that are predicted right; NaN when there are none."""
        matrix = self.matrix.cpu().double()
        return (matrix.diagonal().sum() / matrix.sum()).item()

    def category_iou(self, categories: Sequence[tuple[str, Sequence[int]]]) -> Tensor:
        """IoU of each category, float64 (number of categories,) on the CPU, NaN as in `iou`.

        Confusing two classes of one category is no error here: their rows and columns are added up. A class
        that belongs to no category still takes part as a wrong answer.
        """
        ious = []
        for name, members in categories:
            if outside := [c for c in members if not 0 <= c < self.num_classes]:
                raise ValueError(
                    f"category {name!r} lists class {outside[0]}; the classes are 0 … {self.num_classes - 1}"
                )
            inside = torch.zeros(self.num_classes, dtype=torch.float64)
            inside[list(members)] = 1
            matrix = self.matrix.cpu().double()
            both = inside @ matrix @ inside
            ious.append(both / ((inside @ matrix).sum() + (matrix @ inside).sum() - both))
        return torch.stack(ious) if ious else torch.zeros(0, dtype=torch.float64)

    def _check(self, extremes: Tensor) -> None:
        low_label, high_label, low_prediction, high_prediction = extremes.tolist()
        for name, low, high in (
            ("the labels contain", -low_label, high_label),
            ("the prediction contains", -low_prediction, high_prediction),
        ):
            if low < 0 or high >= self.num_classes:
                raise ValueError(
                    f"{name} {low if low < 0 else high}; the classes are 0 … {self.num_classes - 1}, "
                    f"and pixels labeled {self.ignore_index} are ignored"
                )


class InstanceIoU:
    """Instance-level IoU (iIoU) of Cityscapes: small instances count as much as large ones.

    A pixel of a true instance weighs (mean size of the class's instances) / (size of this instance), both as
    a true positive and as a false negative; false positives belong to no instance and weigh 1:

        iIoU = iTP / (iTP + FP + iFN)

    Pixels of an instance class without an instance id (crowds) count neither as iTP nor as iFN.

    Args:
        instance_classes: the K classes to score, as labels.
        mean_sizes: mean instance size of each of them in pixels; by default that of the evaluated set itself,
            which suits any set and resolution. Give `CITYSCAPES_MEAN_SIZES` for figures that compare with the
            official script's on full-size images.
    """

    def __init__(self, instance_classes: Sequence[int], *, mean_sizes: Sequence[float] | None = None) -> None:
        if mean_sizes is not None and len(mean_sizes) != len(instance_classes):
            raise ValueError(f"{len(mean_sizes)} mean sizes for {len(instance_classes)} instance classes")
        self.instance_classes = tuple(instance_classes)
        self._mean_sizes = None if mean_sizes is None else torch.tensor(mean_sizes, dtype=torch.float64)
        # Of each class: number of instances, their pixels, and the sum over instances of the share of their
        # pixels that was found. The mean size is a common factor of the sums, so it may come afterwards.
        self._totals = torch.zeros(3, len(self.instance_classes), dtype=torch.float64)

    def update(self, prediction: Tensor, labels: Tensor, instances: Tensor) -> None:
        """Adds images; waits for the GPU, as the number of instances is not known before.

        Args:
            prediction: integers (B, H, W).
            labels: integers (B, H, W).
            instances: integers (B, H, W): class id * 1000 + k on the k-th instance of a class, in any
                numbering of classes, and less than 1000 elsewhere. An id names an instance within one image.
        """
        if not prediction.shape == labels.shape == instances.shape:
            raise ValueError(
                f"prediction, labels and instances have shapes {tuple(prediction.shape)}, "
                f"{tuple(labels.shape)} and {tuple(instances.shape)}; they have to be the same"
            )
        prediction, labels, instances = (
            _plain(t).to(prediction.device, torch.int64) for t in (prediction, labels, instances)
        )
        classes = torch.tensor(self.instance_classes, dtype=torch.int64, device=prediction.device)
        base = max(self.instance_classes, default=0) + 1
        for predicted, truth, ids in zip(prediction, labels, instances, strict=True):
            scored = (ids >= FIRST_INSTANCE_ID) & torch.isin(truth, classes)
            truth = truth[scored]
            # Id and class in one number, so that an instance takes its class from its own labels.
            keys = ids[scored] * base + truth
            keys, which, sizes = keys.unique(return_inverse=True, return_counts=True)
            found = torch.zeros_like(sizes).index_add_(0, which, (predicted[scored] == truth).long())
            slot = ((keys % base)[:, None] == classes).int().argmax(1).cpu()  # (instances,)
            sizes, found = sizes.cpu().double(), found.cpu().double()
            self._totals.index_add_(1, slot, torch.stack([torch.ones_like(sizes), sizes, found / sizes]))

    def all_reduce(self) -> None:
        """Adds up the sums of all processes, once, when all images are in; a lone one keeps its own."""
        self._totals = reduce_over_ranks(self._totals)

    @property
    def mean_sizes(self) -> Tensor:
        """Mean instance size of each class in pixels, float64 (K,); NaN where it has no instance."""
        if self._mean_sizes is not None:
            return self._mean_sizes
        number, pixels, _ = self._totals
        return pixels / number

    def iou(self, matrix: Tensor) -> Tensor:
        """iIoU of each instance class, float64 (K,); NaN where there is neither an instance nor an FP.

        Args:
            matrix: confusion matrix (C, C) of the same images, which holds the false positives.
        """
        matrix = matrix.cpu().double()
        classes = list(self.instance_classes)
        false_positives = (matrix.sum(0) - matrix.diagonal())[classes]
        number, _, found = self._totals
        size = self.mean_sizes.nan_to_num(0.0)
        # iTP + iFN = mean size * number of instances.
        return size * found / (size * number + false_positives)


class ObjectAreas:
    """Areas of single objects by class, to set their median beside a class's IoU ("class-size effect").

    An instance is one object, in however many pieces it is seen. Elsewhere, and in sets without instances, an
    object is a region: all pixels of one class that hang together by their sides. So a row of parked cars
    without instance ids is one object, and a road that a pole divides is two.

    Args:
        num_classes: number of classes C.
        ignore_index: label of the pixels that belong to no object.

    Raises:
        ValueError: if `num_classes` is no integer of at least 1.
    """

    def __init__(self, num_classes: int, *, ignore_index: int = 255) -> None:
        self.num_classes, self.ignore_index = check_classes(num_classes), ignore_index
        self._areas: list[list[Tensor]] = [[] for _ in range(self.num_classes)]

    def update(self, labels: Tensor, instances: Tensor | None = None) -> None:
        """Adds images.

        Args:
            labels: integers (B, H, W) in 0 … C-1, or `ignore_index`.
            instances: integers (B, H, W), see `InstanceIoU.update`; None where there are none.

        Raises:
            ValueError: if the shapes differ, or a label is out of range.
        """
        if labels.ndim != 3 or (instances is not None and instances.shape != labels.shape):
            found = "" if instances is None else f", instances {_shape(instances)}"
            raise ValueError(f"labels {_shape(labels)}{found}: both have to be one (B, H, W)")
        labels = _plain(labels).long().cpu()
        outside = labels[(labels != self.ignore_index) & ((labels < 0) | (labels >= self.num_classes))]
        if len(outside):
            raise ValueError(
                f"the labels contain {outside[0]}; the classes are 0 … {self.num_classes - 1}, and pixels "
                f"labeled {self.ignore_index} are ignored"
            )
        ids = torch.zeros_like(labels) if instances is None else _plain(instances).long().cpu()
        for truth, number in zip(labels, ids, strict=True):
            counted, single = truth != self.ignore_index, number >= FIRST_INSTANCE_ID
            pieces = _regions(truth.where(counted & ~single, -1))  # (H, W)
            # Numbers of regions begin at 0, so those of instances, an id and a class, are put below.
            objects = torch.where(single, -1 - (number * self.num_classes + truth), pieces)[counted]
            _, which, areas = objects.unique(return_inverse=True, return_counts=True)
            classes = torch.empty_like(areas).scatter_(0, which, truth[counted])
            for c in classes.unique().tolist():
                self._areas[c].append(areas[classes == c])

    def areas(self, number: int) -> Tensor:
        """Areas of the objects of a class in pixels, int64, in no particular order."""
        return torch.cat([torch.zeros(0, dtype=torch.int64), *self._areas[number]])

    @property
    def medians(self) -> Tensor:
        """Median area of each class's objects in pixels, float64 (C,); NaN where it has none."""
        return torch.stack(
            [
                self.areas(c).double().quantile(0.5)
                if found
                else torch.tensor(torch.nan, dtype=torch.float64)
                for c, found in enumerate(self._areas)
            ]
        )


def _regions(values: Tensor) -> Tensor:
    """For each pixel of a map (H, W) the lowest pixel number of the region of equal values that it is in."""
    numbers = torch.arange(values.numel()).view(values.shape)
    same_row, same_column = values[:, 1:] == values[:, :-1], values[1:] == values[:-1]
    one = torch.cat([numbers[:, :-1][same_row], numbers[:-1][same_column]])
    other = torch.cat([numbers[:, 1:][same_row], numbers[1:][same_column]])
    root = numbers.flatten()
    while True:
        # Where two neighbors have different roots, the higher one's root is hung below the lower one.
        low, high = torch.minimum(root[one], root[other]), torch.maximum(root[one], root[other])
        if torch.equal(low, high):
            return root.view(values.shape)
        root = root.scatter_reduce(0, high, low, "amin")
        while not torch.equal(root, above := root[root]):
            root = above


def _plain(tensor: Tensor) -> Tensor:
    """Drops tv_tensors' subclass, whose dispatch would cost time in every operation."""
    return tensor.as_subclass(Tensor)
