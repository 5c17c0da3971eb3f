"""What a network costs and what it sees, before you train it; nothing is allocated but to time it.

`cost` counts parameters and multiply-adds, `peak_memory` the memory of a training step and what PyTorch takes
from a card for it, `max_batch` finds the largest batch that fits. `receptive_field` probes which pixels an
output pixel sees, `effective` weighs them; `compose`, `bound`, `support` and `coverage` do the papers'
arithmetic on a list of layers, and `largest_path` reads such a list off a network. `latency` times forward
passes, of several networks in turns; it alone runs for real. Only torch is needed: a model or a step is
passed in.

`receptive_field` and `latency` are the functions; they hide the modules of the same names, whose other names
are imported by ``from segkit.measure.receptive_field import ...``.
"""

from segkit.measure.cost import CONVENTIONS, Cost, cost
from segkit.measure.latency import Latency, latency
from segkit.measure.peak import MeasurementError, PeakMemory, max_batch, peak_memory
from segkit.measure.receptive_field import (
    Bound,
    Composed,
    EffectiveField,
    Layer,
    ReceptiveField,
    bound,
    compose,
    coverage,
    effective,
    largest_path,
    receptive_field,
    support,
)

__all__ = [
    "CONVENTIONS",
    "Bound",
    "Composed",
    "Cost",
    "EffectiveField",
    "Latency",
    "Layer",
    "MeasurementError",
    "PeakMemory",
    "ReceptiveField",
    "bound",
    "compose",
    "cost",
    "coverage",
    "effective",
    "largest_path",
    "latency",
    "max_batch",
    "peak_memory",
    "receptive_field",
    "support",
]
