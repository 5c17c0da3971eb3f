"""The figures of notebook 05: fields, masks, Table 4, gradients. See `segkit.notebook.plots`."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from torch import Tensor

from segkit.measure.receptive_field import EffectiveField
from segkit.notebook import field
from segkit.notebook.field import Seen, Step, Three
from segkit.notebook.plots import BLUE, COLORS, GREEN, GREY, ORANGE, RED, margins, new_figure

STRIDE_COLORS = {1: BLUE, 2: GREEN, 4: ORANGE, 8: RED, 16: COLORS[4]}
UNSEEN, SEEN = "#ececec", BLUE
MARKS = ("o", "s", "^", "D")
GROUP_COLORS = (GREY, ORANGE, BLUE, GREEN)
# Where the names of networks stand in the map of the kit, in points from their dots.
KIT_SHIFTS = {
    "DDN121, 8↓": (9, -13),
    "LDN121 32→4": (-9, -1),
    "R50 + ASPP": (-9, -3),
    "RegSeg": (10, -10),
    "ResNet-101": (-9, -3),
    "SegNet": (-9, -3),
}


def _thousands(axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_minor_locator(NullLocator())


# Step by step -------------------------------------------------------------------------------------


def strips(steps: Sequence[Step]) -> Figure:
    """The field after each layer, as a strip centered on its pixel, colored by the stride it works at.

    Args:
        steps: of `segkit.notebook.field.steps`.
    """
    figure = new_figure(0.9 + 0.19 * len(steps))
    axis = figure.subplots()
    largest, used = steps[-1].size, []
    for at, step in enumerate(steps):
        before = steps[at - 1].stride if at else 1
        axis.barh(at, step.size, left=-step.size / 2, height=0.78, color=STRIDE_COLORS[before])
        used += [before] if before not in used else []
        axis.text(largest / 2 + 0.02 * largest, at, f"{step.size:,}", va="center", fontsize=8.5)
    names = [
        f"{step.layer.kernel} taps"
        + (f", dilation {step.layer.dilation}" if step.layer.dilation > 1 else "")
        + (f", stride {step.layer.stride}" if step.layer.stride > 1 else "")
        for step in steps
    ]
    axis.set_yticks(range(len(steps)), names, fontsize=8.5)
    axis.set(ylim=(len(steps) - 0.5, -0.5), xlim=(-0.52 * largest, 0.6 * largest))
    axis.set_xlabel("pixels of the image, from the field's center; right: size of the field, px")
    axis.grid(axis="y", visible=False)
    handles = [Patch(color=STRIDE_COLORS[s], label=f"steps of {s} px") for s in used]
    axis.legend(handles=handles, loc="upper left", frameon=False)
    return figure


def _draw_mask(axis: Axes, found: Three, side: int) -> None:
    """A mask in the middle of a square of ``side`` pixels: white outside of the field, grey untouched."""
    canvas = np.zeros((side, side))
    low = (side - found.size) // 2
    canvas[low : low + found.size, low : low + found.size] = 1 + found.mask.numpy()
    axis.imshow(canvas, cmap=ListedColormap(["white", UNSEEN, SEEN]), vmin=0, vmax=2, interpolation="nearest")
    edge = {"fill": False, "edgecolor": GREY, "linewidth": 0.8}
    axis.add_patch(Rectangle((low - 0.5, low - 0.5), found.size, found.size, **edge))
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)
    for spine in axis.spines.values():
        spine.set_visible(False)


def masks(found: Mapping[str, Three]) -> Figure:
    """Masks side by side on one grid: touched pixels blue, untouched ones of the field grey."""
    side = max(one.size for one in found.values())
    figure = new_figure(3.5)
    for axis, (name, one) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        _draw_mask(axis, one, side)
        axis.set_title(name)
        share = "all of it" if one.whole else f"{one.coverage:.2g} of it"
        axis.set_xlabel(f"field {one.size} px, touched: {share}")
    return figure


def growing(found: Mapping[str, Sequence[Tensor]]) -> Figure:
    """What the first layer, the first two, … touch of a row of pixels.

    Args:
        found: by title, the lines of `segkit.notebook.field.lines`.
    """
    figure = new_figure(1.0 + 0.24 * max(map(len, found.values())))
    side = max(len(rows[-1]) for rows in found.values())
    for axis, (name, rows) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        for at, row in enumerate(rows):
            for place, touched in enumerate(row.tolist()):
                x = place - (len(row) - 1) / 2
                style = {"facecolor": SEEN if touched else UNSEEN, "edgecolor": "white", "linewidth": 0.6}
                axis.add_patch(Rectangle((x - 0.5, at - 0.36), 1, 0.72, **style))
        axis.set(xlim=(-side / 2 - 0.5, side / 2 + 0.5), ylim=(len(rows) - 0.5, -0.5), title=name)
        axis.set_yticks(range(len(rows)), [f"after {at + 1}" for at in range(len(rows))])
        axis.set_xlabel("pixels from the center")
        axis.grid(visible=False)
    return figure


def draw_three(figure: FigureBase, d1: int = 2, d2: int = 2, d3: int = 2) -> None:
    """Three 3x3 convolutions: their mask, their field on a ruler, and each against the bound. For explorers.

    Args:
        figure: an empty figure, or a part of one.
        d1: dilation of the first, like ``d2`` and ``d3`` of the others.
    """
    found = field.three(d1, d2, d3)
    edges = margins(figure, left=0.1, right=0.35, bottom=0.66, top=0.3)
    left, ruler, right = figure.subplots(
        1, 3, gridspec_kw={**edges, "width_ratios": [1.1, 1, 1], "wspace": 0.35}
    )
    _draw_mask(left, found, found.size)
    share = "all" if found.whole else f"{found.coverage:.2g}"
    left.set_title(f"field {found.size} px, touched: {share}", fontsize=9)

    ruler.barh(0, found.size, color=SEEN if found.whole else ORANGE, height=0.5)
    needed = (field.across(8), field.across(16), field.across(32))
    for at, side in zip(needed, (8, 16, 32), strict=True):
        ruler.axvline(at, color=GREY, linewidth=1, linestyle=":")
        ruler.text(at, 0.62, f"{side}", ha="center", fontsize=8, color=GREY)
    ruler.set(xlim=(0, 88), ylim=(-0.8, 0.8), yticks=[])
    ruler.set_xlabel("field, px; dotted: needed for\na corner to see 8, 16, 32 px", fontsize=8)
    ruler.set_title("without a hole" if found.whole else "with holes", fontsize=9)
    ruler.grid(visible=False)

    for at, entry in enumerate(found.bounds):
        right.barh(at, entry.layer.dilation, color=GREEN if entry.holds else RED, height=0.6)
        right.plot([entry.ratio] * 2, [at - 0.42, at + 0.42], color="black", linewidth=2)
        word = "kept" if entry.holds else "broken"
        right.text(max(entry.layer.dilation, entry.ratio) + 1, at, word, va="center", fontsize=8)
    right.set(xlim=(0, 72), ylim=(2.6, -0.6))
    right.set_yticks(range(3), ["d1", "d2", "d3"], fontsize=8)
    right.set_xlabel("dilation r, px; black: k/s before", fontsize=8)
    right.set_title("bound kept" if found.holds else "bound broken", fontsize=9)
    right.grid(visible=False)
    for axis in (ruler, right):
        axis.tick_params(labelsize=8)


# RegSeg -------------------------------------------------------------------------------------------


def staircase(rows: Mapping[str, Sequence[Step]], *, marked: Mapping[str, str]) -> Figure:
    """Fields from layer to layer beside what the bound allows.

    Args:
        rows: by name, the steps; the last 13 are those of the dilated blocks.
        marked: by name, the color of a row that stands out; the others are grey.
    """
    figure = new_figure(4.0)
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    ends = []
    for name, steps in sorted(rows.items(), key=lambda row: row[0] in marked):
        color, width = (marked[name], 2.0) if name in marked else ("#b5b5b5", 1.0)
        sizes = [1, *(step.size for step in steps)]
        left.step(range(len(sizes)), sizes, where="post", color=color, linewidth=width)
        if name in marked:
            ends.append((sizes[-1], len(sizes) - 1, f"{name}: {sizes[-1]:,}", color))
        before = steps[-14:-1]
        for step, previous in zip(steps[-13:], before, strict=True):
            ratio, broken = (
                previous.size / previous.stride,
                step.layer.dilation > previous.size / previous.stride,
            )
            right.plot(
                step.layer.dilation,
                ratio,
                marker="X" if broken else "o",
                color=color,
                markersize=9 if broken else 5,
                alpha=1 if name in marked else 0.5,
                zorder=3 if name in marked else 2,
            )
    place, white = -1e9, {"facecolor": "white", "edgecolor": "none", "pad": 1}
    for size, at, text, color in sorted(ends):
        place = max(size, place + 260)
        left.annotate(text, (at, size), (at + 0.3, place), va="center", color=color, fontsize=9.5, bbox=white)
    for side in (1024, 2048):
        needed = field.across(side)
        left.axhline(needed, color="black", linewidth=1, linestyle=":")
        left.annotate(f"2 x {side:,} - 1", (0, needed), (0, 3), textcoords="offset points", fontsize=9)
    most = max(len(steps) for steps in rows.values())
    left.set(
        xlim=(0, most + 5.5), ylim=(0, 4600), xlabel="3x3 convolutions from the image on", ylabel="field, px"
    )
    _thousands(left.yaxis)
    rates = np.array([1, 20])
    right.plot(rates, rates, color="black", linewidth=1)
    right.fill_between(rates, rates, 1, color=RED, alpha=0.08, linewidth=0)
    right.annotate("holes are possible", (7, 1.6), color=RED, fontsize=9.5)
    right.set_xscale("log")
    right.set_yscale("log")
    right.set(
        xlim=(0.9, 22),
        ylim=(1, 330),
        xlabel="dilation r (log scale)",
        ylabel="k/s before the block (log scale)",
    )
    right.xaxis.set_major_locator(FixedLocator([1, 2, 4, 6, 10, 14, 18]))
    right.yaxis.set_major_locator(FixedLocator([1, 4, 10, 40, 100, 300]))
    _thousands(right.xaxis)
    _thousands(right.yaxis)
    return figure


def holes(mask: Tensor, *, zoom: int = 160) -> Figure:
    """Where a field is not touched: all of it, with each gap drawn thick, and its corner pixel by pixel.

    Args:
        mask: bool, square.
        zoom: side of the corner, px.
    """
    figure = new_figure(3.7)
    left, right = figure.subplots(1, 2)
    side = len(mask)
    rows, columns = (~mask).nonzero().T.tolist()
    left.imshow(np.ones((1, 1)), cmap=ListedColormap([SEEN]), extent=(0, side, side, 0))
    left.plot(columns, rows, "s", color="white", markersize=2.5)
    left.plot(columns, rows, "s", color="black", markersize=1)
    left.add_patch(Rectangle((0, 0), zoom, zoom, fill=False, edgecolor=ORANGE, linewidth=2))
    left.set(xlabel="column, px", ylabel="row, px", title=f"untouched: {len(rows)} of {side * side:,} px")
    left.xaxis.set_major_locator(MaxNLocator(4))
    left.yaxis.set_major_locator(MaxNLocator(4))
    _thousands(left.xaxis)
    _thousands(left.yaxis)
    right.imshow(
        mask[:zoom, :zoom].numpy(),
        cmap=ListedColormap(["black", SEEN]),
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    right.set(xlabel="column, px", ylabel="row, px", title=f"its first {zoom} px: gaps of one pixel")
    right.xaxis.set_major_locator(FixedLocator([0, 63, 127]))
    right.yaxis.set_major_locator(FixedLocator([0, 47, 63, 127]))
    for axis in (left, right):
        axis.grid(visible=False)
    return figure


def corner(image, size: tuple[int, int], boxes: Mapping[str, tuple]) -> Figure:
    """What a corner pixel sees of a street, by network; the rest is faded.

    Args:
        image: uint8 (3, h, w), drawn over the whole of ``size``.
        size: (H, W) of the picture that it stands for, px.
        boxes: by title, ((top, bottom), (left, right)) of the corner's field.
    """
    height, width = size
    figure = new_figure(0.75 + 4.5 / len(boxes) * 2 * height / width)
    picture = np.asarray(image).transpose(1, 2, 0)
    for axis, (title, ((_, bottom), (_, right))) in zip(
        figure.subplots(1, len(boxes), squeeze=False)[0], boxes.items(), strict=True
    ):
        axis.imshow(picture, extent=(0, width, height, 0))
        fade = {"facecolor": "white", "alpha": 0.78, "linewidth": 0}
        axis.add_patch(Rectangle((right + 1, 0), width - right - 1, height, **fade))
        axis.add_patch(Rectangle((0, bottom + 1), right + 1, height - bottom - 1, **fade))
        outline = {"fill": False, "edgecolor": ORANGE, "linewidth": 3, "clip_on": False}
        axis.add_patch(Rectangle((0, 0), right + 1, bottom + 1, **outline))
        axis.plot(0, 0, "o", color=ORANGE, markersize=9, clip_on=False)
        axis.set(title=title, xlabel="column, px", xlim=(0, width), ylim=(height, 0))
        axis.set_xticks([0, right], ["0", f"{right:,}"])
        axis.set_yticks([0, bottom], ["0", f"{bottom:,}"])
        axis.grid(visible=False)
    return figure


# Fields and costs ---------------------------------------------------------------------------------


def _rulers(axis: Axes, x: float) -> None:
    for side in (1024, 2048):
        needed = field.across(side)
        axis.axhline(needed, color="black", linewidth=1, linestyle=":")
        text = f"a corner sees {side:,} px"
        axis.annotate(
            text, (x, needed), (0, 3), ("axes fraction", "data"), "offset points", fontsize=9, ha="right"
        )


def dilate_or_split(
    points: Mapping[str, tuple[float, int]], arrows: Sequence[tuple[str, str, str]]
) -> Figure:
    """Field against work, with arrows from one network to what it becomes.

    Args:
        points: by name: multiply-adds in 1e9 for 1024x1024 px, field in px.
        arrows: (from, to, what was done).
    """
    figure = new_figure(3.8)
    axis = figure.subplots()
    for name, (work, size) in points.items():
        axis.plot(work, size, "o", color=BLUE, markersize=8, zorder=3)
        axis.annotate(f"{name}: {size:,} px", (work, size), (9, -13), textcoords="offset points", fontsize=9)
    for start, end, text in arrows:
        level = abs(points[end][1] - points[start][1]) < 100  # in an arc, as others may lie between
        style = {"arrowstyle": "-|>", "color": ORANGE, "linewidth": 1.8, "shrinkA": 7, "shrinkB": 7}
        style |= {"connectionstyle": f"arc3,rad={-0.2 if level else 0}"}
        axis.annotate("", points[end], points[start], arrowprops=style)
        middle = [(a + b) / 2 for a, b in zip(points[start], points[end], strict=True)]
        shift = {"xytext": (-15, 45) if level else (6, -2), "textcoords": "offset points"}
        white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axis.annotate(text, middle, **shift, fontsize=9, color="#9a5c00", bbox=white)
    _rulers(axis, 0.99)
    works = [work for work, _ in points.values()]
    axis.set(xlim=(0.75 * min(works), 1.25 * max(works)), ylim=(1300, 5100))
    axis.set(xlabel="G multiply-adds for an image of 1024x1024", ylabel="field of the last maps, px")
    _thousands(axis.yaxis)
    return figure


def kit(groups: Mapping[str, Mapping[str, Seen]], shifts: Mapping[str, tuple[float, float]]) -> Figure:
    """Field against work for all networks, log axes; hollow where some of the field is not touched.

    Args:
        groups: by group and name.
        shifts: by name, where its text stands, in points from the dot; the others' is to the right.
    """
    figure = new_figure(4.9)
    axis = figure.subplots()
    handles = []
    for (group, members), mark, color in zip(groups.items(), MARKS, GROUP_COLORS, strict=True):
        for name, seen in members.items():
            hollow = seen.coverage < 1
            style = {"markerfacecolor": "white" if hollow else color, "markeredgewidth": 1.8}
            axis.plot(seen.gmac, seen.field, mark, color=color, markersize=9, zorder=3, **style)
            text = f"{name} ({seen.coverage:.0%} touched)" if hollow else name
            dx, dy = shifts.get(name, (9, -3))
            side = "right" if dx < 0 else "left"
            axis.annotate(
                text, (seen.gmac, seen.field), (dx, dy), textcoords="offset points", fontsize=9, ha=side
            )
        handles.append(Line2D([], [], marker=mark, color=color, linestyle="", markersize=8, label=group))
    axis.set_xscale("log")
    axis.set_yscale("log")
    _rulers(axis, 0.995)
    axis.set(xlim=(2, 2600), ylim=(330, 6500))
    axis.xaxis.set_major_locator(FixedLocator([3, 10, 30, 100, 300, 1000]))
    axis.yaxis.set_major_locator(FixedLocator([400, 500, 1000, 2000, 4000]))
    _thousands(axis.xaxis)
    _thousands(axis.yaxis)
    axis.set(
        xlabel="G multiply-adds for an image of 1024x1024 (log scale)",
        ylabel="field of an output pixel, px (log scale)",
    )
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, columnspacing=1.2)
    return figure


def accuracy_against_field(
    panels: Mapping[str, Mapping[str, tuple[float, float]]], *, spread: Mapping[str, float]
) -> Figure:
    """Printed accuracies against computed fields, a panel for each table.

    Args:
        panels: by title, by name: field in px, accuracy in %.
        spread: by title, the standard deviation of repeated runs that the paper reports, percentage points.
    """
    figure = new_figure(3.5)
    for axis, (title, points) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        best = max(points.values(), key=lambda point: point[1])
        low, high = (f(value for _, value in points.values()) for f in (min, max))
        if title in spread:
            axis.axhspan(
                best[1] - spread[title], best[1] + spread[title], color=ORANGE, alpha=0.2, linewidth=0
            )
        for name, (size, value) in points.items():
            axis.plot(size, value, "o", color=BLUE, markersize=7)
            near = sum(
                1 for s, v in points.values() if abs(s - size) < 300 and 0 <= v - value < 0.04 * (high - low)
            )
            axis.annotate(
                name, (size, value), (8, -3 if near < 2 else -12), textcoords="offset points", fontsize=8.5
            )
        sizes = [size for size, _ in points.values()]
        wide = max(sizes) - min(sizes)
        axis.set(xlim=(min(sizes) - 0.1 * wide, max(sizes) + 0.28 * wide))
        axis.set(ylim=(low - 0.15 * (high - low), high + 0.2 * (high - low)))
        axis.set(title=title, xlabel="field of the backbone, px", ylabel="printed, %")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(5))
        _thousands(axis.xaxis)
    return figure


# By gradient --------------------------------------------------------------------------------------


def square_root(found: Mapping[int, EffectiveField], *, shown: int) -> Figure:
    """How the gradient spreads over the field of equal 3x3 convolutions, and its extent against their number.

    Args:
        found: by number of convolutions.
        shown: the number whose profile is drawn.
    """
    figure = new_figure(3.3)
    left, right = figure.subplots(1, 2)
    one = found[shown]
    profile = 100 * one.map.sum(1).numpy()
    places = np.arange(len(profile)) - (len(profile) - 1) / 2
    first, last = one.box[0]
    inside = (np.arange(len(profile)) >= first) & (np.arange(len(profile)) <= last)
    left.bar(places, profile, width=1, color=np.where(inside, BLUE, "#b5b5b5").tolist())
    left.axvline(-shown - 0.5, color="black", linestyle=":")
    left.axvline(shown + 0.5, color="black", linestyle=":")
    left.set(xlabel="pixels from the center; dotted: the field", ylabel="share of the gradient, %")
    left.set_title(f"{shown} convolutions: {share_text(one)} in {one.extent[0]} of {2 * shown + 1} px")
    counts = list(found)
    right.plot(counts, [2 * n + 1 for n in counts], color=GREY, marker="s", markersize=5)
    right.plot(counts, [field_.extent[0] for field_ in found.values()], "o", color=BLUE, markersize=7)
    right.plot(counts, [2.69 * n**0.5 for n in counts], color=ORANGE, linestyle="--")
    end = counts[-1]
    for text, value, color in (
        ("field, 2n + 1", 2 * end + 1, GREY),
        ("2.69 √n", 2.69 * end**0.5, "#9a5c00"),
    ):
        right.annotate(text, (end, value), (6, -3), textcoords="offset points", color=color, fontsize=9.5)
    right.set_xscale("log")
    right.set_yscale("log")
    right.set(xlim=(0.9 * counts[0], 3.2 * end), xlabel="convolutions n (log scale)", ylabel="px (log scale)")
    right.set_title(f"dots: {share_text(one)} of the gradient")
    right.xaxis.set_major_locator(FixedLocator(counts))
    right.yaxis.set_major_locator(FixedLocator([3, 10, 30, 100, 300]))
    _thousands(right.xaxis)
    _thousands(right.yaxis)
    return figure


def share_text(found: EffectiveField) -> str:
    """Such as "90 %"."""
    return f"{100 * found.share:.0f} %"


def maps(found: Mapping[str, EffectiveField], image, *, size: int) -> Figure:
    """Gradients over a picture's pixels, each with the box that holds the share, on one color scale.

    Args:
        found: by title.
        image: one of the pictures, uint8 (3, H, W).
        size: of the field by structure, px; drawn dashed around the middle.
    """
    picture = np.asarray(image).transpose(1, 2, 0)
    height, width = picture.shape[:2]
    columns = 1 + len(found)
    figure = new_figure(0.9 + 9 / columns * height / width)
    axes = figure.subplots(1, columns)
    axes[0].imshow(picture)
    axes[0].set_title("one of the pictures")
    drawn = None
    for axis, (title, one) in zip(axes[1:], found.items(), strict=True):
        values = one.map.numpy()
        levels = np.geomspace(1e-7, 1e-3, 9)
        norm = BoundaryNorm(levels, 256, extend="both")
        drawn = axis.imshow(values, cmap="cividis", norm=norm)
        (top, bottom), (left, right) = one.box
        axis.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="white", linewidth=1.5)
        )
        axis.set_title(title)
    for axis in axes:
        for place in ((width - size) / 2, (width + size) / 2):
            if 0 <= place < width:
                axis.axvline(place, color=ORANGE, linestyle="--", linewidth=1)
        axis.plot(width // 2, height // 2, "+", color=ORANGE, markersize=9)
        axis.set(xlim=(0, width - 1), ylim=(height - 1, 0), xticks=[], yticks=[])
        axis.grid(visible=False)
    bar = figure.colorbar(drawn, ax=axes, orientation="horizontal", fraction=0.06, pad=0.04, aspect=50)
    bar.set_ticks([1e-7, 1e-6, 1e-5, 1e-4, 1e-3], labels=["1e-7", "1e-6", "1e-5", "1e-4", "1e-3"])
    bar.set_label("share of the gradient in a pixel (log scale)", fontsize=9)
    return figure


def columns_of(found: Mapping[str, EffectiveField], *, size: int) -> Figure:
    """The gradient by columns, each column's share over the largest one's, a line for each network.

    Args:
        found: by name.
        size: of the field by structure, px.
    """
    figure = new_figure(3.1)
    axis, share = figure.subplots(), share_text(next(iter(found.values())))
    styles = zip(found.items(), (GREY, BLUE, ORANGE), ("--", "-", ":"), (0.004, 0.0025, 0.0016), strict=False)
    for (name, one), color, style, height in styles:
        profile = one.map.sum(0).numpy()
        places = np.arange(len(profile)) - len(profile) / 2
        axis.plot(places, profile / profile.max(), color=color, linestyle=style, linewidth=1.8, label=name)
        ends = places[list(one.box[1])]
        axis.plot(ends, [height] * 2, marker="|", color=color, markersize=9, linewidth=3)
    axis.set_yscale("log")
    axis.set(
        ylim=(1e-3, 1.5),
        xlabel=f"columns from the middle, px (the field: {size} px); bars: where {share} of the gradient is",
    )
    axis.set_ylabel("gradient in a column\nover the largest (log scale)")
    axis.yaxis.set_major_locator(FixedLocator([0.001, 0.01, 0.1, 1]))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.legend(frameon=False, loc="upper right")
    return figure
