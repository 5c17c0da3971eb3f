"""The step on a real GPU: what it took, and which operators took memory that no tensor shows."""

import gc

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from segkit.measure.step import copy_model, make_batch, make_optimizer, run, undisturbed


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
) -> tuple[int, dict[str, int]]:
    """Run the step for real.

    Three steps: one to let the libraries set themselves up, one to measure, and one that asks the allocator
    before and after every operator, to name those that took memory for themselves.

    Args:
        step, model, batch_size, image_size, optimizer, precision: as for `peak_memory`.
        device: where.
        allocator: what keeps count of it: ``torch.cuda``, or something with the same five functions.

    Returns:
        Bytes at the peak, from before the copy of the model on; and the hidden memory by operator.
    """
    with undisturbed((torch.cuda.current_device(),) if device == "cuda" else ()):
        small = torch.ones(16, 16, device=device)
        small @ small  # cuBLAS takes a fixed workspace at its first call and keeps it; not a step's cost
        del small
        gc.collect()
        allocator.empty_cache()
        before = allocator.memory_allocated()
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
        measured = allocator.max_memory_allocated() - before
        with _Workspaces(allocator) as workspaces:
            one_step()
    return measured, dict(sorted(workspaces.largest.items(), key=lambda item: -item[1]))


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
