"""One training step: a copy of the model, a batch, an optimizer in mid-training, and the run itself."""

import copy
import gc
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from segkit.measure import meta
from segkit.measure.autocast import CudaAutocast
from segkit.measure.tracker import MeasurementError, Tracker

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict, tuple[str, ...]]] = {
    # class, arguments, and what it keeps for every parameter; foreach is what PyTorch takes on a GPU
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "foreach": True}, ("momentum_buffer",)),
    "adam": (torch.optim.Adam, {"foreach": True}, ("exp_avg", "exp_avg_sq")),
    "amsgrad": (
        torch.optim.Adam,
        {"amsgrad": True, "foreach": True},
        ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    ),
}


def run(
    step,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    update: torch.optim.Optimizer | None,
    *,
    precision: str,
    tracker: Tracker | None = None,
) -> None:
    """Forward, loss, backward and update; ``tracker`` None on a GPU, where the real autocast is at hand."""
    if precision == "fp32":
        imitated, real = nullcontext(), nullcontext()
    elif tracker is not None:
        imitated, real = CudaAutocast(torch.bfloat16), nullcontext()
    else:
        imitated, real = nullcontext(), torch.autocast(images.device.type, torch.bfloat16)
    with imitated:  # while the backward pass runs, it is there for recomputed segments only
        with real:
            result = step(model, images, labels)
        loss = result[0] if isinstance(result, (tuple, list)) and result else result
        if isinstance(loss, Tensor) and loss.requires_grad:
            if loss.numel() != 1:
                raise ValueError(
                    f"The step returned a loss of shape {tuple(loss.shape)}; it must be a single number."
                )
            loss.backward()
    if all(parameter.grad is None for parameter in model.parameters()):
        raise MeasurementError(
            f"The step computed no gradient for any parameter of {type(model).__name__}. A step returns the "
            f"loss (or a tuple with the loss first), or calls backward itself; some parameter must require a "
            f"gradient."
        )
    if update is not None:
        if tracker is not None:
            tracker.optimizing = True
        update.step()


def make_batch(
    model: nn.Module, batch_size: int, image_size: tuple[int, int], device: str
) -> tuple[Tensor, Tensor]:
    """Images, random where they are real, (B, 3, H, W), and labels, int64 zeros (B, H, W)."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if device == "meta":
        images = torch.empty(batch_size, 3, *image_size, dtype=dtype, device=device)
    else:
        generator = torch.Generator(device).manual_seed(0)
        images = torch.rand(batch_size, 3, *image_size, dtype=dtype, device=device, generator=generator)
    return images, torch.zeros(batch_size, *image_size, dtype=torch.int64, device=device)


def make_optimizer(model: nn.Module, name: str | None) -> torch.optim.Optimizer | None:
    """An optimizer in mid-training: its state exists."""
    if name is None:
        return None
    kind, arguments, slots = OPTIMIZERS[name]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError(
            f"No parameter of {type(model).__name__} requires a gradient; there is nothing to train."
        )
    optimizer = kind(trained, lr=1e-4, **arguments)
    for parameter in trained:
        zeros = meta.empty_like if parameter.is_meta else torch.zeros_like
        state = {slot: zeros(parameter.detach()) for slot in slots}
        if name != "sgd":
            state["step"] = torch.tensor(1.0, device="cpu")
        optimizer.state[parameter] = state
    return optimizer


def copy_model(model: nn.Module, device: str) -> nn.Module:
    """A copy of a module on a device, in train mode; on ``"meta"`` without its data, at no cost.

    Everything else is copied as it is, hooks and shared parameters too. A module on the meta device that is
    copied to a real one gets small random parameters.

    Raises:
        MeasurementError: if the module has parts that cannot be copied.
        ValueError: if it has uninitialized (lazy) parameters.
    """
    memo: dict[int, object] = {}
    place = _Place(device)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(
                f"{name} of {type(model).__name__} has no size yet; run one forward pass before measuring."
            )
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(place.copy(parameter), requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = place.copy(buffer)
    try:
        with place:  # tensors kept elsewhere than among parameters and buffers
            network = copy.deepcopy(model, memo)
    except (TypeError, NotImplementedError, RuntimeError) as error:
        raise MeasurementError(
            f"{type(model).__name__} cannot be copied, and measuring must not touch the original: {error}. "
            f"Keep what cannot be copied (open files, locks, generators) out of the module's attributes."
        ) from error
    return network if network.training else network.train()


class _Place(TorchFunctionMode):
    """While active, deep copies of tensors end up on a device, without data if that is ``"meta"``."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.generator = None if device == "meta" else torch.Generator(device).manual_seed(0)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            return memo.setdefault(id(tensor), self.copy(tensor))
        return func(*args, **(kwargs or {}))

    def copy(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if self.device == "meta":
            return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
        if not tensor.is_meta:
            return tensor.to(self.device, copy=True)
        made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=self.device)
        if tensor.is_floating_point() and tensor.dim() > 1:
            return made.normal_(std=0.05, generator=self.generator)
        return made.fill_(1) if tensor.is_floating_point() else made.zero_()


@contextmanager
def undisturbed(devices: tuple = ()) -> Iterator[None]:
    """Leaves the random state as it was, whatever a model draws, and the garbage collector out of the count.

    Reference cycles hold memory until the collector happens to run. Without it the count is the same in every
    run.
    """
    state, collecting = random.getstate(), gc.isenabled()
    gc.disable()
    try:
        with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        random.setstate(state)
        if collecting:
            gc.enable()
