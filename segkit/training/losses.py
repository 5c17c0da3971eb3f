"""The multi-scale loss of Ladder-DenseNets (Sec. 6.1): one main loss, and one per auxiliary output.

The main loss is a cross-entropy, of all pixels or of the hardest ones (RegSeg paper, Sec. 4.2: OHEM). FastFCN
has another auxiliary loss, and one on which classes an image holds; its paper names neither (Sec. 4.1:
"pixel-wise cross-entropy"), its authors' code has both.

Shapes: B images, C classes, H x W pixels; an auxiliary output has h x w cells.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from segkit.memory.chunked import chunked_cross_entropy
from segkit.models.jpu import resize

Size = tuple[int, int]

MIN_LABELED = 0.5  # a window that is ignored by half or more says too little (chosen: the paper is silent)


@lru_cache(maxsize=64)
def _windows(length: int, cells: int, device: torch.device) -> tuple[Tensor, Tensor | None, Tensor]:
    """Splits one axis of ``length`` pixels into ``cells`` windows, placed as adaptive pooling places them.

    Where ``cells`` does not divide ``length``, neighboring windows share pixels. The axis is then cut at
    every edge of a window into disjoint segments, and each window is a sum of segments.

    Returns:
        The segment that each pixel lies in, int64 (length,); which segments make up which window, float
        (cells, segments), or None where segments and windows are the same; pixels per window, float (cells,).
    """
    starts = [cell * length // cells for cell in range(cells)]
    ends = [-(-(cell + 1) * length // cells) for cell in range(cells)]  # rounded up
    edges = sorted({*starts, *ends})
    segment_of = torch.bucketize(torch.arange(length), torch.tensor(edges), right=True) - 1
    widths = torch.tensor([end - start for start, end in zip(starts, ends, strict=True)], dtype=torch.float32)
    if len(edges) == cells + 1:
        return segment_of.to(device), None, widths.to(device)
    lower, upper = torch.tensor(edges[:-1]), torch.tensor(edges[1:])
    inside = (lower >= torch.tensor(starts)[:, None]) & (upper <= torch.tensor(ends)[:, None])
    return segment_of.to(device), inside.float().to(device), widths.to(device)


def _count(labels: Tensor, size: Size, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Pixels of each class in each window, float (B, C, h, w), and pixels of each window, float (h, w)."""
    batch = len(labels)
    row, rows_inside, heights = _windows(labels.shape[1], size[0], labels.device)
    column, columns_inside, widths = _windows(labels.shape[2], size[1], labels.device)
    rows = size[0] if rows_inside is None else rows_inside.shape[1]
    columns = size[1] if columns_inside is None else columns_inside.shape[1]

    # One scatter over the pixels instead of a full-resolution map per class; ignored pixels go to a class of
    # their own, dropped below. Counts below 2^24 are exact in float32, whatever the order of additions.
    label = labels.masked_fill(labels == ignore_index, num_classes)  # (B, H, W)
    index = (label * rows + row[:, None]) * columns + column  # (B, H, W)
    counts = torch.zeros(batch, (num_classes + 1) * rows * columns, device=labels.device)
    counts.scatter_add_(
        1, index.flatten(1), torch.ones((), device=labels.device).expand(batch, index[0].numel())
    )
    counts = counts.view(batch, num_classes + 1, rows, columns)[:, :num_classes]

    if rows_inside is not None:
        counts = rows_inside @ counts
    if columns_inside is not None:
        counts = counts @ columns_inside.T
    return counts, heights[:, None] * widths


def _divides(size: Size, larger: Size) -> bool:
    return larger[0] % size[0] == 0 and larger[1] % size[1] == 0


def _distributions(
    labels: Tensor, sizes: list[Size], num_classes: int, ignore_index: int
) -> dict[Size, tuple[Tensor, Tensor]]:
    """Soft targets for several sizes, from the finest to the coarsest; the labels are read rarely."""
    image: Size = (labels.shape[1], labels.shape[2])
    counted: dict[Size, tuple[Tensor, Tensor]] = {}
    for size in sorted(set(sizes), key=lambda s: s[0] * s[1], reverse=True):
        # Windows that tile the image can be merged into larger ones that tile it.
        finer = next((s for s in reversed(counted) if _divides(s, image) and _divides(size, s)), None)
        if finer is None:
            counted[size] = _count(labels, size, num_classes, ignore_index)
        else:
            merge = (finer[0] // size[0], finer[1] // size[1])
            counts = F.avg_pool2d(counted[finer][0], merge, divisor_override=1)
            area = F.avg_pool2d(counted[finer][1][None, None], merge, divisor_override=1)[0, 0]
            counted[size] = counts, area

    targets = {}
    for size, (counts, area) in counted.items():
        labeled = counts.sum(1)  # (B, h, w)
        targets[size] = counts / labeled.clamp(min=1)[:, None], labeled / area
    return targets


def _check_labels(labels: Tensor, num_classes: int, ignore_index: int) -> None:
    if labels.ndim != 3 or labels.dtype != torch.int64:
        raise ValueError(f"labels are int64 (B, H, W), not {labels.dtype} {tuple(labels.shape)}")
    if labels.device.type == "cpu":  # elsewhere the check would wait for the device in every step
        wrong = labels[((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)]
        if len(wrong):
            raise ValueError(
                f"label {wrong[0].item()} is neither a class (0 to {num_classes - 1}) nor {ignore_index} "
                "(ignored): the data has other classes than the model's output"
            )


def label_distribution(
    labels: Tensor, size: Size, *, num_classes: int, ignore_index: int = 255
) -> tuple[Tensor, Tensor]:
    """Soft targets of an auxiliary loss: the share of each class in the N x N window of each cell (Sec. 6.1).

    The shares are among the labelled pixels of the window, so they add up to 1; a window without a labelled
    pixel has zeros. Where ``size`` does not divide the labels' size, the windows are those of adaptive
    pooling (they then overlap by one pixel at most).

    Args:
        labels: classes, int64 (B, H, W).
        size: cells (h, w) to reduce to.
        num_classes: C.
        ignore_index: the label of pixels that count for nothing.

    Returns:
        The distribution, float (B, C, h, w), and the labelled share of each window, float (B, h, w).

    Raises:
        ValueError: if ``labels`` has another shape or type, or (on the CPU) a label that is no class.
    """
    _check_labels(labels, num_classes, ignore_index)
    return _distributions(labels, [size], num_classes, ignore_index)[size]


def _soft_cross_entropy(logits: Tensor, distribution: Tensor, labeled: Tensor) -> Tensor:
    """Mean cross-entropy over the windows that are labelled by more than half; 0 where there is none."""
    loss = -(distribution * F.log_softmax(logits.float(), dim=1)).sum(1)  # (B, h, w)
    kept = (labeled > MIN_LABELED).float()
    return (loss * kept).sum() / kept.sum().clamp(min=1)


def ohem_cross_entropy(
    logits: Tensor, labels: Tensor, *, threshold: float = 0.3, share: float = 1 / 16, ignore_index: int = 255
) -> Tensor:
    """Cross-entropy of the hardest pixels of a batch, "OHEM" or "bootstrapped" loss (RegSeg paper, Sec. 4.2).

    Let K be ``share`` of the B * H * W pixels, rounded down. If more than K pixels have a loss above
    ``threshold``, the mean over those; else the mean over the K largest losses. As in the authors' code,
    pixels are ranked over the whole batch (that of this process, where there are several), and ignored ones
    count among the B * H * W but have a loss of 0. So where fewer than K pixels are labelled, zeros take part
    in the mean, and a batch with every pixel ignored has a loss of 0 and zero gradients.

    The choice between the two means is made on the host, so on a GPU each step waits for the forward pass.

    Args:
        logits: (B, C, H, W).
        labels: classes, int64 (B, H, W).
        threshold: of the loss of a hard pixel, in nats.
        share: of all pixels that counts at least, above 0; one pixel is the least.
        ignore_index: the label of pixels that are never hard.

    Returns:
        The loss, a float32 scalar.

    Raises:
        ValueError: if labels and logits do not fit each other, or a number is outside its range.
    """
    if not threshold >= 0:
        raise ValueError(f"threshold is a loss in nats, 0 or more, not {threshold}")
    if not 0 < share <= 1:
        raise ValueError(f"share is a part of the pixels, above 0 and at most 1 (such as 1/16), not {share}")
    _check_labels(labels, logits.shape[1], ignore_index)
    _check_sizes(logits, labels)
    losses = F.cross_entropy(logits.float(), labels, ignore_index=ignore_index, reduction="none").flatten()
    least = _least_hard(labels.numel(), share)
    hard = losses.detach() > threshold  # (B * H * W,)
    count = int(hard.sum())
    if count > least:
        return losses.where(hard, 0.0).sum() / count
    return losses.topk(least, sorted=False).values.mean()


def _least_hard(pixels: int, share: float) -> int:
    """K of :func:`ohem_cross_entropy`."""
    return max(1, int(pixels * share))


def _check_sizes(logits: Tensor, labels: Tensor) -> None:
    if labels.shape != logits[:, 0].shape:
        raise ValueError(f"labels {tuple(labels.shape)} do not fit logits {tuple(logits.shape)}")


def _mean_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """The mean over labelled pixels as a sum and a count: the built-in mean over no pixel at all is NaN."""
    total = F.cross_entropy(logits.float(), labels, ignore_index=ignore_index, reduction="sum")
    return total / (labels != ignore_index).sum().clamp(min=1)


def class_presence(labels: Tensor, *, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Which classes occur in each image: the target of FastFCN's semantic-encoding loss.

    Args:
        labels: classes, int64 (B, H, W).
        num_classes: C.
        ignore_index: the label of pixels that count for nothing.

    Returns:
        1 for a class that at least one pixel of the image has, else 0, float (B, C).

    Raises:
        ValueError: if ``labels`` has another shape or type, or (on the CPU) a label that is no class.
    """
    _check_labels(labels, num_classes, ignore_index)
    label = labels.masked_fill(labels == ignore_index, num_classes).flatten(1)  # (B, H * W)
    found = torch.zeros(len(labels), num_classes + 1, device=labels.device)
    return found.scatter_(1, label, 1.0)[:, :num_classes]


def presence_loss(logits: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Binary cross-entropy of which classes occur in an image, the mean over images and classes.

    An image without a labelled pixel says nothing about its classes and is left out (chosen; the authors'
    code would teach the model that it holds none of them).

    Args:
        logits: one per image and class, (B, C), before the sigmoid.
        labels: classes, int64 (B, H, W).
        ignore_index: the label of pixels that count for nothing.

    Returns:
        The loss, a float32 scalar; 0 where no image has a labelled pixel.

    Raises:
        ValueError: if labels and logits do not fit each other.
    """
    if logits.ndim != 2 or len(logits) != len(labels):
        raise ValueError(
            f"presence logits are (images, classes), one row for each of the labels {tuple(labels.shape)}, "
            f"not {tuple(logits.shape)}"
        )
    target = class_presence(labels, num_classes=logits.shape[1], ignore_index=ignore_index)
    losses = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none").mean(1)  # (B,)
    labeled = (labels != ignore_index).flatten(1).any(1).float()  # (B,)
    return (losses * labeled).sum() / labeled.sum().clamp(min=1)


def segmentation_loss(
    output: dict[str, Tensor | dict[str, Tensor]],
    labels: Tensor,
    *,
    aux_weight: float = 0.4,
    ignore_index: int = 255,
    chunked: bool = False,
    main_loss: Callable[..., Tensor] | None = None,
    aux_loss: str = "soft",
    presence_weight: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The training loss of Sec. 6.1: 0.6 times the main loss plus 0.4 times the mean of the auxiliary ones.

    With ``aux_loss="plain"`` that of FastFCN's authors' code: the main loss, plus ``aux_weight`` times the
    mean auxiliary one, plus ``presence_weight`` times that of :func:`presence_loss`.

    Args:
        output: what a model returns in training: ``"out"``, logits (B, C, H, W), and ``"aux"``, a dict from
            name to logits (B, C, h, w). Without auxiliary outputs the main loss stands alone, with weight 1.
            Perhaps ``"presence"``, logits (B, C).
        labels: classes, int64 (B, H, W).
        aux_weight: weight of the auxiliary mean; the main loss has the rest of 1 (1 with plain ones).
        ignore_index: the label of pixels that count for nothing.
        chunked: upsample ``"out"`` to the labels' size and compare it an image at a time, see
            `segkit.memory.chunked_cross_entropy`.
        main_loss: another main loss, such as :func:`ohem_cross_entropy`: from ``"out"``, labels and a keyword
            ``ignore_index`` to a scalar; None for the mean cross-entropy of the labelled pixels.
        aux_loss: ``"soft"``, each auxiliary output against the shares of the classes in its windows; or
            ``"plain"``, brought to the labels' size (bilinear, corners aligned) against the labels.
        presence_weight: weight of the loss of ``"presence"``, which is added.

    Returns:
        The total, a scalar, and its parts before weighting: ``"main"``, one per auxiliary output and
        ``"presence"``, detached. A batch with every pixel ignored has a total of 0 and zero gradients.

    Raises:
        ValueError: if labels and logits do not fit each other, another main loss shall be chunked, there is
            no such auxiliary loss, or presence has a weight and the model does not predict it.
    """
    if aux_loss not in ("soft", "plain"):
        raise ValueError(f"aux_loss is 'soft' or 'plain', not {aux_loss!r}")
    if presence_weight and output.get("presence") is None:
        raise ValueError(
            f"presence_weight={presence_weight}, but the model gives no 'presence', only "
            f"{', '.join(map(repr, output))}: take one with an Encoding head, or presence_weight=0"
        )
    if chunked and main_loss is not None:
        raise ValueError(
            f"a chunked loss is the mean cross-entropy, not {main_loss!r}: leave out chunked or main_loss"
        )
    logits = output["out"]
    _check_labels(labels, logits.shape[1], ignore_index)
    if main_loss is not None:
        main = main_loss(logits, labels, ignore_index=ignore_index)
    elif chunked:
        main = chunked_cross_entropy(logits, labels, ignore_index=ignore_index)
    else:
        _check_sizes(logits, labels)
        main = _mean_cross_entropy(logits, labels, ignore_index)
    parts, total = {"main": main}, main

    auxiliary = (output.get("aux") or {}) if aux_weight else {}
    if auxiliary:
        losses = _auxiliary_losses(auxiliary, labels, logits.shape[1], ignore_index, aux_loss)
        mean_aux = torch.stack(list(losses.values())).mean()
        total = (1 - aux_weight if aux_loss == "soft" else 1) * main + aux_weight * mean_aux
        parts |= losses
    if presence_weight:
        parts["presence"] = presence_loss(output["presence"], labels, ignore_index=ignore_index)
        total = total + presence_weight * parts["presence"]
    return total, {name: part.detach() for name, part in parts.items()}


def _auxiliary_losses(
    auxiliary: dict[str, Tensor], labels: Tensor, num_classes: int, ignore_index: int, kind: str
) -> dict[str, Tensor]:
    """The loss of each auxiliary output, see :func:`segmentation_loss`."""
    if kind == "plain":
        size = tuple(labels.shape[1:])
        found = {}
        for name, logits in auxiliary.items():
            resized = resize(logits.float(), size)  # (B, C, H, W)
            found[name] = _mean_cross_entropy(resized, labels, ignore_index)
        return found
    sizes = {name: (logits.shape[2], logits.shape[3]) for name, logits in auxiliary.items()}
    targets = _distributions(labels, list(sizes.values()), num_classes, ignore_index)
    return {name: _soft_cross_entropy(logits, *targets[sizes[name]]) for name, logits in auxiliary.items()}
