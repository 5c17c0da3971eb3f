"""Gradient checkpointing by the paper's segments, with batch-norm statistics kept exact.

A checkpointed segment caches only its inputs in the forward pass and runs a second time in the backward pass.
That second run would update the running statistics of every batch norm in it once more, so that training with
and without checkpoints would end in different models. Here it leaves them alone: gradients and ``state_dict``
are bit-equal to those of the plain step wherever the kernels themselves are deterministic.

The labels are those of Table 12 of "Efficient Ladder-style DenseNets for Semantic Segmentation of Large
Images".
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
}
# A label on the left already runs everything that those on the right would run.
_COVERS = {"unit": ("cat1x1", "3x3"), "block": ("unit", "cat1x1", "3x3")}


class Segments:
    """Runs the parts of a network, those with a chosen label as checkpointed segments.

    A network calls ``segment("stem", self.stem, x)`` instead of ``self.stem(x)``; with the label ``stem``
    chosen the call is checkpointed, otherwise it is an ordinary one.

    Args:
        recompute: chosen labels, separated by commas, e.g. ``"unit,stem,td,tu"``, the paper's leanest row.
            None chooses none.
        available: the labels that this network has segments for, of ``LABELS``.

    Raises:
        TypeError: if ``recompute`` is neither a string nor None.
        ValueError: if a label is unknown, not available in this network, given twice or inside another one.
    """

    def __init__(self, recompute: str | None = None, *, available: Collection[str] = tuple(LABELS)) -> None:
        if recompute is not None and not isinstance(recompute, str):
            raise TypeError(
                f"recompute must be a comma-separated string such as 'unit,stem,td,tu', not {recompute!r}."
            )
        labels = [label.strip() for label in recompute.split(",")] if recompute and recompute.strip() else []
        for label in labels:
            if label not in available:
                near = get_close_matches(label, available, n=1)
                guess = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"No segments labelled {label!r} in this network.{guess} It has {', '.join(available)}."
                )
            if labels.count(label) > 1:
                raise ValueError(
                    f"The label {label!r} occurs twice in recompute={recompute!r}; give it once."
                )
            for inner in _COVERS.get(label, ()):
                if inner in labels:
                    raise ValueError(
                        f"recompute={recompute!r} covers {inner!r} twice: a {label!r} segment already "
                        f"recomputes it. Leave out one of the two."
                    )
        self.labels = frozenset(labels)

    def __call__(self, label: str, part: Callable, *inputs):
        """Run ``part(*inputs)``, as a checkpointed segment if ``label`` was chosen.

        Args:
            label: one of ``LABELS``.
            part: a module or a method of a module. Never a lambda: it runs again much later, when the
                variables that it names may mean something else.
            inputs: its positional arguments.
        """
        if label not in self.labels or not torch.is_grad_enabled():
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
        return f"Segments({','.join(sorted(self.labels))!r})"


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
