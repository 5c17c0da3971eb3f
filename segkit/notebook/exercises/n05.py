"""The exercises of notebook 05: how far a stack of convolutions sees, and with what holes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from segkit.measure.receptive_field import bound, compose
from segkit.notebook import field
from segkit.notebook.exercises.kinds import UNANSWERED, Exercise, Function, Value

STEM = ((3, 2), 1, 2, 4)  # a 3x3 of stride 2, then dilations 1, 2, 4
BEFORE, A_UNIT = 63, 32  # px: RegSeg's field before its 13 dilated blocks, and what a unit of dilation adds


def _units(side: int) -> int:
    """The smallest sum of dilations with which a corner of an image sees so many pixels."""
    return -(-(field.across(side) - BEFORE) // A_UNIT)


# 05.3: a network as a list of stages, a stage as a list of branches, a branch as a list of dilations
Stages = Sequence[Sequence[Sequence[int]]]


def _over_branches(stages: Stages) -> int:
    return 1 + sum(max(sum(2 * d for d in branch) for branch in stage) for stage in stages)


def _all_branches(stages: Stages) -> int:
    return 1 + sum(2 * d for stage in stages for branch in stage for d in branch)


def _narrowest(stages: Stages) -> int:
    return 1 + sum(min(sum(2 * d for d in branch) for branch in stage) for stage in stages)


def _first_branch(stages: Stages) -> int:
    return 1 + sum(2 * d for stage in stages for d in stage[0])


def _one_dilation(stages: Stages) -> int:
    return 1 + sum(max(2 * max(branch, default=0) for branch in stage) for stage in stages)


def _without_the_pixel(stages: Stages) -> int:
    return _over_branches(stages) - 1


def _case(*stages: Sequence[Sequence[int]]) -> Callable[[], tuple]:
    return lambda: ([[list(branch) for branch in stage] for stage in stages],)


# 05.4
@dataclass(frozen=True)
class Dilations:
    """Three dilations whose field is the largest one without a hole; any order. It is measured.

    Args:
        size: the field that is to be reached, px.
    """

    size: int

    def hint(self, answer: object) -> str | None:
        """See `segkit.notebook.exercises.kinds`."""
        if answer is None or answer is ...:
            return UNANSWERED
        try:
            dilations = [int(d) for d in answer]
            whole = all(d == given for d, given in zip(dilations, answer, strict=True))
        except (TypeError, ValueError):
            return "three whole numbers are asked for, such as [1, 2, 5]"
        if len(dilations) != 3 or not whole or not all(1 <= d <= 1000 for d in dilations):
            return f"three whole numbers from 1 to 1000 are asked for, these are {answer!r:.60}"
        found = field.three(*dilations)
        if not found.whole:
            untouched = int((~found.mask.diagonal()).sum())
            columns = f"{untouched} of its {found.size} columns are not touched"
            return f"a field of {found.size} px with holes: {columns}"
        if found.size < self.size:
            return (
                f"without a hole, but {found.size} px is not the most: 3 x 3 x 3 taps can touch {self.size}"
            )
        return None


# 05.5: each layer as (kernel, stride, dilation)
Layers = Sequence[tuple[int, int, int]]


def _first_violation(layers: Layers) -> int:
    return next((i for i, entry in enumerate(bound(layers)) if not entry.holds), -1)


def _size_alone(layers: Layers) -> int:
    return next(
        (i for i, e in enumerate(bound(layers)) if e.layer.kernel > 1 and e.layer.dilation > e.size), -1
    )


def _with_itself(layers: Layers) -> int:
    for i, (kernel, _, dilation) in enumerate(layers):
        whole = compose(layers[: i + 1])
        if kernel > 1 and dilation > whole.size / whole.stride:
            return i
    return -1


def _any_kernel(layers: Layers) -> int:
    return next((i for i, entry in enumerate(bound(layers)) if entry.layer.dilation > entry.ratio), -1)


def _or_equal(layers: Layers) -> int:
    entries = enumerate(bound(layers))
    return next((i for i, e in entries if e.layer.kernel > 1 and e.layer.dilation >= e.ratio), -1)


def _last_violation(layers: Layers) -> int:
    return max((i for i, entry in enumerate(bound(layers)) if not entry.holds), default=-1)


def _from_one(layers: Layers) -> int:
    found = _first_violation(layers)
    return found + 1 if found >= 0 else found


def _row_8() -> tuple:
    """RegSeg's Table 4, row 8: 63 px at steps of 16 when the first dilation of 4 comes."""
    return ([(3, 2, 1)] * 3 + [(3, 1, 1)] * 2 + [(3, 2, 1)] + [(3, 1, 4)] * 5 + [(3, 1, 10)] * 8,)


EXERCISES: dict[str, Exercise] = {
    "05.1": Value(
        compose(STEM).size,
        {
            compose([1, 1, 2, 4]).size: "the stride was left out: after the stem a step is two pixels",
            compose(STEM).size + 2: "the stem's own stride was multiplied in too early: it counts from the "
            "next layer on",
            compose(
                [(3, 2), 1, 1, 1]
            ).size: "the dilations were left out: at dilation d, three taps span 2d + 1",
            compose(STEM).size - 1: "one pixel is there before the first layer: k starts at 1",
        },
        tolerance=1e-6,
    ),
    "05.2": Value(
        _units(2048),
        {
            _units(2048) + 1: "this is row 7 of Table 4, one unit more than needed",
            _units(2048) + 2: f"the {BEFORE} px that are there before the dilated blocks count, too",
            _units(1024): "this is enough for the height of 1,024; the width is 2,048",
            _units(1024) + 1: "a corner sees only half of its field: it takes 2 x 2048 - 1 px",
            2 * _units(2048): "a dilation has taps on both sides: a unit of it adds 2 x 16 px",
        },
        tolerance=1e-6,
    ),
    "05.3": Function(
        _over_branches,
        [
            _case([[1], [4]], [[2, 2], [], [3]]),
            _case([[1, 1, 1]]),
            _case([[6], [12], [18], [24]], [[]], [[5], [1, 2]]),
        ],
        {
            _all_branches: "all branches were added up: they lie side by side, and the widest one decides",
            _narrowest: "the narrowest branch was taken: the output sees what any branch sees",
            _first_branch: "the first branch was taken, and the widest need not be the first",
            _one_dilation: "the convolutions within a branch follow each other: their reaches add up",
            _without_the_pixel: "one pixel is there before the first layer: k starts at 1",
        },
    ),
    "05.4": Dilations(27),
    "05.5": Function(
        _first_violation,
        [
            _row_8,
            lambda: ([(3, 1, 1), (3, 1, 3), (3, 1, 9), (3, 2, 27), (1, 1, 60), (3, 1, 30)],),
            lambda: ([(3, 1, 1), (3, 1, 2), (3, 1, 9), (3, 1, 40)],),
            lambda: ([(3, 1, 1), (3, 1, 5), (3, 1, 2)],),
        ],
        {
            _size_alone: "k was taken for k/s: after strides, a tap's neighbors are s pixels apart",
            _with_itself: "the layer's own reach was counted: k and s are those of the layers before it",
            _any_kernel: "a 1x1 convolution has no holes, whatever its dilation says",
            _or_equal: "k/s = r is allowed: the pieces then touch each other",
            _last_violation: "this is the last one; the first is asked for",
            _from_one: "right, but counted from 1; count from 0",
        },
    ),
}
