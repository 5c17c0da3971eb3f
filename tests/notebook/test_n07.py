"""The exercises of notebook 07: right answers, typical wrong ones, and that each gets its own hint."""

import pytest
import torch

from segkit.evaluation.metrics import three_mious
from segkit.notebook import aspp
from segkit.notebook.exercises import n07
from segkit.notebook.exercises.kinds import UNANSWERED

EXERCISES = n07.EXERCISES


@pytest.mark.parametrize(
    ("name", "answer", "part"),
    [
        ("07.1", 79, "one layer was removed"),
        ("07.1", 85, "24 and 18 are the layers to remove"),
        ("07.1", 127, "nothing was removed"),
        ("07.1", 109, "the two lowest"),
        ("07.1", 42, "one cell is there"),
        ("07.3", 0.344, "one axis"),
        ("07.3", 0.1146, "#4's head"),
        ("07.3", 0.0301, "#3's head"),
    ],
)
def test_numbers_that_people_come_up_with(name, answer, part):
    assert part in EXERCISES[name].hint(answer)


def test_the_right_numbers_are_what_probing_finds():
    assert EXERCISES["07.1"].hint(43) is None and EXERCISES["07.3"].hint(0.1185) is None
    assert EXERCISES["07.1"].hint(aspp.head(aspp.BEST).taps[2]) is None
    assert EXERCISES["07.3"].hint(aspp.head(n07.FIRST).coverage) is None


def test_the_official_mean_is_that_of_the_metrics():
    for case in EXERCISES["07.5"].cases:
        matrix, background = case()
        found = three_mious(matrix, background)
        assert n07._official(matrix, background).item() == pytest.approx(found.iou19_official)
        assert n07._all_classes(matrix, background).item() == pytest.approx(found.iou20)
        assert n07._dropped_from_the_mean(matrix, background).item() == pytest.approx(found.iou19)
    assert EXERCISES["07.5"].hint(lambda m, b: torch.tensor(three_mious(m, b).iou19_official)) is None


@pytest.mark.parametrize("answer", [[1, 3, 9, 18, 24], (24, 18, 9, 3, 1), [1, 2, 5, 14, 38]])
def test_other_dilations_without_a_hole(answer):
    assert EXERCISES["07.4"].hint(answer) is None


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (..., UNANSWERED),
        ([1, 3, 8, 24, 27], "find another"),
        ([27, 24, 8, 3, 1], "find another"),
        ([1, 6, 12, 18, 24], "60 rows untouched, 0.26"),
        ([3, 7, 12, 18, 24], "18 rows untouched, 0.74"),
        ([1, 2, 3, 4, 5], "31 cells; at least 111"),
        (7, "five whole numbers"),
        ([1, 3, 9, 18], "from 1 to 200"),
        ([1, 3, 9, 18, 24.5], "from 1 to 200"),
        ([0, 3, 9, 18, 30], "from 1 to 200"),
        (["a", "b", "c", "d", "e"], "five whole numbers"),
    ],
)
def test_dilations_that_miss_something_get_a_hint_of_their_own(answer, part):
    assert part in EXERCISES["07.4"].hint(answer)
