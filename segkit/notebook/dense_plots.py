"""The figures of notebook 01: what blocks read, write, weigh and keep. See `segkit.notebook.plots`."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from segkit.notebook.plots import BLUE, COLORS, GREEN, GREY, ORANGE, margins, new_figure

LIGHT, YELLOW = "#c9c9c9", "#f2c45f"
DENSE, RESIDUAL = BLUE, ORANGE  # of the two kinds of block, wherever they stand beside each other

# Of what autograd keeps (`dense.SOURCES`): neighbors in a stack differ in lightness as well as in hue.
SOURCE_COLORS = {
    "input": LIGHT,
    "concatenation": BLUE,
    "BN-ReLU": YELLOW,
    "convolution": GREEN,
    "sum": GREY,
    "other": "black",
}
# And of the kinds of memory (`segkit.measure`).
KIND_COLORS = {
    "parameters": GREY,
    "gradients": COLORS[4],
    "optimizer state": GREEN,
    "activations": BLUE,
    "temporaries": YELLOW,
    "input": LIGHT,
}


def _thousands(axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _write(axis: Axes, text: str, x: float, y: float, *, lift: float, color: str = "black") -> None:
    """A number above a point, by so many typographic points."""
    axis.annotate(text, (x, y), (0, lift), textcoords="offset points", ha="center", fontsize=8.5, color=color)


def _stack(
    axis: Axes,
    rows: Mapping[str, Mapping[str, float]],
    colors: Mapping[str, str],
    *,
    sums: bool = True,
) -> None:
    """Horizontal bars in parts, the first on top, each with its sum at its end if `sums`."""
    totals = [sum(parts.values()) for parts in rows.values()]
    widest = max(totals)
    for at, (parts, total) in enumerate(zip(rows.values(), totals, strict=True)):
        left = 0.0
        for part, value in parts.items():
            axis.barh(at, value, left=left, color=colors[part], height=0.68, edgecolor="white", linewidth=0.6)
            left += value
        if sums:
            style = {"textcoords": "offset points", "va": "center", "fontsize": 9}
            axis.annotate(f"{total:,.0f}", (total, at), (5, 0), **style)
    axis.set_xlim(0, 1.17 * widest)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.grid(axis="y", visible=False)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _thousands(axis.xaxis)


def _legend_of(rows: Mapping[str, Mapping[str, float]], colors: Mapping[str, str]) -> list[Patch]:
    present = [part for part in colors if any(parts.get(part) for parts in rows.values())]
    return [Patch(color=colors[part], label=part) for part in present]


def kept_bars(rows: Mapping[str, Mapping[str, float]]) -> Figure:
    """What autograd keeps, by what it is, in channels per pixel.

    Args:
        rows: by name, from top to bottom: channels by source (`dense.Kept.by_source`).
    """
    figure = new_figure(0.95 + 0.36 * len(rows))
    axis = figure.subplots()
    _stack(axis, rows, SOURCE_COLORS)
    axis.set_xlabel("kept for the backward pass, channels per pixel")
    figure.legend(
        handles=_legend_of(rows, SOURCE_COLORS), loc="outside upper right", ncols=5, frameon=False, fontsize=9
    )
    return figure


def block_flow(residual: Sequence[tuple[int, int]], dense: Sequence[tuple[int, int]]) -> Figure:
    """What each unit of a residual and of a dense block reads and writes; the width of a bar is channels.

    Args:
        residual: (maps read, maps written) of each unit.
        dense: the same of each unit of a dense block with as many maps at its end.
    """
    figure = new_figure(1.35 + 0.62 * max(len(residual), len(dense)))
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    widest = max([max(unit) for unit in residual] + [sum(unit) for unit in dense])
    for axis, units, title in (
        (panels[0], residual, f"residual block, {len(residual)} units: each sums onto all maps"),
        (panels[1], dense, f"dense block, {len(dense)} units: each adds to the list"),
    ):
        first = units[0][0]
        for at, (reads, writes) in enumerate(units):
            parts = [(first, LIGHT)]
            if axis is panels[0]:
                parts = [(reads, LIGHT if at == 0 else RESIDUAL)]
            else:
                parts += [(width, DENSE) for _, width in units[:at]]
            left = 0
            for width, color in parts:
                axis.barh(at, width, left=left, color=color, height=0.36, edgecolor="white", linewidth=0.8)
                left += width
            axis.text(left + 5, at, f"reads {reads}", va="center", fontsize=8.5, color="#333333")
            place = 0 if axis is panels[0] else left
            color = RESIDUAL if axis is panels[0] else DENSE
            style = {"facecolor": "white", "edgecolor": color, "linewidth": 1.4, "hatch": "////"}
            axis.barh(at + 0.4, writes, left=place, height=0.24, **style)
            axis.text(place + writes + 5, at + 0.42, f"writes {writes}", va="center", fontsize=8.5)
        axis.set_title(title)
        axis.set_xlabel("channels")
        axis.grid(axis="y", visible=False)
    rows = max(len(residual), len(dense))
    panels[0].set_yticks(np.arange(rows), [f"unit {i + 1}" for i in range(rows)])
    panels[0].set_ylim(rows - 0.25, -0.45)
    panels[0].set_xlim(0, 1.35 * widest)  # room for the words
    handles = [
        Patch(color=LIGHT, label="the block's input"),
        Patch(color=RESIDUAL, label="sum so far"),
        Patch(color=DENSE, label="maps of earlier units"),
        Patch(facecolor="white", edgecolor=GREY, hatch="////", label="what the unit writes"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def weight_bars(rows: Mapping[str, Mapping[str, float]], paper: Mapping[str, Sequence[float]]) -> Figure:
    """Convolution weights of each block, in millions, and beside each bar what Table 1 prints.

    Args:
        rows: by network: weights by block.
        paper: by network: the printed numbers, in millions, of the same blocks.
    """
    figure = new_figure(3.2)
    axis = figure.subplots()
    blocks = list(next(iter(rows.values())))
    thickness = 0.8 / len(rows)
    for at, ((name, weights), color) in enumerate(zip(rows.items(), (RESIDUAL, DENSE, LIGHT), strict=False)):
        places = np.arange(len(blocks)) + (at - (len(rows) - 1) / 2) * thickness
        millions = [weights[block] / 1e6 for block in blocks]
        axis.bar(places, millions, thickness * 0.94, color=color, label=name)
        for place, value in zip(places, millions, strict=True):
            _write(axis, f"{value:.3f}", place, value, lift=4)
        if name in paper:
            half = 0.47 * thickness
            axis.hlines(paper[name], places - half, places + half, color="black", linewidth=1.8, zorder=3)
    axis.set_xticks(range(len(blocks)), blocks)
    axis.grid(axis="x", visible=False)
    axis.set_ylim(0, axis.get_ylim()[1] * 1.04)
    axis.set_ylabel("convolution weights, millions")
    handles, _ = axis.get_legend_handles_labels()
    mark = Line2D([], [], linewidth=1.8, color="black", label="printed in Table 1")
    axis.legend(handles=[*handles, mark], loc="upper left", frameon=False)
    return figure


def promise_and_truth(
    blocks: Sequence[str], bars: Mapping[str, Sequence[float]], marks: Mapping[str, Sequence[float]]
) -> Figure:
    """What autograd keeps of each block, on a log scale, with the equations as marks.

    Args:
        blocks: names.
        bars: by kind of block, residual first: channels per pixel of each block.
        marks: by equation, in the same order: what it says.
    """
    figure = new_figure(3.5)
    axis = figure.subplots()
    thickness = 0.8 / len(bars)
    styles = ((RESIDUAL, "o", "black"), (DENSE, "s", "white"))
    pairs = zip(bars.items(), marks.items(), styles, strict=True)
    for at, ((name, values), (equation, ticks), (color, marker, ink)) in enumerate(pairs):
        places = np.arange(len(blocks)) + (at - (len(bars) - 1) / 2) * thickness
        axis.bar(places, values, thickness * 0.92, color=color, label=name)
        axis.plot(
            places,
            ticks,
            linestyle="",
            marker=marker,
            markersize=7,
            markerfacecolor="white",
            markeredgecolor="black",
            markeredgewidth=1.4,
            label=equation,
        )
        for place, value, tick in zip(places, values, ticks, strict=True):
            _write(axis, f"{value:,.0f}", place, value, lift=3)
            _write(axis, f"{tick:,.0f}", place, tick, lift=6, color=ink)
    axis.set_yscale("log")
    axis.set_ylim(100, 2.2 * max(max(values) for values in bars.values()))
    axis.yaxis.set_major_locator(LogLocator(10))
    axis.yaxis.set_minor_locator(NullLocator())
    _thousands(axis.yaxis)
    axis.set_xticks(range(len(blocks)), blocks)
    axis.grid(axis="x", visible=False)
    axis.set_ylabel("channels per pixel (log scale)")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def copies(units: Sequence[Sequence[tuple[float, str]]], shared: Sequence[float]) -> Figure:
    """The maps that each unit of a dense block makes autograd keep, drawn to scale, above the shared list.

    Args:
        units: of each unit, its kept maps as (channels, source), in the order of saving.
        shared: what would be enough, the list of shared inputs: the block's input and one entry a unit.
    """
    figure = new_figure(1.3 + 0.36 * (len(units) + 1))
    axis = figure.subplots()
    columns = max(len(unit) for unit in units)
    widths = [max(unit[j][0] for unit in units) for j in range(columns)]
    gap = 0.03 * sum(widths)
    starts = np.cumsum([0, *(width + gap for width in widths[:-1])])
    for at, unit in enumerate(units):
        for (channels, source), start in zip(unit, starts, strict=True):
            axis.barh(
                at,
                channels,
                left=start,
                height=0.86,
                color=SOURCE_COLORS[source],
                edgecolor="white",
                linewidth=0.6,
            )
            axis.text(
                start + channels / 2,
                at,
                f"{channels:.0f}",
                ha="center",
                va="center",
                fontsize=8.5,
                color="white" if source in ("concatenation", "convolution") else "black",
            )
    left = 0.0
    for at, channels in enumerate(shared):
        color = LIGHT if at == 0 else SOURCE_COLORS["convolution"]
        axis.barh(
            len(units) + 0.3,
            channels,
            left=left,
            height=0.86,
            color=color,
            edgecolor="white",
            linewidth=0.8,
        )
        left += channels
    total = sum(channels for unit in units for channels, _ in unit)
    axis.text(
        left + gap / 2,
        len(units) + 0.3,
        f"equation (2): {left:.0f} channels would do, instead of {total:,.0f}",
        va="center",
        fontsize=9,
    )
    axis.set_yticks(
        [*range(len(units)), len(units) + 0.3], [*(f"unit {i + 1}" for i in range(len(units))), "shared"]
    )
    axis.set_ylim(len(units) + 0.85, -0.6)
    axis.set_xlim(-gap / 3, starts[-1] + widths[-1] + gap / 3)
    titles = ("concatenation", "after BN-ReLU", "after 1x1", "after BN-ReLU")
    tops = [start + width / 2 for start, width in zip(starts, widths, strict=True)]
    upper = axis.secondary_xaxis("top")
    upper.set_xticks(tops, titles if len(titles) == columns else [""] * columns, fontsize=9)
    upper.tick_params(length=0)
    upper.spines["top"].set_visible(False)
    axis.xaxis.set_major_locator(NullLocator())
    axis.set_xlabel("channels, drawn to scale: area is memory")
    axis.grid(visible=False)
    return figure


def growth(units: Sequence[int], curves: Mapping[str, Sequence[float]], equation: Sequence[float]) -> Figure:
    """What autograd keeps against the number of units, on a linear and on a logarithmic scale.

    Args:
        units: numbers of units.
        curves: by name: channels per pixel for each of them.
        equation: what equation (2) says for each of them.
    """
    figure = new_figure(3.4)
    styles = ((BLUE, "-", "s"), (ORANGE, "--", "^"), (GREEN, "-", "o"), (GREY, ":", "D"))
    for axis, scale in zip(figure.subplots(1, 2), ("linear", "log"), strict=True):
        for (name, values), (color, line, marker) in zip(curves.items(), styles, strict=False):
            axis.plot(
                units,
                values,
                color=color,
                linestyle=line,
                marker=marker,
                markersize=5,
                linewidth=1.7,
                label=name,
            )
        axis.plot(
            units,
            equation,
            linestyle="",
            marker="x",
            markersize=9,
            markeredgewidth=1.8,
            color="black",
            label="equation (2)",
        )
        axis.set_xticks(units)
        axis.set_xlabel("units n")
        if scale == "log":
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_xticks(units, [str(n) if n % 12 == 0 or n == units[0] else "" for n in units])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.yaxis.set_minor_locator(NullLocator())
        else:
            axis.set_xlim(0, 1.05 * units[-1])
            axis.set_ylim(0, None)
            axis.legend(loc="upper left", frameon=False)
            axis.set_ylabel("kept, channels per pixel")
        axis.set_title(f"{scale} scale")
        _thousands(axis.yaxis)
    return figure


def kind_bars(rows: Mapping[str, Mapping[str, int]], printed: Mapping[str, float]) -> Figure:
    """The memory of a training step at its peak by kind, in MiB, and what the paper prints.

    Args:
        rows: by network: bytes by kind (`segkit.measure.PeakMemory.by_kind`).
        printed: by network: the paper's MB.
    """
    mib = {name: {kind: size / 2**20 for kind, size in kinds.items()} for name, kinds in rows.items()}
    figure = new_figure(1.05 + 0.5 * len(rows))
    axis = figure.subplots()
    _stack(axis, mib, KIND_COLORS, sums=False)
    for at, (name, kinds) in enumerate(mib.items()):
        middle, total = kinds["activations"] / 2, sum(kinds.values())
        style = {"ha": "center", "va": "center", "fontsize": 9.5, "color": "white"}
        axis.text(middle, at, f"simulated: {total:,.0f} MiB", **style)
        if name in printed:
            axis.plot([printed[name]] * 2, [at - 0.42, at + 0.42], color="black", linewidth=2)
            axis.annotate(
                f"paper: {printed[name]:,.0f}",
                (printed[name], at),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
    top = max([sum(kinds.values()) for kinds in mib.values()] + list(printed.values()))
    axis.set_xlim(0, 1.17 * top)
    axis.set_xlabel("memory at the peak of a training step, MiB")
    mark = Line2D([], [], color="black", linewidth=2, label="the paper's Table 13")
    figure.legend(
        handles=[*_legend_of(mib, KIND_COLORS), mark],
        loc="outside upper center",
        ncols=7,
        frameon=False,
        fontsize=8.5,
        columnspacing=1.1,
        handlelength=1.4,
    )
    return figure


def work_against_units(units: Sequence[int], curves: Mapping[str, Sequence[float]]) -> Figure:
    """Multiply-adds per pixel of blocks with more and more units, both axes logarithmic.

    Args:
        units: numbers of units.
        curves: by kind of block, residual first: multiply-adds per pixel.
    """
    figure = new_figure(3.2)
    axis = figure.subplots()
    for (name, values), color, marker in zip(curves.items(), (RESIDUAL, DENSE), ("o", "s"), strict=True):
        millions = np.array(values) / 1e6
        slope = np.log(millions[-1] / millions[-2]) / np.log(units[-1] / units[-2])
        label = f"{name}: at the end as n to the power {slope:.1f}"
        axis.plot(units, millions, color=color, marker=marker, linewidth=1.8, label=label)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(units, [str(n) for n in units])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_xlabel("units n (both blocks end with the same number of maps)")
    axis.set_ylabel("multiply-adds per pixel,\nmillions (log scale)")
    axis.legend(loc="upper left", frameon=False)
    return figure


def draw_kept(figure: FigureBase, dense: Mapping[str, float], residual: Mapping[str, float]) -> None:
    """A dense and a residual block with as many units and maps, one bar each: for explorers.

    Args:
        figure: a figure or one of its parts.
        dense: channels per pixel by source that autograd keeps of the dense block.
        residual: the same of the residual block.
    """
    edges = margins(figure, left=0.8, right=0.15, bottom=0.78, top=0.3)
    axis = figure.subplots(gridspec_kw=edges)
    rows = {"residual": residual, "dense": dense}
    _stack(axis, rows, SOURCE_COLORS)
    axis.set_xlim(0, 1.22 * sum(residual.values()))
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    share = sum(dense.values()) / sum(residual.values())
    axis.set_title(f"dense / residual: {100 * share:.2g} %", y=1.0)
    axis.set_xlabel("kept, channels per pixel", labelpad=2)
    handles = [Patch(color=color, label=part) for part, color in SOURCE_COLORS.items() if part != "other"]
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=5,
        frameon=False,
        fontsize=8,
        handlelength=1.1,
        columnspacing=0.9,
        borderaxespad=0.1,
    )
