"""The exercises of notebook 06: right answers, typical wrong ones, and that each gets its own hint."""

import math
import statistics

import pytest
import torch

from segkit.models.regseg import DBlock
from segkit.notebook import dilated
from segkit.notebook.exercises import n06
from segkit.training import recipe
from segkit.training.losses import _least_hard

EXERCISES = n06.EXERCISES


@pytest.mark.parametrize(
    ("name", "answer", "part"),
    [
        ("06.1", 0.0275, "warm-up alone"),
        ("06.1", 0.0498, "poly alone"),
        ("06.2", 36_864, "one crop"),
        ("06.5", 1.89, "n - 1"),
        ("06.5", 0.5363, "standard error"),
        ("06.5", 1.2, "too small"),
    ],
)
def test_numbers_that_people_come_up_with(name, answer, part):
    assert part in EXERCISES[name].hint(answer)


@pytest.mark.parametrize(("name", "answer"), [("06.1", 0.02740), ("06.2", 294_912), ("06.5", 1.543)])
def test_the_right_numbers(name, answer):
    assert EXERCISES[name].hint(answer) is None


def test_the_rate_and_the_hard_pixels_are_those_of_the_recipe():
    how = recipe("regseg_cityscapes")
    (rate,) = dilated.rates(how, 2975 // how.batch_size, [1500])
    assert EXERCISES["06.1"].hint(rate) is None
    pixels = how.batch_size * how.crop[0] * how.crop[1]
    assert EXERCISES["06.2"].hint(_least_hard(pixels, how.ohem_share)) is None


def test_the_split_is_the_blocks():
    torch.manual_seed(0)
    block = DBlock(64, 64, (1, 4)).eval()
    x = torch.randn(2, 64, 12, 9)
    after = []
    block.norm.register_forward_pre_hook(lambda module, inputs: after.append(inputs[0]))
    with torch.no_grad():
        block(x)
        groups = block.branches[0].groups
        mine = n06._split(block.conv1(x), [conv.weight for conv in block.branches], (1, 4), groups)
    assert torch.equal(mine, after[0])


def test_the_test_statistic_is_that_of_the_two_groups_of_runs():
    found = dilated.welch(n06._REGSEG, n06._DDRNET)
    assert EXERCISES["06.5"].hint(found.t) is None
    assert math.isclose(found.difference, statistics.fmean(n06._REGSEG) - statistics.fmean(n06._DDRNET))
