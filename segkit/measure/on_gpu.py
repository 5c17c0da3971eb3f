"""The step on a real GPU: what it took, and which operators took memory that no tensor shows."""

import gc
from typing import NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from segkit.measure.step import copy_model, make_batch, make_optimizer, run, undisturbed


class OnGpu(NamedTuple):
    """What a real step took, in bytes, from before the model was put on the GPU on.

    Attributes:
        measured: at the peak, in the blocks that the allocator handed out (``max_memory_allocated``).
        measured_requested: at the peak, as tensors and libraries asked for it. The allocator rather leaves up
            to 1 MiB of a block unused than split it off; that is what ``measured`` has beyond this.
        measured_reserved: what the allocator took from the GPU, gaps between blocks included
            (``max_memory_reserved``).
        workspace: operators that took memory of their own and gave it back before they returned, and the most
            that each did, largest first.
    """

    measured: int
    measured_requested: int
    measured_reserved: int
    workspace: dict[str, int]


def measure_on_gpu(
    step,
    model: nn.Module,
    batch_size: int,
    image_size: tuple[int, int],
    *,
    optimizer: str | None,
    precision: str,
    device: str = "cuda",
    allocator=torch.cuda,
) -> OnGpu:
    """Run the step for real.

    Three steps: one to let the libraries set themselves up, one to measure, and one that asks the allocator
    before and after every operator, to name those that took memory for themselves.

    Args:
        step, model, batch_size, image_size, optimizer, precision: as for `peak_memory`.
        device: where.
        allocator: what keeps count of it: ``torch.cuda``, or something with the same functions.
    """
    with undisturbed((torch.cuda.current_device(),) if device == "cuda" else ()):
        small = torch.ones(16, 16, device=device)
        small @ small  # cuBLAS takes a fixed workspace at its first call and keeps it; not a step's cost
        del small
        gc.collect()
        allocator.empty_cache()
        before = _in_use(allocator, "current")
        network = copy_model(model, device)
        images, labels = make_batch(network, batch_size, image_size, device)
        update = make_optimizer(network, optimizer)

        def one_step() -> None:
            network.zero_grad(set_to_none=True)
            run(step, network, images, labels, update, precision=precision)
            allocator.synchronize()

        one_step()
        network.zero_grad(set_to_none=True)
        allocator.reset_peak_memory_stats()
        one_step()
        taken = [high - low for high, low in zip(_in_use(allocator, "peak"), before, strict=True)]
        with _Workspaces(allocator) as workspaces:
            one_step()
    return OnGpu(*taken, dict(sorted(workspaces.largest.items(), key=lambda item: -item[1])))


def _in_use(allocator, when: str) -> list[int]:
    """Bytes allocated, requested and reserved, now (``"current"``) or at their highest (``"peak"``)."""
    stats = allocator.memory_stats()
    return [stats[f"{what}_bytes.all.{when}"] for what in ("allocated", "requested", "reserved")]


class _Workspaces(TorchDispatchMode):
    """Notes, for every operator, the memory that it allocated and freed again before it returned."""

    def __init__(self, allocator) -> None:
        super().__init__()
        self.allocator = allocator
        self.largest: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = self.allocator.memory_allocated()
        self.allocator.reset_peak_memory_stats()
        out = func(*args, **(kwargs or {}))
        hidden = self.allocator.max_memory_allocated() - max(before, self.allocator.memory_allocated())
        name = str(func.overloadpacket)
        if hidden > self.largest.get(name, 0):
            self.largest[name] = hidden
        return out
