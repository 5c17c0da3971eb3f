"""The figures of notebook 06: blocks, decoders, sampling, and runs that differ. See `segkit.notebook.plots`.

Fractions come in and percent is drawn; only numbers that a paper prints in percent come in as they are.
"""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from segkit.notebook.plots import BLUE, GREEN, GREY, ORANGE, RED, margins, new_figure

# The same network has the same color in every figure.
NETWORK_COLORS = {"D blocks": BLUE, "RegSeg": BLUE, "Y blocks": ORANGE, "DDRNet-23": GREEN}
NETWORK_STYLES = {"D blocks": "-", "RegSeg": "-", "Y blocks": "--", "DDRNet-23": "-."}
MARKS = ("o", "s", "^", "D", "v", "P")
SCORES = "cividis"  # a map of colors that color-blind readers see in order


def _plain(axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _thousands(axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _rows(axis: Axes, names: Sequence[str]) -> None:
    """One row a name, the first on top."""
    axis.set_yticks(range(len(names)), list(names))
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)


def _value(axis: Axes, value: float, at: float, text: str) -> None:
    axis.annotate(text, (value, at), (4, 0), textcoords="offset points", va="center", fontsize=9)


# The D block --------------------------------------------------------------------------------------


def footprints(responses: Mapping[int, object]) -> Figure:
    """Where each half of a D block puts one pixel, by dilation.

    Args:
        responses: by dilation: (size, size), 0 where nothing arrives.
    """
    figure, largest = new_figure(2.9, width=6.2), max(responses)
    for axis, (dilation, response) in zip(figure.subplots(1, len(responses)), responses.items(), strict=True):
        shown = np.asarray(response)
        half = shown.shape[0] // 2
        edges = (-half - 0.5, half + 0.5, half + 0.5, -half - 0.5)
        axis.imshow(shown / shown.max(), cmap="Blues", vmin=0, vmax=1, extent=edges, interpolation="nearest")
        axis.plot(0, 0, marker="+", color=ORANGE, markersize=10, markeredgewidth=1.6)
        axis.set_title(f"half with dilation {dilation}")
        axis.set_xlabel("pixels of the map")
        axis.xaxis.set_major_locator(FixedLocator(sorted({-largest, 0, largest})))
        axis.yaxis.set_major_locator(FixedLocator(sorted({-largest, 0, largest})))
        axis.grid(visible=False)
    return figure


def block_bars(blocks: Mapping[str, tuple[int, int, float]]) -> Figure:
    """Blocks in parameters, multiply-adds, and printed milliseconds.

    Args:
        blocks: by name: parameters, multiply-adds, ms.
    """
    figure = new_figure(0.95 + 0.36 * len(blocks))
    names = list(blocks)
    panels = (
        (1e3, "parameters, thousands", BLUE, "{:.2f}"),
        (1e9, "multiply-adds, G", BLUE, "{:.3f}"),
        (1, "printed time on a T4, ms", ORANGE, "{:.1f}"),
    )
    for which, (axis, (unit, label, color, form)) in enumerate(
        zip(figure.subplots(1, 3, sharey=True), panels, strict=True)
    ):
        values = [blocks[name][which] / unit for name in names]
        axis.barh(range(len(names)), values, color=color, height=0.62)
        for at, value in enumerate(values):
            _value(axis, value, at, form.format(value))
        axis.set_xlim(0, 1.35 * max(values))
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.set_xlabel(label)
        _rows(axis, names)
    return figure


# The network --------------------------------------------------------------------------------------


def counted_twice(networks: Mapping[str, Mapping[str, float]], printed: Mapping[str, float]) -> Figure:
    """Multiply-adds of networks in several conventions, with the printed number as a line.

    Args:
        networks: by network, by convention: G.
        printed: by network: what the paper prints, G.
    """
    figure = new_figure(2.0)
    for axis, (network, counts) in zip(figure.subplots(1, len(networks)), networks.items(), strict=True):
        for at, (value, color) in enumerate(zip(counts.values(), (BLUE, "#c9c9c9"), strict=False)):
            axis.barh(at, value, color=color, height=0.6)
            _value(axis, max(value, printed[network]), at, f"{value:.2f}")
        axis.axvline(printed[network], color="black", linestyle="--", linewidth=1.4)
        low, high = min(*counts.values(), printed[network]), max(*counts.values(), printed[network])
        axis.set_xlim(low - 2 * (high - low), high + 1.4 * (high - low))
        _rows(axis, list(counts))
        axis.set_title(f"{network}: {printed[network]:g} printed (dashed)")
        axis.set_xlabel("multiply-adds at 1024x2048, G (cut axis)")
        axis.xaxis.set_major_locator(MaxNLocator(5))
    return figure


def _colored(figure: FigureBase, axes, scores: Sequence[float]):
    """A function from score to color, with its bar beside the axes."""
    scale = Normalize(min(scores), max(scores))
    bar = figure.colorbar(ScalarMappable(scale, colormaps[SCORES]), ax=axes, fraction=0.05, pad=0.02)
    bar.set_label("printed mIoU$^R$, %")
    return lambda score: colormaps[SCORES](scale(score))


def decoder_map(decoders: Mapping[str, tuple[int, float, float]]) -> Figure:
    """Decoders in parameters and work, their printed scores as colors.

    Args:
        decoders: by name: parameters, G multiply-adds, score in percent.
    """
    figure = new_figure(4.0)
    axis = figure.subplots()
    color = _colored(figure, axis, [score for _, _, score in decoders.values()])
    works = [work for _, work, _ in decoders.values()]
    for name, (params, work, score) in decoders.items():
        axis.scatter(params / 1e3, work, s=130, color=color(score), edgecolor=GREY, zorder=3)
        # a name goes to the left of its dot where another dot is just above to the right
        crowded = any(1 < p / params < 1.5 and 0 < w - work < 2 for p, w, _ in decoders.values())
        style = {"textcoords": "offset points", "fontsize": 9, "va": "center"}
        place = {"xytext": (-9, 0), "ha": "right"} if crowded else {"xytext": (9, 3), "ha": "left"}
        axis.annotate(f"{name}  {score:.2f}", (params / 1e3, work), **place, **style)
    axis.set_xscale("log")
    axis.set_xlim(60, 2000)
    axis.set_ylim(min(works) - 1.5, max(works) + 1.5)
    axis.xaxis.set_major_locator(FixedLocator([75, 150, 300, 600, 1200]))
    _plain(axis.xaxis)
    axis.set_xlabel("parameters of the decoder, thousands (log scale)")
    axis.set_ylabel("multiply-adds of the whole\nnetwork at 1024x2048, G")
    return figure


def decoder_times(ratios: Mapping[str, float], scores: Mapping[str, float]) -> Figure:
    """How long networks take with each decoder, by the first's time; printed scores as colors.

    Args:
        ratios: by decoder: time over that of the first.
        scores: by decoder: percent.
    """
    figure = new_figure(max(2.2, 0.95 + 0.32 * len(ratios)))
    axis = figure.subplots()
    color = _colored(figure, axis, list(scores.values()))
    for at, (name, ratio) in enumerate(ratios.items()):
        axis.barh(at, ratio, color=color(scores[name]), edgecolor=GREY, height=0.66)
        _value(axis, max(1, ratio), at, f"{ratio:.2f}")
    axis.axvline(1, color="black", linestyle="--", linewidth=1.2)
    axis.set_xlim(0, 1.15 * max(1, *ratios.values()))
    axis.set_xlabel("time of a forward pass, by that of the network with the paper's decoder")
    _rows(axis, list(ratios))
    return figure


# Sampling and schedule ----------------------------------------------------------------------------


def draw_sampling(
    figure: FigureBase,
    names: Sequence[str],
    plain: Sequence[float],
    drawn: Sequence[float],
    *,
    rare: str,
    crops: tuple[float, float],
) -> None:
    """Class frequencies before and after class-uniform sampling: for explorers.

    Args:
        figure: an empty figure, or a part of one.
        names: of the classes.
        plain: share of each class's pixels in random crops.
        drawn: the same with class-uniform sampling.
        rare: the class to point at.
        crops: share of the crops that hold it, before and after.
    """
    axis = figure.subplots(gridspec_kw=margins(figure, left=0.72, right=0.15, bottom=0.95, top=0.38))
    order = np.argsort(-np.asarray(plain), kind="stable")
    places = np.arange(len(order))
    for shift, values, color in ((-0.2, plain, "#b5b5b5"), (0.2, drawn, BLUE)):
        heights = [100 * values[i] for i in order]
        colors = [ORANGE if color == BLUE and names[i] == rare else color for i in order]
        axis.bar(places + shift, np.maximum(heights, 1e-3), 0.4, color=colors)
    axis.set_yscale("log")
    axis.set_ylim(0.05, 100)
    axis.yaxis.set_major_locator(FixedLocator([0.1, 1, 10, 100]))
    _plain(axis.yaxis)
    axis.set_xticks(places, [names[i] for i in order], rotation=45, ha="right", rotation_mode="anchor")
    axis.tick_params(axis="both", labelsize=8.5)
    for tick, i in zip(axis.get_xticklabels(), order, strict=True):
        tick.set_fontweight("bold" if names[i] == rare else "normal")
    axis.set_xlim(-0.7, len(order) - 0.3)
    axis.set_ylabel("pixels, % (log scale)", fontsize=9)
    axis.grid(axis="x", visible=False)
    before, after = (100 * share for share in crops)
    at = names.index(rare)
    axis.set_title(
        f"{rare}: in {before:.0f} % of the crops, now {after:.0f} %; "
        f"{100 * plain[at]:.2g} % of the pixels, now {100 * drawn[at]:.2g} %",
        fontsize=9.5,
        y=1.0,
    )
    handles = [Patch(color="#b5b5b5", label="random crops"), Patch(color=BLUE, label="class-uniform")]
    axis.legend(handles=handles, loc="upper right", frameon=False, fontsize=8.5)


def rate_curves(
    steps: Sequence[int], rates: Sequence[float], poly_only: Sequence[float], *, warmup_steps: int
) -> Figure:
    """A learning rate over a run, and its beginning from near.

    Args:
        steps: from 0.
        rates: at these steps.
        poly_only: the same without warm-up.
        warmup_steps: where the warm-up ends.
    """
    figure = new_figure(3.0)
    whole, start = figure.subplots(1, 2)
    for axis in (whole, start):
        axis.plot(steps, poly_only, color=GREY, linestyle="--", linewidth=1.4, label="poly alone")
        axis.plot(steps, rates, color=BLUE, linewidth=2, label="warm-up times poly")
        axis.set(ylim=(0, None), xlabel="iteration")
        _thousands(axis.xaxis)
    whole.set(xlim=(0, steps[-1]), ylabel="learning rate", title="the whole run")
    whole.xaxis.set_major_locator(MaxNLocator(4))
    start.set(xlim=(0, 2 * warmup_steps), title="its beginning")
    start.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    start.axvline(warmup_steps, color=GREY, linewidth=1, linestyle=":")
    start.legend(loc="lower right", frameon=False)
    return figure


# Runs ---------------------------------------------------------------------------------------------


def loss_curves(panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], *, window: int) -> Figure:
    """Smoothed training losses: a thin line for each run, a thick one for the mean of a network's runs.

    Args:
        panels: by title, by network (`NETWORK_COLORS`): one list of smoothed losses (nats) for each run.
        window: steps in each of these means.
    """
    figure = new_figure(3.4)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, networks) in zip(axes, panels.items(), strict=True):
        for network, runs in networks.items():
            color, style = NETWORK_COLORS[network], NETWORK_STYLES[network]
            steps = range(window, window + len(runs[0]))
            for run in runs:
                axis.plot(steps, run, color=color, linewidth=0.9, alpha=0.6)
            means = [statistics.fmean(values) for values in zip(*runs, strict=True)]
            axis.plot(steps, means, color=color, linestyle=style, linewidth=2.4, label=network)
        axis.set(title=title, xlabel=f"step (mean of the last {window})")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.legend(frameon=False, loc="upper right")
    axes[0].set_ylabel("training loss, nats")
    axes[0].set_ylim(0, None)
    return figure


def score_spread(scores: Mapping[str, Sequence[float]], *, xlabel: str = "IoU, %") -> Figure:
    """One row a score, one dot a run.

    Args:
        scores: by name: one fraction a run; drawn in this order.
        xlabel: what they are.
    """
    figure = new_figure(0.75 + 0.235 * len(scores))
    axis = figure.subplots()
    for at, values in enumerate(scores.values()):
        percent = [100 * value for value in values]
        axis.plot([min(percent), max(percent)], [at, at], color="#c9c9c9", linewidth=2.6, zorder=1)
        for mark, value, color in zip(MARKS, percent, (BLUE, ORANGE, GREEN, RED, GREY), strict=False):
            axis.plot(value, at, marker=mark, color=color, markersize=6, markeredgecolor="white", zorder=2)
        _value(axis, max(percent), at, f"  {max(percent) - min(percent):.1f} apart")
    top = 100 * max(max(values) for values in scores.values())
    axis.set_xlim(-0.01 * top, 1.2 * top + 1)
    axis.set_xlabel(xlabel)
    _rows(axis, [name.replace("^R", "$^R$") for name in scores])
    return figure


def strips(columns: Mapping[str, Sequence[float]]) -> Figure:
    """One column a score, one dot a run: how far apart equal runs came out.

    Args:
        columns: by name: percent, one value for each run.
    """
    figure = new_figure(3.5)
    axis = figure.subplots()
    runs = len(next(iter(columns.values())))
    for run, mark, color in zip(range(runs), MARKS, (BLUE, ORANGE, GREEN, RED), strict=False):
        places = [at + 0.09 * (run - (runs - 1) / 2) for at in range(len(columns))]
        values = [column[run] for column in columns.values()]
        axis.plot(
            places, values, marker=mark, color=color, linestyle="none", markersize=8, label=f"run {run + 1}"
        )
    for at, values in enumerate(columns.values()):
        low, high = min(values), max(values)
        axis.annotate(
            f"{high - low:.2f} apart", (at, high), (0, 9), textcoords="offset points", ha="center", fontsize=9
        )
    everything = [value for values in columns.values() for value in values]
    axis.set_ylim(min(everything) - 4, max(everything) + 7)
    axis.set_xlim(-0.5, len(columns) - 0.5)
    axis.set_xticks(range(len(columns)), [name.replace("^R", "$^R$") for name in columns])
    axis.set_ylabel("printed IoU, %")
    axis.grid(axis="x", visible=False)
    axis.legend(loc="lower right", frameon=False, ncols=2)
    return figure


def two_groups(groups: Mapping[str, Sequence[float]], interval: tuple[float, float]) -> Figure:
    """Runs of two networks, and the interval of their difference.

    Args:
        groups: by network: percent, one value a run.
        interval: of 95 % for the first's mean minus the second's.
    """
    figure = new_figure(2.5)
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    for at, (name, values) in enumerate(groups.items()):
        mean = statistics.fmean(values)
        left.plot(values, [at] * len(values), marker="o", color=NETWORK_COLORS[name], linestyle="none", ms=9)
        left.plot([mean, mean], [at - 0.28, at + 0.28], color="black", linewidth=1.8)
        left.annotate(f"mean {mean:.2f}", (mean, at - 0.3), ha="center", va="bottom", fontsize=9)
    _rows(left, list(groups))
    left.set_ylim(len(groups) - 0.5, -0.7)
    left.set_xlabel("mIoU of one run, %")
    left.set_title("six runs")
    low, high = interval
    first, second = (statistics.fmean(values) for values in groups.values())
    right.plot([low, high], [0, 0], color=BLUE, linewidth=4, solid_capstyle="butt")
    right.plot(first - second, 0, marker="D", color=BLUE, markersize=9)
    right.axvline(0, color="black", linestyle="--", linewidth=1.2)
    for place in (low, first - second, high):
        right.annotate(
            f"{place:+.2f}", (place, 0), (0, 10), textcoords="offset points", ha="center", fontsize=9
        )
    right.set(
        ylim=(-1, 1), yticks=[], xlim=(low - 0.6, high + 0.6), title="difference, and its 95 % interval"
    )
    right.set_xlabel("points of mIoU (dashed: none)")
    return figure


def final_scores(networks: Mapping[str, Sequence[float]]) -> Figure:
    """The score of each run, by network.

    Args:
        networks: by network (`NETWORK_COLORS`): one fraction a run.
    """
    figure = new_figure(0.75 + 0.42 * len(networks))
    axis = figure.subplots()
    for at, (name, values) in enumerate(networks.items()):
        percent = [100 * value for value in values]
        color = NETWORK_COLORS[name]
        axis.plot([min(percent), max(percent)], [at, at], color=color, alpha=0.35, linewidth=5, zorder=1)
        axis.plot(percent, [at] * len(percent), marker="o", color=color, linestyle="none", markersize=9)
    axis.set_xlim(0, 1.15 * 100 * max(max(values) for values in networks.values()))
    axis.set_xlabel("reduced mIoU (without truck, bus, train) of one run, %")
    _rows(axis, list(networks))
    return figure
