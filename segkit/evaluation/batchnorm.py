"""Exact batch-norm statistics after training (Ladder-DenseNet, Sec. 6.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from segkit.evaluation.metrics import reduce_over_ranks


class _Moments:
    """Running count, mean and sum of squared deviations per channel, in float64.

    Batches are merged with the parallel variance formula instead of summing squares, which would lose all
    digits where the mean is large beside the deviation.
    """

    def __init__(self, layer: _BatchNorm) -> None:
        device = layer.running_mean.device
        # Apple's GPUs have no float64.
        self.device = torch.device("cpu") if device.type == "mps" else device
        self.count = torch.zeros((), dtype=torch.float64, device=self.device)
        self.mean = torch.zeros(layer.num_features, dtype=torch.float64, device=self.device)
        self.deviations = torch.zeros_like(self.mean)

    def add(self, x: Tensor) -> None:
        """Adds a layer's input (B, C, ...)."""
        x = x if x.dtype == torch.float64 else x.float()
        variance, mean = torch.var_mean(x, [d for d in range(x.ndim) if d != 1], correction=0)
        count = x.numel() // x.shape[1]
        total = self.count + count
        shift = mean.to(self.device, torch.float64) - self.mean
        self.deviations += variance.to(self.device, torch.float64) * count
        self.deviations += shift**2 * (self.count * count / total)
        self.mean += shift * (count / total)
        self.count = total

    def all_reduce(self) -> None:
        """Merges the moments of all processes."""
        count = reduce_over_ranks(self.count)
        mean = reduce_over_ranks(self.mean * self.count) / count.clamp(min=1)
        self.deviations = reduce_over_ranks(self.deviations + self.count * (self.mean - mean) ** 2)
        self.count, self.mean = count, mean


@torch.no_grad()
def exact_statistics(
    model: nn.Module, batches: Iterable[Tensor], *, amp: bool = False, all_reduce: bool = True
) -> list[str]:
    """Replaces the running averages of every batch norm by exact statistics over the given batches.

    The paper recomputes the statistics "as exact averages over the training set instead of decayed moving
    averages". Here each layer gets the mean and the unbiased variance of all values that reach it, pooled
    over all batches. (Averaging the batches' variances would miss the spread of the batches' means, and weigh
    a small last batch like a full one.) What reaches a layer is taken as in training: the layers before it
    normalize with the statistics of their batch, so batches should be of the size trained with. Dropout is
    off, as where the statistics will be used. Auxiliary heads run, so that they get theirs too.

    A layer is left alone when it is frozen (in eval mode inside a model in train mode), keeps no running
    averages, or is not reached. Apart from the running means and variances the model stays as it was.

    Args:
        model: any model; called with each batch in train mode, without gradients.
        batches: normalized images, float (B, 3, H, W), in any number of batches of any size; moved to the
            model's device.
        amp: run the model in bfloat16 where it may (only on a GPU), as it was trained.
        all_reduce: where a process group is initialized, pool over all processes, each with its own batches;
            all have to call then, with equally many where SyncBatchNorm makes them wait for each other.
            False: each process for itself.

    Returns:
        Names of the layers that got new statistics.

    Raises:
        ValueError: when there is no batch, or a layer sees a single value per channel.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module  # its forward would wait for the other ranks, which may hold fewer batches
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.running_mean is not None
        and (module.training or not model.training)
    }
    moments = {name: _Moments(layer) for name, layer in layers.items()}
    handles = [
        layer.register_forward_pre_hook(_observer(name, moments[name])) for name, layer in layers.items()
    ]
    seen = 0
    try:
        with _left_as_it_was(model, layers.values()):
            if not model.training:
                model.train()
            for module in model.modules():
                if isinstance(module, _DropoutNd):
                    module.eval()
            for batch in batches:
                device = next((p.device for p in model.parameters()), batch.device)
                with torch.autocast(device.type, torch.bfloat16, enabled=amp and device.type == "cuda"):
                    model(batch.to(device))
                seen += 1
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise ValueError("there is no batch to take batch-norm statistics from")
    reached = []
    for name, layer in layers.items():
        if all_reduce:
            moments[name].all_reduce()
        count = moments[name].count.item()
        if count > 0:
            layer.running_mean.copy_(moments[name].mean)
            layer.running_var.copy_(moments[name].deviations / (count - 1))
            reached.append(name)
    return reached


def _observer(name: str, moments: _Moments) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def observe(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (x,) = inputs  # (B, C, ...)
        if x.numel() == x.shape[1] and not isinstance(layer, nn.SyncBatchNorm):
            raise ValueError(
                f"batch norm {name!r} sees one value per channel, input {tuple(x.shape)}: "
                "no variance to take; give batches of two images or more"
            )
        moments.add(x)

    return observe


@contextmanager
def _left_as_it_was(model: nn.Module, layers: Iterable[_BatchNorm]) -> Iterator[None]:
    """Undoes what a pass in train mode changes: modes, and the averages that it moves."""
    modes = {module: module.training for module in model.modules()}
    buffers = [
        b for layer in layers for b in (layer.running_mean, layer.running_var, layer.num_batches_tracked)
    ]
    values = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for buffer, value in zip(buffers, values, strict=True):
            buffer.copy_(value)
