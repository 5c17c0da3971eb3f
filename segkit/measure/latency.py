"""How long a forward pass takes, of several networks side by side.

A machine is never equally busy twice. So the networks take turns, one pass each in every round, and medians
and ratios within a round are reported; a busy moment hits all alike.
"""

import inspect
import random
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from segkit.measure.step import copy_model, make_batch, undisturbed

__all__ = ["Latency", "interleaved", "latency"]

# The RegSeg paper's mixed precision on a T4 is float16, which has no bfloat16 units.
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
PAPERS_WARMUP, PAPERS_ROUNDS = 10, 100  # RegSeg paper, Sec. 4.7: untimed iterations, then timed ones
Clock = Callable[[], float]


@dataclass(frozen=True)
class Latency:
    """How long one network takes.

    Attributes:
        times: seconds of each timed pass of a whole batch, in the order of the rounds.
        ratio: to the first network, the median over the rounds of this pass by that one's; 1.0 for the first.
        batch_size: images in a pass.
    """

    times: tuple[float, ...] = field(repr=False)
    ratio: float = 1.0
    batch_size: int = 1

    @property
    def median(self) -> float:
        """Seconds of a pass, the median."""
        return statistics.median(self.times)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Seconds of a pass, the lower and the upper quartile."""
        if len(self.times) == 1:
            return self.times * 2
        lower, _, upper = statistics.quantiles(self.times, n=4, method="inclusive")
        return lower, upper

    @property
    def per_second(self) -> float:
        """Images per second, by the median."""
        return self.batch_size / self.median

    def __str__(self) -> str:
        lower, upper = self.quartiles
        return (
            f"{1e3 * self.median:.2f} ms ({1e3 * lower:.2f} to {1e3 * upper:.2f}), "
            f"{self.per_second:.2f} images/s, ratio {self.ratio:.3f}"
        )


def latency(
    models: nn.Module | Mapping[str, nn.Module],
    image_size: tuple[int, int],
    *,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    rounds: int = 9,
    warmup: int = 2,
    precision: str = "fp32",
    auxiliary: bool = False,
) -> Latency | dict[str, Latency]:
    """Time the forward pass of one network, or of several that take turns.

    In eval mode and without autograd, on random images, from the call to the last value on the device; what a
    network puts out at input size is part of it. On a GPU each pass is synchronized before and after, and
    cuDNN picks its kernels by trial (``torch.backends.cudnn.benchmark``) in the warm-up, as in the RegSeg
    paper, Sec. 4.7; its numbers of passes are ``rounds=PAPERS_ROUNDS, warmup=PAPERS_WARMUP``.

    Args:
        models: takes images (B, 3, H, W); or a dict from name to such modules, the first of which is what
            the ratios are to. Timed are copies, in the originals' memory format: mode, device, values,
            gradients and the random state stay as they are.
        image_size: (H, W) in pixels.
        batch_size: B, images in a pass.
        device: where to run, "cpu" or "cuda"; None: where the models are.
        rounds: timed passes of each model; of several models, each right after an untimed one of its own.
        warmup: rounds before, not timed.
        precision: "fp32" (convolutions on a GPU: TF32, PyTorch's default), or autocast to "bf16" or "fp16".
        auxiliary: False runs the path to ``"out"`` alone, True the auxiliary heads too, as FastFCN's Table 2
            was timed; passed on as ``model(x, auxiliary=...)`` where the model's forward knows that argument.

    Returns:
        A `Latency`, or for a dict one for each name.

    Raises:
        TypeError: if ``models`` is neither a module nor a dict of modules.
        ValueError: if an argument is none of those above, or a model is on the meta device.
        RuntimeError: if ``device="cuda"`` and there is none.
        MeasurementError: if a model cannot be copied.
    """
    named = models if isinstance(models, Mapping) else {"": models}
    place = _check(named, image_size, batch_size, device, rounds, warmup, precision)
    passes: dict[str, Callable[[], object]] = {}
    with undisturbed((place,) if place.type == "cuda" else ()):
        for name, model in named.items():
            network = copy_model(model, str(place)).eval()
            knows = "auxiliary" in inspect.signature(network.forward).parameters
            images, _ = make_batch(network, batch_size, image_size, str(place))
            passes[name] = partial(
                _forward, network, images, {"auxiliary": auxiliary} if knows else {}, PRECISIONS[precision]
            )
        times = interleaved(passes, rounds=rounds, warmup=warmup, device=place)
    found = compared(times, batch_size)
    return found if isinstance(models, Mapping) else found[""]


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int,
    device: torch.device | str = "cpu",
    clock: Clock = time.perf_counter,
) -> dict[str, tuple[float, ...]]:
    """Seconds of each call in each round; the calls take turns, in an order that changes.

    Where there are several, an untimed call comes right before each timed one: caches and the allocator are
    then as the call itself leaves them, not the one whose turn was before, which makes more than 10 % where
    memory is asked of the system anew.

    Args:
        calls: by name.
        rounds: timed rounds.
        warmup: rounds before, not timed.
        device: a GPU is synchronized before and after each call, and its cuDNN picks kernels by trial.
        clock: seconds; `time.process_time` for the CPU's time, which other programs disturb less.
    """
    device = torch.device(device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, chance = list(calls), random.Random(0)
    with _settled(device):
        for turn in range(-warmup, rounds):
            chance.shuffle(order)
            for name in order:
                if len(order) > 1:
                    calls[name]()
                _synchronize(device)
                began = clock()
                result = calls[name]()
                _synchronize(device)
                taken = clock() - began
                del result  # not inside of the time, nor alive while the next one runs
                if turn >= 0:
                    times[name].append(taken)
    return {name: tuple(taken) for name, taken in times.items()}


def compared(times: Mapping[str, tuple[float, ...]], batch_size: int = 1) -> dict[str, Latency]:
    """A `Latency` for each name; the ratios are to the first, round by round."""
    first = next(iter(times.values()))
    return {
        name: Latency(
            times=taken,
            ratio=statistics.median(mine / other for mine, other in zip(taken, first, strict=True)),
            batch_size=batch_size,
        )
        for name, taken in times.items()
    }


def _forward(network: nn.Module, images: Tensor, options: dict, dtype: torch.dtype | None) -> object:
    with (
        torch.inference_mode(),
        torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None),
    ):
        return network(images, **options)


@contextmanager
def _settled(device: torch.device):
    """On a GPU lets cuDNN try its kernels, for as long as this lasts."""
    before = torch.backends.cudnn.benchmark
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _check(
    models: Mapping[str, nn.Module],
    image_size: tuple[int, int],
    batch_size: int,
    device: torch.device | str | None,
    rounds: int,
    warmup: int,
    precision: str,
) -> torch.device:
    """Refuses what cannot be timed; returns the device to run on."""
    if not models:
        raise ValueError("There is no model to time: the dict is empty.")
    for name, model in models.items():
        if not isinstance(model, nn.Module):
            where = f" under {name!r}" if name else ""
            raise TypeError(f"Expected a torch.nn.Module{where}, got {type(model).__name__}.")
    if (
        not isinstance(image_size, (tuple, list))
        or len(image_size) != 2
        or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in image_size)
    ):
        raise ValueError(f"image_size={image_size!r}: give (H, W), two positive integers, e.g. (1024, 2048).")
    for name, value, least in (("batch_size", batch_size, 1), ("rounds", rounds, 1), ("warmup", warmup, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r}: give an integer of at least {least}.")
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: choose {', '.join(map(repr, PRECISIONS))}.")

    places: dict[torch.device, str] = {}
    for name, model in models.items():
        for tensor in (*model.parameters(), *model.buffers()):
            places.setdefault(tensor.device, name or type(model).__name__)
    for place, name in places.items():
        if place.type == "meta":
            raise ValueError(
                f"{name} is on the meta device: its tensors have sizes but no values, so there is nothing to "
                f"time. Build it on 'cpu' or 'cuda'; segkit.measure.cost counts its work on meta."
            )
    if device is None and len(places) > 1:
        listed = ", ".join(f"{name} on {place}" for place, name in places.items())
        raise ValueError(f"Models on several devices cannot be compared ({listed}); give device=.")
    try:
        place = next(iter(places), torch.device("cpu")) if device is None else torch.device(device)
    except RuntimeError as error:  # torch's own message lists dozens of device types
        raise ValueError(f"device={device!r}: choose None, 'cpu' or 'cuda'.") from error
    if place.type not in ("cpu", "cuda"):
        raise ValueError(f"device={str(place)!r}: choose None, 'cpu' or 'cuda'.")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("No CUDA device here; use device='cpu', or run this on a GPU machine.")
    return place
