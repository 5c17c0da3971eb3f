"""The figures of notebook 06: what they write, and that they have room for it."""

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from segkit.notebook import dilated_plots, plots

SCORES = {"road": [0.61, 0.55, 0.5], "rider": [0.0, 0.0, 0.01], "mIoU^R": [0.1, 0.12, 0.11]}
LOSSES = [[3.0, 2.5, 2.0], [3.2, 2.4, 1.9]]
DECODERS = {
    "Sec. 3.4": (174_947, 38.35, 75.84),
    "sum+3x3": (208_019, 35.2, 75.75),
    "BiSeNet": (766_003, 43.26, 74.68),
}
FIGURES = {
    "footprints": (
        lambda: dilated_plots.footprints({1: torch.eye(15), 4: torch.ones(15, 15)}),
        "half with dilation 4",
    ),
    "block_bars": (
        lambda: dilated_plots.block_bars(
            {"Y block": (202_560, 1_375_764_480, 1.0), "D block (1, 10)": (202_560, 1_375_764_480, 1.2)}
        ),
        "202.56",
    ),
    "counted_twice": (
        lambda: dilated_plots.counted_twice(
            {"RegSeg": {"conv": 38.35, "fvcore": 39.08}, "DDRNet-23": {"conv": 143.06, "fvcore": 143.68}},
            {"RegSeg": 39.1, "DDRNet-23": 143.1},
        ),
        "RegSeg: 39.1 printed (dashed)",
    ),
    "decoder_map": (lambda: dilated_plots.decoder_map(DECODERS), "BiSeNet  74.68"),
    "decoder_times": (
        lambda: dilated_plots.decoder_times(
            {"Sec. 3.4": 1.0, "BiSeNet": 1.25}, {"Sec. 3.4": 75.0, "BiSeNet": 74.0}
        ),
        "1.25",
    ),
    "rate_curves": (
        lambda: dilated_plots.rate_curves(
            [0, 10, 100], [0.01, 0.05, 0.0], [0.06, 0.05, 0.0], warmup_steps=10
        ),
        "warm-up times poly",
    ),
    "loss_curves": (
        lambda: dilated_plots.loss_curves(
            {"D against Y": {"D blocks": LOSSES, "Y blocks": LOSSES}, "both": {"RegSeg": LOSSES}}, window=4
        ),
        "step (mean of the last 4)",
    ),
    "score_spread": (lambda: dilated_plots.score_spread(SCORES), "  11.0 apart"),
    "strips": (
        lambda: dilated_plots.strips({"train": [35.8, 53.2, 74.3], "mIoU^R": [75.3, 75.5, 75.4]}),
        "38.50 apart",
    ),
    "two_groups": (
        lambda: dilated_plots.two_groups(
            {"RegSeg": [77.7, 78.8, 77.9], "DDRNet-23": [77.5, 77.7, 77.5]}, (-0.86, 1.94)
        ),
        "+1.94",
    ),
    "final_scores": (
        lambda: dilated_plots.final_scores({"D blocks": [0.1, 0.12], "DDRNet-23": [0.06, 0.07]}),
        "DDRNet-23",
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_show_their_numbers_and_have_room(name, assert_shows):
    assert_shows(*FIGURES[name])


def test_bars_of_counts_are_as_long_as_the_counts():
    make, _ = FIGURES["block_bars"]
    params, macs, ms = make().axes
    assert [bar.get_width() for bar in params.patches] == pytest.approx([202.56, 202.56])
    assert [bar.get_width() for bar in macs.patches] == pytest.approx([1.37576448] * 2)
    assert [bar.get_width() for bar in ms.patches] == [1.0, 1.2]


def test_the_best_and_the_worst_decoder_have_the_ends_of_the_color_map():
    axis = dilated_plots.decoder_map(DECODERS).axes[0]
    colors = [to_hex(points.get_facecolor()[0]) for points in axis.collections]
    ends = [to_hex(dilated_plots.colormaps[dilated_plots.SCORES](end)) for end in (1.0, 0.0)]
    assert [colors[0], colors[-1]] == ends


def test_each_run_is_a_dot_and_each_curve_a_line():
    spread = dilated_plots.score_spread(SCORES).axes[0]
    dots = [line.get_xdata()[0] for line in spread.lines if len(line.get_xdata()) == 1]
    assert dots == pytest.approx([100 * value for values in SCORES.values() for value in values])
    curves = dilated_plots.loss_curves({"one": {"D blocks": LOSSES}}, window=2).axes[0]
    first, second, mean = (list(line.get_ydata()) for line in curves.lines)
    assert (first, second) == (LOSSES[0], LOSSES[1]) and mean == pytest.approx([3.1, 2.45, 1.95])


def test_the_explorer_points_at_a_class():
    figure = Figure(figsize=(9, 3))
    names, plain, drawn = ["road", "rider", "train"], [0.9, 0.06, 0.04], [0.8, 0.08, 0.12]
    dilated_plots.draw_sampling(figure, names, plain, drawn, rare="train", crops=(0.05, 0.25))
    (axis,) = figure.axes
    assert axis.get_title() == "train: in 5 % of the crops, now 25 %; 4 % of the pixels, now 12 %"
    orange = [bar.get_height() for bar in axis.patches if to_hex(bar.get_facecolor()) == plots.ORANGE.lower()]
    assert orange == pytest.approx([12.0])
    bold = [tick.get_text() for tick in axis.get_xticklabels() if tick.get_fontweight() == "bold"]
    assert bold == ["train"]
