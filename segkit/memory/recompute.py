"""Gradient checkpointing by the paper's segments, with batch-norm statistics kept exact.

A checkpointed segment caches only its inputs in the forward pass and runs a second time in the backward pass.
That second run would update the running statistics of every batch norm in it once more, so that training with
and without checkpoints would end in different models. Here it leaves them alone: gradients and ``state_dict``
are bit-equal to those of the plain step wherever the kernels themselves are deterministic.

The labels up to ``tu`` are those of Table 12 of "Efficient Ladder-style DenseNets for Semantic Segmentation
of Large Images"; the others go beyond the paper. A label alone chooses its segments everywhere;
``label:place`` chooses those in one place, a dense block, transition-down layer or transition-up block by its
number in the forward pass: ``"unit:1,cat1x1:2,3x3:2,td,tu:3"``. `segkit.memory.plan` finds such a choice for
a budget. Networks that are no Ladder-DenseNets use the labels for what corresponds; their docstrings say.

One exception to bit for bit: with ``nested`` a batch norm works on a part of its maps, for which a library
may take another kernel (it does for tensors in channels-last order); then gradients differ by rounding.
"""

from collections.abc import Callable, Collection
from contextlib import nullcontext
from difflib import get_close_matches

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

LABELS: dict[str, str] = {
    "cat1x1": "concatenation and first BN-ReLU-conv of a dense unit",
    "3x3": "second BN-ReLU-conv of a dense unit",
    "unit": "a whole dense unit (what cat1x1 and 3x3 cover together, as one segment)",
    "block": "a whole processing block",
    "stem": "first convolution, batch norm, ReLU and max-pool",
    "td": "a transition-down layer",
    "tu": "a transition-up block, an auxiliary head on its input, the logits",
    "skip": "the projection of a transition-up block's skip connection",
    "blend": "the rest of a transition-up block: upsampling, sum, and what follows",
    "spp": "spatial pyramid pooling",
    "cat": "no segment: a dense block hands on the list of its units' outputs, and who reads concatenates "
    "(which costs memory where the readers, td, skip or tu, and spp, are no segments)",
    "nested": "BN-ReLU-1x1 on a concatenation, within larger segments too; its BN-ReLU a quarter at a time",
}
MODIFIERS = ("cat", "nested")  # labels that take no place
# A label on the left already runs everything that those on the right would run.
COVERS = {
    "unit": ("cat1x1", "3x3"),
    "block": ("unit", "cat1x1", "3x3"),
    "tu": ("skip", "blend"),
    "nested": ("cat1x1",),
}


class Segments:
    """Runs the parts of a network, those with a chosen label as checkpointed segments.

    A network calls ``segment("stem", self.stem, x)`` instead of ``self.stem(x)``; with the label ``stem``
    chosen the call is checkpointed, otherwise it is an ordinary one.

    Args:
        recompute: chosen labels, separated by commas, e.g. ``"unit,stem,td,tu"``, the paper's leanest row, or
            ``"unit:1,stem"`` with a place. None chooses none.
        available: the labels that this network has segments for, of ``LABELS``.

    Attributes:
        chosen: the labels and ``label:place`` that were chosen.
        offers: (label, place, modules) for every choice that a planner has in this network, in the order of
            the forward pass; see `offer`.

    Raises:
        TypeError: if ``recompute`` is neither a string nor None.
        ValueError: if a label is unknown, not available in this network, given twice or inside another one.
    """

    def __init__(self, recompute: str | None = None, *, available: Collection[str] = tuple(LABELS)) -> None:
        if recompute is not None and not isinstance(recompute, str):
            raise TypeError(
                f"recompute must be a comma-separated string such as 'unit,stem,td,tu', not {recompute!r}."
            )
        tokens = [token.strip() for token in recompute.split(",")] if recompute and recompute.strip() else []
        pairs = [(label, place) for label, _, place in (token.partition(":") for token in tokens)]
        for token, (label, place) in zip(tokens, pairs, strict=True):
            if ":" in token and not place:
                raise ValueError(f"No place after {token!r}; write {label!r}, or a place such as {label}:1.")
            if label not in available:
                near = get_close_matches(label, available, n=1)
                guess = f" Did you mean {near[0]!r}?" if near else ""
                has = f"It has {', '.join(available)}." if available else "It has none; leave out recompute."
                raise ValueError(f"No segments labelled {label!r} in this network.{guess} {has}")
            if tokens.count(token) > 1:
                raise ValueError(
                    f"The label {token!r} occurs twice in recompute={recompute!r}; give it once."
                )
        for outer, there in pairs:
            for inner, here in pairs:
                if there and here and there != here:
                    continue
                if inner in COVERS.get(outer, ()) or (outer == inner and there and not here):
                    raise ValueError(
                        f"recompute={recompute!r} covers {inner!r} twice: a {outer!r} segment already "
                        f"recomputes it. Leave out one of the two."
                    )
        self.chosen = frozenset(tokens)
        self.offers: list[tuple[str, str, tuple[nn.Module, ...]]] = []

    def offer(self, label: str, place: str, *modules: nn.Module) -> None:
        """Say that ``label:place`` can be chosen, and in which modules its segments are.

        Args:
            label: one of ``LABELS``.
            place: the number of the block or layer; empty where there is only one.
            modules: all that these segments run, one after the other in the forward pass. Labels of the same
                modules are alternatives (`COVERS` tells which exclude each other).
        """
        self.offers.append((label, place, modules))

    def check_places(self) -> None:
        """To be called when all of a network's choices have been offered.

        Raises:
            ValueError: if a place was chosen that the network does not have.
        """
        for token in self.chosen:
            label, _, place = token.partition(":")
            places = [p for offered, p, _ in self.offers if offered == label and p]
            if place and place not in places:
                has = f"{label} has {', '.join(places)}" if places else f"{label} takes no place"
                raise ValueError(f"No {token!r} in this network: {has}.")

    def has(self, label: str, place: str = "") -> bool:
        """Whether this label was chosen, everywhere or in this place."""
        return label in self.chosen or (place != "" and f"{label}:{place}" in self.chosen)

    def __call__(self, label: str, part: Callable, *inputs, place: str = ""):
        """Run ``part(*inputs)``, as a checkpointed segment if ``label`` was chosen.

        Args:
            label: one of ``LABELS``.
            part: a module or a method of a module. Never a lambda: it runs again much later, when the
                variables that it names may mean something else.
            inputs: its positional arguments.
            place: which of the segments with this label it belongs to.
        """
        if not self.has(label, place) or not torch.is_grad_enabled():
            return part(*inputs)
        if (
            torch.compiler.is_compiling()
        ):  # the compiler keeps the statistics exact itself and refuses our context
            return checkpoint(part, *inputs, use_reentrant=False)
        module = part if isinstance(part, nn.Module) else part.__self__
        return checkpoint(
            part, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), Freeze(module))
        )

    def __repr__(self) -> str:
        return f"Segments({','.join(sorted(self.chosen))!r})"


class Freeze:
    """Context in which the batch norms of a module still use batch statistics but leave no trace of it.

    Momentum 0 keeps the running averages bit for bit; the batch counter counts on a copy that is thrown away.
    A stack, because a segment inside a segment enters the context again while it is active.
    """

    def __init__(self, module: nn.Module) -> None:
        self.norms = [
            m for m in module.modules() if isinstance(m, _NormBase) and m.num_batches_tracked is not None
        ]
        self.stack: list[list[tuple[float | None, torch.Tensor]]] = []

    def __enter__(self) -> None:
        self.stack.append([(norm.momentum, norm.num_batches_tracked) for norm in self.norms])
        for norm in self.norms:
            norm.momentum = 0.0
            norm.num_batches_tracked = norm.num_batches_tracked.clone()

    def __exit__(self, *exception) -> None:
        for norm, (momentum, counter) in zip(self.norms, self.stack.pop(), strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = counter
