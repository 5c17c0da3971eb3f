"""Carrying a mark back: from places of a network's output to all pixels that they depend on.

For two 3x3 convolutions one place of the output is marked; then the 3x3 places that it sees of the map
between; then the 5x5 pixels that those see. Channels are followed too: groups, splits and concatenations
lead different ones to different places. Kernels are products of their axes, so rows or columns can be probed
alone, for many output places at once.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from segkit.measure._graph import Edge, Network


@dataclass(frozen=True, eq=False)
class Patch:
    """Marked places of a map: bits (..., n) or (..., h, w), the first of them at ``start``."""

    start: tuple[int, ...]
    bits: Tensor


class Probe:
    """Carries marks from the output back to the image.

    Lead elements of a value that are marked alike share one patch: its number in ``patches``, 0 for none.

    Args:
        network: what `segkit.measure._network.read` returns.
        axes: (0,) for rows alone, (1,) for columns alone, (0, 1) for both.
        clip: whether the image has borders.
        include_global: whether what pools the whole image counts.
    """

    def __init__(
        self, network: Network, axes: tuple[int, ...], *, clip: bool = False, include_global: bool = False
    ) -> None:
        self.network, self.axes, self.clip, self.include_global = network, axes, clip, include_global
        self.patches: list[Patch | None] = [None]
        self.unions: dict[tuple[int, int], int] = {}

    def run(self, seed: Patch) -> Patch | None:
        """The places of the image, of any channel, that the seed's places see, None if there are none."""
        output = self.network.output
        pending = {output: torch.full((math.prod(output.lead),), self.add(seed))}
        for value in reversed(self.network.values[: output.number + 1]):
            marks = pending.pop(value, None)
            if marks is None or not marks.any() or not (self.include_global or value.stride):
                continue
            self.network.refuse(value)
            if value is self.network.image:
                return self.patches[self.union(*marks.unique().tolist())]
            for edge in value.edges:
                if edge.is_global and not self.include_global:
                    continue
                pulled = self.pull(edge, marks)
                if edge.source in pending:
                    pulled = self.merge(pending[edge.source], pulled)
                pending[edge.source] = pulled
        return None

    def pull(self, edge: Edge, marks: Tensor) -> Tensor:
        """Marks of a value's lead elements, as marks of its source's."""
        count = len(self.patches)
        if edge.labels is not None:
            seen = (edge.labels >= 0) & (marks > 0)
            by_label = [0] * (int(edge.source_labels.max()) + 1)
            for pair in (edge.labels[seen] * count + marks[seen]).unique().tolist():
                label, mark = divmod(pair, count)
                by_label[label] = self.union(by_label[label], mark) if by_label[label] else mark
            marks = torch.tensor(by_label)[edge.source_labels]
        kinds, places = marks.unique(return_inverse=True)
        return torch.tensor([self.add(self.moved(edge, self.patches[i])) for i in kinds.tolist()])[places]

    def moved(self, edge: Edge, patch: Patch | None) -> Patch | None:
        """A patch of a value as a patch of the source, None if nothing of it is left."""
        if patch is None:
            return None
        bits, starts = patch.bits, []
        for dim, axis, start in zip((-2, -1)[-len(self.axes) :], self.axes, patch.start, strict=True):
            size = edge.source.grid[axis]
            line, start = edge.rules[axis].pull(bits.movedim(dim, -1), start, size if self.clip else None)
            if self.clip:  # what lies beyond the border is padding
                line, start = line[..., max(0, -start) : max(0, size - start)], max(start, 0)
            if line.shape[-1] == 0:
                return None
            bits = line.movedim(-1, dim)
            starts.append(start)
        return Patch(tuple(starts), bits) if bits.any() else None

    def add(self, patch: Patch | None) -> int:
        if patch is None:
            return 0
        self.patches.append(patch)
        return len(self.patches) - 1

    def merge(self, a: Tensor, b: Tensor) -> Tensor:
        """Marks of lead elements that are marked in two ways."""
        count = len(self.patches)
        pairs, places = (a * count + b).unique(return_inverse=True)
        return torch.tensor([self.union(*divmod(pair, count)) for pair in pairs.tolist()])[places]

    def union(self, first: int, *others: int) -> int:
        for other in others:
            key = min(first, other), max(first, other)
            if key not in self.unions and key[0] != key[1] and key[0] > 0:
                self.unions[key] = self.add(_union(self.patches[first], self.patches[other]))
            first = self.unions.get(key, key[1])
        return first


def _union(a: Patch, b: Patch) -> Patch:
    n = len(a.start)
    start = tuple(map(min, a.start, b.start))
    ends = [[s + m for s, m in zip(p.start, p.bits.shape[-n:], strict=True)] for p in (a, b)]
    bits = a.bits.new_zeros(*a.bits.shape[:-n], *(max(e) - s for *e, s in zip(*ends, start, strict=True)))
    for patch in (a, b):
        where = [
            slice(own - s, own - s + m)
            for own, s, m in zip(patch.start, start, patch.bits.shape[-n:], strict=True)
        ]
        bits[(..., *where)] |= patch.bits
    return Patch(start, bits)
