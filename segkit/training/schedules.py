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


def warmup(step: int, steps: int, *, factor: float = 0.1) -> float:
    """A straight line from ``factor`` to 1, by which a schedule is multiplied (RegSeg paper, Sec. 4.2).

    The schedule goes on under it: with :func:`poly` the rate does not reach the initial one, as the paper's
    "from 0.1 lr to lr" could be read, but what poly has left of it after ``steps`` steps.

    Args:
        step: the step about to be done, from 0, counted over the whole run.
        steps: over how many steps the line rises; 0 for none.
        factor: where it begins, from 0 to 1.

    Returns:
        The factor for the scheduled rate: ``factor`` in the first step, and 1 from step ``steps`` on.

    Raises:
        ValueError: if ``step`` or ``steps`` is negative or ``factor`` is outside its range.
    """
    if step < 0 or steps < 0:
        raise ValueError(f"warm-up counts steps from 0, not step {step} of {steps}")
    if not 0 <= factor <= 1:
        raise ValueError(f"warm-up begins with a factor from 0 to 1, not {factor}")
    return 1.0 if step >= steps else factor + (1.0 - factor) * step / steps
