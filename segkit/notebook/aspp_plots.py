"""The figures of notebook 07: heads, what they touch, similarities, what layers are for.

See `segkit.notebook.plots`. Fractions come in and percent is drawn; only numbers that the paper prints in
percent come in as they are.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Patch, Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from segkit.notebook.aspp import Head, Student
from segkit.notebook.plots import BLUE, COLORS, GREEN, GREY, ORANGE, margins, new_figure

UNSEEN, SEEN = "#ececec", BLUE
LINES = ((BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, "-.", "^"), (COLORS[4], ":", "D"))
CHANGES = "PuOr"  # diverging, and told apart by color-blind readers: orange down, purple up
HEAT = "cividis"
HIT, MISS = "#9cc3e0", "#f6cf98"


def _thousands(axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_minor_locator(NullLocator())


def _bare(axis: Axes) -> None:
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _rows(axis: Axes, names: Sequence[str]) -> None:
    """One row a name, the first on top."""
    axis.set_yticks(range(len(names)), list(names))
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)


# What a head sees ---------------------------------------------------------------------------------


def _box(axis: Axes, x: float, y: float, text: str, below: str, color: str) -> None:
    size = (0.62, 0.5)
    corner = (x - size[0] / 2, y - size[1] / 2)
    axis.add_patch(
        FancyBboxPatch(corner, *size, boxstyle="round,pad=0.02", facecolor=color, edgecolor=GREY, zorder=3)
    )
    axis.text(x, y + 0.07, text, ha="center", va="center", fontsize=9, zorder=4)
    axis.text(x, y - 0.13, below, ha="center", va="center", fontsize=9, weight="bold", zorder=4)


def wiring(parallel: Head, dense: Head) -> Figure:
    """Both heads as boxes and arrows, with the field of each layer's output in its box.

    Args:
        parallel: layers side by side.
        dense: the same kind of layers, each of which reads all that is before it.
    """
    figure = new_figure(3.7)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.75])
    light, mild, pale = "#cfe3f1", "#f8e3c4", "#e6e6e6"
    style = {"arrowstyle": "-|>", "mutation_scale": 9, "color": GREY, "linewidth": 1, "zorder": 1}

    n = len(parallel.dilations)
    heights = [0.78 * ((n - 1) / 2 - i) for i in range(n)]
    for height, dilation, tap in zip(heights, parallel.dilations, parallel.taps, strict=True):
        _box(left, 1.25, height, f"d = {dilation}", str(tap), light)
        for start, end in (((0.33, 0), (0.92, height)), ((1.58, height), (2.17, 0))):
            left.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **style))
    left.add_patch(FancyArrowPatch((0.33, 0), (2.17, 0), shrinkA=0, shrinkB=0, **style))
    _box(left, 0, 0, "input", "1", pale)
    _box(left, 2.5, 0, "concat", str(parallel.size), mild)
    left.set(xlim=(-0.45, 2.95), ylim=(-1.6, 1.6))
    left.set_title(f"side by side: ASPP{parallel.dilations}")

    n = len(dense.dilations)
    names = ["input", *(f"d = {d}" for d in dense.dilations), "concat"]
    fields = ["1", *map(str, dense.taps), str(dense.size)]
    for at, (name, size) in enumerate(zip(names, fields, strict=True)):
        _box(right, at, 0, name, size, light if 0 < at <= n else pale if at == 0 else mild)
    for start in range(n + 1):
        for end in range(start + 1, n + 2):
            if end == start + 1:
                ends, bend = ((start + 0.34, 0), (end - 0.34, 0)), "arc3"
            else:  # those into the concatenation below, those into layers above
                side = -1 if end == n + 1 else 1
                ends = ((start, side * 0.27), (end, side * 0.27))
                bend = f"arc3,rad={-side * (0.25 + 0.25 / (end - start))}"
            right.add_patch(FancyArrowPatch(*ends, connectionstyle=bend, shrinkA=0, shrinkB=0, **style))
    right.set(xlim=(-0.45, n + 1.45), ylim=(-1.9, 1.9))
    right.set_title(f"densely connected: DenseASPP{dense.dilations}")
    for axis in (left, right):
        _bare(axis)
        axis.set_xlabel("in bold: field of what a box puts out, cells")
    return figure


def rugs(heads: Mapping[str, Head], printed: Mapping[str, int]) -> Figure:
    """The distinct fields of all ways through heads, a stroke each, and their number.

    Args:
        heads: by name.
        printed: by name, the field that the paper prints, cells.
    """
    figure = new_figure(0.85 + 0.42 * len(heads))
    axis = figure.subplots()
    most = max(head.scales[-1] for head in heads.values())
    for at, (name, head) in enumerate(heads.items()):
        axis.barh(at, head.size, height=0.62, color=UNSEEN, zorder=1)
        color = BLUE if head.dense else ORANGE
        for size in head.scales:
            axis.plot([size, size], [at - 0.31, at + 0.31], color=color, linewidth=2, zorder=2)
        text = f"{len(head.scales)} scales up to {head.size}"
        text += f" (printed {printed[name]})" if name in printed else ""
        axis.annotate(text, (most, at), (10, 0), textcoords="offset points", va="center", fontsize=9)
    _rows(axis, [f"{name} {head.dilations}" for name, head in heads.items()])
    axis.set_xlim(0, 1.42 * most)
    axis.xaxis.set_major_locator(FixedLocator([1, 25, 49, 73, 97, 121, 145]))
    axis.set_xlabel("field of a way through the head, cells")
    return figure


def masks(heads: Mapping[str, Head]) -> Figure:
    """The cells that heads touch, on one grid: touched ones blue, the rest of the field grey."""
    side = max(head.size for head in heads.values())
    figure = new_figure(0.75 + 9 / len(heads))
    for axis, (name, head) in zip(
        figure.subplots(1, len(heads), squeeze=False)[0], heads.items(), strict=True
    ):
        half = head.size / 2
        square = {"xy": (-half, -half), "width": head.size, "height": head.size}
        whole = bool(head.mask.all())
        axis.add_patch(
            Rectangle(**square, facecolor=SEEN if whole else UNSEEN, edgecolor=GREY, linewidth=0.8)
        )
        if not whole:
            places = head.mask.nonzero().numpy() - half
            cells = [Rectangle((x, y), 1, 1) for y, x in places]
            axis.add_collection(PatchCollection(cells, facecolor=SEEN, edgecolor="none", snap=False))
        axis.set(xlim=(-side / 2 - 1, side / 2 + 1), ylim=(-side / 2 - 1, side / 2 + 1), aspect="equal")
        _bare(axis)
        axis.set_title(f"{name}\n{head.dilations}", fontsize=9.5)
        share = "all" if whole else f"{100 * head.coverage:.1f} %"
        axis.set_xlabel(f"field {head.size} cells,\n{share} of it touched")
    return figure


def filling(sides: Sequence[int], shares: Mapping[str, Sequence[float]], fields: Mapping[str, int]) -> Figure:
    """How much of a field is touched when the cells below have seen a square already.

    Args:
        sides: of that square, cells.
        shares: by head, one fraction a side.
        fields: by backbone, what its features see of the image, px.
    """
    figure = new_figure(3.2)
    axis = figure.subplots()
    for (name, values), (color, style, mark) in zip(shares.items(), LINES, strict=False):
        axis.plot(
            range(len(sides)),
            [100 * v for v in values],
            style,
            color=color,
            marker=mark,
            label=name,
            linewidth=2,
        )
    axis.set_xticks(range(len(sides)), [f"{side}\n{8 * side} px" for side in sides])
    axis.set(ylim=(0, 108), xlabel="side of the square that each cell has seen below the head, cells and px")
    axis.set_ylabel("touched of the field\nof both together, %")
    axis.legend(loc="lower right", frameon=True, title=_backbones(fields), title_fontsize=9)
    axis.yaxis.set_major_locator(FixedLocator([0, 25, 50, 75, 100]))
    return figure


def _backbones(fields: Mapping[str, int]) -> str:
    return "\n".join(f"{name} sees {size:,} px" for name, size in fields.items())


# Table 1 ------------------------------------------------------------------------------------------


def students(rows: Mapping[str, Student]) -> Figure:
    """Table 1's models by parameters, field, share touched, scales, work, and printed mIoU.

    Args:
        rows: by name.
    """
    panels = (
        ("parameters, M", lambda s: s.params / 1e6, "{:.2f}", BLUE),
        ("field, cells", lambda s: s.head.size, "{:.0f}", BLUE),
        ("touched, %", lambda s: 100 * s.head.coverage, "{:.1f}", BLUE),
        ("scales", lambda s: len(s.head.scales), "{:.0f}", BLUE),
        ("multiply-adds, G", lambda s: s.gmacs, "{:.1f}", BLUE),
        ("printed mIoU, %", lambda s: s.val, "{:.1f}", ORANGE),
    )
    figure = new_figure(0.9 + 0.36 * len(rows))
    names = [f"{name}, {h}x{w}" for name, (h, w) in ((n, s.image_size) for n, s in rows.items())]
    for axis, (label, value, form, color) in zip(
        figure.subplots(1, len(panels), sharey=True), panels, strict=True
    ):
        values = [value(student) for student in rows.values()]
        axis.barh(range(len(rows)), values, color=color, height=0.62)
        for at, number in enumerate(values):
            text = form.format(number)
            axis.annotate(text, (number, at), (3, 0), textcoords="offset points", va="center", fontsize=9)
        axis.set_xlim(0, 1.75 * max(values))
        axis.set_xlabel(label, fontsize=9.5)
        axis.set_xticks([])
        _rows(axis, names)
    return figure


# Which IoU ----------------------------------------------------------------------------------------


def matrices(matrix, names: Sequence[str], values: Mapping[str, float]) -> Figure:
    """One confusion matrix three times, with the cells that each mean IoU counts.

    Args:
        matrix: counts (K, K), rows are the truth; the last class is background.
        names: of the classes.
        values: by name of the mean: iou20, iou19_official, iou19, in this order; fractions.
    """
    counts, last = np.asarray(matrix), len(names) - 1
    figure = new_figure(3.8)
    for which, (axis, (title, value)) in enumerate(zip(figure.subplots(1, 3), values.items(), strict=True)):
        for row in range(len(names)):
            for column in range(len(names)):
                hit, alone = row == column, row == column == last
                out = (which == 1 and row == last) or (which == 2 and alone)
                color = "white" if out else HIT if hit else MISS
                axis.add_patch(
                    Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=color, edgecolor=GREY, linewidth=0.8)
                )
                ink = "#9a9a9a" if out else "black"
                axis.text(
                    column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=9, color=ink
                )
        axis.set(xlim=(-0.5, last + 0.5), ylim=(last + 0.5, -0.5), aspect="equal", xlabel="predicted")
        axis.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(names)), names)
        axis.grid(visible=False)
        axis.set_title(f"{title}: {100 * value:.1f} %")
    figure.axes[0].set_ylabel("truth")
    kinds = (("hits", HIT), ("misses and false alarms", MISS), ("left out", "white"))
    handles = [Patch(facecolor=color, edgecolor=GREY, label=name) for name, color in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


# Similarity ---------------------------------------------------------------------------------------


def draw_similarity(
    figure: FigureBase,
    image,
    points: Sequence[tuple[int, int]],
    chosen: int,
    heat,
    *,
    name: str,
    shares: tuple[float, float],
    cell: int = 8,
) -> None:
    """A picture with its marked points, beside the similarity to one of them: for explorers.

    Args:
        figure: an empty figure, or a part of one.
        image: uint8 (3, H, W).
        points: (row, column) of cells.
        chosen: which of them, from 0 on.
        heat: cosine of each cell (H / cell, W / cell).
        name: of the chosen point's class.
        shares: mean cosine over its class, and over all other cells.
        cell: px.
    """
    small = figure.bbox.width / figure.dpi < 6  # part of a static twin
    edges = margins(figure, left=0.05, right=0.6 if small else 0.75, bottom=0.05, top=0.24 if small else 0.3)
    left, right = figure.subplots(1, 2, gridspec_kw={**edges, "wspace": 0.03})
    picture = np.asarray(image).transpose(1, 2, 0)
    height, width = picture.shape[:2]
    left.imshow(picture)
    drawn = right.imshow(
        np.asarray(heat),
        cmap=HEAT,
        norm=Normalize(-1, 1),
        extent=(0, width, height, 0),
        interpolation="nearest",
    )
    for axis in (left, right):
        for at, (row, column) in enumerate(points):
            x, y = cell * (column + 0.5), cell * (row + 0.5)
            mine = at == chosen
            if axis is right and not mine:
                continue
            radius = (0.055 if small else 0.037) * height
            face, ink = ("black", "white") if mine else ("white", "black")
            axis.add_patch(Circle((x, y), radius, facecolor=face, edgecolor=ink, linewidth=0.8))
            size = {"fontsize": 6 if small else 8, "weight": "bold", "color": ink}
            axis.text(x, y, str(at + 1), ha="center", va="center_baseline", **size)
        axis.set(xlim=(0, width), ylim=(height, 0))
        _bare(axis)
    inside, outside = shares
    mean = f"{name} {inside:.2f}, all else {outside:.2f}"
    size = 8 if small else 9.5
    left.set_title(f"point {chosen + 1}: {name}", fontsize=size, y=1.0)
    right.set_title(mean if small else f"mean cosine: {mean}", fontsize=size, y=1.0)
    place = right.get_position()
    bar = figure.add_axes((place.x1 + 0.012, place.y0, 0.012, place.height))
    figure.colorbar(drawn, cax=bar, ticks=[-1, 0, 1])
    bar.tick_params(labelsize=7 if small else 8.5)
    bar.set_ylabel("cosine", fontsize=7 if small else 9, labelpad=1)


# What layers are for ------------------------------------------------------------------------------


def class_changes(names: Sequence[str], changes: Mapping[str, Sequence[float]]) -> Figure:
    """What happens to the IoU of each class, as colors and numbers.

    Args:
        names: of the classes, one column each.
        changes: by row title, one fraction a class: a difference of IoU.
    """
    table = 100 * np.array(list(changes.values()))
    figure = new_figure(1.35 + 0.36 * len(table))
    axis = figure.subplots()
    limit = np.nanmax(np.abs(table))
    axis.imshow(table, cmap=CHANGES, norm=Normalize(-limit, limit), aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        ink = "white" if abs(value) > 0.75 * limit else "black"
        text = "" if math.isnan(value) else f"{value:+.0f}" if round(value) else "0"
        axis.text(column, row, text, ha="center", va="center", fontsize=8.5, color=ink)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(table)), list(changes))
    axis.grid(visible=False)
    axis.set_title("change of IoU, percentage points")
    return figure


def by_area(edges: Sequence[float], counts: Sequence[int], shares: Mapping[str, Sequence[float]]) -> Figure:
    """How much of an object is found, by its area.

    Args:
        edges: between the bins, px.
        counts: objects in each bin.
        shares: by name of a network, one fraction a bin.
    """
    figure = new_figure(3.4)
    axis = figure.subplots()
    styles = ((GREY, "-", "o"), *LINES)
    for (name, values), (color, style, mark) in zip(shares.items(), styles, strict=False):
        axis.plot(range(len(counts)), [100 * v for v in values], style, color=color, marker=mark, label=name)
    texts = [f"below {edges[0]:,g} px"]
    texts += [f"{low:,g} to {high:,g} px" for low, high in itertools.pairwise(edges)]
    texts += [f"{edges[-1]:,g} px or more"]
    names = [f"{text}\n{count} objects" for text, count in zip(texts, counts, strict=True)]
    axis.set_xticks(range(len(counts)), names)
    axis.set(ylim=(0, 100), xlim=(-0.3, len(counts) - 0.7), xlabel="area of a single object")
    axis.set_ylabel("share of an object's pixels\nthat are labelled right, mean, %")
    axis.legend(frameon=False, title="layers removed", loc="upper left", bbox_to_anchor=(1, 1))
    return figure


Box = tuple[float, float, float, float]  # left, bottom, right, top


def _shared(one: Box, other: Box) -> float:
    """The area that two boxes have in common."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, wide) * max(0.0, high)


def _beside(
    points: Mapping[str, tuple[float, float]], width: float, height: float
) -> dict[str, tuple[float, float]]:
    """Where to write the names of points, in inches from each, so that they cover little of each other.

    Args:
        points: by name, in inches.
        width: of the axes, inches, which names do not leave if they need not; likewise ``height``.
    """
    outside = [(-9, -9, 0, 99), (width, -9, 99, 99), (-9, -9, 99, 0), (-9, height, 99, 99)]
    taken = outside + [(x - 0.07, y - 0.07, x + 0.07, y + 0.07) for x, y in points.values()]
    found = {}
    for name, (x, y) in points.items():
        wide, high = 0.083 * len(name), 0.15
        choices = [(0.1, -0.075), (-0.1 - wide, -0.075), (-wide / 2, 0.09), (-wide / 2, -0.24)]
        choices += [(0.08, 0.06), (0.08, -0.2), (-0.08 - wide, 0.06), (-0.08 - wide, -0.2)]
        boxes = [(x + a, y + b, x + a + wide, y + b + high) for a, b in choices]
        costs = [sum(_shared(box, other) for other in taken) for box in boxes]
        best = costs.index(min(costs))
        taken.append(boxes[best])
        found[name] = choices[best]
    return found


def iou_against_area(points: Mapping[str, tuple[float, float]], *, correlation: float) -> Figure:
    """IoU of each class against the median area of its objects.

    Args:
        points: by class: area in px, IoU as a fraction.
        correlation: of the ranks, -1 to 1.
    """
    figure = new_figure(4.0)
    axis = figure.subplots()
    areas = [area for area, _ in points.values()]
    left, right = 0.6 * min(areas), 2.6 * max(areas)
    axis.set_xscale("log")
    axis.set(xlim=(left, right), ylim=(-4, 104))
    width, height = 8.0, 3.1  # of the axes in inches, nearly
    inches = {
        name: (width * math.log(area / left) / math.log(right / left), height * (100 * iou + 4) / 108)
        for name, (area, iou) in points.items()
    }
    for name, (x, y) in _beside(inches, width, height).items():
        area, iou = points[name]
        axis.plot(area, 100 * iou, "o", color=BLUE, markersize=7)
        place = (72 * x, 72 * (y + 0.035))
        axis.annotate(name, (area, 100 * iou), place, textcoords="offset points", fontsize=9)
    axis.set_title(f"rank correlation {correlation:.2f}")
    axis.set(xlabel="median area of the class's objects, px (log scale)", ylabel="IoU, %")
    _thousands(axis.xaxis)
    axis.yaxis.set_major_locator(MaxNLocator(6))
    return figure
