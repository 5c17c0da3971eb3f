"""The loss at full resolution, an image at a time: the whole batch's score maps never exist at once.

Cross-entropy on logits upsampled to the image holds three maps of (B, classes, H, W) at its peak: the logits,
their log-softmax and its gradient, 770 MiB for 19 classes and six crops of 768x768. In a lean network nothing
else is as large. Here each image is upsampled, compared and let go; the backward pass does it again. What is
kept are the logits at their own resolution.
"""

import inspect

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segkit.measure.peak import AUX_WEIGHT, soft_targets


def chunked_cross_entropy(logits: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Mean cross-entropy of upsampled logits over the labelled pixels, in one chunk per image.

    It is that of ``F.cross_entropy(upsampled, labels, ignore_index=...)`` up to the rounding of a sum in
    another order: the chunks' sums over the count of all labelled pixels, not a mean of means. Without a
    labelled pixel it is 0.

    Args:
        logits: scores at any resolution, (B, C, h, w), e.g. ``model(x, full_size=False)["out"]``; upsampled
            bilinearly to the labels' size, in float32.
        labels: classes, int64 (B, H, W).
        ignore_index: the label of pixels that count for nothing.

    Raises:
        TypeError: if they are no tensors, or the labels no int64.
        ValueError: if the shapes do not fit each other.
    """
    if not (isinstance(logits, Tensor) and isinstance(labels, Tensor)) or labels.dtype != torch.int64:
        kinds = [str(getattr(x, "dtype", type(x).__name__)) for x in (logits, labels)]
        raise TypeError(f"Expected floating-point logits and int64 labels, got {kinds[0]} and {kinds[1]}.")
    if logits.ndim != 4 or labels.ndim != 3 or len(logits) != len(labels):
        raise ValueError(
            f"Expected logits (B, C, h, w) and labels (B, H, W) of one batch, got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}."
        )
    total = torch.stack(
        [
            checkpoint(_loss_of_one, one, truth, ignore_index, use_reentrant=False)
            for one, truth in zip(logits.split(1), labels.split(1), strict=True)
        ]
    ).sum()
    return total / (labels != ignore_index).sum().clamp(min=1)


def _loss_of_one(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """(1, C, h, w) and (1, H, W) -> the sum over the pixels."""
    size = labels.shape[-2:]
    if logits.shape[-2:] != size:
        logits = F.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=False)
    return F.cross_entropy(logits.float(), labels, ignore_index=ignore_index, reduction="sum")


def chunked_step(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The default step of `segkit.measure.peak_memory` with the loss in chunks: pass it as ``step=``.

    Auxiliary losses are checkpointed too, each on its own.

    Args:
        model: its forward takes ``full_size=False`` and returns a dict, as those of `segkit.models` do.
        images: float (B, 3, H, W).
        labels: int64 (B, H, W).

    Raises:
        TypeError: if the model can only give logits at full size.
    """
    if "full_size" not in inspect.signature(model.forward).parameters:
        raise TypeError(
            f"{type(model).__name__}.forward has no full_size=False, so its logits are upsampled before a "
            f"chunked loss could do it. Let it return them at their own resolution, or write a step that "
            f"calls chunked_cross_entropy."
        )
    output = model(images, full_size=False)
    loss = chunked_cross_entropy(output["out"], labels)
    if auxiliary := output.get("aux"):
        losses = [checkpoint(_auxiliary_loss, aux, use_reentrant=False) for aux in auxiliary.values()]
        loss = (1 - AUX_WEIGHT) * loss + AUX_WEIGHT * torch.stack(losses).mean()
    return loss


def _auxiliary_loss(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, soft_targets(logits))
