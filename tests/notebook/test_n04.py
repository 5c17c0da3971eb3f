"""The exercises of notebook 04: right answers, typical wrong ones, and that each gets its own hint."""

import pytest
import torch
from torch import nn

from segkit.memory import ReversibleSequence
from segkit.notebook import reverse
from segkit.notebook.exercises import n04
from segkit.notebook.exercises.kinds import UNANSWERED

EXERCISES = n04.EXERCISES


@pytest.mark.parametrize("name", ["04.1", "04.4"])
def test_right_and_wrong_numbers(name):
    exercise = EXERCISES[name]
    assert exercise.hint(exercise.expected) is None
    assert exercise.hint(...) == UNANSWERED
    hints = [exercise.hint(trap) for trap in exercise.traps]
    assert hints == list(exercise.traps.values()) and len(set(hints)) == len(hints)


def test_the_slope_and_its_traps_are_what_is_simulated():
    first, second = (reverse.vnet_peak("plain", depth) for depth in (1, 2))
    exercise = EXERCISES["04.1"]
    assert exercise.hint(second - first) is None
    assert "depth 1" in exercise.hint(first)
    assert "depth 2" in exercise.hint(second)


@pytest.mark.parametrize("name", ["04.2", "04.3"])
def test_right_and_wrong_functions(name):
    exercise = EXERCISES[name]
    assert exercise.hint(exercise.reference) is None
    assert exercise.hint(lambda *arguments: ...) == UNANSWERED
    hints = [exercise.hint(mistake) for mistake in exercise.mistakes]
    assert hints == list(exercise.mistakes.values()) and len(set(hints)) == len(hints)


def test_the_fused_step_is_plain_autograds():
    for case in EXERCISES["04.3"].cases:
        f, y1, y2, d1, d2 = case()
        x1, x2, dx1, dx2, of_parameters = n04._fused(f, y1, y2, d1, d2)
        x1, x2 = x1.requires_grad_(), x2.requires_grad_()
        z = x1 + f(x2)
        right = torch.autograd.grad((z, x2 + z), [x1, x2, *f.parameters()], (d1, d2))
        for mine, expected in zip([dx1, dx2, *of_parameters], right, strict=True):
            assert torch.allclose(mine, expected, atol=1e-4)


def test_a_flat_stack_passes():
    assert EXERCISES["04.5"].hint(ReversibleSequence) is None


@pytest.mark.parametrize("build", [n04.per_unit, n04.checkpointed, n04.plain])
def test_a_stack_that_grows_is_told_why(build):
    exercise = EXERCISES["04.5"]
    hint = exercise.hint(build)
    assert hint.endswith(exercise.mistakes[build]) and "MiB with 16 units" in hint


class Pairs(nn.Module):
    """A Function for every two units: grows, and is none of the known ones."""

    def __init__(self, functions):
        super().__init__()
        self.body = nn.Sequential(
            *(ReversibleSequence(functions[i : i + 2]) for i in range(0, len(functions), 2))
        )

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (..., UNANSWERED),
        (lambda functions: ..., UNANSWERED),
        (3, "a function is asked for"),
        (lambda functions: ReversibleSequence(functions[::-1]), "computes something else"),
        (lambda functions: ReversibleSequence(functions[:-1]), "get no gradient"),
        (lambda functions: functions[0], "Error"),
        (lambda functions: nn.Flatten(0), "no gradient"),
        (Pairs, "but the peak grows"),
    ],
)
def test_other_stacks_get_a_hint_of_their_own(answer, part):
    assert part in EXERCISES["04.5"].hint(answer)
