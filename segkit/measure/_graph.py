"""A network as a graph: values, what each was computed from, and which places see which.

A `Value` is a tensor that the network computes. An `Edge` leads from it to a value that it was computed from
and says by a rule, along height and along width, which places are looked at: ``window(3, 2, 1, 1)`` is a
convolution of three taps, stride 2, dilation 1 and padding 1, so place 5 sees the places 9, 10 and 11. All
other dimensions are "lead" dimensions: batch and channels, in whatever shape. The edge labels their elements,
and an element sees those of the source that have its own label.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from segkit.measure.tracker import MODEL, MeasurementError

# ---- along one axis -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """What places of a value see of places of its source, along one axis.

    Attributes:
        pull: carries marks back. ``pull(bits, start, size)`` takes bits (..., n) of the places from ``start``
            on, and the size of the source, None if there are no borders; it returns bits of the source's
            places, and where they start.
        step: distance of what neighboring places see; None if they see the same.
        taps: kernel, stride and dilation of the layer as the papers' formula counts it, or None.
    """

    pull: Callable[[Tensor, int, int | None], tuple[Tensor, int]]
    step: Fraction | None = Fraction(1)
    taps: tuple[int, int | Fraction, int] | None = None


def window(kernel: int = 1, stride: int = 1, dilation: int = 1, padding: int = 0) -> Rule:
    """Place i sees i * stride - padding + t * dilation, t < kernel: convolution, pooling, slices."""

    def pull(bits: Tensor, start: int, size: int | None) -> tuple[Tensor, int]:
        reach = (bits.shape[-1] - 1) * stride + 1
        seen = bits.new_zeros(*bits.shape[:-1], reach + (kernel - 1) * dilation)
        for t in range(kernel):
            seen[..., t * dilation : t * dilation + reach : stride] |= bits
        return seen, start * stride - padding

    return Rule(pull, Fraction(stride), None if kernel == stride == 1 else (kernel, stride, dilation))


SAME = Rule(lambda bits, start, size: (bits, start))


def transposed(kernel: int, stride: int, dilation: int, padding: int) -> Rule:
    """Transposed convolution: zeros between the places, then an ordinary one."""
    plain = window(kernel, 1, dilation, dilation * (kernel - 1) - padding)

    def pull(bits: Tensor, start: int, size: int | None) -> tuple[Tensor, int]:
        bits, start = plain.pull(bits, start, None)
        skip = -start % stride
        return bits[..., skip::stride], (start + skip) // stride

    taps = math.ceil(((kernel - 1) * dilation + 1) / stride)
    return Rule(pull, Fraction(1, stride), (taps, Fraction(1, stride), 1))


def resize(kind: str, step: Fraction, shift: Fraction) -> Rule:
    """Interpolation: place i lies at i * step + shift, on a place of the source or between two."""
    # how many places below and above are blended, and their number
    before, after, taps = {"nearest": (0, 0, 1), "bilinear": (0, 1, 2), "bicubic": (1, 2, 4)}[kind]
    unit = math.lcm(step.denominator, shift.denominator)

    def ends(i: Tensor, size: int | None) -> tuple[Tensor, Tensor]:
        place = i * int(step * unit) + int(shift * unit)  # in parts of a place
        below, between = place.div(unit, rounding_mode="floor"), (place % unit != 0).long()
        first, last = below - before * between, below + after * between
        if size is None:
            return first, last
        return first.clamp(0, size - 1), last.clamp(0, size - 1)  # beyond a border its place is repeated

    return _runs(ends, step, None if step == 1 and shift == 0 else (taps, step, 1))


def cells(size: int, count: int) -> Rule:
    """Adaptive pooling: place i of ``count`` sees its share of ``size`` places, rounded outwards."""

    def ends(i: Tensor, _) -> tuple[Tensor, Tensor]:
        return i * size // count, -((i + 1) * -size // count) - 1

    step = Fraction(size, count)
    return _runs(ends, step, (math.ceil(step), step, 1))


def reflect(padding: int) -> Rule:
    """Padding that mirrors what is at the border."""

    def ends(i: Tensor, size: int | None) -> tuple[Tensor, Tensor]:
        place = i - padding
        if size is not None:
            place = size - 1 - (size - 1 - place.abs()).abs()
        return place, place

    return _runs(ends)


def whole(size: int) -> Rule:
    """All see all ``size`` places: what pools the whole image, or a single place that is broadcast."""
    return _runs(lambda i, _: (torch.zeros_like(i), torch.full_like(i, size - 1)), None)


def _runs(ends, step: Fraction | None = Fraction(1), taps=None) -> Rule:
    """A rule by which places i see all from the first to the last of ``ends(i, size)``."""

    def pull(bits: Tensor, start: int, size: int | None) -> tuple[Tensor, int]:
        first, last = ends(torch.arange(start, start + bits.shape[-1]), size)
        start = int(first.min())
        changes = torch.zeros(*bits.shape[:-1], int(last.max()) - start + 2, dtype=torch.int32)
        changes.index_add_(-1, first - start, bits.int()).index_add_(-1, last - start + 1, -bits.int())
        return changes.cumsum(-1)[..., :-1] > 0, start

    return Rule(pull, step, taps)


# ---- the graph ------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Edge:
    """What a value sees of another one: its lead elements see those of the source with the same label."""

    source: "Value"
    rules: tuple[Rule, Rule]  # of height and width
    labels: Tensor | None = None  # (n,), -1 sees nothing; None where every lead element sees its own
    source_labels: Tensor | None = None
    is_global: bool = False  # pools the whole image
    pools: bool = False  # whether it is global shows when an image of another size is looked at


@dataclass(eq=False)
class Value:
    """A tensor of the network."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]  # height and width; a single one for both, flattened; () if it has no place
    grid: tuple[int, int]  # height and width; (1, 1) without a place
    edges: list[Edge] = field(default_factory=list)
    refusal: str | None = None  # why it cannot be followed
    name: str = MODEL  # path of the module that computed it
    number: int = 0  # in the order they were computed
    stride: tuple[Fraction, Fraction] | None = None  # in pixels; None if it sees the image only as a whole

    @property
    def lead(self) -> list[int]:
        """Its shape with height and width taken as one place."""
        return [1 if d in self.axes else n for d, n in enumerate(self.shape)]


@dataclass
class Network:
    """All values that a network computes from an image, in order."""

    name: str
    values: list[Value]
    image: Value
    output: Value

    def needed(self, *, include_global: bool = False) -> list[Value]:
        """Values on the way from the image to the output."""
        needed, todo = set(), [self.output]
        while todo:
            value = todo.pop()
            if value not in needed and (include_global or value.stride):
                needed.add(value)
                todo += [edge.source for edge in value.edges if include_global or not edge.is_global]
        return [value for value in self.values if value in needed]

    def period(self, axis: int) -> int:
        """Output pixels after which all that they depend on is passed by whole places."""
        strides = {value.stride[axis] for value in self.needed()}
        return math.lcm(*((self.output.stride[axis] / stride).denominator for stride in strides))

    def global_parts(self) -> tuple[str, ...]:
        """Paths of the modules that pool the whole image, on the way to the output."""
        needed = self.needed(include_global=True)
        return tuple(dict.fromkeys(v.name for v in needed if any(edge.is_global for edge in v.edges)))

    def refuse(self, value: Value) -> None:
        """Raise if a value that the output depends on cannot be followed."""
        if value.refusal:
            raise MeasurementError(
                f"The field of {self.name} cannot be read: the output depends on {value.refusal}. Choose an "
                f"earlier output by at= or output=, or look at effective(), which takes any network."
            )

    def unseen(self, *, include_global: bool = False) -> ValueError:
        """The error that says why the output sees no pixel."""
        parts = () if include_global else self.global_parts()
        if not parts:
            why = "does not depend on the image at this place: no path leads to a pixel"
        else:
            why = (
                f"sees the image through global pooling only ({', '.join(parts)}), whose field is the whole "
                f"image; give image_size=(H, W) and include_global=True"
            )
        return ValueError(f"The output of {self.name} {why}.")
