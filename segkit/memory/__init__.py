"""Ways to spend less memory in training, exactly: recomputation, the loss in chunks, a planner."""

from segkit.memory.chunked import chunked_cross_entropy, chunked_step
from segkit.memory.planner import Plan, frontier, plan
from segkit.memory.recompute import LABELS, Segments
from segkit.memory.reversible import ReversibleSequence, ReversibleUnit

__all__ = [
    "LABELS",
    "Plan",
    "ReversibleSequence",
    "ReversibleUnit",
    "Segments",
    "chunked_cross_entropy",
    "chunked_step",
    "frontier",
    "plan",
]
