"""The exercises of notebook 05: right answers, typical wrong ones, and that each gets its own hint."""

import pytest

from segkit.measure.receptive_field import bound, compose, largest_path, receptive_field
from segkit.models.regseg import DILATIONS
from segkit.notebook import field
from segkit.notebook.exercises import n05
from segkit.notebook.exercises.kinds import UNANSWERED

EXERCISES = n05.EXERCISES


@pytest.mark.parametrize("name", ["05.1", "05.2"])
def test_right_and_wrong_numbers(name):
    exercise = EXERCISES[name]
    assert exercise.hint(exercise.expected) is None
    assert exercise.hint(...) == UNANSWERED
    hints = [exercise.hint(trap) for trap in exercise.traps]
    assert hints == list(exercise.traps.values()) and len(set(hints)) == len(hints)


def test_the_numbers_are_those_of_the_storys_networks():
    assert EXERCISES["05.1"].expected == 31 and EXERCISES["05.2"].expected == 126
    assert list(EXERCISES["05.1"].traps)[:2] == [17, 33]
    # 4095 / 32 and (2048 - 63) / 32, rounded up, are the traps 128 and 63
    assert list(EXERCISES["05.2"].traps) == [127, 128, 62, 63, 252]
    assert sum(max(d) for d in DILATIONS[7]) == 127


def test_what_regseg_sees_before_its_dilated_blocks():
    layers = largest_path(field.backbone(1), output=-1)
    before = compose(layers[:-13])
    assert (before.size, 2 * before.stride) == (n05.BEFORE, n05.A_UNIT)


@pytest.mark.parametrize("name", ["05.3", "05.5"])
def test_right_and_wrong_functions(name):
    exercise = EXERCISES[name]
    assert exercise.hint(exercise.reference) is None
    assert exercise.hint(lambda *arguments: ...) == UNANSWERED
    hints = [exercise.hint(mistake) for mistake in exercise.mistakes]
    assert hints == list(exercise.mistakes.values()) and len(set(hints)) == len(hints)


def test_the_formula_over_branches_is_what_probing_finds():
    for case in EXERCISES["05.3"].cases:
        (stages,) = case()
        network = field.nn.Sequential(*(field.Branches(stage) for stage in stages))
        size = receptive_field(network, channels=1).size[0]
        assert size == n05._over_branches(stages) == compose(largest_path(network, channels=1)).size


def test_row_8_is_regsegs():
    (layers,) = n05._row_8()
    path = largest_path(field.backbone(8), output=-1)
    assert [(layer.kernel, layer.stride, layer.dilation) for layer in path] == layers
    assert [i for i, entry in enumerate(bound(layers)) if not entry.holds] == [n05._first_violation(layers)]


@pytest.mark.parametrize("answer", [[1, 3, 9], (9, 3, 1), {1, 3, 9}, [3, 1, 9]])
def test_the_largest_field_without_a_hole(answer):
    assert EXERCISES["05.4"].hint(answer) is None
    assert field.widest_whole()[1] == EXERCISES["05.4"].size


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (..., UNANSWERED),
        ([1, 2, 5], "17 px is not the most"),
        ([1, 4, 13], "a field of 37 px with holes: 10 of its 37 columns"),
        ([2, 2, 2], "6 of its 13 columns"),
        (7, "three whole numbers"),
        ([1, 2], "from 1 to 1000"),
        ([1, 2.5, 3], "from 1 to 1000"),
        ([0, 1, 2], "from 1 to 1000"),
        (["a", "b", "c"], "three whole numbers"),
    ],
)
def test_other_dilations_get_a_hint_of_their_own(answer, part):
    assert part in EXERCISES["05.4"].hint(answer)
