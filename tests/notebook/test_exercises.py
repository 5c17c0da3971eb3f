"""The kinds of exercise, and the exercises of each notebook against right, blank and wrong answers."""

import importlib
import math
import pkgutil
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segkit.notebook import exercises
from segkit.notebook.exercises import check, hint, n03
from segkit.notebook.exercises.kinds import UNANSWERED, Choice, Function, Value

# Of every notebook that has some: a module n03 for notebook 03.
EXERCISES = {
    name: exercise
    for module in pkgutil.iter_modules(exercises.__path__, f"{exercises.__name__}.")
    if re.search(r"\.n\d\d$", module.name)
    for name, exercise in importlib.import_module(module.name).EXERCISES.items()
}


# The kinds ----------------------------------------------------------------------------------------


def test_value():
    value = Value(2048, {2047: "off by one"}, tolerance=1e-6)
    assert value.hint(2048) is None
    assert value.hint(torch.tensor(2048)) is None
    assert value.hint(2047) == "off by one"
    assert value.hint(...) == value.hint(None) == UNANSWERED
    assert value.hint(3000) == "3000 is too large"
    assert value.hint(0.5) == "0.5 is too small"
    assert "divided by zero" in value.hint(math.nan)
    assert value.hint("many") == "a single number is asked for, this is str 'many'"
    assert value.hint(torch.zeros(2)) == "a single number is asked for, this is a tensor (2,)"


def test_choice():
    choice = Choice("depth", {"width": "no wider"})
    assert choice.hint(" Depth") is None
    assert choice.hint("width") == "no wider"
    assert choice.hint("height") == "'height' is none of the choices: depth, width"
    assert choice.hint(...) == UNANSWERED


def scaled_norm(x, norm):
    return 2 * norm(x)


def scale_forgotten(x, norm):
    return norm(x)


def norm_case(*shape):
    def make():
        x = torch.arange(math.prod(shape), dtype=torch.float32).view(shape).cos()
        return x.requires_grad_(), nn.BatchNorm2d(shape[1])

    return make


NORM = Function(
    scaled_norm, [norm_case(2, 3, 4, 4), norm_case(1, 2, 3, 5)], {scale_forgotten: "where is the 2?"}
)


def run_twice(x, norm):
    norm(x)
    return 2 * norm(x)


def in_place(x, norm):
    x.mul_(2)
    return norm(x)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda x, norm: 2 * norm(x), None),
        (lambda x, norm: norm(x), "where is the 2?"),
        (lambda x, norm: None, UNANSWERED),
        (..., UNANSWERED),
        (3, "a function is asked for, this is int 3"),
        (lambda x, norm: norm(x).mean(), "with x (2, 3, 4, 4): the shape is (), expected (2, 3, 4, 4)"),
        (lambda x, norm: 3 * norm(x), "with x (2, 3, 4, 4): the shape is right, but the value at ["),
        (lambda x, norm: 2 * norm(x).detach(), "but the gradient of x is missing"),
        (lambda x, norm: norm(x) + norm(x).detach(), "but the gradient of x differs"),
        (run_twice, "but the buffer norm.running_mean differs after the call"),
        (in_place, "RuntimeError: a leaf Variable that requires grad is being used in an in-place operation"),
        (lambda x: x, "TypeError: "),
        (lambda x, norm: "text", "it returns str 'text'"),
        (
            lambda x, norm: 2 * norm(x) if len(x) == 2 else x,
            "with x (1, 2, 3, 5): the shape is right, but the value at [",
        ),
    ],
)
def test_function_names_the_first_difference(answer, sentence):
    found = NORM.hint(answer)
    assert found is None if sentence is None else sentence in found


def test_function_leaves_the_random_numbers_alone():
    state = torch.get_rng_state()
    assert NORM.hint(lambda x, norm: torch.rand_like(x)) is not None
    assert torch.equal(state, torch.get_rng_state())


def test_an_answer_that_always_fails_is_not_taken_for_a_mistake_that_fails():
    def broken(x, skip, project, blend):
        raise RuntimeError("out of luck")

    assert "out of luck" in hint("03.4", broken)


def test_check_prints_and_never_raises(capsys):
    check("03.1", "resolution")
    check("03.1", ...)
    check("03.3", lambda: None)
    first, second, third = capsys.readouterr().out.splitlines()
    assert (first, second) == ("03.1: correct", f"03.1: {UNANSWERED}")
    assert "TypeError" in third


@pytest.mark.parametrize("name", ["03.9", "77.1", "x"])
def test_an_unknown_exercise_is_refused(name):
    with pytest.raises(ValueError, match="no exercise"):
        exercises.exercise(name)


# Every exercise -----------------------------------------------------------------------------------


def test_the_exercises_of_notebook_03_are_among_them():
    assert [name for name in EXERCISES if name.startswith("03.")] == list(n03.EXERCISES)
    assert len(n03.EXERCISES) == 5


def wrong_answers(exercise):
    match exercise:
        case Value():
            return exercise.traps
        case Choice():
            return exercise.others
        case Function():
            return exercise.mistakes


# A notebook with a kind of exercise of its own tests that one's hints itself.
@pytest.mark.parametrize(
    "name", [name for name in EXERCISES if isinstance(EXERCISES[name], Value | Choice | Function)]
)
def test_each_typical_mistake_gets_its_own_hint(name):
    expected = wrong_answers(EXERCISES[name])
    assert len(set(expected.values())) == len(expected) >= 2
    assert {answer: hint(name, answer) for answer in expected} == expected


# Of other kinds the notebook's own test asks for what is right.
@pytest.mark.parametrize("name", [name for name in EXERCISES if type(EXERCISES[name]) in (Value, Function)])
def test_what_is_expected_is_right(name):
    exercise = EXERCISES[name]
    assert hint(name, exercise.expected if isinstance(exercise, Value) else exercise.reference) is None


@pytest.mark.parametrize("name", EXERCISES)
def test_blanks_fail(name):
    assert hint(name, ...) == UNANSWERED
    if isinstance(EXERCISES[name], Function):
        assert hint(name, lambda *arguments: ...) == hint(name, lambda *arguments: None) == UNANSWERED


@pytest.mark.parametrize("name", [name for name in EXERCISES if isinstance(EXERCISES[name], Function)])
def test_functions_are_asked_at_three_shapes(name):
    cases = EXERCISES[name].cases
    assert len({EXERCISES[name]._described(case) for case in cases}) == len(cases) >= 3
    sizes = [
        s for case in cases for value in case() if isinstance(value, torch.Tensor) for s in value.shape[-2:]
    ]
    assert not sizes or any(size % 2 for size in sizes)


# Right answers, written as a learner would --------------------------------------------------------


def test_03_2_right():
    confusion = torch.tensor(n03.CONFUSION)
    iou = confusion.diag() / (confusion.sum(0) + confusion.sum(1) - confusion.diag())
    assert hint("03.2", iou.mean()) is None
    assert hint("03.2", sum(iou.tolist()) / 3) is None


def test_03_3_right():
    def soft_target(labels, n, num_classes):
        classes = torch.arange(num_classes)[:, None, None]
        planes = (labels[:, None] == classes).float()  # (B, C, H, W)
        count = F.avg_pool2d(planes, n) * n**2
        return count / count.sum(1, keepdim=True).clamp(min=1)

    assert hint("03.3", soft_target) is None


def test_03_4_right():
    def transition_up(x, skip, project, blend):
        return blend(project(skip) + F.interpolate(x, skip.shape[2:], mode="bilinear"))

    def doubled(x, skip, project, blend):  # the other order of operands raises another message
        return blend(project(skip) + F.interpolate(x, scale_factor=2, mode="bilinear"))

    assert hint("03.4", transition_up) is None
    assert "scale_factor=2 fails on odd sizes" in hint("03.4", doubled)


def test_03_5_right():
    assert hint("03.5", lambda e, n, rate: rate * math.cos(math.pi * e / n / 2) ** 2) is None
