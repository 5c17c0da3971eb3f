"""Learning-rate schedules, as factors of the initial rate."""

import math


def cosine(epoch: int, epochs: int) -> float:
    """Half a cosine from 1 towards 0, one value an epoch (Ladder-DenseNet paper, Sec. 6.1).

    Args:
        epoch: the epoch about to run, 0 to ``epochs - 1``.
        epochs: how many epochs the whole run has.

    Returns:
        The factor for the initial rate: 1 in the first epoch, and still above 0 in the last one.

    Raises:
        ValueError: if ``epoch`` is no epoch of the run.
    """
    if not 0 <= epoch < epochs:
        raise ValueError(f"epoch {epoch} is not in a run of {epochs} epochs: expected 0 to {epochs - 1}")
    return 0.5 * (1.0 + math.cos(math.pi * epoch / epochs))


def poly(step: int, steps: int, *, power: float = 0.9) -> float:
    """(1 - step / steps) ** power, one value a step (VNet paper, Sec. IV-A).

    Args:
        step: the step about to be done, 0 to ``steps - 1``, counted over the whole run.
        steps: how many steps the whole run has.
        power: 1 for a straight line; below 1 the rate falls late.

    Returns:
        The factor for the initial rate: 1 in the first step, and still above 0 in the last one.

    Raises:
        ValueError: if ``step`` is no step of the run.
    """
    if not 0 <= step < steps:
        raise ValueError(f"step {step} is not in a run of {steps} steps: expected 0 to {steps - 1}")
    return (1.0 - step / steps) ** power
