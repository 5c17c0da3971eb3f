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
