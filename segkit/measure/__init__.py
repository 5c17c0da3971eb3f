"""What a network costs, before you pay it; nothing is allocated.

`cost` counts parameters and multiply-adds, `peak_memory` the memory of a training step, `max_batch` finds the
largest batch that fits. Only torch is needed: a model or a step is passed in.
"""

from segkit.measure.cost import CONVENTIONS, Cost, cost
from segkit.measure.peak import MeasurementError, PeakMemory, max_batch, peak_memory

__all__ = [
    "CONVENTIONS",
    "Cost",
    "MeasurementError",
    "PeakMemory",
    "cost",
    "max_batch",
    "peak_memory",
]
