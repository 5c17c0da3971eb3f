"""segkit: a course and reproduction kit for memory-efficient semantic segmentation.

The packages, from the bottom up: `measure` (what a network costs), `memory` (ways to spend less),
`models`, `data`, `evaluation`, `training`, then `papers` (every printed number as a claim), `bench` and
`notebook`. Each is imported by name: `from segkit import models, measure`.
"""

__version__ = "0.1.0"
