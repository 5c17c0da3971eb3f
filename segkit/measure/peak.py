"""Peak memory of a training step, of any model at any size, without allocating it.

One step is run on meta tensors, which have sizes but no data, while a `Tracker` follows every storage.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.measure.allocator import MIB, Requests
from segkit.measure.on_gpu import measure_on_gpu
from segkit.measure.step import OPTIMIZERS, copy_model, make_batch, make_optimizer, run, undisturbed
from segkit.measure.tracker import INPUT, KINDS, MODEL, Alive, MeasurementError, Timeline, Tracker

__all__ = ["MeasurementError", "PeakMemory", "max_batch", "peak_memory"]

AUX_WEIGHT = 0.4
NOT_COUNTED = "cuDNN workspaces, the allocator's cache and fragmentation, the CUDA context"

# A step takes model, images and labels. What it returns stays alive until the step ends; see `peak_memory`.
Step = Callable[[nn.Module, Tensor, Tensor], object]

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class PeakMemory:
    """What one training step takes at its peak, the moment with the highest sum of live storages.

    Attributes:
        total: bytes at the peak.
        by_kind: the same bytes by kind. ``parameters``: parameters and buffers; ``gradients``: of parameters;
            ``optimizer state``; ``activations``: what autograd keeps for the backward pass; ``temporaries``:
            all else that operators made: their working memory, gradients of activations, and what the step
            itself holds on to (the default step: the full-resolution logits); ``input``: images and labels.
        by_module: the same bytes by path of the module that made them, largest first. A gradient belongs to
            the module of what it is the gradient of. Not in a submodule: ``(model)``, the model's own
            forward; ``(step)``, the loss; ``(optimizer)``; ``(input)``.
        alive: the same bytes by (module, kind).
        timeline: live bytes after every operator that allocated, see `Timeline`; ``timeline.peak`` is the
            index.
        measured: on a GPU, the bytes that a real step took (``torch.cuda.max_memory_allocated``); otherwise
            None.
        measured_requested: on a GPU, the bytes that tensors and libraries asked for at the peak. What
            ``measured`` has beyond them are ends of blocks that the allocator does not split off.
        measured_reserved: on a GPU, the bytes that the allocator took from it, to hold against ``reserved``
            (``torch.cuda.max_memory_reserved``).
        workspace: on a GPU, operators that allocated memory of their own out of the tracker's sight (cuDNN's
            workspaces), and the most bytes each did, largest first; otherwise empty.
        alive_at: ``alive_at(i)`` is like ``alive`` for entry ``i`` of the timeline.
        requests: all that the step asks of an allocator, in order; see `segkit.measure.allocator.Requests`.
    """

    total: int
    by_kind: dict[str, int]
    by_module: dict[str, int]
    alive: dict[tuple[str, str], int] = field(repr=False)
    timeline: Timeline = field(repr=False)
    measured: int | None = None
    measured_requested: int | None = None
    measured_reserved: int | None = None
    workspace: dict[str, int] = field(default_factory=dict)
    alive_at: Alive = field(default_factory=Alive, repr=False, compare=False)
    requests: Requests = field(default_factory=lambda: Requests((), 0, ()), repr=False, compare=False)

    @property
    def reserved(self) -> int:
        """Bytes that PyTorch takes from a GPU for such steps where it may take as many as it likes.

        Simulated by the rules of its allocator, see `segkit.measure.allocator`: the tensors, and the gaps
        between them. cuDNN's workspaces and the CUDA context come on top.
        """
        return self.requests.reserved

    def fits(self, gib: float) -> bool:
        """Whether such steps run where PyTorch's allocator may take so many GiB (2^30 bytes) of a card.

        As ``reserved``; near the limit the allocator gives unused segments back, so that less may do.
        """
        return self.requests.fits(gib)

    @property
    def forward_macs(self) -> int:
        """Multiply-adds of convolutions and matrix products in the forward pass and the loss."""
        return self._macs("forward")

    @property
    def recomputed_macs(self) -> int:
        """Multiply-adds of convolutions and matrix products that the backward pass does a second time."""
        return self._macs("recompute")

    def _macs(self, wanted: str) -> int:
        work = zip(self.timeline.phases, self.timeline.macs, strict=True)
        return sum(macs for phase, macs in work if phase == wanted)

    def __str__(self) -> str:
        i = self.timeline.peak
        where = f"{self.timeline.phases[i]}, {self.timeline.operators[i]}"
        lines = [f"{self.total / MIB:9.1f} MiB at the peak ({where})"]
        lines += [f"{self.by_kind[kind] / MIB:9.1f}   {kind}" for kind in KINDS]
        if self.measured is not None:
            lines.append(f"{self.measured / MIB:9.1f} MiB measured on the GPU")
        return "\n".join([*lines, f"not counted: {NOT_COUNTED}"])


def peak_memory(
    model: nn.Module,
    batch_size: int,
    image_size: tuple[int, int],
    *,
    step: Step | None = None,
    optimizer: str | None = None,
    device: str = "meta",
    precision: str = "fp32",
) -> PeakMemory:
    """Peak memory of one training step.

    It is a step in the steady state: the optimizer's state exists, gradients are None before the forward
    pass; then forward, loss, backward, and the optimizer's update. The default loss is the cross-entropy at
    input size, int64 labels, the full-resolution logits alive until the step ends. Auxiliary outputs count
    0.4, averaged, against 0.6; each is compared with soft targets of its own size (class shares, as the LDN
    paper has them, Section 6.1; taken as given: what it takes to make them from labels is not in it).

    Left out: cuDNN's workspaces, which only a GPU can tell, the CUDA context, and what PyTorch's allocator
    takes from a card beyond the tensors (``reserved`` of the result has it). The masks of `torch.nn.Dropout`
    count with the activation's own type, as on the CPU; CUDA keeps one byte for each element.

    Args:
        model: any module that takes images (B, 3, H, W). It is analysed as a copy: parameters and buffers,
            gradients, flags, hooks and the RNG's state stay as they are. With device="meta" the copy holds no
            data. A model in eval mode is put in train mode (the copy); one in train mode keeps its
            submodules' modes.
        batch_size: B.
        image_size: (H, W) in pixels.
        step: ``step(model, images, labels)`` for another loss: images float (B, 3, H, W), labels int64 (B, H,
            W), all zeros. It either returns the loss, on which backward is then called, or calls backward
            itself and returns no loss. It may return a tuple with the loss first. Whatever it returns stays
            alive until the step ends.
        optimizer: None, "sgd" (with momentum), "adam" or "amsgrad": 0, 1, 2, 3 times the trainable
            parameters.
        device: "meta"; "cpu" follows real tensors in the same way; "cuda" adds what a real step took to the
            prediction, as ``.measured`` and what follows there.
        precision: "fp32", or "bf16": autocast as on CUDA (see `CudaAutocast` for what is imitated, and the
            error).

    Returns:
        The peak, what it consists of, and the timeline.

    Raises:
        ValueError, TypeError: if an argument is none of those above, or the model's output does not fit the
            default step.
        MeasurementError: if the step cannot run on meta tensors (a value decides the control flow, an
            operator has no meta kernel), or computes no gradient.
        RuntimeError: if device="cuda" and there is none.
    """
    device = str(device)
    check_arguments(model, batch_size, image_size, step, optimizer, device, precision)
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            "No CUDA device here; use device='meta' for the prediction, or run this on a GPU machine."
        )
    _settle()
    followed = "cpu" if device == "cpu" else "meta"
    tracker = _follow(model, batch_size, image_size, step or default_step, optimizer, followed, precision)
    on_gpu = {}
    if device == "cuda":
        found = measure_on_gpu(
            step or default_step, model, batch_size, image_size, optimizer=optimizer, precision=precision
        )
        on_gpu = found._asdict()

    timeline = tracker.timeline
    alive_at = tracker.record()
    alive = alive_at(timeline.peak)
    modules: dict[str, int] = {}
    for (module, _), size in alive.items():
        modules[module] = modules.get(module, 0) + size
    by_kind = timeline[timeline.peak][1]
    return PeakMemory(
        total=sum(by_kind.values()),
        by_kind=by_kind,
        by_module=dict(sorted(modules.items(), key=lambda item: -item[1])),
        alive=alive,
        timeline=timeline,
        alive_at=alive_at,
        requests=tracker.requests(),
        **on_gpu,
    )


def max_batch(
    model: nn.Module,
    image_size: tuple[int, int],
    budget_gib: float,
    *,
    step: Step | None = None,
    optimizer: str | None = None,
    precision: str = "fp32",
    fragmentation: bool = False,
    limit: int = 4096,
) -> int:
    """The largest batch whose training step stays within a budget, by bisection on `peak_memory`.

    The budget is for what `peak_memory` counts, or with ``fragmentation`` for what PyTorch's allocator takes
    from the card to serve it. A card of 12 GiB offers less: the CUDA context (about half a GiB) and cuDNN's
    workspaces come out of it.

    Args:
        model: as for `peak_memory`, like ``step``, ``optimizer`` and ``precision``.
        image_size: (H, W) in pixels.
        budget_gib: GiB, 2^30 bytes.
        fragmentation: whether the gaps that the allocator leaves between tensors count too, as
            `PeakMemory.fits` has them. Checkpointed steps leave large ones.
        limit: where the search ends.

    Returns:
        The batch size; 0 if not even the smallest that the model can be trained with fits.

    Raises:
        ValueError: if the budget does not even hold the parameters, their gradients and the optimizer's
            state; and as `peak_memory`.
        MeasurementError: as `peak_memory`.
    """
    check_arguments(model, 1, image_size, step, optimizer, "meta", precision)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ValueError(f"limit={limit!r}: give an integer of at least 1.")
    budget = budget_in_bytes(model, budget_gib, optimizer)

    @cache
    def step_of(batch: int) -> PeakMemory:
        return peak_memory(model, batch, image_size, step=step, optimizer=optimizer, precision=precision)

    smallest = 1
    try:
        step_of(smallest)
    except ValueError:  # batch norm on a 1x1 map cannot train on a single image
        smallest = 2
    fixed = static_bytes(model, optimizer)
    if fragmentation:
        return largest_fitting_batch(
            lambda n: step_of(max(n, smallest)).requests,
            budget_gib,
            fixed=fixed,
            first=smallest,
            smallest=smallest,
            limit=limit,
        )
    if step_of(smallest).total > budget:
        return 0
    return largest_batch(lambda n: step_of(n).total, budget, fixed=fixed, first=smallest, limit=limit)


def largest_fitting_batch(
    requests_of: Callable[[int], Requests],
    budget_gib: float,
    *,
    fixed: int,
    first: int,
    smallest: int = 1,
    limit: int = 4096,
) -> int:
    """As `largest_batch`, with the gaps that the allocator leaves, by `Requests.fits`.

    What is reserved where nothing limits it is close to a straight line in the batch, too. Near a limit the
    allocator does with less: from there on, batch by batch.

    Args:
        requests_of: what a step with so many images asks of the allocator.
        budget_gib: GiB, 2^30 bytes.
        fixed, first, limit: as for `largest_batch`.
        smallest: no batch is smaller.
    """
    found = largest_batch(
        lambda n: requests_of(n).reserved, budget_gib * 2**30, fixed=fixed, first=first, limit=limit
    )
    while found < limit and requests_of(more := max(found + 1, smallest)).fits(budget_gib):
        found = more
    return found


def largest_batch(
    peak_of: Callable[[int], int], budget: float, *, fixed: int = 0, first: int = 1, limit: int = 4096
) -> int:
    """The largest batch whose peak stays within a budget; 0 if none does.

    Args:
        peak_of: bytes at the peak of a step with so many images; grows with them.
        budget: bytes.
        fixed: bytes that a step takes whatever the batch, roughly: the better known, the shorter the search.
        first: where the search begins: a batch whose peak is known already, or is thought to be near.
        limit: where it ends.
    """
    peaks: dict[int, int] = {}
    low, high = 0, None  # the largest batch known to fit, the smallest known not to
    guess = first
    while low < limit and (high is None or high - low > 1):
        peaks[guess] = peak_of(guess)
        if peaks[guess] <= budget:
            low = guess
        else:
            high = guess
        guess = _line(peaks | {0: fixed} if len(peaks) == 1 else peaks, budget)
        # The peak is close to a straight line in the batch; where the line points outside of what is still
        # open, plain bisection goes on.
        top = limit if high is None else high - 1
        if not low < guess <= top:
            guess = low + 1 if guess <= low else top
        if high is not None and len(peaks) > 6:
            guess = (low + high) // 2
    return low


def budget_in_bytes(model: nn.Module, budget_gib: float, optimizer: str | None) -> int:
    """A budget for training a model.

    Raises:
        ValueError: if it is no number of GiB above 0, or does not hold the model itself.
    """
    if isinstance(budget_gib, bool) or not isinstance(budget_gib, Real) or not 0 < budget_gib < math.inf:
        raise ValueError(f"budget_gib={budget_gib!r}: give a number of GiB above 0, e.g. 12.")
    static = static_bytes(model, optimizer)
    if static > budget_gib * 2**30:
        raise ValueError(
            f"A budget of {budget_gib} GiB does not hold the model itself: its parameters, gradients and "
            f"optimizer state (optimizer={optimizer!r}) take {static / 2**30:.3g} GiB whatever else. Give a "
            f"larger budget, a smaller model or an optimizer with less state."
        )
    return int(budget_gib * 2**30)


def _line(peaks: dict[int, int], budget: float) -> int:
    """Where the straight line through the two largest batches meets the budget."""
    a, b = sorted(peaks)[-2:]
    slope = (peaks[b] - peaks[a]) / (b - a)
    return int(a + (budget - peaks[a]) / slope) if slope > 0 else 2 * b


def default_step(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The step that `peak_memory` describes; returns the loss, and the logits to keep them alive."""
    output = model(images)
    auxiliary = []
    if isinstance(output, dict):
        aux = output.get("aux")
        auxiliary = list(aux.values()) if isinstance(aux, dict) else [] if aux is None else [aux]
        output = output.get("out")
    if not isinstance(output, Tensor) or output.dim() != 4:
        found = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else "something else"
        raise ValueError(
            f"The default step needs logits (B, classes, H, W) from {type(model).__name__}, as a tensor or "
            f"under 'out' in a dict, and got {found}. Pass step=, a function (model, images, labels) that "
            f"returns the loss."
        )
    if output.shape[-2:] != labels.shape[-2:]:
        output = F.interpolate(output, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    loss = F.cross_entropy(output, labels)
    if auxiliary:
        losses = [F.cross_entropy(logits, soft_targets(logits)) for logits in auxiliary]
        loss = (1 - AUX_WEIGHT) * loss + AUX_WEIGHT * torch.stack(losses).mean()
    return loss, output


def soft_targets(logits: Tensor) -> Tensor:
    """Targets of an auxiliary loss, (B, C, h, w) like its logits: every class as likely."""
    return torch.full_like(logits, 1 / logits.shape[1], dtype=torch.float32, requires_grad=False)


@cache
def _settle() -> None:
    """Run a tiny step once in a process.

    The first step loads parts of PyTorch, and what that leaves behind (reference cycles through the frames
    then running) would hold on to tensors of that step.
    """
    tiny = nn.Sequential(
        nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear")
    )
    _follow(tiny, 1, (4, 4), default_step, "amsgrad", "meta", "bf16")


def _follow(model, batch_size, image_size, step, optimizer, device, precision) -> Tracker:
    with undisturbed():
        network = copy_model(model, device)
        tracker = Tracker(device, network)
        images, labels = make_batch(network, batch_size, image_size, device)
        tracker.register(images, "input", INPUT)
        tracker.register(labels, "input", INPUT)
        owners = {id(p): name.rpartition(".")[0] or MODEL for name, p in network.named_parameters()}
        update = make_optimizer(network, optimizer)
        for parameter, state in update.state.items() if update else ():
            for name, tensor in state.items():
                if name == "step":
                    tracker.exempt(tensor)
                else:
                    tracker.register(tensor, "optimizer state", owners[id(parameter)])
        try:
            with tracker:
                run(step, network, images, labels, update, precision=precision, tracker=tracker)
                tracker.finish()
        except (RuntimeError, TypeError) as error:
            if device == "meta" and not isinstance(error, MeasurementError) and "meta" in str(error).lower():
                raise MeasurementError(
                    f"This step cannot run on meta tensors, which have sizes but no values: {error} Use "
                    f"device='cpu', which follows real tensors in the same way (a smaller batch or image "
                    f"helps)."
                ) from error
            raise
    return tracker


def static_bytes(model: nn.Module, optimizer: str | None) -> int:
    """Parameters, buffers, gradients and optimizer state: what a step takes whatever the batch."""
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    trained = sum(size for size, trained in sizes if trained)
    slots = len(OPTIMIZERS[optimizer][2]) if optimizer else 0
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    return sum(size for size, _ in sizes) + buffers + trained * (1 + slots)


def check_arguments(model, batch_size, image_size, step, optimizer, device, precision) -> None:
    """Refuse what no step can be measured with.

    Raises:
        TypeError, ValueError: saying what was wrong and what to give.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected a torch.nn.Module, got {type(model).__name__}.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: give an integer of at least 1.")
    if (
        not isinstance(image_size, (tuple, list))
        or len(image_size) != 2
        or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in image_size)
    ):
        raise ValueError(f"image_size={image_size!r}: give (H, W), two positive integers, e.g. (768, 768).")
    if step is not None and not callable(step):
        raise TypeError(
            f"step={step!r}: give a function (model, images, labels), or None for the default step."
        )
    if optimizer is not None and optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer={optimizer!r}: choose None, {', '.join(map(repr, OPTIMIZERS))}.")
    if device not in ("meta", "cpu", "cuda"):
        raise ValueError(f"device={device!r}: choose 'meta', 'cpu' or 'cuda'.")
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: choose {' or '.join(map(repr, PRECISIONS))}.")
