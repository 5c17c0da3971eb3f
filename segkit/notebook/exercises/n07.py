"""The exercises of notebook 07: fields and scales of a head, its holes, and which IoU is reported."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segkit.measure.receptive_field import compose, coverage, support
from segkit.notebook import aspp
from segkit.notebook.exercises.kinds import UNANSWERED, Exercise, Function, Value

FIRST = (3, 6, 9, 12)  # model #1's head
LEAST = 111  # cells: the field that 07.4 asks for


# 07.2
def _scales(dilations: Sequence[int]) -> list[int]:
    return aspp.scales(dilations)


def _one_after_the_other(dilations: Sequence[int]) -> list[int]:
    return [compose(dilations[:i]).size for i in range(len(dilations) + 1)]


def _side_by_side(dilations: Sequence[int]) -> list[int]:
    return aspp.parallel_scales(dilations)


def _without_the_input(dilations: Sequence[int]) -> list[int]:
    return aspp.scales(dilations)[1:]


def _with_repeats(dilations: Sequence[int]) -> list[int]:
    fields = [1]
    for dilation in dilations:
        fields += [field + 2 * dilation for field in fields]
    return sorted(fields)


def _sums(dilations: Sequence[int]) -> list[int]:
    return [(field - 1) // 2 for field in aspp.scales(dilations)]


def _without_the_pixel(dilations: Sequence[int]) -> list[int]:
    return [field - 1 for field in aspp.scales(dilations)]


# 07.4
@dataclass(frozen=True)
class Whole:
    """Five dilations of a dense head with a field of at least so many cells and no hole. It is measured.

    Args:
        least: cells of the field.
        known: dilations that were shown already.
    """

    least: int
    known: tuple[int, ...]

    def hint(self, answer: object) -> str | None:
        """See `segkit.notebook.exercises.kinds`."""
        if answer is None or answer is ...:
            return UNANSWERED
        try:
            dilations = tuple(int(d) for d in answer)
            whole = all(d == given for d, given in zip(dilations, answer, strict=True))
        except (TypeError, ValueError):
            return "five whole numbers are asked for, such as [3, 6, 12, 18, 24]"
        if len(dilations) != len(self.known) or not whole or not all(1 <= d <= 200 for d in dilations):
            return f"five whole numbers from 1 to 200 are asked for, these are {answer!r:.60}"
        if tuple(sorted(dilations)) == self.known:
            return "right, but it is the one of section 5; find another"
        size, share = compose(dilations).size, coverage(dilations)
        if size < self.least:
            return f"a field of {size} cells; at least {self.least} are asked for"
        if share < 1:
            missed = int((~support(dilations).diagonal()).sum())
            return f"a field of {size} cells with holes: {missed} rows untouched, {share:.2f} of it covered"
        return None


# 07.5
def _official(matrix: Tensor, background: int) -> Tensor:
    """Rows are the truth: pixels whose truth is background are left out, predictions of background stay."""
    kept = torch.arange(len(matrix)) != background
    counts = matrix.double()[kept]  # (K - 1, K)
    hits = counts[:, kept].diagonal()
    union = counts.sum(1) + counts[:, kept].sum(0) - hits
    return (hits / union).nanmean()


def _both_dropped(matrix: Tensor, background: int) -> Tensor:
    kept = torch.arange(len(matrix)) != background
    counts = matrix.double()[kept][:, kept]
    hits = counts.diagonal()
    return (hits / (counts.sum(1) + counts.sum(0) - hits)).nanmean()


def _ious(matrix: Tensor) -> Tensor:
    counts = matrix.double()
    hits = counts.diagonal()
    return hits / (counts.sum(1) + counts.sum(0) - hits)


def _all_classes(matrix: Tensor, background: int) -> Tensor:
    return _ious(matrix).nanmean()


def _dropped_from_the_mean(matrix: Tensor, background: int) -> Tensor:
    return _ious(matrix)[torch.arange(len(matrix)) != background].nanmean()


def _columns(matrix: Tensor, background: int) -> Tensor:
    return _official(matrix.T, background)


def _zero_for_empty(matrix: Tensor, background: int) -> Tensor:
    kept = torch.arange(len(matrix)) != background
    counts = matrix.double()[kept]
    hits = counts[:, kept].diagonal()
    union = counts.sum(1) + counts[:, kept].sum(0) - hits
    return (hits / union).nan_to_num(0).mean()


def _recall(matrix: Tensor, background: int) -> Tensor:
    kept = torch.arange(len(matrix)) != background
    counts = matrix.double()[kept]
    return (counts[:, kept].diagonal() / counts.sum(1)).nanmean()


def _matrix(size: int, background: int, *, empty: int | None = None) -> Callable[[], tuple]:
    def make() -> tuple:
        generator = torch.Generator().manual_seed(size)
        matrix = torch.randint(0, 40, (size, size), generator=generator)
        matrix += torch.diag(torch.randint(50, 400, (size,), generator=generator))
        if empty is not None:  # neither in the truth nor predicted
            matrix[empty], matrix[:, empty] = 0, 0
        return matrix, background

    return make


EXERCISES: dict[str, Exercise] = {
    "07.1": Value(
        compose(aspp.BEST[:-2]).size,
        {
            compose(aspp.BEST[:-1]).size: "one layer was removed, the one of dilation 24; 18 goes too",
            compose(aspp.BEST[-2:]).size: "24 and 18 are the layers to remove; count the three below them",
            compose(aspp.BEST).size: "this is the whole head; nothing was removed yet",
            compose(aspp.BEST[2:]).size: "the two lowest layers were removed; the top ones are 18 and 24",
            compose(aspp.BEST[:-2]).size
            - 1: "one cell is there before the first layer: the field is 1 + 2 x the sum",
        },
        tolerance=1e-6,
    ),
    "07.2": Function(
        _scales,
        [lambda: ([3, 6, 12, 18, 24],), lambda: ([1, 2, 4],), lambda: ([5, 5],), lambda: ([6, 12, 18, 24],)],
        {
            _one_after_the_other: "a way need not take all layers up to some one: it may jump over any",
            _side_by_side: "this is ASPP, where each layer is alone; dense ways take several",
            _without_the_input: "the way that takes no layer is missing: the input itself, 1 cell",
            _with_repeats: "two ways of the same field are one scale: keep the distinct ones",
            _sums: "these are the sums of dilations; a field is 1 + 2 x the sum",
            _without_the_pixel: "one cell is there before the first layer: 1 + 2 x the sum",
        },
    ),
    "07.3": Value(
        coverage(FIRST),
        {
            support(FIRST).diagonal().double().mean().item(): "this is one axis; the field is a square",
            coverage((6, 12, 18, 24)): "this is #3's head; #1 has dilations 3, 6, 9, 12",
            coverage(aspp.BEST): "this is #4's head; #1 has dilations 3, 6, 9, 12",
            9 / compose(FIRST).size ** 2: "nine taps are those of one layer; four layers reach many more",
            36 / compose(FIRST).size ** 2: "the taps were counted layer by layer; a layer's taps fall on "
            "all places that the ones below reach",
        },
        tolerance=2e-3,
    ),
    "07.4": Whole(LEAST, aspp.FILLED),
    "07.5": Function(
        _official,
        [_matrix(5, 4), _matrix(4, 0), _matrix(20, 19), _matrix(6, 5, empty=2)],
        {
            _both_dropped: "predictions of background were dropped too; on a pixel of a class they are "
            "misses, and count in its union",
            _all_classes: "this is the mean over all classes, background among them",
            _dropped_from_the_mean: "background is left out of the mean only: pixels whose truth it is still "
            "count against the class predicted there",
            _columns: "rows and columns are exchanged: a row is the truth",
            _zero_for_empty: "a class that is neither there nor predicted has no IoU: leave it out",
            _recall: "this is recall; the union has the wrong predictions of the class as well",
        },
    ),
}
