"""The exercises of notebook 02: reading a step, choosing segments, rebuilding without leaving a trace."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segkit import models
from segkit.measure import MeasurementError, PeakMemory, peak_memory
from segkit.measure.peak import MIB
from segkit.memory.chunked import chunked_cross_entropy
from segkit.memory.recompute import Freeze
from segkit.models.blocks import upsample
from segkit.notebook.exercises.kinds import UNANSWERED, Choice, Exercise, Function, Value, _Outcome

PAPERS_LABELS = ("cat1x1", "3x3", "unit", "block", "stem", "td", "tu")


@cache
def simulated(recompute: str) -> PeakMemory:
    """The step of Table 12 with these segments."""
    net = models.build("ldn121-32-4", device="meta", recompute=recompute)
    return peak_memory(net, 6, (768, 768), optimizer="amsgrad")


# 02.3
def _sorted(recompute: str) -> str:
    return ",".join(sorted(label.strip() for label in recompute.split(",")))


@dataclass(frozen=True)
class Segmentation(Choice):
    """A choice of segments is right that fits a budget with the least work done again: it is measured.

    Args:
        expected: a right one.
        others: typical wrong ones, each with its hint. What is neither is measured all the same.
        budget: MiB.
    """

    budget: float = 0.0

    def hint(self, answer: object) -> str | None:
        """See `segkit.notebook.exercises.kinds`."""
        if answer is None or answer is ...:
            return UNANSWERED
        if not isinstance(answer, str):
            return f"labels with commas between them are asked for, this is {type(answer).__name__}"
        labels = [label.strip() for label in answer.split(",")]
        for other, sentence in self.others.items():
            if _sorted(answer) == _sorted(other):
                return sentence
        if strange := [label for label in labels if label and label not in PAPERS_LABELS]:
            return f"{strange[0]!r} is none of the paper's labels: {', '.join(PAPERS_LABELS)}"
        try:
            found = simulated(_sorted(answer))
        except ValueError as error:
            return str(error)
        needs, again = found.total / MIB, found.recomputed_macs / 1e9
        if needs > self.budget:
            return f"this step needs {needs:,.0f} MiB, more than {self.budget:,.0f}"
        best = simulated(_sorted(self.expected)).recomputed_macs / 1e9
        if again > 1.0001 * best:
            return (
                f"it fits with {needs:,.0f} MiB, but does {again:.1f} GMAC again; there is one that does "
                f"{best:.1f}"
            )
        return None


# 02.4 and 02.5
@dataclass(frozen=True)
class Spare(Function):
    """A function whose results are those of a reference and that must spare memory too.

    Args:
        condition: called with an answer whose results are right; a sentence if it spares nothing.
    """

    condition: Callable[[Callable], str | None] = lambda answer: None

    def hint(self, answer: object) -> str | None:
        """See `segkit.notebook.exercises.kinds`."""
        return super().hint(answer) or self.condition(answer)

    def _run(self, function: Callable, case: Callable[[], tuple]) -> _Outcome:
        try:
            return super()._run(function, case)
        except Exception as error:  # out of the backward pass, in which an answer's segments run again
            return _Outcome(error=error)


# 02.4
def _td(width: int) -> nn.Sequential:
    """A transition-down layer of `width` maps as any network would have it, from mid-training."""
    norm = nn.BatchNorm2d(width)
    norm.running_mean.uniform_(-1, 1)
    norm.num_batches_tracked.fill_(7)
    return nn.Sequential(norm, nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2))


def _td_case(width: int, size: tuple[int, int]) -> Callable[[], tuple]:
    def make() -> tuple:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(width)
            return _td(width), torch.randn(2, width, *size, requires_grad=True)

    return make


def _norms(segment: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in segment.modules() if isinstance(module, nn.BatchNorm2d)]


def _plainly(segment: nn.Module, x: Tensor) -> Tensor:
    return segment(x)


def _exact(segment: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(segment, x, use_reentrant=False, context_fn=lambda: (nullcontext(), Freeze(segment)))


def _naive(segment: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(segment, x, use_reentrant=False)


def _with(context: Callable) -> Callable[[nn.Module, Tensor], Tensor]:
    def recomputed(segment: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(
            segment, x, use_reentrant=False, context_fn=lambda: (nullcontext(), context(segment))
        )

    return recomputed


@contextmanager
def _momentum_only(segment: nn.Module) -> Iterator[None]:
    before = [(norm, norm.momentum) for norm in _norms(segment)]
    for norm, _ in before:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in before:
            norm.momentum = momentum


@contextmanager
def _in_eval_mode(segment: nn.Module) -> Iterator[None]:
    segment.eval()
    try:
        yield
    finally:
        segment.train()


@contextmanager
def _momentum_left_at_0(segment: nn.Module) -> Iterator[None]:
    counters = [(norm, norm.num_batches_tracked) for norm in _norms(segment)]
    for norm, counter in counters:
        norm.momentum, norm.num_batches_tracked = 0.0, counter.clone()
    try:
        yield
    finally:
        for norm, counter in counters:
            norm.num_batches_tracked = counter


def _folklore(segment: nn.Module, x: Tensor) -> Tensor:
    for norm in _norms(segment):
        norm.momentum = 1 - (1 - norm.momentum) ** 0.5
    return checkpoint(segment, x, use_reentrant=False)


_NOT_AGAIN = "results and statistics are right, but nothing ran again: the segment's tensors were kept"
_CHANGED = (
    "this step is right and the next will not be: the segment is left in another state than a plain step "
    "leaves it in (momentum, mode or counter). Early stop ends rebuilding by an exception, so what is to be "
    "set back belongs in a `finally`"
)


def _runs_again(answer: Callable) -> str | None:
    segment, x = _td_case(6, (4, 4))()
    plain = copy.deepcopy(segment)
    plain(x)
    (norm,), (as_it_was,) = _norms(segment), _norms(plain)
    runs = []
    norm.register_forward_hook(lambda *_: runs.append(True))
    answer(segment, x).sum().backward()
    if len(runs) < 2:
        return _NOT_AGAIN
    state = segment.state_dict()
    same = all(torch.equal(tensor, state.get(name, x)) for name, tensor in plain.state_dict().items())
    modes = (norm.momentum, norm.training) == (as_it_was.momentum, as_it_was.training)
    return None if same and modes else _CHANGED


# 02.5
def _whole(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(upsample(logits, labels.shape[-2:]), labels, ignore_index=255)


def _images(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(logits.split(1), labels.split(1), strict=True)


def _mean_of_means(logits: Tensor, labels: Tensor) -> Tensor:
    losses = [checkpoint(_whole, *pair, use_reentrant=False) for pair in _images(logits, labels)]
    return torch.stack(losses).mean()


def _sum_of_one(logits: Tensor, labels: Tensor) -> Tensor:
    logits = upsample(logits, labels.shape[-2:])
    return F.cross_entropy(logits, labels, ignore_index=255, reduction="sum")


def _sums(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.stack(
        [checkpoint(_sum_of_one, *pair, use_reentrant=False) for pair in _images(logits, labels)]
    ).sum()


def _over_all_pixels(logits: Tensor, labels: Tensor) -> Tensor:
    return _sums(logits, labels) / labels.numel()


def _ignored_counted(logits: Tensor, labels: Tensor) -> Tensor:
    labels = labels.clamp(max=logits.shape[1] - 1)
    return _sums(logits, labels) / labels.numel()


def _one_segment(logits: Tensor, labels: Tensor) -> Tensor:
    return checkpoint(_whole, logits, labels, use_reentrant=False)


def _kept_chunks(logits: Tensor, labels: Tensor) -> Tensor:
    total = sum(_sum_of_one(*pair) for pair in _images(logits, labels))
    return total / (labels != 255).sum()


def _loss_case(batch: int, classes: int, size: tuple[int, int], full: tuple[int, int]) -> Callable[[], tuple]:
    def make() -> tuple:
        generator = torch.Generator().manual_seed(batch)
        logits = torch.randn(batch, classes, *size, generator=generator).requires_grad_()
        labels = torch.randint(classes, (batch, *full), generator=generator)
        labels[0, : full[0] // 2] = 255  # so that images have unequal numbers of labelled pixels
        return logits, labels

    return make


def _loss_needs(loss: Callable) -> int:
    """Bytes of a step with this loss, beside the same few whatever it is."""

    def step(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return loss(model(images), labels)

    with torch.device("meta"):
        tiny = nn.Conv2d(3, 19, 1, stride=4)
    return peak_memory(tiny, 6, (64, 64), step=step).total


_UNCHUNKED = {
    _whole: "the loss is right, but all images were upsampled at once: that is the whole loss",
    _one_segment: "one segment for the whole batch spares nothing: when it is rebuilt, all images are there "
    "at once; one for each image",
    _kept_chunks: "chunks alone spare little: each one's maps are kept for the backward pass; put each into "
    "a checkpoint",
}


def _is_chunked(answer: Callable) -> str | None:
    try:
        needs = _loss_needs(answer)
    except MeasurementError as error:
        return f"the loss is right, but cannot be measured: {error}"
    enough = _loss_needs(chunked_cross_entropy)
    if needs <= 1.1 * enough:
        return None
    for mistake, sentence in _UNCHUNKED.items():
        if needs == _loss_needs(mistake):
            return sentence
    return (
        f"the loss is right, but a small step with it takes {needs / MIB:.1f} MiB at its peak, and "
        f"{enough / MIB:.1f} are enough"
    )


EXERCISES: dict[str, Exercise] = {
    "02.1": Choice(
        "db1",
        {
            "loss": "at the loss this step is lower: the other rows have their peak there",
            "stem": "nothing of the stem is alive then but its output, which DB1 starts from",
            "tu3": "TU3 is rebuilt early in the backward pass; something larger is rebuilt later",
            "db4": "DB4 has many units but few pixels, a 64th of those of the block to look for",
            "optimizer": "when the optimizer runs, all activations are gone",
        },
    ),
    "02.2": Value(
        8,
        {
            64: "one segment of all 64: nothing is kept, but rebuilding it brings all 64 inputs back at once",
            1: "segments of one layer keep every input: 64",
            15: "15 inputs are alive then; asked for is the length of a segment",
            16: "with 16 layers in a segment 4 are kept and 15 rebuilt: 19 alive",
            4: "with 4 layers in a segment 16 are kept and 3 rebuilt: 19 alive, too",
        },
    ),
    "02.3": Segmentation(
        "cat1x1,3x3,stem,td,tu",
        {
            "unit,td": "it fits with 3,676 MiB, but does 103.8 GMAC again: a unit in one segment redoes its "
            "1x1, two segments redo no convolution of it",
            "unit,tu": "it fits with 3,294 MiB, but does 102.5 GMAC again: a unit in one segment redoes its "
            "1x1, two segments redo no convolution of it",
            "unit,stem": "3,703 MiB: very near, but more than 3,700",
            "cat1x1,3x3,stem,tu": "without td it needs 3,915 MiB: the transitions read the widest maps",
            "cat1x1,3x3,td,tu": "without stem it needs 3,888 MiB: its maps have four times DB1's pixels",
            "block,stem,td,tu": "3,737 MiB: more than 3,700, and most of the forward pass is done again",
            "cat1x1,3x3": "5,404 MiB: nothing is redone, but that is not enough memory saved",
            "unit,stem,td,tu": "2,187 MiB is far below the budget, for 132.6 GMAC: use the room",
        },
        budget=3700,
    ),
    "02.4": Spare(
        _plainly,
        [_td_case(8, (6, 6)), _td_case(5, (7, 9)), _td_case(16, (4, 10))],
        {
            _naive: "the segment ran twice, and so did the update of its running statistics",
            _with(_momentum_only): "the running statistics are right now; num_batches_tracked moved twice",
            _with(_momentum_left_at_0): _CHANGED,
            _with(_in_eval_mode): "in eval mode the batch norm uses its running statistics: what is rebuilt "
            "is another tensor, and the gradients are wrong",
            _folklore: "two updates with momentum 1 - sqrt(1 - m) are nearly one with m; not equal, and the "
            "counter moved twice",
            _plainly: _NOT_AGAIN,
        },
        rtol=0,
        atol=0,
        condition=_runs_again,
    ),
    "02.5": Spare(
        _whole,
        [
            _loss_case(2, 3, (4, 4), (16, 16)),
            _loss_case(3, 5, (3, 5), (9, 15)),
            _loss_case(1, 4, (8, 8), (8, 8)),
        ],
        {
            _mean_of_means: "a mean of means: an image with few labelled pixels counts as much as one with "
            "many; divide the sum of all by the number of all",
            _sums: "this is the sum over the pixels; divide by the number of labelled ones",
            _over_all_pixels: "divided by all pixels: the ignored ones do not count",
            _ignored_counted: "the ignored pixels were taken for the last class",
            **_UNCHUNKED,
        },
        condition=_is_chunked,
    ),
}
