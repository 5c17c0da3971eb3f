"""Finds which segments to checkpoint so that a training step fits a budget with the least work done twice.

A few simulations of whole steps, each with another label in every place, tell for each place and each choice
there what is kept from the forward to the backward pass (K), how much the place itself needs beside that
while it runs (T), and the work that is done again. A step then needs, while a place runs, the K of all
places before it and its own T; the peak is the largest such sum. That is an approximation: segments that
lie next to each other share what is between them, which makes it off by 1 or 2 % in a Ladder-DenseNet and
more in small networks. So plans are simulated as a whole before they are given back, and where there are few
to choose from, each of them is.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import nn

from segkit.measure.peak import MIB, PeakMemory, Step, budget_in_bytes, check_arguments, peak_memory
from segkit.measure.step import copy_model
from segkit.memory.recompute import COVERS, MODIFIERS, Segments

FEW = 64  # so many plans are all simulated
# The prediction may be off either way: a search goes from somewhat above the budget down to well below it.
FACTORS = (1.02, 1.01, 1.0, 0.99, 0.98, 0.96, 0.93, 0.9)
Work = tuple[int, int]  # multiply-adds done again; bytes written again, which decides between equals


@dataclass(frozen=True)
class Plan:
    """A choice of segments and what a training step takes with it.

    Attributes:
        recompute: what to pass to `segkit.models.build`; empty for no segments.
        tokens: the same as labels and places, one by one.
        peak: of the simulated step.
        forward_macs: multiply-adds of the plain step's forward pass, to compare with.
    """

    recompute: str
    tokens: tuple[str, ...] = field(repr=False)
    peak: PeakMemory = field(repr=False)
    forward_macs: int

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return self.peak.total

    @property
    def recomputed_macs(self) -> int:
        """Multiply-adds of convolutions that the backward pass does a second time."""
        return self.peak.recomputed_macs

    def __str__(self) -> str:
        share = 100 * self.recomputed_macs / self.forward_macs
        return (
            f"recompute={self.recompute!r}: {self.total / MIB:.0f} MiB at the peak, "
            f"{self.recomputed_macs / 1e9:.1f} GMAC done again ({share:.1f} % of a forward pass)"
        )


def plan(
    model: nn.Module,
    budget_gib: float,
    batch_size: int,
    image_size: tuple[int, int],
    *,
    step: Step | None = None,
    optimizer: str | None = None,
    precision: str = "fp32",
) -> Plan:
    """The segments to checkpoint so that a step stays within a budget with the least convolution work redone.

    Among equal amounts of work, the plan that writes the fewest bytes again; so nothing at all is
    checkpointed where the plain step fits. All combinations of labels and places that the network offers are
    searched, labels that cover each other excluded (``cat`` and ``nested``, which take no place: none, the
    first, both). The search goes by predictions, and allows for an error of up to 20 %; what it returns is
    simulated and fits. What else could save memory is given by you: ``step`` (such as
    `segkit.memory.chunked_step`), ``optimizer``, ``precision``.

    Args:
        model: a network with segments, such as `segkit.models` builds; on any device, left as it is. What its
            own ``recompute`` was plays no role.
        budget_gib: GiB, 2^30 bytes, for what `segkit.measure.peak_memory` counts.
        batch_size: B.
        image_size: (H, W) in pixels.
        step, optimizer, precision: as for `segkit.measure.peak_memory`.

    Raises:
        ValueError: if nothing fits (the message says what the leanest plan needs), if the budget does not
            hold the model itself, or the network has no segments; and as `peak_memory`.
        MeasurementError: as `peak_memory`.
    """
    check_arguments(model, batch_size, image_size, step, optimizer, "meta", precision)
    budget = budget_in_bytes(model, budget_gib, optimizer)
    search = _Search(model, batch_size, image_size, step=step, optimizer=optimizer, precision=precision)
    found = search.within(budget, (1.2, 1.1, 1.05, *FACTORS))
    if found is None:
        leanest = search.leanest()
        raise ValueError(
            f"No plan fits {budget_gib} GiB at batch {batch_size} and {image_size[0]}x{image_size[1]}: the "
            f"leanest found, recompute={leanest.recompute!r}, needs {leanest.total / 2**30:.3f} GiB. Try a "
            f"smaller batch or image, step=segkit.memory.chunked_step, precision='bf16' or an optimizer with "
            f"less state."
        )
    return search.pruned(found, budget)


def frontier(
    model: nn.Module,
    batch_size: int,
    image_size: tuple[int, int],
    *,
    step: Step | None = None,
    optimizer: str | None = None,
    precision: str = "fp32",
    ratio: float = 0.9,
) -> list[Plan]:
    """Plans from the plain step to the leanest: for less memory, each does more work again.

    Args:
        model, batch_size, image_size, step, optimizer, precision: as for `plan`.
        ratio: each plan's peak is at most this part of the one before, in (0, 1).

    Returns:
        Plans in order of falling peak and growing work, each simulated as a whole.

    Raises:
        ValueError, MeasurementError: as `plan`.
    """
    check_arguments(model, batch_size, image_size, step, optimizer, "meta", precision)
    if not 0 < ratio < 1:
        raise ValueError(f"ratio={ratio!r}: give a number between 0 and 1, e.g. 0.9.")
    search = _Search(model, batch_size, image_size, step=step, optimizer=optimizer, precision=precision)
    plans = []
    budget = search.plain.total
    while (found := search.within(budget)) is not None:
        plans.append(found)
        budget = int(ratio * found.total)
    leanest = search.leanest()
    if leanest.total < plans[-1].total:
        plans.append(leanest)
    return plans


@dataclass(frozen=True)
class _Choice:
    """One way to run one place, as measured."""

    tokens: tuple[str, ...]  # label:place
    kept: int  # K: bytes kept from forward to backward
    need: int  # T: bytes beside what the places before it keep
    work: Work


@dataclass(frozen=True)
class _Table:
    """All that is known with one set of labels without a place."""

    modifiers: tuple[str, ...]
    choices: list[list[_Choice]]  # by place, in the order of the forward pass
    loss: int  # bytes that the loss needs beside what all places keep


class _Search:
    def __init__(self, model: nn.Module, batch_size: int, image_size: tuple[int, int], **options) -> None:
        self.model = copy_model(model, "meta")
        self.segments = _segments(self.model)
        self.simulate: Callable[[], PeakMemory] = lambda: peak_memory(
            self.model, batch_size, image_size, **options
        )
        names = {id(module): path for path, module in self.model.named_modules()}
        places: dict[tuple[str, ...], list[str]] = {}  # paths of modules: what can be chosen in them
        for label, place, modules in self.segments.offers:
            if label not in MODIFIERS:
                paths = tuple(names[id(module)] for module in modules)
                places.setdefault(paths, []).append(f"{label}:{place}" if place else label)
        self.paths = list(places)
        self.combinations = [list(_combinations(tokens)) for tokens in places.values()]
        available = [label for label, _, _ in self.segments.offers if label in MODIFIERS]
        self.known: dict[str, PeakMemory] = {}
        self.plain = self.measure(())
        self.modifiers = [tuple(available[:n]) for n in range(len(available) + 1)]
        number = sum(math.prod(len(c) for c in self.choices(chosen)) for chosen in self.modifiers)
        self.few = self.every() if number <= FEW else None
        self._tables: list[_Table] = []

    def measure(self, tokens: tuple[str, ...]) -> PeakMemory:
        """A whole step with these segments, simulated."""
        text = self.text(tokens)
        if text not in self.known:
            self.segments.chosen = frozenset(tokens)
            self.known[text] = self.simulate()
        return self.known[text]

    def text(self, tokens: tuple[str, ...]) -> str:
        """``tokens`` as `recompute` takes them, a label alone where it was chosen in every place."""
        everywhere = {}
        for label, place, _ in self.segments.offers:
            everywhere.setdefault(label, set()).add(f"{label}:{place}" if place else label)
        full = [label for label, all_tokens in everywhere.items() if all_tokens <= set(tokens)]
        rest = [token for token in tokens if token.partition(":")[0] not in full]
        return ",".join([*full, *rest])

    def choices(self, modifiers: tuple[str, ...]) -> list[list[tuple[str, ...]]]:
        """By place, what can be chosen beside labels without a place."""
        covered = {inner for outer in modifiers for inner in COVERS.get(outer, ())}
        return [
            [tokens for tokens in place if not any(token.partition(":")[0] in covered for token in tokens)]
            for place in self.combinations
        ]

    def every(self) -> list[Plan]:
        """All plans, simulated, in order of the work that they do again."""
        plans = [
            self.as_plan((*modifiers, *itertools.chain(*tokens)))
            for modifiers in self.modifiers
            for tokens in itertools.product(*self.choices(modifiers))
        ]
        return sorted(plans, key=lambda plan: (plan.recomputed_macs, _written(plan.peak), plan.total))

    def tables(self) -> Iterator[_Table]:
        """A table for each set of labels without a place, profiled when it is asked for."""
        for i, modifiers in enumerate(self.modifiers):
            if i == len(self._tables):
                self._tables.append(self.profile(modifiers))
            yield self._tables[i]

    def profile(self, modifiers: tuple[str, ...]) -> _Table:
        """Simulate as many steps as the place with most choices has, and take them apart by place."""
        table: list[dict[tuple[str, ...], _Choice]] = [{} for _ in self.paths]
        loss = 0
        combinations = self.choices(modifiers)
        for i in range(max(len(choices) for choices in combinations)):
            tokens = [choices[i % len(choices)] for choices in combinations]
            peak = self.measure((*modifiers, *itertools.chain(*tokens)))
            parts, loss_here = self.take_apart(peak, tokens)
            loss = max(loss, loss_here)
            for known, choice in zip(table, parts, strict=True):
                if choice.tokens not in known or known[choice.tokens].need > choice.need:
                    known[choice.tokens] = choice
        return _Table(modifiers, [list(known.values()) for known in table], loss)

    def take_apart(self, peak: PeakMemory, tokens: list[tuple[str, ...]]) -> tuple[list[_Choice], int]:
        """What a simulated step says of each place, and of the loss."""
        timeline = peak.timeline
        at = [self.place(path) for path in timeline.modules]
        turn = timeline.phases.index("backward") - 1  # the forward pass and the loss are done
        kept = [0] * len(self.paths)
        for (path, _), size in peak.alive_at(turn).items():
            if (place := self.place(path)) is not None:
                kept[place] += size
        # parameters, optimizer state and the gradients of parameters live where their module does
        before = list(itertools.accumulate(kept, initial=0))
        need, loss = [0] * len(self.paths), 0
        macs, written = [0] * len(self.paths), [0] * len(self.paths)
        for i, (place, total) in enumerate(zip(at, timeline.total, strict=True)):
            if place is None:
                loss = max(loss, total - before[-1])
                continue
            need[place] = max(need[place], total - before[place])
            if timeline.phases[i] == "recompute":
                macs[place] += timeline.macs[i]
                written[place] += timeline.allocated[i]
        parts = zip(tokens, kept, need, macs, written, strict=True)
        return [_Choice(t, k, n, (m, w)) for t, k, n, m, w in parts], loss

    def place(self, path: str) -> int | None:
        """Number of the place that a module belongs to: the one with the longest path that leads to it."""
        found = [
            (len(prefix), i)
            for i, prefixes in enumerate(self.paths)
            for prefix in prefixes
            if path == prefix or path.startswith(prefix + ".")
        ]
        return max(found)[1] if found else None

    def within(self, budget: int, factors: Sequence[float] = FACTORS) -> Plan | None:
        """The plan of least work that fits; None if none does."""
        if self.plain.total <= budget:
            return self.as_plan(())
        if self.few is not None:
            return next((plan for plan in self.few if plan.total <= budget), None)
        for factor in factors:
            found = self.predict(factor * budget)
            if found is not None and self.measure(found).total <= budget:
                return self.as_plan(found)
        leanest = self.leanest()
        return leanest if leanest.total <= budget else None

    def pruned(self, found: Plan, budget: int) -> Plan:
        """The plan without those of its segments that cost work and are not needed to fit."""
        for token in found.tokens:
            if found.recomputed_macs == 0 or self.few is not None:
                break
            rest = self.as_plan(tuple(other for other in found.tokens if other != token))
            if rest.total <= budget and rest.recomputed_macs < found.recomputed_macs:
                found = rest
        return found

    def predict(self, budget: float) -> tuple[str, ...] | None:
        """Tokens of the plan of least work whose predicted peak fits."""
        best = None
        for table in self.tables():
            found = _least_work(table, budget)
            if found is not None and (best is None or found[0] < best[0]):
                best = (found[0], (*table.modifiers, *found[1]))
            if best is not None and best[0][0] == 0:  # the next labels only write more bytes again
                break
        return best[1] if best else None

    def leanest(self) -> Plan:
        """The plan with the lowest (where there are many: predicted) peak."""
        if self.few is not None:
            return min(self.few, key=lambda plan: plan.total)
        low, high = 0, self.plain.total  # bisection over budgets
        best: tuple[str, ...] = ()
        while high - low > MIB:
            middle = (low + high) // 2
            found = self.predict(middle)
            low, high, best = (low, middle, found) if found is not None else (middle, high, best)
        return self.as_plan(best)

    def as_plan(self, tokens: tuple[str, ...]) -> Plan:
        return Plan(self.text(tokens), tokens, self.measure(tokens), self.plain.forward_macs)


def _written(peak: PeakMemory) -> int:
    """Bytes that operators write again in the backward pass."""
    timeline = peak.timeline
    again = zip(timeline.phases, timeline.allocated, strict=True)
    return sum(size for phase, size in again if phase == "recompute")


def _least_work(table: _Table, budget: float) -> tuple[Work, tuple[str, ...]] | None:
    """Exhaustive, place by place: of partial plans that keep no less for no less work, one is enough.

    What is still to come depends on a partial plan only through the sum of what it keeps.
    """
    states: list[tuple[int, Work, tuple]] = [(0, (0, 0), ())]  # kept, work, linked list of choices
    for choices in table.choices:
        reached = []
        for kept, work, taken in states:
            for choice in choices:
                if kept + choice.need <= budget:
                    done = (work[0] + choice.work[0], work[1] + choice.work[1])
                    reached.append((kept + choice.kept, done, (choice.tokens, taken)))
        states = _undominated(reached)
    fitting = [state for state in states if state[0] + table.loss <= budget]
    if not fitting:
        return None
    _, work, taken = min(fitting, key=lambda state: (state[1], state[0]))
    tokens: tuple[str, ...] = ()
    while taken:
        tokens, taken = (*taken[0], *tokens), taken[1]
    return work, tokens


def _undominated(states: list[tuple[int, Work, tuple]]) -> list[tuple[int, Work, tuple]]:
    best: list[tuple[int, Work, tuple]] = []
    for state in sorted(states, key=lambda state: state[:2]):  # from the one that keeps least on
        if not best or state[1] < best[-1][1]:
            best.append(state)
    return best


def _combinations(tokens: list[str]) -> Iterator[tuple[str, ...]]:
    """All subsets of labels of one place in which none covers another, the empty one first."""
    for size in range(len(tokens) + 1):
        for chosen in itertools.combinations(tokens, size):
            labels = [token.partition(":")[0] for token in chosen]
            if not any(inner in COVERS.get(outer, ()) for outer in labels for inner in labels):
                yield chosen


def _segments(model: nn.Module) -> Segments:
    """The one `Segments` of a network."""
    found = {id(s): s for m in model.modules() if isinstance(s := getattr(m, "segment", None), Segments)}
    if not found or not any(s.offers for s in found.values()):
        raise ValueError(
            f"{type(model).__name__} offers no segments to choose from. Most of segkit.models do; a network "
            f"of your own can, by running its parts through a segkit.memory.Segments and offering them."
        )
    if len(found) > 1:
        raise ValueError(f"{type(model).__name__} has {len(found)} Segments; let its parts share one.")
    return next(iter(found.values()))
