"""Ways to spend less memory in training: `recompute` trades time for it, exactly."""

from segkit.memory.recompute import LABELS, Segments

__all__ = ["LABELS", "Segments"]
