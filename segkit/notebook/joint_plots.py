"""The figures of notebook 08: phases, what is spent where, and the ablation. See `segkit.notebook.plots`.

What `segkit.notebook.joint` counts comes in as it is: bytes, multiply-adds, fractions.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from segkit.notebook.joint import GIB, MIB, PAPERS_NAMES, PARTS, Apart, Block, Peak, Spent
from segkit.notebook.plots import BLUE, COLORS, GREEN, GREY, ORANGE, RED, margins, new_figure

LIGHT = "#c9c9c9"
# The same upsampling has the same color, line and mark in every figure.
UP_COLORS = {"none": GREY, "bilinear": ORANGE, "fpn": GREEN, "jpu": BLUE}
UP_STYLES = {"none": ":", "bilinear": "--", "fpn": "-.", "jpu": "-"}
UP_MARKS = {"none": "o", "bilinear": "s", "fpn": "^", "jpu": "D"}
PART_COLORS = dict(zip(PARTS, (LIGHT, ORANGE, RED, BLUE, GREEN, "#8c8c8c"), strict=True))
KIND_COLORS = {
    "parameters": ORANGE,
    "gradients": RED,
    "optimizer state": COLORS[4],
    "activations": BLUE,
    "temporaries": LIGHT,
    "input": GREY,
}
MEASURES = {
    "activations": ("MiB kept of one image", lambda part: part.kept / MIB),
    "MACs": ("G multiply-adds", lambda part: part.macs / 1e9),
    "parameters": ("million parameters", lambda part: part.params / 1e6),
}


def _rows(axis: Axes, names: Sequence[str]) -> None:
    """One row a name, the first on top."""
    axis.set_yticks(range(len(names)), list(names))
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)


def _value(axis: Axes, value: float, at: float, text: str, **options: object) -> None:
    axis.annotate(
        text, (value, at), (4, 0), textcoords="offset points", va="center", **{"fontsize": 9, **options}
    )


# From dilated to strided --------------------------------------------------------------------------


def _stems(axis: Axes, places: Sequence[float], values: Sequence[float], color: str, mark: str) -> None:
    axis.vlines(places, 0, values, color=color, linewidth=1.6)
    axis.plot(places, values, marker=mark, color=color, linestyle="none", markersize=6.5)


def signal_apart(apart: Apart) -> Figure:
    """A signal on its two ways: split, convolved, merged; and convolved, reduced (Figure 3).

    Args:
        apart: at a rate of 2.
    """
    figure = new_figure(5.6)
    axes = figure.subplots(4, 2, sharex=True)
    colors, marks = (BLUE, ORANGE), ("o", "s")
    length = len(apart.signal)
    places = np.arange(length)

    def by_parity(axis: Axes, values: Sequence[float]) -> None:
        for phase in (0, 1):
            _stems(axis, places[phase::2], values[phase::2], colors[phase], marks[phase])

    titles = (
        ("signal, even and odd samples", "signal"),
        ("even samples alone, convolved", "convolved"),
        ("odd samples alone, convolved", "odd places dropped"),
        ("merged; rings: dilated convolution", "kept; rings: strided convolution"),
    )
    by_parity(axes[0, 0], apart.signal)
    for phase in (0, 1):
        _stems(axes[1 + phase, 0], places[phase::2], apart.phases[phase], colors[phase], marks[phase])
    merged = np.empty(length)
    merged[0::2], merged[1::2] = apart.phases
    by_parity(axes[3, 0], merged)
    _stems(axes[0, 1], places, apart.signal, GREY, "o")
    _stems(axes[1, 1], places, apart.regular, GREY, "o")
    _stems(axes[2, 1], places[1::2], apart.regular[1::2], LIGHT, "o")
    _stems(axes[2, 1], places[0::2], apart.regular[0::2], BLUE, "o")
    _stems(axes[3, 1], places[0::2], apart.regular[0::2], BLUE, "o")
    rings = {"marker": "o", "linestyle": "none", "markersize": 12, "fillstyle": "none", "color": "black"}
    axes[3, 0].plot(places, apart.dilated, **rings)
    axes[3, 1].plot(places[0::2], apart.strided, **rings)
    for row, (axis_pair, title_pair) in enumerate(zip(axes, titles, strict=True)):
        lowest = min(0, *(line.get_ydata().min() for axis in axis_pair for line in axis.lines))
        highest = max(0, *(line.get_ydata().max() for axis in axis_pair for line in axis.lines))
        room = 0.35 * (highest - lowest) if row == 3 else 0.18 * (highest - lowest)
        for axis, title in zip(axis_pair, title_pair, strict=True):
            axis.axhline(0, color=GREY, linewidth=0.8)
            axis.set_title(title)
            axis.set_ylim(lowest - room, highest + room)
            axis.set_xlim(-0.7, length - 0.3)
            axis.yaxis.set_major_locator(MaxNLocator(3, integer=True))
            axis.xaxis.set_major_locator(FixedLocator(range(0, length, 2)))
    for axis in axes[3]:
        axis.set_xlabel("place, samples")
    figure.supylabel("value", fontsize=10)
    return figure


def lattice(step: int = 4, cells: int = 3) -> Figure:
    """Which pixels of a fine map a coarse one has.

    Args:
        step: between them, along an axis.
        cells: coarse pixels along an axis.
    """
    figure = new_figure(3.4, width=7.4)
    left, right = figure.subplots(1, 2)
    side = step * cells
    for row in range(side):
        for column in range(side):
            phase = (row % step, column % step)
            known = phase == (0, 0)
            middle = phase != (0, 0) and row % (step // 2) == 0 == column % (step // 2)
            color = BLUE if known else ORANGE if middle else "#f0f0f0"
            left.add_patch(Rectangle((column, row), 1, 1, facecolor=color, edgecolor="white", linewidth=1.5))
    left.set(xlim=(0, side), ylim=(side, 0), aspect="equal")
    left.set_title(f"the dilated map at 1/8, {side}x{side} pixels")
    left.set_xlabel("column, pixels at 1/8")
    left.set_ylabel("row, pixels at 1/8")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_locator(FixedLocator([step * i + 0.5 for i in range(cells)]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{int(value)}"))
    left.grid(visible=False)
    right.set_axis_off()
    handles = [
        Patch(color=BLUE, label="Conv5 of the strided network has it: 1 of 16"),
        Patch(color=ORANGE, label="its Conv4 has the place: 3 more"),
        Patch(facecolor="#f0f0f0", edgecolor=LIGHT, label="only its Conv3 has it: 12 of 16"),
    ]
    right.legend(handles=handles, loc="center", frameon=False, fontsize=9.5)
    return figure


def offset_curves(sizes: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """How far from its place a coarse map is read, along an axis of the fine one.

    Args:
        sizes: by size of the image, by kind of interpolation: coarse pixels for each fine one.
    """
    figure = new_figure(2.9)
    styles = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."))
    everything = [value for kinds in sizes.values() for values in kinds.values() for value in values]
    room = 0.12 * (max(everything) - min(everything))
    for axis, (title, kinds) in zip(
        figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0], sizes.items(), strict=True
    ):
        for (color, style), (kind, values) in zip(styles, kinds.items(), strict=False):
            axis.plot(range(len(values)), values, color=color, linestyle=style, linewidth=2, label=kind)
        axis.set_title(title)
        axis.set_xlabel("place, pixels of the map at 1/8")
        axis.set_ylim(min(everything) - room, max(everything) + room)
        axis.legend(frameon=False, loc="lower left")
    figure.axes[0].set_ylabel("read off its place by,\npixels of the map at 1/32")
    return figure


# What is spent where ------------------------------------------------------------------------------


def block_work(blocks: Sequence[Block]) -> Figure:
    """Multiply-adds of each residual block, dilated and strided, and how many times as many.

    Args:
        blocks: of Conv4, then of Conv5.
    """
    figure = new_figure(4.0)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.5, 1])
    places = np.arange(len(blocks))
    for shift, color, label, work in (
        (-0.2, LIGHT, "strided", [block.strided.macs / 1e9 for block in blocks]),
        (0.2, ORANGE, "dilated", [block.dilated.macs / 1e9 for block in blocks]),
    ):
        above.bar(places + shift, work, 0.4, color=color, label=label)
    above.set_ylabel("multiply-adds, G")
    above.legend(frameon=False, loc="upper left", ncols=2)
    for key, color, mark, label in (
        ("macs", BLUE, "o", "multiply-adds"),
        ("kept", GREEN, "x", "activations kept"),
    ):
        ratios = [getattr(block.dilated, key) / getattr(block.strided, key) for block in blocks]
        below.plot(places, ratios, marker=mark, color=color, linestyle="none", markersize=7, label=label)
    below.set_yscale("log", base=2)
    below.set_ylim(2, 32)
    below.yaxis.set_major_locator(FixedLocator([2, 4, 8, 16]))
    below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    below.yaxis.set_minor_locator(NullLocator())
    below.set_ylabel("dilated over strided\n(log scale)")
    below.legend(frameon=False, loc="upper left", ncols=2)
    starts = [i for i, block in enumerate(blocks) if block.number == 0]
    for axis in (above, below):
        for start in starts[1:]:
            axis.axvline(start - 0.5, color=GREY, linewidth=1, linestyle=":")
        axis.grid(axis="x", visible=False)
    below.set_xticks(places, [block.number + 1 for block in blocks], fontsize=8)
    below.set_xlim(-0.7, len(blocks) - 0.3)
    stages = " and ".join(dict.fromkeys(block.stage for block in blocks))
    below.set_xlabel(f"residual block, number within its stage ({stages}, left and right of the dotted line)")
    return figure


def three_measures(networks: Mapping[str, Spent]) -> Figure:
    """Networks in parameters, multiply-adds and activations.

    Args:
        networks: by name; the first is marked as what the others are held against.
    """
    figure = new_figure(0.95 + 0.36 * len(networks))
    names = list(networks)
    panels = (
        ("parameters, million", lambda one: one.params / 1e6),
        ("multiply-adds, G", lambda one: one.macs / 1e9),
        ("activations kept, MiB", lambda one: one.kept / MIB),
    )
    for axis, (label, value) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
        values = [value(networks[name]) for name in names]
        colors = [BLUE if name.startswith("JPU") else LIGHT for name in names]
        axis.barh(range(len(names)), values, color=colors, height=0.64)
        for at, number in enumerate(values):
            _value(axis, number, at, f"{number:.1f}" if number < 200 else f"{number:,.0f}")
        axis.axvline(values[0], color=GREY, linewidth=1.1, linestyle="--")
        axis.set_xlim(0, 1.3 * max(values))
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.set_xlabel(label)
        _rows(axis, names)
    return figure


def kinds_of_memory(networks: Mapping[str, Peak], pairs: Sequence[tuple[str, str]]) -> Figure:
    """Why more parameters can take less memory: the peaks by kind, and what changes from one to the other.

    Args:
        networks: by name: the peak of a step.
        pairs: names, from which to which; each has a panel of changes.
    """
    figure = new_figure(1.2 + 0.42 * len(networks) + 2.0)
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.0 + 0.42 * len(networks), 2.2])
    axis = top.subplots()
    kinds = [kind for kind in KIND_COLORS if any(one.by_kind.get(kind) for one in networks.values())]
    for at, one in enumerate(networks.values()):
        start = 0.0
        for kind in kinds:
            size = one.by_kind.get(kind, 0) / GIB
            axis.barh(at, size, left=start, color=KIND_COLORS[kind], height=0.64)
            start += size
        _value(axis, start, at, f"{start:.2f} GiB")
    _rows(axis, list(networks))
    axis.set_xlim(0, 1.16 * max(one.total for one in networks.values()) / GIB)
    axis.set_xlabel("memory at the peak of a training step, GiB")
    handles = [Patch(color=KIND_COLORS[kind], label=kind) for kind in kinds]
    top.legend(handles=handles, loc="outside upper center", ncols=len(kinds), frameon=False)
    for panel, (before, after) in zip(
        bottom.subplots(1, len(pairs), sharey=True, squeeze=False)[0], pairs, strict=True
    ):
        changes = [
            (networks[after].by_kind.get(kind, 0) - networks[before].by_kind.get(kind, 0)) / MIB
            for kind in kinds
        ]
        panel.barh(range(len(kinds)), changes, color=[KIND_COLORS[kind] for kind in kinds], height=0.64)
        reach = max(abs(change) for change in changes)
        for at, change in enumerate(changes):
            _value(panel, max(change, 0), at, f"{change:+,.0f}" if abs(change) >= 0.5 else "0")
        panel.axvline(0, color="black", linewidth=1)
        panel.set_xlim(-1.08 * reach, 0.5 * reach)
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.set_xlabel(f"from {before} to {after}, MiB")
        _rows(panel, kinds)
    return figure


def waterfall(start: Mapping[str, Spent], end: Mapping[str, Spent], names: tuple[str, str]) -> Figure:
    """From the work of one network to that of another, part by part.

    Args:
        start: of the first network, by part.
        end: of the second.
        names: of the networks.
    """
    totals = [sum(part.macs for part in parts.values()) / 1e9 for parts in (start, end)]
    changes = {part: (end[part].macs - start[part].macs) / 1e9 for part in start}
    changes = {
        part: change
        for part, change in sorted(changes.items(), key=lambda item: item[1])
        if abs(change) > 1e-9
    }
    labels = [names[0], *changes, names[1]]
    figure = new_figure(0.8 + 0.38 * len(labels))
    axis = figure.subplots()
    axis.barh(0, totals[0], color=GREY, height=0.64)
    _value(axis, totals[0], 0, f"{totals[0]:.1f}")
    at = totals[0]
    for row, change in enumerate(changes.values(), start=1):
        axis.barh(row, change, left=at, color=ORANGE if change < 0 else BLUE, height=0.64)
        _value(axis, max(at, at + change), row, f"{change:+.1f}")
        axis.plot([at, at], [row - 1 + 0.32, row - 0.32], color=GREY, linewidth=1)
        at += change
    last = len(labels) - 1
    axis.plot([at, at], [last - 1 + 0.32, last - 0.32], color=GREY, linewidth=1)
    axis.barh(last, totals[1], color=GREY, height=0.64)
    _value(axis, totals[1], last, f"{totals[1]:.1f}")
    _rows(axis, labels)
    axis.set_xlim(0, 1.1 * max(totals))
    axis.set_xlabel("multiply-adds of a 512x512 image, G (orange: saved, blue: added)")
    return figure


def draw_saving(
    figure: FigureBase, networks: Mapping[str, Mapping[str, Spent]], *, measure: str = "activations"
) -> None:
    """Networks as bars stacked of their parts: for explorers.

    Args:
        figure: an empty figure, or a part of one.
        networks: two, by name, by part.
        measure: a key of `MEASURES`.
    """
    unit, value = MEASURES[measure]
    axis = figure.subplots(gridspec_kw=margins(figure, left=0.75, right=0.25, bottom=0.5, top=0.4))
    totals = []
    for at, parts in enumerate(networks.values()):
        start = 0.0
        for part, one in parts.items():
            size = value(one)
            axis.barh(at, size, left=start, color=PART_COLORS[part], height=0.6)
            start += size
        totals.append(start)
    for at, parts in enumerate(networks.values()):
        start = 0.0
        for part, one in parts.items():
            size = value(one)
            if size > 0.05 * max(totals):
                color = "white" if PART_COLORS[part] in (BLUE, RED, GREEN) else "black"
                axis.text(
                    start + size / 2, at, f"{size:.0f}", color=color, ha="center", va="center", fontsize=8.5
                )
            start += size
        text = f"{start:,.0f}" if start >= 200 else f"{start:.1f}"
        _value(axis, start, at, text, fontsize=9)
    axis.set_yticks(range(len(networks)), list(networks))
    axis.set_ylim(len(networks) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    axis.set_xlim(0, 1.12 * max(totals))
    axis.tick_params(axis="both", labelsize=9)
    axis.set_xlabel(f"{unit}; {totals[0] / totals[1]:.2f} times as much without the JPU", fontsize=9.5)
    handles = [Patch(color=color, label=part) for part, color in PART_COLORS.items()]
    axis.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.47, 1.0), ncols=6, frameon=False, fontsize=8.5
    )


# The ablation -------------------------------------------------------------------------------------


def ratios(measures: Mapping[str, Mapping[str, float]], *, claimed: float = 3.0) -> Figure:
    """How many times less is taken, by measure: one dot for each pair of networks.

    Args:
        measures: by measure, by pair.
        claimed: a number to hold them against.
    """
    figure = new_figure(0.95 + 0.62 * len(measures))
    axis = figure.subplots()
    pairs = list(next(iter(measures.values())))
    marks = ("o", "s", "^")
    for at, values in enumerate(measures.values()):
        axis.plot([min(values.values()), max(values.values())], [at, at], color=LIGHT, linewidth=2, zorder=1)
        for i, pair in enumerate(pairs):
            color = ORANGE if pair.startswith("R50") else BLUE
            axis.plot(
                values[pair],
                at + 0.11 * (i - (len(pairs) - 1) / 2),  # equal ones would hide each other
                marker=marks[i % 3],
                color=color,
                markersize=8,
                markeredgecolor="white",
                linestyle="none",
                label=pair if at == 0 else None,
            )
        best = max(values, key=values.get)
        white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        _value(axis, values[best], at, f"  at most {values[best]:.2f}", bbox=white, zorder=3)
    axis.axvline(1, color=GREY, linewidth=1)
    axis.axvline(claimed, color="black", linestyle="--", linewidth=1.4)
    axis.set_xlim(0.5, claimed + 0.9)
    axis.set_xlabel(
        f"times less with the JPU than dilated (dashed: the text's {claimed:g}; for FPS, times more)"
    )
    _rows(axis, list(measures))
    figure.legend(loc="outside upper center", ncols=6, frameon=False, handletextpad=0.1, columnspacing=1.2)
    return figure


# Runs ---------------------------------------------------------------------------------------------


def loss_curves(runs: Mapping[str, Sequence[float]], *, window: int) -> Figure:
    """Smoothed training losses by upsampling.

    Args:
        runs: by upsampling: smoothed losses (nats).
        window: steps in each of these means.
    """
    figure = new_figure(3.0)
    axis = figure.subplots()
    for name, values in runs.items():
        axis.plot(
            range(window, window + len(values)),
            values,
            color=UP_COLORS[name],
            linestyle=UP_STYLES[name],
            linewidth=2,
            label=PAPERS_NAMES[name],
        )
    axis.set_ylim(0, None)
    axis.set_xlabel(f"step (mean of the last {window})")
    axis.set_ylabel("training loss, nats")
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axis.legend(frameon=False, loc="upper right", ncols=2)
    return figure


def boundary_scores(
    trimaps: Mapping[str, Mapping[int, float]], everywhere: Mapping[str, float], share: Mapping[int, float]
) -> Figure:
    """mIoU within some distance of a boundary, and everywhere.

    Args:
        trimaps: by upsampling, by distance in pixels: a fraction.
        everywhere: by upsampling: the mIoU of all pixels.
        share: of the pixels by distance.
    """
    figure = new_figure(3.7)
    left, right = figure.subplots(1, 2, width_ratios=[2.6, 1], sharey=True)
    shifts = dict(zip(trimaps, np.linspace(-0.24, 0.24, len(trimaps)), strict=True))
    for name, values in trimaps.items():
        style = {"color": UP_COLORS[name], "marker": UP_MARKS[name]}
        widths = list(values)
        left.plot(
            widths,
            [100 * values[w] for w in widths],
            linestyle=UP_STYLES[name],
            linewidth=2.6 if name == "none" else 1.8,
            zorder=4 if name == "none" else 3,  # dots on a line show both
            label=PAPERS_NAMES[name],
            **style,
        )
        right.plot(shifts[name], 100 * everywhere[name], linestyle="none", markersize=9, **style)
    widths = list(share)
    left.set_xticks(widths, [f"{w}\n{100 * share[w]:.0f} %" for w in widths])
    left.set_xlabel("at most so many pixels from a boundary; below, the share of the pixels")
    left.set_ylabel("mIoU, %")
    left.set_ylim(0, 115 * max(*everywhere.values(), *(max(values.values()) for values in trimaps.values())))
    left.set_title("near boundaries")
    left.legend(frameon=False, loc="lower right", ncols=2)
    right.set_title("everywhere")
    right.set_xlim(-0.6, 0.6)
    right.set_xticks([])
    right.set_xlabel("all pixels, 100 %")
    return figure
