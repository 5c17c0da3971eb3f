"""The figures of notebook 05 show the numbers that they are given, and nothing sticks out of them."""

import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from segkit.measure.receptive_field import EffectiveField
from segkit.notebook import field, field_plots, plots

STEPS = field.steps([(3, 2), (3, 2), (3, 1), *12 * [(3, 1, 2)]])
BROKEN = field.steps([(3, 2), (3, 2), (3, 1, 4), *12 * [(3, 1, 2)]])  # 7/4 px before dilation 4
WEIGHED = EffectiveField(torch.full((8, 16), 1 / 128), (6, 12), ((1, 6), (2, 13)), 0.9)


def texts(figure):
    axes = [text for axis in figure.axes for text in [*axis.texts, axis.title, axis.xaxis.label]]
    ticks = [text for axis in figure.axes for text in [*axis.get_yticklabels(), *axis.get_xticklabels()]]
    return [text.get_text() for text in [*axes, *ticks]]


def seen(work, size, coverage=1.0):
    return field.Seen(size, coverage, work, 0)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: field_plots.strips(STEPS), ["3 taps, stride 2", "3 taps, dilation 2", "207"]),
        (
            lambda: field_plots.masks({"a": field.three(2, 2, 2), "b": field.three(1, 2, 5)}),
            ["a", "field 13 px, touched: 0.29 of it", "field 17 px, touched: all of it"],
        ),
        (lambda: field_plots.growing({"down": field.lines([9, 3, 1])}), ["down", "after 1", "after 3"]),
        (
            lambda: field_plots.staircase({"row 1": STEPS, "row 2": STEPS}, marked={"row 1": plots.BLUE}),
            ["row 1: 207", "2 x 1,024 - 1", "2 x 2,048 - 1", "holes are possible"],
        ),
        (
            lambda: field_plots.holes(torch.eye(200) == 0),
            ["untouched: 200 of 40,000 px", "its first 160 px: gaps of one pixel"],
        ),
        (
            lambda: field_plots.corner(
                torch.zeros(3, 16, 32, dtype=torch.uint8), (64, 128), {"net": ((0, 63), (0, 99))}
            ),
            ["net", "63", "99"],
        ),
        (
            lambda: field_plots.dilate_or_split(
                {"a": (50.0, 2000), "b": (140.0, 2040), "c": (60.0, 4000)},
                [("a", "b", "dilate"), ("a", "c", "split")],
            ),
            ["a: 2,000 px", "dilate", "split", "a corner sees 2,048 px"],
        ),
        (
            lambda: field_plots.kit(
                {
                    "one": {"A": seen(10.0, 500)},
                    "two": {"B": seen(100.0, 4000, 0.5)},
                    "three": {"C": seen(20.0, 800)},
                    "four": {"D": seen(30.0, 900)},
                },
                {"C": (-9, 0)},
            ),
            ["A", "B (50% touched)", "C", "D", "a corner sees 1,024 px"],
        ),
        (
            lambda: field_plots.accuracy_against_field(
                {"table": {"x": (2000, 75.0), "y": (4000, 76.0)}}, spread={"table": 0.1}
            ),
            ["table", "x", "y"],
        ),
        (
            lambda: field_plots.square_root({n: field.equal_taps(n) for n in (1, 4, 9)}, shown=9),
            ["9 convolutions: 90 % in 9 of 19 px", "field, 2n + 1", "2.69 √n"],
        ),
        (
            lambda: field_plots.maps(
                {"before": WEIGHED, "after": WEIGHED}, torch.zeros(3, 8, 16, dtype=torch.uint8), size=10
            ),
            ["before", "after", "one of the pictures"],
        ),
        (
            lambda: field_plots.columns_of({"before": WEIGHED}, size=10),
            ["columns from the middle, px (the field: 10 px); bars: where 90 % of the gradient is"],
        ),
    ],
)
def test_figures_show_their_numbers(make, expected, assert_room):
    figure = make()
    assert set(expected) <= set(texts(figure))
    assert plots.png(figure, small=False).startswith(b"\x89PNG")
    assert_room(figure)


def test_a_mask_is_drawn_pixel_by_pixel_in_the_middle():
    found = {"2, 2, 2": field.three(2, 2, 2), "1, 2, 5": field.three(1, 2, 5)}
    figure = field_plots.masks(found)
    sparse, full = (axis.images[0].get_array() for axis in figure.axes)
    assert sparse.shape == full.shape == (17, 17)
    assert (sparse[2:15, 2:15] == 1 + found["2, 2, 2"].mask.numpy()).all() and sparse[0].max() == 0
    assert (full == 2).all()


def test_untouched_pixels_of_a_line_are_pale():
    figure = field_plots.growing({"9, 3, 1": field.lines([9, 3, 1])})
    colors = [patch.get_facecolor() for patch in figure.axes[0].patches]
    assert len(colors) == 19 + 25 + 27
    assert colors.count(to_rgba(field_plots.SEEN)) == 3 + 9 + 27


@pytest.mark.parametrize(("steps", "crosses"), [(STEPS, 0), (BROKEN, 1)])
def test_broken_bounds_are_crosses(steps, crosses):
    figure = field_plots.staircase({"row": steps}, marked={"row": plots.RED})
    right = figure.axes[1]
    assert [line.get_marker() for line in right.lines].count("X") == crosses


def test_what_is_not_seen_of_a_street_is_faded():
    figure = field_plots.corner(
        torch.zeros(3, 16, 32, dtype=torch.uint8), (64, 128), {"net": ((0, 63), (0, 99))}
    )
    right, below, outline = figure.axes[0].patches
    assert (right.get_x(), right.get_width()) == (100, 28)
    assert below.get_height() == 0
    assert (outline.get_width(), outline.get_height()) == (100, 64)


def test_networks_with_holes_are_hollow():
    groups = {name: {name: seen(10.0, 500, 0.9 if name == "a" else 1.0)} for name in "abcd"}
    figure = field_plots.kit(groups, {})
    faces = [line.get_markerfacecolor() for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert [face == "white" for face in faces] == [True, False, False, False]


@pytest.mark.parametrize(
    ("dilations", "words"),
    [
        ((2, 2, 2), {"with holes", "bound broken", "field 13 px, touched: 0.29"}),
        ((1, 3, 9), {"without a hole", "bound kept", "field 27 px, touched: all"}),
        ((9, 3, 1), {"without a hole", "bound broken", "field 27 px, touched: all"}),
        ((14, 14, 14), {"with holes", "bound broken", "field 85 px, touched: 0.0068"}),
    ],
)
def test_the_explorer_says_what_holds(dilations, words, assert_room):
    figure = Figure(figsize=(9, 2.6))
    field_plots.draw_three(figure, *dilations)
    assert words <= set(texts(figure))
    kept = [bound.holds for bound in field.three(*dilations).bounds]
    assert [text.get_text() == "kept" for text in figure.axes[2].texts] == kept
    assert_room(figure)


def test_the_names_that_are_moved_are_networks_of_the_kit():
    assert set(field_plots.KIT_SHIFTS) <= {name for members in field.KIT.values() for name in members}
