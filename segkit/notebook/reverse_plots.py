"""The figures of notebook 04: reversible units, round-off, memory, scores. See `segkit.notebook.plots`."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch, Patch, Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from segkit.notebook.dense_plots import KIND_COLORS
from segkit.notebook.plots import BLUE, COLORS, GREEN, GREY, ORANGE, RED, margins, new_figure

CARD = 12 * 1024  # MiB of a card of 12 GiB
# The same way to train has the same color in every figure.
WAY_COLORS = {
    "plain": GREY,
    "checkpoint": GREEN,
    "per unit": ORANGE,
    "per stage": BLUE,
    "memcnn": RED,
    "RevTorch": COLORS[4],
}
TYPE_COLORS = {"float32": BLUE, "float16": ORANGE, "bfloat16": RED}
RUN_COLORS = {"crop": ORANGE, "resized": GREEN, "full": BLUE}
MARKS = ("o", "s", "^", "D", "v", "P")


def _thousands(axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


# The unit -----------------------------------------------------------------------------------------


def unit_diagrams() -> Figure:
    """VNet's unit and RevNet's, forward: two streams, sums, and the functions between them."""
    figure = new_figure(2.1)
    for axis, title, second in zip(
        figure.subplots(1, 2),
        ("VNet, as printed: $Y_2 = X_2 + Z$", "RevNet: $Y_2 = X_2 + G(Z)$"),
        (False, True),
        strict=True,
    ):
        _draw_unit(axis, second)
        axis.set_title(title)
    return figure


def _draw_unit(axis: Axes, second: bool) -> None:
    top, bottom, first, later = 1.0, 0.0, 1.4, 2.9

    def line(*points: tuple[float, float], arrow: bool = True) -> None:
        for at, (start, end) in enumerate(pairwise(points)):
            style = "-|>" if arrow and at == len(points) - 2 else "-"
            axis.add_patch(
                FancyArrowPatch(
                    start, end, arrowstyle=style, mutation_scale=12, color=GREY, shrinkA=0, shrinkB=0
                )
            )

    def box(x: float, text: str) -> None:
        axis.add_patch(Rectangle((x - 0.24, 0.34), 0.48, 0.32, facecolor=BLUE, edgecolor="white", zorder=3))
        axis.text(x, 0.5, text, ha="center", va="center", color="white", fontsize=12, zorder=4)

    def plus(x: float, y: float) -> None:
        axis.add_patch(Circle((x, y), 0.12, facecolor="white", edgecolor=GREY, linewidth=1.4, zorder=3))
        axis.text(x, y - 0.01, "+", ha="center", va="center", fontsize=12, zorder=4)

    line((0.3, top), (first - 0.12, top))
    line((first + 0.12, top), (4.0, top))
    line((0.3, bottom), (later - 0.12, bottom))
    line((later + 0.12, bottom), (4.0, bottom))
    line((first, bottom), (first, 0.34), arrow=False)
    line((first, 0.66), (first, top - 0.12))
    if second:
        line((later, top), (later, 0.66), arrow=False)
        line((later, 0.34), (later, bottom + 0.12))
        box(later, "$G$")
    else:
        line((later, top), (later, bottom + 0.12))
    box(first, "$F$")
    plus(first, top)
    plus(later, bottom)
    for text, x, y in (("$X_1$", 0.12, top), ("$X_2$", 0.12, bottom), ("$Y_2$", 4.2, bottom)):
        axis.text(x, y, text, ha="center", va="center", fontsize=12)
    axis.text(4.2, top, "$Y_1$", ha="center", va="center", fontsize=12)
    axis.text((first + later) / 2, top + 0.12, "$Z$", ha="center", fontsize=12)
    axis.set(xlim=(-0.1, 4.5), ylim=(-0.3, 1.35), aspect="equal")
    axis.set_axis_off()


# Against depth ------------------------------------------------------------------------------------


def errors_against_depth(
    errors: Mapping[str, Mapping[int, float]],
    *,
    ylabel: str,
    marked: Mapping[str, int],
    limit: float,
    limit_text: str,
) -> Figure:
    """Errors on log axes, one line for each type that the streams are stored in.

    Args:
        errors: by type, by number of units.
        ylabel: what the error is, with its unit.
        marked: vertical lines, by what they say.
        limit: a horizontal line.
        limit_text: what it says.
    """
    figure = new_figure(3.6)
    axis = figure.subplots()
    ends: dict[str, float] = {}
    for mark, (name, line) in zip(MARKS, errors.items(), strict=False):
        depths, values = list(line), list(line.values())
        axis.plot(depths, values, color=TYPE_COLORS[name], marker=mark, linewidth=1.8, markersize=5)
        ends[name] = values[-1]
    depths = sorted({depth for line in errors.values() for depth in line})
    axis.axhline(limit, color=GREY, linewidth=1, linestyle="--")
    axis.annotate(limit_text, (depths[0], limit), (0, 4), textcoords="offset points", fontsize=9, color=GREY)
    axis.set_xscale("log")
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.set_ylim(low, 6 * high)  # room for the words on top
    place, apart = 0.0, (6 * high / low) ** 0.07
    for name, value in sorted(ends.items(), key=lambda end: end[1]):
        place = max(value, place * apart)
        style = {"va": "center", "color": TYPE_COLORS[name], "annotation_clip": False}
        style["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axis.annotate(name, (1.06 * depths[-1], place), **style)
    for text, depth in marked.items():
        axis.axvline(depth, color=GREY, linewidth=1, linestyle=":")
        style = {"ha": "center", "va": "top", "fontsize": 9, "backgroundcolor": "white"}
        axis.annotate(text, (depth, 1), (0, -3), ("data", "axes fraction"), "offset points", **style)
    axis.xaxis.set_major_locator(FixedLocator(depths))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_xlim(0.9 * depths[0], 1.45 * depths[-1])  # room for the names of the lines
    axis.set(xlabel="reversible units in the stack (log scale)", ylabel=ylabel)
    return figure


def peaks_against_depth(
    peaks: Mapping[str, Mapping[float, float]],
    *,
    xlabel: str,
    recorded: Mapping[str, Mapping[float, float]] | None = None,
    card: bool = False,
) -> Figure:
    """Peak memory against depth, a line for each way to train, its name at its end.

    Args:
        peaks: MiB by way (`WAY_COLORS`), by depth.
        xlabel: what the depth counts.
        recorded: the same from a file, drawn hollow and dashed.
        card: draw a line at 12 GiB.
    """
    figure = new_figure(3.9)
    axis = figure.subplots()
    lines = [(name, line, "-", None) for name, line in peaks.items()]
    lines += [(name, line, "--", "white") for name, line in (recorded or {}).items()]
    ends = []
    for mark, (name, line, style, face) in zip(MARKS, lines, strict=False):
        color = WAY_COLORS[name]
        depths, values = list(line), list(line.values())
        axis.plot(
            depths,
            values,
            color=color,
            linestyle=style,
            marker=mark,
            markerfacecolor=face or color,
            markersize=6,
            linewidth=1.8,
        )
        ends.append([values[-1], f"{name}: {values[-1]:,.0f}", color])
    highest, deepest = max(end[0] for end in ends), max(d for _, line, *_ in lines for d in line)
    top = 1.08 * max(highest, CARD if card else 0)
    place = -1.0
    for value, text, color in sorted(ends, key=lambda end: end[0]):
        place = max(value, place + 0.075 * top)  # texts of lines that end close to each other move apart
        axis.annotate(
            text,
            (deepest, value),
            (1.03 * deepest, place),
            va="center",
            color=color,
            fontsize=9.5,
            annotation_clip=False,
        )
    if card:
        axis.axhline(CARD, color="black", linewidth=1, linestyle="--")
        axis.annotate(
            "a card of 12 GiB", (0, CARD), (6, 4), ("axes fraction", "data"), "offset points", fontsize=9
        )
    axis.set(xlabel=xlabel, ylabel="peak of a training step, MiB", ylim=(0, top), xlim=(0, 1.32 * deepest))
    ticks = sorted({depth for _, line, *_ in lines for depth in line})
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _thousands(axis.yaxis)
    return figure


def draw_step(figure: FigureBase, parts: Mapping[str, float], *, widest: float = 17_000) -> None:
    """One training step's peak by kind, against a card of 12 GiB.

    Args:
        figure: an empty figure, or a part of one.
        parts: MiB by kind of memory.
        widest: end of the axis, MiB.
    """
    edges = margins(figure, left=0.25, right=0.25, bottom=0.52, top=0.32)
    axis = figure.subplots(gridspec_kw=edges)
    left, total = 0.0, sum(parts.values())
    for kind, value in parts.items():
        seen = value >= 0.005 * total
        label = kind if seen else None
        axis.barh(0, value, left=left, color=KIND_COLORS[kind], height=0.7, edgecolor="white", label=label)
        left += value
    style = {"textcoords": "offset points", "va": "center", "fontsize": 9, "weight": "bold"}
    axis.annotate(f"{total:,.0f} MiB", (total, 0), (6, 0), **style)
    axis.axvline(CARD, color=GREEN if total <= CARD else RED, linewidth=2, linestyle="--")
    axis.set(xlim=(0, 1.28 * widest), ylim=(-0.5, 0.5), yticks=[])
    axis.xaxis.set_major_locator(FixedLocator([0, 4096, 8192, 12288, 16384]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1024:g}"))
    axis.set_xlabel("peak of a training step, GiB; dashed: a card of 12 GiB", fontsize=9)
    axis.grid(axis="y", visible=False)
    place = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1), "borderaxespad": 0.1}
    axis.legend(**place, ncols=4, frameon=False, fontsize=8.5, columnspacing=1.2)


def stacked(rows: Mapping[str, Mapping[str, float]]) -> Figure:
    """Bars in parts, MiB, each with its sum at its end.

    Args:
        rows: by name, from top to bottom: MiB by part.
    """
    figure = new_figure(1.1 + 0.42 * len(rows))
    axis = figure.subplots()
    names = list(next(iter(rows.values())))
    palette = dict(zip(names, ("#f2c45f", BLUE, "#c9c9c9"), strict=False))
    for at, parts in enumerate(rows.values()):
        left = 0.0
        for part, value in parts.items():
            axis.barh(at, value, left=left, color=palette[part], height=0.66, edgecolor="white")
            if value > 0.05 * max(sum(row.values()) for row in rows.values()):
                axis.text(
                    left + value / 2,
                    at,
                    f"{value:,.0f}",
                    ha="center",
                    va="center",
                    fontsize=9,
                    color="white" if palette[part] == BLUE else "black",
                )
            left += value
        axis.annotate(
            f"{left:,.0f}", (left, at), (5, 0), textcoords="offset points", va="center", fontsize=9.5
        )
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, 1.1 * max(sum(parts.values()) for parts in rows.values()))
    axis.set_xlabel("alive at the peak of a training step, MiB")
    axis.grid(axis="y", visible=False)
    _thousands(axis.xaxis)
    handles = [Patch(color=palette[name], label=name) for name in names]
    figure.legend(handles=handles, loc="outside upper right", ncols=3, frameon=False)
    return figure


# The network --------------------------------------------------------------------------------------


def parts_of_network(parts: Mapping[str, tuple[int, int, bool]]) -> Figure:
    """Parameters and multiply-adds of a network's parts; hatched where the paper leaves the content open.

    Args:
        parts: by name: parameters, multiply-adds, whether the content is inferred.
    """
    figure = new_figure(0.95 + 0.36 * len(parts))
    panels = figure.subplots(1, 2, sharey=True)
    for axis, values, unit, symbol, label in (
        (panels[0], [p[0] for p in parts.values()], 1, "", "parameters (log scale)"),
        (panels[1], [p[1] for p in parts.values()], 1e9, " G", "multiply-adds at 1024x2048, G (log scale)"),
    ):
        scaled = [value / unit for value in values]
        for at, (value, (_, _, inferred)) in enumerate(zip(scaled, parts.values(), strict=True)):
            style = {"hatch": "////", "edgecolor": "white", "linewidth": 0} if inferred else {}
            axis.barh(at, value, color=BLUE if axis is panels[0] else ORANGE, height=0.66, **style)
            text = f"{value:,.0f}" if unit == 1 else f"{value:.2g}{symbol}"
            axis.annotate(text, (value, at), (4, 0), textcoords="offset points", va="center", fontsize=9)
        axis.set_xscale("log")
        axis.set_xlim(0.4 * min(scaled), 8 * max(scaled))
        axis.set_xlabel(label)
        axis.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(parts)), list(parts))
    panels[0].set_ylim(len(parts) - 0.5, -0.5)
    handles = [
        Patch(facecolor=GREY, label="said in the paper"),
        Patch(facecolor=GREY, hatch="////", edgecolor="white", label="width and content inferred"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False)
    return figure


def usual_and_ours(rows: Mapping[str, tuple[tuple[int, int], tuple[int, int]]]) -> Figure:
    """An ordinary part beside VNet's, for each row, in weights and in multiply-adds.

    Args:
        rows: by name: (weights, multiply-adds) of the usual part, then of VNet's.
    """
    figure = new_figure(0.95 + 0.55 * len(rows))
    panels = figure.subplots(1, 2, sharey=True)
    for which, (axis, unit, label) in enumerate(
        (
            (panels[0], 1, "weights of its convolutions (log scale)"),
            (panels[1], 1e6, "multiply-adds, M (log scale)"),
        )
    ):
        pairs = [(usual[which] / unit, ours[which] / unit) for usual, ours in rows.values()]
        for at, pair in enumerate(pairs):
            for shift, value, color in ((-0.19, pair[0], GREY), (0.19, pair[1], BLUE)):
                axis.barh(at + shift, value, color=color, height=0.36)
                saved = f" ({pair[1] / pair[0] - 1:+.0%})" if color == BLUE else ""
                axis.annotate(
                    f"{value:,.0f}{saved}",
                    (value, at + shift),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=9,
                )
        values = [value for pair in pairs for value in pair]
        axis.set_xscale("log")
        axis.set_xlim(0.4 * min(values), 12 * max(values))
        axis.set_xlabel(label)
        axis.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(rows)), list(rows))
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    handles = [Patch(color=GREY, label="as usual"), Patch(color=BLUE, label="VNet's")]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False)
    return figure


def table_dots(rows: Mapping[str, tuple[float, float | None]], *, above: float) -> Figure:
    """Memory of training by network: ours and the paper's, and a card of 12 GiB.

    Args:
        rows: by name, from top to bottom: MiB simulated, and MB printed (None: above ``above``).
        above: what the paper prints for what does not fit, MB.
    """
    figure = new_figure(1.05 + 0.42 * len(rows))
    axis = figure.subplots()
    for at, (ours, printed) in enumerate(rows.values()):
        paper = above if printed is None else printed
        axis.plot([ours, paper], [at, at], color="#c9c9c9", linewidth=2.4, zorder=1)
        axis.plot(paper, at, marker="o" if printed else ">", color=ORANGE, markersize=9, linestyle="none")
        axis.plot(ours, at, marker="D", color=BLUE, markersize=8, linestyle="none")
        for value, text, other in (
            (ours, f"{ours:,.0f}", paper),
            (paper, f"{paper:,.0f}" if printed else f">{above:,.0f}", ours),
        ):
            side = 1 if value >= other else -1
            axis.annotate(
                text,
                (value, at),
                (9 * side, 0),
                textcoords="offset points",
                va="center",
                ha="left" if side > 0 else "right",
                fontsize=9,
            )
    axis.axvline(CARD, color="black", linewidth=1, linestyle="--", zorder=0)
    axis.annotate(
        "12 GiB", (CARD, 1), (3, -3), ("data", "axes fraction"), "offset points", va="top", fontsize=9
    )
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, 1.12 * max(CARD, *(max(ours, printed or above) for ours, printed in rows.values())))
    axis.set_xlabel("memory of a training step, MiB")
    axis.grid(axis="y", visible=False)
    _thousands(axis.xaxis)
    words = "printed (how it was measured is not said)"
    handles = [
        Line2D([], [], marker="D", color=BLUE, linestyle="none", label="simulated here"),
        Line2D([], [], marker="o", color=ORANGE, linestyle="none", label=words),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False)
    return figure


def speed_against_work(points: Mapping[str, tuple[float, float]]) -> Figure:
    """Printed frames per second against multiply-adds, on log axes.

    Args:
        points: by network: multiply-adds in G, frames per second.
    """
    figure = new_figure(3.5)
    axis = figure.subplots()
    for name, (macs, fps) in points.items():
        ours = name == "VNet"
        axis.plot(macs, fps, marker="o", markersize=9, color=BLUE if ours else ORANGE)
        axis.annotate(name, (macs, fps), (9, 4), textcoords="offset points", fontsize=9.5)
    axis.set_xscale("log")
    axis.set_yscale("log")
    macs, fps = zip(*points.values(), strict=True)
    axis.set_xlim(0.6 * min(macs), 3 * max(macs))
    axis.set_ylim(0.6 * min(fps), 1.9 * max(fps))
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50]))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("multiply-adds of one 1024x2048 image, G (computed, log scale)")
    axis.set_ylabel("frames per second\n(printed, log scale)")
    return figure


# Crop, resize, full -------------------------------------------------------------------------------


def three_views(image, *, crop: tuple[int, int, int, int], factor: float) -> Figure:
    """A picture as the three runs see it: a crop of it, all of it smaller, all of it.

    Args:
        image: uint8 (3, H, W).
        crop: top, left, height, width in pixels.
        factor: of the smaller one.
    """
    picture = np.asarray(image).transpose(1, 2, 0)
    height, width = picture.shape[:2]
    top, left, rows, columns = crop
    outside = (picture * 0.25 + 190).astype(np.uint8)
    outside[top : top + rows, left : left + columns] = picture[top : top + rows, left : left + columns]
    step = round(1 / factor)
    small = picture[: height // step * step, : width // step * step].astype(np.float32)
    small = small.reshape(height // step, step, width // step, step, 3).mean((1, 3)).astype(np.uint8)
    figure = new_figure(1.95)
    views = {
        f"crop: {rows}x{columns}": outside,
        f"resized: {height // step}x{width // step}": small,
        f"full: {height}x{width}": picture,
    }
    for axis, (title, view) in zip(figure.subplots(1, 3), views.items(), strict=True):
        axis.imshow(view, interpolation="nearest", extent=(0, width, height, 0))
        axis.set_title(title)
        axis.set_axis_off()
    return figure


def scores_of_runs(
    scores: Mapping[str, Mapping[str, float]],
    *,
    ylabel: str = "percent",
    ceiling: Mapping[str, float] | None = None,
) -> Figure:
    """Scores of several runs beside each other.

    Args:
        scores: by run (`RUN_COLORS`), by score: 0 to 1.
        ylabel: what the scores are.
        ceiling: by score: what a perfect half-size prediction would have, drawn as a tick over that run.
    """
    figure = new_figure(3.3)
    axis = figure.subplots()
    names = list(next(iter(scores.values())))
    width = 0.8 / len(scores)
    for i, (run, values) in enumerate(scores.items()):
        places = np.arange(len(names)) + (i - (len(scores) - 1) / 2) * width
        heights = [100 * values[name] for name in names]
        axis.bar(places, heights, width, color=RUN_COLORS[run], edgecolor="white", label=run)
        for x, height in zip(places, heights, strict=True):
            axis.annotate(
                f"{height:.0f}", (x, height), (0, 2), textcoords="offset points", ha="center", fontsize=9
            )
        for x, name in zip(places, names, strict=True):
            if run == "resized" and ceiling and name in ceiling:
                axis.plot(
                    [x - width / 2, x + width / 2], [100 * ceiling[name]] * 2, color="black", linewidth=1.6
                )
    if ceiling:
        axis.plot([], [], color="black", linewidth=1.6, label="perfect at half size")
    axis.set_xticks(range(len(names)), names)
    axis.set_ylim(0, 105)
    axis.set_ylabel(ylabel)
    axis.grid(axis="x", visible=False)
    axis.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    figure.legend(loc="outside upper right", ncols=4, frameon=False)
    return figure


def cut_and_lost(cut: Mapping[str, float], lost: Mapping[str, float], sizes: Sequence[str]) -> Figure:
    """What a crop cuts and what a smaller image loses, by the area of objects.

    Args:
        cut: share of the objects that a crop shows and cuts.
        lost: share of an object's pixels that a perfect answer at half the size gets wrong.
        sizes: names of the bins, with their limits.
    """
    figure = new_figure(2.7)
    panels = figure.subplots(1, 2, sharey=True)
    for axis, shares, color, title in (
        (panels[0], cut, ORANGE, "crop: objects cut by its edge"),
        (panels[1], lost, GREEN, "half size: pixels lost, prediction perfect"),
    ):
        values = [100 * share for share in shares.values()]
        axis.barh(range(len(sizes)), values, color=color, height=0.62)
        for at, value in enumerate(values):
            axis.annotate(
                f"{value:.0f} %", (value, at), (4, 0), textcoords="offset points", va="center", fontsize=9.5
            )
        axis.set_title(title)
        axis.set_xlabel("percent")
        axis.set_xlim(0, 100)
        axis.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(sizes)), sizes)
    panels[0].set_ylim(len(sizes) - 0.5, -0.5)
    return figure
