"""The figures of notebook 02: a step as a hill, what is kept and rebuilt, memory against work done again.

Bytes come in, MiB are drawn. See `segkit.notebook.plots`.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from segkit.measure import PeakMemory
from segkit.notebook.dense import Kept
from segkit.notebook.dense_plots import KIND_COLORS, LIGHT
from segkit.notebook.plots import BLUE, GREEN, GREY, ORANGE, RED, margins, new_figure
from segkit.notebook.sweep import MIB, Card, Moment, Part, place_of, spoken, where

MATTERS = MIB  # bytes; the figures of a step leave out operators that allocate less


def _mark(label: str, marker: str, size: float, **style) -> Line2D:
    """A legend's entry for points."""
    return Line2D([], [], marker=marker, markersize=size, label=label, **{"linestyle": "", **style})


def _thousands(axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _say(axis: Axes, text: str, x: float, y: float, *, dx: float = 0, dy: float = 0, **style) -> None:
    """Text beside a point, so many typographic points away."""
    style = {"fontsize": 8.5, "va": "center"} | style
    axis.annotate(text, (x, y), (dx, dy), textcoords="offset points", **style)


# Steps --------------------------------------------------------------------------------------------


def hills(steps: Mapping[str, PeakMemory]) -> Figure:
    """The memory of training steps, operator by operator, by kind; all on one scale, each peak flagged.

    Args:
        steps: by title, from top to bottom.
    """
    figure = new_figure(0.75 + 2.65 * len(steps))
    panels = figure.subplots(len(steps), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    longest = max(len(_moments(peak)) for peak in steps.values())
    for axis, (title, peak) in zip(panels, steps.items(), strict=True):
        _draw_hill(axis, peak, longest)
        axis.set_title(title, loc="left", pad=18)
        axis.set_ylabel("alive, MiB")
    panels[0].set_xlim(0, 1.01 * longest)
    panels[0].set_ylim(0, 1.16 * max(peak.total for peak in steps.values()) / MIB)
    _thousands(panels[0].yaxis)
    panels[-1].set_xlabel("operators that allocate 1 MiB or more, in the order in which they run")
    kinds = [kind for kind in KIND_COLORS if any(max(p.timeline.bytes[kind]) for p in steps.values())]
    handles = [Patch(color=KIND_COLORS[kind], label=kind) for kind in kinds]
    if any("recompute" in peak.timeline.phases for peak in steps.values()):
        handles.append(Patch(color=ORANGE, label="rebuilding"))
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=len(handles),
        frameon=False,
        fontsize=8.5,
        columnspacing=1.1,
        handlelength=1.2,
    )
    return figure


def _moments(peak: PeakMemory) -> list[int]:
    """Entries of a timeline that are drawn: where much is allocated, the peak, the end."""
    always = (peak.timeline.peak, len(peak.timeline) - 1)
    entries = enumerate(peak.timeline.allocated)
    return [i for i, size in entries if size >= MATTERS or i in always]


def _draw_hill(axis: Axes, peak: PeakMemory, longest: int) -> None:
    timeline, moments = peak.timeline, _moments(peak)
    highest, totals = timeline.peak, np.array(timeline.total)
    at, steps = moments.index(highest), np.arange(len(moments))
    # A pixel that stands for several moments shows the highest of them, or thin spikes would vanish.
    wide = max(1, round(longest / 750))
    groups = [moments[i : i + wide] for i in range(0, len(moments), wide)]
    shown = [group[int(totals[group].argmax())] for group in groups]
    edges = np.append(steps[::wide], len(moments))
    below = np.zeros(len(shown) + 1)
    for kind, color in KIND_COLORS.items():
        values = np.array(timeline.bytes[kind])[shown] / MIB
        above = below + np.append(values, values[-1])
        if above.any():
            axis.fill_between(edges, below, above, step="post", color=color, linewidth=0)
        below = above
    phases = np.array(timeline.phases)[moments]
    low, top = 0.02, axis.get_xaxis_transform()  # share of the axis
    again = {"where": phases == "recompute", "step": "post", "color": ORANGE, "linewidth": 0}
    axis.fill_between(steps, 0, low, transform=top, zorder=3, **again)
    turn = int(np.flatnonzero(phases == "forward")[-1])
    axis.axvline(turn, color=GREY, linewidth=1, linestyle=":")
    middles = {"forward": turn / 2, "backward": (turn + len(moments)) / 2}
    for phase, middle in middles.items():
        axis.text(middle, 1.03, phase, transform=top, ha="center", va="bottom", color=GREY, fontsize=9)
    axis.grid(axis="x", visible=False)
    total = peak.total / MIB
    axis.vlines(at, 0, total, color=RED, linewidth=1.3, zorder=4)
    axis.plot([at], [total], marker="v", markersize=8, color=RED, markeredgecolor="white", zorder=5)
    left = at > 0.62 * longest
    _say(
        axis,
        f"peak: {total:,.0f} MiB\n{where(peak)}",
        at,
        total,
        dx=-12 if left else 12,
        dy=7,
        ha="right" if left else "left",
        fontsize=9,
        weight="bold",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1},
    )


def around(peak: PeakMemory, *, before: int = 6, after: int = 4) -> Figure:
    """The operators around the peak of a step, a bar each, by kind.

    Args:
        peak: of the step.
        before: operators to show before it.
        after: and after it.
    """
    timeline, moments = peak.timeline, _moments(peak)
    at = moments.index(timeline.peak)
    shown = moments[max(0, at - before) : at + after + 1]
    figure = new_figure(0.85 + 0.27 * len(shown))
    axis = figure.subplots()
    for y, i in enumerate(shown):
        left = 0.0
        for kind, color in KIND_COLORS.items():
            width = timeline.bytes[kind][i] / MIB
            axis.barh(y, width, left=left, color=color, height=0.72, linewidth=0)
            left += width
        highest = i == timeline.peak
        text = f"{left:,.0f}" + "  peak" * highest
        _say(axis, text, left, y, dx=5, weight="bold" if highest else "normal")
    words = {"recompute": "rebuilding"}
    names = [
        f"{place_of(timeline.modules[i])}, {words.get(timeline.phases[i], timeline.phases[i])}: "
        f"{spoken(timeline.operators[i])}"
        for i in shown
    ]
    axis.set_yticks(range(len(shown)), names)
    axis.set_ylim(len(shown) - 0.45, -0.55)
    axis.set_xlim(0, 1.14 * peak.total / MIB)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("alive, MiB (colors as above)")
    _thousands(axis.xaxis)
    return figure


def toy_dots(steps: Mapping[str, Sequence[Moment]]) -> Figure:
    """Which inputs of a chain's layers are there, moment by moment.

    Args:
        steps: by title: the moments of a backward pass (`sweep.toy_step`).
    """
    rows = max(len(moments) for moments in steps.values())
    figure = new_figure(1.35 + 0.27 * rows)
    panels = figure.subplots(1, len(steps), sharey=True)
    for axis, (title, moments) in zip(panels, steps.items(), strict=True):
        layers = max(max(moment.kept | moment.rebuilt) for moment in moments)
        layers = max(layers, len(moments) - 1)
        most = max(moment.live for moment in moments)
        groups = {"kept": [], "rebuilt": [], "gone": []}
        for y, moment in enumerate(moments):
            for layer in range(1, layers + 1):
                found = [name for name in ("kept", "rebuilt") if layer in getattr(moment, name)]
                groups[found[0] if found else "gone"].append((layer, y))
            weight = "bold" if moment.live == most else "normal"
            axis.text(
                layers + 1.1, y, str(moment.live), va="center", ha="center", fontsize=9.5, weight=weight
            )
        styles = {
            "kept": {"color": BLUE},
            "rebuilt": {"color": ORANGE, "marker": "s"},
            "gone": {"facecolor": "white", "edgecolor": "#bbbbbb"},
        }
        for name, points in groups.items():
            if points:
                axis.scatter(*zip(*points, strict=True), s=62, linewidth=1, zorder=3, **styles[name])
        axis.text(layers + 1.1, -1.05, "alive", va="center", ha="center", fontsize=9)
        axis.set_title(title)
        axis.set_xticks(range(1, layers + 1))
        axis.set_xlim(0.3, layers + 1.7)
        axis.set_xlabel("input of layer")
        axis.grid(visible=False)
        axis.set_yticks(range(len(moments)), [moment.name for moment in moments])
        for spine in ("left", "bottom"):
            axis.spines[spine].set_visible(False)
    panels[0].set_ylim(rows - 0.4, -1.5)
    handles = [
        _mark("kept in the forward pass", "o", 8, color=BLUE),
        _mark("computed again", "s", 7.5, color=ORANGE),
        _mark("not there", "o", 8, markerfacecolor="white", markeredgecolor="#bbbbbb"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


# What a segment is --------------------------------------------------------------------------------

_TENSORS = ("the list", "concatenated", "BN-ReLU", "after 1x1", "BN-ReLU", "after 3x3")
_OPERATORS = ("cat", "BN-ReLU", "1x1", "BN-ReLU", "3x3")
_SPANS = {"cat1x1": (0, 3), "3x3": (3, 5), "unit": (0, 5)}  # from which tensor to which a segment leads


def unit_labels(rows: Mapping[str, Kept], maps: int, k: int) -> Figure:
    """A dense unit under each label: its segments, which of its tensors are kept and which computed again.

    Args:
        rows: by the labels of ``recompute``, "none" for no label: what autograd keeps (`sweep.kept_of_unit`).
        maps: that the unit reads.
        k: maps that it adds.
    """
    figure = new_figure(1.25 + 0.56 * len(rows))
    axis = figure.subplots()
    channels = (maps, maps, maps, 4 * k, 4 * k, k)
    for y, (label, found) in enumerate(rows.items()):
        there = {_position(saved.channels, saved.source, maps) for saved in found}
        own = sum(saved.channels for saved in found if saved.source != "input")
        axis.plot([0, 5], [y, y], color="#d5d5d5", linewidth=1.2, zorder=1)
        for part in label.split(","):
            if part in _SPANS:
                a, b = _SPANS[part]
                box = Rectangle((a + 0.17, y - 0.3), b - a - 0.34, 0.6, facecolor="#fbe3cf", edgecolor=ORANGE)
                box.set(linewidth=1.1, zorder=2)
                axis.add_patch(box)
        for x in range(6):
            style = {"facecolor": "white", "edgecolor": "#999999"}
            if x in (0, 5):  # other units keep these too: they are on the shared list
                style = {"color": LIGHT}
            elif x in there:
                style = {"color": BLUE}
            axis.scatter(x, y, s=110, linewidth=1.3, zorder=3, **style)
        axis.text(5.35, y, f"{own:,.0f}", va="center", ha="left", fontsize=10)
    for x, name in enumerate(_OPERATORS):
        axis.text(x + 0.5, -0.62, name, ha="center", va="center", fontsize=9, style="italic", color=GREY)
    axis.text(5.35, -0.62, "channels kept", ha="left", va="center", fontsize=9)
    names = [f"{name}\n{count} maps" for name, count in zip(_TENSORS, channels, strict=True)]
    axis.set_xticks(range(6), names, fontsize=9)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set_xlim(-0.35, 6.3)
    axis.set_ylim(len(rows) - 0.45, -0.95)
    axis.grid(visible=False)
    for spine in ("left", "bottom"):
        axis.spines[spine].set_visible(False)
    handles = [
        _mark("kept for this unit", "o", 9, color=BLUE),
        _mark("not kept", "o", 9, markerfacecolor="white", markeredgecolor="#999999"),
        _mark("on the shared list", "o", 9, color=LIGHT),
        Patch(facecolor="#fbe3cf", edgecolor=ORANGE, label="a segment"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _position(channels: float, source: str, maps: int) -> int:
    """Which of `_TENSORS` a kept tensor is."""
    if source == "BN-ReLU":
        return 2 if channels == maps else 4
    return {"input": 0, "concatenation": 1, "convolution": 3}[source]


# Tables -------------------------------------------------------------------------------------------


def dumbbells(rows: Sequence[tuple[str, float | None, float, bool]], *, xlabel: str) -> Figure:
    """What the paper prints and what we get, a row each.

    Args:
        rows: (label, paper, ours, whether they agree); paper None where it has no such row.
        xlabel: what is on the axis, with its unit.
    """
    figure = new_figure(1.05 + 0.34 * len(rows))
    axis = figure.subplots()
    widest = max(max(ours, paper or 0) for _, paper, ours, _ in rows)
    for y, (_, paper, ours, agrees) in enumerate(rows):
        color = BLUE if agrees else ORANGE
        if paper is not None:
            axis.plot([paper, ours], [y, y], color=color, linewidth=2.2, zorder=2)
            axis.scatter(paper, y, s=62, facecolor="white", edgecolor="black", linewidth=1.5, zorder=3)
        axis.scatter(ours, y, s=62, color=color, marker="o" if agrees else "D", zorder=4)
        text = f"{ours:,.0f}" if paper is None else f"{paper:,.0f} | {ours:,.0f}  ({ours / paper - 1:+.1%})"
        _say(axis, text, max(ours, paper or 0), y, dx=9, fontsize=9)
    axis.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(0, 1.38 * widest)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(xlabel)
    _thousands(axis.xaxis)
    handles = [
        _mark("paper", "o", 7.5, markerfacecolor="white", markeredgecolor="black"),
        _mark("ours", "o", 7.5, color=BLUE),
    ]
    if not all(agrees for *_, agrees in rows):
        handles.append(_mark("ours, outside the tolerance", "D", 7, color=ORANGE))
    figure.legend(handles=handles, loc="outside upper right", ncols=3, frameon=False)
    return figure


def memory_against_work(
    rows: Sequence[tuple[str, float, float, float]], paper: Sequence[tuple[float, float]]
) -> Figure:
    """Memory of the paper's rows against the convolutions that they do again.

    Args:
        rows: (label, MiB, share of a step's multiply-adds that is done again, the same without early stop).
        paper: of the same rows, (MB, extra time of a step as a share), drawn as marks of their own; or none.
    """
    figure = new_figure(4.4)
    axis = figure.subplots()
    times = [slower for _, slower in paper] or [0.0] * len(rows)
    for (label, mib, again, full), slower in zip(rows, times, strict=True):
        axis.plot([100 * again, 100 * full], [mib, mib], color=BLUE, linewidth=1, linestyle=":", zorder=1)
        axis.scatter(100 * full, mib, s=36, facecolor="white", edgecolor=BLUE, linewidth=1.3, zorder=2)
        axis.scatter(100 * again, mib, s=60, color=BLUE, zorder=3)
        _say(axis, label, 100 * max(full, slower), mib, dx=10, fontsize=9)
    for printed, slower in paper:
        axis.scatter(100 * slower, printed, s=60, marker="x", color=ORANGE, linewidth=2, zorder=3)
    axis.set_xlim(-1.5, 56)
    axis.set_ylim(0, 1.08 * max(mib for _, mib, *_ in rows))
    axis.set_xlabel(
        "extra, % of a step: multiply-adds of convolutions (blue), time on the paper's GPU (orange)"
    )
    axis.set_ylabel("peak memory, MiB")
    _thousands(axis.yaxis)
    handles = [
        _mark("convolutions done again", "o", 7.5, color=BLUE),
        _mark("the same without early stop", "o", 6, color=BLUE, markerfacecolor="white", linestyle=":"),
        _mark("the paper's time", "x", 7.5, color=ORANGE, markeredgewidth=2),
    ]
    axis.legend(handles=handles, loc="upper right", frameon=False)
    return figure


def way_down(rows: Sequence[tuple[str, float, float]]) -> Figure:
    """One measure after the other: memory left, and the work that is done again.

    Args:
        rows: (what was added, MiB, GMAC done again), from top to bottom.
    """
    figure = new_figure(0.95 + 0.4 * len(rows))
    axis = figure.subplots()
    for y, (_, mib, gmac) in enumerate(rows):
        axis.barh(y, mib, height=0.62, color=BLUE)
        if y:
            saved = rows[y - 1][1] - mib
            if saved > 0.5:
                style = {"facecolor": "white", "edgecolor": BLUE, "hatch": "////", "linewidth": 0.9}
                axis.barh(y, saved, left=mib, height=0.62, **style)
            text = f"−{saved:,.0f}" if saved > 0.5 else "±0"
            _say(axis, text, rows[y - 1][1], y, dx=6, color=GREY, fontsize=9)
        _say(axis, f"{mib:,.0f} MiB", mib, y, dx=-6, ha="right", color="white", weight="bold", fontsize=9)
        _say(axis, f"{gmac:.1f} GMAC again", 0, y, dx=6, color="white", fontsize=9)
    axis.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, 1.12 * max(mib for _, mib, _ in rows))
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("peak memory, MiB")
    _thousands(axis.xaxis)
    return figure


# The planner --------------------------------------------------------------------------------------


def places(base: int, parts: Sequence[Part]) -> Figure:
    """Why the peak is where it is: what the parts before keep (K), and what each needs itself (T).

    Args:
        base: bytes that are always there.
        parts: in the order of the forward pass (`sweep.parts_of`).
    """
    figure = new_figure(3.3)
    axis = figure.subplots()
    x = np.arange(len(parts))
    fixed = np.full(len(parts), base / MIB)
    before = np.array([part.before for part in parts]) / MIB
    need = np.array([part.need for part in parts]) / MIB
    axis.bar(x, fixed, 0.86, color=LIGHT, label="always there")
    axis.bar(x, before, 0.86, bottom=fixed, color=BLUE, label="K of all parts before")
    axis.bar(x, need, 0.86, bottom=fixed + before, color=ORANGE, label="T: what it needs itself")
    top = fixed + before + need
    axis.axhline(top.max(), color=RED, linewidth=1.2, linestyle="--")
    _say(
        axis,
        f"peak: {top.max():,.0f} MiB",
        x[0] - 0.43,
        top.max(),
        dy=8,
        color=RED,
        weight="bold",
        fontsize=9,
    )
    axis.set_xticks(x, [part.name for part in parts])
    axis.set_xlim(-0.6, len(parts) - 0.4)
    axis.set_ylim(0, 1.14 * top.max())
    axis.grid(axis="x", visible=False)
    axis.set_ylabel("alive, MiB")
    axis.set_xlabel("while this part runs, forwards, again or backwards")
    _thousands(axis.yaxis)
    figure.legend(loc="outside upper right", ncols=3, frameon=False)
    return figure


def frontiers(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    rows: Sequence[tuple[str, float, float]],
    ladder: Sequence[tuple[float, float]],
) -> Figure:
    """Memory against work done again: the planner's frontiers, the paper's rows, the way down.

    Args:
        lines: by name: the plans of a frontier as (GMAC, MiB).
        rows: the paper's, as (label, GMAC, MiB).
        ladder: the way down, as (GMAC, MiB).
    """
    figure = new_figure(4.6)
    axis = figure.subplots()
    styles = ((GREEN, "-", "o"), (BLUE, "-", "s"), (GREY, "-", "^"))
    for (name, plans), (color, line, marker) in zip(lines.items(), styles, strict=False):
        work, memory = zip(*plans, strict=True)
        axis.plot(
            work, memory, color=color, linestyle=line, marker=marker, markersize=5, linewidth=1.5, label=name
        )
    axis.scatter(
        [work for work, _ in ladder],
        [mib for _, mib in ladder],
        s=42,
        marker="D",
        facecolor="white",
        edgecolor="black",
        linewidth=1.2,
        zorder=4,
        label="the way down of section 7",
    )
    axis.scatter(
        [work for _, work, _ in rows],
        [mib for *_, mib in rows],
        s=64,
        color=ORANGE,
        zorder=5,
        label="the paper's rows",
    )
    for label, work, mib in rows:
        right = work > 150
        _say(
            axis, label, work, mib, dx=-8 if right else 9, dy=8, ha="right" if right else "left", fontsize=8.5
        )
    axis.set_yscale("log")
    ticks = [800, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 11000]
    axis.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_ylim(750, 13_000)
    axis.set_xlim(-5, 1.05 * max(work for _, work, _ in rows))
    axis.set_xlabel("convolutions done again in a step, GMAC")
    axis.set_ylabel("peak memory, MiB (log scale)")
    axis.legend(loc="upper right", frameon=False)
    return figure


# Measured -----------------------------------------------------------------------------------------


def side_by_side(rows: Sequence[tuple[str, float | None, float | None, bool]]) -> Figure:
    """Ways to checkpoint: memory, time, and whether the statistics of batch norms came out exact.

    Args:
        rows: (name, MiB or None, time relative to the plain step or None, exact), from top to bottom.
    """
    figure = new_figure(1.15 + 0.3 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    y = np.arange(len(rows))
    colors = [BLUE if exact else ORANGE for *_, exact in rows]
    memory = [row[1] or 0 for row in rows]
    left.barh(y, memory, 0.7, color=colors)
    for at, value in enumerate(memory):
        _say(left, f"{value:,.0f}" if value else "not simulated", value, at, dx=4)
    left.set_xlim(0, 1.22 * max(memory))
    left.set_xlabel("peak, MiB (batch 6, 768x768)")
    left.xaxis.set_major_locator(MaxNLocator(4))
    _thousands(left.xaxis)
    times = [row[2] or 0 for row in rows]
    right.barh(y, times, 0.7, color=colors)
    for at, value in enumerate(times):
        text = f"{value:.2f}" if value else "not timed"
        _say(right, text, max(value, 1) if value else 0, at, dx=4)  # not across the line at 1
    right.axvline(1, color="black", linewidth=1)
    right.set_xlim(0, 1.2 * max([*times, 1]))
    right.set_xlabel("time of a small step, plain = 1")
    names = [textwrap.fill(name, 42, break_long_words=False) for name, *_ in rows]
    left.set_yticks(y, names, fontsize=8.5)
    left.set_ylim(len(rows) - 0.45, -0.55)
    for axis in (left, right):
        axis.grid(axis="y", visible=False)
    handles = [
        Patch(color=BLUE, label="running statistics bit-equal to the plain step's"),
        Patch(color=ORANGE, label="running statistics differ"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False)
    return figure


def predicted_and_measured(rows: Sequence[tuple[str, float, float, float]]) -> Figure:
    """What a GPU measured beside the prediction.

    Args:
        rows: (name, MiB predicted, MiB measured, MiB of the largest workspace), from top to bottom.
    """
    figure = new_figure(1.05 + 0.24 * len(rows))
    axis = figure.subplots()
    errors = [100 * (found / predicted - 1) for _, predicted, found, _ in rows]
    reach = max(4, 1.1 * max(map(abs, errors)))
    axis.axvspan(-3, 3, color="#e8f0f7", zorder=0)
    for y, ((_, predicted, found, workspace), error) in enumerate(zip(rows, errors, strict=True)):
        axis.plot([0, error], [y, y], color=BLUE if abs(error) <= 3 else ORANGE, linewidth=1.6)
        axis.scatter(error, y, s=30, color=BLUE if abs(error) <= 3 else ORANGE, zorder=3)
        text = f"{predicted:,.0f} | {found:,.0f}" + (
            f"  (workspace {workspace:,.0f})" if workspace >= 1 else ""
        )
        axis.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=8.5)
    axis.axvline(0, color="black", linewidth=1)
    axis.set_xlim(-reach, reach)
    axis.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=8.5)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("measured beyond predicted, %; on the right MiB predicted | measured")
    return figure


def memory_map(card: Card, *, width: float = 512) -> Figure:
    """What the allocator holds of the card, segment by segment: in use, free, and what was asked for last.

    Args:
        card: see `segkit.notebook.sweep.fullest`.
        width: MiB in a row of the picture.
    """
    rows = math.ceil(sum(card.reserved) / width)
    figure = new_figure(max(2.4, 0.95 + 0.27 * rows))
    axis = figure.subplots()
    colors = {"in use": BLUE, "free": LIGHT, "asked": ORANGE}
    parts: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for begin, size, kind in card.pieces:
        while size > 1e-9:  # a piece goes on in the next row
            row, left = divmod(begin, width)
            part = min(size, width - left)
            parts.setdefault((kind, row), []).append((left, part))
            begin, size = begin + part, size - part
    for (kind, row), spans in parts.items():
        axis.broken_barh(spans, (row - 0.39, 0.78), color=colors[kind], linewidth=0)
    edges = np.cumsum(card.reserved)[:-1]
    axis.vlines(edges % width, edges // width - 0.39, edges // width + 0.39, color="white", linewidth=0.9)
    axis.set_xlim(0, width)
    axis.set_ylim(rows - 0.4, -0.6)
    axis.set_yticks(range(0, rows, 2), [f"{row * width:,.0f}" for row in range(0, rows, 2)])
    axis.set_ylabel("MiB taken from the card")
    axis.set_xlabel("MiB further on; white lines are between segments")
    axis.grid(visible=False)
    words = {"in use": "in use", "free": "free, in pieces", "asked": "asked for now"}
    handles = [
        Patch(color=color, label=f"{words[kind]}: {card.sum(kind):,.0f} MiB")
        for kind, color in colors.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
    return figure


def draw_batches(figure: FigureBase, batches: Mapping[int, int], paper: int | None, top: float) -> None:
    """The largest batch by GiB: for explorers.

    Args:
        figure: a figure or one of its parts.
        batches: GiB -> images in a batch.
        paper: the paper's, on a card of 12 GB; None where it has none.
        top: the axis ends here, so that states can be compared.
    """
    edges = margins(figure, left=0.75, right=0.2, bottom=0.3, top=0.28)
    axis = figure.subplots(gridspec_kw=edges)
    names = [f"{gib} GiB" for gib in batches]
    axis.bar(names, list(batches.values()), 0.62, color=BLUE)
    for x, count in enumerate(batches.values()):
        _say(axis, str(count), x, count, dy=8, ha="center", fontsize=10)
    if paper is not None and 12 in batches:
        x = list(batches).index(12)
        axis.hlines(paper, x - 0.42, x + 0.42, color="black", linewidth=2)
        axis.set_title(f"black: the paper's {paper} on its card of 12 GB", y=1.0, fontsize=9.5)
    axis.set_yscale("log")
    axis.set_yticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_ylim(0.8, 1.6 * top)
    axis.grid(axis="x", visible=False)
    axis.set_ylabel("largest batch")
