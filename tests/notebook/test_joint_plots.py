"""The figures of notebook 08: what they write, and that they have room for it."""

import time

import pytest
from matplotlib.figure import Figure

from segkit.notebook import joint_plots
from segkit.notebook.joint import GIB, MIB, PARTS, Apart, Block, Peak, Spent

APART = Apart(
    signal=[1, -2, 3, 0, 2],
    phases=[[2, 8, 5], [-4, -2]],
    dilated=[2, -4, 8, -2, 5],
    regular=[0, 1, 6, 2, 4],
    strided=[0, 6, 4],
)
BLOCKS = [
    Block("Conv4", 0, Spent(1, 6 * 10**9, 58.0), Spent(1, 2 * 10**9, 20.0)),
    Block("Conv4", 1, Spent(1, 4 * 10**9, 8.0), Spent(1, 10**9, 2.0)),
    Block("Conv5", 0, Spent(1, 24 * 10**9, 8.0), Spent(1, 2 * 10**9, 0.7)),
    Block("Conv5", 1, Spent(1, 16 * 10**9, 8.0), Spent(1, 10**9, 0.5)),
]
DILATED = {part: Spent(10**6 * i, 10**9 * (40 - i), 100.0 * MIB) for i, part in enumerate(PARTS)}
JPU = {part: Spent(2 * 10**6 * i, 10**9 * (10 + 8 * i), 60.0 * MIB) for i, part in enumerate(PARTS)}
NETWORKS = {"None": sum(DILATED.values(), Spent()), "JPU": sum(JPU.values(), Spent())}
PEAKS = {
    "R50 None": Peak(5 * GIB, {"parameters": GIB // 8, "activations": 4 * GIB, "gradients": 0}),
    "R50 JPU": Peak(4 * GIB, {"parameters": GIB // 4, "activations": 3 * GIB, "gradients": 0}),
}
RATIOS = {
    "multiply-adds": {"R50 Encoding": 2.35, "R50 PSP": 1.4, "R101 Encoding": 2.72},
    "printed FPS": {"R50 Encoding": 2.0, "R50 PSP": 1.58, "R101 Encoding": 3.05},
}
UPS = ("none", "bilinear", "fpn", "jpu")
TRIMAPS = {up: {1: 0.05 + 0.01 * i, 8: 0.1} for i, up in enumerate(UPS)}
FIGURES = {
    "signal_apart": (lambda: joint_plots.signal_apart(APART), "merged; rings: dilated convolution"),
    "lattice": (lambda: joint_plots.lattice(), "Conv5 of the strided network has it: 1 of 16"),
    "offset_curves": (
        lambda: joint_plots.offset_curves(
            {"512x512 image": {"corners aligned": [0, -0.1, -0.7], "corners not aligned": [0, -0.3, -0.4]}}
        ),
        "corners not aligned",
    ),
    "block_work": (lambda: joint_plots.block_work(BLOCKS), "activations kept"),
    "three_measures": (lambda: joint_plots.three_measures(NETWORKS), "600"),
    "kinds_of_memory": (
        lambda: joint_plots.kinds_of_memory(PEAKS, [("R50 None", "R50 JPU")]),
        "-1,024",
    ),
    "waterfall": (lambda: joint_plots.waterfall(DILATED, JPU, ("dilated", "with a JPU")), "-30.0"),
    "ratios": (lambda: joint_plots.ratios(RATIOS), "  at most 3.05"),
    "loss_curves": (
        lambda: joint_plots.loss_curves({up: [3.0, 2.5, 2.0] for up in UPS}, window=4),
        "step (mean of the last 4)",
    ),
    "boundary_scores": (
        lambda: joint_plots.boundary_scores(TRIMAPS, dict.fromkeys(UPS, 0.12), {1: 0.16, 8: 0.59}),
        "1\n16 %",
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_show_their_numbers_and_have_room(name, assert_shows):
    assert_shows(*FIGURES[name])


def test_rings_are_what_the_real_convolutions_put_out():
    figure = joint_plots.signal_apart(APART)
    merged, kept = figure.axes[6:]
    drawn = [dict(zip(*line.get_data(), strict=True)) for line in merged.lines[:2]]
    rings = dict(zip(*merged.lines[2].get_data(), strict=True))
    assert drawn[0] | drawn[1] == rings == dict(enumerate(APART.dilated))
    assert list(kept.lines[1].get_ydata()) == APART.strided == list(kept.lines[0].get_ydata())


def test_one_of_sixteen_places_is_known():
    axis = joint_plots.lattice(step=4, cells=2).axes[0]
    colors = [patch.get_facecolor() for patch in axis.patches]
    assert len(colors) == 64
    assert sorted(colors.count(color) for color in set(colors)) == [4, 12, 48]


def test_bars_and_dots_are_the_ratios():
    above, below = joint_plots.block_work(BLOCKS).axes
    assert [bar.get_height() for bar in above.patches] == [2, 1, 2, 1, 6, 4, 24, 16]
    assert list(below.lines[0].get_ydata()) == [3, 4, 12, 16]
    (axis,) = joint_plots.ratios(RATIOS).axes
    dots = [line.get_xdata() for line in axis.lines if line.get_marker() not in ("None", None, "")]
    assert [float(x[0]) for x in dots] == [v for values in RATIOS.values() for v in values.values()]


def test_the_waterfall_ends_where_the_second_network_stands():
    (axis,) = joint_plots.waterfall(DILATED, JPU, ("dilated", "JPU")).axes
    first, *steps, last = axis.patches
    assert first.get_width() + sum(bar.get_width() for bar in steps) == pytest.approx(last.get_width())
    widths = [bar.get_width() for bar in steps]
    assert widths == sorted(widths)


def test_changes_of_memory_are_by_kind(texts):
    figure = joint_plots.kinds_of_memory(PEAKS, [("R50 None", "R50 JPU")])
    changes = [bar.get_width() for bar in figure.axes[1].patches]
    assert changes == [128, -1024] and "gradients" not in texts(figure)


@pytest.mark.parametrize("measure", joint_plots.MEASURES)
def test_the_explorer_draws_fast_and_stacks_the_parts(measure, assert_room):
    figure = Figure(figsize=(9, 2.2))
    joint_plots.draw_saving(figure, {"None": DILATED, "JPU": JPU}, measure=measure)
    (axis,) = figure.axes
    unit, value = joint_plots.MEASURES[measure]
    widths = [bar.get_width() for bar in axis.patches]
    assert widths == pytest.approx([value(one) for parts in (DILATED, JPU) for one in parts.values()])
    totals = [sum(widths[:6]), sum(widths[6:])]
    assert axis.get_xlabel() == f"{unit}; {totals[0] / totals[1]:.2f} times as much without the JPU"
    assert_room(figure)
    times = []
    for _ in range(3):
        figure = Figure(figsize=(9, 2.2))
        began = time.process_time()
        joint_plots.draw_saving(figure, {"None": DILATED, "JPU": JPU}, measure=measure)
        times.append(time.process_time() - began)
    assert min(times) < 0.1
