"""Exercises that answer back: `check("03.2", answer)` prints "correct" or what went wrong.

One module a notebook (`n03` for notebook 03) lists its exercises in a dict `EXERCISES` by id; `kinds` has
what an exercise can be. A check prints and never raises: an exception would stop Run All at the first blank.
"""

from importlib import import_module
from importlib.util import find_spec

from segkit.notebook.exercises.kinds import Exercise

__all__ = ["check", "exercise", "hint"]


def exercise(exercise_id: str) -> Exercise:
    """Looks an exercise up by its id, such as "03.2": the second one of notebook 03.

    Raises:
        ValueError: if there is no such exercise; the ones of the same notebook are listed.
    """
    name = f"{__name__}.n{exercise_id.partition('.')[0]}"
    known = import_module(name).EXERCISES if find_spec(name) else {}
    if exercise_id not in known:
        listed = ", ".join(known) or "none in that notebook"
        raise ValueError(f"no exercise {exercise_id!r}; there are: {listed}")
    return known[exercise_id]


def hint(exercise_id: str, answer: object) -> str | None:
    """What is wrong with an answer, or None when it is right."""
    return exercise(exercise_id).hint(answer)


def check(exercise_id: str, answer: object) -> None:
    """Prints whether an answer is right, and a hint when it is not."""
    print(f"{exercise_id}: {hint(exercise_id, answer) or 'correct'}")
