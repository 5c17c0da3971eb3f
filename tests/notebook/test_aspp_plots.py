"""The figures of notebook 07: what they write, and that they have room for it."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from segkit.data.labels import CITYSCAPES19
from segkit.notebook import aspp_plots, plots
from segkit.notebook.aspp import Head, Student


def made_head(*dilations, dense=True, whole=False):
    size = 1 + 2 * sum(dilations) if dense else 1 + 2 * max(dilations)
    mask = torch.ones(size, size, dtype=torch.bool)
    if not whole:
        mask[1::3] = False
    return Head(dilations, dense, tuple(1 + 2 * d for d in dilations), mask, (1, 7, size))


PARALLEL, DENSE = made_head(2, 4, 6, 8, dense=False), made_head(1, 2, 4, 6, 8)
WHOLE = made_head(1, 3, 5, whole=True)
STUDENT = Student(1, DENSE, 64, 32, None, 20, 662_420, 5.25, (224, 224), 51.4, 31.6)
NAMES = CITYSCAPES19.classes
AREAS = {name: (10 + 900 * i, i / 18) for i, name in enumerate(NAMES)}
CHANGES = {"top 1": [-0.02] * 19, "top 2": [*[-0.31, 0.05] * 9, float("nan")]}
MATRIX = np.array([[90, 2, 5], [3, 40, 10], [6, 7, 30]])
FIGURES = {
    "wiring": (lambda: aspp_plots.wiring(PARALLEL, DENSE), "densely connected: DenseASPP(1, 2, 4, 6, 8)"),
    "rugs": (
        lambda: aspp_plots.rugs({"ASPP": PARALLEL, "#1": DENSE}, {"#1": 43}),
        "3 scales up to 43 (printed 43)",
    ),
    "masks": (
        lambda: aspp_plots.masks({"ASPP": PARALLEL, "#1": DENSE, "#2": DENSE, "whole": WHOLE}),
        "field 19 cells,\nall of it touched",
    ),
    "filling": (
        lambda: aspp_plots.filling([1, 3, 5], {"#1": [0.1, 0.5, 1], "#2": [0.2, 1, 1]}, {"small": 351}),
        "small sees 351 px",
    ),
    "students": (lambda: aspp_plots.students({"#1": STUDENT, "#2": STUDENT}), "31.6"),
    "matrices": (
        lambda: aspp_plots.matrices(
            MATRIX, ["road", "car", "background"], {"iou20": 0.7, "iou19_official": 0.75, "iou19": 0.65}
        ),
        "iou19_official: 75.0 %",
    ),
    "class_changes": (lambda: aspp_plots.class_changes(NAMES, CHANGES), "-31"),
    "by_area": (
        lambda: aspp_plots.by_area([64, 4096], [9, 8, 7], {"0": [0.1, 0.5, 0.9], "1": [0.1, 0.4, 0.7]}),
        "64 to 4,096 px\n8 objects",
    ),
    "iou_against_area": (
        lambda: aspp_plots.iou_against_area(AREAS, correlation=0.456),
        "rank correlation 0.46",
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_show_their_numbers_and_have_room(name, assert_shows):
    assert_shows(*FIGURES[name])


def test_a_mask_has_as_many_dots_as_cells_touched():
    axes = aspp_plots.masks({"one": DENSE, "whole": WHOLE}).axes
    (cells,) = axes[0].collections
    assert len(cells.get_paths()) == int(DENSE.mask.sum())
    assert not axes[1].collections and len(axes[1].patches) == 1


def test_the_three_means_leave_out_different_cells():
    figure = FIGURES["matrices"][0]()
    left_out = []
    for axis in figure.axes:
        squares = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
        left_out.append([to_hex(square.get_facecolor()) for square in squares].count("#ffffff"))
    assert left_out == [0, 3, 1]  # nothing; the row of background; the cell of background alone


def test_names_do_not_cover_each_other():
    close = {"one": (1.0, 1.0), "another": (1.05, 1.02), "third": (1.1, 0.98)}
    found = aspp_plots._beside(close, 8, 3)
    boxes = []
    for name, (x, y) in close.items():
        left, low = x + found[name][0], y + found[name][1]
        boxes.append((left, low, left + 0.083 * len(name), low + 0.15))
    assert all(aspp_plots._shared(a, b) == 0 for i, a in enumerate(boxes) for b in boxes[:i])
    (x, y), text = (0.1, 1.5), "at the edge"  # whose name has room on one side only
    assert x + aspp_plots._beside({text: (x, y)}, 8, 3)[text][0] >= 0
    assert 7.9 + aspp_plots._beside({text: (7.9, y)}, 8, 3)[text][0] + 0.083 * len(text) <= 8


def test_the_explorer_marks_all_points_and_the_chosen_one_twice(recwarn, texts):
    figure = Figure(figsize=(9, 2.6))
    heat = torch.linspace(-1, 1, 32).view(4, 8)
    points = [(0, 0), (1, 3), (3, 7)]
    image = np.zeros((3, 32, 64), np.uint8)
    aspp_plots.draw_similarity(figure, image, points, 1, heat, name="bus", shares=(0.9, 0.25))
    written = texts(figure)
    assert [written.count(str(i)) for i in (1, 2, 3)] == [1, 2, 1]
    assert "point 2: bus" in written and "mean cosine: bus 0.90, all else 0.25" in written
    right = figure.axes[1].images[0]
    assert right.get_clim() == (-1, 1) and np.array_equal(right.get_array(), heat.numpy())
    assert plots.png(figure, small=False).startswith(b"\x89PNG") and not recwarn.list
