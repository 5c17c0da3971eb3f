"""The exercises of notebook 01, answered as a learner would; test_exercises.py has blanks and mistakes."""

import torch

from segkit.notebook.exercises import hint
from segkit.notebook.exercises.n01 import EXERCISES


def test_there_are_four():
    assert list(EXERCISES) == ["01.1", "01.2", "01.3", "01.4"]


def test_01_1_right():
    assert hint("01.1", "Units ") is None


def test_01_2_right():
    assert hint("01.2", 128 + 11 * 32) is None
    assert "n - 1 and not n" in hint("01.2", 512)
    assert "equation (1)" in hint("01.2", 2560)


def test_01_3_right_in_other_words():
    def closed(n, f, k):
        return 2 * n * f + k * n * (n - 1) + 8 * k * n

    def loop(n, f, k):
        total = 0
        for i in range(n):
            total += 2 * (f + k * i) + 2 * (4 * k)
        return torch.tensor(total)

    assert hint("01.3", closed) is None
    assert hint("01.3", loop) is None


def test_01_3_a_wrong_one_without_a_hint_of_its_own_is_told_the_difference():
    assert hint("01.3", lambda n, f, k: 0) == (
        "with n 6, f 64, k 32: the shape is right, but the value is 0, expected 3264"
    )


def test_01_4_right_in_other_words():
    def concatenated(x, unit, width):
        new = unit(x[:, :width])
        rest = x.shape[1] - width - new.shape[1]
        b, _, h, w = x.shape
        r = torch.cat([x.new_zeros(b, width, h, w), new, x.new_zeros(b, rest, h, w)], dim=1)
        return r + x

    def in_place(x, unit, width):
        out = x.clone()
        out[:, width : width + unit.conv2.out_channels] += unit(x[:, :width])
        return out

    assert hint("01.4", concatenated) is None
    assert hint("01.4", in_place) is None


def test_01_4_running_the_unit_twice_shows_in_its_buffers():
    def twice(x, unit, width):
        k = unit(x[:, :width]).shape[1]
        r = torch.zeros_like(x)
        r[:, width : width + k] = unit(x[:, :width])
        return x + r

    assert "the buffer unit.norm1.running_mean differs" in hint("01.4", twice)
