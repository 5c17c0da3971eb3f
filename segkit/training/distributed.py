"""One process per GPU (or CPU process), as ``torchrun`` starts them. With one process all this is free."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segkit.memory.recompute import Segments


@dataclass(frozen=True)
class World:
    """This process among all of a run. Every method but ``main`` is called by all processes or by none."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Element-wise mean over the processes."""
        if self.size > 1:
            dist.all_reduce(values)
            values = values / self.size
        return values

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """The main process's flags, so that all processes stop or save at the same step."""
        if self.size == 1:
            return flags
        tensor = torch.tensor(flags, dtype=torch.uint8, device=self.device)
        dist.broadcast(tensor, 0)
        return tuple(bool(flag) for flag in tensor.tolist())

    def gather(self, item: Any) -> list[Any]:
        """A small object of each process, by rank."""
        items: list[Any] = [item]
        if self.size > 1:
            items = [None] * self.size
            dist.all_gather_object(items, item)
        return items

    def share(self, item: Any) -> Any:
        """The main process's object."""
        return self.gather(item)[0]

    def share_buffers(self, model: nn.Module) -> None:
        """Gives every process the main one's buffers: batch-norm averages may differ between them."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def share_of_batch(self, batch_size: int) -> int:
        """Images of a step that fall to one process.

        Raises:
            ValueError: if the batch cannot be split evenly.
        """
        if batch_size % self.size:
            raise ValueError(
                f"batch_size {batch_size} is that of all processes and cannot be split over {self.size}: "
                f"choose a multiple of {self.size}"
            )
        return batch_size // self.size

    def wrap(self, model: nn.Module, *, all_used: bool = True) -> nn.Module:
        """The model as training calls it: gradients are averaged over the processes.

        Args:
            model: on this process's device, with batch norm already synchronised where it shall be.
            all_used: whether every parameter takes part in every step.
        """
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=not all_used)


def choose_device(
    device: str | torch.device | None, *, local_rank: int = 0, processes: int = 1
) -> torch.device:
    """The device asked for, or the GPU of this process, or the CPU.

    Args:
        device: "cpu", "cuda", "cuda:1"; None for a GPU where there is one.
        local_rank: this process among those of its machine: the GPU it takes.
        processes: how many there are in all; with several, no GPU can be asked for by number.

    Raises:
        ValueError: if the device is not there, or would be that of several processes.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"no device is called {device!r}: use cpu, cuda or cuda:0") from error
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {device!r} was asked for, but torch finds no GPU here: use cpu")
        if chosen.index is not None and processes > 1:
            raise ValueError(
                f"device {str(device)!r} would be that of all {processes} processes, but each needs its own "
                "GPU: use cuda"
            )
        index = local_rank if chosen.index is None else chosen.index
        if index >= torch.cuda.device_count():
            raise ValueError(f"there is no GPU {index}: this machine has {torch.cuda.device_count()}")
        chosen = torch.device("cuda", index)
    return chosen


@contextlib.contextmanager
def join(device: str | torch.device | None = None) -> Iterator[World]:
    """Joins the processes that ``torchrun`` started, if it did, and leaves them at the end.

    A process group that is already there is used and left as it is.
    """
    started = int(os.environ.get("WORLD_SIZE", 1))
    chosen = choose_device(device, local_rank=int(os.environ.get("LOCAL_RANK", 0)), processes=started)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if dist.is_available() and dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size(), chosen)
    elif started > 1:
        gpu = {"device_id": chosen} if chosen.type == "cuda" else {}
        dist.init_process_group("nccl" if gpu else "gloo", **gpu)
        try:
            yield World(dist.get_rank(), dist.get_world_size(), chosen)
        finally:
            dist.destroy_process_group()
    else:
        yield World(0, 1, chosen)


def synchronize_batchnorm(model: nn.Module, world: World) -> nn.Module:
    """Batch statistics over all processes, on GPUs (SyncBatchNorm needs them); else the model as it is.

    Raises:
        ValueError: if the model has norms that run in parts (label ``nested``), which SyncBatchNorm cannot.
    """
    if world.size == 1 or world.device.type != "cuda":
        return model
    if isinstance(getattr(model, "segment", None), Segments) and model.segment.has("nested"):
        raise ValueError(
            "recompute has nested, which normalizes some of the maps at a time; batch norm over several GPUs "
            "cannot: leave out nested, or train on one GPU"
        )
    # SyncBatchNorm is torch's own class: what the kit's batch norm knows beyond torch's must be carried over.
    in_place = {name: m.relu_in_place for name, m in model.named_modules() if hasattr(m, "relu_in_place")}
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for name, value in in_place.items():
        model.get_submodule(name).relu_in_place = value
    return model
